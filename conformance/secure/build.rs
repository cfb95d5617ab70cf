//! Places the image where the SPMC's would lie.

use flexserve_platform::SPMC;

fn main() {
    println!("cargo:rerun-if-changed=secure.ld");
    if std::env::var_os("CARGO_CFG_TARGET_OS").is_some_and(|os| os == "none") {
        println!("cargo:rustc-link-arg-bins=--defsym=IMAGE_BASE={:#x}", SPMC.base);
        println!("cargo:rustc-link-arg-bins=-T{}/secure.ld", env!("CARGO_MANIFEST_DIR"));
    }
}
