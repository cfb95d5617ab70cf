//! The EL3 service's calls, from the normal world (docs/abi.md, DESIGN contract 1).

use alloc::format;

use flexserve_abi::el3::{self, Counter, Feature, Gpi, Status, fid};
use flexserve_normal_runtime::exceptions;
use flexserve_platform::{DRAM, EL3, GIC_DISTRIBUTOR, LENDABLE, LLM_PARTITION, SPMC, UART_BASE};

use crate::{
    bench::{GRANULE, call, on_core, other_core, status},
    suite::{Cases, Failure, Verdict, ensure},
};

const ABI: &str = "docs/abi.md, EL3 service";
const RULE_1: &str = "DESIGN rule 1";
const RULE_5: &str = "DESIGN rule 5";

const NOT_SUPPORTED: i64 = Status::NotSupported as i64;
const INVALID: i64 = Status::InvalidParameters as i64;
const DENIED: i64 = Status::Denied as i64;

/// An address of which nothing may ever move, by name. `None` for what a port does not have.
pub const FIXED: [(&str, u64); 7] = [
    // Not its first granule, which TF-A's port to QEMU leaves to all worlds in the granule protection tables.
    ("EL3's memory", EL3.base + GRANULE),
    ("the last granule of EL3's memory", EL3.base + EL3.size - GRANULE),
    ("the SPMC's memory", SPMC.base),
    ("the LLM partition's image", LLM_PARTITION.base),
    ("the normal world's UART", UART_BASE),
    ("the interrupt controller", GIC_DISTRIBUTOR),
    ("the device tree's memory", DRAM.base),
];

/// Addresses of no lendable bank, or malformed, by name.
pub const OUTSIDE: [(&str, u64); 8] = [
    ("the granule before the first bank", LENDABLE[0].base - GRANULE),
    (
        "the granule behind the last bank",
        LENDABLE[LENDABLE.len() - 1].base + LENDABLE[LENDABLE.len() - 1].size,
    ),
    ("an address one byte into a granule", LENDABLE[0].base + 1),
    ("an address in the middle of a granule", LENDABLE[0].base + GRANULE / 2),
    ("an address in the last 8 bytes of a granule", LENDABLE[0].base + GRANULE - 8),
    ("an address beyond every physical one", 1 << 52),
    ("the last granule of the 64-bit space", u64::MAX - (GRANULE - 1)),
    ("the last byte of the 64-bit space", u64::MAX),
];

pub fn cases(cases: &mut Cases) {
    versions(cases);
    statistics(cases);
    moves_are_not_for_this_world(cases);
    states(cases);
    for number in [0x05, 0x0f, 0x13, 0x1f, 0x21, 0x7f, 0xff] {
        let function = fid::VERSION | number;
        cases.add("el3", format!("undefined call {function:#x} is NOT_SUPPORTED"), ABI, move |_| {
            refused(function, &[0; 4], &[NOT_SUPPORTED])
        });
    }
    for (name, number) in [("returns at once", 0xf0), ("delegates", 0xf1), ("undelegates", 0xf2)] {
        let what = format!("the measurements' call that {name} is not in this firmware");
        cases.add("el3", what, ABI, move |_| {
            refused(fid::VERSION | number, &[LENDABLE[0].base], &[NOT_SUPPORTED])
        });
    }
}

fn versions(cases: &mut Cases) {
    cases.add("el3", "VERSION is 1.x", ABI, |_| {
        let version = call(fid::VERSION, &[])[0];
        ensure!(version >> 16 == u64::from(el3::VERSION >> 16), "{version:#x}");
        Ok(())
    });
    cases.add("el3", "VERSION does not look at its arguments", RULE_5, |_| {
        let (plain, garbage) = (call(fid::VERSION, &[])[0], call(fid::VERSION, &[u64::MAX; 17])[0]);
        ensure!(plain == garbage, "{plain:#x}, with arguments {garbage:#x}");
        Ok(())
    });
    cases.add("el3", "every core is told the same version and features", ABI, |_| {
        let all = || {
            let feature = |i| call(fid::FEATURES, &[i])[0];
            (call(fid::VERSION, &[])[0], [feature(0), feature(1), feature(2), feature(3)])
        };
        let (here, there) = (all(), on_core(other_core()?, all)?);
        ensure!(here == there, "{here:x?}, on another core {there:x?}");
        Ok(())
    });
    let feature = |index: Feature| call(fid::FEATURES, &[index as u64])[0];
    cases.add("el3", "FEATURES: the granule has 4096 bytes", ABI, move |_| {
        let bytes = feature(Feature::GranuleSize);
        ensure!(bytes == GRANULE, "{bytes}");
        Ok(())
    });
    cases.add("el3", "FEATURES: physical addresses reach all lendable banks", ABI, move |_| {
        let bits = feature(Feature::PhysicalAddressBits);
        ensure!((32..=52).contains(&bits), "{bits} bits");
        let end = LENDABLE.iter().map(|bank| bank.end()).max().unwrap_or(0);
        ensure!(end - 1 >> bits == 0, "{bits} bits, but a bank ends at {end:#x}");
        Ok(())
    });
    cases.add("el3", "FEATURES: the backend is one of the known ones", ABI, move |_| {
        let backend = feature(Feature::Backend);
        ensure!((1..=2).contains(&backend), "{backend}");
        Ok(())
    });
    cases.add("el3", "FEATURES: a call has a batch limit", "DESIGN rule 4", move |_| {
        let limit = feature(Feature::BatchLimit);
        ensure!((1..=4096).contains(&limit), "{limit}");
        Ok(())
    });
    for (name, index) in [("2^16", 1 << 16), ("2^32", 1 << 32), ("2^64 - 1", u64::MAX)] {
        cases.add("el3", format!("FEATURES of index {name} is NOT_SUPPORTED"), RULE_5, move |_| {
            refused(fid::FEATURES, &[index], &[NOT_SUPPORTED])
        });
    }
}

fn statistics(cases: &mut Cases) {
    for (counter, name) in Counter::ALL {
        cases.add("el3", format!("STATS tells {name}"), ABI, move |_| {
            let answer = call(fid::STATS, &[counter as u64]);
            ensure!(status(&answer) == 0, "x0 = {:#x}", answer[0]);
            Ok(())
        });
    }
    for (name, index) in [("2^16", 1 << 16), ("2^32", 1 << 32), ("2^64 - 1", u64::MAX)] {
        cases.add("el3", format!("STATS of index {name} is INVALID_PARAMETERS"), RULE_5, move |_| {
            refused(fid::STATS, &[index], &[INVALID])
        });
    }
    cases.add("el3", "a refused call counts once", ABI, |_| {
        let refusals = || call(fid::STATS, &[Counter::Refused as u64])[1];
        let before = refusals();
        refused(fid::GRANULE_GET, &[1], &[INVALID])?;
        let after = refusals();
        ensure!(after == before + 1, "{before}, then {after}");
        Ok(())
    });
    cases.add("el3", "a call that is answered does not count as refused", ABI, |_| {
        let refusals = || call(fid::STATS, &[Counter::Refused as u64])[1];
        let before = refusals();
        call(fid::VERSION, &[]);
        call(fid::GRANULE_GET, &[LENDABLE[0].base]);
        let after = refusals();
        ensure!(after == before, "{before}, then {after}");
        Ok(())
    });
}

/// Whatever its arguments, a call that moves granules is refused to this world, and nothing moves.
fn moves_are_not_for_this_world(cases: &mut Cases) {
    for gpi in [Gpi::NoAccess, Gpi::Secure, Gpi::NonSecure, Gpi::Root, Gpi::Realm, Gpi::Any] {
        for list in [false, true] {
            let name = if list { "GRANULE_SET_LIST" } else { "GRANULE_SET" };
            let what = format!("{name} of an own page to {gpi:?} is refused");
            cases.add("el3", what, ABI, move |bench| {
                let page = bench.patterned(1)?[0];
                move_refused(page, gpi as u64, list)?;
                let read = exceptions::read(page);
                ensure!(read.is_ok_and(|value| value != 0), "afterwards the page reads {read:x?}");
                Ok(())
            });
        }
    }
    for (name, address) in FIXED {
        cases.add("el3", format!("GRANULE_SET of {name} is refused"), RULE_1, move |_| {
            move_refused(address, Gpi::NonSecure as u64, false)?;
            move_refused(address, Gpi::NonSecure as u64, true)
        });
    }
    cases.add("el3", "GRANULE_SET with 2^64 - 1 in all arguments is refused", RULE_5, |_| {
        refused(fid::GRANULE_SET, &[u64::MAX; 17], &[NOT_SUPPORTED, DENIED])
    });
    cases.add("el3", "GRANULE_SET_LIST with 2^64 - 1 in all arguments is refused", RULE_5, |_| {
        refused(fid::GRANULE_SET_LIST, &[u64::MAX; 17], &[NOT_SUPPORTED, DENIED])
    });
    cases.add("el3", "GRANULE_SET by another core is refused", ABI, |bench| {
        let page = bench.pages(1)?[0];
        let answer = on_core(other_core()?, move || call(fid::GRANULE_SET, &[page, 1, Gpi::Secure as u64]))?;
        ensure!([NOT_SUPPORTED, DENIED].contains(&status(&answer)), "x0 = {:#x}", answer[0]);
        Ok(())
    });
}

/// `GRANULE_GET`: own granules, boundaries, everything else.
fn states(cases: &mut Cases) {
    let own: [(&str, u64); 2] = [
        ("the first granule of a bank", LENDABLE[0].base),
        ("the granule in the middle of a bank", LENDABLE[0].base + LENDABLE[0].size / 2 & !(GRANULE - 1)),
    ];
    for (name, address) in own {
        cases.add("el3", format!("GRANULE_GET of {name} is Non-secure"), ABI, move |_| {
            let answer = call(fid::GRANULE_GET, &[address]);
            ensure!(answer[..2] == [0, Gpi::NonSecure as u64], "{:x?}", &answer[..2]);
            Ok(())
        });
    }
    cases.add("el3", "GRANULE_GET knows the last granule of a bank", ABI, |_| {
        let answer = call(fid::GRANULE_GET, &[LENDABLE[0].end() - GRANULE]);
        ensure!([0, DENIED].contains(&status(&answer)), "x0 = {:#x}", answer[0]);
        Ok(())
    });
    for (name, address) in FIXED {
        cases.add("el3", format!("GRANULE_GET of {name} tells nothing"), ABI, move |_| {
            refused(fid::GRANULE_GET, &[address], &[INVALID, DENIED])
        });
    }
    for (name, address) in OUTSIDE {
        cases.add("el3", format!("GRANULE_GET of {name} is INVALID_PARAMETERS"), RULE_5, move |_| {
            refused(fid::GRANULE_GET, &[address], &[INVALID])
        });
    }
}

/// Checks that a call is refused with one of these statuses.
fn refused(function: u32, arguments: &[u64], statuses: &[i64]) -> Verdict {
    let answer = call(function, arguments);
    ensure!(statuses.contains(&status(&answer)), "x0 = {:#x}", answer[0]);
    Ok(())
}

/// Checks that moving one granule is refused: the call is for the Secure world, or the granule for nobody.
fn move_refused(address: u64, attributes: u64, list: bool) -> Verdict {
    let answer = if list {
        call(fid::GRANULE_SET_LIST, &[attributes, address | 1])
    } else {
        call(fid::GRANULE_SET, &[address, 1, attributes])
    };
    match status(&answer) {
        NOT_SUPPORTED | DENIED => Ok(()),
        other => Err(Failure::Wrong(format!("it answers {other}"))),
    }
}
