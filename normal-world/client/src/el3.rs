//! The EL3 service, as far as it serves the normal world.

use alloc::{string::String, vec::Vec};

use flexserve_abi::el3::{CoreState, Counter, Feature, Status, fid};

use crate::{Conduit, registers};

/// What the service says of itself. All ones if it does not know the question.
pub fn feature(conduit: &mut impl Conduit, feature: Feature) -> u64 {
    conduit.call(registers(fid::FEATURES, &[feature as u64]))[0]
}

/// Reads a counter. `None` if the service does not have it.
pub fn counter(conduit: &mut impl Conduit, counter: Counter) -> Option<u64> {
    let answer = conduit.call(registers(fid::STATS, &[counter as u64]));
    (Status::from_code(answer[0]) == Some(Status::Success)).then_some(answer[1])
}

/// Every counter that the service has, by name.
pub fn counters(conduit: &mut impl Conduit) -> Vec<(String, u64)> {
    Counter::ALL
        .into_iter()
        .filter_map(|(index, name)| Some((String::from(name), counter(conduit, index)?)))
        .collect()
}

/// Lends a core that is off; recalled, it starts at `entry` with `context` in x0. `None` is a status that does not exist.
pub fn lend_core(conduit: &mut impl Conduit, mpidr: u64, entry: u64, context: u64) -> Option<Status> {
    Status::from_code(conduit.call(registers(fid::CORE_LEND, &[mpidr, entry, context]))[0])
}

/// Asks for a lent core back.
pub fn recall_core(conduit: &mut impl Conduit, mpidr: u64) -> Option<Status> {
    Status::from_code(conduit.call(registers(fid::CORE_RECALL, &[mpidr]))[0])
}

/// Where a core is.
///
/// # Errors
///
/// The status, if it is not [`Status::Success`].
pub fn core_state(conduit: &mut impl Conduit, mpidr: u64) -> Result<CoreState, Option<Status>> {
    let answer = conduit.call(registers(fid::CORE_STATE, &[mpidr]));
    match (Status::from_code(answer[0]), CoreState::from_code(answer[1])) {
        (Some(Status::Success), Some(state)) => Ok(state),
        (status, _) => Err(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Registers;

    struct Fake;

    impl Conduit for Fake {
        fn call(&mut self, r: Registers) -> Registers {
            assert_eq!(r[0], u64::from(fid::STATS));
            match r[1] {
                0 => registers(0, &[11]),
                1 => registers(0, &[22]),
                _ => registers(0, &[]).map(|_| Status::NotSupported.code()),
            }
        }
    }

    #[test]
    fn counters_that_exist_are_named() {
        assert_eq!(counters(&mut Fake), [("granules_lent".into(), 11), ("granules_returned".into(), 22)]);
    }
}
