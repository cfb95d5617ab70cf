//! A platform's facts, read from its folder in `fvp/`.

use crate::paths::Paths;
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::{collections::BTreeMap, fs, io, path::PathBuf};

/// How an emulator is called, if there is one.
const EMULATOR: &str = "qemu.toml";

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
    /// `qemu.toml`, where there is an emulator.
    machine: Option<Machine>,
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
    /// The Realm world's monitor, where there is one.
    pub rmm: Option<Region>,
    /// The normal world's stage-2 tables, where EL3 owns them.
    pub stage2_tables: Option<Region>,
    /// Where BL33 starts.
    pub payload: Base,
    /// RAM of the normal world, at most.
    pub dram: Region,
}

/// Bytes that the payload itself occupies at most: image, stacks and heap.
pub const PAYLOAD_MEMORY: u64 = 128 << 20;

impl Map {
    /// Checks an amount of RAM, as QEMU's `-m` takes it.
    ///
    /// # Errors
    ///
    /// If it is not a size, or less than the payload needs to start, or more than the firmware maps.
    pub fn check_memory(&self, text: &str) -> Result<()> {
        let Some(bytes) = size(text) else { bail!("{text:?} is no size of memory; for example: 3G, 768M") };
        let least = self.payload.base - self.dram.base + PAYLOAD_MEMORY;
        if bytes < least {
            bail!("{text} of memory is not enough: it takes {}M to start at all", least >> 20);
        }
        if bytes > self.dram.size {
            bail!("{text} of memory is more than the firmware's {}M", self.dram.size >> 20);
        }
        Ok(())
    }
}

/// Bytes, from a number with M (the default) or G behind it.
fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.strip_suffix(['G', 'g']) {
        Some(digits) => (digits, 30),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 20),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
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
    /// A folder of `fvp/` whose device trees and patches are this platform's too.
    pub common: String,
    /// make's targets beside BL31.
    pub targets: Vec<String>,
    /// BL31's functions in front of which the EL3 service puts its own.
    pub wrap: Vec<String>,
    /// Who brings the partitions' packages to their places.
    pub packages: Packages,
    /// make's variables.
    pub make: BTreeMap<String, toml::Value>,
    /// make's variables that name a device tree in the platform's folder.
    pub device_trees: BTreeMap<String, String>,
    /// The flash image.
    pub flash: Flash,
}

/// Who brings the partitions' packages to their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packages {
    /// BL2 loads them from the firmware image package.
    Bl2,
    /// They lie in BL32's image, behind the SPMC.
    Bl32,
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
            machine: Some(folder.join(EMULATOR))
                .filter(|file| file.is_file())
                .map(|file| read(&file))
                .transpose()?,
            folder,
        })
    }

    /// Files of this platform, its own and those that it shares, in the order of their names: those in `subfolder` whose
    /// extension is one of `extensions`.
    ///
    /// # Errors
    ///
    /// If a folder cannot be read; a missing one is an empty one.
    pub fn files(&self, subfolder: &str, extensions: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for folder in [self.folder.clone(), self.folder.with_file_name(&self.firmware.common)] {
            let entries = match fs::read_dir(folder.join(subfolder)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.with_context(|| format!("cannot read {}", folder.display()))?,
            };
            for entry in entries {
                let path = entry?.path();
                let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
                if extensions.contains(&extension) {
                    files.push(path);
                }
            }
        }
        files.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
        Ok(files)
    }

    /// One such file.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        let folders = [self.folder.clone(), self.folder.with_file_name(&self.firmware.common)];
        let found = folders.into_iter().map(|folder| folder.join(name)).find(|path| path.is_file());
        found.with_context(|| format!("{} has no {name}", self.name))
    }

    /// Where TF-A's makefiles put their output, below their `BUILD_BASE`.
    pub fn build_folder(&self) -> String {
        let variable = |name| self.firmware.make.get(name);
        let port = variable("PLAT").and_then(toml::Value::as_str).unwrap_or_default();
        let debug = variable("DEBUG").and_then(toml::Value::as_integer) == Some(1);
        format!("{port}/{}", if debug { "debug" } else { "release" })
    }

    /// The same platform with images of its own, in a folder of its own.
    pub fn variant(&self, name: &str) -> Self {
        Self { name: format!("{}/{name}", self.name), ..self.clone() }
    }

    /// Name of its facts, whatever the variant.
    pub fn facts(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }

    /// The emulator.
    ///
    /// # Errors
    ///
    /// If the platform has none.
    pub fn machine(&self) -> Result<&Machine> {
        self.machine
            .as_ref()
            .with_context(|| format!("{} has no emulator to run on: no {EMULATOR}", self.name))
    }

    /// Every platform that can be run here, in the order of their names.
    pub fn emulated(paths: &Paths) -> Vec<String> {
        let has_emulator = |name: &String| paths.root.join("fvp").join(name).join(EMULATOR).is_file();
        Self::names(paths).into_iter().filter(has_emulator).collect()
    }

    /// Every platform, in the order of their names.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        assert_eq!(size("3G"), Some(3 << 30));
        assert_eq!(size("768M"), size("768"));
        assert_eq!(size("x"), None);
        assert_eq!(size("-1G"), None);
        assert_eq!(size("99999999999999999999"), None);
        assert_eq!(size("99999999999G"), None);
    }

    /// A number of `table`, which has it.
    fn number(table: &toml::Value, key: &str) -> u64 {
        table[key].as_integer().unwrap().try_into().unwrap()
    }

    #[test]
    fn no_region_of_a_platform_overlaps_another() {
        let paths = Paths::find().unwrap();
        for name in Platform::names(&paths) {
            let facts: toml::Table = read(&paths.root.join("fvp").join(&name).join("platform.toml")).unwrap();
            let mut regions = Vec::new();
            for (key, value) in &facts {
                let list = value.as_array().map_or_else(|| vec![value.clone()], Clone::clone);
                for table in list.iter().filter(|table| table.get("size").is_some()) {
                    let base = number(table, "base");
                    regions.push((base, base + number(table, "size"), key));
                }
            }
            // What holds others, or is a part of one.
            regions.retain(|(base, _, key)| {
                let el3 = &facts["el3"];
                let in_el3 = (number(el3, "base")..number(el3, "base") + number(el3, "size")).contains(base);
                *key != "dram" && (*key == "el3" || !in_el3)
            });
            regions.sort_unstable();
            for pair in regions.windows(2) {
                assert!(pair[0].1 <= pair[1].0, "{name}: {} overlaps {}", pair[0].2, pair[1].2);
            }
            assert!(regions.len() > 4, "{name}: {regions:?}");
        }
    }

    #[test]
    fn memory_is_refused_just_outside_its_bounds() {
        let map = Platform::load(&Paths::find().unwrap(), "qemu-rme").unwrap().map;
        for good in ["640M", "3G", "3072M"] {
            map.check_memory(good).unwrap();
        }
        for bad in ["639M", "3073M", "0", "lots"] {
            assert!(map.check_memory(bad).is_err(), "{bad}");
        }
    }
}
