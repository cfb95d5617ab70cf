//! Three cores that the normal world turns on and off, lends and recalls, all at once.
//!
//! What is explored is [`Cores`] as it ships, one access to its bytes, to PSCI or to the GIC at a time. Modelled are PSCI, as
//! BL31's implements it (each of its functions decides under the lock of the core that it is about), Secure SGIs, and the loop
//! of the SPMC on a lent core (`spmc/src/machine/lent.rs`). What a worker does in there is tested in `spmc/tests/workers.rs`.
//!
//! A core's life, as its [`Doing`]:
//!
//! ```text
//!        PSCI accepts      PSCI finishes           arrive()
//!  Off -------------> Boots -----------> Arrives ------------> Normal ---> Off
//!                                           |    SecureWorld     ^    CPU_OFF
//!                                           v                    | hand_back()
//!                                         Asks ----> Cleans -> HandsBack
//!                                         ^  | recalled
//!                            interrupted  |  v not recalled
//!                                        Works
//! ```

use crate::stepwise::{Shared, run, step};
use flexserve_abi::el3::{CoreState, Status};
use flexserve_el3_svc::cores::{Arrival, CoreControl, Cores, Places, PowerError};
use stateright::{Model, Property};

/// Cores.
pub const CORES: usize = 3;

/// What can be broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Nothing.
    None,
    /// A byte is read, compared and written in three steps.
    Exchange,
    /// A core that PSCI does not turn on counts as lent.
    Refusal,
    /// A recall interrupts nobody.
    Interrupt,
    /// A recall interrupts the caller's next neighbour.
    WrongCore,
    /// A core that comes up does not wait for a lend that is being decided.
    Wait,
    /// The SPMC acknowledges an interrupt after it has asked whether the core is recalled.
    Acknowledge,
    /// The SPMC leaves a worker's registers in the core.
    Registers,
}

impl Defect {
    /// Every defect.
    pub const ALL: [Self; 7] = [
        Self::Exchange,
        Self::Refusal,
        Self::Interrupt,
        Self::WrongCore,
        Self::Wait,
        Self::Acknowledge,
        Self::Registers,
    ];
}

/// What PSCI's `AFFINITY_INFO` says of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Power {
    /// 1.
    Off,
    /// 2.
    Pending,
    /// 0.
    On,
}

/// What cores share: nothing of it is locked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chip {
    /// EL3's byte for each core.
    pub places: [u8; CORES],
    /// What PSCI says.
    pub power: [Power; CORES],
    /// The Secure SGI is pending.
    pub interrupt: [bool; CORES],
}

/// A call of the normal world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// `CORE_LEND`.
    Lend,
    /// `CORE_RECALL`.
    Recall,
    /// PSCI `CPU_ON`.
    On,
}

/// What a core does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Doing {
    /// It has no power.
    Off,
    /// PSCI prepares it.
    Boots,
    /// It asks EL3 where to go; so many accesses were answered.
    Arrives(Vec<u64>),
    /// It runs in the normal world.
    Normal,
    /// It is in a call about another core, or itself.
    Calls {
        /// Which call.
        call: Call,
        /// About this core.
        target: usize,
        /// What its accesses were answered.
        log: Vec<u64>,
        /// PSCI has turned the core on for this call.
        accepted: bool,
        /// The core has left the Secure world since the call began, or since it was recalled by it.
        stale: bool,
    },
    /// The SPMC asks EL3 whether the core is recalled.
    Asks,
    /// It works, or sleeps, in the Secure world until an interrupt.
    Works,
    /// The SPMC acknowledges that interrupt.
    Acknowledges,
    /// The SPMC zeroes its registers.
    Cleans,
    /// The SPMC hands it back.
    HandsBack(Vec<u64>),
}

impl Doing {
    fn is_secure(&self) -> bool {
        matches!(self, Self::Asks | Self::Works | Self::Acknowledges | Self::Cleans | Self::HandsBack(_))
    }
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    /// What is shared.
    pub chip: Chip,
    /// What each core does.
    pub cores: [Doing; CORES],
    /// A worker's values are in its registers.
    pub dirty: [bool; CORES],
    /// It was lent, says whoever asked for it.
    pub lent: [bool; CORES],
    /// It was recalled, says whoever asked for it.
    pub recalled: [bool; CORES],
    /// The rule that the last step broke.
    pub broken: Option<&'static str>,
}

/// The rules, as a broken one is reported.
pub mod rule {
    /// Between calls and what `CORE_STATE` and `AFFINITY_INFO` say.
    pub const AGREE: &str = "CORE_STATE, AFFINITY_INFO and the core agree (1, 5)";
    /// Rule 4, of every call, whatever the other cores do meanwhile.
    pub const BOUNDED: &str = "no call goes round (4)";
    /// Of calls that nobody is in the way of.
    pub const STATUS: &str = "every call has its status (5)";
    /// Of `CORE_LEND`.
    pub const ACCEPTED: &str = "a lend succeeds if, and only if, PSCI turns the core on (5)";
    /// The normal world keeps one.
    pub const LAST: &str = "the last core is never lent (1)";
    /// Nothing of a worker's comes along.
    pub const CLEAN: &str = "a core comes back clean (3)";
    /// By itself, whatever the other cores do.
    pub const RECALL: &str = "a recalled core comes back (6)";
    /// Of a core that is on its way.
    pub const ARRIVES: &str = "a core that was turned on arrives (6)";
}
use rule::{ACCEPTED, AGREE, ARRIVES, BOUNDED, CLEAN, LAST, RECALL, STATUS};

/// Most accesses of a call to what cores share: a recall that meets another core's change looks twice, changes twice and interrupts.
const MOST_ACCESSES: usize = 5;

/// The machine under the shipped code: who calls, and through what.
#[derive(Clone, Copy)]
struct Control<'a, 'l> {
    shared: &'a Shared<'l, Chip>,
    core: usize,
    defect: Defect,
}

impl CoreControl for Control<'_, '_> {
    const PROVIDED: bool = true;

    fn index(&self, mpidr: u64) -> Option<usize> {
        usize::try_from(mpidr).ok().filter(|&core| core < CORES)
    }

    fn current(&self) -> Option<usize> {
        Some(self.core)
    }

    fn power_on(&self, mpidr: u64, _entry: u64, _context: u64) -> Result<(), PowerError> {
        let was = self.shared.access(|chip| turn_on(chip, mpidr as usize));
        match was {
            _ if self.defect == Defect::Refusal => Ok(()),
            was if was == Power::Off as u64 => Ok(()),
            was if was == Power::Pending as u64 => Err(PowerError::Pending),
            _ => Err(PowerError::On),
        }
    }

    fn interrupt(&self, mpidr: u64) {
        let target = match self.defect {
            Defect::Interrupt => return,
            Defect::WrongCore => (self.core + 1) % CORES,
            _ => mpidr as usize,
        };
        self.shared.access(|chip| {
            chip.interrupt[target] = true;
            0
        });
    }
}

impl Places for Control<'_, '_> {
    fn load(&self, core: usize) -> u8 {
        self.shared.access(|chip| chip.places[core].into()) as u8
    }

    fn exchange(&self, core: usize, from: u8, to: u8) -> bool {
        if self.defect == Defect::Exchange {
            return self.load(core) == from && {
                self.shared.access(|chip| {
                    chip.places[core] = to;
                    0
                });
                true
            };
        }
        let was = self.shared.access(|chip| {
            let was = chip.places[core];
            if was == from {
                chip.places[core] = to;
            }
            was.into()
        });
        was == u64::from(from)
    }
}

/// PSCI's `CPU_ON`: what the core was. It is `Off` once.
fn turn_on(chip: &mut Chip, core: usize) -> u64 {
    let was = chip.power[core];
    if was == Power::Off {
        chip.power[core] = Power::Pending;
    }
    was as u64
}

/// Something that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A core of the normal world makes a call about a core.
    Begin(usize, Call, usize),
    /// It turns itself off.
    Off(usize),
    /// A core goes on with what it does.
    Step(usize),
    /// A worker's end: of itself, or with its partition.
    End(usize),
}

/// An exploration. At first one core is on.
#[derive(Clone, Copy, Debug)]
pub struct Exploration {
    /// What is broken.
    pub defect: Defect,
}

impl Exploration {
    fn cores<'a, 'l>(
        &self,
        shared: &'a Shared<'l, Chip>,
        core: usize,
    ) -> Cores<Control<'a, 'l>, Control<'a, 'l>> {
        let control = Control { shared, core, defect: self.defect };
        Cores::with_places(control, control)
    }

    /// A call with nobody in its way: its status.
    fn alone(&self, chip: &Chip, call: Call, target: usize) -> Status {
        run(chip, |shared| self.call(shared, 0, call, target)).1
    }

    fn state(&self, chip: &Chip, core: usize) -> Option<CoreState> {
        run(chip, |shared| self.cores(shared, 0).state(core as u64)).1
    }

    fn call(&self, shared: &Shared<Chip>, core: usize, call: Call, target: usize) -> Status {
        let cores = self.cores(shared, core);
        match call {
            Call::Lend => cores.lend(target as u64, 0, 0),
            Call::Recall => cores.recall(target as u64),
            Call::On => {
                shared.access(|chip| turn_on(chip, target));
                Status::Success
            }
        }
    }

    /// The next step of what a core does. `false` if it waits for something.
    fn step(&self, machine: &mut Machine, core: usize) -> bool {
        let chip = machine.chip.clone();
        match machine.cores[core].clone() {
            Doing::Off | Doing::Normal => return false,
            Doing::Boots => {
                machine.chip.power[core] = Power::On;
                machine.cores[core] = Doing::Arrives(Vec::new());
            }
            Doing::Arrives(mut log) => {
                let step = step(&chip, &log, |shared| self.cores(shared, core).arrive());
                machine.chip = step.state;
                log.extend(step.answer);
                match step.returned {
                    None => machine.cores[core] = Doing::Arrives(log),
                    Some(Arrival::SecureWorld) => machine.cores[core] = Doing::Asks,
                    Some(Arrival::Wait) if self.defect != Defect::Wait => {
                        machine.cores[core] = Doing::Arrives(Vec::new());
                    }
                    Some(_) => machine.enter_normal_world(core),
                }
            }
            Doing::Calls { call, target, mut log, accepted, stale } => {
                let step = step(&chip, &log, |shared| self.call(shared, core, call, target));
                machine.chip = step.state;
                log.extend(step.answer);
                if log.len() > MOST_ACCESSES {
                    machine.broken = Some(BOUNDED);
                }
                let turned_on = machine.chip.power[target] != chip.power[target];
                let accepted = accepted | turned_on;
                machine.lent[target] |= turned_on && call == Call::Lend;
                let decided = machine.chip.places[target] != chip.places[target];
                let stale = stale && !(call == Call::Recall && decided);
                match step.returned {
                    None => machine.cores[core] = Doing::Calls { call, target, log, accepted, stale },
                    Some(status) => {
                        machine.cores[core] = Doing::Normal;
                        if call == Call::Lend && accepted != (status == Status::Success) {
                            machine.broken = Some(ACCEPTED);
                        }
                        if call == Call::Recall && status == Status::Success && !stale {
                            machine.recalled[target] = true;
                        }
                    }
                }
            }
            Doing::Asks => {
                let step = step(&chip, &[], |shared| self.cores(shared, core).state(core as u64));
                machine.cores[core] = match step.returned.flatten() {
                    Some(CoreState::Lent) if self.defect == Defect::Acknowledge => Doing::Acknowledges,
                    Some(CoreState::Lent) => Doing::Works,
                    _ => Doing::Cleans,
                };
            }
            Doing::Works if !chip.interrupt[core] => return false,
            Doing::Works if self.defect == Defect::Acknowledge => machine.cores[core] = Doing::Asks,
            Doing::Works => machine.cores[core] = Doing::Acknowledges,
            Doing::Acknowledges => {
                machine.chip.interrupt[core] = false;
                let late = self.defect == Defect::Acknowledge;
                machine.cores[core] = if late { Doing::Works } else { Doing::Asks };
            }
            Doing::Cleans => {
                machine.dirty[core] &= self.defect == Defect::Registers;
                machine.cores[core] = Doing::HandsBack(Vec::new());
            }
            Doing::HandsBack(mut log) => {
                let step = step(&chip, &log, |shared| self.cores(shared, core).hand_back());
                machine.chip = step.state;
                log.extend(step.answer);
                match step.returned {
                    None => machine.cores[core] = Doing::HandsBack(log),
                    Some(Status::Success) => machine.enter_normal_world(core),
                    Some(_) => machine.broken = Some(STATUS),
                }
            }
        }
        machine.settle();
        true
    }

    /// Whether a core, of which the others leave off, gets where it should within a bounded number of steps.
    fn gets(&self, machine: &Machine, core: usize, there: impl Fn(&Doing) -> bool) -> bool {
        /// More than the longest way takes.
        const STEPS: usize = 12;
        let mut machine = machine.clone();
        for _ in 0..STEPS {
            if there(&machine.cores[core]) {
                return true;
            }
            if !self.step(&mut machine, core) {
                return false;
            }
        }
        false
    }

    /// The rule that a state breaks.
    fn check(&self, machine: &Machine) -> Option<&'static str> {
        if machine.lent.iter().all(|lent| *lent) {
            return Some(LAST);
        }
        (0..CORES).find_map(|core| self.check_core(machine, core))
    }

    fn check_core(&self, machine: &Machine, core: usize) -> Option<&'static str> {
        let (doing, power) = (&machine.cores[core], machine.chip.power[core]);
        let (lent, recalled) = (machine.lent[core], machine.recalled[core]);
        if machine.dirty[core] && !doing.is_secure() {
            return Some(CLEAN);
        }
        let state = self.state(&machine.chip, core)?;
        let lending = machine.is_called(core, Call::Lend);
        let expected_power = match doing {
            Doing::Off => Power::Off,
            Doing::Boots => Power::Pending,
            _ => Power::On,
        };
        let agrees = match (doing, state) {
            (doing, CoreState::Lent) => doing.is_secure(),
            (Doing::Boots | Doing::Arrives(_), CoreState::Recalled) => lent,
            (doing, CoreState::Recalled) => doing.is_secure(),
            (Doing::Boots | Doing::Arrives(_), CoreState::Lending) => lent || lending,
            (doing, CoreState::Lending) => !doing.is_secure() && lending,
            (doing, CoreState::Owned) => !doing.is_secure() && !lent,
        };
        if !agrees || power != expected_power {
            return Some(AGREE);
        }
        let calm = ![Call::Lend, Call::Recall, Call::On].iter().any(|call| machine.is_called(core, *call));
        if calm && recalled && !self.gets(machine, core, |doing| *doing == Doing::Normal) {
            return Some(RECALL);
        }
        let on_its_way = matches!(doing, Doing::Boots | Doing::Arrives(_));
        let arrived = |doing: &Doing| *doing == Doing::Normal || doing.is_secure();
        if calm && on_its_way && !self.gets(machine, core, arrived) {
            return Some(ARRIVES);
        }
        // As docs/abi.md says, for a core about which no other call is under way.
        let expected = match (doing, lent, recalled) {
            (Doing::Off, ..) => (Status::Success, Status::Denied),
            (Doing::Boots, false, _) => (Status::Busy, Status::Denied),
            (_, false, _) => (Status::Denied, Status::Denied),
            (doing, true, false) if doing.is_secure() => (Status::Denied, Status::Success),
            (_, true, _) => (Status::Busy, Status::Success),
        };
        let answers =
            || (self.alone(&machine.chip, Call::Lend, core), self.alone(&machine.chip, Call::Recall, core));
        (calm && answers() != expected).then_some(STATUS)
    }
}

impl Machine {
    fn new() -> Self {
        let chip = Chip {
            places: [0; CORES],
            power: [Power::On, Power::Off, Power::Off],
            interrupt: [false; CORES],
        };
        Self {
            chip,
            cores: [Doing::Normal, Doing::Off, Doing::Off],
            dirty: [false; CORES],
            lent: [false; CORES],
            recalled: [false; CORES],
            broken: None,
        }
    }

    /// A core starts at its entry point in the normal world.
    fn enter_normal_world(&mut self, core: usize) {
        self.cores[core] = Doing::Normal;
        (self.lent[core], self.recalled[core]) = (false, false);
        for doing in &mut self.cores {
            if let Doing::Calls { target, stale, .. } = doing {
                *stale |= *target == core;
            }
        }
    }

    /// Whether a call of this kind about a core is under way.
    fn is_called(&self, core: usize, kind: Call) -> bool {
        let about = |doing: &Doing| matches!(doing, Doing::Calls { call, target, .. } if *call == kind && *target == core);
        self.cores.iter().any(about)
    }

    /// What the hardware does by itself: cores that PSCI has turned on boot, and what works leaves its values.
    fn settle(&mut self) {
        for core in 0..CORES {
            if self.cores[core] == Doing::Off && self.chip.power[core] == Power::Pending {
                self.cores[core] = Doing::Boots;
            }
            self.dirty[core] |= self.cores[core] == Doing::Works;
        }
    }
}

impl Model for Exploration {
    type State = Machine;
    type Action = Action;

    fn init_states(&self) -> Vec<Machine> {
        vec![Machine::new()]
    }

    fn actions(&self, machine: &Machine, actions: &mut Vec<Action>) {
        if machine.broken.is_some() {
            return;
        }
        for (core, doing) in machine.cores.iter().enumerate() {
            match doing {
                Doing::Normal => {
                    actions.push(Action::Off(core));
                    for call in [Call::Lend, Call::Recall, Call::On] {
                        actions.extend((0..CORES).map(|target| Action::Begin(core, call, target)));
                    }
                }
                Doing::Works => actions.extend([Action::Step(core), Action::End(core)]),
                _ => actions.push(Action::Step(core)),
            }
        }
    }

    fn next_state(&self, last: &Machine, action: Action) -> Option<Machine> {
        let mut machine = last.clone();
        match action {
            Action::Begin(core, call, target) => {
                let log = Vec::new();
                machine.cores[core] = Doing::Calls { call, target, log, accepted: false, stale: false };
                // That it has begun shows at its first access only.
                self.step(&mut machine, core);
            }
            Action::Off(core) => {
                machine.cores[core] = Doing::Off;
                machine.chip.power[core] = Power::Off;
            }
            Action::Step(core) => {
                self.step(&mut machine, core);
            }
            Action::End(core) => machine.cores[core] = Doing::Asks,
        }
        machine.broken = machine.broken.or_else(|| self.check(&machine));
        (machine != *last).then_some(machine)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn calls(machine: &Machine, call: Call) -> usize {
            let is = |doing: &&Doing| matches!(doing, Doing::Calls { call: c, .. } if *c == call);
            machine.cores.iter().filter(is).count()
        }
        vec![
            Property::always("no rule is broken", |_, machine: &Machine| machine.broken.is_none()),
            Property::sometimes("all cores but one are lent", |_, machine: &Machine| {
                machine.cores.iter().filter(|doing| doing.is_secure()).count() == CORES - 1
            }),
            Property::sometimes("two recalls race for a core that works", |_, machine: &Machine| {
                calls(machine, Call::Recall) == 2 && machine.cores.contains(&Doing::Works)
            }),
            Property::sometimes("three lends race", |_, machine: &Machine| calls(machine, Call::Lend) == 3),
            Property::sometimes("a core comes up while it is decided about", |_, machine: &Machine| {
                calls(machine, Call::Lend) > 0 && machine.cores.contains(&Doing::Arrives(Vec::new()))
            }),
        ]
    }
}
