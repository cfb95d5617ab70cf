//! The engine on a tiny model: the same bits however the work is divided and whatever instructions do it, and no panic
//! whatever the weights are.

mod common;

use common::{Container, Content, Random, VOCAB, container, model};
use flexserve_kernels::{attention::STRETCH, isa::Isa};
use flexserve_llm::{Engine, Error, workers::Workers, workspace_bytes};
use sha2::{Digest, Sha256};
use zerocopy::IntoBytes;

/// More than two batches of the engine.
const CONTEXT: usize = 300;

/// Aligned memory.
fn memory(bytes: usize, fill: u64) -> Vec<u64> {
    vec![fill; bytes.div_ceil(8)]
}

fn as_bytes(memory: &mut [u64]) -> &mut [u8] {
    memory.as_mut_bytes()
}

fn tokens(count: usize) -> Vec<u32> {
    let mut random = Random(7);
    (0..count).map(|_| (random.next() % VOCAB as u64) as u32).collect()
}

/// Logits behind the last token, after adding `tokens` in pieces of `step`.
fn logits(container: &Container, isa: Isa, tokens: &[u32], step: usize, fill: u64) -> Vec<i32> {
    let segments = container.segments();
    let model = model(&segments);
    let mut memory = memory(workspace_bytes(model.manifest(), CONTEXT), fill);
    let mut engine = Engine::new(model, as_bytes(&mut memory), CONTEXT, isa).unwrap();
    for piece in tokens.chunks(step) {
        engine.prefill(piece).unwrap();
    }
    assert_eq!(engine.position(), tokens.len());
    engine.logits().to_vec()
}

#[test]
fn steps_of_any_size_give_the_same_bits() {
    let container = container(Content::Sane, 1);
    let tokens = tokens(290);
    let whole = logits(&container, Isa::detect(), &tokens, tokens.len(), 0);
    // Of every machine. Whoever changes the arithmetic changes this, too.
    let hash: String = Sha256::digest(whole.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hash, "7a406341961634a2b726b7e8e5ffbab9acfc98bd214e0529261f9080339ddd24");
    assert!(whole.iter().any(|&l| l != whole[0]), "a model that says nothing");
    assert!(whole.iter().all(|&l| l.unsigned_abs() < 1 << 28), "a model that saturates: {whole:?}");
    for step in [1, 2, 3, 4, 5, 31, 32, 33, 64, 65, 127, 128, 129, 256] {
        assert_eq!(logits(&container, Isa::detect(), &tokens, step, 0), whole, "steps of {step}");
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let container = container(Content::Sane, 2);
    let tokens = tokens(43);
    let plain = logits(&container, Isa::PLAIN, &tokens, 40, 0);
    let isas = [0, Isa::DOTPROD, Isa::DOTPROD | Isa::I8MM, !Isa::I8MM, u64::MAX].map(Isa::detect_within);
    for isa in isas {
        assert_eq!(logits(&container, isa, &tokens, 40, 0), plain, "{isa:?}");
    }
}

/// Threads, all of which vanish before their parts are done: others do those parts again, some at the same time.
#[derive(Debug)]
struct Threads(usize);

impl Workers for Threads {
    fn cores(&self) -> usize {
        self.0
    }

    fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for thread in 0..2 * self.0 {
                scope.spawn(move || (thread % self.0..parts).step_by(self.0).for_each(work));
            }
        });
        work(parts - 1);
        work(0);
    }
}

#[test]
fn any_number_of_workers_gives_the_same_bits() {
    // Attention goes on in a second stretch, in the middle of a batch.
    const LONG: usize = STRETCH + 4 * 34;
    let container = container(Content::Sane, 6);
    let segments = container.segments();
    let model = model(&segments);
    let (tokens, workers) = (tokens(LONG), [1, 2, 4, 8].map(Threads));
    let bytes = workspace_bytes(model.manifest(), LONG);
    let mut memories = [memory(bytes, 0), memory(bytes, u64::MAX)];
    let [mut alone, mut helped] =
        memories.each_mut().map(|memory| Engine::new(model, as_bytes(memory), LONG, Isa::detect()).unwrap());
    let (first, rest) = tokens.split_at(STRETCH - 20);
    assert_eq!(helped.prefill(first), alone.prefill(first));
    for (workers, tokens) in workers.iter().zip(rest.chunks(34)) {
        helped = helped.with_workers(workers);
        let (batch, next) = tokens.split_at(33);
        assert_eq!(helped.prefill(batch), alone.prefill(batch), "{workers:?}");
        assert_eq!(helped.decode(next[0]), alone.decode(next[0]), "{workers:?}");
    }
    helped.reset();
    assert_eq!(helped.prefill(&tokens[..70]), {
        alone.reset();
        alone.prefill(&tokens[..70])
    });
}

#[test]
fn engines_that_share_their_weights_do_not_disturb_each_other() {
    let container = container(Content::Sane, 8);
    let (first, second) = (tokens(40), tokens(63)[20..].to_vec());
    let alone = [&first, &second].map(|tokens| logits(&container, Isa::detect(), tokens, 7, 0));
    let segments = container.segments();
    let model = model(&segments);
    let bytes = workspace_bytes(model.manifest(), CONTEXT);
    let mut memories = [memory(bytes, 0), memory(bytes, u64::MAX)];
    let [mut one, mut other] = memories
        .each_mut()
        .map(|memory| Engine::new(model, as_bytes(memory), CONTEXT, Isa::detect()).unwrap());
    let mut pieces = second.chunks(7);
    for piece in first.chunks(7) {
        one.prefill(piece).unwrap();
        pieces.next().map(|piece| other.prefill(piece).map(<[_]>::len).unwrap());
    }
    pieces.for_each(|piece| _ = other.prefill(piece).unwrap());
    assert_eq!([one.logits(), other.logits()], alone.each_ref().map(Vec::as_slice));
}

#[test]
fn what_the_workspace_held_does_not_matter() {
    let container = container(Content::Sane, 3);
    let tokens = tokens(5);
    let zeros = logits(&container, Isa::detect(), &tokens, 5, 0);
    assert_eq!(logits(&container, Isa::detect(), &tokens, 5, u64::MAX), zeros);
}

#[test]
fn scores_are_the_logits_of_every_step() {
    let container = container(Content::Sane, 4);
    let segments = container.segments();
    let model = model(&segments);
    let mut memory = memory(workspace_bytes(model.manifest(), CONTEXT), 0);
    let mut engine = Engine::new(model, as_bytes(&mut memory), CONTEXT, Isa::detect()).unwrap();
    let tokens = tokens(40);
    let mut scratch = vec![0; 3 * VOCAB];
    let mut scores = Vec::new();
    let each = |index, logits: &[i32]| {
        assert_eq!(index, scores.len());
        scores.push(logits.to_vec());
    };
    engine.score(&tokens, &mut scratch, each).unwrap();
    engine.reset();
    for (token, scores) in tokens.iter().zip(&scores) {
        assert_eq!(engine.decode(*token).unwrap(), scores);
    }
}

#[test]
fn a_long_context_is_as_exact_at_its_end() {
    const LONG: usize = 2048;
    let container = container(Content::Sane, 7);
    let segments = container.segments();
    let model = model(&segments);
    let mut memory = memory(workspace_bytes(model.manifest(), LONG), 0);
    let mut engine = Engine::new(model, as_bytes(&mut memory), LONG, Isa::detect()).unwrap();
    let (mut first, mut differs) = (vec![], 0);
    let each = |index, logits: &[i32]| {
        if index == 0 {
            first = logits.to_vec();
        }
        for (a, b) in logits.iter().zip(&first) {
            differs = differs.max(a.abs_diff(*b));
        }
    };
    // Whatever the weights of so many equal values are, their mean is each of them.
    engine.score(&[3; LONG], &mut [0; VOCAB], each).unwrap();
    assert_eq!(engine.position(), LONG);
    assert!(first.iter().any(|logit| logit.unsigned_abs() > 1 << 14), "a model that says nothing: {first:?}");
    assert!(differs < 1 << 6, "a logit differs by {differs} / 65536 from the first position's");
}

#[test]
fn any_weights_are_survived() {
    for seed in 1..40 {
        let container = container(Content::Hostile, seed);
        let tokens = tokens(9);
        let whole = logits(&container, Isa::detect(), &tokens, 9, 0);
        assert_eq!(logits(&container, Isa::PLAIN, &tokens, 1, 0), whole);
    }
}

#[test]
fn limits_are_errors() {
    let container = container(Content::Sane, 5);
    let segments = container.segments();
    let model = model(&segments);
    let bytes = workspace_bytes(model.manifest(), CONTEXT);
    let mut memory = memory(bytes + 8, 0);
    let memory = as_bytes(&mut memory);
    let new = |memory: &mut [u8], context| Engine::new(model, memory, context, Isa::detect()).map(|_| ());
    assert_eq!(new(&mut memory[..bytes], 0), Err(Error::Context));
    assert_eq!(new(&mut memory[..bytes - 1], CONTEXT), Err(Error::Workspace));
    assert_eq!(new(&mut memory[1..=bytes], CONTEXT), Err(Error::Workspace));
    let mut engine = Engine::new(model, &mut memory[..bytes], CONTEXT, Isa::detect()).unwrap();
    assert_eq!(engine.prefill(&[]), Err(Error::NoTokens));
    assert_eq!(engine.score(&[0], &mut [0; VOCAB - 1], |_, _| ()), Err(Error::Workspace));
    assert_eq!(engine.decode(VOCAB as u32), Err(Error::Token(VOCAB as u32)));
    assert_eq!(engine.prefill(&[0; CONTEXT + 1]), Err(Error::ContextFull));
    assert_eq!(engine.position(), 0);
    assert!(engine.prefill(&[0; CONTEXT]).is_ok());
    assert_eq!(engine.decode(0), Err(Error::ContextFull));
}
