//! The default model, packed containers, and the model loader's own command line.

use crate::{
    download,
    paths::Paths,
    process, stamp,
    toolchain::{self},
};
use anyhow::{Context as _, Result, bail};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The model loader's program, built if need be.
///
/// # Errors
///
/// If it cannot be built.
pub fn loader(paths: &Paths) -> Result<PathBuf> {
    let mut cargo = toolchain::host_cargo(paths, "build");
    cargo.args(["--release", "--package", "flexserve-model-loader", "--bin", "flexserve-model"]);
    process::step("Building flexserve-model", &mut cargo, &paths.out.join("log/model-loader.log"))?;
    Ok(paths.host_target().join("release/flexserve-model"))
}

/// The container to boot with: `model` itself if it is one, or made from the GGUF file `model`, or from the default
/// model. Made ones are kept, by the hash of the file that they were made from.
///
/// # Errors
///
/// If the file is missing, or the packer refuses it.
pub fn container(paths: &Paths, model: Option<&Path>) -> Result<PathBuf> {
    let gguf = match model {
        None => download::default_model(paths)?,
        Some(path) => path.to_owned(),
    };
    if !gguf.is_file() {
        bail!("{}: no such file; --model takes a GGUF file or a packed container (.flx)", gguf.display());
    }
    if gguf.extension().is_some_and(|e| e == "flx") {
        return Ok(std::path::absolute(gguf)?);
    }
    let loader = loader(paths)?;
    let models = paths.out.join("models");
    fs::create_dir_all(&models)?;
    // The packer takes part in the name: another version may lay the container out differently.
    let inputs = stamp::Inputs::default();
    let key = inputs.text(&stamp::sha256_of_file(&loader)?).text(&stamp::sha256_of_file(&gguf)?).hash();
    let container = models.join(format!("{}.flx", &key[..32]));
    if container.is_file() {
        return Ok(container);
    }
    let folder = tempfile::tempdir_in(&models)?;
    let packed = folder.path().join("model.flx");
    let mut pack = process::command(&loader);
    pack.arg("pack").arg(&gguf).arg("--output").arg(&packed);
    let log = paths.out.join("log/pack.log");
    process::step(&format!("Packing {}", gguf.display()), &mut pack, &log)
        .with_context(|| format!("{} cannot be used", gguf.display()))?;
    fs::rename(packed, &container)?;
    Ok(container)
}

/// Runs the model loader with these arguments, on this terminal.
///
/// # Errors
///
/// If it cannot be started.
pub fn forward(paths: &Paths, args: &[OsString]) -> Result<u8> {
    let status = Command::new(loader(paths)?).args(args).stdin(Stdio::null()).status()?;
    Ok(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1))
}
