//! The ISA levels at which kernels are measured, and what they have to reach.

use super::Row;

/// An ISA level.
pub struct Level {
    /// As the rows and `--level` call it.
    pub name: &'static str,
    /// A core that has no more than that, as `qemu-aarch64 -cpu` takes it.
    pub cpu: &'static str,
    /// What the peer is compiled for.
    pub march: &'static str,
    /// Products of two octets that its widest instruction sums up.
    pub macs: f64,
    /// What an answer and a prompt may take at most, of llama.cpp's instructions.
    pub targets: Option<(f64, f64)>,
}

const SVE2: &str = "armv8.6-a+sve2+i8mm";

/// All, in the order of the rows.
#[rustfmt::skip]
pub const LEVELS: [Level; 6] = [
    Level { name: "neon", cpu: "cortex-a72", march: "armv8-a", macs: 8.0, targets: Some((0.5, 0.45)) },
    Level { name: "dotprod", cpu: "cortex-a76", march: "armv8.2-a+dotprod", macs: 16.0, targets: Some((0.35, 0.25)) },
    Level { name: "i8mm", cpu: "max,sve=off,sme=off", march: "armv8.6-a+i8mm+dotprod", macs: 32.0, targets: Some((0.35, 0.25)) },
    Level { name: "sve-512", cpu: "a64fx", march: "armv8.2-a+sve", macs: 64.0, targets: None },
    Level { name: "sve2-256", cpu: "max,sve256=on,sme=off", march: SVE2, macs: 64.0, targets: Some((0.27, 0.14)) },
    Level { name: "sve2-512", cpu: "max,sve512=on,sme=off", march: SVE2, macs: 128.0, targets: Some((0.2, 0.1)) },
];

impl Level {
    /// What to say if a row is above its target.
    pub fn missed(&self, row: &Row) -> Option<String> {
        let (decode, prefill) = self.targets?;
        let most = match row.name.split_once('/')?.0 {
            "decode_insn" => decode,
            "prefill_insn" | "prefill512_insn" => prefill,
            // llama.cpp repacks these weights.
            "decode_insn_q4_0" | "prefill_insn_q4_0" => 0.9,
            _ => return None,
        };
        let ratio = row.ratio.filter(|ratio| *ratio > most)?;
        Some(format!("{}: {ratio:.4} of llama.cpp's, {most} at most", row.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_above_its_target_is_missed() {
        let missed = |level: &Level, name: &str, ours| {
            level.missed(&Row::against(format!("{name}/{}", level.name), "", ours, 1.0)).is_some()
        };
        let [neon, .., sve2] = &LEVELS;
        assert!(missed(neon, "decode_insn", 0.501) && !missed(neon, "decode_insn", 0.5));
        assert!(missed(sve2, "prefill512_insn", 0.101) && !missed(sve2, "prefill_insn", 0.1));
        assert!(missed(neon, "prefill_insn_q4_0", 0.901) && !missed(neon, "decode_insn_q4_0", 0.9));
        assert!(!missed(neon, "memory", 2.0));
        assert!(neon.missed(&Row::alone("decode_insn/neon", "", 1.0)).is_none());
    }
}
