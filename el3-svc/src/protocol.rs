//! The calls of [`flexserve_abi::el3`]: who may make them, what they check, what they answer.
#![forbid(unsafe_code)]

use crate::{
    cores::{Arrival, CoreControl, Cores, FixedCores},
    protection::{GranuleProtection, MoveError, Range},
};
use core::sync::atomic::{AtomicU64, Ordering};
use flexserve_abi::{
    GRANULE_SIZE,
    el3::{BATCH_LIMIT, Counter, Feature, Gpi, LIST_LIMIT, MAX_CORES, Status, VERSION, fid},
};
use flexserve_platform::Region;
use heapless::Vec;

/// The world that made a call, as its exception to EL3 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The Secure world: the SPMC, or a partition at S-EL0 that it lets through.
    Secure,
    /// The normal world.
    NonSecure,
    /// The Realm world.
    Realm,
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Function identifier, from w0.
    pub fid: u32,
    /// x1 to x17, none of them proven.
    pub args: &'a [u64; 17],
}

/// What x0 and x1 hold when the call returns. The other registers keep the caller's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply(pub u64, pub u64);

impl From<Status> for Reply {
    fn from(status: Status) -> Self {
        Self(status.code(), 0)
    }
}

/// The service: a mechanism, the banks it may touch, the cores, and its counters.
#[derive(Debug)]
pub struct Service<P, C = FixedCores> {
    protection: P,
    lendable: &'static [Region],
    cores: Cores<C>,
    /// By index of [`Counter`]. Those that the mechanism keeps are not used.
    counters: [AtomicU64; Counter::ALL.len()],
}

impl<P: GranuleProtection> Service<P> {
    /// A service that moves granules of the `lendable` banks only, whatever a caller asks.
    pub const fn new(protection: P, lendable: &'static [Region]) -> Self {
        Self::with_cores(protection, lendable, FixedCores)
    }
}

impl<P: GranuleProtection, C: CoreControl> Service<P, C> {
    /// The same, which moves cores too.
    pub const fn with_cores(protection: P, lendable: &'static [Region], cores: C) -> Self {
        Self {
            protection,
            lendable,
            cores: Cores::new(cores),
            counters: [const { AtomicU64::new(0) }; Counter::ALL.len()],
        }
    }

    /// The calling core has been powered on: where does it go?
    pub fn arrive(&self) -> Arrival {
        self.cores.arrive()
    }

    /// Answers one call. Takes bounded time: at most [`BATCH_LIMIT`] granules move.
    ///
    /// VERSION comes first and all others out of line, so that a call that does nothing pays for nothing (`bench smc`).
    #[inline]
    pub fn handle(&self, caller: Caller, call: Call) -> Reply {
        if call.fid == fid::VERSION { Reply(u64::from(VERSION), 0) } else { self.serve(caller, call) }
    }

    #[inline(never)]
    fn serve(&self, caller: Caller, call: Call) -> Reply {
        let args = call.args;
        let reply = match (call.fid, caller) {
            (fid::FEATURES, _) => self.feature(args[0]),
            (fid::GRANULE_SET, Caller::Secure) => self.granule_set(args[0], args[1], args[2]),
            (fid::GRANULE_SET_LIST, Caller::Secure) => self.granule_set_list(args[0], &args[1..]),
            (fid::GRANULE_GET, Caller::Secure | Caller::NonSecure) => self.granule_get(caller, args[0]),
            (fid::STATS, _) => self.stats(args[0]),
            (fid::CORE_LEND, Caller::NonSecure) if C::PROVIDED => self.core_lend(args[0], args[1], args[2]),
            (fid::CORE_RECALL, Caller::NonSecure) if C::PROVIDED => self.core_recall(args[0]),
            (fid::CORE_STATE, Caller::NonSecure | Caller::Secure) if C::PROVIDED => self.core_state(args[0]),
            (fid::CORE_RETURN, Caller::Secure) if C::PROVIDED => self.cores.hand_back().into(),
            _ => Status::NotSupported.into(),
        };
        if reply.0.cast_signed() < 0 && reply.0 != Status::Incomplete.code() {
            self.count(Counter::Refused, 1);
        }
        reply
    }

    fn feature(&self, index: u64) -> Reply {
        const { assert!(Feature::Cores as u64 == 4) };
        match index {
            0 => Reply(GRANULE_SIZE as u64, 0),
            1 => Reply(self.protection.physical_address_bits(), 0),
            2 => Reply(P::BACKEND, 0),
            3 => Reply(BATCH_LIMIT, 0),
            4 => Reply(if C::PROVIDED { MAX_CORES as u64 } else { 0 }, 0),
            _ => Status::NotSupported.into(),
        }
    }

    fn stats(&self, index: u64) -> Reply {
        let Some(&(counter, _)) = usize::try_from(index).ok().and_then(|i| Counter::ALL.get(i)) else {
            return Status::InvalidParameters.into();
        };
        let value = match counter {
            Counter::TlbInvalidations => self.protection.tlb_invalidations(),
            Counter::Faults => self.protection.faults(),
            kept => self.counters[kept as usize].load(Ordering::Relaxed),
        };
        Reply(Status::Success.code(), value)
    }

    /// `CORE_LEND`: the entry point is an instruction's address in a granule that is the normal world's.
    #[inline(never)]
    fn core_lend(&self, mpidr: u64, entry: u64, context: u64) -> Reply {
        const PAGE: u64 = GRANULE_SIZE as u64;
        let page = entry & !(PAGE - 1);
        if !entry.is_multiple_of(4)
            || check(page, 1, self.lendable).is_none()
            || self.protection.owner(page) != Some(Gpi::NonSecure)
        {
            return Status::InvalidParameters.into();
        }
        let status = self.cores.lend(mpidr, entry, context);
        if status == Status::Success {
            self.count(Counter::CoresLent, 1);
        }
        status.into()
    }

    #[inline(never)]
    fn core_recall(&self, mpidr: u64) -> Reply {
        let status = self.cores.recall(mpidr);
        if status == Status::Success {
            self.count(Counter::CoresRecalled, 1);
        }
        status.into()
    }

    #[inline(never)]
    fn core_state(&self, mpidr: u64) -> Reply {
        match self.cores.state(mpidr) {
            Some(state) => Reply(Status::Success.code(), state as u64),
            None => Status::InvalidParameters.into(),
        }
    }

    fn granule_get(&self, caller: Caller, base: u64) -> Reply {
        if check(base, 1, self.lendable).is_none() {
            return Status::InvalidParameters.into();
        }
        match self.protection.owner(base) {
            None => Status::InvalidParameters.into(),
            Some(gpi) if caller == Caller::NonSecure && gpi != Gpi::NonSecure => Status::Denied.into(),
            Some(gpi) => Reply(Status::Success.code(), gpi as u64),
        }
    }

    fn count(&self, counter: Counter, n: u64) {
        self.counters[counter as usize].fetch_add(n, Ordering::Relaxed);
    }

    fn granule_set(&self, base: u64, count: u64, attributes: u64) -> Reply {
        match (Target::check(attributes), check(base, count, self.lendable)) {
            (Some(target), Some(range)) => {
                let count = range.count.min(BATCH_LIMIT);
                self.transfer(target, &[Range { count, ..range }], count < range.count)
            }
            _ => Status::InvalidParameters.into(),
        }
    }

    fn granule_set_list(&self, attributes: u64, list: &[u64]) -> Reply {
        const COUNT: u64 = GRANULE_SIZE as u64 - 1;
        let mut ranges = Vec::<Range, LIST_LIMIT>::new();
        let mut room = BATCH_LIMIT;
        let mut more = false;
        // At most `LIST_LIMIT` turns.
        for word in list.iter().take(LIST_LIMIT).take_while(|word| **word != 0) {
            let Some(range) = check(word & !COUNT, word & COUNT, self.lendable) else {
                return Status::InvalidParameters.into();
            };
            let count = range.count.min(room);
            room -= count;
            more |= count < range.count;
            if count != 0 {
                // As many as there are words at most.
                let _ = ranges.push(Range { count, ..range });
            }
        }
        match Target::check(attributes) {
            Some(target) if !ranges.is_empty() => self.transfer(target, &ranges, more),
            _ => Status::InvalidParameters.into(),
        }
    }

    /// Moves ranges in order, [`BATCH_LIMIT`] granules at most, of which there are `more` for the next call.
    fn transfer(&self, target: Target, ranges: &[Range], more: bool) -> Reply {
        let start = self.protection.ticks();
        let (moved, counter) = match target {
            Target::Secure => (self.protection.lend(ranges), Counter::Lent),
            Target::NonSecure => (self.protection.give_back(ranges), Counter::Returned),
        };
        if moved.done > 0 {
            self.count(counter, moved.done);
            self.count(Counter::Batches, 1);
        }
        // One granule takes less than a full batch, also where it makes or shatters 512 MB (about 9,000 writes), and reading the
        // counter again would cost it more than it tells.
        if moved.done > 1 {
            let taken = self.protection.ticks().saturating_sub(start);
            self.counters[Counter::LongestMove as usize].fetch_max(taken, Ordering::Relaxed);
        }
        let status = match moved.error {
            Some(MoveError::NotOwned) => Status::Denied,
            Some(MoveError::NotCovered) => Status::InvalidParameters,
            None if more => Status::Incomplete,
            None => Status::Success,
        };
        Reply(status.code(), moved.done)
    }
}

/// The world that granules go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Secure,
    NonSecure,
}

impl Target {
    /// Proves an attributes register: bits `[3:0]` are a GPI, the others zero.
    fn check(attributes: u64) -> Option<Self> {
        const SECURE: u64 = Gpi::Secure as u64;
        const NON_SECURE: u64 = Gpi::NonSecure as u64;
        match attributes {
            SECURE => Some(Self::Secure),
            NON_SECURE => Some(Self::NonSecure),
            _ => None,
        }
    }
}

/// Proves what a caller claims: whole granules inside one lendable bank.
fn check(base: u64, count: u64, lendable: &[Region]) -> Option<Range> {
    let bytes = count.checked_mul(GRANULE_SIZE as u64)?;
    // A turn for each bank.
    let inside = lendable.iter().any(|bank| bank.contains(base, bytes));
    (base.is_multiple_of(GRANULE_SIZE as u64) && inside).then_some(Range { base, count })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::{cores::PowerError, protection::Moved};
    use flexserve_abi::el3::CoreState;
    use proptest::prelude::*;
    use std::{collections::BTreeSet, sync::Mutex};

    const BANK: Region = Region { base: 0x4200_0000, size: 0x40_0000 };

    /// Granules that belong to the Secure world; all others are the normal world's.
    #[derive(Debug, Default)]
    struct Fake(Mutex<BTreeSet<u64>>);

    impl GranuleProtection for Fake {
        const BACKEND: u64 = 7;

        fn physical_address_bits(&self) -> u64 {
            40
        }

        fn tlb_invalidations(&self) -> u64 {
            77
        }

        fn faults(&self) -> u64 {
            88
        }

        /// Each granule that a move takes or gives is a tick.
        fn ticks(&self) -> u64 {
            self.0.lock().unwrap().len() as u64
        }

        fn owner(&self, base: u64) -> Option<Gpi> {
            Some(if self.0.lock().unwrap().contains(&base) { Gpi::Secure } else { Gpi::NonSecure })
        }

        fn lend(&self, ranges: &[Range]) -> Moved {
            self.each(ranges, |owned, granule| owned.insert(granule))
        }

        fn give_back(&self, ranges: &[Range]) -> Moved {
            self.each(ranges, |owned, granule| owned.remove(&granule))
        }
    }

    impl Fake {
        fn each(&self, ranges: &[Range], change: impl Fn(&mut BTreeSet<u64>, u64) -> bool) -> Moved {
            assert!(ranges.iter().map(|range| range.count).sum::<u64>() <= BATCH_LIMIT);
            let mut owned = self.0.lock().unwrap();
            let mut done = 0;
            for Range { base, count } in ranges {
                assert!(BANK.contains(*base, count * 4096), "{base:#x} is not lendable");
                for i in 0..*count {
                    if !change(&mut owned, base + i * 4096) {
                        return Moved { done, error: Some(MoveError::NotOwned) };
                    }
                    done += 1;
                }
            }
            Moved { done, error: None }
        }
    }

    fn call(service: &Service<Fake>, caller: Caller, fid: u32, args: &[u64]) -> Reply {
        let mut registers = [0; 17];
        registers[..args.len()].copy_from_slice(args);
        service.handle(caller, Call { fid, args: &registers })
    }

    fn service() -> Service<Fake> {
        Service::new(Fake::default(), &[BANK])
    }

    fn set(service: &Service<Fake>, base: u64, count: u64, gpi: Gpi) -> Reply {
        call(service, Caller::Secure, fid::GRANULE_SET, &[base, count, gpi as u64])
    }

    fn stat(service: &Service<Fake>, counter: Counter) -> u64 {
        call(service, Caller::NonSecure, fid::STATS, &[counter as u64]).1
    }

    #[test]
    fn granules_move_there_and_back() {
        let s = service();
        assert_eq!(set(&s, BANK.base, 2, Gpi::Secure), Reply(0, 2));
        assert_eq!(set(&s, BANK.base, 2, Gpi::NonSecure), Reply(0, 2));
        assert_eq!((stat(&s, Counter::Lent), stat(&s, Counter::Returned)), (2, 2));
    }

    #[test]
    fn the_longest_move_is_kept() {
        let s = service();
        for count in [1, 3, 2] {
            set(&s, BANK.base, count, Gpi::Secure);
            set(&s, BANK.base, count, Gpi::NonSecure);
            assert_eq!(stat(&s, Counter::LongestMove), if count == 1 { 0 } else { 3 });
        }
    }

    #[test]
    fn every_counter_is_told_and_no_other() {
        let s = service();
        let stats = |index| call(&s, Caller::Realm, fid::STATS, &[index]);
        for (counter, _) in Counter::ALL {
            assert_eq!(stats(counter as u64).0, 0);
        }
        assert_eq!(stats(Counter::TlbInvalidations as u64).1, 77);
        assert_eq!(stats(Counter::Faults as u64).1, 88);
        assert_eq!(stats(Counter::ALL.len() as u64), Status::InvalidParameters.into());
        assert_eq!(stats(u64::MAX), Status::InvalidParameters.into());
    }

    #[test]
    fn only_the_secure_world_moves_granules() {
        let s = service();
        for caller in [Caller::NonSecure, Caller::Realm] {
            let reply = call(&s, caller, fid::GRANULE_SET, &[BANK.base, 1, Gpi::Secure as u64]);
            assert_eq!(reply, Status::NotSupported.into());
        }
        assert_eq!(stat(&s, Counter::Refused), 2);
        assert!(s.protection.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_granule_cannot_be_lent_twice_and_those_before_it_are_reported() {
        let s = service();
        assert_eq!(set(&s, BANK.base + 0x2000, 1, Gpi::Secure), Reply(0, 1));
        assert_eq!(set(&s, BANK.base, 4, Gpi::Secure), Reply(Status::Denied.code(), 2));
        assert_eq!(set(&s, BANK.base + 0x3000, 1, Gpi::NonSecure), Reply(Status::Denied.code(), 0));
    }

    #[test]
    fn the_normal_world_learns_the_state_of_its_own_granules_only() {
        let s = service();
        let get = |caller, base| call(&s, caller, fid::GRANULE_GET, &[base]);
        set(&s, BANK.base, 1, Gpi::Secure);
        assert_eq!(get(Caller::Secure, BANK.base), Reply(0, Gpi::Secure as u64));
        assert_eq!(get(Caller::NonSecure, BANK.base), Status::Denied.into());
        assert_eq!(get(Caller::NonSecure, BANK.base + 0x1000), Reply(0, Gpi::NonSecure as u64));
        assert_eq!(get(Caller::Secure, BANK.end()), Status::InvalidParameters.into());
        assert_eq!(get(Caller::Realm, BANK.base), Status::NotSupported.into());
    }

    #[test]
    fn the_batch_limit_is_exact() {
        let s = service();
        assert_eq!(set(&s, BANK.base, BATCH_LIMIT, Gpi::Secure), Reply(0, BATCH_LIMIT));
        assert_eq!(set(&s, BANK.base, BATCH_LIMIT, Gpi::NonSecure), Reply(0, BATCH_LIMIT));
        let more = set(&s, BANK.base, BATCH_LIMIT + 1, Gpi::Secure);
        assert_eq!(more, Reply(Status::Incomplete.code(), BATCH_LIMIT));
    }

    #[test]
    fn ranges_end_where_the_bank_ends() {
        let s = service();
        let invalid = Reply(Status::InvalidParameters.code(), 0);
        assert_eq!(set(&s, BANK.end() - 0x1000, 1, Gpi::Secure), Reply(0, 1));
        assert_eq!(set(&s, BANK.end() - 0x1000, 2, Gpi::Secure), invalid);
        assert_eq!(set(&s, BANK.base - 0x1000, 2, Gpi::Secure), invalid);
        assert_eq!(set(&s, BANK.base + 1, 1, Gpi::Secure), invalid);
        assert_eq!(set(&s, BANK.base, 0, Gpi::Secure), invalid);
        assert_eq!(set(&s, BANK.base, u64::MAX, Gpi::Secure), invalid);
        assert_eq!(set(&s, BANK.base, 1 << 52, Gpi::Secure), invalid);
    }

    #[test]
    fn only_the_two_worlds_are_targets() {
        let s = service();
        for attributes in (0..=0x1f).filter(|a| *a != 8 && *a != 9).chain([0x108, 1 << 63]) {
            let reply = call(&s, Caller::Secure, fid::GRANULE_SET, &[BANK.base, 1, attributes]);
            assert_eq!(reply, Status::InvalidParameters.into(), "{attributes:#x}");
        }
    }

    fn list(service: &Service<Fake>, ranges: &[u64], gpi: Gpi) -> Reply {
        let args: std::vec::Vec<u64> = [gpi as u64].into_iter().chain(ranges.iter().copied()).collect();
        call(service, Caller::Secure, fid::GRANULE_SET_LIST, &args)
    }

    #[test]
    fn a_list_moves_its_ranges_in_order_up_to_the_batch_limit() {
        let s = service();
        let scattered: std::vec::Vec<u64> = (0..16).map(|i| BANK.base + i * 0x3000 + 2).collect();
        assert_eq!(list(&s, &scattered, Gpi::Secure), Reply(0, 32));
        assert_eq!(list(&s, &scattered[..3], Gpi::NonSecure), Reply(0, 6));
        assert_eq!(list(&s, &scattered[2..5], Gpi::NonSecure), Reply(Status::Denied.code(), 0));
        assert_eq!(list(&s, &[scattered[3], scattered[0]], Gpi::NonSecure), Reply(Status::Denied.code(), 2));
        let far = BANK.base + 0x10_0000;
        let more = list(&s, &[far + 500, far + 0x20_0000 + 100], Gpi::Secure);
        assert_eq!(more, Reply(Status::Incomplete.code(), BATCH_LIMIT));
    }

    #[test]
    fn a_list_with_one_bad_range_moves_nothing() {
        let s = service();
        let invalid = Reply(Status::InvalidParameters.code(), 0);
        for bad in [BANK.end() + 1, BANK.base, BANK.end() - 0x1000 + 2, 1, u64::MAX] {
            assert_eq!(list(&s, &[BANK.base + 1, bad], Gpi::Secure), invalid, "{bad:#x}");
        }
        assert_eq!(list(&s, &[], Gpi::Secure), invalid);
        assert_eq!(list(&s, &[BANK.base + 1], Gpi::Realm), invalid);
        assert!(s.protection.0.lock().unwrap().is_empty());
    }

    /// Cores 0 (on) and 1 (off).
    #[derive(Debug)]
    struct TwoCores;

    impl CoreControl for TwoCores {
        const PROVIDED: bool = true;

        fn index(&self, mpidr: u64) -> Option<usize> {
            usize::try_from(mpidr).ok().filter(|&core| core < 2)
        }

        fn current(&self) -> Option<usize> {
            Some(1)
        }

        fn power_on(&self, mpidr: u64, _entry: u64, _context: u64) -> Result<(), PowerError> {
            if mpidr == 0 { Err(PowerError::On) } else { Ok(()) }
        }

        fn interrupt(&self, _mpidr: u64) {}
    }

    fn core_call(
        service: &Service<Fake, TwoCores>,
        caller: Caller,
        fid: u32,
        args: &[u64],
    ) -> (Option<Status>, u64) {
        let mut registers = [0; 17];
        registers[..args.len()].copy_from_slice(args);
        let reply = service.handle(caller, Call { fid, args: &registers });
        (Status::from_code(reply.0), reply.1)
    }

    #[test]
    fn each_world_has_its_calls_for_cores() {
        let s = Service::with_cores(Fake::default(), &[BANK], TwoCores);
        let refused = (Some(Status::NotSupported), 0);
        for caller in [Caller::Secure, Caller::Realm] {
            assert_eq!(core_call(&s, caller, fid::CORE_LEND, &[1, BANK.base, 0]), refused);
            assert_eq!(core_call(&s, caller, fid::CORE_RECALL, &[1]), refused);
        }
        assert_eq!(core_call(&s, Caller::Realm, fid::CORE_STATE, &[1]), refused);
        for caller in [Caller::NonSecure, Caller::Realm] {
            assert_eq!(core_call(&s, caller, fid::CORE_RETURN, &[]), refused);
        }
        let success = Some(Status::Success);
        assert_eq!(core_call(&s, Caller::NonSecure, fid::CORE_LEND, &[1, BANK.base, 0]), (success, 0));
        assert_eq!(s.arrive(), Arrival::SecureWorld);
        for caller in [Caller::NonSecure, Caller::Secure] {
            let state = core_call(&s, caller, fid::CORE_STATE, &[1]);
            assert_eq!(state, (success, CoreState::Lent as u64));
        }
        assert_eq!(core_call(&s, Caller::Secure, fid::CORE_RETURN, &[]), (Some(Status::Denied), 0));
        assert_eq!(core_call(&s, Caller::NonSecure, fid::CORE_RECALL, &[1]), (success, 0));
        assert_eq!(core_call(&s, Caller::Secure, fid::CORE_RETURN, &[]), (success, 0));
        let count = |counter: Counter| core_call(&s, Caller::Realm, fid::STATS, &[counter as u64]);
        assert_eq!(count(Counter::CoresLent), (success, 1));
        assert_eq!(count(Counter::CoresRecalled), (success, 1));
        let feature = Call { fid: fid::FEATURES, args: &[Feature::Cores as u64; 17] };
        assert_eq!(s.handle(Caller::NonSecure, feature), Reply(MAX_CORES as u64, 0));
    }

    #[test]
    fn a_core_comes_back_to_an_instruction_of_the_normal_worlds() {
        let s = Service::with_cores(Fake::default(), &[BANK], TwoCores);
        let lend = |entry| core_call(&s, Caller::NonSecure, fid::CORE_LEND, &[1, entry, 0]).0;
        assert!(s.protection.0.lock().unwrap().insert(BANK.base + 0x1000));
        for entry in [
            BANK.base + 1,
            BANK.base + 2,
            BANK.base - 4,
            BANK.end(),
            BANK.base + 0x1000,
            BANK.base + 0x1ffc,
            0,
            u64::MAX,
            !3,
        ] {
            assert_eq!(lend(entry), Some(Status::InvalidParameters), "{entry:#x}");
        }
        assert_eq!(lend(BANK.end() - 4), Some(Status::Success));
    }

    #[test]
    fn cores_stay_where_nothing_moves_them() {
        let s = service();
        for function in [fid::CORE_LEND, fid::CORE_RECALL, fid::CORE_STATE, fid::CORE_RETURN] {
            for caller in [Caller::Secure, Caller::NonSecure, Caller::Realm] {
                let reply = call(&s, caller, function, &[1, BANK.base, 0]);
                assert_eq!(reply, Status::NotSupported.into());
            }
        }
        assert_eq!(call(&s, Caller::NonSecure, fid::FEATURES, &[Feature::Cores as u64]), Reply(0, 0));
    }

    proptest! {
        /// Rule 5: any register value, from any world, gets a defined answer, and a granule outside every lendable
        /// bank never reaches the mechanism (the fake panics on one).
        #[test]
        fn garbage_gets_a_defined_answer(
            calls in prop::collection::vec(
                (prop_oneof![0xC300_0000_u32..0xC300_0040, any::<u32>()], 0..3_u8,
                 prop_oneof![BANK.base - 0x4000..BANK.end() + 0x4000, any::<u64>()],
                 prop_oneof![0..2000_u64, any::<u64>()],
                 prop_oneof![0..16_u64, any::<u64>()]), 1..50),
        ) {
            let s = service();
            for (fid, caller, x1, x2, x3) in calls {
                let caller = [Caller::Secure, Caller::NonSecure, Caller::Realm][usize::from(caller)];
                let before = s.protection.0.lock().unwrap().len();
                let reply = call(&s, caller, fid, &[x1, x2, x3]);
                let after = s.protection.0.lock().unwrap().len();
                if ![fid::GRANULE_SET, fid::GRANULE_SET_LIST].contains(&fid) || caller != Caller::Secure {
                    prop_assert_eq!(before, after);
                } else {
                    prop_assert!(Status::from_code(reply.0).is_some());
                    prop_assert_eq!(before.abs_diff(after) as u64, reply.1);
                }
            }
        }
    }
}
