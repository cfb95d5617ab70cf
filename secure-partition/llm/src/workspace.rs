//! The memory that a running model needs, carved out of one slice.

use flexserve_container::Manifest;
use flexserve_kernels::activations::{Buffers, Needed, Token};
use flexserve_kernels::cache::{Layout, Width};
use flexserve_kernels::matrix::ShapeError;
use zerocopy::FromBytes;

use crate::{Error, weights};

/// Tokens that one pass over the weights serves.
pub const BATCH: usize = 128;

/// Sizes of a model, as lengths.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Width of the residual stream.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward network.
    pub feed_forward: usize,
    /// Rotated pairs of a head.
    pub pairs: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Positions of the cache.
    pub context: usize,
    /// Whether matrices take activations twice, as they have weights of 16 bits. So have keys and values then.
    pub twice: bool,
}

impl Shape {
    /// Of a model with a cache of `context` positions.
    #[must_use]
    pub fn new(manifest: &Manifest, context: usize) -> Self {
        let params = manifest.params();
        Self {
            width: params.embedding as usize,
            layers: params.layers as usize,
            heads: params.heads as usize,
            kv_heads: params.kv_heads as usize,
            head_dim: params.head_dim as usize,
            feed_forward: params.feed_forward as usize,
            pairs: params.rope_dims as usize / 2,
            vocab: params.vocab as usize,
            context,
            twice: weights::take_twice(manifest),
        }
    }

    /// Columns of the attention's output.
    #[must_use]
    pub const fn queries(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Rows of the key (or value) matrix.
    #[must_use]
    pub const fn keys(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Inputs of the widest matrix: [`flexserve_kernels::format::Format::W16`] takes each column twice.
    #[must_use]
    pub fn widest(&self) -> usize {
        2 * self.width.max(self.feed_forward).max(self.queries())
    }

    /// How keys and values are kept.
    ///
    /// # Errors
    /// [`ShapeError`] if heads are too wide.
    pub const fn layout(&self) -> Result<Layout, ShapeError> {
        Layout::new(self.head_dim, if self.twice { Width::Word } else { Width::Octet })
    }
}

/// Everything that changes while the model runs. Q formats are those of the values' users.
#[derive(Debug)]
pub struct Workspace<'w> {
    /// (`BATCH`, width): residual stream, Q39.24; with room for the other one's use
    pub residual: &'w mut [i64],
    /// (`BATCH`, width): the residual stream to be; before that, (`BATCH`, heads, `head_dim`), what attention answers
    pub next_residual: &'w mut [i64],
    /// (widest): one token's inputs of a matrix
    pub inputs: &'w mut [i32],
    /// (`BATCH`, heads, `head_dim`), Q15.16
    pub queries: &'w mut [i32],
    /// (`BATCH`, `kv_heads`, `head_dim`), Q15.16
    pub keys: &'w mut [i32],
    /// (`BATCH`, `kv_heads`, `head_dim`), Q15.16
    pub values: &'w mut [i32],
    /// (`BATCH`, `feed_forward`), Q15.16
    pub gate: &'w mut [i32],
    /// (`BATCH`, `feed_forward`), Q15.16
    pub up: &'w mut [i32],
    /// (`BATCH`, pairs): cosine and sine, Q2.30
    pub rotations: &'w mut [[i32; 2]],
    /// (vocab), Q15.16
    pub logits: &'w mut [i32],
    /// (`BATCH`, widest): what matrices are multiplied with, as the kernels take it
    pub activations: Buffers<'w>,
    /// (layers, `kv_heads`, [`Layout::octets`])
    pub key_octets: &'w mut [i8],
    /// (layers, `kv_heads`, [`Layout::octets`])
    pub value_octets: &'w mut [i8],
    /// (layers, `kv_heads`, [`Layout::scales`])
    pub key_scales: &'w mut [i32],
    /// (layers, `kv_heads`, [`Layout::scales`])
    pub value_scales: &'w mut [i32],
}

/// Takes arrays from the front of a slice.
struct Carver<'w> {
    rest: Option<&'w mut [u8]>,
    used: usize,
}

impl<'w> Carver<'w> {
    /// The next `len` elements, rounded up to 64 bytes. Without a slice it only counts.
    fn take<T: FromBytes + zerocopy::IntoBytes>(&mut self, len: usize) -> Result<&'w mut [T], Error> {
        let bytes = (len * size_of::<T>()).next_multiple_of(64);
        self.used += bytes;
        let Some(rest) = self.rest.take() else { return Ok(&mut []) };
        let (taken, rest) = rest.split_at_mut_checked(bytes).ok_or(Error::Workspace)?;
        self.rest = Some(rest);
        let (elements, _) = <[T]>::mut_from_prefix_with_elems(taken, len).map_err(|_| Error::Workspace)?;
        Ok(elements)
    }
}

impl<'w> Workspace<'w> {
    /// Bytes that a model of this shape needs.
    #[must_use]
    pub fn bytes(shape: &Shape) -> usize {
        let mut carver = Carver { rest: None, used: 0 };
        // Counting cannot fail.
        let _ = Self::carve(shape, &mut carver);
        carver.used
    }

    /// Divides `memory`, which is aligned to 8 bytes or more.
    ///
    /// # Errors
    /// [`Error::Workspace`] if it is too small or not aligned.
    pub fn new(shape: &Shape, memory: &'w mut [u8]) -> Result<Self, Error> {
        Self::carve(shape, &mut Carver { rest: Some(memory), used: 0 })
    }

    fn carve(shape: &Shape, carver: &mut Carver<'w>) -> Result<Self, Error> {
        let widest = shape.widest();
        let needed = Needed::new(BATCH, widest);
        let heads = shape.layers * shape.kv_heads;
        // Of heads that are too wide, nothing is kept: an engine refuses them.
        let octets = heads * shape.layout().map_or(0, |layout| layout.octets(shape.context));
        let scales = heads * Layout::scales(shape.context);
        let residual = BATCH * shape.width.max(shape.queries());
        Ok(Self {
            residual: carver.take(residual)?,
            next_residual: carver.take(residual)?,
            inputs: carver.take(widest)?,
            queries: carver.take(BATCH * shape.queries())?,
            keys: carver.take(BATCH * shape.keys())?,
            values: carver.take(BATCH * shape.keys())?,
            gate: carver.take(BATCH * shape.feed_forward)?,
            up: carver.take(BATCH * shape.feed_forward)?,
            rotations: carver.take(BATCH * shape.pairs)?,
            logits: carver.take(shape.vocab)?,
            activations: Buffers {
                octets: carver.take(needed.octets)?,
                scales: carver.take(needed.scales)?,
                sums: carver.take(needed.sums)?,
                tokens: carver.take::<Token>(BATCH)?,
                seconds: carver.take(needed.seconds)?,
                scratch: carver.take(needed.scratch)?,
            },
            key_octets: carver.take(octets)?,
            value_octets: carver.take(octets)?,
            key_scales: carver.take(scales)?,
            value_scales: carver.take(scales)?,
        })
    }
}
