//! FF-A as the front door: versions, identities, features, partitions, buffers (Arm DEN0077A v1.2).

use alloc::format;

use flexserve_client::{
    ffa::{self, Code, Error, Function},
    registers,
};
use flexserve_platform::{EL3, SPMC};

use crate::{
    bench::{Bench, GRANULE, call},
    suite::{Cases, Verdict, ensure},
};

const NOT_SUPPORTED: u32 = u32::MAX;
/// FF-A v1.2.
const VERSION_1_2: u64 = 0x1_0002;

pub fn cases(cases: &mut Cases) {
    versions(cases);
    identities(cases);
    features(cases);
    partitions(cases);
    buffers(cases);
    messages(cases);
}

fn versions(cases: &mut Cases) {
    for (name, asked, compatible) in [
        ("1.2", 0x1_0002, true),
        ("1.1", 0x1_0001, true),
        ("1.0", 0x1_0000, true),
        ("1.3, which is newer", 0x1_0003, true),
        ("2.0", 0x2_0000, false),
        ("0.9", 0x0_0009, false),
        ("1.2 with bit 31 set", 0x8001_0002, false),
    ] {
        let what = if compatible { "its own version, of major 1" } else { "NOT_SUPPORTED" };
        cases.add("ffa", format!("FFA_VERSION of {name} answers {what}"), "DEN0077A 13.2", move |bench| {
            bench.system()?;
            let answer = call(Function::Version.into(), &[asked])[0] as u32;
            // Structures are those of 1.2 again.
            call(Function::Version.into(), &[VERSION_1_2]);
            let well = if compatible { answer >> 16 == 1 } else { answer == NOT_SUPPORTED };
            ensure!(well, "it answers {answer:#x}");
            Ok(())
        });
    }
}

fn identities(cases: &mut Cases) {
    cases.add("ffa", "FFA_ID_GET: the normal world's kernel is endpoint 0", "DEN0077A 13.10", |bench| {
        let id = bench.system()?.ffa.id();
        ensure!(id == Ok(0), "{id:x?}");
        Ok(())
    });
    cases.add("ffa", "FFA_SPM_ID_GET: the SPMC's ID has bit 15 set", "DEN0077A 13.11, 6.1", |bench| {
        let id = bench.system()?.ffa.spm_id();
        ensure!(id.is_ok_and(|id| id & 0x8000 != 0), "{id:x?}");
        Ok(())
    });
    cases.add("ffa", "FFA_ID_GET leaves unused results zero", "DEN0077A 11.2", |bench| {
        bench.system()?;
        let answer = call(Function::IdGet.into(), &[u64::MAX; 7]);
        ensure!(answer[1] == 0 && answer[3..8].iter().all(|&x| x == 0), "{:x?}", &answer[..8]);
        Ok(())
    });
}

fn features(cases: &mut Cases) {
    for (name, function) in [
        ("FFA_VERSION", Function::Version),
        ("FFA_FEATURES", Function::Features),
        ("FFA_ID_GET", Function::IdGet),
        ("FFA_SPM_ID_GET", Function::SpmIdGet),
        ("FFA_PARTITION_INFO_GET", Function::PartitionInfoGet),
        ("FFA_PARTITION_INFO_GET_REGS", Function::PartitionInfoGetRegs),
        ("FFA_RXTX_MAP", Function::RxTxMap64),
        ("FFA_RXTX_UNMAP", Function::RxTxUnmap),
        ("FFA_RX_RELEASE", Function::RxRelease),
        ("FFA_RUN", Function::Run32),
        ("FFA_MSG_SEND_DIRECT_REQ2", Function::MsgSendDirectReq64_2),
        ("FFA_MEM_LEND", Function::MemLend32),
        ("FFA_MEM_SHARE", Function::MemShare32),
        ("FFA_MEM_DONATE", Function::MemDonate32),
        ("FFA_MEM_RECLAIM", Function::MemReclaim),
        ("FFA_MEM_FRAG_TX", Function::MemFragTx),
    ] {
        cases.add("ffa", format!("FFA_FEATURES knows {name}"), "DEN0077A 13.3", move |bench| {
            let answer = bench.system()?.ffa.features(function);
            ensure!(answer.is_ok(), "it answers {answer:x?}");
            Ok(())
        });
    }
    for (name, function) in [
        ("an undefined function", 0x8400_00ef),
        ("a PSCI function", 0x8400_0003),
        ("an undefined feature", 0xff),
        ("feature 2^31 - 1", 0x7fff_ffff),
    ] {
        cases.add("ffa", format!("FFA_FEATURES does not know {name}"), "DEN0077A 13.3", move |bench| {
            code(bench, Function::Features, &[function], &[Code::NotSupported])
        });
    }
    for function in [0x8400_00ef, 0xc400_00ef, 0x8400_0060 + 0x7c] {
        let name = format!("undefined FF-A call {function:#x} is NOT_SUPPORTED");
        cases.add("ffa", name, "DEN0077A 12.2", move |bench| {
            bench.system()?;
            let answer = call(function, &[1, 2, 3]);
            let error = answer[0] as u32 == u32::from(Function::Error32) && answer[2] as u32 == NOT_SUPPORTED;
            ensure!(error || answer[0] as u32 == NOT_SUPPORTED, "{:x?}", &answer[..4]);
            Ok(())
        });
    }
}

fn partitions(cases: &mut Cases) {
    const GET: &str = "DEN0077A 13.8";
    const REGS: &str = "DEN0077A 13.9";
    cases.add(
        "ffa",
        "FFA_PARTITION_INFO_GET and _REGS count the same partitions",
        "DEN0077A 13.8, 13.9",
        |bench| {
            let ffa = &mut bench.system()?.ffa;
            let counted =
                ffa.simple(Function::PartitionInfoGet, &[0, 0, 0, 0, 1]).map_err(|e| format!("{e}"))?[2];
            let registers = ffa.simple(Function::PartitionInfoGetRegs, &[]).map_err(|e| format!("{e}"))?;
            let listed = (registers[2] & 0xffff) + 1;
            ensure!(counted == listed, "{counted}, in registers {listed}");
            Ok(())
        },
    );
    cases.add(
        "ffa",
        "FFA_PARTITION_INFO_GET of a UUID that nobody has is INVALID_PARAMETERS",
        GET,
        |bench| code(bench, Function::PartitionInfoGet, &[1, 2, 3, 4, 1], &[Code::InvalidParameters]),
    );
    cases.add("ffa", "FFA_PARTITION_INFO_GET with reserved flags is INVALID_PARAMETERS", GET, |bench| {
        code(bench, Function::PartitionInfoGet, &[0, 0, 0, 0, 1 << 31], &[Code::InvalidParameters])
    });
    cases.add(
        "ffa",
        "FFA_PARTITION_INFO_GET_REGS of a UUID that nobody has is INVALID_PARAMETERS",
        REGS,
        |bench| code(bench, Function::PartitionInfoGetRegs, &[1, 2, 0], &[Code::InvalidParameters]),
    );
    cases.add(
        "ffa",
        "FFA_PARTITION_INFO_GET_REGS from behind the last partition is INVALID_PARAMETERS",
        REGS,
        |bench| code(bench, Function::PartitionInfoGetRegs, &[0, 0, 0xffff], &[Code::InvalidParameters]),
    );
    cases.add(
        "ffa",
        "FFA_PARTITION_INFO_GET_REGS with an old tag is RETRY or INVALID_PARAMETERS",
        REGS,
        |bench| {
            code(
                bench,
                Function::PartitionInfoGetRegs,
                &[0, 0, 0xabc << 16],
                &[Code::Retry, Code::InvalidParameters],
            )
        },
    );
    cases.add(
        "ffa",
        "RX is the caller's after FFA_PARTITION_INFO_GET, until it releases it",
        "DEN0077A 7.2.2",
        |bench| {
            let ffa = &mut bench.system()?.ffa;
            let first = ffa.simple(Function::PartitionInfoGet, &[]);
            let second = ffa.simple(Function::PartitionInfoGet, &[]);
            let released = ffa.simple(Function::RxRelease, &[]);
            ensure!(first.is_ok(), "the first call: {first:x?}");
            ensure!(second == Err(Error::Code(Code::Busy)), "the second call: {second:x?}");
            ensure!(released.is_ok(), "FFA_RX_RELEASE: {released:x?}");
            Ok(())
        },
    );
    cases.add(
        "ffa",
        "FFA_RX_RELEASE of a buffer that the caller does not have is DENIED",
        "DEN0077A 13.4",
        |bench| code(bench, Function::RxRelease, &[], &[Code::Denied]),
    );
}

/// `FFA_RXTX_MAP` with bad arguments: what is wrong, TX and RX (0 = the good one), pages.
const BAD_BUFFERS: [(&str, u64, u64, u64); 10] = [
    ("TX at an odd address", 8, 0, 1),
    ("RX at an odd address", 0, 8, 1),
    ("no pages", 0, 0, 0),
    ("more pages than can be", 0, 0, 0x3_ffff),
    ("the SPMC's memory as RX", 0, SPMC.base, 1),
    ("the SPMC's memory as TX", SPMC.base, 0, 1),
    ("EL3's memory as RX", 0, EL3.base, 1),
    ("EL3's memory as TX", EL3.base, 0, 1),
    ("an address beyond all memory", 0, 0xffff_ffff_f000, 1),
    ("a buffer that wraps", u64::MAX - 0xfff, 0, 2),
];

fn buffers(cases: &mut Cases) {
    const MAP: &str = "DEN0077A 13.5";
    cases.add("ffa", "FFA_RXTX_MAP of a second pair is DENIED", MAP, |bench| {
        let (tx, rx) = bench.system()?.buffers;
        code(bench, Function::RxTxMap64, &[tx, rx, 1], &[Code::Denied])
    });
    for (name, tx, rx, pages) in BAD_BUFFERS {
        cases.add("ffa", format!("FFA_RXTX_MAP of {name} is refused"), MAP, move |bench| {
            without_buffers(bench, |bench, (good_tx, good_rx)| {
                let or = |address: u64, good| if address < GRANULE { good + address } else { address };
                refused(bench, Function::RxTxMap64, &[or(tx, good_tx), or(rx, good_rx), pages])
            })
        });
    }
    cases.add("ffa", "FFA_RXTX_MAP of one page as both buffers is refused", MAP, |bench| {
        without_buffers(bench, |bench, (tx, _)| refused(bench, Function::RxTxMap64, &[tx, tx, 1]))
    });
    cases.add("ffa", "FFA_RXTX_MAP of a lent page is refused", "DESIGN rule 1", |bench| {
        let pages = bench.patterned(1)?;
        let handle = bench.lend(&pages)?;
        let verdict = without_buffers(bench, |bench, (tx, rx)| {
            refused(bench, Function::RxTxMap64, &[tx, pages[0], 1])?;
            refused(bench, Function::RxTxMap64, &[pages[0], rx, 1])
        });
        bench.reclaim(handle)?;
        verdict
    });
    cases.add("ffa", "a page that is a buffer is not lent", "DESIGN rule 1", |bench| {
        let (_, rx) = bench.system()?.buffers;
        let lent = bench.lend(&[rx]);
        ensure!(lent.is_err(), "it is lent");
        Ok(())
    });
    cases.add(
        "ffa",
        "FFA_RXTX_UNMAP of what is not mapped is INVALID_PARAMETERS",
        "DEN0077A 13.6",
        |bench| {
            without_buffers(bench, |bench, _| {
                code(bench, Function::RxTxUnmap, &[0], &[Code::InvalidParameters])
            })
        },
    );
    cases.add(
        "ffa",
        "FFA_RXTX_UNMAP of another endpoint's buffers is INVALID_PARAMETERS",
        "DEN0077A 13.6",
        |bench| code(bench, Function::RxTxUnmap, &[0x7fff << 16], &[Code::InvalidParameters]),
    );
    cases.add("ffa", "without buffers FFA_MEM_LEND is refused", "DEN0077A 7.2", |bench| {
        without_buffers(bench, |bench, _| refused(bench, Function::MemLend32, &[96, 96]))
    });
    cases.add("ffa", "without buffers FFA_PARTITION_INFO_GET is refused", "DEN0077A 13.8", |bench| {
        without_buffers(bench, |bench, _| refused(bench, Function::PartitionInfoGet, &[]))
    });
}

fn messages(cases: &mut Cases) {
    const REQUEST: &str = "DEN0077A 15.2";
    let to = move |receiver: u64| [receiver, 0, 0, 1, 2, 3];
    for (name, receiver) in
        [("a partition that does not exist", 0x8fff), ("itself", 0), ("an ID of this world", 0x123)]
    {
        cases.add("ffa", format!("a direct request to {name} is refused"), REQUEST, move |bench| {
            refused(bench, Function::MsgSendDirectReq64_2, &to(receiver))?;
            refused(bench, Function::MsgSendDirectReq64, &to(receiver))
        });
    }
    cases.add("ffa", "a direct request in a partition's name is INVALID_PARAMETERS", REQUEST, move |bench| {
        let borrower = u64::from(bench.borrower()?);
        let forged = to(borrower << 16 | borrower);
        code(bench, Function::MsgSendDirectReq64_2, &forged, &[Code::InvalidParameters])
    });
    cases.add(
        "ffa",
        "FFA_RUN of a partition that does not wait for it is refused",
        "DEN0077A 14.3",
        |bench| {
            let borrower = u64::from(bench.borrower()?);
            refused(bench, Function::Run32, &[borrower << 16])
        },
    );
    cases.add("ffa", "FFA_RUN of a partition that does not exist is refused", "DEN0077A 14.3", |bench| {
        refused(bench, Function::Run32, &[0x8fff << 16])
    });
    for (name, function) in [
        ("FFA_MSG_WAIT", Function::MsgWait32),
        ("FFA_YIELD", Function::Yield32),
        ("FFA_SECONDARY_EP_REGISTER", Function::SecondaryEpRegister64),
        ("FFA_MEM_PERM_SET", Function::MemPermSet64),
    ] {
        cases.add("ffa", format!("{name} is not for the normal world"), "DEN0077A 12.2", move |bench| {
            refused(bench, function, &[0x6000_0000, 1, 1])
        });
    }
}

/// Runs `f` while no buffers are mapped, and maps them again.
pub fn without_buffers(bench: &mut Bench, f: impl Fn(&mut Bench, (u64, u64)) -> Verdict) -> Verdict {
    let buffers = bench.system()?.buffers;
    let ffa = &mut bench.system()?.ffa;
    ffa.unmap_buffers().map_err(|e| format!("unmapping the buffers: {e}"))?;
    let verdict = f(bench, buffers);
    let ffa = &mut bench.system()?.ffa;
    if verdict.is_err() {
        // A wrong pair may be mapped.
        let _ = ffa.unmap_buffers();
    }
    ffa.map_buffers(buffers.0, buffers.1).map_err(|e| format!("mapping the buffers again: {e}"))?;
    verdict
}

/// Checks that a call ends in one of these errors.
fn code(bench: &mut Bench, function: Function, arguments: &[u64], codes: &[Code]) -> Verdict {
    let answer = bench.system()?.ffa.simple(function, arguments);
    let well = matches!(answer, Err(Error::Code(code)) if codes.contains(&code));
    ensure!(well, "it answers {answer:x?}");
    Ok(())
}

/// Checks that a call ends in some error of FF-A's.
pub fn refused(bench: &mut Bench, function: Function, arguments: &[u64]) -> Verdict {
    use flexserve_client::Conduit as _;
    let answer = bench.system()?.ffa.conduit().call(registers(function.into(), arguments));
    let error = [Function::Error32, Function::Error64].iter().any(|&error| ffa::is(&answer, error));
    let unknown = answer[0] as u32 == NOT_SUPPORTED;
    let negative = (answer[2] as u32 as i32) < 0;
    ensure!(unknown || error && negative, "it answers {:x?}", &answer[..4]);
    Ok(())
}
