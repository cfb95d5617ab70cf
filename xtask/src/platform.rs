//! A platform's facts, read from its folder in `fvp/`.

use crate::paths::Paths;
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::{collections::BTreeMap, fs, path::PathBuf};

/// Everything in `fvp/<name>/` that is data.
#[derive(Clone, Debug)]
pub struct Platform {
    /// Its name.
    pub name: String,
    /// Its folder in `fvp/`.
    pub folder: PathBuf,
    /// `platform.toml`.
    pub map: Map,
    /// `tf-a.toml`.
    pub firmware: Firmware,
    /// `qemu.toml`.
    pub machine: Machine,
}

/// What xtask needs of the memory map.
#[derive(Clone, Debug, Deserialize)]
pub struct Map {
    /// EL3's SRAM.
    pub el3: Region,
    /// The SPMC's image and memory.
    pub spmc: Region,
    /// The LLM partition.
    pub llm_partition: Region,
    /// The hostile partition.
    pub hostile_partition: Region,
    /// The Realm world's monitor.
    pub rmm: Region,
    /// Where BL33 starts.
    pub payload: Base,
}

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Region {
    /// First byte.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

/// A physical address.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Base {
    /// First byte.
    pub base: u64,
}

/// How TF-A is built.
#[derive(Clone, Debug, Deserialize)]
pub struct Firmware {
    /// make's variables.
    pub make: BTreeMap<String, toml::Value>,
    /// make's variables that name a device tree in the platform's folder.
    pub device_trees: BTreeMap<String, String>,
    /// The flash image.
    pub flash: Flash,
}

/// Layout of the flash image.
#[derive(Clone, Debug, Deserialize)]
pub struct Flash {
    /// Where the firmware image package begins.
    pub fip_offset: u64,
}

/// How QEMU is called.
#[derive(Clone, Debug, Deserialize)]
pub struct Machine {
    /// The program.
    pub binary: String,
    /// Oldest version that will do.
    pub minimum_version: String,
    /// RAM, as QEMU's `-m` takes it.
    pub memory: String,
    /// Cores unless `--smp` says otherwise.
    pub cores: u32,
    /// Arguments.
    pub args: Vec<String>,
}

impl Platform {
    /// Reads `fvp/<name>/`.
    ///
    /// # Errors
    ///
    /// If there is no such platform, or one of its files is malformed.
    pub fn load(paths: &Paths, name: &str) -> Result<Self> {
        let folder = paths.root.join("fvp").join(name);
        if !folder.join("platform.toml").is_file() {
            bail!("no platform {name:?}; there are: {}", Self::names(paths).join(", "));
        }
        Ok(Self {
            name: name.to_owned(),
            map: read(&folder.join("platform.toml"))?,
            firmware: read(&folder.join("tf-a.toml"))?,
            machine: read(&folder.join("qemu.toml"))?,
            folder,
        })
    }

    /// The same platform with images of its own, in a folder of its own.
    pub fn variant(&self, name: &str) -> Self {
        Self { name: format!("{}/{name}", self.name), ..self.clone() }
    }

    /// Name of its facts, whatever the variant.
    pub fn facts(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }

    fn names(paths: &Paths) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(paths.root.join("fvp"))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().join("platform.toml").is_file())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn read<T: for<'de> Deserialize<'de>>(path: &std::path::Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is malformed", path.display()))
}
