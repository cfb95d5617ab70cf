//! Any calls from any world, while cores come and go, against what the ABI's documentation says of them.
#![no_main]

use flexserve_abi::el3::{BATCH_LIMIT, CoreState, Counter, Gpi, LIST_LIMIT, MAX_CORES, Status, VERSION, fid};
use flexserve_el3_svc::{
    cores::{Arrival, CoreControl, PowerError},
    protection::{GranuleProtection, MoveError, Moved, Range},
    protocol::{Call, Caller, Reply, Service},
};
use flexserve_platform::Region;
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use std::{cell::RefCell, rc::Rc};

/// Two banks that touch: no range may span them.
static BANKS: [Region; 2] =
    [Region { base: 0x4000_0000, size: 0x20_0000 }, Region { base: 0x4020_0000, size: 0x30_0000 }];
const GRANULES: usize = 0x500;

/// Cores that the machine has; the first is never off.
const CORES: usize = 4;

#[derive(Arbitrary, Debug)]
struct Input {
    /// And the core that calls.
    world: u8,
    fid: u8,
    args: Vec<Argument>,
    /// What a core does before the call.
    event: Option<(Event, u8)>,
}

#[derive(Arbitrary, Debug)]
enum Event {
    /// The normal world turns it on.
    On,
    /// It turns itself off.
    Off,
    /// It comes up.
    Arrives,
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

/// Where a core is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Core {
    Off,
    /// It is being turned on for the normal world.
    Pending,
    Normal,
    Lending,
    Lent,
    /// And has not come up yet.
    RecalledEarly,
    Recalled,
}

/// PSCI, the GIC, and the core that calls.
#[derive(Default)]
struct Chip {
    on: [bool; CORES],
    /// It has come up.
    up: [bool; CORES],
    current: usize,
    interrupts: Vec<usize>,
}

#[derive(Clone)]
struct Control(Rc<RefCell<Chip>>);

impl CoreControl for Control {
    const PROVIDED: bool = true;

    fn index(&self, mpidr: u64) -> Option<usize> {
        usize::try_from(mpidr).ok().filter(|&core| core < CORES)
    }

    fn current(&self) -> Option<usize> {
        Some(self.0.borrow().current)
    }

    fn power_on(&self, mpidr: u64, _entry: u64, _context: u64) -> Result<(), PowerError> {
        let (core, mut chip) = (mpidr as usize, self.0.borrow_mut());
        match (chip.on[core], chip.up[core]) {
            (false, _) => {
                chip.on[core] = true;
                Ok(())
            }
            (true, false) => Err(PowerError::Pending),
            (true, true) => Err(PowerError::On),
        }
    }

    fn interrupt(&self, mpidr: u64) {
        self.0.borrow_mut().interrupts.push(mpidr as usize);
    }
}

/// What should be true.
struct Shadow {
    /// Granules of the Secure world.
    secure: Vec<bool>,
    cores: [Core; CORES],
    /// Cores lent and recalls that succeeded, so far.
    lent: u64,
    recalled: u64,
    interrupts: Vec<usize>,
}

impl Shadow {
    fn lend(&mut self, core: u64, entry: u64) -> Status {
        let page = range(entry & !0xfff, 1).filter(|page| entry % 4 == 0 && !self.secure[page.start]);
        let Some(place) = self.cores.get_mut(core as usize).filter(|_| page.is_some()) else {
            return Status::InvalidParameters;
        };
        match place {
            Core::Off => {
                *place = Core::Lending;
                self.lent += 1;
                Status::Success
            }
            Core::Normal | Core::Lent => Status::Denied,
            Core::Pending | Core::Lending | Core::Recalled | Core::RecalledEarly => Status::Busy,
        }
    }

    fn recall(&mut self, core: u64) -> Status {
        let Some(place) = self.cores.get_mut(core as usize) else { return Status::InvalidParameters };
        let to = match place {
            Core::Off | Core::Pending | Core::Normal => return Status::Denied,
            Core::Lending => Core::RecalledEarly,
            Core::Lent => Core::Recalled,
            Core::RecalledEarly | Core::Recalled => *place,
        };
        if to != *place {
            self.interrupts.push(core as usize);
        }
        *place = to;
        self.recalled += 1;
        Status::Success
    }

    fn state(&self, core: u64) -> Reply {
        let Some(place) = self.cores.get(core as usize) else { return Status::InvalidParameters.into() };
        let state = match place {
            Core::Off | Core::Pending | Core::Normal => CoreState::Owned,
            Core::Lending => CoreState::Lending,
            Core::Lent => CoreState::Lent,
            Core::RecalledEarly | Core::Recalled => CoreState::Recalled,
        };
        Reply(0, state as u64)
    }

    fn hand_back(&mut self, core: usize) -> Status {
        if self.cores[core] != Core::Recalled {
            return Status::Denied;
        }
        self.cores[core] = Core::Normal;
        Status::Success
    }

    /// What happens to a core between calls.
    fn happens(
        &mut self,
        event: &Event,
        core: usize,
        service: &Service<Fake, Control>,
        chip: &RefCell<Chip>,
    ) {
        match (event, self.cores[core]) {
            (Event::On, Core::Off) => {
                chip.borrow_mut().on[core] = true;
                self.cores[core] = Core::Pending;
            }
            (Event::Off, Core::Normal) if core != 0 => {
                let mut chip = chip.borrow_mut();
                (chip.on[core], chip.up[core]) = (false, false);
                self.cores[core] = Core::Off;
            }
            (Event::Arrives, Core::Pending | Core::Lending | Core::RecalledEarly) => {
                chip.borrow_mut().up[core] = true;
                chip.borrow_mut().current = core;
                let lent = self.cores[core] == Core::Lending;
                let expected = if lent { Arrival::SecureWorld } else { Arrival::NormalWorld };
                assert_eq!(service.arrive(), expected, "core {core}");
                self.cores[core] = if lent { Core::Lent } else { Core::Normal };
            }
            _ => {}
        }
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

fn expect(shadow: &mut Shadow, core: usize, caller: Caller, fid: u32, args: &[u64; 17]) -> Option<Reply> {
    let secure = &mut shadow.secure;
    Some(match (fid, caller) {
        (fid::VERSION, _) => Reply(u64::from(VERSION), 0),
        (fid::FEATURES, _) => match args[0] {
            0 => Reply(4096, 0),
            1 => Reply(40, 0),
            2 => Reply(7, 0),
            3 => Reply(BATCH_LIMIT, 0),
            4 => Reply(MAX_CORES as u64, 0),
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
        (fid::CORE_LEND, Caller::NonSecure) => shadow.lend(args[0], args[1]).into(),
        (fid::CORE_RECALL, Caller::NonSecure) => shadow.recall(args[0]).into(),
        (fid::CORE_STATE, Caller::NonSecure | Caller::Secure) => shadow.state(args[0]),
        (fid::CORE_RETURN, Caller::Secure) => shadow.hand_back(core).into(),
        _ => Status::NotSupported.into(),
    })
}

fuzz_target!(|calls: Vec<Input>| {
    let chip = Rc::new(RefCell::new(Chip::default()));
    (chip.borrow_mut().on[0], chip.borrow_mut().up[0]) = (true, true);
    let fake = Fake(RefCell::new(vec![false; GRANULES]));
    let service = Service::with_cores(fake, &BANKS, Control(chip.clone()));
    let mut cores = [Core::Off; CORES];
    cores[0] = Core::Normal;
    let mut shadow =
        Shadow { secure: vec![false; GRANULES], cores, lent: 0, recalled: 0, interrupts: Vec::new() };
    let mut refused = 0;
    for call in &calls {
        if let Some((event, core)) = &call.event {
            shadow.happens(event, usize::from(*core) % CORES, &service, &chip);
        }
        let mut args = [0; 17];
        args.iter_mut().zip(&call.args).for_each(|(register, argument)| *register = argument.value());
        // A core that is not up makes no call.
        let core =
            Some(usize::from(call.world >> 2) % CORES).filter(|&core| chip.borrow().up[core]).unwrap_or(0);
        chip.borrow_mut().current = core;
        let fid = match call.fid % 16 {
            fid @ 0..5 => fid::VERSION + u32::from(fid),
            5 => fid::STATS,
            6 => fid::GRANULE_SET_LIST,
            7 | 8 => fid::CORE_LEND,
            9 => fid::CORE_RECALL,
            10 => fid::CORE_STATE,
            11 => fid::CORE_RETURN,
            _ => 0xC300_0000 | u32::from(call.fid),
        };
        // Most calls about cores come from the world that may make them, and name a core.
        let likely = call.world & 0x40 == 0;
        if likely && matches!(fid, fid::CORE_LEND | fid::CORE_RECALL | fid::CORE_STATE) {
            args[0] %= CORES as u64 + 1;
            args[1] = BANKS[0].base + args[1] % (GRANULES as u64 * 4096) / 4 * 4;
        }
        let caller = match (fid, call.world % 4) {
            (fid::CORE_LEND | fid::CORE_RECALL, _) if likely => Caller::NonSecure,
            (fid::CORE_RETURN, _) if likely => Caller::Secure,
            (_, 0 | 1) => Caller::Secure,
            (_, 2) => Caller::NonSecure,
            _ => Caller::Realm,
        };
        let reply = service.handle(caller, Call { fid, args: &args });
        let Some(expected) = expect(&mut shadow, core, caller, fid, &args) else {
            assert_eq!(reply.0, 0);
            continue;
        };
        assert_eq!(reply, expected, "{fid:#x} {caller:?} {args:x?}");
        assert_eq!(chip.borrow().interrupts, shadow.interrupts);
        if (expected.0 as i64) < 0 && expected.0 != Status::Incomplete.code() {
            refused += 1;
        }
    }
    let stat = |counter: Counter| {
        let mut args = [0; 17];
        args[0] = counter as u64;
        service.handle(Caller::Realm, Call { fid: fid::STATS, args: &args }).1
    };
    let lent = shadow.secure.iter().filter(|secure| **secure).count() as u64;
    assert_eq!(stat(Counter::Lent) - stat(Counter::Returned), lent);
    assert_eq!((stat(Counter::CoresLent), stat(Counter::CoresRecalled)), (shadow.lent, shadow.recalled));
    assert_eq!(stat(Counter::Refused), refused);
});
