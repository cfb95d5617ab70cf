//! Attacks on what has been lent and on the secure world's own memory, while the model is resident.
//!
//! Four attackers: the normal world's kernel by plain accesses, from every core; the same by calls; the Realm world's
//! monitor; and a hostile secure partition. Each try is one record; whoever reads them fails the run if one did not end in a fault or a refusal.

use alloc::{borrow::ToOwned, format, string::String, vec::Vec};
use core::ops::Range;

use flexserve_abi::{
    GRANULE_SIZE,
    el3::{Feature, Gpi, fid},
    ffa::{EndpointId, PROBE_SERVICE},
    probe::{Op, REALM_PROBE},
};
use flexserve_client::{
    Conduit, Registers, el3,
    ffa::{Ffa, Function, Region, Transfer},
    job::{Attack, Record, Target},
    probe::{self, Outcome},
    registers,
};

use crate::{
    cores,
    exceptions::{self, Fault},
    record,
    session::Session,
    system::{Smc, System},
};

/// First address that this world's tables do not reach: such a target is an address of the secure world's own map.
const END_OF_MAP: u64 = 1 << 39;
/// `RMI_GRANULE_DELEGATE` (Arm DEN0137): the normal world gives a granule to the Realm world.
const RMI_GRANULE_DELEGATE: u32 = 0xc400_0151;

/// The world of this program.
fn this_world() -> &'static str {
    if exceptions::level() == 2 { "NS-EL2" } else { "NS-EL1" }
}

/// The world of the test RMM.
const R_EL2: &str = "R-EL2";
/// Name of the target that says there is a Realm world.
const RMM: &str = "rmm";

/// Tries everything, from every core: first from those that run, then from the `lent` ones too, which are taken back for it.
///
/// # Errors
///
/// An attacker could not be started. That an attack succeeds is no error here, its record says so.
pub fn run(
    system: &mut System,
    session: &Session,
    targets: &[Target],
    lent: Range<usize>,
) -> Result<(), String> {
    let mut places = lent_places(session);
    places.extend(targets.iter().map(|target| (target.name.clone(), target.base)));
    let hostile = system
        .ffa
        .find_partition(PROBE_SERVICE)
        .map_err(|e| format!("looking for the hostile partition, which --attack loads: {e}"))?;
    let backend = el3::feature(system.ffa.conduit(), Feature::Backend);
    let from_core = |core| {
        by_access(core, &places, backend)?;
        by_hypervisor_call(core)?;
        if places.iter().any(|(name, _)| name == RMM) {
            by_realm(core, &places, backend)?;
        }
        by_partition(core, hostile, &places)
    };
    cores::online().try_for_each(from_core)?;
    by_call(system, session, targets);
    by_calls_of_partition(hostile, session)?;
    lent.clone().try_for_each(cores::take_back)?;
    lent.into_iter().try_for_each(from_core)
}

/// Calls from another core.
struct OnCore(usize);

impl Conduit for OnCore {
    fn call(&mut self, registers: Registers) -> Registers {
        // A core that is online takes the task.
        cores::run(self.0, move || Smc.call(registers)).unwrap_or([u64::MAX; 18])
    }
}

/// Granules worth attacking: three of a model segment, one of the working memory.
fn lent_places(session: &Session) -> Vec<(String, u64)> {
    let mut places = Vec::new();
    if let Some(segment) = session.lent.get(1) {
        let pages = &segment.pages;
        for (which, page) in
            [("first", pages[0]), ("middle", pages[pages.len() / 2]), ("last", pages[pages.len() - 1])]
        {
            places.push((format!("{which} lent granule"), page));
        }
    }
    if let Some(workspace) = session.lent.last() {
        places.push(("workspace granule".to_owned(), workspace.pages[workspace.pages.len() / 2]));
    }
    places
}

/// Loads, stores and branches of this world on one core.
fn by_access(core: usize, places: &[(String, u64)], backend: u64) -> Result<(), String> {
    for (name, address) in places.iter().filter(|(_, address)| *address < END_OF_MAP) {
        let address = *address;
        let read = cores::run(core, move || exceptions::read(address).map(drop))?;
        report_access((this_world(), core), "read", name, read.err(), backend);
        // SAFETY: the address belongs to another world. If the write goes through, the system is broken, and the record
        // and the model's answer show it.
        let written = cores::run(core, move || unsafe { exceptions::write(address, 0x5a5a_5a5a) })?;
        report_access((this_world(), core), "write", name, written.err(), backend);
        // SAFETY: as above.
        let executed = cores::run(core, move || unsafe { exceptions::execute(address) })?;
        report_access((this_world(), core), "execute", name, executed.err(), backend);
    }
    Ok(())
}

/// The same at R-EL2, by a call of the test RMM that exists for this.
fn by_realm(core: usize, places: &[(String, u64)], backend: u64) -> Result<(), String> {
    for (name, address) in places.iter().filter(|(name, address)| name != RMM && *address < END_OF_MAP) {
        for (kind, what) in [(0, "read"), (1, "write"), (2, "execute")] {
            let answer = OnCore(core).call(registers(REALM_PROBE, &[kind, *address]));
            let [0, esr, far, ..] = answer else {
                return Err(format!("the RMM does not know the attack tests' call: x0 = {:#x}", answer[0]));
            };
            let fault = Fault { esr, far };
            report_access((R_EL2, core), what, name, (esr != 0).then_some(fault), backend);
        }
    }
    Ok(())
}

/// A world at EL1 calls EL2, which is not its own.
fn by_hypervisor_call(core: usize) -> Result<(), String> {
    if exceptions::level() == 1 {
        let fault = cores::run(core, exceptions::call_hypervisor)?.err();
        let repelled = fault.is_some_and(Fault::is_undefined);
        report_fault((this_world(), core), "HVC".to_owned(), fault, repelled);
    }
    Ok(())
}

/// An access is repelled by the fault that EL3's mechanism gives it, and by no other.
fn report_access(from: (&str, usize), what: &str, name: &str, fault: Option<Fault>, backend: u64) {
    let repelled = fault.is_some_and(|fault| fault.is_stopped_by(backend));
    report_fault(from, format!("{what} {name}"), fault, repelled);
}

fn report_fault((world, core): (&str, usize), name: String, fault: Option<Fault>, repelled: bool) {
    record::emit(&Record::Attack(Attack {
        name,
        world: world.to_owned(),
        core: core as u32,
        esr: fault.map_or(0, |fault| fault.esr),
        far: fault.map_or(0, |fault| fault.far),
        faulted: repelled,
    }));
}

fn report_call(world: &str, name: String, refused: bool) {
    record::emit(&Record::Attack(Attack {
        name,
        world: world.to_owned(),
        faulted: refused,
        ..Attack::default()
    }));
}

/// Calls to EL3, the SPMC and the RMM that would lead around the protection.
fn by_call(system: &mut System, session: &Session, targets: &[Target]) {
    let Some(segment) = session.lent.get(1) else { return };
    let page = segment.pages[0];
    let region = Region { address: page, page_cnt: 1 };
    let to = session.partition;

    let refused = system.ffa.reclaim(segment.handle).is_err();
    report_call(this_world(), "FFA_MEM_RECLAIM of a handle that the partition holds".to_owned(), refused);

    for (transfer, name) in [
        (Transfer::Lend, "FFA_MEM_LEND of a lent granule"),
        (Transfer::Share, "FFA_MEM_SHARE of a lent granule"),
        (Transfer::Donate, "FFA_MEM_DONATE of a lent granule"),
    ] {
        let refused = system.ffa.transfer(transfer, to, &[region]).is_err();
        report_call(this_world(), name.to_owned(), refused);
    }
    for target in targets {
        for (transfer, name) in [(Transfer::Lend, "FFA_MEM_LEND"), (Transfer::Share, "FFA_MEM_SHARE")] {
            let region = Region { address: target.base & !(GRANULE_SIZE as u64 - 1), page_cnt: 1 };
            let refused = system.ffa.transfer(transfer, to, &[region]).is_err();
            report_call(this_world(), format!("{name} of {}", target.name), refused);
        }
    }

    report_call(this_world(), "FFA_RXTX_MAP over a lent granule".to_owned(), map_buffer_over(system, page));

    for gpi in [Gpi::NonSecure, Gpi::Secure] {
        for (name, call) in [
            ("GRANULE_SET", registers(fid::GRANULE_SET, &[page, 1, gpi as u64])),
            ("GRANULE_SET_LIST", registers(fid::GRANULE_SET_LIST, &[gpi as u64, page | 1])),
        ] {
            let refused = system.ffa.conduit().call(call)[0] != 0;
            report_call(this_world(), format!("{name} of a lent granule to {gpi:?}"), refused);
        }
    }
    if targets.iter().any(|target| target.name == RMM) {
        let refused = system.ffa.conduit().call(registers(RMI_GRANULE_DELEGATE, &[page]))[0] != 0;
        report_call(this_world(), "RMI_GRANULE_DELEGATE of a lent granule".to_owned(), refused);
    }
}

/// Tries to make a lent granule the RX buffer, into which the SPMC writes; answers whether that was refused.
fn map_buffer_over(system: &mut System, page: u64) -> bool {
    let (tx, rx) = system.buffers;
    let mut refused = system.ffa.unmap_buffers().is_ok();
    for (tx, rx) in [(tx, page), (page, rx)] {
        if system.ffa.simple(Function::RxTxMap64, &[tx, rx, 1]).is_ok() {
            refused = false;
            let _ = system.ffa.unmap_buffers();
        }
    }
    refused & system.ffa.map_buffers(tx, rx).is_ok()
}

/// Accesses of the hostile secure partition, which runs on the core that asks it.
fn by_partition(core: usize, hostile: EndpointId, places: &[(String, u64)]) -> Result<(), String> {
    // Its own image is the one place that it may reach.
    for (name, address) in places.iter().filter(|(name, _)| name != "hostile_partition") {
        for (op, what) in [(Op::Read, "read"), (Op::Write, "write"), (Op::Execute, "execute")] {
            let refused = send(core, hostile, op, *address)? == Outcome::Aborted;
            record::emit(&Record::Attack(Attack {
                name: format!("{what} {name}"),
                world: "S-EL0".to_owned(),
                core: core as u32,
                faulted: refused,
                ..Attack::default()
            }));
        }
    }
    Ok(())
}

/// Calls of the hostile secure partition to the SPMC and to EL3.
fn by_calls_of_partition(hostile: EndpointId, session: &Session) -> Result<(), String> {
    for (index, lent) in session.lent.iter().enumerate() {
        let refused = send(0, hostile, Op::Retrieve, lent.handle)? != Outcome::Answered(0);
        report_call("S-EL0", format!("FFA_MEM_RETRIEVE_REQ of handle {index} of the model"), refused);
    }
    if let Some(page) = session.lent.get(1).and_then(|segment| segment.pages.first()) {
        let refused = send(0, hostile, Op::GranuleSet, *page)? != Outcome::Answered(0);
        report_call("S-EL0", "GRANULE_SET of a lent granule".to_owned(), refused);
    }
    Ok(())
}

fn send(core: usize, hostile: EndpointId, op: Op, argument: u64) -> Result<Outcome, String> {
    probe::probe(&mut Ffa::new(OnCore(core), &mut []), hostile, op, argument, &mut || {})
        .map_err(|e| format!("asking the hostile partition for {op:?}: {e}"))
}
