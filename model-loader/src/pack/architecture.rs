//! What a Llama-type GGUF says about the model's sizes and tensors.

use std::io::{Read, Seek};
use std::ops::RangeInclusive;

use flexserve_container::{Architecture, Params, TensorKind, limits};
use flexserve_kernels::pack::pack_epsilon;

use crate::error::Error;
use crate::gguf::{Gguf, required};

/// Name of a GGUF tensor.
#[must_use]
pub fn tensor_name(kind: TensorKind, layer: u32) -> String {
    let part = match kind {
        TensorKind::TokenEmbedding => return "token_embd.weight".to_owned(),
        TensorKind::OutputNorm => return "output_norm.weight".to_owned(),
        TensorKind::Output => return "output.weight".to_owned(),
        TensorKind::AttnNorm => "attn_norm",
        TensorKind::AttnQ => "attn_q",
        TensorKind::AttnK => "attn_k",
        TensorKind::AttnV => "attn_v",
        TensorKind::AttnOutput => "attn_output",
        TensorKind::FfnNorm => "ffn_norm",
        TensorKind::FfnGate => "ffn_gate",
        TensorKind::FfnUp => "ffn_up",
        TensorKind::FfnDown => "ffn_down",
    };
    format!("blk.{layer}.{part}.weight")
}

/// Factors by which rotary frequencies are divided (Llama 3.1 and later).
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Reads the model's sizes and makes sure that exactly the tensors of the architecture are there, in their shapes.
///
/// # Errors
/// [`Error`], by name of the key or tensor.
pub fn read<R: Read + Seek>(gguf: &Gguf<R>) -> Result<Params, Error> {
    let architecture = required("general.architecture", gguf.string("general.architecture")?)?;
    if architecture != "llama" {
        return Err(Error::Architecture(architecture.to_owned()));
    }
    reject_unsupported(gguf)?;
    let params = sizes(gguf)?;
    check_tensors(gguf, &params)?;
    Ok(params)
}

fn sizes<R: Read + Seek>(gguf: &Gguf<R>) -> Result<Params, Error> {
    let number = |key: &str, default: Option<u32>, range: RangeInclusive<u32>| {
        let key = format!("llama.{key}");
        let value = match (gguf.unsigned(&key)?, default) {
            (Some(value), _) => value,
            (None, Some(default)) => default.into(),
            (None, None) => return Err(Error::MissingKey(key)),
        };
        u32::try_from(value).ok().filter(|value| range.contains(value)).ok_or_else(|| Error::KeyValue {
            key,
            value: value.to_string(),
            why: "it is zero or above the largest that this program handles",
        })
    };
    let embedding = number("embedding_length", None, limits::EMBEDDING)?;
    let heads = number("attention.head_count", None, limits::HEADS)?;
    let head_dim = number("attention.key_length", Some(embedding / heads), limits::HEAD_DIM)?;
    number("attention.value_length", Some(head_dim), head_dim..=head_dim)?;
    let kv_heads = number("attention.head_count_kv", Some(heads), limits::HEADS)?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(unsupported(
            "llama.attention.head_count_kv",
            kv_heads,
            "it does not divide the number of heads",
        ));
    }
    let rope_dims = number("rope.dimension_count", Some(head_dim), 2..=head_dim)?;
    if !rope_dims.is_multiple_of(2) {
        return Err(unsupported("llama.rope.dimension_count", rope_dims, "it is odd"));
    }
    let tokens = required("tokenizer.ggml.tokens", gguf.strings("tokenizer.ggml.tokens")?)?.len();
    let vocab = u32::try_from(tokens).ok().filter(|vocab| limits::VOCAB.contains(vocab));
    let epsilon = required(
        "llama.attention.layer_norm_rms_epsilon",
        gguf.float("llama.attention.layer_norm_rms_epsilon")?,
    )?;
    Ok(Params {
        architecture: Architecture::Llama,
        tied_head: !gguf.tensors().contains_key(&tensor_name(TensorKind::Output, 0)),
        vocab: vocab
            .ok_or_else(|| unsupported("tokenizer.ggml.tokens", tokens, "too few or too many tokens"))?,
        embedding,
        layers: number("block_count", None, 1..=limits::LAYERS_MAX)?,
        heads,
        kv_heads,
        head_dim,
        feed_forward: number("feed_forward_length", None, limits::FEED_FORWARD)?,
        // More context than the service can use is no error: it is not used.
        context: number("context_length", None, 1..=u32::MAX)?.min(*limits::CONTEXT.end()),
        rope_dims,
        rope_base: gguf.float("llama.rope.freq_base")?.unwrap_or(10_000.0).to_bits(),
        rms_epsilon: pack_epsilon(epsilon).map_err(|_| {
            unsupported("llama.attention.layer_norm_rms_epsilon", epsilon, "it is not between 0 and 1")
        })?,
    })
}

fn unsupported(key: &str, value: impl ToString, why: &'static str) -> Error {
    Error::KeyValue { key: key.to_owned(), value: value.to_string(), why }
}

/// Refuses what would silently give wrong answers.
fn reject_unsupported<R: Read + Seek>(gguf: &Gguf<R>) -> Result<(), Error> {
    let key = "llama.rope.scaling.type";
    if let Some(scaling) = gguf.string(key)?.filter(|&scaling| scaling != "none") {
        return Err(unsupported(key, scaling, "rotary scaling other than by rope_freqs.weight"));
    }
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear", "llama.attention.scale"] {
        if let Some(factor) = gguf.float(key)?.filter(|&factor| factor != 1.0 && factor != 0.0) {
            return Err(unsupported(key, factor, "scaling"));
        }
    }
    for key in ["llama.expert_count", "llama.attention.sliding_window"] {
        if let Some(value) = gguf.unsigned(key)?.filter(|&value| value != 0) {
            return Err(unsupported(key, value, "neither experts nor sliding windows"));
        }
    }
    Ok(())
}

/// Every tensor that a container of these sizes holds, in its order.
pub fn tensors(params: &Params) -> impl Iterator<Item = (TensorKind, u32)> + use<> {
    let layers = (0..params.layers).flat_map(|layer| TensorKind::LAYER.map(|kind| (kind, layer)));
    let globals = [TensorKind::TokenEmbedding, TensorKind::OutputNorm, TensorKind::Output];
    let count = if params.tied_head { 2 } else { 3 };
    layers.chain(globals.into_iter().take(count).map(|kind| (kind, flexserve_container::wire::NONE)))
}

fn check_tensors<R: Read + Seek>(gguf: &Gguf<R>, params: &Params) -> Result<(), Error> {
    let mut known = std::collections::HashSet::from([ROPE_FACTORS.to_owned()]);
    for (kind, layer) in tensors(params) {
        let name = tensor_name(kind, layer);
        let (found_rows, found_cols) = gguf.tensor(&name)?.shape();
        let (rows, cols) = kind.shape(params);
        if (found_rows, found_cols) != (rows.into(), cols.into()) {
            return Err(Error::Shape { tensor: name, found_rows, found_cols, rows, cols });
        }
        known.insert(name);
    }
    match gguf.tensors().keys().filter(|name| !known.contains(*name)).min() {
        Some(name) => Err(Error::UnknownTensor(name.clone())),
        None => Ok(()),
    }
}
