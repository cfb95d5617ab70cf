//! The core protocol as it ships keeps every rule in every state, and each defect breaks one.

use flexserve_el3_model::cores::{Defect, Exploration};
use stateright::{Checker, HasDiscoveries, Model};

#[test]
fn three_cores_are_lent_recalled_and_turned_on_and_off() {
    let checker = Exploration { defect: Defect::None }.checker().threads(2).spawn_bfs().join();
    println!("{} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
    assert!(checker.unique_state_count() > 10_000, "hardly anything was explored");
}

#[test]
fn each_defect_is_noticed() {
    for defect in Defect::ALL {
        let checker = Exploration { defect }
            .checker()
            .threads(2)
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join();
        let path = checker.discovery("no rule is broken");
        let path = path.unwrap_or_else(|| panic!("{defect:?} is not noticed"));
        let rule = path.last_state().broken.expect("the rule is named");
        let states = checker.unique_state_count();
        println!("{defect:?}: \"{rule}\" after {} steps, {states} states", path.into_actions().len());
    }
}
