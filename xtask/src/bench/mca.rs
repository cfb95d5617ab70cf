//! Cycles of loops on a core, by `llvm-mca`: from LLVM's model of the core's pipelines, with every load a hit in the first cache.

use super::loops::Loop;
use crate::{process, toolchain};
use anyhow::{Context as _, Result, bail, ensure};
use std::fs;

/// Oldest LLVM that tells these cores apart: before, all out-of-order ones were Cortex-A57s.
const MINIMUM: (u32, u32) = (17, 0);
/// Instructions to simulate, so that a loop's beginning and end make no difference.
const INSTRUCTIONS: usize = 20_000;

/// A core whose cycles are counted.
#[derive(Debug)]
pub struct Core {
    /// Its name in rows.
    pub name: &'static str,
    /// The level of instructions that our kernels use there.
    pub level: &'static str,
    /// The scheduling model.
    model: &'static str,
}

/// LLVM gives Cortex-A76 the model of Cortex-A57; Neoverse N1, which is derived from it, has one of its own. Cortex-X2 has that of
/// Neoverse N2, with two vector pipelines instead of four.
pub const CORES: [Core; 5] = [
    Core { name: "cortex-a53", level: "neon", model: "cortex-a53" },
    Core { name: "cortex-a72", level: "neon", model: "cortex-a72" },
    Core { name: "cortex-a76", level: "dotprod", model: "neoverse-n1" },
    Core { name: "cortex-x2", level: "i8mm", model: "cortex-x2" },
    Core { name: "neoverse-v1", level: "i8mm", model: "neoverse-v1" },
];

/// LLVM's tools.
pub struct Mca {
    /// Behind the tools' names.
    suffix: String,
}

impl Mca {
    /// Finds them.
    ///
    /// # Errors
    ///
    /// If there are none, or only older ones.
    pub fn find() -> Result<Self> {
        let suffixes = ["-19", ""].map(String::from).into_iter().chain((17..30).map(|n| format!("-{n}")));
        let recent = |suffix: &String| {
            let said = process::output(&format!("llvm-mca{suffix}"), &["--version"]).unwrap_or_default();
            version(&said).is_some_and(|found| found >= MINIMUM)
        };
        let suffix = suffixes.into_iter().find(recent);
        Ok(Self { suffix: suffix.context("llvm-mca 17 or later is needed: apt-get install llvm-19")? })
    }

    /// Cycles of all turns of some loops.
    ///
    /// # Errors
    ///
    /// If the model lacks an instruction.
    pub fn cycles(&self, loops: &[Loop], core: &Core) -> Result<f64> {
        let cycles =
            |found: &Loop| Ok(self.cycles_of_turn(&self.text(&found.code)?, core)? * found.turns as f64);
        loops.iter().map(cycles).sum()
    }

    fn cycles_of_turn(&self, text: &str, core: &Core) -> Result<f64> {
        let turns = INSTRUCTIONS.div_ceil(text.lines().count().max(1));
        let (cpu, iterations) = (format!("-mcpu={}", core.model), format!("-iterations={turns}"));
        let said = self.run("mca", &["-mtriple=aarch64", &cpu, &iterations], text)?;
        Ok(total(&said).context("llvm-mca says no cycles")? / turns as f64)
    }

    /// Instructions in assembly language, a line each.
    fn text(&self, code: &[u32]) -> Result<String> {
        let bytes = code.iter().flat_map(|word| word.to_le_bytes());
        let bytes: String = bytes.map(|byte| format!("{byte:#x}\n")).collect();
        let said = self.run("mc", &["-disassemble", "-triple=aarch64", "-mattr=+all"], &bytes)?;
        let lines = said.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('.'));
        let lines: Vec<&str> = lines.collect();
        ensure!(lines.len() == code.len(), "llvm-mc reads {} of {} instructions", lines.len(), code.len());
        Ok(lines.join("\n") + "\n")
    }

    /// What a tool says of a text.
    fn run(&self, tool: &str, arguments: &[&str], text: &str) -> Result<String> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("input");
        fs::write(&file, text)?;
        let name = format!("llvm-{tool}{}", self.suffix);
        let output = process::command(&name).args(arguments).arg(file).output()?;
        if !output.status.success() {
            bail!("{name} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Reads `… LLVM version 19.1.7 …`.
fn version(said: &str) -> Option<(u32, u32)> {
    let mut words = said.split_whitespace().skip_while(|word| *word != "version");
    words.nth(1).and_then(toolchain::version)
}

/// Reads `Total Cycles:      123`.
fn total(said: &str) -> Option<f64> {
    said.lines().find_map(|line| line.strip_prefix("Total Cycles:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tools_say_is_read() {
        assert_eq!(version("Debian LLVM version 19.1.7\n  Optimized build.\n"), Some((19, 1)));
        assert_eq!(version("LLVM (http://llvm.org/):\n  LLVM version 14.0.6\n"), Some((14, 0)));
        assert_eq!(version(""), None);
        assert_eq!(total("Iterations:        100\nTotal Cycles:      1604\n"), Some(1604.0));
        assert_eq!(total("Iterations:        100\n"), None);
    }
}
