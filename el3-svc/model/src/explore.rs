//! Which calls and accesses are tried, and what must hold in every state.

use crate::{
    defect::Defect,
    library,
    machine::{BANK, FIRST, GRANULE, GRANULES, Line, Machine, Owner, Value},
    replay::{Next, Progress, Request, harmless, step},
};
use flexserve_abi::el3::{Gpi, Status, fid};
use flexserve_el3_svc::protocol::{Caller, Reply};
use stateright::{Model, Property};

/// Something that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A core asks for granules to be moved: to a partition, whoever has them; or, zeroed, from a partition back.
    Call(usize, Request),
    /// A core goes on with its call. If that ends it, this partition gets what was lent.
    Step(usize, u8),
    /// A core of the normal world reads, or writes, the granule with contents.
    Normal {
        /// It writes.
        write: bool,
    },
    /// A core of the Secure world reads it, by speculation, or its partition writes.
    Secure {
        /// It writes.
        write: bool,
    },
    /// A line of this address space leaves the caches.
    Evict(Gpi),
}

/// Granules that are also moved by a list: at the two ends, and downwards.
const LISTS: [(usize, usize); 2] = [(0, 2), (2, 1)];

fn address(granule: usize) -> u64 {
    FIRST + granule as u64 * GRANULE
}

/// An exploration.
#[derive(Clone, Copy, Debug)]
pub struct Exploration {
    /// Whose translations, and contents, are followed.
    pub watched: usize,
    /// How many cores call EL3 at a time. All cores access memory.
    pub callers: usize,
    /// Cores read and write the watched granule.
    pub contents: bool,
    /// The Realm world takes granules and gives them back.
    pub library: bool,
    /// What is broken.
    pub defect: Defect,
}

/// The rules, as a broken one is reported. Numbers are those of the service's contract.
pub mod rule {
    /// Rule 1.
    pub const ONE_OWNER: &str = "a granule has one owner (1)";
    /// Rule 1, for granules that nobody asked for.
    pub const NOTHING_ELSE: &str = "only what was asked for moves (1)";
    /// Rule 2.
    pub const UNREACHABLE: &str = "what is lent cannot be reached (2)";
    /// Rule 2, for lines that are written back late.
    pub const KEPT: &str = "what a partition wrote stays (2)";
    /// Rule 3.
    pub const SCRUBBED: &str = "nothing secret is read by the normal world (3)";
    /// Rule 4, for what others can observe of a call.
    pub const BOUNDED: &str = "no call has more effects than its pieces need (4)";
    /// Rule 5.
    pub const STATUS: &str = "every call has its status (5)";
    /// Rule 6.
    pub const RETURN: &str = "a return always succeeds (6)";
    /// What makes the reduction of this model sound.
    pub const LOCKED: &str = "tables change under their lock";
}
use rule::{KEPT, NOTHING_ELSE, ONE_OWNER, RETURN, SCRUBBED, STATUS, UNREACHABLE};

impl Exploration {
    fn granule(&self) -> u64 {
        address(self.watched)
    }

    /// Calls that make sense for some caller: any lend, and the return of what one partition has. Which partition a lend is
    /// for shows at its end.
    fn calls(&self, machine: &Machine, each: &mut impl FnMut(Request)) {
        if self.library {
            Self::library_calls(machine, each);
        }
        for first in 0..GRANULES {
            for end in first + 1..=GRANULES {
                let count = (end - first) as u64;
                let mut order = [0; GRANULES];
                order.iter_mut().zip(first as u8..).for_each(|(granule, number)| *granule = number);
                let mut call = |to: Gpi| {
                    let args = [address(first), count, to as u64];
                    let lend = to == Gpi::Secure;
                    each(Request { fid: fid::GRANULE_SET, args, order, count: count as u8, lend });
                };
                call(Gpi::Secure);
                if Self::is_one_partitions(machine, first..end) {
                    call(Gpi::NonSecure);
                }
            }
        }
        for (first, second) in LISTS {
            let mut call = |to: Gpi| {
                let args = [to as u64, address(first) | 1, address(second) | 1];
                let (order, lend) = ([first as u8, second as u8, 0], to == Gpi::Secure);
                each(Request { fid: fid::GRANULE_SET_LIST, args, order, count: 2, lend });
            };
            call(Gpi::Secure);
            if Self::is_one_partitions(machine, [first, second].into_iter()) {
                call(Gpi::NonSecure);
            }
        }
    }

    fn library_calls(machine: &Machine, each: &mut impl FnMut(Request)) {
        for granule in 0..GRANULES {
            let mut call = |fid, lend| {
                let order = [granule as u8, 0, 0];
                each(Request { fid, args: [address(granule), 0, 0], order, count: 1, lend });
            };
            call(library::fid::DELEGATE, true);
            if machine.owners[granule] == Owner::Realm {
                call(library::fid::UNDELEGATE, false);
            }
        }
    }

    fn is_one_partitions(machine: &Machine, granules: impl Iterator<Item = usize>) -> bool {
        let mut owners = granules.map(|granule| machine.owners[granule]);
        let first = owners.next();
        matches!(first, Some(Owner::Partition(_))) && owners.all(|owner| Some(owner) == first)
    }

    fn start(&self, machine: &mut Machine, core: usize, request: Request) {
        if !request.lend {
            request.granules().for_each(|granule| machine.owners[granule] = Owner::Leaving);
            if self.contents
                && !request.is_the_librarys()
                && request.granules().any(|granule| granule == self.watched)
            {
                // The manager has unmapped and zeroes it.
                machine.secure = Some(Line { value: Value::Public, dirty: true });
                machine.written = false;
            }
        }
        machine.cores[core].call = Some(Progress { request, reads: Vec::new(), effects: 0 });
    }

    fn finish(machine: &mut Machine, request: &Request, reply: Reply, partition: u8) {
        let (count, lend) = (usize::from(request.count), request.lend);
        let done = reply.1 as usize;
        machine.broken = match Status::from_code(reply.0) {
            Some(Status::Success) if done == count => None,
            Some(Status::Denied) if done < count && lend => None,
            _ if lend => Some(STATUS),
            _ => Some(RETURN),
        };
        for granule in request.granules().take(done) {
            match (lend, machine.owners[granule]) {
                (true, Owner::Normal) if request.is_the_librarys() => machine.owners[granule] = Owner::Realm,
                (true, Owner::Normal) => machine.owners[granule] = Owner::Partition(partition),
                (true, _) => machine.broken = Some(ONE_OWNER),
                (false, Owner::Leaving) if !Self::is_moving(machine, granule, true) => {
                    machine.broken = Some(RETURN);
                }
                // Back for long, perhaps lent again, and perhaps on its way back once more.
                (false, _) => {}
            }
        }
    }

    /// Granules that leave a partition are the normal world's once the tables say so: before the caller hears of it.
    fn release(machine: &mut Machine) {
        for i in 0..GRANULES {
            let back = machine.owner(address(i)) == Some(Gpi::NonSecure);
            if machine.owners[i] == Owner::Leaving && back {
                machine.owners[i] = Owner::Normal;
            }
        }
    }

    fn access(&self, machine: &mut Machine, space: Gpi, write: bool) {
        let (line, value) = match space {
            Gpi::NonSecure => (&mut machine.normal, Value::Public),
            _ => (&mut machine.secure, Value::Secret),
        };
        if write {
            *line = Some(Line { value, dirty: true });
            machine.written |= space == Gpi::Secure;
        } else {
            line.get_or_insert(Line { value: machine.memory, dirty: false });
        }
    }

    /// The rule that a state breaks.
    fn check(&self, machine: &Machine) -> Option<&'static str> {
        let here = machine.owner(self.granule());
        let (normal, secure) = (machine.reaches(Gpi::NonSecure), machine.reaches(Gpi::Secure));
        if normal && machine.seen_by_normal() == Value::Secret {
            return Some(SCRUBBED);
        }
        match machine.owners[self.watched] {
            Owner::Partition(_) if normal || machine.normal.is_some() => return Some(UNREACHABLE),
            Owner::Partition(_) if here != Some(Gpi::Secure) => return Some(ONE_OWNER),
            Owner::Partition(_) if machine.written && machine.seen_by_secure() != Value::Secret => {
                return Some(KEPT);
            }
            Owner::Realm if here != Some(Gpi::Realm) || normal || secure => return Some(ONE_OWNER),
            Owner::Normal
                if !Self::is_moving(machine, self.watched, false)
                    && (here != Some(Gpi::NonSecure) || secure || machine.secure.is_some()) =>
            {
                return Some(ONE_OWNER);
            }
            _ => {}
        }
        if !machine.others_stay() {
            return Some(NOTHING_ELSE);
        }
        (!self.answers(machine)).then_some(STATUS)
    }

    /// Whether a call is under way that moves a granule: any, or one that returns it.
    fn is_moving(machine: &Machine, granule: usize, back: bool) -> bool {
        machine.cores.iter().filter_map(|core| core.call.as_ref()).any(|progress| {
            let request = &progress.request;
            request.granules().any(|number| number == granule) && !(back && request.lend)
        })
    }

    /// Whether calls that may change nothing are answered as they should, in the middle of whatever is going on.
    fn answers(&self, machine: &Machine) -> bool {
        let call = |caller, fid, args| {
            let request = Request { fid, args, order: [0; GRANULES], count: 0, lend: true };
            harmless(machine, caller, &request)
        };
        let (granule, secure) = (self.granule(), Gpi::Secure as u64);
        let own = call(Caller::NonSecure, fid::GRANULE_GET, [granule, 0, 0]);
        let expected = match machine.owner(granule) {
            Some(Gpi::NonSecure) => Reply(0, Gpi::NonSecure as u64),
            _ => Status::Denied.into(),
        };
        own == Some(expected)
            && call(Caller::NonSecure, fid::GRANULE_SET, [granule, 1, secure])
                == Some(Status::NotSupported.into())
            && call(Caller::Secure, fid::GRANULE_SET, [BANK.end() - GRANULE, 2, secure])
                == Some(Status::InvalidParameters.into())
    }
}

impl Model for Exploration {
    type State = Machine;
    type Action = Action;

    fn init_states(&self) -> Vec<Machine> {
        let mut machine = Machine::new();
        machine.touch(self.granule());
        vec![machine]
    }

    fn actions(&self, machine: &Machine, actions: &mut Vec<Action>) {
        if machine.broken.is_some() {
            return;
        }
        let calling = machine.cores.iter().filter(|core| core.call.is_some()).count();
        let mut previous = None;
        for (i, core) in machine.cores.iter().enumerate() {
            if previous == Some(core) {
                continue;
            }
            previous = Some(core);
            match core.call {
                None if calling >= self.callers => {}
                None => self.calls(machine, &mut |request| actions.push(Action::Call(i, request))),
                Some(_) => actions.extend([0, 1].map(|partition| Action::Step(i, partition))),
            }
        }
        if !self.contents {
            return;
        }
        if machine.reaches(Gpi::NonSecure) {
            actions.extend([false, true].map(|write| Action::Normal { write }));
        }
        if machine.reaches(Gpi::Secure) {
            actions.push(Action::Secure { write: false });
            if matches!(machine.owners[self.watched], Owner::Partition(_)) {
                actions.push(Action::Secure { write: true });
            }
        }
        actions.extend([Gpi::NonSecure, Gpi::Secure].map(Action::Evict));
    }

    fn next_state(&self, last: &Machine, action: Action) -> Option<Machine> {
        let mut machine = last.clone();
        match action {
            Action::Call(core, request) => self.start(&mut machine, core, request),
            Action::Step(core, partition) => {
                let request = last.cores[core].call.as_ref()?.request;
                match step(&mut machine, core, self.defect)? {
                    // The choice of a partition is for the end.
                    Next::Effect(_) if partition != 0 => return None,
                    Next::Effect(effect) => {
                        if !machine.apply(core, effect, self.granule()) {
                            return None;
                        }
                        Self::release(&mut machine);
                    }
                    Next::Reply(reply) => Self::finish(&mut machine, &request, reply, partition),
                }
            }
            Action::Normal { write } => self.access(&mut machine, Gpi::NonSecure, write),
            Action::Secure { write } => self.access(&mut machine, Gpi::Secure, write),
            Action::Evict(space) => machine.evict(space),
        }
        machine.touch(self.granule());
        machine.broken = machine.broken.or_else(|| self.check(&machine));
        machine.normalise();
        (machine != *last).then_some(machine)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no rule is broken", |_, machine: &Machine| machine.broken.is_none()),
            Property::sometimes("as many cores as may are in a call", |model: &Self, machine: &Machine| {
                machine.cores.iter().filter(|core| core.call.is_some()).count() == model.callers
            }),
            Property::sometimes("cores race for a granule", |_, machine: &Machine| {
                machine.owners[0] != Owner::Normal && Self::is_moving(machine, 0, false)
            }),
            Property::sometimes("two partitions have all granules", |_, machine: &Machine| {
                let has = |partition| machine.owners.contains(&Owner::Partition(partition));
                has(0) && has(1) && machine.owners.iter().all(|o| matches!(o, Owner::Partition(_)))
            }),
            Property::sometimes(
                "the Realm world and a partition are neighbours",
                |model: &Self, machine: &Machine| {
                    !model.library || machine.owners[..2] == [Owner::Partition(0), Owner::Realm]
                },
            ),
            Property::sometimes("a secret is in memory", |model: &Self, machine: &Machine| {
                !model.contents || machine.memory == Value::Secret
            }),
        ]
    }
}
