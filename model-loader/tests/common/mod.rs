//! What the tests share.

use std::path::PathBuf;

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
