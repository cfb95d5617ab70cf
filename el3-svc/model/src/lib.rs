//! Every interleaving of the granule protocol, on a machine of three cores: a model for the checker `stateright`.
//!
//! What is explored is the code that ships: [`Service::handle`](flexserve_el3_svc::protocol::Service::handle) and
//! [`move_range`](flexserve_el3_svc::gpt_range::move_range). Only what lies under the trait
//! [`Tables`](flexserve_el3_svc::gpt_range::Tables) is modelled: the tables in memory, their lock, TLBs, cache lines.
//!
//! | module | what |
//! |---|---|
//! | [`machine`] | the state, and what each effect does to it |
//! | [`replay`] | the shipped code, one effect at a time |
//! | [`explore`] | which calls and accesses are tried, and the rules that must hold in every state |
//! | [`defect`] | what can be broken on purpose, to see that a rule notices |
//!
//! # What is reduced, and why nothing is lost
//!
//! - *Three granules*, two in one table entry and one in another entry of another block: all kinds of neighbours.
//! - *One granule with contents* at a time, each in a run of its own: no rule relates the contents of two.
//! - *TLBs cache all they see*: in each state each core holds every translation that it could have cached since the last
//!   invalidation. A rule that is broken with fewer entries is broken with these.
//! - *Accesses to the tables under the lock* happen together with the next effect that others can observe. Whoever
//!   accesses them without the lock breaks a rule, so that nobody can be in between. Writes to entries of the granules that
//!   the model watches are effects of their own: the hardware walks them without a lock.
#![forbid(unsafe_code)]

pub mod defect;
pub mod explore;
pub mod machine;
pub mod replay;
