//! Segment 0, proven: what the model is and where its tensors are.

use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use crate::header::{Header, SegmentKind};
use crate::tables::{Chat, Tokenizer, section};
use crate::wire;
use crate::{Error, limits};

/// Family of models, which says how the tensors are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Architecture {
    /// RMS norm, rotary embedding of adjacent pairs, grouped-query attention, `SiLU`-gated feed-forward, no biases.
    Llama = 1,
}

/// Sizes of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Family.
    pub architecture: Architecture,
    /// The output head is the token embedding.
    pub tied_head: bool,
    /// Tokens of the vocabulary.
    pub vocab: u32,
    /// Width of the residual stream.
    pub embedding: u32,
    /// Layers.
    pub layers: u32,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Width of the feed-forward network.
    pub feed_forward: u32,
    /// Context that the model was trained for, in tokens.
    pub context: u32,
    /// Leading dimensions of each head that are rotated, even, at most `head_dim`.
    pub rope_dims: u32,
    /// Base of the rotary frequencies, as IEEE 754 single precision. For people; see [`Manifest::rope_steps`].
    pub rope_base: u32,
    /// Epsilon of the RMS norms, Q0.32.
    pub rms_epsilon: u32,
}

/// What a tensor is. The numbers are the container's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum TensorKind {
    /// (vocab, embedding)
    TokenEmbedding = 0,
    /// (1, embedding)
    OutputNorm = 1,
    /// (vocab, embedding), absent if the head is tied
    Output = 2,
    /// (1, embedding)
    AttnNorm = 16,
    /// (heads * `head_dim`, embedding)
    AttnQ = 17,
    /// (`kv_heads` * `head_dim`, embedding)
    AttnK = 18,
    /// (`kv_heads` * `head_dim`, embedding)
    AttnV = 19,
    /// (embedding, heads * `head_dim`)
    AttnOutput = 20,
    /// (1, embedding)
    FfnNorm = 21,
    /// (`feed_forward`, embedding)
    FfnGate = 22,
    /// (`feed_forward`, embedding)
    FfnUp = 23,
    /// (embedding, `feed_forward`)
    FfnDown = 24,
}

impl TensorKind {
    /// Tensors that every layer has, in the order in which inference needs them.
    pub const LAYER: [Self; 9] = [
        Self::AttnNorm,
        Self::AttnQ,
        Self::AttnK,
        Self::AttnV,
        Self::AttnOutput,
        Self::FfnNorm,
        Self::FfnGate,
        Self::FfnUp,
        Self::FfnDown,
    ];

    /// Rows and columns in a model of these sizes.
    #[must_use]
    pub const fn shape(self, params: &Params) -> (u32, u32) {
        let width = params.embedding;
        let queries = params.heads * params.head_dim;
        let keys = params.kv_heads * params.head_dim;
        match self {
            Self::TokenEmbedding | Self::Output => (params.vocab, width),
            Self::OutputNorm | Self::AttnNorm | Self::FfnNorm => (1, width),
            Self::AttnQ => (queries, width),
            Self::AttnK | Self::AttnV => (keys, width),
            Self::AttnOutput => (width, queries),
            Self::FfnGate | Self::FfnUp => (params.feed_forward, width),
            Self::FfnDown => (width, params.feed_forward),
        }
    }

    /// Whether it scales the residual stream instead of multiplying it by a matrix.
    #[must_use]
    pub const fn is_norm(self) -> bool {
        matches!(self, Self::OutputNorm | Self::AttnNorm | Self::FfnNorm)
    }
}

/// Where a tensor is and how it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// What it is.
    pub kind: TensorKind,
    /// Its layer, if it belongs to one.
    pub layer: Option<u32>,
    /// Segment that holds it.
    pub segment: usize,
    /// Packed layout, by the number that the kernels give it.
    pub format: u32,
    /// Outputs.
    pub rows: u32,
    /// Inputs.
    pub cols: u32,
    /// Offset in the segment, a multiple of 64.
    pub offset: usize,
    /// Bytes.
    pub bytes: usize,
    /// GGML's number of the type that it was packed from. For people.
    pub source_type: u32,
}

/// Proven segment 0.
#[derive(Clone, Copy, Debug)]
pub struct Manifest<'a> {
    header: Header<'a>,
    params: Params,
    name: &'a str,
    rope_steps: &'a [U64],
    tensors: &'a [wire::Tensor],
    tokenizer: Tokenizer<'a>,
    chat: Chat<'a>,
}

impl<'a> Manifest<'a> {
    /// Checks all of segment 0, which lies at the start of `segment`, and reads it.
    ///
    /// # Errors
    /// Any [`Error`] but the hash of another segment.
    pub fn parse(segment: &'a [u8]) -> Result<Self, Error> {
        let header = Header::parse(segment)?;
        header.verify_segment(0, segment)?;
        let bytes = header.segment(0).map_or(0, |s| s.bytes);
        if bytes > limits::MANIFEST_BYTES_MAX {
            return Err(Error::OutOfRange("the manifest's size"));
        }
        let data = segment.get(..bytes as usize).ok_or(Error::Truncated("segment 0"))?;
        let raw = data
            .get(header.manifest_offset()..)
            .and_then(|rest| wire::Manifest::ref_from_prefix(rest).ok())
            .ok_or(Error::Truncated("the manifest"))?
            .0;
        let params = params(raw)?;
        if header.segment_count() != params.layers as usize + 3 {
            return Err(Error::OutOfRange("the number of layers"));
        }
        let name = section(data, raw.name, limits::STRING_BYTES_MAX, "the model's name")?;
        let steps: &[U64] = section(data, raw.rope_steps, usize::MAX, "the rotary steps")?;
        if steps.len() != params.rope_dims as usize / 2 {
            return Err(Error::BadTable("rotary steps"));
        }
        let manifest = Self {
            header,
            params,
            name: core::str::from_utf8(name).map_err(|_| Error::BadTable("names"))?,
            rope_steps: steps,
            tensors: section(data, raw.tensors, usize::MAX, "the tensors")?,
            tokenizer: Tokenizer::parse(data, &raw.tokenizer, params.vocab as usize)?,
            chat: Chat::parse(data, &raw.chat)?,
        };
        manifest.check_tensors()?;
        Ok(manifest)
    }

    /// Exactly the tensors of the architecture are there, in their segments, in their shapes, apart from each other.
    fn check_tensors(&self) -> Result<(), Error> {
        let globals = [TensorKind::TokenEmbedding, TensorKind::OutputNorm, TensorKind::Output];
        let globals = &globals[..if self.params.tied_head { 2 } else { 3 }];
        let layers = self.params.layers as usize;
        if self.tensors.len() != layers * TensorKind::LAYER.len() + globals.len() {
            return Err(Error::MissingTensor);
        }
        let mut free = (0, 0);
        for (index, raw) in self.tensors.iter().enumerate() {
            let (layer, place) = (index / TensorKind::LAYER.len(), index % TensorKind::LAYER.len());
            let (kind, layer) = if layer < layers {
                (TensorKind::LAYER[place], layer as u32)
            } else {
                (globals[index - layers * TensorKind::LAYER.len()], wire::NONE)
            };
            if (raw.kind.get(), raw.layer.get()) != (kind as u32, layer) {
                return Err(Error::MissingTensor);
            }
            self.check_tensor(raw, kind)?;
            if free.0 == raw.segment.get() && raw.offset.get() < free.1 {
                return Err(Error::BadLayout("a tensor"));
            }
            free = (raw.segment.get(), raw.offset.get() + raw.bytes.get());
        }
        Ok(())
    }

    fn check_tensor(&self, raw: &wire::Tensor, kind: TensorKind) -> Result<(), Error> {
        let home = match kind {
            TensorKind::TokenEmbedding => SegmentKind::Embedding,
            TensorKind::OutputNorm | TensorKind::Output => SegmentKind::Output,
            _ => SegmentKind::Layer(raw.layer.get()),
        };
        let segment = self.header.segment(raw.segment.get() as usize).ok_or(Error::BadTable("tensors"))?;
        if segment.kind != home || raw.reserved.get() != 0 {
            return Err(Error::BadTable("tensors"));
        }
        if (raw.rows.get(), raw.cols.get()) != kind.shape(&self.params) {
            return Err(Error::BadShape);
        }
        let end = raw.offset.get().checked_add(raw.bytes.get()).ok_or(Error::BadLayout("a tensor"))?;
        let aligned = raw.offset.get().is_multiple_of(wire::ALIGN as u64);
        if !aligned || raw.bytes.get() == 0 || end > segment.bytes {
            return Err(Error::BadLayout("a tensor"));
        }
        Ok(())
    }

    /// The head that segment 0 begins with.
    #[must_use]
    pub fn header(&self) -> &Header<'a> {
        &self.header
    }

    /// Sizes of the model.
    #[must_use]
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The model's name. Untrusted text: it may hold any character.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// For each rotated pair (dimensions 2i and 2i + 1 of a head): fraction of a turn per position, Q0.64.
    #[must_use]
    pub fn rope_steps(&self) -> &'a [U64] {
        self.rope_steps
    }

    /// The tokenizer's tables.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer<'a> {
        &self.tokenizer
    }

    /// The chat template.
    #[must_use]
    pub fn chat(&self) -> &Chat<'a> {
        &self.chat
    }

    /// Every tensor, layer by layer, then those that belong to none.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorInfo> + use<'a> {
        let layers = self.params.layers;
        self.tensors.iter().map(move |raw| info(raw, layers))
    }

    /// Finds a tensor. `layer` is ignored for those that belong to none.
    #[must_use]
    pub fn tensor(&self, kind: TensorKind, layer: u32) -> Option<TensorInfo> {
        let per_layer = TensorKind::LAYER.len();
        let globals = self.params.layers as usize * per_layer;
        let index = match TensorKind::LAYER.iter().position(|&k| k == kind) {
            Some(_) if layer >= self.params.layers => return None,
            Some(place) => layer as usize * per_layer + place,
            None => globals + kind as usize,
        };
        self.tensors.get(index).map(|raw| info(raw, self.params.layers))
    }
}

fn info(raw: &wire::Tensor, layers: u32) -> TensorInfo {
    let globals = [TensorKind::TokenEmbedding, TensorKind::OutputNorm, TensorKind::Output];
    let kind = TensorKind::LAYER
        .into_iter()
        .chain(globals)
        .find(|&kind| kind as u32 == raw.kind.get())
        .unwrap_or(TensorKind::TokenEmbedding);
    TensorInfo {
        kind,
        layer: Some(raw.layer.get()).filter(|&layer| layer < layers),
        segment: raw.segment.get() as usize,
        format: raw.format.get(),
        rows: raw.rows.get(),
        cols: raw.cols.get(),
        offset: raw.offset.get() as usize,
        bytes: raw.bytes.get() as usize,
        source_type: raw.source_type.get(),
    }
}

fn params(raw: &wire::Manifest) -> Result<Params, Error> {
    let within = |value: zerocopy::little_endian::U32, range: core::ops::RangeInclusive<u32>, what| {
        let value = value.get();
        if range.contains(&value) { Ok(value) } else { Err(Error::OutOfRange(what)) }
    };
    if raw.architecture.get() != Architecture::Llama as u32 {
        return Err(Error::Unknown("architecture"));
    }
    if raw.flags.get() & !wire::TIED_HEAD != 0 {
        return Err(Error::Unknown("flag"));
    }
    let params = Params {
        architecture: Architecture::Llama,
        tied_head: raw.flags.get() & wire::TIED_HEAD != 0,
        vocab: within(raw.vocab, limits::VOCAB, "the vocabulary's size")?,
        embedding: within(raw.embedding, limits::EMBEDDING, "the embedding's width")?,
        layers: within(raw.layers, 1..=limits::LAYERS_MAX, "the number of layers")?,
        heads: within(raw.heads, limits::HEADS, "the number of heads")?,
        kv_heads: within(raw.kv_heads, limits::HEADS, "the number of key and value heads")?,
        head_dim: within(raw.head_dim, limits::HEAD_DIM, "the width of a head")?,
        feed_forward: within(
            raw.feed_forward,
            limits::FEED_FORWARD,
            "the width of the feed-forward network",
        )?,
        context: within(raw.context, limits::CONTEXT, "the context")?,
        rope_dims: within(raw.rope_dims, limits::HEAD_DIM, "the number of rotated dimensions")?,
        rope_base: raw.rope_base.get(),
        rms_epsilon: raw.rms_epsilon.get(),
    };
    if !params.heads.is_multiple_of(params.kv_heads) {
        return Err(Error::OutOfRange("the ratio of query heads to key and value heads"));
    }
    if !params.rope_dims.is_multiple_of(2) || params.rope_dims > params.head_dim {
        return Err(Error::OutOfRange("the number of rotated dimensions"));
    }
    Ok(params)
}
