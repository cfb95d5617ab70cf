//! How the secure worlds share one UART without a common lock.
//!
//! Every world writes its own stream of defmt frames. Each byte travels as two symbols, low nibble first, and each
//! symbol carries the world that wrote it; so streams may interleave anywhere and the reader still separates them.

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum World {
    /// The EL3 service.
    El3 = 1,
    /// The SPMC.
    Spmc = 2,
    /// The LLM partition.
    LlmPartition = 3,
    /// The hostile partition.
    HostilePartition = 4,
}

impl World {
    /// Every world, with the label it has in the decoded log.
    pub const ALL: [(Self, &'static str); 4] = [
        (Self::El3, "EL3"),
        (Self::Spmc, "SPMC"),
        (Self::LlmPartition, "LLM"),
        (Self::HostilePartition, "HOSTILE"),
    ];
}

/// The two symbols of one byte: `world << 4 | nibble`, low nibble first.
#[must_use]
pub const fn encode(world: World, byte: u8) -> [u8; 2] {
    let tag = (world as u8) << 4;
    [tag | (byte & 0xf), tag | (byte >> 4)]
}

/// Puts symbols back together.
#[derive(Debug, Default)]
pub struct Decoder {
    low: [Option<u8>; 16],
}

impl Decoder {
    /// Takes one symbol; answers the byte that it completes, if any. A symbol of an unknown world is dropped.
    pub fn push(&mut self, symbol: u8) -> Option<(World, u8)> {
        let (world, _) = World::ALL.into_iter().find(|(world, _)| *world as u8 == symbol >> 4)?;
        let slot = &mut self.low[usize::from(symbol >> 4)];
        match slot.take() {
            None => {
                *slot = Some(symbol & 0xf);
                None
            }
            Some(low) => Some((world, (symbol << 4) | low)),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn interleaved_streams_come_apart() {
        let el3: Vec<u8> = (0..=255).flat_map(|b| encode(World::El3, b)).collect();
        let spmc: Vec<u8> = (0..=255).rev().flat_map(|b| encode(World::Spmc, b)).collect();
        let mut decoder = Decoder::default();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for (x, y) in el3.into_iter().zip(spmc) {
            for (world, byte) in [decoder.push(x), decoder.push(y)].into_iter().flatten() {
                if world == World::El3 { a.push(byte) } else { b.push(byte) }
            }
        }
        assert_eq!(a, (0..=255).collect::<Vec<u8>>());
        assert_eq!(b, (0..=255).rev().collect::<Vec<u8>>());
    }

    #[test]
    fn unknown_worlds_are_dropped() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(0x05), None);
        assert_eq!(decoder.push(0xf5), None);
    }
}
