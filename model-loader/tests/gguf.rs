//! Sound GGUF files are packed; each thing that may be wrong with one is refused by name; nothing panics.

mod common;

use common::{Draft, F16, F32, HIDDEN, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Value, WIDTH, packed};
use flexserve_container::wire;
use flexserve_kernels::format::Format;
use flexserve_llm::generator::Settings;
use flexserve_llm::sampler::TOP_P_ALL;
use flexserve_model_loader::file::Container;
use flexserve_model_loader::gguf::{ARRAY_MAX, DIMENSIONS_MAX, KEYS_MAX, STRING_MAX, TENSORS_MAX};
use flexserve_model_loader::run::{Request, run};
use proptest::prelude::*;
use std::io::Cursor;

/// The message with which a file is refused.
fn refusal(draft: Draft) -> String {
    packed(&draft.bytes()).expect_err("it should have been refused").to_string()
}

/// The message with which a file is refused whose bytes at `offset` are changed.
fn refusal_with(offset: usize, bytes: &[u8]) -> String {
    let mut file = Draft::sound(F16).bytes();
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
    packed(&file).expect_err("it should have been refused").to_string()
}

#[track_caller]
fn assert_says(message: String, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} should say {part:?}");
    }
}

fn request(prompt: &str) -> Request {
    Request {
        prompt: prompt.to_owned(),
        context: 64,
        settings: Settings { temperature: 0, top_k: 0, top_p: TOP_P_ALL, seed: 0, max_tokens: 5 },
        plain: true,
    }
}

#[test]
fn every_type_is_packed_and_runs() {
    let formats = [
        (F16, Format::W16),
        (Q4_0, Format::Q4),
        (Q4_1, Format::Q4Min),
        (Q5_0, Format::Q8),
        (Q5_1, Format::Q8),
        (Q8_0, Format::Q8),
        (F32, Format::W16),
    ];
    for (ggml_type, format) in formats {
        let file = packed(&Draft::sound(ggml_type).bytes()).unwrap();
        let container = Container::read(&mut Cursor::new(file), |_, _| ()).unwrap();
        let manifest = container.manifest().unwrap();
        let used: Vec<u32> = manifest.tensors().filter(|t| t.rows > 1).map(|t| t.format).collect();
        assert!(used.iter().all(|&id| id == format.id()), "{used:?}");
        let answer = run(&container, &request("ab a"), |_| ()).unwrap();
        assert!(answer.output_tokens <= 5 && answer.prompt_tokens > 4);
    }
}

#[test]
fn k_quants_are_packed_and_run() {
    // As llama.cpp does it, where columns are a multiple of 256; bytes that are sound wherever a half begins.
    for (ggml_type, bytes, format) in [
        (10, 84, Format::Q8),
        (11, 110, Format::Q8),
        (12, 144, Format::Q4Min),
        (13, 176, Format::Q8),
        (14, 210, Format::Q8),
    ] {
        let mut draft = Draft::sound(Q5_0);
        let down = draft.tensors.iter_mut().find(|tensor| tensor.0 == "blk.0.ffn_down.weight").unwrap();
        assert_eq!(down.1, [HIDDEN, WIDTH]);
        (down.2, down.3) = (ggml_type, vec![0x2c; bytes * WIDTH as usize]);
        let file = packed(&draft.bytes()).unwrap();
        let container = Container::read(&mut Cursor::new(file), |_, _| ()).unwrap();
        let manifest = container.manifest().unwrap();
        assert!(manifest.tensors().any(|t| t.source_type == ggml_type && t.format == format.id()));
        run(&container, &request("ab a"), |_| ()).unwrap();
    }
}

#[test]
fn version_2_is_read_and_types_may_be_mixed() {
    let mut draft = Draft::sound(Q8_0);
    draft.version = 2;
    let mixed = Draft::sound(Q4_0);
    draft.tensors[2] = mixed.tensors[2].clone();
    packed(&draft.bytes()).unwrap();
}

#[test]
fn an_output_head_of_its_own_is_kept() {
    let mut draft = Draft::sound(Q8_0);
    draft.add("output.weight", &[WIDTH, 12], Q4_0);
    let container = Container::read(&mut Cursor::new(packed(&draft.bytes()).unwrap()), |_, _| ()).unwrap();
    assert!(!container.manifest().unwrap().params().tied_head);
}

#[test]
fn rejects_other_files() {
    assert_says(refusal_with(0, b"GGML"), &["not a GGUF file"]);
    assert_says(refusal_with(4, &1u32.to_le_bytes()), &["version 1", "2 and 3"]);
    assert_says(refusal_with(4, &4u32.to_le_bytes()), &["version 4"]);
    assert_says(refusal_with(4, &3u32.to_be_bytes()), &["big-endian"]);
}

#[test]
fn rejects_too_many_tensors() {
    assert_says(refusal_with(8, &(TENSORS_MAX + 1).to_le_bytes()), &["16385 tensors", "more than 16384"]);
    assert_says(refusal_with(8, &u64::MAX.to_le_bytes()), &["tensors"]);
}

#[test]
fn rejects_too_many_keys() {
    assert_says(refusal_with(16, &(KEYS_MAX + 1).to_le_bytes()), &["65537 metadata keys"]);
    // As many as may be, but they are not there.
    assert_says(refusal_with(16, &KEYS_MAX.to_le_bytes()), &["corrupt"]);
}

#[test]
fn rejects_long_strings() {
    // The first key's length lies behind the counts.
    assert_says(refusal_with(24, &(STRING_MAX + 1).to_le_bytes()), &["bytes of a string"]);
    assert_says(refusal_with(24, &STRING_MAX.to_le_bytes()), &["the file ends at byte", "metadata key 0"]);
}

#[test]
fn rejects_long_arrays() {
    let array = |count: u64| {
        let bytes = [4u32.to_le_bytes().to_vec(), count.to_le_bytes().to_vec()].concat();
        refusal(Draft::sound(F16).set("x.list", Value::Raw(9, bytes)))
    };
    assert_says(array(ARRAY_MAX + 1), &["elements of an array"]);
    assert_says(array(ARRAY_MAX), &["the file ends", "x.list"]);
}

#[test]
fn rejects_unknown_value_types_and_nested_arrays() {
    assert_says(refusal(Draft::sound(F16).set("x.odd", Value::Raw(13, Vec::new()))), &["x.odd", "13"]);
    let nested = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
    assert_says(
        refusal(Draft::sound(F16).set("x.nest", Value::Raw(9, nested))),
        &["x.nest", "type number 9"],
    );
}

#[test]
fn rejects_what_is_there_twice() {
    let mut draft = Draft::sound(F16);
    draft.keys.push(("general.name", Value::Text("again")));
    assert_says(refusal(draft), &["general.name", "twice"]);
    let mut draft = Draft::sound(F16);
    draft.tensors.push(draft.tensors[0].clone());
    assert_says(refusal(draft), &["token_embd.weight", "twice"]);
}

#[test]
fn rejects_bad_alignment() {
    for alignment in [0, 3, 1 << 17] {
        let draft = Draft::sound(F16).set("general.alignment", Value::U32(alignment));
        assert_says(refusal(draft), &["general.alignment"]);
    }
}

#[test]
fn rejects_tensor_descriptions() {
    let with = |dimensions: &[u64], ggml_type: u32| {
        let mut draft = Draft::sound(F16);
        draft.tensors[2].1 = dimensions.to_vec();
        draft.tensors[2].2 = ggml_type;
        refusal(draft)
    };
    let many = vec![1; DIMENSIONS_MAX as usize + 1];
    assert_says(with(&many, F16), &["5 dimensions of a tensor"]);
    assert_says(with(&[u64::MAX, 2], F16), &["blk.0.attn_q.weight", "size that cannot be"]);
    assert_says(with(&[32, 0], F16), &["size that cannot be"]);
    assert_says(with(&[33, 32], Q8_0), &["size that cannot be"]);
    assert_says(with(&[128, 32], 12), &["blk.0.attn_q.weight", "size that cannot be"]);
    assert_says(with(&[32, 32], 16), &["blk.0.attn_q.weight", "IQ2_XXS", "Q4_1"]);
    assert_says(with(&[32, 32], 999), &["number 999"]);
    assert_says(with(&[32, 31], F16), &["blk.0.attn_q.weight", "31 rows", "32 rows"]);
    assert_says(with(&[32, 1 << 40], F16), &["the file ends", "the data of tensor blk.0.attn_q.weight"]);
}

#[test]
fn rejects_other_architectures() {
    assert_says(
        refusal(Draft::sound(F16).set("general.architecture", Value::Text("mamba"))),
        &["mamba", "llama"],
    );
    assert_says(
        refusal(Draft::sound(F16).without_key("general.architecture")),
        &["general.architecture", "missing"],
    );
}

#[test]
fn rejects_what_is_missing_or_superfluous() {
    let keys = ["llama.block_count", "llama.embedding_length", "llama.attention.layer_norm_rms_epsilon"];
    for key in
        keys.into_iter().chain(["tokenizer.ggml.tokens", "tokenizer.ggml.model", "tokenizer.ggml.merges"])
    {
        assert_says(refusal(Draft::sound(F16).without_key(key)), &[key, "missing"]);
    }
    let tensor = "blk.0.ffn_up.weight";
    assert_says(refusal(Draft::sound(F16).without_tensor(tensor)), &[tensor, "missing"]);
    let mut draft = Draft::sound(F16);
    draft.add("blk.0.attn_q.bias", &[32], F32);
    assert_says(refusal(draft), &["blk.0.attn_q.bias", "no biases"]);
}

#[test]
fn rejects_unsupported_values() {
    let cases: [(&'static str, Value, &str); 10] = [
        ("llama.rope.scaling.type", Value::Text("yarn"), "yarn"),
        ("llama.rope.scaling.factor", Value::F32(4.0), "scaling"),
        ("llama.expert_count", Value::U32(8), "experts"),
        ("llama.block_count", Value::U32(0), "llama.block_count"),
        ("llama.block_count", Value::U32(257), "257"),
        ("llama.block_count", Value::Text("one"), "should be a number"),
        ("llama.attention.head_count_kv", Value::U32(3), "divide"),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN), "between 0 and 1"),
        ("llama.rope.freq_base", Value::F32(-1.0), "llama.rope.freq_base"),
        ("tokenizer.ggml.model", Value::Text("bert"), "bert"),
    ];
    for (key, value, part) in cases {
        assert_says(refusal(Draft::sound(F16).set(key, value)), &[part]);
    }
    assert_says(refusal(Draft::sound(F16).set("tokenizer.ggml.pre", Value::Text("qwen2"))), &["qwen2"]);
}

#[test]
fn rejects_inconsistent_vocabularies() {
    let merges =
        |rule: &str| refusal(Draft::sound(F16).set("tokenizer.ggml.merges", Value::Texts(vec![rule.into()])));
    assert_says(merges("a z"), &["merge 0", "a z"]);
    assert_says(merges("a"), &["merge 0"]);
    let kinds = Value::I32s(vec![1; 3]);
    assert_says(refusal(Draft::sound(F16).set("tokenizer.ggml.token_type", kinds)), &["differ in number"]);
}

#[test]
fn rejects_weights_that_are_no_numbers() {
    let mut draft = Draft::sound(F16);
    draft.tensors[2].3[..2].copy_from_slice(&[0x00, 0x7c]);
    assert_says(refusal(draft), &["blk.0.attn_q.weight", "not finite"]);
}

#[test]
fn truncation_at_every_byte_is_noticed() {
    let file = Draft::sound(Q8_0).bytes();
    for length in 0..file.len() {
        let message = packed(&file[..length]).expect_err("it should have been refused").to_string();
        assert!(message.contains(&format!("ends at byte {length}")), "{message}");
    }
}

#[test]
fn a_truncated_container_is_noticed() {
    let file = packed(&Draft::sound(Q8_0).bytes()).unwrap();
    for length in [0, 1, 63, 64, 100, 4095, 4096, file.len() - 4096, file.len() - 1] {
        assert!(Container::read(&mut Cursor::new(&file[..length]), |_, _| ()).is_err(), "{length}");
    }
    assert_eq!(file[..8], wire::MAGIC);
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let file = packed(&Draft::sound(Q8_0).bytes()).unwrap();
    let container = Container::read(&mut Cursor::new(file), |_, _| ()).unwrap();
    let message = run(&container, &request(&"abc ".repeat(30)), |_| ()).unwrap_err().to_string();
    assert_says(message, &["tokens", "context", "64"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Whatever a file says, it is packed into something sound or refused.
    #[test]
    fn no_content_panics(at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 1..32), q8 in any::<bool>()) {
        let mut file = Draft::sound(if q8 { Q8_0 } else { F16 }).bytes();
        let at = at.index(file.len() - bytes.len());
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        if let Ok(container) = packed(&file) {
            let container = Container::read(&mut Cursor::new(container), |_, _| ()).unwrap();
            let _ = run(&container, &request("ab c"), |_| ());
        }
    }

    /// The same for the numbers among the metadata, where random bytes seldom make sense.
    #[test]
    fn no_number_panics(at in 0usize..3000, value in prop::sample::select(vec![0u64, 1, 2, 31, 33, 255, 256, 65_535, 1 << 31, u64::MAX])) {
        let mut file = Draft::sound(Q8_0).bytes();
        let at = at.min(file.len() - 8);
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        if let Ok(container) = packed(&file) {
            let container = Container::read(&mut Cursor::new(container), |_, _| ()).unwrap();
            let _ = run(&container, &request("ab c"), |_| ());
        }
    }
}
