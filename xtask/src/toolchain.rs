//! Which cargo builds what: host code by whichever is recent enough, bare-metal code by a rustup toolchain that has
//! the targets, or else by Debian's compiler with its own source.

use crate::{paths::Paths, process};
use anyhow::{Result, bail};
use std::{env, path::Path, process::Command};

/// Target of code that may use SIMD registers: partitions and payload.
pub const SIMD: &str = "aarch64-unknown-none";
/// Compiler flags of the LLM partition. It always runs with the MMU on, where memory takes unaligned accesses, which the
/// target's default forbids; and every board has the SHA-2 instructions, for which S-EL0 has no way to ask (a CPU
/// without them would abort the partition, and nothing else, at its first hash).
pub const PARTITION_FLAGS: &str = "-Ctarget-feature=+sha2,-strict-align";
/// Target of code that must not: EL3 and the SPMC.
pub const SOFT_FLOAT: &str = "aarch64-unknown-none-softfloat";
/// Target of the kernels' tests under `qemu-aarch64`.
pub const LINUX: &str = "aarch64-unknown-linux-gnu";
/// Root of the C library for Arm, as Debian's cross packages lay it out.
pub const ARM_LIBRARY_ROOT: &str = "/usr/aarch64-linux-gnu";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// Oldest rustc, the workspace's `rust-version`.
const MINIMUM: (u32, u32) = (1, 95);

/// Who builds code for Arm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cross {
    /// A rustup toolchain with the targets installed.
    Rustup,
    /// Debian's rustc, cargo and the source of the standard library, which is built along.
    Debian,
}

impl Cross {
    /// Picks what is there for `targets`.
    ///
    /// # Errors
    ///
    /// If neither is there.
    pub fn find(targets: &[&str]) -> Result<Self> {
        let installed = process::output("rustup", &["target", "list", "--installed"]).unwrap_or_default();
        if targets.iter().all(|t| installed.lines().any(|line| line == *t)) && recent_enough("rustc") {
            return Ok(Self::Rustup);
        }
        if recent_enough(DEBIAN_RUSTC) && debian_source() && Path::new(DEBIAN_CARGO).exists() {
            return Ok(Self::Debian);
        }
        bail!(
            "no compiler for {}. Either: rustup target add {}; or on Debian: \
             apt-get install --no-install-recommends rustc-web cargo-web rust-web-src lld",
            targets.join(", "),
            targets.join(" "),
        )
    }

    /// `cargo <subcommand> --target <target>` for bare-metal code.
    pub fn bare_metal(self, paths: &Paths, subcommand: &str, target: &str) -> Command {
        let std = (&["core,alloc,compiler_builtins"][..], &["compiler-builtins-mem"][..]);
        let mut command = self.cargo(paths, subcommand, target, std);
        // defmt leaves out everything below errors unless told otherwise.
        command.env("DEFMT_LOG", env::var_os("DEFMT_LOG").unwrap_or_else(|| "info".into()));
        command
    }

    /// `cargo <subcommand> --target aarch64-unknown-linux-gnu` for Linux programs.
    pub fn linux(self, paths: &Paths, subcommand: &str) -> Command {
        let std = (&["std,panic_unwind,test"][..], &[][..]);
        let mut command = self.cargo(paths, subcommand, LINUX, std);
        command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc");
        // Tests unwind whatever the profile says; if the crates under test did not, two standard libraries would meet.
        command.env("CARGO_PROFILE_RELEASE_PANIC", "unwind");
        command
    }

    /// `std`: crates of the standard library to build, and their features, where they are not installed.
    fn cargo(
        self,
        paths: &Paths,
        subcommand: &str,
        target: &str,
        (std, features): (&[&str], &[&str]),
    ) -> Command {
        let mut command = match self {
            Self::Rustup => process::command("cargo"),
            Self::Debian => {
                let mut command = process::command(DEBIAN_CARGO);
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                // The targets name rust-lld, which rustup's toolchains bring along and Debian's does not.
                for name in ["AARCH64_UNKNOWN_NONE", "AARCH64_UNKNOWN_NONE_SOFTFLOAT"] {
                    command.env(format!("CARGO_TARGET_{name}_LINKER"), "ld.lld");
                }
                command
            }
        };
        command.current_dir(&paths.root).env("CARGO_TARGET_DIR", paths.bare_metal_target());
        // Set by the cargo that started this program, for that cargo's own use.
        command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
        command.arg(subcommand).args(["--target", target]);
        if self == Self::Debian {
            command.args(std.iter().map(|s| format!("-Zbuild-std={s}")));
            command.args(features.iter().map(|f| format!("-Zbuild-std-features={f}")));
        }
        command
    }
}

/// Cargo for host code: the one in `FLEXSERVE_CARGO` (set by `./flexserve`), or the first on the path.
pub fn host_cargo(paths: &Paths, subcommand: &str) -> Command {
    let mut command = process::command(env::var_os("FLEXSERVE_CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&paths.root).arg(subcommand);
    command
}

/// Whether Debian's package of the standard library's source is installed.
fn debian_source() -> bool {
    process::output(DEBIAN_RUSTC, &["--print", "sysroot"])
        .is_some_and(|root| Path::new(root.trim()).join("lib/rustlib/src/rust/library/core").exists())
}

fn recent_enough(rustc: &str) -> bool {
    process::output(rustc, &["--version"])
        .and_then(|text| version(text.split_whitespace().nth(1)?))
        .is_some_and(|found| found >= MINIMUM)
}

/// Major and minor number at the start of a version.
pub fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(version("1.96.0"), Some((1, 96)));
        assert_eq!(version("10.0.2 (Debian 1:10.0.2)"), Some((10, 0)));
        assert!(version("10.0") > version("9.2"));
        assert_eq!(version("what"), None);
        assert_eq!(version("9"), None);
    }
}
