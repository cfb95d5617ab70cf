//! Single products: multiply-accumulates for each instruction, and cycles for each block.

use super::{
    Row,
    counter::{Counts, Mark},
    loops::Loop,
    mca::{Core, Mca},
};
use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// Multiply-accumulates of a block: 32 columns of 8 rows.
const BLOCK: f64 = 256.0;
/// The part of a product's instructions that must be in loops whose cycles are known.
const IN_LOOPS: f64 = 0.75;

/// A product that was counted.
#[derive(Debug)]
pub struct Product {
    /// Format and shape, `q4-gemv`, or `q4-gemv_q4_0` of weights without minima.
    name: String,
    /// Multiply-accumulates.
    macs: f64,
    instructions: f64,
    loops: Vec<Loop>,
}

/// What a program prints for each.
#[derive(Deserialize)]
struct Said {
    name: String,
    macs: f64,
}

/// Those of a program that prints what it has multiplied, and marks the moments before and behind each.
///
/// # Errors
///
/// If there are none.
pub fn read(counts: &Counts) -> Result<Vec<Product>> {
    let said = counts.output.lines().filter_map(|line| serde_json::from_str::<Said>(line).ok());
    let (marks, _) = counts.marks.as_chunks::<2>();
    let product = |(said, [from, to]): (Said, &[Mark; 2])| -> Option<Product> {
        let instructions = to.instructions.checked_sub(from.instructions)? as f64;
        Some(Product { name: said.name, macs: said.macs, instructions, loops: to.loops.clone() })
    };
    let products: Vec<Product> = said.zip(marks).filter_map(product).collect();
    ensure!(!products.is_empty(), "no product was counted");
    Ok(products)
}

impl Product {
    /// Multiply-accumulates for each instruction at a level, against the most that there can be.
    pub fn macs_per_instruction(&self, level: &str, ceiling: f64) -> Row {
        let name = format!("macs_per_insn/{}/{level}", self.name);
        Row::against(name, "MACs/instruction; peer: ceiling", self.macs / self.instructions, ceiling)
    }

    /// Cycles for each block, in all loops.
    fn cycles(&self, mca: &Mca, core: &Core) -> Result<f64> {
        let inside: u64 = self.loops.iter().map(Loop::instructions).sum();
        let part = inside as f64 / self.instructions;
        ensure!(part >= IN_LOOPS, "the loops found have only {:.0} % of its instructions", 100.0 * part);
        Ok(mca.cycles(&self.loops, core)? * BLOCK / self.macs)
    }
}

/// Cycles for each block of each of our products on a core, against llama.cpp's of the same name. What fails costs its own row;
/// `failures` gets it.
pub fn cycles(
    mca: &Mca,
    core: &Core,
    ours: &[Product],
    theirs: &[Product],
    failures: &mut Vec<anyhow::Error>,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for product in ours {
        let name = format!("mca_cycles_per_block/{}/{}", core.name, product.name);
        let of = |product: &Product| product.cycles(mca, core).with_context(|| name.clone());
        let peer = theirs.iter().find(|theirs| theirs.name == product.name);
        match (of(product), peer.map(of).transpose()) {
            (Ok(ours), Ok(Some(peer))) => rows.push(Row::against(name, "cycles", ours, peer)),
            (Ok(ours), Ok(None)) => rows.push(Row::alone(name, "cycles", ours)),
            (ours, peer) => failures.extend([ours.err(), peer.err()].into_iter().flatten()),
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(instructions: u64, turns: u64) -> Mark {
        Mark { instructions, time: 0, loops: vec![Loop { turns, code: vec![0; 10] }] }
    }

    #[test]
    fn products_are_what_lies_between_two_marks() {
        let output =
            "repack: tensor\n{\"name\":\"q4-gemv\",\"macs\":1000}\n{\"name\":\"q8-gemv\",\"macs\":512}\n"
                .into();
        let counts = Counts { marks: vec![mark(5, 0), mark(105, 9), mark(200, 1), mark(456, 20)], output };
        let products = read(&counts).unwrap();
        let figures = |p: &Product| (p.name.clone(), p.macs, p.instructions, p.loops[0].turns);
        assert_eq!(figures(&products[0]), ("q4-gemv".into(), 1000.0, 100.0, 9));
        assert_eq!(figures(&products[1]), ("q8-gemv".into(), 512.0, 256.0, 20));
        let row = products[0].macs_per_instruction("neon", 20.0);
        assert_eq!((&*row.name, row.ours, row.ratio), ("macs_per_insn/q4-gemv/neon", 10.0, Some(0.5)));
        assert!(read(&Counts { marks: vec![], output: counts.output }).is_err());
    }
}
