//! The normal world's UART: records among firmware text (JSON text sequences, RFC 7464).

use flexserve_client::job::Record;

const SEPARATOR: u8 = 0x1e;
/// Longest record that is waited for; whatever is longer is text.
const MAX_RECORD: usize = 1 << 20;

/// What the UART said.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// A record.
    Record(Record),
    /// A line of text, from the firmware or from nobody knows whom.
    Line(String),
    /// Something that looks like a record and is none; its text.
    Garbled(String),
}

/// Takes the UART's bytes apart.
#[derive(Default)]
pub struct Parser {
    buffer: Vec<u8>,
    in_record: bool,
}

impl Parser {
    /// Takes some bytes; answers what they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Said> {
        let mut said = Vec::new();
        for &byte in bytes {
            match byte {
                SEPARATOR => {
                    said.extend(self.finish());
                    self.in_record = true;
                }
                b'\n' => said.extend(self.finish()),
                _ => self.buffer.push(byte),
            }
            if self.buffer.len() > MAX_RECORD {
                said.extend(self.finish());
            }
        }
        said
    }

    /// Ends an incomplete line, at the end of the run.
    pub fn finish(&mut self) -> Option<Said> {
        let bytes = std::mem::take(&mut self.buffer);
        let was_record = std::mem::take(&mut self.in_record);
        let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if text.is_empty() {
            return None;
        }
        if !was_record {
            return Some(Said::Line(text));
        }
        // By way of a `Value`: another crate turns on serde_json's arbitrary precision, which tagged enums cannot read
        // directly.
        let record = serde_json::from_str::<serde_json::Value>(&text).and_then(serde_json::from_value);
        Some(record.map_or_else(|_| Said::Garbled(text), Said::Record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Said {
        Said::Record(Record::Text { text: text.to_owned() })
    }

    #[test]
    fn records_and_lines_come_apart_wherever_the_bytes_are_cut() {
        let uart = b"NOTICE:  BL1\r\nhalf a line\x1e{\"record\":\"text\",\"text\":\"Par\"}\n\
            \x1e{\"record\":\"text\",\"text\":\"is\"}\nlast";
        let expected = [
            Said::Line("NOTICE:  BL1".to_owned()),
            Said::Line("half a line".to_owned()),
            text("Par"),
            text("is"),
            Said::Line("last".to_owned()),
        ];
        for cut in 0..uart.len() {
            let mut parser = Parser::default();
            let mut said = parser.push(&uart[..cut]);
            said.extend(parser.push(&uart[cut..]));
            said.extend(parser.finish());
            assert_eq!(said, expected, "cut at {cut}");
        }
    }

    #[test]
    fn numbers_survive() {
        let record = Record::Progress { what: "loading".to_owned(), done: u64::MAX, total: 3 };
        let mut uart = vec![SEPARATOR];
        uart.extend(serde_json::to_vec(&record).unwrap());
        uart.push(b'\n');
        assert_eq!(Parser::default().push(&uart), [Said::Record(record)]);
    }

    #[test]
    fn a_broken_record_is_told_apart_from_text() {
        let said = Parser::default().push(b"\x1e{\"record\":\"no such\"}\n");
        assert_eq!(said, [Said::Garbled("{\"record\":\"no such\"}".to_owned())]);
    }

    #[test]
    fn an_endless_line_does_not_eat_all_memory() {
        let mut parser = Parser::default();
        assert_eq!(parser.push(&vec![b'a'; MAX_RECORD + 1]).len(), 1);
        assert!(parser.buffer.is_empty());
    }
}
