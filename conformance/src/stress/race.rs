//! All cores make the same call at once.

use alloc::{format, string::String};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use flexserve_client::ffa::{self, Function};
use spin::Mutex;

use super::ensure;
use crate::bench::call;

/// One call that any core may make while it is open: it must succeed exactly once.
#[derive(Default)]
pub struct Race {
    /// The core that opens it holds this for its time.
    pub owner: Mutex<()>,
    open: AtomicBool,
    /// Cores that are about to call, or do.
    inside: AtomicU64,
    /// Function and arguments.
    call: [AtomicU64; 4],
    successes: AtomicU64,
    /// What a success answered in x2 and x3.
    result: [AtomicU64; 2],
}

impl Race {
    /// Opens the race, runs along, and waits for whoever joined. Answers what the one success answered.
    pub fn run(&self, registers: [u64; 4]) -> Result<[u64; 2], String> {
        self.call.iter().zip(registers).for_each(|(slot, value)| slot.store(value, SeqCst));
        self.successes.store(0, SeqCst);
        self.open.store(true, SeqCst);
        // A core that looks now joins; a refusal because the other is still being served is tried again.
        for _ in 0..1000 {
            self.call();
            if self.successes.load(SeqCst) != 0 {
                break;
            }
        }
        self.open.store(false, SeqCst);
        while self.inside.load(SeqCst) != 0 {
            core::hint::spin_loop();
        }
        let successes = self.successes.load(SeqCst);
        ensure!(successes == 1, "a race for {registers:x?} was won {successes} times");
        Ok([&self.result[0], &self.result[1]].map(|slot| slot.load(SeqCst)))
    }

    /// Calls along if the race is open.
    pub fn join(&self) {
        if self.open.load(SeqCst) {
            self.inside.fetch_add(1, SeqCst);
            if self.open.load(SeqCst) {
                self.call();
            }
            self.inside.fetch_sub(1, SeqCst);
        }
    }

    /// Makes the call.
    fn call(&self) {
        let [function, a, b, c] = self.call.each_ref().map(|slot| slot.load(SeqCst));
        let answer = call(function as u32, &[a, b, c]);
        if ffa::is(&answer, Function::Success32) {
            self.result[0].store(answer[2], SeqCst);
            self.result[1].store(answer[3], SeqCst);
            self.successes.fetch_add(1, SeqCst);
        }
    }
}
