//! Memory transactions: descriptors that are wrong, and handles that are (Arm DEN0140 v1.2).

use alloc::{format, vec::Vec};

use flexserve_client::ffa::{self, Code, Error, Function, Region, Transfer};
use flexserve_normal_runtime::exceptions;
use flexserve_platform::{DRAM, EL3, LENDABLE, LLM_PARTITION, SPMC, UART_BASE};

use super::ffa::refused;
use crate::{
    bench::{Bench, GRANULE},
    suite::{Cases, Verdict, ensure},
};

const TRANSACTION: &str = "DEN0140 1.11.1";
const ACCESS: &str = "DEN0140 1.11.2";
const COMPOSITE: &str = "DEN0140 1.11.3";
const RANGES: &str = "DEN0140 1.11.4, DESIGN rule 1";

/// Wrong fields of a descriptor of one range: what is wrong, where that is written, offset, bytes. The transaction is at 0,
/// the receiver's access at 48, the composite at 64, the range at 80.
const WRONG: &[(&str, &str, usize, &[u8])] = &[
    ("another sender", TRANSACTION, 0, &[0x01, 0x80]),
    ("device memory", TRANSACTION, 2, &[0b01_00_00, 0]),
    ("attributes that are reserved", TRANSACTION, 2, &[0xff, 0xff]),
    ("flags that are reserved", TRANSACTION, 4, &[0, 0, 0, 0x80]),
    ("flags of a retrieve request", TRANSACTION, 4, &[0b1_0000, 0, 0, 0]),
    ("a handle of its own", TRANSACTION, 8, &[1, 0, 0, 0, 0, 0, 0, 0]),
    ("an access descriptor of no bytes", TRANSACTION, 24, &[0, 0, 0, 0]),
    ("an access descriptor longer than all", TRANSACTION, 24, &[0xff, 0xff, 0, 0]),
    ("no receiver", TRANSACTION, 28, &[0, 0, 0, 0]),
    ("2^32 - 1 receivers", TRANSACTION, 28, &[0xff; 4]),
    ("access descriptors inside the header", TRANSACTION, 32, &[16, 0, 0, 0]),
    ("access descriptors beyond the end", TRANSACTION, 32, &[0xf0, 0xff, 0xff, 0xff]),
    ("a reserved field that is not zero", TRANSACTION, 36, &[1]),
    ("the lender as its receiver", ACCESS, 48, &[0, 0]),
    ("the SPMC as its receiver", ACCESS, 48, &[0, 0x80]),
    ("a receiver that does not exist", ACCESS, 48, &[0x23, 0x81]),
    ("executable memory", ACCESS, 50, &[0b10_10]),
    ("both kinds of data access at once", ACCESS, 50, &[0b00_11]),
    ("permissions that are reserved", ACCESS, 50, &[0xf2]),
    ("access flags", ACCESS, 51, &[1]),
    ("a composite inside the header", ACCESS, 52, &[16, 0, 0, 0]),
    ("a composite beyond the end", ACCESS, 52, &[0xf8, 0xff, 0xff, 0xff]),
    ("a composite at an odd offset", ACCESS, 52, &[65, 0, 0, 0]),
    ("a reserved field of the access that is not zero", ACCESS, 56, &[1]),
    ("more pages than its ranges have", COMPOSITE, 64, &[2, 0, 0, 0]),
    ("no pages", COMPOSITE, 64, &[0, 0, 0, 0]),
    ("no ranges", COMPOSITE, 68, &[0, 0, 0, 0]),
    ("more ranges than it has", COMPOSITE, 68, &[2, 0, 0, 0]),
    ("2^32 - 1 ranges", COMPOSITE, 68, &[0xff; 4]),
    ("a reserved field of the composite that is not zero", COMPOSITE, 72, &[1]),
    ("a range at an odd address", RANGES, 80, &[8]),
    ("a range of no pages", RANGES, 88, &[0, 0, 0, 0]),
    ("a reserved field of the range that is not zero", RANGES, 92, &[1]),
];

/// Memory that is nobody's to lend from here: name, first page, pages.
const FOREIGN: [(&str, u64, u32); 9] = [
    ("the SPMC's memory", SPMC.base, 1),
    ("the LLM partition's image", LLM_PARTITION.base, 1),
    ("EL3's memory", EL3.base, 1),
    ("a device", UART_BASE, 1),
    ("the memory before the first bank", LENDABLE[0].base - GRANULE, 1),
    ("a page of the bank and one before it", LENDABLE[0].base - GRANULE, 2),
    ("memory that does not exist", 0x70_0000_0000, 1),
    ("pages beyond the end of DRAM", DRAM.base + DRAM.size - GRANULE, 2),
    ("a range that wraps", u64::MAX - 0xfff, u32::MAX),
];

/// Lengths that contradict the descriptor of 96 bytes: w1 and w2.
const LENGTHS: [(&str, u64, u64); 6] = [
    ("no bytes", 0, 0),
    ("a first fragment of no bytes", 96, 0),
    ("a first fragment longer than all", 96, 112),
    ("a first fragment that ends in the header", 96, 40),
    ("2^32 - 1 bytes", 0xffff_ffff, 96),
    ("a total that cuts a range", 95, 95),
];

pub fn cases(cases: &mut Cases) {
    for &(name, rule, offset, bytes) in WRONG {
        cases.add(
            "lending",
            format!("FFA_MEM_LEND with {name} is refused, and takes nothing"),
            rule,
            move |bench| {
                let pages = bench.patterned(1)?;
                let borrower = bench.borrower()?;
                let mut descriptor = ffa::descriptor(Transfer::Lend, borrower, &ffa::regions(&pages));
                descriptor[offset..offset + bytes.len()].copy_from_slice(bytes);
                let answer =
                    bench.system()?.ffa.transfer_descriptor(Transfer::Lend, &descriptor, descriptor.len());
                ensure!(matches!(answer, Err(Error::Code(_))), "it answers {answer:x?}");
                still_own(bench, &pages)
            },
        );
    }
    for (name, address, page_cnt) in FOREIGN {
        for (what, transfer) in [("FFA_MEM_LEND", Transfer::Lend), ("FFA_MEM_SHARE", Transfer::Share)] {
            cases.add("lending", format!("{what} of {name} is refused"), RANGES, move |bench| {
                let borrower = bench.borrower()?;
                let answer =
                    bench.system()?.ffa.transfer(transfer, borrower, &[Region { address, page_cnt }]);
                ensure!(matches!(answer, Err(Error::Code(_))), "it answers {answer:x?}");
                Ok(())
            });
        }
    }
    for (name, total, first) in LENGTHS {
        cases.add("lending", format!("FFA_MEM_LEND of {name} is refused"), "DEN0140 2.2", move |bench| {
            let pages = bench.patterned(1)?;
            let borrower = bench.borrower()?;
            // The good descriptor lies in the buffer: only the lengths are wrong.
            let descriptor = ffa::descriptor(Transfer::Lend, borrower, &ffa::regions(&pages));
            let ffa = &mut bench.system()?.ffa;
            let good = ffa.transfer_descriptor(Transfer::Lend, &descriptor, descriptor.len());
            ffa.reclaim(good.map_err(|e| format!("with the right length: {e}"))?)
                .map_err(|e| format!("reclaiming: {e}"))?;
            refused(bench, Function::MemLend32, &[total, first])?;
            still_own(bench, &pages)
        });
    }
    cases.add("lending", "a good page behind a foreign one is not taken", RANGES, |bench| {
        mixed(bench, |own| [Region { address: SPMC.base, page_cnt: 1 }, own])
    });
    cases.add("lending", "a good page before a foreign one is not taken", RANGES, |bench| {
        mixed(bench, |own| [own, Region { address: SPMC.base, page_cnt: 1 }])
    });
    cases.add("lending", "the same page twice in a descriptor is refused", RANGES, |bench| {
        mixed(bench, |own| [own, own])
    });
    fragments(cases);
    handles(cases);
}

/// A descriptor in pieces (DEN0140, section 2.3).
fn fragments(cases: &mut Cases) {
    const FRAGMENTS: &str = "DEN0140 2.3";
    cases.add(
        "lending",
        "a descriptor arrives in fragments, and all its pages are lent",
        FRAGMENTS,
        |bench| {
            let pages = bench.patterned(9)?;
            let borrower = bench.borrower()?;
            let descriptor = ffa::descriptor(Transfer::Lend, borrower, &ffa::regions(&pages));
            let handle = bench.system()?.ffa.transfer_descriptor(Transfer::Lend, &descriptor, 112);
            let handle = handle.map_err(|e| format!("in fragments of 112 bytes: {e}"))?;
            let readable: Vec<_> = pages.iter().filter(|page| exceptions::read(**page).is_ok()).collect();
            bench.reclaim(handle)?;
            ensure!(readable.is_empty(), "still readable: {readable:x?}");
            Ok(())
        },
    );
    cases.add("lending", "a fragment of nothing is refused", FRAGMENTS, |bench| {
        refused(bench, Function::MemFragTx, &[0x1234, 0, 16, 0])
    });
    cases.add(
        "lending",
        "a descriptor of which fragments are missing is given up by FFA_MEM_RECLAIM",
        FRAGMENTS,
        |bench| {
            let pages = bench.patterned(4)?;
            let (low, high) = begin_fragments(bench, &pages)?;
            let ffa = &mut bench.system()?.ffa;
            let given_up = ffa.reclaim(low | high << 32);
            ensure!(given_up.is_ok(), "it answers {given_up:x?}");
            still_own(bench, &pages)
        },
    );
    cases.add(
        "lending",
        "an empty fragment, or one longer than the rest, ends the transaction without a page",
        FRAGMENTS,
        |bench| {
            let pages = bench.patterned(4)?;
            for length in [0, 4096] {
                let (low, high) = begin_fragments(bench, &pages)?;
                refused(bench, Function::MemFragTx, &[low, high, length, 0])?;
                let _ = bench.system()?.ffa.reclaim(low | high << 32);
                still_own(bench, &pages)?;
            }
            Ok(())
        },
    );
}

/// Sends the head and first range of a descriptor of four ranges; answers the handle's halves.
fn begin_fragments(bench: &mut Bench, pages: &[u64]) -> Result<(u64, u64), crate::suite::Failure> {
    let borrower = bench.borrower()?;
    let descriptor = ffa::descriptor(Transfer::Lend, borrower, &ffa::regions(pages));
    let (total, first) = (descriptor.len() as u64, 96);
    let ffa = &mut bench.system()?.ffa;
    // Puts the descriptor into the buffer: a transaction that ends at once.
    let whole = ffa.transfer_descriptor(Transfer::Lend, &descriptor, descriptor.len());
    let whole = whole.map_err(|e| format!("in one piece: {e}"))?;
    ffa.reclaim(whole).map_err(|e| format!("reclaiming: {e}"))?;
    let answer = ffa.raw(Function::MemLend32, &[total, first]);
    ensure!(ffa::is(&answer, Function::MemFragRx), "the first fragment: {:x?}", &answer[..4]);
    ensure!(answer[3] == first, "the next fragment is to begin at {}", answer[3]);
    Ok((answer[1], answer[2]))
}

/// `FFA_MEM_RECLAIM` (DEN0140, section 2.8).
fn handles(cases: &mut Cases) {
    const RECLAIM: &str = "DEN0140 2.8";
    for (name, wrong) in [
        ("0", (|_| 0) as fn(u64) -> u64),
        ("2^64 - 1", |_| u64::MAX),
        ("one that was never given", |handle| handle + 1000),
        ("one with another upper half", |handle| handle ^ 1 << 40),
    ] {
        cases.add(
            "lending",
            format!("FFA_MEM_RECLAIM of handle {name} is INVALID_PARAMETERS"),
            RECLAIM,
            move |bench| {
                let pages = bench.patterned(1)?;
                let handle = bench.lend(&pages)?;
                let answer = bench.system()?.ffa.reclaim(wrong(handle));
                let own = exceptions::read(pages[0]).is_ok();
                bench.reclaim(handle)?;
                ensure!(answer == Err(Error::Code(Code::InvalidParameters)), "it answers {answer:x?}");
                ensure!(!own, "the page came back");
                Ok(())
            },
        );
    }
    cases.add(
        "lending",
        "FFA_MEM_RECLAIM of the same handle twice is INVALID_PARAMETERS",
        RECLAIM,
        |bench| {
            let pages = bench.patterned(1)?;
            let handle = bench.lend(&pages)?;
            bench.reclaim(handle)?;
            let again = bench.system()?.ffa.reclaim(handle);
            ensure!(again == Err(Error::Code(Code::InvalidParameters)), "it answers {again:x?}");
            Ok(())
        },
    );
    cases.add("lending", "FFA_MEM_RECLAIM with reserved flags is INVALID_PARAMETERS", RECLAIM, |bench| {
        let pages = bench.patterned(1)?;
        let handle = bench.lend(&pages)?;
        let flags = [handle & 0xffff_ffff, handle >> 32, 1 << 31];
        let answer = bench.system()?.ffa.simple(Function::MemReclaim, &flags);
        bench.reclaim(handle)?;
        ensure!(answer == Err(Error::Code(Code::InvalidParameters)), "it answers {answer:x?}");
        Ok(())
    });
    cases.add("lending", "two transactions at a time have two handles", RECLAIM, |bench| {
        let pages = bench.patterned(2)?;
        let (first, second) = (bench.lend(&pages[..1])?, bench.lend(&pages[1..])?);
        bench.reclaim(first)?;
        let other = exceptions::read(pages[1]).is_ok();
        bench.reclaim(second)?;
        ensure!(first != second, "both are {first:#x}");
        ensure!(!other, "reclaiming one gives the other back");
        Ok(())
    });
    cases.add(
        "lending",
        "a shared page stays readable and writable, and keeps its bytes when reclaimed",
        "DEN0140 1.4",
        |bench| {
            let pages = bench.patterned(1)?;
            let borrower = bench.borrower()?;
            let before = exceptions::read(pages[0]);
            let ffa = &mut bench.system()?.ffa;
            let handle =
                ffa.transfer(Transfer::Share, borrower, &ffa::regions(&pages)).map_err(|e| format!("{e}"))?;
            let shared = exceptions::read(pages[0]);
            // SAFETY: the suite's own page.
            let written = unsafe { exceptions::write(pages[0] + 8, 7) };
            bench.reclaim(handle)?;
            let after = exceptions::read(pages[0]);
            ensure!(
                before.is_ok() && [shared, after] == [before; 2] && written.is_ok(),
                "{before:x?}, shared {shared:x?}, after {after:x?}"
            );
            Ok(())
        },
    );
    cases.add(
        "lending",
        "a donated page is out of reach, and can be reclaimed until it is retrieved",
        "DEN0140 1.2",
        |bench| {
            let pages = bench.patterned(1)?;
            let borrower = bench.borrower()?;
            let ffa = &mut bench.system()?.ffa;
            let handle = ffa
                .transfer(Transfer::Donate, borrower, &ffa::regions(&pages))
                .map_err(|e| format!("{e}"))?;
            let readable = exceptions::read(pages[0]).is_ok();
            // Nobody has retrieved it, so that it can still be taken back.
            bench.reclaim(handle)?;
            ensure!(!readable, "a donated page is still readable");
            Ok(())
        },
    );
}

/// Two ranges, one of them wrong: nothing is taken.
fn mixed(bench: &mut Bench, regions: fn(Region) -> [Region; 2]) -> Verdict {
    let pages = bench.patterned(1)?;
    let borrower = bench.borrower()?;
    let regions = regions(Region { address: pages[0], page_cnt: 1 });
    let answer = bench.system()?.ffa.transfer(Transfer::Lend, borrower, &regions);
    ensure!(matches!(answer, Err(Error::Code(_))), "it answers {answer:x?}");
    still_own(bench, &pages)
}

/// Checks that pages are this world's, untouched, and can still be lent.
fn still_own(bench: &mut Bench, pages: &[u64]) -> Verdict {
    for page in pages {
        let read = exceptions::read(*page);
        ensure!(read.is_ok(), "page {page:#x} faults afterwards");
    }
    let handle = bench.lend(pages)?;
    bench.reclaim(handle)
}
