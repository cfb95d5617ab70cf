//! Any bytes as a GGUF file.
#![no_main]

use flexserve_model_loader::gguf::Gguf;
use libfuzzer_sys::fuzz_target;
use std::io::Cursor;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut file) = Gguf::open(Cursor::new(bytes)) else { return };
    for key in file.metadata().keys() {
        let _ = (file.unsigned(key), file.float(key), file.boolean(key), file.string(key));
        let _ = (file.strings(key), file.integers(key), file.floats(key));
    }
    let names: Vec<String> = file.tensors().keys().cloned().collect();
    for name in names {
        // What is read was there to read.
        if let Ok(data) = file.read(&name) {
            assert!(data.len() <= bytes.len());
        }
    }
});
