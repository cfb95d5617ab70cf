//! The service on a tiny model: what it answers, and that it keeps nothing it should give back.

#[path = "../llm/tests/common/mod.rs"]
mod tiny;

#[path = "sharing_tests.rs"]
mod sharing;

use crate::{
    memory::{Borrow, SharedBytes, tests::Fake},
    reply::Reply,
    service::{Link, Message, Resources, serve},
};
use flexserve_abi::{
    isa::IsaFeatures,
    ring::{MAGIC, RingHeader},
    service::{Finish, Op, State, Status, WORKSPACE},
};
use flexserve_kernels::isa::Isa;
use flexserve_llm::workers::Alone;
use flexserve_llm::{Generator, generator::Settings};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    rc::Rc,
};
use zerocopy::IntoBytes;

const RING: u64 = 1000;
const MEMORY: u64 = 2000;
const CAPACITY: u32 = 64;
const PROMPT_AT: u64 = 64 + CAPACITY as u64;
const CONTEXT: u64 = 80;

/// Whole words, so that they are aligned.
#[derive(Clone)]
struct Lent(u64, Vec<u64>);

impl Deref for Lent {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.1.as_bytes()
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.1.as_mut_bytes()
    }
}

/// What the normal world has lent and shared, and the partition has not retrieved. Rings have the handles from [`RING`] on.
struct Memory {
    lent: BTreeMap<u64, Lent>,
    shared: BTreeMap<u64, Rc<Fake>>,
    /// Of each ring that the partition has, the handle.
    borrowed: Vec<(u64, Rc<Fake>)>,
}

impl SharedBytes for Rc<Fake> {
    fn size(&self) -> usize {
        self.deref().size()
    }
    fn read(&self, offset: usize, to: &mut [u8]) -> Option<()> {
        self.deref().read(offset, to)
    }
    fn write(&self, offset: usize, from: &[u8]) -> Option<()> {
        self.deref().write(offset, from)
    }
    fn word(&self, offset: usize) -> Option<&std::sync::atomic::AtomicU32> {
        self.deref().word(offset)
    }
}

impl Borrow for Memory {
    type Lent = Lent;
    type Shared = Rc<Fake>;

    fn lent(&mut self, handle: u64) -> Option<Lent> {
        self.lent.remove(&handle)
    }

    fn shared(&mut self, handle: u64) -> Option<Rc<Fake>> {
        let ring = self.shared.remove(&handle)?;
        self.borrowed.push((handle, ring.clone()));
        Some(ring)
    }

    fn give_up(&mut self, region: Lent) {
        self.lent.insert(region.0, region);
    }

    fn give_up_shared(&mut self, region: Rc<Fake>) {
        let at = self.borrowed.iter().position(|(_, ring)| Rc::ptr_eq(ring, &region)).unwrap();
        self.shared.extend([self.borrowed.swap_remove(at)]);
    }
}

/// The normal world: says what to ask next, given the last reply (`None` at first).
struct Script<F>(F);

impl<F: FnMut(Option<Reply>) -> Option<Message>> Link for Script<F> {
    fn exchange(&mut self, reply: Reply) -> Option<Message> {
        (self.0)(Some(reply))
    }
}

fn message(op: Op, args: &[u64]) -> Message {
    let mut message = Message { op: op as u64, args: [0; 13] };
    message.args[..args.len()].copy_from_slice(args);
    message
}

/// Container and workspace as lent memory: handle `i` holds segment `i`, handle `MEMORY` the workspace.
fn lent() -> BTreeMap<u64, Lent> {
    let container = tiny::container(tiny::Content::Sane, 2);
    let mut lent: BTreeMap<u64, Lent> = (0..)
        .zip(container.segments())
        .map(|(handle, bytes)| {
            let words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
            (handle, Lent(handle, words))
        })
        .collect();
    lent.insert(MEMORY, Lent(MEMORY, vec![!0; 1 << 17]));
    lent
}

fn shared(prompt: &str) -> Rc<Fake> {
    let shared = Fake::new(4096);
    let header = RingHeader { magic: MAGIC, capacity: CAPACITY, ..RingHeader::default() };
    shared.write(0, header.as_bytes()).unwrap();
    shared.write(PROMPT_AT as usize, prompt.as_bytes()).unwrap();
    Rc::new(shared)
}

/// Everything lent, and rings.
fn memory<const N: usize>(rings: [Rc<Fake>; N]) -> Memory {
    Memory { lent: lent(), shared: (RING..).zip(rings).collect(), borrowed: Vec::new() }
}

/// Serves a list of requests and returns the replies. At the end every region must be back with the normal world if
/// `all_back`.
fn replies(requests: &[Message], prompt: &str, all_back: bool) -> Vec<Reply> {
    let mut memory = memory([shared(prompt)]);
    let lent = memory.lent.len();
    let mut replies = Vec::new();
    let mut rest = requests[1..].iter();
    let mut link = Script(|reply: Option<Reply>| {
        replies.extend(reply);
        rest.next().copied()
    });
    serve(
        &mut memory,
        &mut link,
        requests[0],
        Resources {
            prompt: RefCell::new(&mut [0; 512]),
            isa: Isa::BASELINE,
            features: IsaFeatures::I8MM,
            workers: &Alone,
        },
    );
    if all_back {
        assert_eq!(memory.lent.len(), lent);
        assert!(memory.borrowed.is_empty());
    }
    replies
}

/// Opens session 1 and loads everything.
fn loading() -> Vec<Message> {
    let mut requests = vec![message(Op::Open, &[RING, CONTEXT])];
    requests.extend((0..5).map(|i| message(Op::Load, &[1, i, i])));
    requests.push(message(Op::Load, &[1, MEMORY, WORKSPACE]));
    requests
}

fn statuses(requests: &[Message], prompt: &str, all_back: bool) -> Vec<Status> {
    replies(requests, prompt, all_back).iter().map(|reply| Status::from_code(reply[0]).unwrap()).collect()
}

fn generate(prompt: &str, max_tokens: u64) -> Message {
    message(Op::Generate, &[1, PROMPT_AT, prompt.len() as u64, 0, 0, 0, max_tokens])
}

/// What the model says on the host, without the service.
fn expected(prompt: &str, max_tokens: u64) -> (Vec<u8>, [u8; 32]) {
    let container = tiny::container(tiny::Content::Sane, 2);
    let segments = container.segments();
    let mut memory = vec![0_u64; 1 << 17];
    let model = tiny::model(&segments);
    let mut generator = Generator::new(model, memory.as_mut_bytes(), CONTEXT as usize, Isa::PLAIN).unwrap();
    let settings = Settings { temperature: 0, top_k: 0, top_p: 0, seed: 0, max_tokens };
    generator.begin(prompt, settings).unwrap();
    let mut text = Vec::new();
    while generator.next(|part| text.extend_from_slice(part)) == Some(Ok(Finish::Running)) {}
    (text, generator.logits_sha256().unwrap())
}

#[test]
fn an_answer_is_the_same_as_without_the_service() {
    let prompt = "HELLO";
    let mut requests = loading();
    requests.push(generate(prompt, 20));
    requests.push(message(Op::Next, &[1, 100]));
    requests.push(message(Op::Status, &[1]));
    requests.push(message(Op::Close, &[1]));
    let replies = replies(&requests, prompt, true);
    assert!(replies.iter().all(|reply| reply[0] == 0), "{replies:x?}");
    let [.., begun, _, status, _] = replies[..] else { panic!() };
    let (text, hash) = expected(prompt, 20);
    assert_eq!(begun[1], 5);
    assert_eq!(status[1..4], [State::Generating as u64, 5, text.len() as u64]);
    assert_eq!(status[4..8].as_bytes(), hash);
    assert_eq!(status[9], IsaFeatures::I8MM.bits());
    assert_eq!(replies[5][1..3], [5, 5]);
    assert!(replies[6][3] > 0);
}

#[test]
fn the_likeliest_one_of_a_hot_sampler_is_the_greedy_answer() {
    let prompt = "HELLO";
    let hash = |top_k: u64| {
        let mut requests = loading();
        let hot = [1, PROMPT_AT, prompt.len() as u64, 100 << 16, 1 << 16, 7, 20, top_k];
        requests.push(message(Op::Generate, &hot));
        requests.push(message(Op::Next, &[1, 100]));
        requests.push(message(Op::Status, &[1]));
        replies(&requests, prompt, false).last().unwrap()[4..8].as_bytes().to_vec()
    };
    let (_, greedy) = expected(prompt, 20);
    assert_eq!(hash(1), greedy);
    assert_ne!(hash(0), greedy);
}

#[test]
fn a_full_ring_stops_the_answer_until_it_is_read() {
    let prompt = "HELLO";
    let (text, _) = expected(prompt, 70);
    assert!(text.len() > CAPACITY as usize, "{}", text.len());
    let ring = shared(prompt);
    let mut memory = memory([ring.clone()]);
    let mut requests = loading();
    requests.push(generate(prompt, 70));
    let mut requests = requests.into_iter();
    let first = requests.next().unwrap();
    let (mut read, mut tail, mut finish) = (Vec::new(), 0_u32, 0);
    let mut link = Script(|reply: Option<Reply>| {
        if let Some(next) = requests.next() {
            return Some(next);
        }
        let reply = reply.unwrap();
        assert_eq!(reply[0], 0);
        let head = ring.word(8).unwrap().load(std::sync::atomic::Ordering::Acquire);
        while tail != head {
            let mut byte = [0];
            ring.read(64 + (tail % CAPACITY) as usize, &mut byte).unwrap();
            read.push(byte[0]);
            tail += 1;
        }
        ring.word(12).unwrap().store(tail, std::sync::atomic::Ordering::Release);
        finish = reply[2];
        (read.is_empty() || finish == 0).then(|| message(Op::Next, &[1, 1000]))
    });
    serve(
        &mut memory,
        &mut link,
        first,
        Resources {
            prompt: RefCell::new(&mut [0; 512]),
            isa: Isa::BASELINE,
            features: IsaFeatures::I8MM,
            workers: &Alone,
        },
    );
    assert_ne!(finish, Finish::Running as u64);
    assert_eq!(read, text);
}

#[test]
fn requests_that_do_not_fit_the_state_are_refused_and_change_nothing() {
    use Status::{BadMemory, NoSession, NotSupported, Success, WrongState};
    let unknown = Message { op: 99, args: [0; 13] };
    let requests = [
        unknown,
        message(Op::Next, &[1, 1]),
        message(Op::Open, &[RING, CONTEXT]),
        message(Op::Open, &[RING, CONTEXT]),
        message(Op::Status, &[2]),
        message(Op::Generate, &[1, 0, 0, 0, 0, 0, 1]),
        message(Op::Load, &[1, 1, 1]),
        message(Op::Load, &[1, 0, 0]),
        message(Op::Load, &[1, MEMORY, 0]),
        message(Op::Close, &[1]),
        message(Op::Close, &[1]),
    ];
    assert_eq!(
        statuses(&requests, "", true),
        [
            NotSupported,
            NoSession,
            Success,
            BadMemory,
            NoSession,
            WrongState,
            WrongState,
            Success,
            WrongState,
            Success,
            NoSession
        ]
    );
}

#[test]
fn memory_that_is_not_what_it_should_be_is_given_back_at_once() {
    use Status::{BadHash, BadMemory, BadModel, InvalidParameters, Success};
    let requests = [
        message(Op::Open, &[7, CONTEXT]),
        message(Op::Open, &[RING, 1 << 40]),
        message(Op::Open, &[RING, CONTEXT]),
        message(Op::Load, &[1, 77, 0]),
        message(Op::Load, &[1, MEMORY, 0]),
        message(Op::Load, &[1, 0, 0]),
        message(Op::Load, &[1, 3, 2]),
        message(Op::Load, &[1, 1, 5]),
        message(Op::Load, &[1, 1, WORKSPACE]),
        message(Op::Load, &[1, 1, 1]),
        message(Op::Close, &[1]),
    ];
    assert_eq!(
        statuses(&requests, "", true),
        [
            BadMemory,
            InvalidParameters,
            Success,
            BadMemory,
            BadModel,
            Success,
            BadHash,
            InvalidParameters,
            BadMemory,
            Success,
            Success
        ]
    );
}

#[test]
fn prompts_that_cannot_be_answered_leave_the_model_ready_for_others() {
    let prompt = "A".repeat(80) + "\u{e9}";
    let mut requests = loading();
    requests.extend([
        message(Op::Generate, &[1, PROMPT_AT, 81, 0, 0, 0, 1]),
        message(Op::Generate, &[1, 4090, 10, 0, 0, 0, 1]),
        message(Op::Generate, &[1, PROMPT_AT, u64::MAX, 0, 0, 0, 1]),
        message(Op::Generate, &[1, PROMPT_AT, 5, 1 << 32, 0, 0, 1]),
        message(Op::Generate, &[1, PROMPT_AT, 5, 0, 0, 0, 1, 1 << 32]),
        message(Op::Generate, &[1, PROMPT_AT, 5, 0, 0, 0, 0]),
        message(Op::Next, &[1, 1]),
        generate(&prompt, 1),
        generate("AAAAA", 1),
    ]);
    use Status::{BadPrompt, InvalidParameters, PromptTooLong, Success, WrongState};
    let replies = replies(&requests, &prompt, false);
    let got: Vec<Status> = replies[7..].iter().map(|reply| Status::from_code(reply[0]).unwrap()).collect();
    assert_eq!(
        got,
        [
            BadPrompt,
            BadPrompt,
            BadPrompt,
            InvalidParameters,
            InvalidParameters,
            InvalidParameters,
            WrongState,
            PromptTooLong,
            Success
        ]
    );
    assert_eq!(replies[14][2], CONTEXT);
}

#[test]
fn a_recall_gives_up_later_layers_first_and_whole_handles() {
    let mut requests = loading();
    requests.push(generate("HI", 3));
    requests.push(message(Op::Recall, &[1, 1]));
    requests.push(message(Op::Next, &[1, 1]));
    requests.push(message(Op::Load, &[1, 4, 4]));
    requests.push(generate("HI", 3));
    requests.push(message(Op::Recall, &[1, u64::MAX]));
    requests.push(message(Op::Recall, &[1, u64::MAX]));
    requests.push(message(Op::Status, &[1]));
    let replies = replies(&requests, "HI", false);
    assert_eq!(replies[8][2..4], [1, 4], "the output segment goes first");
    assert_eq!(Status::from_code(replies[9][0]), Some(Status::WrongState));
    assert_eq!((replies[10][0], replies[11][0]), (0, 0));
    assert_eq!(replies[12][2..9], [6, 4, 3, 2, 1, 0, MEMORY]);
    assert_eq!(replies[13][1..3], [0, 0]);
    assert_eq!((replies[14][1], replies[14][8]), (State::Loading as u64, 0));
}
