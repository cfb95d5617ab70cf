//! Model files of both kinds: packing to a file, opening, verifying.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom, Write};
use std::path::Path;

use flexserve_abi::GRANULE_SIZE;
use flexserve_container::{Header, Manifest, Model, wire};
use tempfile::NamedTempFile;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::error::Error;
use crate::gguf::Gguf;

/// What a model file is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A container.
    Container,
    /// Anything else, to be read as GGUF.
    Gguf,
}

/// Tells what a file is.
///
/// # Errors
/// [`Error::Io`].
pub fn kind(path: &Path) -> Result<Kind, Error> {
    let mut magic = Vec::new();
    File::open(path)?.take(wire::MAGIC.len() as u64).read_to_end(&mut magic)?;
    Ok(if magic == wire::MAGIC { Kind::Container } else { Kind::Gguf })
}

/// Opens a GGUF file.
///
/// # Errors
/// [`Error`], by name of what is wrong with it.
pub fn open_gguf(path: &Path) -> Result<Gguf<File>, Error> {
    Gguf::open(File::open(path)?)
}

/// Packs the GGUF file `input` as the container `output`, which appears complete or not at all. `progress` is told bytes
/// written and bytes in all.
///
/// # Errors
/// [`Error`], by name of what cannot be packed and why.
pub fn pack_file(
    input: &Path,
    output: &Path,
    security_version: u32,
    progress: impl FnMut(u64, u64),
) -> Result<(), Error> {
    let mut gguf = open_gguf(input)?;
    let mut temporary = temporary_for(output)?;
    crate::pack(&mut gguf, temporary.as_file_mut(), security_version, progress)?;
    publish(temporary, output)
}

/// An empty file beside `path`, which vanishes unless it is published.
fn temporary_for(path: &Path) -> Result<NamedTempFile, Error> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".flexserve-").tempfile_in(folder);
    file.map_err(|source| Error::Output { path: path.to_owned(), source })
}

/// Gives a complete file its name.
fn publish(temporary: NamedTempFile, path: &Path) -> Result<(), Error> {
    let named = || -> std::io::Result<()> {
        temporary.as_file().sync_all()?;
        share(&temporary.persist(path)?)
    };
    named().map_err(|source| Error::Output { path: path.to_owned(), source })
}

/// Temporary files are for their owner alone; a model is for whoever may read the folder.
#[cfg(unix)]
fn share(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn share(_file: &File) -> std::io::Result<()> {
    Ok(())
}

/// Segment 0 of a container, or of what a GGUF file would become: enough to tokenize.
///
/// # Errors
/// [`Error`], by name of what is wrong.
pub fn segment_0(path: &Path) -> Result<Vec<u8>, Error> {
    if kind(path)? == Kind::Gguf {
        return crate::pack_manifest(&mut open_gguf(path)?);
    }
    let mut file = File::open(path)?;
    let head = read_head(&mut file)?;
    let mut first = vec![0; Header::parse(&head)?.segment(0).map_or(0, |segment| segment.granule_bytes())];
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(&mut first)?;
    Manifest::parse(&first)?;
    Ok(first)
}

/// The leading bytes that [`Header::parse`] needs.
fn read_head<R: Read + Seek>(source: &mut R) -> Result<Vec<u8>, Error> {
    let mut head = Vec::new();
    source.seek(SeekFrom::Start(0))?;
    source.take(GRANULE_SIZE as u64).read_to_end(&mut head)?;
    let needed = Header::bytes_needed(&head)?;
    source.take(needed.saturating_sub(head.len()) as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// 64 bytes at an address that is a multiple of 64, as kernels like them.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Zeroed bytes at an address that is a multiple of 64.
#[derive(Clone, Debug)]
pub struct Memory(Vec<Line>);

impl Memory {
    /// Takes at least `bytes` bytes.
    #[must_use]
    pub fn zeroed(bytes: usize) -> Self {
        Self(vec![Line::new_zeroed(); bytes.div_ceil(size_of::<Line>())])
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The bytes, to be written.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }
}

/// A container in memory, every hash checked.
#[derive(Debug)]
pub struct Container {
    segments: Vec<Memory>,
}

impl Container {
    /// Reads and verifies a container, or packs a GGUF file in memory. `progress` is told bytes done and bytes in all.
    ///
    /// # Errors
    /// [`Error`], by name of what is wrong.
    pub fn open(path: &Path, progress: impl FnMut(u64, u64)) -> Result<Self, Error> {
        match kind(path)? {
            Kind::Container => Self::read(&mut BufReader::new(File::open(path)?), progress),
            Kind::Gguf => {
                let mut packed = Cursor::new(Vec::new());
                crate::pack(&mut open_gguf(path)?, &mut packed, 0, progress)?;
                Self::read(&mut packed, |_, _| ())
            }
        }
    }

    /// Reads and verifies a container.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Container`], [`Error::Truncated`].
    pub fn read<R: Read + Seek>(source: &mut R, mut progress: impl FnMut(u64, u64)) -> Result<Self, Error> {
        let length = source.seek(SeekFrom::End(0))?;
        let head = read_head(source)?;
        let header = Header::parse(&head)?;
        if header.file_bytes() != length {
            let reading = format!("a container of {} bytes", header.file_bytes());
            return Err(Error::Truncated { at: length, reading });
        }
        source.seek(SeekFrom::Start(0))?;
        let mut segments = Vec::new();
        for (index, segment) in header.segments().enumerate() {
            let mut memory = Memory::zeroed(segment.granule_bytes());
            source.read_exact(memory.bytes_mut())?;
            header.verify_segment(index, memory.bytes())?;
            segments.push(memory);
            progress(segment.offset + segment.granule_bytes() as u64, length);
        }
        let container = Self { segments };
        container.manifest()?;
        Ok(container)
    }

    /// Segments, each at an address that is a multiple of 64.
    #[must_use]
    pub fn segments(&self) -> Vec<&[u8]> {
        self.segments.iter().map(Memory::bytes).collect()
    }

    /// What the model is.
    ///
    /// # Errors
    /// [`Error::Container`].
    pub fn manifest(&self) -> Result<Manifest<'_>, Error> {
        Ok(Manifest::parse(self.segments.first().map_or(&[], Memory::bytes))?)
    }

    /// The model, of what [`Self::segments`] returned.
    ///
    /// # Errors
    /// [`Error::Container`].
    pub fn model<'a>(&'a self, segments: &'a [&'a [u8]]) -> Result<Model<'a>, Error> {
        Ok(Model::new(self.manifest()?, segments)?)
    }
}

/// Writes a file that appears complete or not at all.
///
/// # Errors
/// [`Error::Output`].
pub fn write_whole(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut temporary = temporary_for(path)?;
    temporary.write_all(content).map_err(|source| Error::Output { path: path.to_owned(), source })?;
    publish(temporary, path)
}
