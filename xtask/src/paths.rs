//! Where things lie: the source tree, and `out/` for everything that is made.

use anyhow::{Context as _, Result};
use std::{
    env, fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// The source tree and the folder of build products.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Root of the repository.
    pub root: PathBuf,
    /// `out/`, or what the environment variable `FLEXSERVE_OUT` says.
    pub out: PathBuf,
}

impl Paths {
    /// From the place of this crate's sources.
    ///
    /// # Errors
    ///
    /// If the current folder cannot be read.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ has a parent").to_owned();
        let out = match env::var_os("FLEXSERVE_OUT") {
            Some(out) => std::path::absolute(out)?,
            None => root.join("out"),
        };
        fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
        Ok(Self { root, out })
    }

    /// What was downloaded, each file checked against its SHA-256.
    pub fn download(&self) -> PathBuf {
        self.out.join("download")
    }

    /// Build products of one platform.
    pub fn platform(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    /// Cargo's folder for bare-metal code, which another compiler may build than host code.
    pub fn bare_metal_target(&self) -> PathBuf {
        self.out.join("cargo")
    }

    /// Cargo's folder for host code.
    pub fn host_target(&self) -> PathBuf {
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), PathBuf::from)
    }
}

/// Writes a file so that nobody ever sees half of it.
///
/// # Errors
///
/// If the folder is not writable.
pub fn write_atomically(path: &Path, contents: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // As any new file: the umask decides.
    let mut file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .with_context(|| format!("cannot write in {}", folder.display()))?;
    file.write_all(contents)?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// Writes a file only if it holds something else, so that its time stamp says when it changed.
///
/// # Errors
///
/// If the folder is not writable.
pub fn write_if_changed(path: &Path, contents: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == contents) {
        return Ok(());
    }
    write_atomically(path, contents)
}
