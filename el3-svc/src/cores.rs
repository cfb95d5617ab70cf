//! Cores that change worlds: `CORE_LEND`, `CORE_RECALL`, `CORE_STATE`, `CORE_RETURN`.
//!
//! A core is lent while it is off in the normal world. EL3 powers it on as PSCI's `CPU_ON` would, so that PSCI knows it as on,
//! but lets the Secure world have it before it starts at its entry point in the normal world.
//!
//! ```text
//!           lend        PSCI agrees       the core comes up          recall          the core is handed back
//!  Owned ----------> Asked ----------> Coming ------------> Lent ------------> Recalled ------------> Owned
//!    ^                 |                  |  recall                                ^
//!    +-----------------+ PSCI refuses     +----------------------------------------+
//! ```
//!
//! A core that comes up while it is `Asked` waits: the normal world may have turned it on itself, at the same time, in which
//! case PSCI refuses the lend. Each change is one compare-and-exchange; nothing is locked.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU8, Ordering};
use flexserve_abi::el3::{CoreState, MAX_CORES, Status};

/// Why a core was not powered on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerError {
    /// It is on.
    On,
    /// It is being turned on.
    Pending,
    /// No such core, or not an entry point.
    Invalid,
    /// Something else.
    Failed,
}

impl From<PowerError> for Status {
    fn from(error: PowerError) -> Self {
        match error {
            PowerError::On | PowerError::Failed => Self::Denied,
            PowerError::Pending => Self::Busy,
            PowerError::Invalid => Self::InvalidParameters,
        }
    }
}

/// The machine's cores.
pub trait CoreControl {
    /// Whether cores can be lent here at all.
    const PROVIDED: bool;

    /// The number below [`MAX_CORES`] of the core that the machine has under this affinity. `None` if there is none, or a
    /// bit outside the affinity fields is set.
    fn index(&self, mpidr: u64) -> Option<usize>;

    /// The calling core's number. `None` if it is [`MAX_CORES`] or more.
    fn current(&self) -> Option<usize>;

    /// PSCI `CPU_ON` (DEN0022, section 5.6).
    ///
    /// # Errors
    ///
    /// [`PowerError`]; the core does not come up for this call then.
    fn power_on(&self, mpidr: u64, entry: u64, context: u64) -> Result<(), PowerError>;

    /// Sends the Secure world's interrupt to a core.
    fn interrupt(&self, mpidr: u64);
}

/// A machine whose cores stay where they are.
#[derive(Clone, Copy, Debug)]
pub struct FixedCores;

impl CoreControl for FixedCores {
    const PROVIDED: bool = false;

    fn index(&self, _mpidr: u64) -> Option<usize> {
        None
    }

    fn current(&self) -> Option<usize> {
        None
    }

    fn power_on(&self, _mpidr: u64, _entry: u64, _context: u64) -> Result<(), PowerError> {
        Err(PowerError::Failed)
    }

    fn interrupt(&self, _mpidr: u64) {}
}

/// Where a core is on its way. The states that a caller sees are [`CoreState`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Place {
    Owned,
    Asked,
    Coming,
    Lent,
    Recalled,
}

impl Place {
    fn seen(self) -> CoreState {
        match self {
            Self::Owned => CoreState::Owned,
            Self::Asked | Self::Coming => CoreState::Lending,
            Self::Lent => CoreState::Lent,
            Self::Recalled => CoreState::Recalled,
        }
    }
}

/// Where a core goes that has come up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It asks again: another core is about to decide.
    Wait,
    /// To its entry point in the normal world.
    NormalWorld,
    /// To the Secure world, until that hands it back.
    SecureWorld,
}

/// Where the place of each core is kept: a byte that all cores read and change.
pub trait Places {
    /// A core's byte.
    fn load(&self, core: usize) -> u8;

    /// Changes it if it is `from`. Whether it was.
    fn exchange(&self, core: usize, from: u8, to: u8) -> bool;
}

impl Places for [AtomicU8; MAX_CORES] {
    fn load(&self, core: usize) -> u8 {
        self[core].load(Ordering::Acquire)
    }

    fn exchange(&self, core: usize, from: u8, to: u8) -> bool {
        self[core].compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// All cores.
#[derive(Debug)]
pub struct Cores<C, P = [AtomicU8; MAX_CORES]> {
    control: C,
    places: P,
}

impl<C: CoreControl> Cores<C> {
    /// All cores belong to the normal world.
    pub const fn new(control: C) -> Self {
        Self::with_places(control, [const { AtomicU8::new(Place::Owned as u8) }; MAX_CORES])
    }
}

impl<C: CoreControl, P: Places> Cores<C, P> {
    /// With bytes that are kept elsewhere. A zero says that the core belongs to the normal world.
    pub const fn with_places(control: C, places: P) -> Self {
        Self { control, places }
    }

    fn place(&self, core: usize) -> Place {
        match self.places.load(core) {
            0 => Place::Owned,
            1 => Place::Asked,
            2 => Place::Coming,
            3 => Place::Lent,
            _ => Place::Recalled,
        }
    }

    /// One step of a core's way. Whether it was where it was thought to be.
    fn step(&self, core: usize, from: Place, to: Place) -> bool {
        self.places.exchange(core, from as u8, to as u8)
    }

    /// `CORE_LEND`. `entry` has been proven to be the normal world's.
    pub fn lend(&self, mpidr: u64, entry: u64, context: u64) -> Status {
        let Some(core) = self.control.index(mpidr) else { return Status::InvalidParameters };
        if !self.step(core, Place::Owned, Place::Asked) {
            return if self.place(core) == Place::Lent { Status::Denied } else { Status::Busy };
        }
        let powered = self.control.power_on(mpidr, entry, context);
        // Nobody but this call changes a core that is `Asked`.
        self.step(core, Place::Asked, if powered.is_ok() { Place::Coming } else { Place::Owned });
        powered.map_or_else(Status::from, |()| Status::Success)
    }

    /// `CORE_RECALL`. Answers at once; `CORE_STATE` tells when the core is back.
    pub fn recall(&self, mpidr: u64) -> Status {
        let Some(core) = self.control.index(mpidr) else { return Status::InvalidParameters };
        // Forward only, so twice around meets whatever was found: from `Coming` it can go to `Lent` meanwhile.
        for _ in 0..2 {
            match self.place(core) {
                Place::Owned => return Status::Denied,
                Place::Asked => return Status::Busy,
                Place::Recalled => return Status::Success,
                place => {
                    if self.step(core, place, Place::Recalled) {
                        self.control.interrupt(mpidr);
                        return Status::Success;
                    }
                }
            }
        }
        Status::Busy
    }

    /// `CORE_STATE`.
    pub fn state(&self, mpidr: u64) -> Option<CoreState> {
        Some(self.place(self.control.index(mpidr)?).seen())
    }

    /// `CORE_RETURN`: the Secure world hands the calling core back. It may, on [`Status::Success`], and has to leave for its
    /// entry point in the normal world at once.
    pub fn hand_back(&self) -> Status {
        match self.control.current() {
            Some(core) if self.step(core, Place::Recalled, Place::Owned) => Status::Success,
            _ => Status::Denied,
        }
    }

    /// The calling core has come up: where does it go?
    pub fn arrive(&self) -> Arrival {
        let Some(core) = self.control.current() else { return Arrival::NormalWorld };
        match self.place(core) {
            Place::Asked => Arrival::Wait,
            Place::Coming if self.step(core, Place::Coming, Place::Lent) => Arrival::SecureWorld,
            // A recall was faster.
            Place::Coming => Arrival::Wait,
            Place::Recalled => {
                self.step(core, Place::Recalled, Place::Owned);
                Arrival::NormalWorld
            }
            // `Lent` is impossible: a lent core is on, and does not come up again.
            Place::Owned | Place::Lent => Arrival::NormalWorld,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::{cell::RefCell, vec::Vec};

    const ENTRY: u64 = 0x6000_0000;

    /// PSCI's view of three cores, 0 on at first; a core that is turned on comes up when the test says so.
    #[derive(Debug, Default)]
    struct Fake(RefCell<Inner>);

    #[derive(Debug, Default)]
    struct Inner {
        current: usize,
        on: [bool; 3],
        powered: Vec<(u64, u64, u64)>,
        interrupted: Vec<u64>,
        next_error: Option<PowerError>,
    }

    impl CoreControl for Fake {
        const PROVIDED: bool = true;

        fn index(&self, mpidr: u64) -> Option<usize> {
            usize::try_from(mpidr).ok().filter(|&core| core < 3)
        }

        fn current(&self) -> Option<usize> {
            Some(self.0.borrow().current)
        }

        fn power_on(&self, mpidr: u64, entry: u64, context: u64) -> Result<(), PowerError> {
            let mut inner = self.0.borrow_mut();
            if let Some(error) = inner.next_error.take() {
                return Err(error);
            }
            if inner.on[mpidr as usize] {
                return Err(PowerError::On);
            }
            inner.on[mpidr as usize] = true;
            inner.powered.push((mpidr, entry, context));
            Ok(())
        }

        fn interrupt(&self, mpidr: u64) {
            self.0.borrow_mut().interrupted.push(mpidr);
        }
    }

    fn cores() -> Cores<Fake> {
        let cores = Cores::new(Fake::default());
        cores.control.0.borrow_mut().on[0] = true;
        cores
    }

    fn on<T>(cores: &Cores<Fake>, core: usize, act: impl FnOnce(&Cores<Fake>) -> T) -> T {
        cores.control.0.borrow_mut().current = core;
        act(cores)
    }

    fn lent() -> Cores<Fake> {
        let cores = cores();
        assert_eq!(cores.lend(1, ENTRY, 7), Status::Success);
        assert_eq!(on(&cores, 1, Cores::arrive), Arrival::SecureWorld);
        cores
    }

    #[test]
    fn a_core_goes_and_comes_back() {
        let cores = cores();
        assert_eq!(cores.state(1), Some(CoreState::Owned));
        assert_eq!(cores.lend(1, ENTRY, 7), Status::Success);
        assert_eq!(cores.control.0.borrow().powered, [(1, ENTRY, 7)]);
        assert_eq!(cores.state(1), Some(CoreState::Lending));
        assert_eq!(on(&cores, 1, Cores::arrive), Arrival::SecureWorld);
        assert_eq!(cores.state(1), Some(CoreState::Lent));
        assert_eq!(on(&cores, 1, Cores::hand_back), Status::Denied);
        assert_eq!(cores.recall(1), Status::Success);
        assert_eq!(cores.control.0.borrow().interrupted, [1]);
        assert_eq!(cores.state(1), Some(CoreState::Recalled));
        assert_eq!(on(&cores, 0, Cores::hand_back), Status::Denied);
        assert_eq!(on(&cores, 1, Cores::hand_back), Status::Success);
        assert_eq!(cores.state(1), Some(CoreState::Owned));
        assert_eq!(on(&cores, 1, Cores::hand_back), Status::Denied);
    }

    #[test]
    fn only_a_core_that_is_off_is_lent() {
        let cores = lent();
        assert_eq!(cores.lend(0, ENTRY, 0), Status::Denied);
        assert_eq!(cores.state(0), Some(CoreState::Owned));
        assert_eq!(cores.lend(1, ENTRY, 0), Status::Denied);
        assert_eq!(cores.recall(1), Status::Success);
        assert_eq!(cores.lend(1, ENTRY, 0), Status::Busy);
        for nobody in [3, 1 << 31, u64::MAX] {
            assert_eq!(cores.lend(nobody, ENTRY, 0), Status::InvalidParameters);
            assert_eq!(cores.recall(nobody), Status::InvalidParameters);
            assert_eq!(cores.state(nobody), None);
        }
    }

    #[test]
    fn a_lend_that_psci_refuses_leaves_nothing_behind() {
        for (error, status) in [
            (PowerError::On, Status::Denied),
            (PowerError::Pending, Status::Busy),
            (PowerError::Invalid, Status::InvalidParameters),
            (PowerError::Failed, Status::Denied),
        ] {
            let cores = cores();
            cores.control.0.borrow_mut().next_error = Some(error);
            assert_eq!(cores.lend(1, ENTRY, 0), status);
            assert_eq!(cores.state(1), Some(CoreState::Owned));
            assert_eq!(on(&cores, 1, Cores::arrive), Arrival::NormalWorld);
        }
    }

    #[test]
    fn a_core_that_was_turned_on_meanwhile_waits_for_the_refusal() {
        let cores = cores();
        assert!(cores.step(1, Place::Owned, Place::Asked));
        assert_eq!(on(&cores, 1, Cores::arrive), Arrival::Wait);
        assert_eq!(cores.recall(1), Status::Busy);
        assert!(cores.step(1, Place::Asked, Place::Owned));
        assert_eq!(on(&cores, 1, Cores::arrive), Arrival::NormalWorld);
    }

    #[test]
    fn a_recall_before_the_core_came_up_sends_it_to_the_normal_world() {
        let cores = cores();
        assert_eq!(cores.lend(2, ENTRY, 0), Status::Success);
        assert_eq!(cores.recall(2), Status::Success);
        assert_eq!(cores.recall(2), Status::Success);
        assert_eq!(on(&cores, 2, Cores::arrive), Arrival::NormalWorld);
        assert_eq!(cores.state(2), Some(CoreState::Owned));
        assert_eq!(cores.recall(2), Status::Denied);
    }

    #[test]
    fn all_cores_but_one_can_be_lent() {
        let cores = lent();
        assert_eq!(cores.lend(2, ENTRY, 0), Status::Success);
        assert_eq!(on(&cores, 2, Cores::arrive), Arrival::SecureWorld);
        assert_eq!(on(&cores, 0, |cores| cores.lend(0, ENTRY, 0)), Status::Denied);
    }

    #[test]
    fn places_round_trip() {
        let cores = cores();
        for place in [Place::Asked, Place::Coming, Place::Lent, Place::Recalled, Place::Owned] {
            cores.places[2].store(place as u8, Ordering::Relaxed);
            assert_eq!(cores.place(2), place);
        }
    }

    proptest! {
        /// However calls and cores interleave: a core is in the Secure world only while it is lent or recalled, only when
        /// PSCI knows it as on, and each that came up is in one world.
        #[test]
        fn worlds_and_states_agree(acts in prop::collection::vec((0..6_u8, 0..3_usize), 1..200)) {
            let cores = cores();
            // Where each core that is on runs; `None` while it comes up.
            let mut runs = [Some(Arrival::NormalWorld), None, None];
            for (act, core) in acts {
                let is_on = cores.control.0.borrow().on[core];
                match act {
                    0 => _ = cores.lend(core as u64, ENTRY, 0),
                    1 => _ = cores.recall(core as u64),
                    // CPU_ON by the normal world.
                    2 => _ = cores.control.power_on(core as u64, ENTRY, 0),
                    3 if is_on && runs[core].is_none() => {
                        let arrival = on(&cores, core, Cores::arrive);
                        prop_assert_ne!(arrival, Arrival::Wait);
                        runs[core] = Some(arrival);
                    }
                    4 if runs[core] == Some(Arrival::SecureWorld) => {
                        let back = on(&cores, core, Cores::hand_back) == Status::Success;
                        if back {
                            runs[core] = Some(Arrival::NormalWorld);
                        }
                    }
                    // CPU_OFF; one core stays.
                    5 if core != 0 && runs[core] == Some(Arrival::NormalWorld) => {
                        cores.control.0.borrow_mut().on[core] = false;
                        runs[core] = None;
                    }
                    _ => {}
                }
                for (core, runs) in runs.iter().enumerate() {
                    let is_on = cores.control.0.borrow().on[core];
                    let state = cores.state(core as u64).unwrap();
                    let allowed: &[CoreState] = match runs {
                        Some(Arrival::SecureWorld) => &[CoreState::Lent, CoreState::Recalled],
                        None if is_on => &[CoreState::Owned, CoreState::Lending, CoreState::Recalled],
                        _ => &[CoreState::Owned],
                    };
                    prop_assert!(allowed.contains(&state), "core {core}: {state:?}, {runs:?}");
                }
            }
        }
    }
}
