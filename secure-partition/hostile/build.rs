//! Places the image where the platform's memory map says.

use flexserve_platform::HOSTILE_PARTITION as MEMORY;

fn main() {
    if std::env::var_os("CARGO_CFG_TARGET_OS").is_some_and(|os| os == "none") {
        println!("cargo:rustc-link-arg-bins=--defsym=PARTITION_BASE={:#x}", MEMORY.base);
        println!("cargo:rustc-link-arg-bins=--defsym=PARTITION_SIZE={:#x}", MEMORY.size);
        println!("cargo:rustc-link-arg-bins=-Tpartition.ld");
        println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
    }
}
