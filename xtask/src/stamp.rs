//! What a build product was made from, as one hash beside it.

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// A hash over inputs, each with its length, so that no two lists of inputs look alike.
#[derive(Default)]
pub struct Inputs(Sha256);

impl Inputs {
    /// Adds a text.
    pub fn text(mut self, text: &str) -> Self {
        self.add(text.as_bytes());
        self
    }

    /// Adds a file's name and contents.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn file(mut self, path: &Path) -> Result<Self> {
        let contents = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.add(path.file_name().unwrap_or_default().as_encoded_bytes());
        self.add(&contents);
        Ok(self)
    }

    /// The hash in hexadecimal.
    pub fn hash(self) -> String {
        hex(&self.0.finalize())
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}

/// The file that remembers the hash of a product's inputs.
pub struct Stamp {
    path: PathBuf,
    hash: String,
}

impl Stamp {
    /// The stamp at `path` for these inputs.
    pub fn new(path: PathBuf, inputs: Inputs) -> Self {
        Self { path, hash: inputs.hash() }
    }

    /// Whether the product was made from the same inputs.
    pub fn is_fresh(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|old| old == self.hash)
    }

    /// Forgets the old product, before it is touched.
    ///
    /// # Errors
    ///
    /// If the stamp cannot be removed.
    pub fn clear(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Records that the product is complete.
    ///
    /// # Errors
    ///
    /// If the stamp cannot be written.
    pub fn set(&self) -> Result<()> {
        crate::paths::write_atomically(&self.path, self.hash.as_bytes())
    }
}

/// SHA-256 of a file's contents, in hexadecimal.
///
/// # Errors
///
/// If it cannot be read.
pub fn sha256_of_file(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    Ok(hex(&hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_that_only_concatenate_alike_differ() {
        assert_ne!(
            Inputs::default().text("ab").text("c").hash(),
            Inputs::default().text("a").text("bc").hash()
        );
    }

    #[test]
    fn a_stamp_is_fresh_only_for_its_inputs() {
        let folder = tempfile::tempdir().unwrap();
        let stamp = |text| Stamp::new(folder.path().join("stamp"), Inputs::default().text(text));
        assert!(!stamp("a").is_fresh());
        stamp("a").set().unwrap();
        assert!(stamp("a").is_fresh());
        assert!(!stamp("b").is_fresh());
        stamp("b").clear().unwrap();
        assert!(!stamp("a").is_fresh());
    }
}
