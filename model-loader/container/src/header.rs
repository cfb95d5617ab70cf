//! The head of a container: what a loader needs, and all that it may trust before it has the rest.

use flexserve_abi::GRANULE_SIZE;
use sha2::{Digest, Sha256};
use zerocopy::FromBytes;

use crate::wire;
use crate::{Error, limits};

/// What a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SegmentKind {
    /// Head, manifest, tokenizer.
    Manifest,
    /// Token embedding, which may be the output head too.
    Embedding,
    /// One layer.
    Layer(u32),
    /// Final norm, and the output head if it is not the embedding.
    Output,
}

impl SegmentKind {
    /// The two numbers that stand for it in a container: kind and layer.
    #[must_use]
    pub const fn to_wire(self) -> (u32, u32) {
        match self {
            Self::Manifest => (0, wire::NONE),
            Self::Embedding => (1, wire::NONE),
            Self::Layer(layer) => (2, layer),
            Self::Output => (3, wire::NONE),
        }
    }

    fn from_wire(kind: u32, layer: u32) -> Option<Self> {
        [Self::Manifest, Self::Embedding, Self::Layer(layer), Self::Output]
            .into_iter()
            .find(|known| known.to_wire() == (kind, layer))
    }
}

/// One segment: a run of whole granules in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What it holds.
    pub kind: SegmentKind,
    /// Byte offset in the file, a multiple of the granule size.
    pub offset: u64,
    /// Bytes in use, at least 1.
    pub bytes: u64,
    /// Granules that hold them; the rest of the last one is zero.
    pub granules: u32,
    /// SHA-256 of the granules; for segment 0 without the head and the segment table.
    pub sha256: [u8; 32],
}

impl Segment {
    /// Bytes of the granules.
    #[must_use]
    pub const fn granule_bytes(&self) -> usize {
        self.granules as usize * GRANULE_SIZE
    }
}

/// The proven head of a container.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    head: &'a wire::Head,
    table: &'a [wire::Segment],
}

impl<'a> Header<'a> {
    /// Leading bytes that [`Self::bytes_needed`] reads.
    pub const PREFIX_BYTES: usize = size_of::<wire::Head>();

    /// Tells how many leading bytes of the container [`Self::parse`] needs, from its first [`Self::PREFIX_BYTES`] or more.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::BadMagic`], [`Error::BadVersion`], [`Error::OutOfRange`].
    pub fn bytes_needed(prefix: &[u8]) -> Result<usize, Error> {
        let (head, _) = wire::Head::ref_from_prefix(prefix).map_err(|_| Error::Truncated("the header"))?;
        if head.magic != wire::MAGIC {
            return Err(Error::BadMagic);
        }
        if head.version.get() != wire::VERSION {
            return Err(Error::BadVersion(head.version.get()));
        }
        if !limits::SEGMENTS.contains(&head.segments.get()) {
            return Err(Error::OutOfRange("the number of segments"));
        }
        Ok(Self::PREFIX_BYTES + head.segments.get() as usize * size_of::<wire::Segment>())
    }

    /// Checks and reads the head and the segment table from the leading bytes of the container.
    ///
    /// # Errors
    /// Those of [`Self::bytes_needed`], [`Error::BadHash`], [`Error::BadLayout`], [`Error::Unknown`].
    pub fn parse(leading: &'a [u8]) -> Result<Self, Error> {
        let needed = Self::bytes_needed(leading)?;
        let bytes = leading.get(..needed).ok_or(Error::Truncated("the segment table"))?;
        let (head, rest) = wire::Head::ref_from_prefix(bytes).map_err(|_| Error::Truncated("the header"))?;
        let table =
            <[wire::Segment]>::ref_from_bytes(rest).map_err(|_| Error::Truncated("the segment table"))?;
        if hash_of_head(head, rest) != head.sha256 {
            return Err(Error::BadHash(None));
        }
        let header = Self { head, table };
        header.check_table()?;
        Ok(header)
    }

    /// Segments follow each other without gaps, in the order in which inference needs them.
    fn check_table(&self) -> Result<(), Error> {
        let layers = self.table.len() - 3;
        let mut offset = 0;
        for (index, raw) in self.table.iter().enumerate() {
            let expected = match index {
                0 => SegmentKind::Manifest,
                1 => SegmentKind::Embedding,
                i if i < layers + 2 => SegmentKind::Layer(i as u32 - 2),
                _ => SegmentKind::Output,
            };
            let kind = SegmentKind::from_wire(raw.kind.get(), raw.layer.get())
                .ok_or(Error::Unknown("kind of segment"))?;
            if kind != expected || raw.offset.get() != offset || raw.reserved.get() != 0 {
                return Err(Error::BadLayout("a segment"));
            }
            let bytes = raw.bytes.get();
            if !limits::SEGMENT_BYTES.contains(&bytes) {
                return Err(Error::OutOfRange("a segment's size"));
            }
            let granules = bytes.div_ceil(GRANULE_SIZE as u64);
            if granules != u64::from(raw.granules.get()) {
                return Err(Error::BadLayout("a segment's granules"));
            }
            offset += granules * GRANULE_SIZE as u64;
        }
        if self.head.file_bytes.get() != offset {
            return Err(Error::BadLayout("the end of the file"));
        }
        Ok(())
    }

    /// Leading bytes that head and segment table take.
    #[must_use]
    pub fn head_bytes(&self) -> usize {
        Self::PREFIX_BYTES + size_of_val(self.table)
    }

    /// Bytes of the whole container, a multiple of the granule size.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.head.file_bytes.get()
    }

    /// Granules of the whole container.
    #[must_use]
    pub fn granules(&self) -> u64 {
        self.file_bytes() / GRANULE_SIZE as u64
    }

    /// The hash of the head and the segment table, which has the hashes of all segments: two containers with the same are the
    /// same.
    #[must_use]
    pub fn sha256(&self) -> &'a [u8; 32] {
        &self.head.sha256
    }

    /// The model's version, against rollback.
    #[must_use]
    pub fn security_version(&self) -> u32 {
        self.head.security_version.get()
    }

    /// Number of segments, at least 4.
    #[must_use]
    pub fn segment_count(&self) -> usize {
        self.table.len()
    }

    /// The segments, in file order.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = Segment> + use<'a> {
        self.table.iter().map(|raw| Segment {
            kind: SegmentKind::from_wire(raw.kind.get(), raw.layer.get()).unwrap_or(SegmentKind::Manifest),
            offset: raw.offset.get(),
            bytes: raw.bytes.get(),
            granules: raw.granules.get(),
            sha256: raw.sha256,
        })
    }

    /// One segment.
    #[must_use]
    pub fn segment(&self, index: usize) -> Option<Segment> {
        self.segments().nth(index)
    }

    /// Checks the hash of a segment that lies at the start of `bytes`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for an index that does not exist, [`Error::Truncated`], [`Error::BadHash`].
    pub fn verify_segment(&self, index: usize, bytes: &[u8]) -> Result<(), Error> {
        let segment = self.segment(index).ok_or(Error::OutOfRange("the segment's index"))?;
        let skip = if index == 0 { self.head_bytes() } else { 0 };
        let hashed = bytes.get(skip..segment.granule_bytes()).ok_or(Error::Truncated("a segment"))?;
        if segment.sha256 != <[u8; 32]>::from(Sha256::digest(hashed)) {
            return Err(Error::BadHash(Some(index as u32)));
        }
        Ok(())
    }

    pub(crate) fn manifest_offset(&self) -> usize {
        self.head.manifest.get() as usize
    }
}

/// SHA-256 of a head, its own hash taken as zero, and of the segment table behind it.
#[must_use]
pub fn hash_of_head(head: &wire::Head, table: &[u8]) -> [u8; 32] {
    use zerocopy::IntoBytes;
    let blank = wire::Head { sha256: [0; 32], ..*head };
    Sha256::new().chain_update(blank.as_bytes()).chain_update(table).finalize().into()
}
