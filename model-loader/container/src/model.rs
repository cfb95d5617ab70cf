//! All segments together.

use crate::{Error, Manifest, TensorKind};

/// A tensor's bytes in their packed layout.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Packed layout, by the number that the kernels give it.
    pub format: u32,
    /// Outputs.
    pub rows: u32,
    /// Inputs.
    pub cols: u32,
    /// The packed data. As aligned as the segment is, up to 64 bytes.
    pub bytes: &'a [u8],
}

/// A proven manifest and its segments, each a slice of its own.
#[derive(Clone, Copy, Debug)]
pub struct Model<'a> {
    manifest: Manifest<'a>,
    segments: &'a [&'a [u8]],
}

impl<'a> Model<'a> {
    /// Puts together a container whose segments lie in `segments`, by index; each may be longer than it needs to be.
    /// Hashes of segments 1 and up are not checked here: see [`crate::Header::verify_segment`].
    ///
    /// # Errors
    /// [`Error::Truncated`] if a segment is missing or too short.
    pub fn new(manifest: Manifest<'a>, segments: &'a [&'a [u8]]) -> Result<Self, Error> {
        for (index, segment) in manifest.header().segments().enumerate() {
            let bytes = segments.get(index).map_or(0, |slice| slice.len());
            if bytes < segment.granule_bytes() {
                return Err(Error::Truncated("a segment"));
            }
        }
        Ok(Self { manifest, segments })
    }

    /// What the model is.
    #[must_use]
    pub fn manifest(&self) -> &Manifest<'a> {
        &self.manifest
    }

    /// Finds a tensor. `layer` is ignored for those that belong to none. [`None`] for a layer that does not exist, and for
    /// [`TensorKind::Output`] of a model with a tied head.
    #[must_use]
    pub fn tensor(&self, kind: TensorKind, layer: u32) -> Option<TensorView<'a>> {
        let info = self.manifest.tensor(kind, layer)?;
        let bytes = self.segments.get(info.segment)?.get(info.offset..info.offset + info.bytes)?;
        Some(TensorView { format: info.format, rows: info.rows, cols: info.cols, bytes })
    }
}
