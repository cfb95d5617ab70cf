//! Chooses by the platform's facts what is linked into its BL31.

use flexserve_platform::{ISOLATION, Isolation, SPMC_MANIFEST_SOURCE};

fn main() {
    println!("cargo:rustc-check-cfg=cfg(isolation, values(\"gpt\", \"stage-2\"))");
    println!("cargo:rustc-check-cfg=cfg(spmc_manifest_copied)");
    println!("cargo:rustc-check-cfg=cfg(fuzzing)");
    let isolation = match ISOLATION {
        Isolation::GranuleProtectionTable => "gpt",
        Isolation::Stage2 => "stage-2",
    };
    println!("cargo:rustc-cfg=isolation=\"{isolation}\"");
    if SPMC_MANIFEST_SOURCE.is_some() {
        println!("cargo:rustc-cfg=spmc_manifest_copied");
    }
}
