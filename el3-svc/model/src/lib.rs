//! Every interleaving of the granule protocol and of the core protocol: models for the checker `stateright`.
//!
//! What is explored is the code that ships. Of granules that is [`Service::handle`](flexserve_el3_svc::protocol::Service::handle) and
//! [`move_ranges`](flexserve_el3_svc::gpt_range::move_ranges); only what lies under the trait
//! [`Tables`](flexserve_el3_svc::gpt_range::Tables) is modelled: the tables in memory, their lock, TLBs, cache lines. Of cores it is
//! [`Cores`](flexserve_el3_svc::cores::Cores).
//!
//! | module | what |
//! |---|---|
//! | [`machine`] | granules: the state, and what each effect does to it |
//! | [`replay`] | the shipped code, one effect at a time |
//! | [`library`] | TF-A's own library, which changes other granules of the same tables |
//! | [`explore`] | which calls and accesses are tried, and the rules that must hold in every state |
//! | [`defect`] | what can be broken on purpose, to see that a rule notices |
//! | [`cores`] | the same for cores, in one |
//! | [`stepwise`] | shipped code without a lock, one access to shared memory at a time |
//!
//! # What is reduced of granules, and why nothing is lost
//!
//! - *Three granules*, two in one table entry and one in another entry of another block: all kinds of neighbours.
//! - *One granule with contents* at a time, each in a run of its own: no rule relates the contents of two.
//! - *TLBs cache all they see*: in each state each core holds every translation that it could have cached since the last
//!   invalidation. A rule that is broken with fewer entries is broken with these.
//! - *Accesses to the tables under the lock* happen together with the next effect that others can observe. Whoever
//!   accesses them without the lock breaks a rule, so that nobody can be in between. Writes to entries of the granules that
//!   the model watches are effects of their own: the hardware walks them without a lock.
#![forbid(unsafe_code)]

pub mod cores;
pub mod defect;
pub mod explore;
pub mod library;
pub mod machine;
pub mod replay;
pub mod stepwise;
