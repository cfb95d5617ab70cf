//! The secure worlds' logs: symbols on the secure UART, taken apart by world and decoded by defmt's tables.

use anyhow::{Context as _, Result};
use defmt_decoder::{DecodeError, StreamDecoder, Table};
use flexserve_abi::log::{Decoder, Output, World};
use std::{fs, path::PathBuf};

/// How bad a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// For who looks for it.
    Info,
    /// Worth the user's attention.
    Warning,
    /// Something failed.
    Error,
}

/// One line of log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// "EL3", "SPMC", … or "UART" for plain text on the secure UART.
    pub label: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it says.
    pub text: String,
}

impl Line {
    /// Whether a secure world has given up: their panic handlers log `panic at <file>:<line>` as an error, and TF-A's
    /// crash report is plain text.
    pub fn is_panic(&self) -> bool {
        let text = self.text.to_lowercase();
        self.severity == Severity::Error && (text.contains("panic") || text.contains("unhandled exception"))
    }
}

/// defmt's tables, read from the images' ELF files.
pub struct Tables(Vec<(World, Table)>);

impl Tables {
    /// Reads the tables of these images. An image without log statements has none.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, or holds a table of an unknown version.
    pub fn read(images: &[(World, PathBuf)]) -> Result<Self> {
        let mut tables = Vec::new();
        for (world, path) in images {
            let elf = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let table = Table::parse(&elf).with_context(|| format!("defmt's table in {}", path.display()))?;
            tables.extend(table.map(|table| (*world, table)));
        }
        Ok(Self(tables))
    }

    /// A reader of one run's secure UART.
    pub fn reader(&self) -> Reader<'_> {
        let streams = World::ALL.map(|(world, label)| {
            let known = self.0.iter().find(|(w, _)| *w == world);
            let decoder = known.map(|(_, table)| table.new_stream_decoder() as Box<dyn StreamDecoder>);
            Stream { world, label, decoder, lost: false }
        });
        Reader { symbols: Decoder::default(), streams, plain: Vec::new() }
    }
}

/// Reads one run's secure UART.
pub struct Reader<'t> {
    symbols: Decoder,
    streams: [Stream<'t>; World::ALL.len()],
    plain: Vec<u8>,
}

struct Stream<'t> {
    world: World,
    label: &'static str,
    decoder: Option<Box<dyn StreamDecoder + 't>>,
    /// A frame was malformed, and the user knows.
    lost: bool,
}

impl Reader<'_> {
    /// Takes some bytes; answers the lines that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        for &byte in bytes {
            match self.symbols.push(byte) {
                Some(Output::Byte(world, byte)) => {
                    let stream = self.streams.iter_mut().find(|s| s.world == world);
                    lines.extend(stream.and_then(|s| s.push(byte)));
                }
                Some(Output::Text(b'\n')) => lines.extend(self.finish()),
                Some(Output::Text(byte)) => self.plain.push(byte),
                None => {}
            }
        }
        lines
    }

    /// Ends an incomplete line of plain text.
    pub fn finish(&mut self) -> Option<Line> {
        let bytes = std::mem::take(&mut self.plain);
        let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        (!text.is_empty()).then_some(Line { label: "UART", severity: Severity::Error, text })
    }
}

impl Stream<'_> {
    fn push(&mut self, byte: u8) -> Option<Line> {
        let label = self.label;
        let mut lost = |text: &str| {
            let first = !std::mem::replace(&mut self.lost, true);
            first.then(|| Line { label, severity: Severity::Warning, text: text.to_owned() })
        };
        let Some(decoder) = &mut self.decoder else {
            return lost("logs, but its image has no table of log strings");
        };
        decoder.received(&[byte]);
        match decoder.decode() {
            Ok(frame) => {
                let severity = severity(frame.level().map(|l| l.as_str()));
                Some(Line { label, severity, text: frame.display_message().to_string() })
            }
            Err(DecodeError::UnexpectedEof) => None,
            Err(DecodeError::Malformed) => lost("part of the log is garbled"),
        }
    }
}

fn severity(level: Option<&str>) -> Severity {
    match level {
        Some("error") => Severity::Error,
        Some("warn") => Severity::Warning,
        _ => Severity::Info,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flexserve_abi::log::encode;

    #[test]
    fn plain_text_on_the_secure_uart_is_an_error_line() {
        let tables = Tables(Vec::new());
        let mut reader = tables.reader();
        let mut bytes = b"PANIC in ".to_vec();
        bytes.extend(encode(World::Spmc, 7));
        bytes.extend(b"EL3.\n");
        let lines = reader.push(&bytes);
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].label, lines[0].severity), ("SPMC", Severity::Warning));
        assert_eq!((lines[1].label, lines[1].text.as_str()), ("UART", "PANIC in EL3."));
    }

    #[test]
    fn a_missing_table_is_told_once() {
        let tables = Tables(Vec::new());
        let mut reader = tables.reader();
        let bytes: Vec<u8> = (0..9).flat_map(|b| encode(World::El3, b)).collect();
        assert_eq!(reader.push(&bytes).len(), 1);
    }

    #[test]
    fn only_errors_are_panics() {
        let line = |severity| Line { label: "EL3", severity, text: "panic at lib.rs:1".to_owned() };
        assert!(line(Severity::Error).is_panic());
        assert!(!line(Severity::Info).is_panic());
    }
}
