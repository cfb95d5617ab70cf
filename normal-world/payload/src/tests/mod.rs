//! System tests: what holds on the machine and cannot be shown on the host.
//!
//! A test says in one line what it checks; it answers what went wrong instead of panicking, so that those behind it
//! still run. Tests run in the order of the table: first those that need no session, then those that answer prompts from
//! one loaded model, at the end the one that never gets its partition back.

mod inference;
mod lent_cores;
mod memory;
mod messages;
mod others;
mod recall;
mod robustness;
mod setup;
mod sharing;
mod stage2;
mod walks;

use alloc::{borrow::ToOwned, string::String};

use flexserve_client::{
    job::{Job, Record},
    ring::Ring,
};

use flexserve_platform::{ISOLATION, Isolation};

use crate::{
    record,
    session::{Container, Session},
    system::System,
};

/// Ends a test with a sentence unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err(alloc::format!($($what)+));
        }
    };
}
use ensure;

/// One test.
struct Test {
    name: &'static str,
    run: fn(&mut Bench) -> Result<(), String>,
}

/// Every test, in the order in which they run.
const TESTS: &[Test] = &[
    // FF-A says who is who, and refuses what version 1.2 says it must.
    Test { name: "setup/versions_and_ids", run: setup::versions_and_ids },
    Test { name: "setup/features", run: setup::features },
    Test { name: "setup/partition_info", run: setup::partition_info },
    Test { name: "setup/buffers", run: setup::buffers },
    // EL3 tells the normal world what it may know and does nothing for it.
    Test { name: "setup/el3_service", run: setup::el3_service },
    // What the lender wrote is gone when a granule comes back, whatever the shape of the descriptor.
    Test { name: "memory/reclaimed_granules_are_zero", run: memory::reclaimed_granules_are_zero },
    Test { name: "memory/contiguous_and_scattered", run: memory::contiguous_and_scattered },
    Test { name: "memory/fragments", run: memory::fragments },
    Test { name: "memory/counters_count_granules", run: memory::counters_count_granules },
    // When a lend returns, no core reads the granule any more, whatever its TLB held.
    Test { name: "memory/lent_granules_fault_on_this_core", run: memory::lent_granules_fault_on_this_core },
    Test {
        name: "memory/lent_granules_fault_on_other_cores",
        run: memory::lent_granules_fault_on_other_cores,
    },
    // A core whose own translation table moves meanwhile reads the right data, or nothing.
    Test { name: "memory/tables_move_under_walks", run: walks::tables_move_under_walks },
    // Under stage-2 tables: EL2, the tables and lent granules are out of reach of every access and walk, and counted; a core
    // that uses other granules of the same block notices nothing.
    Test { name: "stage2/el2_is_out_of_reach", run: stage2::el2_is_out_of_reach },
    Test { name: "stage2/tables_are_out_of_reach", run: stage2::tables_are_out_of_reach },
    Test {
        name: "stage2/every_access_is_aborted_and_counted",
        run: stage2::every_access_is_aborted_and_counted,
    },
    Test { name: "stage2/blocks_of_every_shape", run: stage2::blocks_of_every_shape },
    Test { name: "stage2/neighbours_notice_nothing", run: stage2::neighbours_notice_nothing },
    Test {
        name: "stage2/walks_through_lent_granules_are_aborted",
        run: stage2::walks_through_lent_granules_are_aborted,
    },
    Test {
        name: "stage2/cores_that_come_back_are_under_the_tables",
        run: stage2::cores_that_come_back_are_under_the_tables,
    },
    // A descriptor that is malformed, or names memory that is not the lender's, changes nothing.
    Test { name: "memory/bad_descriptors", run: memory::bad_descriptors },
    Test { name: "memory/bad_fragments", run: memory::bad_fragments },
    Test { name: "memory/bad_handles", run: memory::bad_handles },
    // A recall that the borrower ignores succeeds all the same.
    Test {
        name: "recall/held_memory_comes_back_at_the_deadline",
        run: recall::held_memory_comes_back_at_the_deadline,
    },
    // Cores go to the secure world and come back, and PSCI and EL3 agree on where they are.
    Test { name: "cores/a_core_goes_and_comes_back", run: lent_cores::a_core_goes_and_comes_back },
    Test { name: "cores/psci_and_el3_agree", run: lent_cores::psci_and_el3_agree },
    Test { name: "cores/bad_lends_are_refused", run: lent_cores::bad_lends_are_refused },
    Test { name: "cores/all_but_the_last_are_lent", run: lent_cores::all_but_the_last_are_lent },
    // Malformed messages get their error, and the partition goes on serving.
    Test { name: "messages/no_session", run: messages::no_session },
    Test { name: "messages/bad_receivers", run: messages::bad_receivers },
    Test { name: "messages/loading_out_of_order", run: messages::loading_out_of_order },
    Test { name: "messages/corrupt_segment", run: messages::corrupt_segment },
    // Random calls from the normal world, on one core and on two, get an answer each and break nothing.
    Test { name: "robustness/random_calls", run: robustness::random_calls },
    Test { name: "robustness/random_calls_on_two_cores", run: robustness::random_calls_on_two_cores },
    // The same prompt gives the same answer, preempted or not, and the normal world keeps its registers.
    Test { name: "inference/held_memory_is_not_reclaimed", run: inference::held_memory_is_not_reclaimed },
    Test { name: "inference/preempted_answer_is_the_same", run: inference::preempted_answer_is_the_same },
    Test { name: "inference/bad_prompts", run: inference::bad_prompts },
    Test { name: "inference/vector_registers_survive", run: inference::vector_registers_survive },
    Test { name: "inference/partition_knows_the_cpu", run: inference::partition_knows_the_cpu },
    Test { name: "inference/concurrent_callers", run: inference::concurrent_callers },
    // Sessions of one model share its weights, which are lent once.
    Test { name: "inference/two_sessions_share_weights", run: sharing::two_sessions_share_weights },
    // Lent cores compute with the partition, come and go, and it makes no difference to the answer.
    Test {
        name: "cores/interrupts_do_not_disturb_workers",
        run: lent_cores::interrupts_do_not_disturb_workers,
    },
    Test { name: "cores/a_recalled_core_starts_clean", run: lent_cores::a_recalled_core_starts_clean },
    Test {
        name: "cores/a_preempted_partition_loses_its_workers",
        run: lent_cores::a_preempted_partition_loses_its_workers,
    },
    Test {
        name: "cores/recalls_do_not_change_the_answer",
        run: lent_cores::recalls_do_not_change_the_answer,
    },
    Test { name: "inference/recall_gives_everything_back", run: inference::recall_gives_everything_back },
    // A partition that never answers still loses the core to the normal world's interrupt.
    Test {
        name: "robustness/spinning_partition_is_preempted",
        run: robustness::spinning_partition_is_preempted,
    },
];

/// What the tests work with.
struct Bench {
    system: System,
    job: Job,
    loaded: Option<(Session, Ring<'static>)>,
    /// The undisturbed answer and the hash of its logits, once somebody has asked for it.
    calm: Option<(String, [u8; 32])>,
}

impl Bench {
    /// The session that holds the whole model, loaded on first use.
    fn load(&mut self) -> Result<(&mut System, &mut Session, &mut Ring<'static>), String> {
        if self.loaded.is_none() {
            let mut model = Container::open()?;
            let (mut session, ring) = Session::open(&mut self.system, PROMPT_ROOM, self.job.context.into())?;
            session.load(&mut self.system, &mut model)?;
            self.loaded = Some((session, ring));
        }
        match &mut self.loaded {
            Some((session, ring)) => Ok((&mut self.system, session, ring)),
            None => Err("the model has just been loaded and is gone".to_owned()),
        }
    }
}

/// Bytes behind the ring for a test's prompt.
const PROMPT_ROOM: usize = 64 << 10;

/// Runs the tests whose names contain one of the job's words; "all" is in every name.
///
/// # Errors
///
/// There is no SPMC.
pub fn run(job: &Job) -> Result<(), String> {
    let wanted = |test: &&Test| {
        let here = ISOLATION == Isolation::Stage2 || !test.name.starts_with("stage2/");
        here && job.tests.iter().any(|word| word == "all" || test.name.contains(word.as_str()))
    };
    let mut bench = Bench { system: System::start()?, job: job.clone(), loaded: None, calm: None };
    for test in TESTS.iter().filter(wanted) {
        let error = (test.run)(&mut bench).err();
        record::emit(&Record::Test { name: test.name.to_owned(), error });
    }
    Ok(())
}
