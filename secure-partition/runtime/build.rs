//! Puts the partitions' linker script where the linker of whoever depends on this crate finds it.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=partition.ld");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    fs::copy("partition.ld", out.join("partition.ld")).expect("OUT_DIR is writable");
    println!("cargo:rustc-link-search={}", out.display());
}
