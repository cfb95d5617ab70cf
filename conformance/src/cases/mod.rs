//! The rules, group by group.

mod cores;
mod el3;
mod faults;
mod ffa;
mod lending;
mod ownership;
mod psci;
mod realm;
pub mod recall;
mod registers;
mod secure;
mod secure_calls;
mod slices;
mod smccc;

use crate::{bench::Bench, suite::Cases};

/// Every case that this boot can look at.
pub fn all(bench: &Bench) -> Cases {
    let mut cases = Cases::default();
    if bench.has_proxy() {
        secure::cases(&mut cases);
        secure_calls::cases(&mut cases);
        return cases;
    }
    smccc::cases(&mut cases);
    registers::cases(&mut cases);
    psci::cases(&mut cases);
    el3::cases(&mut cases);
    realm::cases(&mut cases);
    ffa::cases(&mut cases);
    lending::cases(&mut cases);
    ownership::cases(&mut cases);
    faults::cases(&mut cases);
    recall::cases(&mut cases);
    slices::cases(&mut cases);
    cores::cases(&mut cases);
    cases
}
