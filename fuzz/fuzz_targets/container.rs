//! Any bytes as a container's first segment: as they are, and with their hashes made right.
#![no_main]

#[path = "../../model-loader/container/tests/common/mod.rs"]
#[allow(dead_code)]
mod common;

use flexserve_container::{Header, Manifest, wire};
use libfuzzer_sys::fuzz_target;

/// Reads everything there is.
fn read(bytes: &[u8]) {
    let _ = Header::bytes_needed(bytes);
    if let Ok(header) = Header::parse(bytes) {
        let _ = (header.head_bytes(), header.file_bytes(), header.granules());
        for (i, segment) in header.segments().enumerate() {
            assert_eq!(header.segment(i), Some(segment));
            let _ = header.verify_segment(i, bytes);
        }
    }
    let Ok(manifest) = Manifest::parse(bytes) else { return };
    let tokenizer = manifest.tokenizer();
    for id in 0..tokenizer.vocab() as u32 {
        if let Some(found) = tokenizer.find(tokenizer.token(id)) {
            assert_eq!(tokenizer.token(found), tokenizer.token(id));
        }
        let _ = (tokenizer.token_kind(id), tokenizer.merge(id, 0), tokenizer.rank(id));
    }
    for id in tokenizer.specials() {
        assert!((id as usize) < tokenizer.vocab());
    }
    let _ = (0..=255).map(|byte| tokenizer.byte_token(byte)).max();
    for tensor in manifest.tensors() {
        assert!(manifest.header().segment(tensor.segment as usize).is_some());
    }
}

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    let table = size_of::<wire::Head>() + size_of::<wire::Segment>();
    if bytes.len() >= table && bytes[12..16] != [0; 4] {
        let mut bytes = bytes.to_vec();
        common::rehash(&mut bytes);
        read(&bytes);
    }
});
