//! What the tests share: the default model, and tiny GGUF files to spoil.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::io::Cursor;
use std::path::PathBuf;

use flexserve_model_loader::gguf::Gguf;
use flexserve_model_loader::{Error, pack};

/// The default model. It is no part of the repository.
pub fn model() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../out/download/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("FLEXSERVE_MODEL").map_or_else(|| PathBuf::from(default), PathBuf::from);
    assert!(
        path.is_file(),
        "{}: the default model is not there; `./flexserve build` fetches it, or FLEXSERVE_MODEL names it",
        path.display()
    );
    path
}

/// A metadata value with its GGUF type.
#[derive(Clone, Debug)]
pub enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(&'static str),
    Texts(Vec<Vec<u8>>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// Type and bytes as they are.
    Raw(u32, Vec<u8>),
}

/// GGML's numbers of element types.
pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const Q4_0: u32 = 2;
pub const Q4_1: u32 = 3;
pub const Q5_0: u32 = 6;
pub const Q5_1: u32 = 7;
pub const Q8_0: u32 = 8;

/// Name, dimensions, type, data.
pub type Tensor = (String, Vec<u64>, u32, Vec<u8>);

/// A GGUF file in the making.
#[derive(Clone, Debug)]
pub struct Draft {
    pub version: u32,
    pub keys: Vec<(&'static str, Value)>,
    pub tensors: Vec<Tensor>,
}

pub const WIDTH: u64 = 32;
pub const HIDDEN: u64 = 256;

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

fn value(out: &mut Vec<u8>, value: &Value) {
    let mut list = |code: u32, count: usize| {
        out.extend(9u32.to_le_bytes());
        out.extend(code.to_le_bytes());
        out.extend((count as u64).to_le_bytes());
    };
    match value {
        Value::Texts(values) => list(8, values.len()),
        Value::I32s(values) => list(5, values.len()),
        Value::F32s(values) => list(6, values.len()),
        Value::U32(_) => out.extend(4u32.to_le_bytes()),
        Value::F32(_) => out.extend(6u32.to_le_bytes()),
        Value::Bool(_) => out.extend(7u32.to_le_bytes()),
        Value::Text(_) => out.extend(8u32.to_le_bytes()),
        Value::Raw(code, _) => out.extend(code.to_le_bytes()),
    }
    match value {
        Value::U32(value) => out.extend(value.to_le_bytes()),
        Value::F32(value) => out.extend(value.to_le_bytes()),
        Value::Bool(value) => out.push((*value).into()),
        Value::Text(value) => text(out, value.as_bytes()),
        Value::Texts(values) => values.iter().for_each(|value| text(out, value)),
        Value::I32s(values) => values.iter().for_each(|value| out.extend(value.to_le_bytes())),
        Value::F32s(values) => values.iter().for_each(|value| out.extend(value.to_le_bytes())),
        Value::Raw(_, bytes) => out.extend(bytes),
    }
}

/// Data of a tensor that is sound and not all the same.
fn data(ggml_type: u32, elements: u64) -> Vec<u8> {
    let small = |i: u64| (i * 37 % 101) as u8;
    // 0x2c00 is 1/16 as a half.
    let half = [0x00, 0x2c];
    (0..elements / 32)
        .flat_map(|block| {
            let bytes = |count: u64| (0..count).map(move |i| small(block * 7 + i));
            match ggml_type {
                F32 => (0..32u64).flat_map(|i| (f32::from(small(block + i)) / 101.0).to_le_bytes()).collect(),
                F16 => (0..32u64).flat_map(|i| [small(block * 32 + i), 0x2c | (small(i) & 1) << 7]).collect(),
                Q4_0 => half.into_iter().chain(bytes(16)).collect(),
                Q4_1 => half.into_iter().chain(half).chain(bytes(16)).collect(),
                Q5_0 => half.into_iter().chain(bytes(20)).collect(),
                Q5_1 => half.into_iter().chain(half).chain(bytes(20)).collect(),
                Q8_0 => half.into_iter().chain(bytes(32)).collect::<Vec<u8>>(),
                // Types that nobody packs have data of any kind.
                _ => bytes(32).collect(),
            }
        })
        .collect()
}

impl Draft {
    /// A sound Llama-type model: one layer, width 32, byte-pair encoding of a few letters.
    pub fn sound(ggml_type: u32) -> Self {
        let texts =
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "c", "Ġ", "ab", "Ġa", "Ċ", "user", "x"];
        let tokens: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        let kinds = (0..tokens.len()).map(|id| if id < 3 { 3 } else { 1 }).collect();
        let vocab = tokens.len() as u64;
        let merges = vec![b"a b".to_vec(), "Ġ a".as_bytes().to_vec()];
        let mut draft = Self {
            version: 3,
            keys: vec![
                ("general.architecture", Value::Text("llama")),
                ("general.name", Value::Text("tiny")),
                ("llama.block_count", Value::U32(1)),
                ("llama.context_length", Value::U32(64)),
                ("llama.embedding_length", Value::U32(WIDTH as u32)),
                ("llama.feed_forward_length", Value::U32(HIDDEN as u32)),
                ("llama.attention.head_count", Value::U32(2)),
                ("llama.attention.head_count_kv", Value::U32(1)),
                ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
                ("llama.rope.freq_base", Value::F32(10_000.0)),
                ("tokenizer.ggml.model", Value::Text("gpt2")),
                ("tokenizer.ggml.pre", Value::Text("smollm")),
                ("tokenizer.ggml.tokens", Value::Texts(tokens)),
                ("tokenizer.ggml.token_type", Value::I32s(kinds)),
                ("tokenizer.ggml.merges", Value::Texts(merges)),
                ("tokenizer.ggml.bos_token_id", Value::U32(1)),
                ("tokenizer.ggml.eos_token_id", Value::U32(2)),
                ("tokenizer.chat_template", Value::Text("{{ '<|im_start|>' + role }}")),
            ],
            tensors: Vec::new(),
        };
        draft.add("token_embd.weight", &[WIDTH, vocab], ggml_type);
        draft.add("output_norm.weight", &[WIDTH], F32);
        let matrices = [
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", WIDTH, WIDTH / 2),
            ("attn_v", WIDTH, WIDTH / 2),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", WIDTH, HIDDEN),
            ("ffn_up", WIDTH, HIDDEN),
            ("ffn_down", HIDDEN, WIDTH),
        ];
        for (name, cols, rows) in matrices {
            draft.add(&format!("blk.0.{name}.weight"), &[cols, rows], ggml_type);
        }
        draft.add("blk.0.attn_norm.weight", &[WIDTH], F32);
        draft.add("blk.0.ffn_norm.weight", &[WIDTH], F32);
        draft
    }

    pub fn add(&mut self, name: &str, dimensions: &[u64], ggml_type: u32) {
        let elements = dimensions.iter().product();
        self.tensors.push((name.to_owned(), dimensions.to_vec(), ggml_type, data(ggml_type, elements)));
    }

    /// Changes or adds a key.
    pub fn set(mut self, key: &'static str, value: Value) -> Self {
        self.keys.retain(|(name, _)| *name != key);
        self.keys.push((key, value));
        self
    }

    pub fn without_key(mut self, key: &str) -> Self {
        self.keys.retain(|(name, _)| *name != key);
        self
    }

    pub fn without_tensor(mut self, name: &str) -> Self {
        self.tensors.retain(|(other, ..)| other != name);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, content) in &self.keys {
            text(&mut out, key.as_bytes());
            value(&mut out, content);
        }
        let mut offset = 0u64;
        for (name, dimensions, ggml_type, data) in &self.tensors {
            text(&mut out, name.as_bytes());
            out.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|length| out.extend(length.to_le_bytes()));
            out.extend(ggml_type.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (data.len() as u64).next_multiple_of(32);
        }
        for (.., data) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(data);
        }
        out
    }
}

/// Reads and packs a GGUF file that lies in memory.
pub fn packed(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut gguf = Gguf::open(Cursor::new(bytes))?;
    let mut out = Cursor::new(Vec::new());
    pack(&mut gguf, &mut out, 0, |_, _| ())?;
    Ok(out.into_inner())
}
