//! Reads little-endian numbers and strings, knowing where it is and how much is left.

use std::io::{BufReader, Read, Seek, SeekFrom};

use super::STRING_MAX;
use crate::error::{Error, Limit};

/// A position in a file of known length.
pub struct Cursor<'r, R> {
    reader: BufReader<&'r mut R>,
    position: u64,
    length: u64,
}

impl<'r, R: Read + Seek> Cursor<'r, R> {
    pub fn new(source: &'r mut R) -> Result<Self, Error> {
        let length = source.seek(SeekFrom::End(0))?;
        source.seek(SeekFrom::Start(0))?;
        Ok(Self { reader: BufReader::with_capacity(1 << 16, source), position: 0, length })
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    /// Makes sure that `bytes` are left. Called before memory is taken for them.
    pub fn expect(&self, bytes: u64, reading: &str) -> Result<(), Error> {
        if bytes > self.length - self.position {
            return Err(Error::Truncated { at: self.length, reading: reading.to_owned() });
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, reading: &str) -> Result<[u8; N], Error> {
        self.expect(N as u64, reading)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.position += N as u64;
        Ok(bytes)
    }

    pub fn u8(&mut self, reading: &str) -> Result<u8, Error> {
        self.array(reading).map(u8::from_le_bytes)
    }

    pub fn u16(&mut self, reading: &str) -> Result<u16, Error> {
        self.array(reading).map(u16::from_le_bytes)
    }

    pub fn u32(&mut self, reading: &str) -> Result<u32, Error> {
        self.array(reading).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, reading: &str) -> Result<u64, Error> {
        self.array(reading).map(u64::from_le_bytes)
    }

    /// A string: its length, then its bytes.
    pub fn string(&mut self, reading: &str) -> Result<Vec<u8>, Error> {
        let length = self.u64(reading)?;
        Limit::check("bytes of a string", length, STRING_MAX)?;
        self.expect(length, reading)?;
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes)?;
        self.position += length;
        Ok(bytes)
    }

    /// A string that names something.
    pub fn name(&mut self, reading: &str) -> Result<String, Error> {
        String::from_utf8(self.string(reading)?).map_err(|_| Error::NotUtf8(reading.to_owned()))
    }
}
