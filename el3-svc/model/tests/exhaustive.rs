//! The protocol as it ships keeps every rule in every state, and each defect breaks one.

use flexserve_el3_model::{defect::Defect, explore::Exploration, machine::GRANULES};
use stateright::{Checker, HasDiscoveries, Model};

/// Explores the whole state space for each granule, and finds nothing wrong.
fn explore(callers: usize, contents: bool, library: bool) {
    for watched in 0..GRANULES {
        let exploration = Exploration { watched, callers, contents, library, defect: Defect::None };
        let checker = exploration.checker().threads(2).spawn_bfs().join();
        checker.assert_properties();
        let (states, depth) = (checker.unique_state_count(), checker.max_depth());
        println!("granule {watched}, {callers} callers: {states} states, depth {depth}");
        assert!(states > 10_000, "hardly anything was explored");
    }
}

#[test]
fn two_cores_call_while_all_access_contents() {
    explore(2, true, false);
}

#[test]
fn three_cores_call() {
    explore(3, false, false);
}

#[test]
#[ignore = "takes minutes; the two above cover it in parts"]
fn three_cores_call_while_all_access_contents() {
    explore(3, true, false);
}

#[test]
fn two_cores_call_and_one_of_them_may_be_the_realm_worlds() {
    explore(2, false, true);
}

#[test]
fn each_defect_is_noticed() {
    notice(&Defect::ALL, true, false);
}

#[test]
fn a_call_that_takes_too_long_is_noticed() {
    notice(&Defect::LONG, false, false);
}

#[test]
fn each_defect_is_noticed_beside_the_library() {
    notice(&Defect::BESIDE_LIBRARY, false, true);
}

/// Explores with each defect until a rule is broken.
fn notice(defects: &[Defect], contents: bool, library: bool) {
    for defect in defects {
        let found = (0..GRANULES).find_map(|watched| {
            let checker = Exploration { watched, callers: 2, contents, library, defect: *defect }
                .checker()
                .threads(2)
                .finish_when(HasDiscoveries::AnyFailures)
                .spawn_bfs()
                .join();
            let path = checker.discovery("no rule is broken")?;
            Some((path.last_state().broken, path.into_actions().len(), checker.unique_state_count()))
        });
        let Some((Some(rule), steps, states)) = found else { panic!("{defect:?} is not noticed") };
        println!("{defect:?}: \"{rule}\" after {steps} steps, {states} states");
    }
}
