//! What the loaded images say of themselves: the SPMC's core manifest, SP packages and partition manifests.

use dtoolkit::{
    Node as _, Property as _,
    fdt::{Fdt, FdtNode},
};
use flexserve_abi::ffa::{EndpointId, UuidRegisters};
use zerocopy::{FromBytes, Immutable, KnownLayout, little_endian::U32};

/// Head of an SP package (TF-A's sptool, versions 1 and 2).
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Package {
    magic: [u8; 4],
    version: U32,
    manifest_offset: U32,
    manifest_size: U32,
    image_offset: U32,
    image_size: U32,
}
const _: () = assert!(size_of::<Package>() == 24);

const PAGE: u32 = 4096;

/// Why an image cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No SP package lies there.
    NoPackage,
    /// A size or an offset does not fit the region.
    Layout,
    /// The device tree is malformed.
    Malformed,
    /// A property is missing, or is not of its type.
    Property(&'static str),
}

/// A partition as the core manifest knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its ID.
    pub id: EndpointId,
    /// Where its package was loaded.
    pub base: u64,
    /// Bytes of its region.
    pub size: u64,
}

/// A partition as its package describes it. Offsets are relative to the package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The service that it offers.
    pub uuid: UuidRegisters,
    /// Its `messaging-method`: bits of the partition properties (DEN0077A v1.2, table 6.2).
    pub messaging: u32,
    /// Offset of its image, the first byte of which is its entry point.
    pub image_offset: u32,
    /// Bytes of its image, in whole pages.
    pub image_size: u32,
    /// Bytes of its memory from the image's first byte on.
    pub memory_size: u32,
    /// Whether it starts anew after an abort.
    pub restart: bool,
}

fn number(node: &FdtNode, name: &'static str) -> Result<u32, Error> {
    let bytes = node.property(name).ok_or(Error::Property(name))?;
    let bytes: [u8; 4] = bytes.value().try_into().map_err(|_| Error::Property(name))?;
    Ok(u32::from_be_bytes(bytes))
}

/// A number of one or two cells.
fn address(node: &FdtNode, name: &'static str) -> Result<u64, Error> {
    let property = node.property(name).ok_or(Error::Property(name))?;
    let bytes = property.value();
    match bytes.len() {
        4 | 8 => Ok(bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))),
        _ => Err(Error::Property(name)),
    }
}

/// The device tree at the start of `bytes`. Boot loaders copy more than the tree has.
fn tree(bytes: &[u8]) -> Result<Fdt<'_>, Error> {
    let size = bytes.get(4..8).and_then(|size| size.try_into().ok()).map(u32::from_be_bytes);
    let tree = size.and_then(|size| bytes.get(..size as usize)).ok_or(Error::Malformed)?;
    Fdt::new(tree).map_err(|_| Error::Malformed)
}

/// The partitions that a core manifest lists, in `hypervisor`.
///
/// # Errors
///
/// [`Error::Malformed`], [`Error::Property`].
pub fn places<const N: usize>(dtb: &[u8]) -> Result<heapless::Vec<Place, N>, Error> {
    let tree = tree(dtb)?;
    let node = tree.root().child("hypervisor").ok_or(Error::Property("hypervisor"))?;
    let mut places = heapless::Vec::new();
    for node in node.children().filter(|node| node.property("is_ffa_partition").is_some()) {
        let place = Place {
            id: number(&node, "id")? as EndpointId,
            base: address(&node, "load_address")?,
            size: number(&node, "mem_size")?.into(),
        };
        places.push(place).map_err(|_| Error::Layout)?;
    }
    Ok(places)
}

/// Parses the SP package at the start of a partition's region.
///
/// # Errors
///
/// Any [`Error`].
pub fn package(region: &[u8]) -> Result<Manifest, Error> {
    let (head, _) = Package::read_from_prefix(region).map_err(|_| Error::NoPackage)?;
    if head.magic != *b"SPKG" || !(1..=2).contains(&head.version.get()) {
        return Err(Error::NoPackage);
    }
    let manifest = head.manifest_offset.get() as usize;
    let dtb = manifest
        .checked_add(head.manifest_size.get() as usize)
        .and_then(|end| region.get(manifest..end))
        .ok_or(Error::Layout)?;
    let tree = tree(dtb)?;
    let root = tree.root();
    let image_offset = number(&root, "entrypoint-offset")?;
    let memory_size = number(&root, "flexserve,memory-size")?;
    let image_size = head.image_size.get().checked_next_multiple_of(PAGE).ok_or(Error::Layout)?;
    let end = u64::from(image_offset) + u64::from(memory_size);
    if head.image_offset.get() != image_offset
        || !image_offset.is_multiple_of(PAGE)
        || !memory_size.is_multiple_of(PAGE)
        || image_size == 0
        || image_size > memory_size
        || end > region.len() as u64
    {
        return Err(Error::Layout);
    }
    Ok(Manifest {
        uuid: uuid(&root)?,
        messaging: number(&root, "messaging-method")?,
        image_offset,
        image_size,
        memory_size,
        restart: root.property("flexserve,restart-on-abort").is_some(),
    })
}

/// Four words, as FF-A's registers carry them: byte 0 of the UUID in bits `[7:0]` of the first.
fn uuid(root: &FdtNode) -> Result<UuidRegisters, Error> {
    let property = root.property("uuid").ok_or(Error::Property("uuid"))?;
    let bytes = property.value();
    let (words, []) = bytes.as_chunks::<4>() else { return Err(Error::Property("uuid")) };
    let [a, b, c, d] = words else { return Err(Error::Property("uuid")) };
    let word = |bytes: &[u8; 4]| u64::from(u32::from_be_bytes(*bytes));
    Ok(UuidRegisters(word(b) << 32 | word(a), word(d) << 32 | word(c)))
}
