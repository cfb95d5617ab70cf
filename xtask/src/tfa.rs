//! TF-A: unpacked, patched and built by its own makefiles, with the EL3 service linked into BL31.

use crate::{
    download,
    paths::{self, Paths},
    platform::Platform,
    process,
    stamp::{Inputs, Stamp},
};
use anyhow::{Context as _, Result};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

/// What goes into TF-A's build.
pub struct Ingredients<'a> {
    /// The EL3 service as a static library.
    pub el3_service: &'a Path,
    /// The secure world's image: the SPMC, and what lies behind it.
    pub bl32: &'a Path,
    /// The normal world's image, raw.
    pub payload: &'a Path,
}

/// What comes out of it.
pub struct Firmware {
    folder: PathBuf,
}

impl Firmware {
    /// A file of TF-A's build folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// BL31, with symbols and defmt's strings.
    pub fn bl31_elf(&self) -> PathBuf {
        self.folder.join("bl31/bl31.elf")
    }
}

/// Builds everything below BL33; does nothing where nothing changed.
///
/// # Errors
///
/// If the source cannot be had, a patch does not apply, or a build fails.
pub fn build(paths: &Paths, platform: &Platform, ingredients: &Ingredients) -> Result<Firmware> {
    let out = paths.platform(&platform.name);
    let source = source(paths, platform)?;
    let sheets = sheets(platform, &out)?;
    let make = Make { platform, ingredients, source: &source, out: &out };
    let firmware = Firmware { folder: make.build_folder().join(platform.build_folder()) };

    let mut flags = Inputs::default().text(&fs::read_to_string(out.join("tf-a.stamp"))?);
    flags = flags.file(&platform.folder.join("tf-a.toml"))?;
    let flags = flags.hash();

    let mut inputs = Inputs::default().text(&flags);
    for sheet in &sheets {
        inputs = inputs.file(sheet)?;
    }
    let boot = Stamp::new(out.join("boot.stamp"), inputs);
    if !boot.is_fresh() {
        boot.clear()?;
        make.forget_other_flags(&flags)?;
        let log = out.join("log/tf-a-boot.log");
        let targets: Vec<&str> = platform.firmware.targets.iter().map(String::as_str).collect();
        make.run(&format!("Building TF-A: {}", targets.join(", ")), &targets, None, &log)?;
        boot.set()?;
    }

    let script = paths.root.join("fvp/defmt.ld");
    let inputs = Inputs::default().text(&flags).file(ingredients.el3_service)?.file(&script)?;
    let runtime = Stamp::new(out.join("bl31.stamp"), inputs);
    if !runtime.is_fresh() {
        runtime.clear()?;
        // make does not know that it depends on the library.
        remove(&firmware.bl31_elf())?;
        let wraps: String =
            platform.firmware.wrap.iter().map(|function| format!("-Wl,--wrap={function} ")).collect();
        let libraries = format!(
            "-Wl,-T,{} {wraps}-Wl,--whole-archive {} -Wl,--no-whole-archive",
            script.display(),
            ingredients.el3_service.display()
        );
        let log = out.join("log/tf-a-bl31.log");
        make.run("Building TF-A: BL31 with the EL3 service", &["bl31"], Some(&libraries), &log)?;
        runtime.set()?;
    }
    Ok(firmware)
}

struct Make<'a> {
    platform: &'a Platform,
    ingredients: &'a Ingredients<'a>,
    source: &'a Path,
    out: &'a Path,
}

impl Make<'_> {
    fn build_folder(&self) -> PathBuf {
        self.out.join("tf-a-build")
    }

    /// make does not notice changed variables: what was built with others is removed.
    fn forget_other_flags(&self, flags: &str) -> Result<()> {
        let note = self.build_folder().join("flags");
        if fs::read_to_string(&note).is_ok_and(|old| old == flags) {
            return Ok(());
        }
        remove_folder(&self.build_folder())?;
        fs::create_dir_all(self.build_folder())?;
        Ok(fs::write(note, flags)?)
    }

    /// `libraries` goes through the environment: on the command line it would override what the makefiles add.
    fn run(&self, what: &str, targets: &[&str], libraries: Option<&str>, log: &Path) -> Result<()> {
        let mut make = process::command("make");
        make.current_dir(self.source).args(targets);
        make.arg(format!("-j{}", thread::available_parallelism().map_or(1, usize::from)));
        for (name, value) in &self.platform.firmware.make {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            make.arg(format!("{name}={value}"));
        }
        let sheets = self.out.join("sp");
        for (name, file) in &self.platform.firmware.device_trees {
            assign(&mut make, name, &sheets.join(file));
        }
        assign(&mut make, "BUILD_BASE", &self.build_folder());
        // TF-A insists on it where the SPMC is at S-EL2.
        let layout = sheets.join("sp_layout.json");
        if layout.exists() {
            assign(&mut make, "SP_LAYOUT_FILE", &layout);
        }
        assign(&mut make, "BL32", self.ingredients.bl32);
        assign(&mut make, "BL33", self.ingredients.payload);
        for inherited in ["MAKEFLAGS", "MFLAGS", "CFLAGS", "LDFLAGS", "CPPFLAGS", "LDLIBS"] {
            make.env_remove(inherited);
        }
        if let Some(libraries) = libraries {
            make.env("LDLIBS", libraries);
        }
        process::step(what, &mut make, log)
    }
}

fn assign(make: &mut Command, name: &str, path: &Path) {
    make.arg(format!("{name}={}", path.display()));
}

/// The patched source tree.
fn source(paths: &Paths, platform: &Platform) -> Result<PathBuf> {
    let out = paths.platform(&platform.name);
    let tree = out.join("tf-a");
    let patches = platform.files("patches", &["patch"])?;
    let mut inputs = Inputs::default().text(download::TF_A_SHA256);
    for patch in &patches {
        inputs = inputs.file(patch)?;
    }
    let stamp = Stamp::new(out.join("tf-a.stamp"), inputs);
    if stamp.is_fresh() {
        return Ok(tree);
    }
    stamp.clear()?;
    let archive = download::tf_a_source(paths)?;
    remove_folder(&tree)?;
    fs::create_dir_all(&tree)?;
    let mut tar = process::command("tar");
    tar.arg("--extract").arg("--strip-components=1").arg("--directory").arg(&tree).arg("--file").arg(archive);
    process::step("Unpacking TF-A", &mut tar, &out.join("log/tf-a-unpack.log"))?;
    for patch in &patches {
        let mut apply = process::command("patch");
        apply.current_dir(&tree).args(["--strip=1", "--batch", "--input"]).arg(patch);
        let what = format!("Applying {}", patch.file_name().unwrap_or_default().display());
        process::step(&what, &mut apply, &out.join("log/tf-a-patch.log"))?;
    }
    stamp.set()?;
    Ok(tree)
}

/// Puts the device trees and the SP layout into one folder, as TF-A's build wants them.
fn sheets(platform: &Platform, out: &Path) -> Result<Vec<PathBuf>> {
    let folder = out.join("sp");
    fs::create_dir_all(&folder)?;
    let mut sheets = Vec::new();
    for path in platform.files("", &["dts", "json"])? {
        let copy = folder.join(path.file_name().expect("an entry of a folder has a name"));
        let contents = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        paths::write_if_changed(&copy, &contents)?;
        sheets.push(copy);
    }
    Ok(sheets)
}

/// Removes a file, if it is there.
///
/// # Errors
///
/// If it cannot be removed.
pub fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
