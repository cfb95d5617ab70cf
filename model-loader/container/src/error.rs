//! Why a container is refused.

use core::fmt;

/// What is wrong with a container, or with the slices that claim to hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The first bytes are not [`crate::wire::MAGIC`].
    BadMagic,
    /// Written by another version of the packer.
    BadVersion(u32),
    /// Fewer bytes than the part that is named needs.
    Truncated(&'static str),
    /// A hash differs: of the head ([`None`]) or of the segment with that index.
    BadHash(Option<u32>),
    /// The named count or size is zero where it may not be, or above its cap.
    OutOfRange(&'static str),
    /// The named part overlaps another one, lies outside its container or is not aligned.
    BadLayout(&'static str),
    /// The named code is none that this version knows.
    Unknown(&'static str),
    /// The named table is not sorted, or refers to something that does not exist.
    BadTable(&'static str),
    /// A tensor that the architecture needs is missing, or is there twice.
    MissingTensor,
    /// A tensor's rows and columns are not those that the architecture needs.
    BadShape,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadMagic => write!(f, "not a FlexServe model container (wrong magic number)"),
            Self::BadVersion(version) => {
                write!(f, "container version {version} is not supported; pack the model again")
            }
            Self::Truncated(part) => write!(f, "the container ends inside {part}"),
            Self::BadHash(None) => write!(f, "the container's header is corrupt (its hash differs)"),
            Self::BadHash(Some(index)) => write!(f, "segment {index} is corrupt (its hash differs)"),
            Self::OutOfRange(what) => write!(f, "{what} is out of its range"),
            Self::BadLayout(what) => write!(f, "{what} is misplaced"),
            Self::Unknown(what) => write!(f, "unknown {what}"),
            Self::BadTable(what) => write!(f, "the table of {what} is inconsistent"),
            Self::MissingTensor => write!(f, "a tensor is missing"),
            Self::BadShape => write!(f, "a tensor has the wrong shape"),
        }
    }
}

impl core::error::Error for Error {}
