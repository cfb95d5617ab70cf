//! Places the suite at the platform's BL33 address.

use flexserve_platform::PAYLOAD_BASE;

fn main() {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let script = format!("{}/../normal-world/runtime/image.ld", env!("CARGO_MANIFEST_DIR"));
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rustc-link-arg-bins=-T{script}");
    println!("cargo:rustc-link-arg-bins=--defsym=PAYLOAD_BASE={PAYLOAD_BASE:#x}");
}
