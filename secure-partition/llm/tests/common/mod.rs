//! A container with a tiny model of random weights.

use flexserve_container::{Manifest, Model, SegmentKind, TensorKind, hash_of_head, wire};
use flexserve_kernels::format::{Format, GROUP, GROUP_HEAD};
use sha2::{Digest, Sha256};
use zerocopy::IntoBytes;

pub const VOCAB: usize = 40;
const WIDTH: usize = 64;
const LAYERS: u32 = 2;
const HEADS: u32 = 4;
const KV_HEADS: u32 = 2;
const HEAD_DIM: u32 = 16;
const FEED_FORWARD: u32 = 96;

/// What the weights' bytes are.
#[derive(Clone, Copy, PartialEq)]
pub enum Content {
    /// Values of the size that a trained model has.
    Sane,
    /// Any bytes, as an attacker would have them.
    Hostile,
}

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.next() >> 32) as u8).collect()
    }
}

/// The segments of a container, each a vector of whole granules.
pub struct Container(Vec<Vec<u8>>);

impl Container {
    pub fn segments(&self) -> Vec<&[u8]> {
        self.0.iter().map(Vec::as_slice).collect()
    }
}

pub fn model<'a>(segments: &'a [&'a [u8]]) -> Model<'a> {
    Model::new(Manifest::parse(segments[0]).unwrap(), segments).unwrap()
}

fn shape(kind: TensorKind) -> (usize, usize) {
    let (queries, keys) = ((HEADS * HEAD_DIM) as usize, (KV_HEADS * HEAD_DIM) as usize);
    match kind {
        TensorKind::TokenEmbedding | TensorKind::Output => (VOCAB, WIDTH),
        TensorKind::OutputNorm | TensorKind::AttnNorm | TensorKind::FfnNorm => (1, WIDTH),
        TensorKind::AttnQ => (queries, WIDTH),
        TensorKind::AttnK | TensorKind::AttnV => (keys, WIDTH),
        TensorKind::AttnOutput => (WIDTH, queries),
        TensorKind::FfnGate | TensorKind::FfnUp => (FEED_FORWARD as usize, WIDTH),
        TensorKind::FfnDown => (WIDTH, FEED_FORWARD as usize),
    }
}

/// Models of odd seeds have weights of 16 bits.
fn format(kind: TensorKind, seed: u64) -> Format {
    match kind {
        TensorKind::TokenEmbedding => Format::Q8,
        TensorKind::AttnK | TensorKind::AttnV if seed % 2 == 1 => Format::W16,
        TensorKind::AttnK | TensorKind::AttnV => Format::Q8,
        TensorKind::AttnOutput => Format::Q4,
        kind if kind.is_norm() => Format::Vector,
        _ => Format::Q4Min,
    }
}

/// The packed bytes of a tensor.
fn tensor(kind: TensorKind, format: Format, content: Content, random: &mut Random) -> Vec<u8> {
    let (rows, cols) = shape(kind);
    let mut bytes = random.bytes(format.packed_bytes(rows, cols).unwrap());
    if content == Content::Hostile {
        return bytes;
    }
    if format == Format::Vector {
        bytes[..4].copy_from_slice(&31_i32.to_le_bytes());
        return bytes;
    }
    // Rows of about unit norm: scales are full i16, weights of 8, 8 or, as octets have scales alike, 8 bits.
    let shift = 24_i32;
    for group in bytes.chunks_exact_mut(format.group_bytes(cols)) {
        group[..GROUP_HEAD].copy_from_slice(&shift.to_le_bytes().repeat(GROUP));
    }
    bytes
}

pub fn container(content: Content, seed: u64) -> Container {
    let mut random = Random(seed);
    let mut segments = vec![(SegmentKind::Embedding, Vec::new())];
    segments.extend((0..LAYERS).map(|layer| (SegmentKind::Layer(layer), Vec::new())));
    segments.push((SegmentKind::Output, Vec::new()));
    let mut tensors = Vec::new();
    let mut add = |kind: TensorKind, layer: u32, index: usize, segment: &mut Vec<u8>| {
        let format = format(kind, seed);
        let packed = tensor(kind, format, content, &mut random);
        let (rows, cols) = shape(kind);
        tensors.push(wire::Tensor {
            layer: layer.into(),
            kind: (kind as u32).into(),
            segment: (index as u32).into(),
            format: format.id().into(),
            rows: (rows as u32).into(),
            cols: (cols as u32).into(),
            offset: (segment.len() as u64).into(),
            bytes: (packed.len() as u64).into(),
            source_type: 0.into(),
            reserved: 0.into(),
        });
        segment.extend(packed);
        segment.resize(segment.len().next_multiple_of(wire::ALIGN), 0);
    };
    for layer in 0..LAYERS {
        for kind in TensorKind::LAYER {
            let index = layer as usize + 1;
            add(kind, layer, index + 1, &mut segments[index].1);
        }
    }
    let last = segments.len() - 1;
    add(TensorKind::TokenEmbedding, wire::NONE, 1, &mut segments[0].1);
    add(TensorKind::OutputNorm, wire::NONE, last + 1, &mut segments[last].1);
    assemble(&tensors, segments)
}

fn assemble(tensors: &[wire::Tensor], segments: Vec<(SegmentKind, Vec<u8>)>) -> Container {
    let head_bytes = size_of::<wire::Head>() + (segments.len() + 1) * size_of::<wire::Segment>();
    let mut first = manifest(tensors, head_bytes);
    let used = first.len();
    let mut all = vec![(SegmentKind::Manifest, first.clone())];
    all.extend(segments);
    let (mut table, mut offset) = (Vec::new(), 0);
    for (kind, bytes) in &mut all {
        let in_use = bytes.len();
        bytes.resize(in_use.next_multiple_of(4096), 0);
        let hashed = if *kind == SegmentKind::Manifest { &bytes[head_bytes..] } else { &bytes[..] };
        let (code, layer) = kind.to_wire();
        table.push(wire::Segment {
            offset: (offset as u64).into(),
            bytes: (in_use as u64).into(),
            kind: code.into(),
            layer: layer.into(),
            granules: ((bytes.len() / 4096) as u32).into(),
            reserved: 0.into(),
            sha256: Sha256::digest(hashed).into(),
        });
        offset += bytes.len();
    }
    let mut head = wire::Head {
        magic: wire::MAGIC,
        version: wire::VERSION.into(),
        segments: (all.len() as u32).into(),
        file_bytes: (offset as u64).into(),
        security_version: 0.into(),
        manifest: (head_bytes as u32).into(),
        sha256: [0; 32],
    };
    head.sha256 = hash_of_head(&head, table.as_bytes());
    first.resize(used.next_multiple_of(4096), 0);
    first[..size_of::<wire::Head>()].copy_from_slice(head.as_bytes());
    first[size_of::<wire::Head>()..head_bytes].copy_from_slice(table.as_bytes());
    all[0].1 = first;
    Container(all.into_iter().map(|(_, bytes)| bytes).collect())
}

/// Segment 0 with room for the head: tokens are single bytes, from 'A' on.
fn manifest(tensors: &[wire::Tensor], head_bytes: usize) -> Vec<u8> {
    let mut out = vec![0; head_bytes + size_of::<wire::Manifest>()];
    let mut section = |bytes: &[u8]| {
        out.resize(out.len().next_multiple_of(wire::ALIGN), 0);
        let span = wire::Span { offset: (out.len() as u32).into(), bytes: (bytes.len() as u32).into() };
        out.extend_from_slice(bytes);
        span
    };
    let words =
        |values: &mut dyn Iterator<Item = u32>| -> Vec<u8> { values.flat_map(u32::to_le_bytes).collect() };
    let steps: Vec<u8> =
        (0..HEAD_DIM / 2).flat_map(|i| (0x28be_60db_9391_054a_u64 >> (2 * i)).to_le_bytes()).collect();
    let bytes: Vec<u8> = (0..VOCAB as u8).map(|i| b'A' + i).collect();
    let byte_id = |byte: u32| byte.checked_sub(65).filter(|&id| id < VOCAB as u32).unwrap_or(wire::NONE);
    let empty = wire::Span::default();
    let manifest = wire::Manifest {
        architecture: 1.into(),
        flags: wire::TIED_HEAD.into(),
        vocab: (VOCAB as u32).into(),
        embedding: (WIDTH as u32).into(),
        layers: LAYERS.into(),
        heads: HEADS.into(),
        kv_heads: KV_HEADS.into(),
        head_dim: HEAD_DIM.into(),
        feed_forward: FEED_FORWARD.into(),
        context: 128.into(),
        rope_dims: HEAD_DIM.into(),
        rope_base: 10_000_f32.to_bits().into(),
        rms_epsilon: 42_950.into(),
        reserved: 0.into(),
        name: section(b"tiny"),
        rope_steps: section(&steps),
        tensors: section(tensors.as_bytes()),
        tokenizer: wire::Tokenizer {
            kind: 1.into(),
            pre: 1.into(),
            flags: 0.into(),
            bos: wire::NONE.into(),
            eos: 0.into(),
            unknown: wire::NONE.into(),
            offsets: section(&words(&mut (0..=VOCAB as u32))),
            bytes: section(&bytes),
            kinds: section(&[1; VOCAB]),
            index: section(&words(&mut (0..VOCAB as u32))),
            merges: empty,
            ranks: empty,
            byte_ids: section(&words(&mut (0..256).map(byte_id))),
            specials: empty,
            ends: section(&words(&mut (0..1))),
        },
        chat: wire::Chat::default(),
    };
    out[head_bytes..][..size_of::<wire::Manifest>()].copy_from_slice(manifest.as_bytes());
    out
}
