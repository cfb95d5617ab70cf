//! Places the image where the platform's memory map says.

use flexserve_platform::SPMC;

fn main() {
    println!("cargo:rerun-if-changed=spmc.ld");
    if std::env::var_os("CARGO_CFG_TARGET_OS").is_some_and(|os| os == "none") {
        println!("cargo:rustc-link-arg-bins=--defsym=SPMC_BASE={:#x}", SPMC.base);
        println!("cargo:rustc-link-arg-bins=--defsym=SPMC_SIZE={:#x}", SPMC.size);
        println!("cargo:rustc-link-arg-bins=-T{}/spmc.ld", env!("CARGO_MANIFEST_DIR"));
        println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
        // It runs at other addresses than it is linked at, and relocates itself; see spmc.ld.
        for option in ["-pie", "--no-dynamic-linker", "-znotext"] {
            println!("cargo:rustc-link-arg-bins={option}");
        }
    }
}
