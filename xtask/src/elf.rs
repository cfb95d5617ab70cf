//! From an ELF file to the bytes that a boot loader copies to memory.

use crate::platform::Region;
use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSegment as _, read::elf::ElfFile64};
use std::{fs, path::Path};

/// The loadable bytes of an ELF file, from its lowest physical address on.
#[derive(Debug)]
pub struct Image {
    /// Physical address of the first byte.
    pub base: u64,
    /// What is loaded there.
    pub bytes: Vec<u8>,
    /// Bytes of memory that it occupies, zero-initialised ones included.
    pub memory: u64,
}

impl Image {
    /// Reads an ELF file.
    ///
    /// # Errors
    ///
    /// If it is missing, malformed or has nothing to load.
    pub fn read(path: &Path) -> Result<Self> {
        let data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&data).with_context(|| format!("{} is not a usable image", path.display()))
    }

    fn parse(data: &[u8]) -> Result<Self> {
        let elf = ElfFile64::<object::Endianness>::parse(data)?;
        let mut segments = Vec::new();
        for segment in elf.segments().filter(|s| s.size() != 0) {
            let physical = segment.elf_program_header().p_paddr.get(elf.endian());
            segments.push((physical, segment.data()?, segment.size()));
        }
        let Some(base) = segments.iter().map(|s| s.0).min() else { bail!("nothing to load") };
        let (mut bytes, mut memory) = (Vec::new(), 0);
        for (address, contents, size) in segments {
            let offset = address - base;
            memory = memory.max(offset + size);
            if !contents.is_empty() {
                let start = usize::try_from(offset)?;
                let end = start + contents.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[start..end].copy_from_slice(contents);
            }
        }
        Ok(Self { base, bytes, memory })
    }

    /// Checks that the image lies in its place.
    ///
    /// # Errors
    ///
    /// Says which image is where it should not be, or by how much it is too big.
    pub fn check_place(&self, name: &str, place: Region) -> Result<()> {
        if self.base != place.base {
            bail!("{name} is linked at {:#x}, but its place is {:#x}", self.base, place.base);
        }
        if self.memory > place.size {
            let excess = self.memory - place.size;
            bail!("{name} needs {} bytes, {excess} more than its place has", self.memory);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(base: u64, memory: u64) -> Image {
        Image { base, bytes: Vec::new(), memory }
    }

    #[test]
    fn an_image_may_fill_its_place_but_not_exceed_it() {
        let place = Region { base: 0x1000, size: 0x100 };
        image(0x1000, 0x100).check_place("it", place).unwrap();
        let error = image(0x1000, 0x101).check_place("it", place).unwrap_err().to_string();
        assert!(error.contains("257 bytes, 1 more"), "{error}");
        assert!(image(0x1001, 1).check_place("it", place).is_err());
    }

    #[test]
    fn rejects_what_is_no_elf_file() {
        assert!(Image::parse(b"\x7fELF and no more").is_err());
        assert!(Image::parse(b"").is_err());
    }
}
