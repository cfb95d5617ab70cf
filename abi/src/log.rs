//! How the secure worlds share one UART without a common lock.
//!
//! Every world writes its own stream of defmt frames. Each byte travels as two symbols, low nibble first, and each
//! symbol carries the world that wrote it; so streams may interleave anywhere and the reader still separates them.
//! Symbols have bit 7 set: plain ASCII, such as TF-A's crash report on the same UART, passes beside them.

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum World {
    /// The EL3 service.
    El3 = 0x8,
    /// The SPMC.
    Spmc = 0x9,
    /// The LLM partition.
    LlmPartition = 0xa,
    /// The hostile partition.
    HostilePartition = 0xb,
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

/// What a symbol completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// A byte of a world's stream of defmt frames.
    Byte(World, u8),
    /// A byte of plain text, or of no known world.
    Text(u8),
}

/// Puts symbols back together.
#[derive(Debug, Default)]
pub struct Decoder {
    low: [Option<u8>; 16],
}

impl Decoder {
    /// Takes one byte of the UART; answers what it completes, if anything.
    pub fn push(&mut self, symbol: u8) -> Option<Output> {
        let Some((world, _)) = World::ALL.into_iter().find(|(world, _)| *world as u8 == symbol >> 4) else {
            return Some(Output::Text(symbol));
        };
        let slot = &mut self.low[usize::from(symbol >> 4)];
        match slot.take() {
            None => {
                *slot = Some(symbol & 0xf);
                None
            }
            Some(low) => Some(Output::Byte(world, (symbol << 4) | low)),
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
            for output in [decoder.push(x), decoder.push(y)].into_iter().flatten() {
                match output {
                    Output::Byte(World::El3, byte) => a.push(byte),
                    Output::Byte(World::Spmc, byte) => b.push(byte),
                    other => panic!("{other:?} out of nowhere"),
                }
            }
        }
        assert_eq!(a, (0..=255).collect::<Vec<u8>>());
        assert_eq!(b, (0..=255).rev().collect::<Vec<u8>>());
    }

    #[test]
    fn text_passes_beside_the_symbols() {
        let mut decoder = Decoder::default();
        let [low, high] = encode(World::El3, 0x5a);
        assert_eq!(decoder.push(low), None);
        assert_eq!(decoder.push(b'!'), Some(Output::Text(b'!')));
        assert_eq!(decoder.push(high), Some(Output::Byte(World::El3, 0x5a)));
    }
}
