//! All images of a platform, from crates and TF-A to one flash image.

use crate::{
    elf::Image,
    package,
    paths::{self, Paths},
    platform::{PAYLOAD_MEMORY, Packages, Platform, Region},
    process,
    stamp::{Inputs, Stamp},
    tfa,
    toolchain::{self, Cross},
};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use flexserve_abi::{ffa, log::World};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

/// Images that are not to be built.
#[derive(Args, Clone, Debug, Default)]
pub struct Replacements {
    /// Use this ELF file instead of building the image (el3-svc: a static library). NAME is one of el3-svc, spmc, llm,
    /// hostile, payload.
    #[arg(long = "image", value_name = "NAME=FILE")]
    list: Vec<Replacement>,
}

/// An image built elsewhere.
#[derive(Clone, Debug)]
struct Replacement {
    name: String,
    file: PathBuf,
}

impl Replacements {
    /// Those images of a flash image that [`build`] has kept for a platform.
    pub fn kept(paths: &Paths, platform: &Platform, names: &[&str]) -> Self {
        let file = |name: &&str| paths.platform(&platform.name).join(format!("{name}.elf"));
        Self { list: names.iter().map(|name| Replacement::new(name, file(name))).collect() }
    }
}

impl Replacement {
    fn new(name: &str, file: PathBuf) -> Self {
        Self { name: name.to_owned(), file }
    }
}

impl FromStr for Replacement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, file) = text.split_once('=').ok_or("expected NAME=FILE")?;
        if !["el3-svc", "spmc", "llm", "hostile", "payload"].contains(&name) {
            return Err(format!("no image is called {name:?}"));
        }
        Ok(Self { name: name.to_owned(), file: file.into() })
    }
}

/// The images of a platform.
pub struct Images {
    /// BL1 and the firmware image package, as the machine's flash holds them.
    pub flash: PathBuf,
    /// ELF files whose defmt strings decode each world's log.
    pub logs: Vec<(World, PathBuf)>,
    /// The linker's map of BL31.
    pub el3_map: PathBuf,
}

/// The crates of the images that run at S-EL0 and below, or in the normal world.
struct Elfs {
    el3_service: PathBuf,
    spmc: PathBuf,
    llm: PathBuf,
    hostile: PathBuf,
    payload: PathBuf,
}

/// Builds whatever is not up to date.
///
/// # Errors
///
/// If a build fails, or an image does not fit its place.
pub fn build(paths: &Paths, platform: &Platform, replacements: &Replacements) -> Result<Images> {
    let out = paths.platform(&platform.name);
    fs::create_dir_all(&out)?;
    // The crates of all platforms are built into one folder.
    let folder = paths.bare_metal_target();
    fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join("lock"))?;
    lock.lock().context("cannot lock the build folder")?;

    let elfs = crates(paths, platform, replacements)?;
    let raw = raw_images(platform, &elfs, &out)?;
    let ingredients =
        tfa::Ingredients { el3_service: &elfs.el3_service, bl32: &raw.bl32, payload: &raw.payload };
    let firmware = tfa::build(paths, platform, &ingredients)?;
    let flash = flash(platform, &firmware, &raw, &out)?;
    // A later build, also one for another platform, replaces the ELF files: keep those of this flash image.
    let keep = |name: &str, elf: &Path| -> Result<PathBuf> {
        let kept = out.join(format!("{name}.elf"));
        paths::write_if_changed(&kept, &fs::read(elf)?)?;
        Ok(kept)
    };
    keep("payload", &elfs.payload)?;
    let logs = vec![
        (World::El3, keep("bl31", &firmware.bl31_elf())?),
        (World::Spmc, keep("spmc", &elfs.spmc)?),
        (World::LlmPartition, keep("llm", &elfs.llm)?),
        (World::HostilePartition, keep("hostile", &elfs.hostile)?),
    ];
    let el3_map = out.join("bl31.map");
    paths::write_if_changed(&el3_map, &fs::read(firmware.file("bl31/bl31.map"))?)?;
    Ok(Images { flash, logs, el3_map })
}

/// Builds a flash image in which a measurement stands in the SPMC's place, and the EL3 service answers its peers' calls.
///
/// # Errors
///
/// Those of [`build`].
pub fn el3_bench(paths: &Paths, platform: &Platform) -> Result<Images> {
    let variant = platform.variant("bench");
    let spmc = image(paths, &variant, "flexserve-el3-bench", toolchain::SOFT_FLOAT)?;
    let mut cargo = cargo(paths, &variant, "rustc", "flexserve-el3-svc", toolchain::SOFT_FLOAT)?;
    cargo.args(["--features", "bench", "--crate-type", "staticlib"]);
    let log = paths.platform(&variant.name).join("log/flexserve-el3-svc.log");
    process::step("Building flexserve-el3-svc with its peers", &mut cargo, &log)?;
    let library = release(paths, toolchain::SOFT_FLOAT).join("libflexserve_el3_svc.a");
    let list = vec![Replacement::new("spmc", spmc), Replacement::new("el3-svc", library)];
    build(paths, &variant, &Replacements { list })
}

/// Builds a flash image with another normal world, the package `payload`, and another image in the SPMC's place, if `spmc`
/// names one.
///
/// # Errors
///
/// Those of [`build`].
pub fn with_payload(
    paths: &Paths,
    platform: &Platform,
    variant: &str,
    payload: &str,
    spmc: Option<&str>,
) -> Result<Images> {
    let variant = platform.variant(variant);
    let mut list = vec![Replacement::new("payload", image(paths, &variant, payload, toolchain::SIMD)?)];
    if let Some(spmc) = spmc {
        list.push(Replacement::new("spmc", image(paths, &variant, spmc, toolchain::SOFT_FLOAT)?));
    }
    build(paths, &variant, &Replacements { list })
}

/// Builds a bare-metal program and answers its ELF file.
fn image(paths: &Paths, platform: &Platform, package: &str, target: &str) -> Result<PathBuf> {
    let mut cargo = cargo(paths, platform, "build", package, target)?;
    let log = paths.platform(&platform.name).join(format!("log/{package}.log"));
    process::step(&format!("Building {package}"), &mut cargo, &log)?;
    Ok(release(paths, target).join(package))
}

/// Builds a package for a platform; more arguments can follow.
fn cargo(
    paths: &Paths,
    platform: &Platform,
    subcommand: &str,
    package: &str,
    target: &str,
) -> Result<Command> {
    let mut cargo = Cross::find(&[target])?.bare_metal(paths, subcommand, target);
    cargo.args(["--release", "--package", package]).env("FLEXSERVE_PLATFORM", platform.facts());
    Ok(cargo)
}

fn release(paths: &Paths, target: &str) -> PathBuf {
    paths.bare_metal_target().join(target).join("release")
}

fn crates(paths: &Paths, platform: &Platform, replacements: &Replacements) -> Result<Elfs> {
    let elf = |name: &str, package: &str, target: &str| -> Result<PathBuf> {
        if let Some(replacement) = replacements.list.iter().rev().find(|r| r.name == name) {
            return Ok(std::path::absolute(&replacement.file)?);
        }
        let library = name == "el3-svc";
        let subcommand = if library { "rustc" } else { "build" };
        let mut cargo = cargo(paths, platform, subcommand, package, target)?;
        if library {
            cargo.args(["--crate-type", "staticlib"]);
        }
        if name == "llm" {
            cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_NONE_RUSTFLAGS", toolchain::PARTITION_FLAGS);
        }
        let log = paths.platform(&platform.name).join(format!("log/{name}.log"));
        process::step(&format!("Building {package}"), &mut cargo, &log)?;
        let file = if library { format!("lib{}.a", package.replace('-', "_")) } else { package.to_owned() };
        Ok(release(paths, target).join(file))
    };
    Ok(Elfs {
        el3_service: elf("el3-svc", "flexserve-el3-svc", toolchain::SOFT_FLOAT)?,
        spmc: elf("spmc", "flexserve-spmc", toolchain::SOFT_FLOAT)?,
        llm: elf("llm", "flexserve-llm-partition", toolchain::SIMD)?,
        hostile: elf("hostile", "flexserve-hostile-partition", toolchain::SIMD)?,
        payload: elf("payload", "flexserve-payload", toolchain::SIMD)?,
    })
}

struct RawImages {
    bl32: PathBuf,
    payload: PathBuf,
    /// Packages of partitions that BL2 loads, by the UUID that it finds them by.
    packages: Vec<(u128, PathBuf)>,
}

fn raw_images(platform: &Platform, elfs: &Elfs, out: &Path) -> Result<RawImages> {
    let map = &platform.map;
    let behind_manifest = |r: Region| Region {
        base: r.base + package::IMAGE_OFFSET,
        size: r.size.saturating_sub(package::IMAGE_OFFSET),
    };
    let payload_place = Region { base: map.payload.base, size: PAYLOAD_MEMORY };
    let raw = |name: &str, elf: &Path, place: Region| -> Result<Vec<u8>> {
        let image = Image::read(elf)?;
        image.check_place(name, place)?;
        Ok(image.bytes)
    };
    let payload = out.join("payload.bin");
    paths::write_if_changed(&payload, &raw("the payload", &elfs.payload, payload_place)?)?;
    let mut bl32 = raw("the SPMC", &elfs.spmc, map.spmc)?;
    let mut packages = Vec::new();
    for (name, what, elf, service, place) in [
        ("llm", "the LLM partition", &elfs.llm, ffa::LLM_SERVICE, map.llm_partition),
        ("hostile", "the hostile partition", &elfs.hostile, ffa::PROBE_SERVICE, map.hostile_partition),
    ] {
        let image = raw(what, elf, behind_manifest(place))?;
        let manifest = platform.file(&format!("{name}.dts"))?;
        let package = package::pack(&manifest, &image, out)?;
        match platform.firmware.packages {
            Packages::Bl2 => {
                let file = out.join(format!("{name}.pkg"));
                paths::write_if_changed(&file, &package)?;
                packages.push((service, file));
            }
            Packages::Bl32 => append(&mut bl32, map.spmc.base, &package, place.base)?,
        }
    }
    let file = out.join("bl32.bin");
    paths::write_if_changed(&file, &bl32)?;
    Ok(RawImages { bl32: file, payload, packages })
}

/// Extends the image at `base` by another one, which belongs to `place`.
fn append(image: &mut Vec<u8>, base: u64, more: &[u8], place: u64) -> Result<()> {
    let offset = usize::try_from(place.checked_sub(base).context("a partition lies below the SPMC")?)?;
    if image.len() > offset {
        bail!("what lies below {place:#x} reaches {:#x}", base + image.len() as u64);
    }
    image.resize(offset, 0);
    image.extend(more);
    Ok(())
}

/// Packs the firmware image package and puts it behind BL1.
fn flash(platform: &Platform, firmware: &tfa::Firmware, raw: &RawImages, out: &Path) -> Result<PathBuf> {
    let mut parts = vec![
        ("--tb-fw", firmware.file("bl2.bin")),
        ("--soc-fw", firmware.file("bl31.bin")),
        ("--tos-fw", raw.bl32.clone()),
        ("--nt-fw", raw.payload.clone()),
    ];
    if platform.map.rmm.is_some() {
        parts.push(("--rmm-fw", firmware.file("rmm.bin")));
    }
    for (variable, file) in &platform.firmware.device_trees {
        let option = if variable.contains("TOS") { "--tos-fw-config" } else { "--tb-fw-config" };
        parts.push((option, firmware.file(&format!("fdts/{}", file.replace(".dts", ".dtb")))));
    }
    let bl1 = firmware.file("bl1.bin");

    let mut inputs = Inputs::default().file(&bl1)?;
    for path in parts.iter().map(|p| &p.1).chain(raw.packages.iter().map(|p| &p.1)) {
        inputs = inputs.file(path)?;
    }
    let flash = out.join("flash.bin");
    let stamp = Stamp::new(out.join("flash.stamp"), inputs);
    if stamp.is_fresh() {
        return Ok(flash);
    }
    stamp.clear()?;
    let package = out.join("fip.bin");
    let mut fiptool = process::command("fiptool");
    fiptool.arg("create");
    for (option, path) in &parts {
        fiptool.arg(option).arg(path);
    }
    for (service, path) in &raw.packages {
        fiptool.arg("--blob").arg(format!("uuid={},file={}", uuid(*service), path.display()));
    }
    process::step("Packing the flash image", fiptool.arg(&package), &out.join("log/flash.log"))?;

    let mut bytes = fs::read(&bl1)?;
    let offset = usize::try_from(platform.firmware.flash.fip_offset)?;
    if bytes.len() > offset {
        bail!("BL1 has {} bytes, more than the {offset} before the firmware image package", bytes.len());
    }
    bytes.resize(offset, 0);
    bytes.extend(fs::read(&package)?);
    paths::write_atomically(&flash, &bytes)?;
    stamp.set()?;
    Ok(flash)
}

/// A UUID as text.
pub fn uuid(value: u128) -> String {
    let hex = format!("{value:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_read_as_in_the_abi() {
        assert_eq!(uuid(ffa::LLM_SERVICE), "6f1c2b6e-9d0a-4d0b-8a55-1f7c4e3a90d1");
    }

    #[test]
    fn device_trees_say_what_abi_and_memory_map_say() {
        let paths = Paths::find().unwrap();
        for name in ["qemu-rme", "qemu-v8a"] {
            check_device_trees(&Platform::load(&paths, name).unwrap());
        }
    }

    fn check_device_trees(platform: &Platform) {
        let read = |name: &str| fs::read_to_string(platform.file(name).unwrap()).unwrap();
        let core = read("spmc.dts");
        let partitions = [
            ("llm.dts", ffa::LLM_PARTITION, ffa::LLM_SERVICE, platform.map.llm_partition),
            ("hostile.dts", ffa::HOSTILE_PARTITION, ffa::PROBE_SERVICE, platform.map.hostile_partition),
        ];
        for (file, id, service, place) in partitions {
            let manifest = read(file);
            let bytes = service.to_be_bytes();
            let words: Vec<String> = bytes
                .chunks_exact(4)
                .map(|c| format!("{:#010x}", u32::from_le_bytes(c.try_into().unwrap())))
                .collect();
            let has = |text: &str, what: String| assert!(text.contains(&what), "{file}: no {what}");
            has(&manifest, format!("uuid = <{}>", words.join(" ")));
            has(&manifest, format!("id = <{id:#x}>"));
            has(&manifest, format!("load-address = <{:#010x}>", place.base));
            let offset = package::IMAGE_OFFSET;
            has(&manifest, format!("entrypoint-offset = <{offset:#x}>"));
            has(&manifest, format!("flexserve,memory-size = <{:#x}>", place.size - package::IMAGE_OFFSET));
            if platform.firmware.packages == Packages::Bl2 {
                let boot = read("tb_fw_config.dts");
                has(&boot, format!("uuid = \"{}\"", uuid(service)));
                has(&boot, format!("load-address = <{:#010x}>", place.base));
            }
            has(&core, format!("id = <{id:#x}>"));
            has(&core, format!("load_address = <0 {:#010x}>", place.base));
            has(&core, format!("mem_size = <{:#x}>", place.size));
        }
        assert!(core.contains(&format!("load_address = <0 {:#010x}>", platform.map.spmc.base)));
        assert!(core.contains(&format!("spmc_id = <{:#x}>", ffa::SPMC)));
    }

    #[test]
    fn rejects_an_image_that_nobody_knows() {
        assert!("bl2=x".parse::<Replacement>().is_err());
        assert!("spmc".parse::<Replacement>().is_err());
        assert_eq!("spmc=a=b".parse::<Replacement>().unwrap().file, PathBuf::from("a=b"));
    }
}
