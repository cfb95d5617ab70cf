//! A partition and the SPMC: several cores in one partition (SVC, vendor-specific hypervisor range of SMCCC v1.4).
//!
//! `FFA_SECONDARY_EP_REGISTER` (DEN0077A v1.2, section 18.2.1.3) names the partition's entry point for workers. A core that the
//! normal world lends runs there until it is recalled, in the partition's address space: x0 = its number (no other core
//! has it), x1 = the ISA features, x2 = its worker's *incarnation*, which no worker had before. When a core is recalled
//! its registers are lost, whatever it was doing.
//!
//! Both calls answer x0 = 0, x1 = the count of events, x2 to x9 = by number of the core, the incarnation of the worker that
//! runs there, or 0. A worker that is not listed any more has written its last.

use crate::el3::MAX_CORES;

/// Sleeps until the count of events differs from x1. It may come back sooner; events are `SIGNAL`s, workers that came, and
/// workers that are gone.
pub const WAIT: u64 = 0xc600_0000;
/// Counts an event, and so wakes all of the partition that sleep.
pub const SIGNAL: u64 = 0xc600_0001;

/// What both calls answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The count of events.
    pub events: u64,
    /// By number of the core, the incarnation of its worker, or 0.
    pub workers: [u64; MAX_CORES],
}

impl Answer {
    /// x0 and further registers.
    #[must_use]
    pub fn registers(&self) -> [u64; 2 + MAX_CORES] {
        let mut registers = [0; 2 + MAX_CORES];
        registers[1] = self.events;
        registers[2..].copy_from_slice(&self.workers);
        registers
    }

    /// Reads x0 and further registers. `None` if the SPMC does not know the call.
    #[must_use]
    pub fn from_registers(registers: &[u64; 18]) -> Option<Self> {
        let mut workers = [0; MAX_CORES];
        workers.copy_from_slice(&registers[2..2 + MAX_CORES]);
        (registers[0] == 0).then_some(Self { events: registers[1], workers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_round_trip_through_registers() {
        let answer = Answer { events: 7, workers: core::array::from_fn(|i| i as u64 * 3) };
        let mut registers = [5; 18];
        registers[..10].copy_from_slice(&answer.registers());
        assert_eq!(Answer::from_registers(&registers), Some(answer));
        registers[0] = u64::MAX;
        assert_eq!(Answer::from_registers(&registers), None);
    }
}
