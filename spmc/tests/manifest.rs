//! SP packages and manifests: what is read, and what is refused.

use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use flexserve_abi::ffa::{LLM_SERVICE, UuidRegisters};
use flexserve_spmc::manifest::{Error, Manifest, Place, package, places};

/// Bytes of a partition's region.
const REGION: usize = 0x2_0000;
const MANIFEST_OFFSET: usize = 0x1000;

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn node(name: &str, properties: &[(&str, Vec<u8>)]) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new(name).unwrap();
    for (name, value) in properties {
        node.add_property(DeviceTreeProperty::new(*name, value.as_slice()).unwrap());
    }
    node
}

fn dtb(properties: &[(&str, Vec<u8>)], children: Vec<DeviceTreeNode>) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    for (name, value) in properties {
        tree.root.add_property(DeviceTreeProperty::new(*name, value.as_slice()).unwrap());
    }
    children.into_iter().for_each(|child| tree.root.add_child(child));
    tree.to_dtb()
}

fn properties() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("uuid", words(&[0x6e2b_1c6f, 0x0b4d_0a9d, 0x7c1f_558a, 0xd190_3a4e])),
        ("messaging-method", words(&[0x200])),
        ("entrypoint-offset", words(&[0x4000])),
        ("flexserve,memory-size", words(&[0x1_c000])),
        ("flexserve,restart-on-abort", Vec::new()),
    ]
}

/// A region with a package: its head's words after the magic number, and its manifest.
fn region(head: [u32; 5], manifest: &[u8]) -> Vec<u8> {
    let mut region = vec![0; REGION];
    region[..4].copy_from_slice(b"SPKG");
    for (i, word) in head.iter().enumerate() {
        region[4 + 4 * i..8 + 4 * i].copy_from_slice(&word.to_le_bytes());
    }
    region[MANIFEST_OFFSET..MANIFEST_OFFSET + manifest.len()].copy_from_slice(manifest);
    region
}

fn head(manifest: &[u8]) -> [u32; 5] {
    [2, MANIFEST_OFFSET as u32, manifest.len() as u32, 0x4000, 0x1234]
}

#[test]
fn a_package_is_read() {
    let manifest = dtb(&properties(), Vec::new());
    assert_eq!(
        package(&region(head(&manifest), &manifest)),
        Ok(Manifest {
            uuid: UuidRegisters::new(LLM_SERVICE),
            messaging: 0x200,
            image_offset: 0x4000,
            image_size: 0x2000,
            memory_size: 0x1_c000,
            restart: true,
        })
    );
}

#[test]
fn sptool_may_have_padded_the_manifest() {
    let manifest = dtb(&properties(), Vec::new());
    let mut head = head(&manifest);
    head[2] = 0x1000;
    assert!(package(&region(head, &manifest)).is_ok());
}

#[test]
fn every_property_is_needed_and_has_its_type() {
    for i in 0..4 {
        let mut missing = properties();
        let (name, _) = missing.remove(i);
        let manifest = dtb(&missing, Vec::new());
        assert_eq!(package(&region(head(&manifest), &manifest)), Err(Error::Property(name)));
        let mut long = properties();
        long[i].1.push(0);
        let manifest = dtb(&long, Vec::new());
        assert_eq!(package(&region(head(&manifest), &manifest)), Err(Error::Property(name)));
    }
}

#[test]
fn sizes_and_offsets_fit_the_region() {
    let manifest = dtb(&properties(), Vec::new());
    let refused = |at: usize, value: u32| {
        let mut head = head(&manifest);
        head[at] = value;
        package(&region(head, &manifest))
    };
    assert_eq!(refused(0, 3), Err(Error::NoPackage));
    assert_eq!(refused(0, 0), Err(Error::NoPackage));
    assert_eq!(refused(1, REGION as u32), Err(Error::Layout));
    assert_eq!(refused(1, u32::MAX), Err(Error::Layout));
    assert_eq!(refused(2, u32::MAX), Err(Error::Layout));
    assert_eq!(refused(2, 4), Err(Error::Malformed));
    assert_eq!(refused(3, 0x5000), Err(Error::Layout));
    assert_eq!(refused(4, 0), Err(Error::Layout));
    assert_eq!(refused(4, 0x1_c001), Err(Error::Layout));
    assert_eq!(refused(4, u32::MAX), Err(Error::Layout));
    assert!(refused(4, 0x1_c000).is_ok());
    for (i, value) in [(2, 0x4004), (3, 0x1_c001), (3, 0x1_d000), (3, u32::MAX)] {
        let mut changed = properties();
        changed[i].1 = words(&[value]);
        let manifest = dtb(&changed, Vec::new());
        let mut head = head(&manifest);
        if i == 2 {
            head[3] = value;
        }
        assert_eq!(package(&region(head, &manifest)), Err(Error::Layout), "{value:#x}");
    }
}

#[test]
fn what_is_no_package_is_refused() {
    assert_eq!(package(&[]), Err(Error::NoPackage));
    assert_eq!(package(&[0; 64]), Err(Error::NoPackage));
    let manifest = dtb(&properties(), Vec::new());
    let mut region = region(head(&manifest), &manifest);
    region[MANIFEST_OFFSET] = 0;
    assert_eq!(package(&region), Err(Error::Malformed));
}

fn partition(name: &str, id: u32) -> DeviceTreeNode {
    node(
        name,
        &[
            ("is_ffa_partition", Vec::new()),
            ("id", words(&[id])),
            ("load_address", words(&[0, 0x0e50_0000])),
            ("mem_size", words(&[0x40_0000])),
        ],
    )
}

#[test]
fn the_core_manifest_lists_partitions() {
    let mut hypervisor = node("hypervisor", &[]);
    hypervisor.add_child(partition("llm", 0x8001));
    hypervisor.add_child(node("something-else", &[]));
    hypervisor.add_child(partition("hostile", 0x8002));
    let mut core = dtb(&[], vec![hypervisor]);
    core.resize(4096, 0);
    let expected = [0x8001, 0x8002].map(|id| Place { id, base: 0x0e50_0000, size: 0x40_0000 });
    assert_eq!(*places::<4>(&core).unwrap(), expected);
    assert_eq!(places::<1>(&core), Err(Error::Layout), "more than there is room for");
    assert_eq!(places::<4>(&core[..64]), Err(Error::Malformed));
    assert_eq!(places::<4>(&dtb(&[], Vec::new())), Err(Error::Property("hypervisor")));
}
