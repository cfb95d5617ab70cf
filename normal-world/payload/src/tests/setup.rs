//! FF-A's setup calls and the EL3 service, as the normal world sees them.

use alloc::{format, string::String};

use flexserve_abi::{
    GRANULE_SIZE,
    el3::{self, Feature, Gpi, Status, fid},
    ffa::{LLM_PARTITION, LLM_SERVICE, NORMAL_WORLD, SPMC},
};
use flexserve_client::{
    Conduit,
    ffa::{self, Code, Error, Function},
    registers,
};
use flexserve_platform::{EL3, SPMC as SPMC_MEMORY};

use super::{Bench, ensure};

const NOT_SUPPORTED: Error = Error::Code(Code::NotSupported);
/// `FFA_NOTIFICATION_BITMAP_CREATE`'s neighbour in the FF-A range that no version defines.
const UNDEFINED_FUNCTION: u32 = 0x8400_00e0;

/// `FFA_VERSION`, `FFA_ID_GET` and `FFA_SPM_ID_GET` answer what version 1.2 and the platform say.
pub fn versions_and_ids(bench: &mut Bench) -> Result<(), String> {
    let ffa = &mut bench.system.ffa;
    ensure!(ffa.version() == Ok(ffa::VERSION), "FFA_VERSION(1.2) = {:x?}", ffa.version());
    let old = ffa.raw(Function::Version, &[0x0002_0000])[0] as u32;
    ensure!(old == u32::MAX || old == ffa::VERSION, "FFA_VERSION(2.0) = {old:#x}");
    ensure!(ffa.version() == Ok(ffa::VERSION), "after that, FFA_VERSION(1.2) = {:x?}", ffa.version());
    ensure!(ffa.id() == Ok(NORMAL_WORLD), "FFA_ID_GET = {:x?}", ffa.id());
    ensure!(ffa.spm_id() == Ok(SPMC), "FFA_SPM_ID_GET = {:x?}", ffa.spm_id());
    Ok(())
}

/// `FFA_FEATURES` has what this client uses, and nothing that does not exist.
pub fn features(bench: &mut Bench) -> Result<(), String> {
    let ffa = &mut bench.system.ffa;
    for function in [
        Function::Error32,
        Function::Success32,
        Function::Version,
        Function::RxTxMap64,
        Function::RxTxUnmap,
        Function::IdGet,
        Function::Run32,
        Function::MsgSendDirectReq64_2,
        Function::MemLend32,
        Function::MemShare32,
        Function::MemReclaim,
        Function::MemFragTx,
    ] {
        let answer = ffa.features(function);
        ensure!(answer.is_ok(), "FFA_FEATURES({function:?}) = {answer:?}");
    }
    let unknown = ffa.simple(Function::Features, &[UNDEFINED_FUNCTION.into()]);
    ensure!(unknown == Err(NOT_SUPPORTED), "FFA_FEATURES of an undefined function = {unknown:x?}");
    let answer = ffa.conduit().call(registers(UNDEFINED_FUNCTION, &[]));
    let refused = answer[0] as u32 == u32::MAX
        || answer[0] as u32 == u32::from(Function::Error32) && answer[2] as u32 == u32::MAX;
    ensure!(refused, "an undefined function = {:#x} {:#x}", answer[0], answer[2]);
    Ok(())
}

/// `FFA_PARTITION_INFO_GET` and `_REGS` find the LLM partition by its service, and nobody by another.
pub fn partition_info(bench: &mut Bench) -> Result<(), String> {
    let ffa = &mut bench.system.ffa;
    let found = ffa.find_partition(LLM_SERVICE);
    ensure!(found == Ok(LLM_PARTITION), "the LLM service is at {found:x?}");
    let nobody = ffa.find_partition(LLM_SERVICE ^ 1);
    ensure!(nobody == Err(Error::NoPartition), "an unknown service is at {nobody:x?}");
    let count = ffa.partition_count();
    ensure!(matches!(count, Ok(1..)), "FFA_PARTITION_INFO_GET counts {count:?}");
    Ok(())
}

/// `FFA_RXTX_MAP` takes one pair of this world's own aligned pages, and `FFA_RXTX_UNMAP` gives it back.
pub fn buffers(bench: &mut Bench) -> Result<(), String> {
    let (tx, rx) = bench.system.buffers;
    let ffa = &mut bench.system.ffa;
    let twice = ffa.map_buffers(tx, rx);
    ensure!(twice == Err(Error::Code(Code::Denied)), "mapping twice: {twice:?}");
    ffa.unmap_buffers().map_err(|e| format!("unmapping: {e}"))?;
    let unmapped = ffa.unmap_buffers();
    let bad = [
        ("an odd address", tx + 8, rx, 1),
        ("no pages", tx, rx, 0),
        ("too many pages", tx, rx, 0x1_0000),
        ("the same page twice", tx, tx, 1),
        ("the SPMC's memory", tx, SPMC_MEMORY.base, 1),
        ("EL3's memory", EL3.base, rx, 1),
        ("no memory at all", tx, 0xffff_ffff_f000, 1),
    ]
    .map(|(what, tx, rx, pages)| (what, ffa.simple(Function::RxTxMap64, &[tx, rx, pages])));
    ffa.map_buffers(tx, rx).map_err(|e| format!("mapping again: {e}"))?;
    ensure!(
        unmapped == Err(Error::Code(Code::InvalidParameters)),
        "unmapping what is not mapped: {unmapped:?}"
    );
    for (what, answer) in bad {
        ensure!(matches!(answer, Err(Error::Code(_))), "mapping {what}: {answer:x?}");
    }
    Ok(())
}

/// The EL3 service tells its version and features, and moves or shows no granule for the normal world.
pub fn el3_service(bench: &mut Bench) -> Result<(), String> {
    let page = bench.system.pages.allocate(1).map_err(|e| format!("{e}"))?;
    bench.system.pages.release(&page);
    let mut call =
        |function, arguments: &[u64]| bench.system.ffa.conduit().call(registers(function, arguments));
    let version = call(fid::VERSION, &[])[0];
    ensure!(version == u64::from(el3::VERSION), "VERSION = {version:#x}");
    let granule = call(fid::FEATURES, &[Feature::GranuleSize as u64])[0];
    ensure!(granule == GRANULE_SIZE as u64, "the granule has {granule} bytes");
    let unknown = call(fid::FEATURES, &[u64::MAX])[0];
    ensure!(unknown == Status::NotSupported.code(), "an unknown feature is {unknown:#x}");

    let mine = call(fid::GRANULE_GET, &[page[0]]);
    ensure!(mine[..2] == [0, Gpi::NonSecure as u64], "GRANULE_GET of an own granule = {:x?}", &mine[..2]);
    let theirs = call(fid::GRANULE_GET, &[SPMC_MEMORY.base])[0];
    ensure!(
        Status::from_code(theirs) != Some(Status::Success),
        "GRANULE_GET of the SPMC's memory = {theirs:#x}"
    );
    for gpi in [Gpi::Secure, Gpi::NonSecure, Gpi::Realm, Gpi::Root, Gpi::Any] {
        for (name, function, arguments) in [
            ("GRANULE_SET", fid::GRANULE_SET, &[page[0], 1, gpi as u64][..]),
            ("GRANULE_SET_LIST", fid::GRANULE_SET_LIST, &[gpi as u64, page[0] | 1]),
        ] {
            let status = call(function, arguments)[0];
            let refused = matches!(Status::from_code(status), Some(Status::NotSupported | Status::Denied));
            ensure!(refused, "{name} to {gpi:?} by the normal world = {status:#x}");
        }
    }
    Ok(())
}
