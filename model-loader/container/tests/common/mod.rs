//! A tiny sound container, and the means to spoil it.

use flexserve_abi::GRANULE_SIZE;
use flexserve_container::wire::{self, ALIGN, Merge, NONE, Span};
use flexserve_container::{ChatKind, PreTokenizer, SegmentKind, TensorKind, TokenizerKind, hash_of_head};
use sha2::{Digest, Sha256};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes};

pub const VOCAB: u32 = 8;
pub const WIDTH: u32 = 32;
pub const LAYERS: u32 = 2;

/// What a container is made of. Spans are filled in when it is built.
#[derive(Clone)]
pub struct Parts {
    pub manifest: wire::Manifest,
    pub tensors: Vec<wire::Tensor>,
    pub steps: Vec<U64>,
    pub offsets: Vec<U32>,
    pub bytes: Vec<u8>,
    pub kinds: Vec<u8>,
    pub index: Vec<U32>,
    pub merges: Vec<Merge>,
    pub ranks: Vec<U32>,
    pub byte_ids: Vec<U32>,
    pub specials: Vec<U32>,
    pub ends: Vec<U32>,
    pub name: Vec<u8>,
    pub system: Vec<u8>,
}

fn ids(ids: &[u32]) -> Vec<U32> {
    ids.iter().map(|&id| U32::new(id)).collect()
}

fn manifest() -> wire::Manifest {
    let mut manifest = wire::Manifest::new_zeroed();
    manifest.architecture = 1.into();
    manifest.flags = wire::TIED_HEAD.into();
    manifest.vocab = VOCAB.into();
    manifest.embedding = WIDTH.into();
    manifest.layers = LAYERS.into();
    manifest.heads = 2.into();
    manifest.kv_heads = 1.into();
    manifest.head_dim = 16.into();
    manifest.feed_forward = 64.into();
    manifest.context = 128.into();
    manifest.rope_dims = 16.into();
    manifest.tokenizer.kind = (TokenizerKind::Bpe as u32).into();
    manifest.tokenizer.pre = (PreTokenizer::SmolLm as u32).into();
    manifest.tokenizer.bos = 6.into();
    manifest.tokenizer.eos = 7.into();
    manifest.tokenizer.unknown = NONE.into();
    manifest.chat.kind = (ChatKind::ChatMl as u32).into();
    manifest
}

/// Tensors of the tiny model, one byte a weight.
fn tensors() -> Vec<wire::Tensor> {
    let tensor =
        |kind: TensorKind, layer: u32, segment: u32, offset: u32, rows: u32, cols: u32| wire::Tensor {
            layer: layer.into(),
            kind: (kind as u32).into(),
            segment: segment.into(),
            format: 3.into(),
            rows: rows.into(),
            cols: cols.into(),
            offset: u64::from(offset).into(),
            bytes: u64::from(rows * cols).into(),
            source_type: 8.into(),
            reserved: 0.into(),
        };
    let mut tensors = Vec::new();
    for layer in 0..LAYERS {
        let mut offset = 0u32;
        let shapes = [(1, 32), (32, 32), (16, 32), (16, 32), (32, 32), (1, 32), (64, 32), (64, 32), (32, 64)];
        for (kind, (rows, cols)) in TensorKind::LAYER.into_iter().zip(shapes) {
            tensors.push(tensor(kind, layer, 2 + layer, offset, rows, cols));
            offset = (offset + rows * cols).next_multiple_of(ALIGN as u32);
        }
    }
    tensors.push(tensor(TensorKind::TokenEmbedding, NONE, 1, 0, VOCAB, WIDTH));
    tensors.push(tensor(TensorKind::OutputNorm, NONE, LAYERS + 2, 0, 1, WIDTH));
    tensors
}

impl Parts {
    pub fn sound() -> Self {
        let mut byte_ids = vec![U32::new(NONE); 256];
        for (byte, id) in [(b'a', 0), (b'b', 1), (b'c', 2)] {
            byte_ids[usize::from(byte)] = id.into();
        }
        let merge = |left: u32, right: u32, rank: u32, result: u32| Merge {
            left: left.into(),
            right: right.into(),
            rank: rank.into(),
            result: result.into(),
        };
        Self {
            manifest: manifest(),
            tensors: tensors(),
            steps: vec![U64::new(1 << 60); 8],
            // a b c ab abc bc <s> </s>
            offsets: ids(&[0, 1, 2, 3, 5, 8, 10, 13, 17]),
            bytes: b"abcababcbc<s></s>".to_vec(),
            kinds: vec![1, 1, 1, 1, 1, 1, 3, 3],
            index: ids(&[0, 3, 4, 1, 5, 2]),
            merges: vec![merge(0, 1, 0, 3), merge(1, 2, 1, 5), merge(3, 2, 2, 4)],
            ranks: Vec::new(),
            byte_ids,
            specials: ids(&[7, 6]),
            ends: ids(&[7]),
            name: b"tiny".to_vec(),
            system: b"Be kind.".to_vec(),
        }
    }

    /// All segments, in whole granules, with sound hashes.
    pub fn build(&self) -> Vec<Vec<u8>> {
        let count = LAYERS as usize + 3;
        let head_bytes = size_of::<wire::Head>() + count * size_of::<wire::Segment>();
        let mut first = vec![0; head_bytes];
        let mut manifest = self.manifest;
        let place = add(&mut first, &[0u8; size_of::<wire::Manifest>()]);
        manifest.name = add(&mut first, &self.name[..]);
        manifest.rope_steps = add(&mut first, &self.steps[..]);
        manifest.tensors = add(&mut first, &self.tensors[..]);
        let tokenizer = &mut manifest.tokenizer;
        tokenizer.offsets = add(&mut first, &self.offsets[..]);
        tokenizer.bytes = add(&mut first, &self.bytes[..]);
        tokenizer.kinds = add(&mut first, &self.kinds[..]);
        tokenizer.index = add(&mut first, &self.index[..]);
        tokenizer.merges = add(&mut first, &self.merges[..]);
        tokenizer.ranks = add(&mut first, &self.ranks[..]);
        tokenizer.byte_ids = add(&mut first, &self.byte_ids[..]);
        tokenizer.specials = add(&mut first, &self.specials[..]);
        tokenizer.ends = add(&mut first, &self.ends[..]);
        manifest.chat.default_system = add(&mut first, &self.system[..]);
        let offset = place.offset.get() as usize;
        first[offset..offset + size_of::<wire::Manifest>()].copy_from_slice(manifest.as_bytes());
        let mut segments = vec![first];
        for segment in 1..count {
            let held = self.tensors.iter().filter(|tensor| tensor.segment.get() as usize == segment);
            let bytes = held.map(|tensor| tensor.offset.get().saturating_add(tensor.bytes.get())).max();
            // Spoilt offsets must not make a large segment.
            segments.push(vec![segment as u8; bytes.unwrap_or(1).clamp(1, 1 << 16) as usize]);
        }
        finish(segments, place.offset)
    }
}

fn add<T: IntoBytes + Immutable + ?Sized>(first: &mut Vec<u8>, content: &T) -> Span {
    first.resize(first.len().next_multiple_of(ALIGN), 0);
    let span = Span { offset: (first.len() as u32).into(), bytes: (content.as_bytes().len() as u32).into() };
    first.extend_from_slice(content.as_bytes());
    span
}

/// Writes head and segment table.
fn finish(mut segments: Vec<Vec<u8>>, manifest: U32) -> Vec<Vec<u8>> {
    let kinds = [SegmentKind::Manifest, SegmentKind::Embedding]
        .into_iter()
        .chain((0..LAYERS).map(SegmentKind::Layer))
        .chain([SegmentKind::Output]);
    let mut offset = 0u64;
    let mut table = Vec::new();
    for (segment, kind) in segments.iter_mut().zip(kinds) {
        let (kind, layer) = kind.to_wire();
        let bytes = segment.len();
        segment.resize(bytes.next_multiple_of(GRANULE_SIZE), 0);
        table.push(wire::Segment {
            offset: offset.into(),
            bytes: (bytes as u64).into(),
            kind: kind.into(),
            layer: layer.into(),
            granules: ((segment.len() / GRANULE_SIZE) as u32).into(),
            reserved: 0.into(),
            sha256: Sha256::digest(&segment[..]).into(),
        });
        offset += segment.len() as u64;
    }
    let head = wire::Head {
        magic: wire::MAGIC,
        version: wire::VERSION.into(),
        segments: (table.len() as u32).into(),
        file_bytes: offset.into(),
        security_version: 5.into(),
        manifest,
        sha256: [0; 32],
    };
    let head_bytes = size_of::<wire::Head>();
    segments[0][..head_bytes].copy_from_slice(head.as_bytes());
    segments[0][head_bytes..][..table.as_bytes().len()].copy_from_slice(table.as_bytes());
    rehash(&mut segments[0]);
    segments
}

/// Makes the hashes of head and segment 0 sound again.
pub fn rehash(first: &mut [u8]) {
    let head_bytes = size_of::<wire::Head>();
    let count = u32::from_le_bytes([first[12], first[13], first[14], first[15]]) as usize;
    let table_end = head_bytes + count * size_of::<wire::Segment>();
    if table_end > first.len() {
        return;
    }
    // Hash of segment 0 in its table entry, then the head's.
    let rest: [u8; 32] = Sha256::digest(&first[table_end..]).into();
    first[head_bytes + 32..head_bytes + 64].copy_from_slice(&rest);
    let (head, tail) = first.split_at_mut(head_bytes);
    let mut head: wire::Head = zerocopy::FromBytes::read_from_bytes(head).unwrap();
    head.sha256 = hash_of_head(&head, &tail[..table_end - head_bytes]);
    first[..head_bytes].copy_from_slice(head.as_bytes());
}

/// Overwrites a number in the head or the segment table and makes the hashes sound again.
pub fn poke(segments: &mut [Vec<u8>], offset: usize, bytes: &[u8]) {
    segments[0][offset..offset + bytes.len()].copy_from_slice(bytes);
    rehash(&mut segments[0]);
}
