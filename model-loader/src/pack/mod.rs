//! Writes the model container.

mod architecture;
mod chat;
mod sections;
mod tokenizer;

use std::io::{Read, Seek, SeekFrom, Write};

use flexserve_abi::GRANULE_SIZE;
use flexserve_container::{Params, SegmentKind, TensorKind, hash_of_head, wire};
use flexserve_kernels::format::Format;
use flexserve_kernels::pack::{PackError, Source, half_to_f32, pack_angles, pack_matrix, pack_vector};
use sha2::{Digest, Sha256};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, Limit};
use crate::gguf::Gguf;
use sections::Sections;

/// One tensor on its way into the container.
struct Planned {
    name: String,
    kind: TensorKind,
    source: Source,
    wire: wire::Tensor,
}

/// A container whose tensors were not packed yet: segment 0 in whole granules with its head blank, and the table.
struct Draft {
    tensors: Vec<Planned>,
    table: Vec<wire::Segment>,
    manifest: u32,
    first: Vec<u8>,
}

impl Draft {
    fn new<R: Read + Seek>(gguf: &mut Gguf<R>) -> Result<Self, Error> {
        let params = architecture::read(gguf)?;
        let mut tensors = plan(gguf, &params)?;
        let mut table = place(&params, &mut tensors)?;
        let (manifest, mut first) = segment_0(gguf, &params, &tensors, table.len())?;
        finish_table(&mut table, first.len())?;
        first.resize(first.len().next_multiple_of(GRANULE_SIZE), 0);
        Ok(Self { tensors, table, manifest, first })
    }

    /// Segment 0, once the table has the hashes of the others. What the partition would refuse does not come out.
    fn seal(mut self, security_version: u32) -> Result<Vec<u8>, Error> {
        let (table, first) = (&mut self.table, &mut self.first);
        let head_bytes = size_of::<wire::Head>() + size_of_val(&table[..]);
        table[0].sha256 = Sha256::digest(&first[head_bytes..]).into();
        let mut head = wire::Head {
            magic: wire::MAGIC,
            version: wire::VERSION.into(),
            segments: (table.len() as u32).into(),
            file_bytes: table.last().map_or(0, end).into(),
            security_version: security_version.into(),
            manifest: self.manifest.into(),
            sha256: [0; 32],
        };
        head.sha256 = hash_of_head(&head, table.as_bytes());
        first[..size_of::<wire::Head>()].copy_from_slice(head.as_bytes());
        first[size_of::<wire::Head>()..head_bytes].copy_from_slice(table.as_bytes());
        flexserve_container::Manifest::parse(first)?;
        Ok(self.first)
    }
}

/// Packs a model. `progress` is told bytes written and bytes in all.
///
/// # Errors
/// [`Error`], by name of what cannot be packed and why. `output` then holds something incomplete.
pub fn pack<R: Read + Seek, W: Write + Seek>(
    gguf: &mut Gguf<R>,
    output: &mut W,
    security_version: u32,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), Error> {
    let mut draft = Draft::new(gguf)?;
    let total = draft.table.last().map_or(0, end);
    output.seek(SeekFrom::Start(draft.first.len() as u64))?;
    for (index, entry) in draft.table.iter_mut().enumerate().skip(1) {
        let bytes = segment(gguf, &draft.tensors, index, entry)?;
        entry.sha256 = Sha256::digest(&bytes).into();
        output.write_all(&bytes)?;
        progress(end(entry), total);
    }
    let first = draft.seal(security_version)?;
    output.seek(SeekFrom::Start(0))?;
    output.write_all(&first)?;
    output.flush()?;
    Ok(())
}

/// Makes segment 0 alone, without the other segments' hashes: enough to look at a model or to tokenize by it.
///
/// # Errors
/// [`Error`], by name of what cannot be packed and why.
pub fn pack_manifest<R: Read + Seek>(gguf: &mut Gguf<R>) -> Result<Vec<u8>, Error> {
    Draft::new(gguf)?.seal(0)
}

/// Offset behind a segment's granules.
fn end(segment: &wire::Segment) -> u64 {
    segment.offset.get() + u64::from(segment.granules.get()) * GRANULE_SIZE as u64
}

/// Lists the tensors with their packed sizes.
fn plan<R: Read + Seek>(gguf: &Gguf<R>, params: &Params) -> Result<Vec<Planned>, Error> {
    let mut tensors = Vec::new();
    for (kind, layer) in architecture::tensors(params) {
        let name = architecture::tensor_name(kind, layer);
        let ggml_type = gguf.tensor(&name)?.ggml_type;
        let unknown = || Error::TensorType { tensor: name.clone(), found: ggml_type };
        let source = ggml_type.source().ok_or_else(unknown)?;
        let format = if kind.is_norm() { Format::Vector } else { source.matrix_format() };
        let (rows, cols) = kind.shape(params);
        let bytes = format
            .packed_bytes(rows as usize, cols as usize)
            .ok_or_else(|| refused(&name, PackError::Shape))?;
        tensors.push(Planned {
            kind,
            source,
            wire: wire::Tensor {
                layer: layer.into(),
                kind: (kind as u32).into(),
                segment: 0.into(),
                format: format.id().into(),
                rows: rows.into(),
                cols: cols.into(),
                offset: 0.into(),
                bytes: (bytes as u64).into(),
                source_type: ggml_type.0.into(),
                reserved: 0.into(),
            },
            name,
        });
    }
    Ok(tensors)
}

fn refused(tensor: &str, error: PackError) -> Error {
    let why = match error {
        PackError::Shape => "its columns are no multiple of a block's",
        PackError::Length => "its data have the wrong length",
        PackError::NotFinite => "it holds numbers that are not finite; the file is corrupt",
    };
    Error::Pack { tensor: tensor.to_owned(), why }
}

/// Gives each tensor its place. The table's offsets stay open until segment 0 is known.
fn place(params: &Params, tensors: &mut [Planned]) -> Result<Vec<wire::Segment>, Error> {
    let layers = (0..params.layers).map(SegmentKind::Layer);
    let kinds = [SegmentKind::Manifest, SegmentKind::Embedding].into_iter().chain(layers);
    let mut table = Vec::new();
    for kind in kinds.chain([SegmentKind::Output]) {
        let (kind_number, layer) = kind.to_wire();
        let mut bytes = 0u64;
        for tensor in tensors.iter_mut().filter(|tensor| home(tensor) == kind) {
            bytes = bytes.next_multiple_of(wire::ALIGN as u64);
            tensor.wire.segment = (table.len() as u32).into();
            tensor.wire.offset = bytes.into();
            bytes += tensor.wire.bytes.get();
        }
        Limit::check("bytes of a segment", bytes, *flexserve_container::limits::SEGMENT_BYTES.end())?;
        table.push(wire::Segment {
            offset: 0.into(),
            bytes: bytes.into(),
            kind: kind_number.into(),
            layer: layer.into(),
            granules: (bytes.div_ceil(GRANULE_SIZE as u64) as u32).into(),
            reserved: 0.into(),
            sha256: [0; 32],
        });
    }
    Ok(table)
}

fn home(tensor: &Planned) -> SegmentKind {
    match tensor.kind {
        TensorKind::TokenEmbedding => SegmentKind::Embedding,
        TensorKind::OutputNorm | TensorKind::Output => SegmentKind::Output,
        _ => SegmentKind::Layer(tensor.wire.layer.get()),
    }
}

fn finish_table(table: &mut [wire::Segment], first_bytes: usize) -> Result<(), Error> {
    Limit::check("bytes of segment 0", first_bytes as u64, flexserve_container::limits::MANIFEST_BYTES_MAX)?;
    table[0].bytes = (first_bytes as u64).into();
    table[0].granules = (first_bytes.div_ceil(GRANULE_SIZE) as u32).into();
    for index in 1..table.len() {
        table[index].offset = end(&table[index - 1]).into();
    }
    Ok(())
}

/// Segment 0 with its head and segment table left blank, and the manifest's offset.
fn segment_0<R: Read + Seek>(
    gguf: &mut Gguf<R>,
    params: &Params,
    tensors: &[Planned],
    segments: usize,
) -> Result<(u32, Vec<u8>), Error> {
    let head_bytes = size_of::<wire::Head>() + segments * size_of::<wire::Segment>();
    let mut sections = Sections::after(head_bytes);
    let manifest = sections.add(&[0u8; size_of::<wire::Manifest>()]);
    let name = gguf.string("general.name")?.unwrap_or_default().chars().take(256).collect::<String>();
    let descriptions: Vec<wire::Tensor> = tensors.iter().map(|tensor| tensor.wire).collect();
    let steps = rope_steps(gguf, params)?;
    let content = wire::Manifest {
        architecture: (params.architecture as u32).into(),
        flags: if params.tied_head { wire::TIED_HEAD } else { 0 }.into(),
        vocab: params.vocab.into(),
        embedding: params.embedding.into(),
        layers: params.layers.into(),
        heads: params.heads.into(),
        kv_heads: params.kv_heads.into(),
        head_dim: params.head_dim.into(),
        feed_forward: params.feed_forward.into(),
        context: params.context.into(),
        rope_dims: params.rope_dims.into(),
        rope_base: params.rope_base.into(),
        rms_epsilon: params.rms_epsilon.into(),
        reserved: 0.into(),
        name: sections.add(name.as_str()),
        rope_steps: sections.add(&steps[..]),
        tensors: sections.add(&descriptions[..]),
        tokenizer: tokenizer::write(gguf, &mut sections)?,
        chat: chat::Template::recognise(gguf.string("tokenizer.chat_template")?).write(&mut sections),
    };
    let mut bytes = sections.into_bytes();
    let offset = manifest.offset.get();
    bytes[offset as usize..][..size_of::<wire::Manifest>()].copy_from_slice(content.as_bytes());
    Ok((offset, bytes))
}

fn rope_steps<R: Read + Seek>(gguf: &mut Gguf<R>, params: &Params) -> Result<Vec<u8>, Error> {
    let name = architecture::ROPE_FACTORS;
    let factors = match gguf.tensors().get(name).map(|tensor| tensor.ggml_type) {
        None => None,
        Some(ggml_type) => {
            let source = ggml_type.source();
            let unknown = || Error::TensorType { tensor: name.to_owned(), found: ggml_type };
            Some(floats(source, &gguf.read(name)?).ok_or_else(unknown)?)
        }
    };
    let base = f64::from(f32::from_bits(params.rope_base));
    pack_angles(params.rope_dims as usize, base, factors.as_deref()).map_err(|_| Error::KeyValue {
        key: "llama.rope.freq_base".to_owned(),
        value: base.to_string(),
        why: "it gives rotary frequencies outside 0..1, or rope_freqs.weight does not fit it",
    })
}

/// The elements of a tensor of floats; [`None`] if it is quantised.
fn floats(source: Option<Source>, data: &[u8]) -> Option<Vec<f32>> {
    use zerocopy::little_endian::{F32, U16, U32};
    let halves = || <[U16]>::ref_from_bytes(data).ok();
    match source? {
        Source::F32 => Some(<[F32]>::ref_from_bytes(data).ok()?.iter().map(|v| v.get()).collect()),
        Source::F16 => Some(halves()?.iter().map(|v| half_to_f32(v.get())).collect()),
        Source::Bf16 => {
            Some(halves()?.iter().map(|v| f32::from_bits(U32::new(u32::from(v.get()) << 16).get())).collect())
        }
        _ => None,
    }
}

/// Packs the tensors of one segment into whole granules.
fn segment<R: Read + Seek>(
    gguf: &mut Gguf<R>,
    tensors: &[Planned],
    index: usize,
    segment: &wire::Segment,
) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; segment.granules.get() as usize * GRANULE_SIZE];
    for tensor in tensors.iter().filter(|tensor| tensor.wire.segment.get() as usize == index) {
        let data = gguf.read(&tensor.name)?;
        let packed = if tensor.kind.is_norm() {
            let values = floats(Some(tensor.source), &data).ok_or_else(|| Error::Pack {
                tensor: tensor.name.clone(),
                why: "a norm must be F32, F16 or BF16",
            })?;
            pack_vector(&values)
        } else {
            pack_matrix(
                tensor.source,
                tensor.wire.rows.get() as usize,
                tensor.wire.cols.get() as usize,
                &data,
            )
        };
        let packed = packed.map_err(|error| refused(&tensor.name, error))?;
        bytes[tensor.wire.offset.get() as usize..][..packed.len()].copy_from_slice(&packed);
    }
    Ok(bytes)
}
