//! Any calls from any world, against what the ABI's documentation says of them.
#![no_main]

use flexserve_abi::el3::{BATCH_LIMIT, Counter, Gpi, LIST_LIMIT, Status, VERSION, fid};
use flexserve_el3_svc::{
    protection::{GranuleProtection, MoveError, Moved, Range},
    protocol::{Call, Caller, Reply, Service},
};
use flexserve_platform::Region;
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use std::cell::RefCell;

/// Two banks that touch: no range may span them.
static BANKS: [Region; 2] =
    [Region { base: 0x4000_0000, size: 0x20_0000 }, Region { base: 0x4020_0000, size: 0x30_0000 }];
const GRANULES: usize = 0x500;

#[derive(Arbitrary, Debug)]
struct Input {
    world: u8,
    fid: u8,
    args: Vec<Argument>,
}

#[derive(Arbitrary, Debug)]
enum Argument {
    Raw(u64),
    Small(u16),
    Granule(u16),
    /// A granule, and how many, as the list call packs them.
    Packed(u16, u16),
    Attributes(bool),
}

impl Argument {
    fn value(&self) -> u64 {
        let granule = |index: u16| BANKS[0].base + u64::from(index % (GRANULES as u16 + 4)) * 4096;
        match self {
            Self::Raw(value) => *value,
            Self::Small(value) => u64::from(*value),
            Self::Granule(index) => granule(*index),
            Self::Packed(index, count) => granule(*index) | u64::from(count & 0xfff),
            Self::Attributes(secure) => {
                if *secure {
                    Gpi::Secure as u64
                } else {
                    Gpi::NonSecure as u64
                }
            }
        }
    }
}

/// Which granules are the Secure world's.
struct Fake(RefCell<Vec<bool>>);

impl Fake {
    fn change(&self, ranges: &[Range], to: bool) -> Moved {
        let mut moved = Moved { done: 0, error: None };
        for Range { base, count } in ranges {
            assert!(BANKS.iter().any(|bank| bank.contains(*base, count * 4096)), "{base:#x} {count}");
            let first = ((base - BANKS[0].base) / 4096) as usize;
            let range = &mut self.0.borrow_mut()[first..first + *count as usize];
            let done = range.iter().take_while(|secure| **secure != to).count();
            range[..done].fill(to);
            moved.done += done as u64;
            if done < range.len() {
                moved.error = Some(MoveError::NotOwned);
                break;
            }
        }
        moved
    }
}

impl GranuleProtection for Fake {
    const BACKEND: u64 = 7;

    fn physical_address_bits(&self) -> u64 {
        40
    }

    fn tlb_invalidations(&self) -> u64 {
        77
    }

    fn owner(&self, base: u64) -> Option<Gpi> {
        let secure = *self.0.borrow().get((base.checked_sub(BANKS[0].base)? / 4096) as usize)?;
        Some(if secure { Gpi::Secure } else { Gpi::NonSecure })
    }

    fn lend(&self, ranges: &[Range]) -> Moved {
        self.change(ranges, true)
    }

    fn give_back(&self, ranges: &[Range]) -> Moved {
        self.change(ranges, false)
    }
}

/// Granules of a range, if it is one.
fn range(base: u64, count: u64) -> Option<std::ops::Range<usize>> {
    let end = u128::from(base) + u128::from(count) * 4096;
    let inside = |bank: &Region| bank.base <= base && end <= u128::from(bank.base + bank.size);
    let first = (base.wrapping_sub(BANKS[0].base) / 4096) as usize;
    (count != 0 && base % 4096 == 0 && BANKS.iter().any(inside)).then(|| first..first + count as usize)
}

/// What a move should do to the shadow and answer.
fn expect_move(secure: &mut [bool], attributes: u64, ranges: &[Option<std::ops::Range<usize>>]) -> Reply {
    let to = match attributes {
        8 => true,
        9 => false,
        _ => return Status::InvalidParameters.into(),
    };
    if ranges.is_empty() || ranges.iter().any(Option::is_none) {
        return Status::InvalidParameters.into();
    }
    let mut done = 0;
    for granule in ranges.iter().flatten().cloned().flatten() {
        if done == BATCH_LIMIT {
            return Reply(Status::Incomplete.code(), done);
        }
        if secure[granule] == to {
            return Reply(Status::Denied.code(), done);
        }
        secure[granule] = to;
        done += 1;
    }
    Reply(0, done)
}

fn expect(secure: &mut [bool], caller: Caller, fid: u32, args: &[u64; 17]) -> Option<Reply> {
    Some(match (fid, caller) {
        (fid::VERSION, _) => Reply(u64::from(VERSION), 0),
        (fid::FEATURES, _) => match args[0] {
            0 => Reply(4096, 0),
            1 => Reply(40, 0),
            2 => Reply(7, 0),
            3 => Reply(BATCH_LIMIT, 0),
            // No cores can be lent here.
            4 => Reply(0, 0),
            _ => Status::NotSupported.into(),
        },
        (fid::GRANULE_SET, Caller::Secure) => expect_move(secure, args[2], &[range(args[0], args[1])]),
        (fid::GRANULE_SET_LIST, Caller::Secure) => {
            let words = args[1..=LIST_LIMIT].iter().take_while(|word| **word != 0);
            let ranges: Vec<_> = words.map(|word| range(word & !0xfff, word & 0xfff)).collect();
            expect_move(secure, args[0], &ranges)
        }
        (fid::GRANULE_GET, Caller::Secure | Caller::NonSecure) => match range(args[0], 1) {
            None => Status::InvalidParameters.into(),
            Some(range) if secure[range.start] && caller == Caller::NonSecure => Status::Denied.into(),
            Some(range) => Reply(0, if secure[range.start] { 8 } else { 9 }),
        },
        (fid::STATS, _) if args[0] < Counter::ALL.len() as u64 => return None,
        (fid::STATS, _) => Status::InvalidParameters.into(),
        _ => Status::NotSupported.into(),
    })
}

fuzz_target!(|calls: Vec<Input>| {
    let service = Service::new(Fake(RefCell::new(vec![false; GRANULES])), &BANKS);
    let mut secure = vec![false; GRANULES];
    let mut refused = 0;
    for call in &calls {
        let mut args = [0; 17];
        args.iter_mut().zip(&call.args).for_each(|(register, argument)| *register = argument.value());
        let caller =
            [Caller::Secure, Caller::Secure, Caller::NonSecure, Caller::Realm][call.world as usize % 4];
        let fid = match call.fid % 8 {
            0..5 => fid::VERSION + u32::from(call.fid % 8),
            5 => fid::STATS,
            6 => fid::GRANULE_SET_LIST,
            _ => 0xC300_0000 | u32::from(call.fid),
        };
        let reply = service.handle(caller, Call { fid, args: &args });
        let Some(expected) = expect(&mut secure, caller, fid, &args) else {
            assert_eq!(reply.0, 0);
            continue;
        };
        assert_eq!(reply, expected, "{fid:#x} {caller:?} {args:x?}");
        if (expected.0 as i64) < 0 && expected.0 != Status::Incomplete.code() {
            refused += 1;
        }
    }
    let stat = |counter: Counter| {
        let mut args = [0; 17];
        args[0] = counter as u64;
        service.handle(Caller::Realm, Call { fid: fid::STATS, args: &args }).1
    };
    let lent = secure.iter().filter(|secure| **secure).count() as u64;
    assert_eq!(stat(Counter::Lent) - stat(Counter::Returned), lent);
    assert_eq!(stat(Counter::Refused), refused);
});
