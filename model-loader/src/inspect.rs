//! Shows what is in a model file.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use flexserve_container::Manifest;
use flexserve_kernels::format::Format;
use flexserve_model_loader::Error;
use flexserve_model_loader::file::{self, Container, Kind};
use flexserve_model_loader::gguf::{TensorType, Value};

/// Prints what is in a GGUF file or a container.
pub fn inspect(path: &Path, out: &mut impl Write) -> Result<(), Error> {
    match file::kind(path)? {
        Kind::Gguf => inspect_gguf(path, out),
        Kind::Container => {
            let container = Container::open(path, |_, _| ())?;
            Ok(inspect_container(&container.manifest()?, out)?)
        }
    }
}

fn inspect_gguf(path: &Path, out: &mut impl Write) -> Result<(), Error> {
    let gguf = file::open_gguf(path)?;
    writeln!(out, "GGUF version {}", gguf.version())?;
    for (key, value) in gguf.metadata().iter().collect::<BTreeMap<_, _>>() {
        writeln!(out, "{key} = {}", short(value))?;
    }
    for (name, tensor) in gguf.tensors().iter().collect::<BTreeMap<_, _>>() {
        let (rows, cols) = tensor.shape();
        writeln!(
            out,
            "{name}: {} {rows} x {cols}, {} bytes at {}",
            tensor.ggml_type, tensor.bytes, tensor.offset
        )?;
    }
    Ok(())
}

fn short(value: &Value) -> String {
    match value {
        Value::Integer(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Boolean(value) => value.to_string(),
        Value::String(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            let head: String = text.chars().take(100).collect();
            format!("{head:?}{}", if head.len() < text.len() { " …" } else { "" })
        }
        Value::Strings(list) => format!("{} strings", list.len()),
        Value::Integers(list) => format!("{} whole numbers", list.len()),
        Value::Floats(list) => format!("{} floating-point numbers", list.len()),
    }
}

fn inspect_container(manifest: &Manifest, out: &mut impl Write) -> std::io::Result<()> {
    let (header, params) = (manifest.header(), manifest.params());
    writeln!(out, "container of {} bytes, {} granules", header.file_bytes(), header.granules())?;
    writeln!(out, "security version {}", header.security_version())?;
    writeln!(out, "name = {:?}", manifest.name())?;
    for (what, value) in [
        ("vocabulary", params.vocab),
        ("embedding", params.embedding),
        ("layers", params.layers),
        ("heads", params.heads),
        ("key and value heads", params.kv_heads),
        ("width of a head", params.head_dim),
        ("feed-forward", params.feed_forward),
        ("context", params.context),
        ("rotated dimensions", params.rope_dims),
    ] {
        writeln!(out, "{what} = {value}")?;
    }
    writeln!(out, "rotary base = {}", f32::from_bits(params.rope_base))?;
    writeln!(out, "epsilon of the norms = {:e}", f64::from(params.rms_epsilon) * 2f64.powi(-32))?;
    writeln!(out, "output head = {}", if params.tied_head { "the token embedding" } else { "its own" })?;
    let tokenizer = manifest.tokenizer();
    writeln!(out, "tokenizer: {:?}, {:?}, {} tokens", tokenizer.kind(), tokenizer.pre(), tokenizer.vocab())?;
    writeln!(
        out,
        "chat template: {:?}, system message {:?}",
        manifest.chat().kind,
        manifest.chat().default_system
    )?;
    for (index, segment) in header.segments().enumerate() {
        let hash: String = segment.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(
            out,
            "segment {index}: {:?}, {} bytes in {} granules, SHA-256 {hash}",
            segment.kind, segment.bytes, segment.granules
        )?;
    }
    for tensor in manifest.tensors() {
        let format =
            Format::from_id(tensor.format).map_or("unknown".to_owned(), |format| format!("{format:?}"));
        let layer = tensor.layer.map_or(String::new(), |layer| format!(" {layer}"));
        writeln!(
            out,
            "{:?}{layer}: {format} of {}, {} x {}, {} bytes at {} in segment {}",
            tensor.kind,
            TensorType(tensor.source_type),
            tensor.rows,
            tensor.cols,
            tensor.bytes,
            tensor.offset,
            tensor.segment
        )?;
    }
    Ok(())
}
