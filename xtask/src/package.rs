//! SP packages: the manifest and the image of a partition in one file, as TF-A's sptool makes them.

use crate::process;
use anyhow::{Context as _, Result, bail};
use std::{fs, path::Path};

/// Where a partition's image begins in its package (sptool's default, and `entrypoint-offset` in the manifests).
pub const IMAGE_OFFSET: u64 = 0x4000;
/// Where its manifest begins (sptool's default).
const MANIFEST_OFFSET: usize = 0x1000;
const VERSION: u32 = 1;

/// Compiles the device tree `manifest` and packs it with `image`.
///
/// # Errors
///
/// If `dtc` does not like the manifest, or it is too long.
pub fn pack(manifest: &Path, image: &[u8], out: &Path) -> Result<Vec<u8>> {
    let name = manifest.file_stem().unwrap_or_default().display();
    let dtb = out.join(format!("{name}.dtb"));
    let mut dtc = process::command("dtc");
    dtc.args(["-I", "dts", "-O", "dtb", "-o"]).arg(&dtb).arg(manifest);
    process::step(
        "Compiling a partition's manifest",
        &mut dtc,
        &out.join(format!("log/{name}-manifest.log")),
    )?;
    join(&fs::read(&dtb)?, image).with_context(|| format!("{}", manifest.display()))
}

fn join(dtb: &[u8], image: &[u8]) -> Result<Vec<u8>> {
    let offset = usize::try_from(IMAGE_OFFSET)?;
    if dtb.len() > offset - MANIFEST_OFFSET {
        bail!("the manifest has {} bytes, more than the {}", dtb.len(), offset - MANIFEST_OFFSET);
    }
    let mut package = b"SPKG".to_vec();
    for word in [VERSION, MANIFEST_OFFSET.try_into()?, dtb.len().try_into()?, offset.try_into()?] {
        package.extend(word.to_le_bytes());
    }
    package.extend(u32::try_from(image.len())?.to_le_bytes());
    package.resize(MANIFEST_OFFSET, 0);
    package.extend(dtb);
    package.resize(offset, 0);
    package.extend(image);
    Ok(package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_says_where_its_parts_are() {
        let package = join(b"tree", b"image").unwrap();
        let words: Vec<u32> =
            package[4..24].chunks_exact(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect();
        assert_eq!(&package[..4], b"SPKG");
        assert_eq!(words, [1, 0x1000, 4, 0x4000, 5]);
        assert_eq!((&package[0x1000..0x1004], &package[0x4000..]), (&b"tree"[..], &b"image"[..]));
    }

    #[test]
    fn rejects_a_manifest_that_reaches_into_the_image() {
        assert!(join(&[0; 0x3000], &[]).is_ok());
        assert!(join(&[0; 0x3001], &[]).is_err());
    }
}
