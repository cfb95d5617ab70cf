//! The LLM partition's service: `FFA_MSG_SEND_DIRECT_REQ2` to [`crate::ffa::LLM_SERVICE`].
//!
//! x4 is the operation ([`Op`]), x5.. its arguments; in the response x4 is the status ([`Status`]) and x5.. the results.
//! Unused registers are zero. A request that an NS interrupt preempts returns `FFA_INTERRUPT`; `FFA_RUN` resumes it.

/// Version that `OPEN` answers in x6: major in `[31:16]`, minor in `[15:0]`.
pub const VERSION: u32 = 1 << 16 | 1;

/// Most sessions that are open at the same time.
pub const SESSIONS: usize = 4;

/// Most tokens of context, whatever the model says.
pub const MAX_CONTEXT: u64 = 1 << 17;

/// Segment index by which `LOAD` is given working memory (KV cache and activations) instead of a model segment.
pub const WORKSPACE: u64 = u32::MAX as u64;

/// Most handles that one `RECALL` answers.
pub const RECALL_HANDLES: usize = 10;

/// The operation, in x4 of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Op {
    /// `(x5: handle of the shared buffer, x6: context in tokens, 0 = the model's) -> (x5: session, x6: VERSION)`.
    ///
    /// The buffer is an `FFA_MEM_SHARE` of whole pages: the prompt and the token ring, see [`crate::ring`].
    /// [`SESSIONS`] at a time, each with a buffer of its own.
    Open = 1,
    /// `(x5: session) -> ()`. Relinquishes all that was loaded, and the shared buffer. Segments that other sessions of the same
    /// model use stay until the last of them is closed.
    Close = 2,
    /// `(x5: session, x6: memory handle, x7: segment index or WORKSPACE) ->
    /// (x5: segments of the model, x6: segments loaded, x7: workspace granules needed, x8: 1 if the handle was relinquished)`.
    ///
    /// The handle's pages, in the order of its descriptor, hold the segment of the container. Segment 0 comes first
    /// (it describes the others), then any order; the workspace may come at any time after it.
    ///
    /// Sessions of the same model, which is one with the same segment 0, share segments. If another session has loaded segment 0,
    /// this one's is relinquished at once (x8 = 1), and all that was or will be loaded by either is loaded in both.
    Load = 3,
    /// `(x5: session, x6: offset of the prompt in the shared buffer, x7: its bytes, x8: temperature in Q16.16
    /// (0 = greedy), x9: top-p in Q0.16 (0x10000 = 1), x10: seed, x11: most tokens to answer,
    /// x12: top-k (0 = all)) -> (x5: prompt tokens)`.
    ///
    /// Applies the model's chat template, tokenizes and prefills.
    Generate = 4,
    /// `(x5: session, x6: most tokens to add now) -> (x5: tokens added, x6: Finish)`. Text goes to the ring.
    Next = 5,
    /// `(x5: session, x6: granules wanted) -> (x5: granules given up, x6: n, x7..x16: n handles)`.
    ///
    /// The partition relinquishes whole handles of its choice until it has given up that many granules or has
    /// none left; call again while n is [`RECALL_HANDLES`]. If segments are shared, the session's workspace goes first; segments
    /// that go are missing in all sessions of the model, whose answers end: `NEXT` has [`Status::WrongState`].
    Recall = 6,
    /// `(x5: session) -> (x5: State, x6: prompt tokens, x7: answer tokens, x8..x11: SHA-256 over the logits of every
    /// step as little-endian i32, first byte in x8[7:0], x12: granules held, shared segments
    /// included, x13: [`IsaFeatures`](crate::isa::IsaFeatures) that the SPMC has told the partition)`.
    Status = 7,
}

impl Op {
    /// Reads x4.
    #[must_use]
    pub const fn from_code(x4: u64) -> Option<Self> {
        Some(match x4 {
            1 => Self::Open,
            2 => Self::Close,
            3 => Self::Load,
            4 => Self::Generate,
            5 => Self::Next,
            6 => Self::Recall,
            7 => Self::Status,
            _ => return None,
        })
    }
}

/// Status, in x4 of the response as a signed 64-bit integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum Status {
    /// Done.
    Success = 0,
    /// No such operation.
    NotSupported = -1,
    /// An argument is out of its range.
    InvalidParameters = -2,
    /// No such session.
    NoSession = -3,
    /// As many sessions are open as there can be.
    Busy = -4,
    /// The operation does not fit the state: segment 0 not loaded, model incomplete, nothing to continue.
    WrongState = -5,
    /// The memory could not be retrieved, or is smaller than what it should hold.
    BadMemory = -6,
    /// A segment's hash differs from the manifest's.
    BadHash = -7,
    /// The container is malformed, or of a version or architecture this partition does not know.
    BadModel = -8,
    /// The prompt, in tokens, does not fit the context. x5 = its tokens, x6 = the context.
    PromptTooLong = -9,
    /// The prompt is not UTF-8, or lies outside the shared buffer.
    BadPrompt = -10,
    /// The shared ring's indices contradict each other.
    BadRing = -11,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 12] = [
        Self::Success,
        Self::NotSupported,
        Self::InvalidParameters,
        Self::NoSession,
        Self::Busy,
        Self::WrongState,
        Self::BadMemory,
        Self::BadHash,
        Self::BadModel,
        Self::PromptTooLong,
        Self::BadPrompt,
        Self::BadRing,
    ];

    /// The value that travels in x4.
    #[must_use]
    pub const fn code(self) -> u64 {
        (self as i64).cast_unsigned()
    }

    /// Reads x4 of a response.
    #[must_use]
    pub fn from_code(x4: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.code() == x4)
    }
}

/// Why generation stopped, in x6 of the response to `NEXT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Finish {
    /// It has not: call again.
    Running = 0,
    /// The model ended its answer.
    EndOfText = 1,
    /// As many tokens as were asked for.
    MaxTokens = 2,
    /// The context is full.
    ContextFull = 3,
}

impl Finish {
    /// Reads x6.
    #[must_use]
    pub const fn from_code(x6: u64) -> Option<Self> {
        Some(match x6 {
            0 => Self::Running,
            1 => Self::EndOfText,
            2 => Self::MaxTokens,
            3 => Self::ContextFull,
            _ => return None,
        })
    }
}

/// State of a session, in x5 of the response to `STATUS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum State {
    /// Segments or workspace are missing.
    Loading = 0,
    /// Everything is there.
    Ready = 1,
    /// A prompt is being answered.
    Generating = 2,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_round_trips() {
        for status in Status::ALL {
            assert_eq!(Status::from_code(status.code()), Some(status));
        }
        assert_eq!(Status::from_code(1), None);
    }
}
