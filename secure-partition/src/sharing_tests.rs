//! Sessions that share weights: the same answers as alone, and memory that stays as long as somebody needs it.

use super::*;
use flexserve_abi::{isa::IsaFeatures, service::SESSIONS};

/// Handles of a second copy of segments, and of a second workspace.
const AGAIN: u64 = 100;
const MEMORY_2: u64 = 2001;
const PROMPTS: [&str; 2] = ["HELLO", "WORLD"];

/// The normal world, one request at a time, on a thread of the service's own; what it asks and is answered.
struct Asking {
    to: std::sync::mpsc::Sender<Message>,
    from: std::sync::mpsc::Receiver<Reply>,
}

impl Asking {
    fn ask(&self, op: Op, args: &[u64]) -> Reply {
        self.to.send(message(op, args)).unwrap();
        self.from.recv().unwrap()
    }

    /// x5 and on of a success.
    fn ok(&self, op: Op, args: &[u64]) -> Vec<u64> {
        let reply = self.ask(op, args);
        assert_eq!(reply[0], 0, "{op:?} {args:?}");
        reply[1..].to_vec()
    }

    fn refused(&self, op: Op, args: &[u64]) -> Status {
        Status::from_code(self.ask(op, args)[0]).unwrap()
    }

    /// Loads a whole model, from handles that begin at `first`, and a workspace.
    fn load(&self, session: u64, first: u64, workspace: u64) {
        (0..5).for_each(|i| _ = self.ok(Op::Load, &[session, first + i, i]));
        self.ok(Op::Load, &[session, workspace, WORKSPACE]);
    }

    fn generate(&self, session: u64) {
        let prompt = PROMPTS[session as usize - 1];
        self.ok(Op::Generate, &[session, PROMPT_AT, prompt.len() as u64, 0, 0, 0, 20]);
    }

    fn granules(&self, session: u64) -> u64 {
        self.ok(Op::Status, &[session])[7]
    }
}

/// Runs the service with two rings and `ask` against it; answers the handles that are back with the normal world in the end.
fn serving(ask: impl FnOnce(&Asking) + Send) -> Vec<u64> {
    let (to, requests) = std::sync::mpsc::channel();
    let (replies, from) = std::sync::mpsc::channel();
    std::thread::scope(|threads| {
        let service = threads.spawn(move || {
            let mut memory = memory([shared(PROMPTS[0]), shared(PROMPTS[1])]);
            memory.shared.extend((RING + 2..RING + 9).map(|handle| (handle, shared(""))));
            let again: Vec<Lent> = (0..5).map(|i| Lent(AGAIN + i, memory.lent[&i].1.clone())).collect();
            memory.lent.extend(again.into_iter().map(|lent| (lent.0, lent)));
            memory.lent.insert(MEMORY_2, Lent(MEMORY_2, vec![!0; 1 << 17]));
            let mut link = Script(|reply: Option<Reply>| {
                // The first reply is to a request that only starts the service.
                reply
                    .filter(|reply| reply[0] != Status::NotSupported.code())
                    .map(|reply| replies.send(reply));
                requests.recv().ok()
            });
            let mut prompt = [0; 512];
            let own = Resources {
                prompt: RefCell::new(&mut prompt),
                isa: Isa::BASELINE,
                features: IsaFeatures::I8MM,
                workers: &Alone,
            };
            serve(&mut memory, &mut link, Message { op: 99, args: [0; 13] }, own);
            memory.lent.keys().copied().collect::<Vec<_>>()
        });
        ask(&Asking { to, from });
        service.join().unwrap()
    })
}

/// Two sessions of one model; the second one has lent a workspace only.
fn two(asking: &Asking) {
    asking.ok(Op::Open, &[RING, CONTEXT]);
    asking.load(1, 0, MEMORY);
    asking.ok(Op::Open, &[RING + 1, CONTEXT]);
    let loaded = asking.ok(Op::Load, &[2, AGAIN, 0]);
    assert_eq!((loaded[..2].to_vec(), loaded[3]), (vec![5, 5], 1), "all is loaded, and the handle went back");
    asking.ok(Op::Load, &[2, MEMORY_2, WORKSPACE]);
}

#[test]
fn answers_of_two_sessions_at_the_same_time_are_those_of_each_alone() {
    let back = serving(|asking| {
        two(asking);
        (1..=2).for_each(|session| asking.generate(session));
        let mut running = vec![1, 2];
        while !running.is_empty() {
            running.retain(|&session| asking.ok(Op::Next, &[session, 1])[1] == Finish::Running as u64);
        }
        for (session, prompt) in (1..=2).zip(PROMPTS) {
            let (text, hash) = expected(prompt, 20);
            let status = asking.ok(Op::Status, &[session]);
            assert_eq!(status[2], text.len() as u64);
            assert_eq!(status[3..7].as_bytes(), hash);
        }
    });
    assert_eq!(back, [AGAIN, AGAIN + 1, AGAIN + 2, AGAIN + 3, AGAIN + 4], "weights are held once");
}

#[test]
fn other_sessions_come_and_go_while_one_answers() {
    serving(|asking| {
        asking.ok(Op::Open, &[RING, CONTEXT]);
        asking.load(1, 0, MEMORY);
        asking.generate(1);
        asking.ok(Op::Next, &[1, 3]);
        asking.ok(Op::Open, &[RING + 1, CONTEXT]);
        asking.ok(Op::Load, &[2, AGAIN, 0]);
        asking.ok(Op::Load, &[2, MEMORY_2, WORKSPACE]);
        asking.ok(Op::Next, &[1, 3]);
        // Its workspace alone.
        assert_eq!(asking.ok(Op::Recall, &[2, 1])[1..3], [1, MEMORY_2]);
        asking.ok(Op::Next, &[1, 3]);
        asking.ok(Op::Close, &[2]);
        asking.ok(Op::Next, &[1, 100]);
        let (_, hash) = expected(PROMPTS[0], 20);
        assert_eq!(asking.ok(Op::Status, &[1])[3..7].as_bytes(), hash);
    });
}

#[test]
fn weights_stay_until_the_last_session_that_uses_them_is_closed() {
    let back = serving(|asking| {
        two(asking);
        let (first, second) = (asking.granules(1), asking.granules(2));
        assert_eq!(first, second, "each counts what is shared");
        asking.ok(Op::Close, &[1]);
        assert_eq!(asking.granules(2), second);
        asking.generate(2);
        // The first session's handles are those of the weights.
        assert_eq!(asking.ok(Op::Recall, &[2, 1])[1..3], [1, 4]);
        assert_eq!(asking.ok(Op::Recall, &[2, u64::MAX])[1..7], [5, 3, 2, 1, 0, MEMORY_2]);
        asking.ok(Op::Close, &[2]);
    });
    assert_eq!(back.len(), 12, "{back:?}");
    let back = serving(|asking| {
        two(asking);
        asking.ok(Op::Close, &[1]);
        asking.ok(Op::Close, &[2]);
    });
    assert_eq!(back.len(), 12, "{back:?}");
}

#[test]
fn a_recall_of_shared_weights_ends_every_answer_and_either_may_load_them_again() {
    serving(|asking| {
        two(asking);
        (1..=2).for_each(|session| asking.generate(session));
        let workspace = (1 << 17) * 8 / 4096;
        let recalled = asking.ok(Op::Recall, &[2, workspace + 1]);
        assert_eq!(recalled[1..4], [2, MEMORY_2, 4], "the workspace first, then the last segment");
        for session in 1..=2 {
            assert_eq!(asking.refused(Op::Next, &[session, 1]), Status::WrongState);
            assert_eq!(asking.ok(Op::Status, &[session])[0], State::Loading as u64);
        }
        assert_eq!(asking.ok(Op::Load, &[2, 4, 4])[1], 5);
        assert_eq!(
            asking.refused(Op::Load, &[1, AGAIN + 4, 4]),
            Status::WrongState,
            "the other one was faster"
        );
        asking.generate(1);
        asking.ok(Op::Next, &[1, 100]);
        assert_eq!(asking.ok(Op::Status, &[1])[3..7].as_bytes(), expected(PROMPTS[0], 20).1);
    });
}

#[test]
fn sessions_of_other_models_share_nothing_and_one_session_is_of_one_model() {
    serving(|asking| {
        asking.ok(Op::Open, &[RING, CONTEXT]);
        asking.ok(Op::Open, &[RING + 1, CONTEXT]);
        // Half of a model is shared as well.
        (0..3).for_each(|i| _ = asking.ok(Op::Load, &[1, i, i]));
        assert_eq!(asking.refused(Op::Load, &[2, 3, 3]), Status::WrongState, "of no model yet");
        let loaded = asking.ok(Op::Load, &[2, AGAIN, 0]);
        assert_eq!((loaded[..2].to_vec(), loaded[3]), (vec![5, 3], 1));
        assert_eq!(asking.ok(Op::Load, &[2, 3, 3])[1], 4);
        assert_eq!(asking.refused(Op::Load, &[1, AGAIN + 3, 3]), Status::WrongState);
        assert_eq!(asking.refused(Op::Load, &[2, AGAIN, 0]), Status::WrongState);
        assert_eq!(asking.ok(Op::Load, &[1, 4, 4])[1], 5);
        // What is left has no more than its head, which must be the same again.
        assert_eq!(asking.ok(Op::Recall, &[1, u64::MAX])[1], 5);
        assert_eq!(asking.refused(Op::Load, &[2, MEMORY, 0]), Status::BadModel);
        assert_eq!(asking.ok(Op::Load, &[2, AGAIN, 0])[1], 1);
    });
}

#[test]
fn there_are_as_many_sessions_as_it_says() {
    serving(|asking| {
        for session in 1..=SESSIONS as u64 {
            assert_eq!(asking.ok(Op::Open, &[RING + session - 1, CONTEXT])[0], session);
        }
        assert_eq!(asking.refused(Op::Open, &[RING + SESSIONS as u64, CONTEXT]), Status::Busy);
        asking.ok(Op::Close, &[2]);
        assert_eq!(asking.ok(Op::Open, &[RING + 1, CONTEXT])[0], SESSIONS as u64 + 1);
        for session in [0, 2, SESSIONS as u64 + 2] {
            assert_eq!(asking.refused(Op::Status, &[session]), Status::NoSession);
        }
    });
}
