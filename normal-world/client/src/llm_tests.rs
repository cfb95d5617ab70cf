use super::*;
use crate::{Registers, registers};
use alloc::string::ToString;
use flexserve_abi::ffa::LLM_PARTITION;

/// Answers every request with x4.. from a list.
struct Service {
    answers: Vec<Vec<u64>>,
    calls: Vec<Registers>,
}

impl Conduit for Service {
    fn call(&mut self, call: Registers) -> Registers {
        self.calls.push(call);
        let mut answer = registers(0xc400_008e, &[u64::from(LLM_PARTITION) << 16]);
        let results = self.answers.remove(0);
        answer[4..4 + results.len()].copy_from_slice(&results);
        answer
    }
}

/// Runs `test` against a service with these answers; answers x4.. of the requests.
fn against(answers: &[&[u64]], test: impl FnOnce(&mut Llm<'_, '_, Service>)) -> Vec<Vec<u64>> {
    let answers = answers.iter().map(|answer| answer.to_vec()).collect();
    let mut tx = [];
    let mut ffa = Ffa::new(Service { answers, calls: Vec::new() }, &mut tx);
    test(&mut Llm::new(&mut ffa, LLM_PARTITION, &mut || {}));
    ffa.conduit().calls.iter().map(|call| call[4..].to_vec()).collect()
}

#[test]
fn calls_put_their_arguments_where_the_service_looks() {
    let prompt =
        Prompt { offset: 128, length: 5, temperature: 1, top_k: 5, top_p: 2, seed: 3, max_tokens: 4 };
    let requests =
        against(&[&[0, 77, 0x1_0001], &[0, 30, 1, 500], &[0, 9], &[0], &[0, 30, 30, 500, 1]], |llm| {
            assert_eq!(llm.open(0x1234, 2048), Ok(77));
            let loaded = Loaded { segments: 30, loaded: 1, workspace_granules: 500, shared: false };
            assert_eq!(llm.load(77, 0x99, 0), Ok(loaded));
            assert_eq!(llm.generate(77, &prompt), Ok(9));
            assert_eq!(llm.close(77), Ok(()));
            assert_eq!(llm.load(78, 0x9a, 0), Ok(Loaded { loaded: 30, shared: true, ..loaded }));
        });
    assert_eq!(requests[0][..4], [1, 0x1234, 2048, 0]);
    assert_eq!(requests[1][..5], [3, 77, 0x99, 0, 0]);
    assert_eq!(requests[2][..10], [4, 77, 128, 5, 1, 2, 3, 4, 5, 0]);
    assert_eq!(requests[3][..3], [2, 77, 0]);
}

#[test]
fn next_and_recall_check_what_they_are_told() {
    against(&[&[0, 3, 2], &[0, 3, 9], &[0, 20, 2, 5, 6], &[0, 20, 11]], |llm| {
        assert_eq!(llm.next(1, 4), Ok((3, Finish::MaxTokens)));
        assert_eq!(llm.next(1, 4), Err(Error::Malformed("x6", 9)));
        assert_eq!(llm.recall(1, 4), Ok(Recalled { granules: 20, handles: vec![5, 6] }));
        assert_eq!(llm.recall(1, 4), Err(Error::Malformed("x6", 11)));
    });
}

#[test]
fn status_puts_the_hash_together_byte_by_byte() {
    let words: [u64; 4] =
        core::array::from_fn(|i| u64::from_le_bytes(core::array::from_fn(|j| (i * 8 + j) as u8)));
    against(&[&[0, 2, 10, 20, words[0], words[1], words[2], words[3], 400, 5], &[0, 7]], |llm| {
        let report = Report {
            state: State::Generating,
            prompt_tokens: 10,
            answer_tokens: 20,
            logits_sha256: core::array::from_fn(|i| i as u8),
            granules: 400,
            features: IsaFeatures::from_bits(5),
        };
        assert_eq!(llm.status(1), Ok(report));
        assert_eq!(llm.status(1), Err(Error::Malformed("x5", 7)));
    });
}

#[test]
fn every_refusal_has_words_of_its_own() {
    let mut seen = std::collections::HashSet::new();
    for status in Status::ALL.into_iter().filter(|status| *status != Status::Success) {
        against(&[&[status.code(), 3000, 2048]], |llm| {
            let error = llm.close(1).unwrap_err();
            assert_eq!(error, Error::Refused(status, 3000, 2048));
            assert!(seen.insert(error.to_string()));
        });
    }
    let long = Error::Refused(Status::PromptTooLong, 3000, 2048).to_string();
    let endless = Error::Refused(Status::PromptTooLong, 0, 2048).to_string();
    assert!(endless.contains("2048") && !endless.contains(" 0 "), "{endless}");
    assert!(long.contains("3000") && long.contains("2048"), "{long}");
}

#[test]
fn a_status_that_nobody_defined_is_malformed() {
    against(&[&[1]], |llm| assert_eq!(llm.close(1), Err(Error::Malformed("x4", 1))));
}
