//! Shipped code that shares memory without a lock, one access at a time.
//!
//! As in [`replay`](crate::replay), a call is a function of what its accesses answered: it is taken up again from the start, is
//! answered what it was answered before, and makes one access to the present state. What it does after that goes to
//! a copy, and is forgotten.

use std::cell::RefCell;

/// What a call sees in place of the memory and the machine that it shares with others.
#[derive(Debug)]
pub struct Shared<'a, S> {
    log: &'a [u64],
    inner: RefCell<Inner<S>>,
}

#[derive(Debug)]
struct Inner<S> {
    /// The state, which this step's access changes, and those that follow.
    state: S,
    /// Accesses so far.
    accesses: usize,
    /// What this step's access answered, and the state that it left.
    step: Option<(u64, S)>,
}

impl<S: Clone> Shared<'_, S> {
    /// One access, atomic: changes the state, and answers what the caller goes by.
    pub fn access(&self, act: impl FnOnce(&mut S) -> u64) -> u64 {
        let inner = &mut *self.inner.borrow_mut();
        let number = inner.accesses;
        inner.accesses += 1;
        if let Some(answer) = self.log.get(number) {
            return *answer;
        }
        let answer = act(&mut inner.state);
        inner.step.get_or_insert_with(|| (answer, inner.state.clone()));
        answer
    }
}

/// What a step has done.
#[derive(Debug)]
pub struct Step<S, R> {
    /// The state after its access.
    pub state: S,
    /// What the access answered; `None` if the call has none left.
    pub answer: Option<u64>,
    /// What the call returns, if that was its last access.
    pub returned: Option<R>,
}

/// Makes the next access of a call whose accesses so far were answered with `log`.
pub fn step<S: Clone, R>(state: &S, log: &[u64], call: impl FnOnce(&Shared<S>) -> R) -> Step<S, R> {
    let inner = Inner { state: state.clone(), accesses: 0, step: None };
    let shared = Shared { log, inner: RefCell::new(inner) };
    let returned = call(&shared);
    let Inner { state, accesses, step } = shared.inner.into_inner();
    let (answer, state) = step.map_or((None, state), |(answer, state)| (Some(answer), state));
    Step { state, answer, returned: (accesses <= log.len() + 1).then_some(returned) }
}

/// A call that nobody interrupts.
pub fn run<S: Clone, R>(state: &S, call: impl FnOnce(&Shared<S>) -> R) -> (S, R) {
    let inner = Inner { state: state.clone(), accesses: 0, step: None };
    let shared = Shared { log: &[], inner: RefCell::new(inner) };
    let returned = call(&shared);
    (shared.inner.into_inner().state, returned)
}
