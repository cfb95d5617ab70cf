//! Cores that work for the secure world.

use alloc::{format, string::String};

use flexserve_abi::el3::CoreState;
use flexserve_client::el3;

use super::{Bench, ensure};
use crate::{cores, system::Smc};

/// A core that is lent comes back, as often as one likes, and takes tasks as before.
pub fn a_core_goes_and_comes_back(_: &mut Bench) -> Result<(), String> {
    ensure!(cores::count() > 1, "this test needs two cores: --smp 2");
    for _ in 0..3 {
        cores::lend(1)?;
        let state = el3::core_state(&mut Smc, 1);
        ensure!(state == Ok(CoreState::Lent), "a lent core is {state:?}");
        cores::take_back(1)?;
        let state = el3::core_state(&mut Smc, 1);
        ensure!(state == Ok(CoreState::Owned), "a core that is back is {state:?}");
        let ran_on = cores::run(1, cores::current)?;
        ensure!(ran_on == 1, "its task ran on core {ran_on}");
    }
    Ok(())
}
