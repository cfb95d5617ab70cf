//! What `./flexserve run` asks of the payload, and what the payload tells it.
//!
//! The job is one JSON object in the QEMU `fw_cfg` file [`FW_CFG_NAME`]. Records are JSON text sequences (RFC 7464) on
//! the normal world's UART: a record separator (0x1E), one JSON object, a line feed. Everything else on that UART is
//! firmware text.

extern crate alloc;

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// Name of the `fw_cfg` file that holds the [`Job`].
pub const FW_CFG_NAME: &str = "opt/org.flexserve/job";

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The user's message. The partition applies the model's chat template.
    pub prompt: String,
    /// Most tokens to answer, at least 1.
    pub max_tokens: u32,
    /// Temperature in Q16.16; 0 is greedy.
    pub temperature: u32,
    /// Only so many of the likeliest tokens are chosen from; 0 for all.
    #[serde(default)]
    pub top_k: u32,
    /// Top-p in Q0.16; 0x10000 is 1.
    pub top_p: u32,
    /// Seed of the sampler.
    pub seed: u64,
    /// Tokens of context; 0 is the default of the payload.
    pub context: u32,
    /// Attack while the model is resident.
    pub attack: bool,
    /// Addresses worth attacking that the normal world should not need to know otherwise.
    pub targets: Vec<Target>,
    /// Operations of the stress test, which runs instead of the conformance suite if there are any.
    #[serde(default)]
    pub operations: u64,
    /// System tests to run instead of a prompt: those whose names contain one of these words, or all for `["all"]`.
    pub tests: Vec<String>,
    /// Measure lending and recalling instead.
    #[serde(default)]
    pub measure_recall: bool,
}

/// Physical memory that an attacker tries to reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// What lies there: "spmc", "llm_partition", "el3", "rmm", …
    pub name: String,
    /// Physical address.
    pub base: u64,
}

/// What the payload reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    /// A piece of long work: loading the model.
    Progress {
        /// What is being done.
        what: String,
        /// Done so far.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// Bytes of the answer, as text. Always whole UTF-8 sequences.
    Text {
        /// The piece.
        text: String,
    },
    /// One attack.
    Attack(Attack),
    /// One system test.
    Test {
        /// Its name.
        name: String,
        /// What went wrong; absent if it passed.
        error: Option<String>,
    },
    /// A measured number.
    Figure {
        /// What it is.
        name: String,
        /// How much, in the unit that the name says.
        value: u64,
    },
    /// The end of a prompt's answer.
    Done(Done),
    /// The run cannot go on. The payload powers off.
    Error {
        /// Cause and remedy.
        message: String,
    },
}

/// The figures of one answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Tokens of the prompt, chat template included.
    pub prompt_tokens: u64,
    /// Tokens answered.
    pub output_tokens: u64,
    /// "end_of_text", "max_tokens" or "context_full".
    pub finish: String,
    /// Nanoseconds of the guest's clock from `GENERATE` to the first token's text.
    pub ttft_ns: u64,
    /// Nanoseconds of the guest's clock from the first token's text to the last one's.
    pub decode_ns: u64,
    /// Granules lent with `FFA_MEM_LEND`.
    pub granules_lent: u64,
    /// Granules reclaimed with `FFA_MEM_RECLAIM`.
    pub granules_recalled: u64,
    /// Of those, granules with a byte that is not zero.
    pub granules_nonzero_after_recall: u64,
    /// Times that an NS interrupt preempted the partition and `FFA_RUN` resumed it.
    pub preemptions: u64,
    /// Cores that the normal world lent for the answer.
    pub lent_cores: u64,
    /// EL3 counters, by name (`flexserve_abi::el3::Counter`).
    pub el3: Vec<(String, u64)>,
    /// SHA-256 over the logits of every step, in hexadecimal.
    pub logits_sha256: String,
}

/// One try of an attacker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attack {
    /// What was tried on what: "read lent granule", …
    pub name: String,
    /// Who tried: "NS-EL2" or "NS-EL1", "S-EL0", "R-EL2".
    pub world: String,
    /// On which core, by index.
    pub core: u32,
    /// Exception syndrome; for a partition's fault 0, as it stands in the SPMC's log.
    pub esr: u64,
    /// Fault address; for a partition's fault 0, as it stands in the SPMC's log.
    pub far: u64,
    /// Whether the try ended in a fault, or was refused by the interface that was asked.
    pub faulted: bool,
}
