//! Random calls against a model of ownership, and random bytes against the parsers.

mod common;

use arm_ffa::{FfaError, FuncId};
use common::{Bench, FREE, LLM, descriptor, registers, request};
use flexserve_abi::{el3::Gpi, ffa::LLM_PARTITION};
use flexserve_spmc::{
    descriptor::{self as wire, Kind},
    hardware::Hardware as _,
    manifest,
    partition::Step,
    tables::PAGE,
};
use proptest::{collection::vec, prelude::*};
use std::collections::BTreeMap;

/// Pages that the random calls are about.
const PAGES: u64 = 24;

#[derive(Clone, Debug)]
enum Op {
    Lend(Vec<(u64, u32)>),
    /// As `Lend`, while EL3 refuses one granule.
    LendRefused(Vec<(u64, u32)>, u64),
    /// The n-th handle there ever was.
    Retrieve(usize),
    Relinquish(usize),
    Reclaim(usize),
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    let ranges = || vec((0..PAGES, 1..4_u32), 1..4);
    prop_oneof![
        3 => ranges().prop_map(Op::Lend),
        1 => (ranges(), 0..PAGES).prop_map(|(ranges, page)| Op::LendRefused(ranges, page)),
        3 => any::<usize>().prop_map(Op::Retrieve),
        2 => any::<usize>().prop_map(Op::Relinquish),
        3 => any::<usize>().prop_map(Op::Reclaim),
        1 => Just(Op::Crash),
    ]
}

/// What should be true.
#[derive(Default)]
struct Model {
    /// Handles that live: their pages, and whether they are mapped.
    live: BTreeMap<u64, (Vec<u64>, bool)>,
    /// Every handle there ever was.
    handles: Vec<u64>,
}

impl Model {
    fn pick(&self, n: usize) -> u64 {
        if self.handles.is_empty() { 7 } else { self.handles[n % self.handles.len()] }
    }

    fn holds(&self, page: u64) -> bool {
        self.live.values().any(|(pages, _)| pages.contains(&page))
    }
}

fn pages(ranges: &[(u64, u32)]) -> Vec<u64> {
    ranges.iter().flat_map(|(first, count)| (0..u64::from(*count)).map(move |i| first + i)).collect()
}

fn lend(bench: &mut Bench, ranges: &[(u64, u32)]) -> Result<u64, FfaError> {
    let ranges: Vec<_> = ranges.iter().map(|(first, count)| (FREE + first * PAGE, *count)).collect();
    bench.lend(&ranges)
}

/// Starts a manager whose partition serves a request, so that it can call.
fn serving() -> Bench<'static> {
    let mut bench = Bench::new();
    bench.request(LLM);
    bench.map_secure(LLM);
    bench
}

fn apply(bench: &mut Bench, model: &mut Model, op: &Op, aborted: &mut bool) {
    match op {
        Op::Lend(ranges) | Op::LendRefused(ranges, _) => {
            let wanted = pages(ranges);
            let mut sorted = wanted.clone();
            sorted.sort_unstable();
            sorted.dedup();
            let clash = sorted.len() != wanted.len() || wanted.iter().any(|page| model.holds(*page));
            let hit = match op {
                Op::LendRefused(_, page) => {
                    bench.spmc.hardware.refused = Some(FREE + page * PAGE);
                    wanted.contains(page)
                }
                _ => false,
            };
            let result = lend(bench, ranges);
            bench.spmc.hardware.refused = None;
            assert_eq!(result.is_ok(), !clash && !hit, "{ranges:?}: {result:?}");
            if let Ok(handle) = result {
                assert!(!model.handles.contains(&handle), "a handle was used again");
                model.handles.push(handle);
                model.live.insert(handle, (wanted, false));
            }
        }
        Op::Retrieve(n) if !*aborted => {
            let handle = model.pick(*n);
            let result = bench.retrieve(LLM, &request(LLM_PARTITION, handle));
            match model.live.get_mut(&handle) {
                Some((pages, mapped @ false)) => {
                    assert_eq!(result.unwrap().1 as usize, pages.len());
                    *mapped = true;
                }
                Some(_) => assert_eq!(result, Err(FfaError::Denied)),
                None => assert_eq!(result, Err(FfaError::InvalidParameters)),
            }
        }
        Op::Relinquish(n) if !*aborted => {
            let handle = model.pick(*n);
            let result = bench.relinquish(LLM, handle, 0);
            match model.live.get_mut(&handle) {
                Some((_, mapped @ true)) => {
                    result.unwrap();
                    *mapped = false;
                }
                Some(_) => assert_eq!(result, Err(FfaError::Denied)),
                None => assert_eq!(result, Err(FfaError::InvalidParameters)),
            }
        }
        Op::Reclaim(n) => {
            let handle = model.pick(*n);
            let result = bench.reclaim(handle);
            match model.live.get(&handle) {
                Some((_, true)) => assert_eq!(result, Err(FfaError::Denied)),
                Some((pages, false)) => {
                    result.unwrap();
                    for page in pages {
                        let page = bench.spmc.hardware.page(FREE + page * PAGE);
                        assert_eq!(*page, [0; 4096]);
                        page.fill(0xa5);
                    }
                    model.live.remove(&handle);
                }
                None => assert_eq!(result, Err(FfaError::InvalidParameters)),
            }
        }
        Op::Crash => {
            bench.spmc.aborted(LLM);
            *aborted = true;
            model.live.values_mut().for_each(|(_, mapped)| *mapped = false);
        }
        Op::Retrieve(_) | Op::Relinquish(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn a_page_has_one_owner_whatever_is_called(ops in vec(op(), 1..60)) {
        let mut bench = serving();
        let tables = bench.spmc.ledger.pool.available();
        let (mut model, mut aborted) = (Model::default(), false);
        for op in &ops {
            apply(&mut bench, &mut model, op, &mut aborted);
            for page in 0..PAGES + 4 {
                let (address, lent) = (FREE + page * PAGE, model.holds(page));
                let world = if lent { Gpi::Secure } else { Gpi::NonSecure };
                prop_assert_eq!(bench.spmc.hardware.world(address), world, "page {} after {:?}", page, op);
                prop_assert_eq!(bench.spmc.ledger.claims.is_claimed(address), lent);
            }
        }
        if !aborted {
            bench.spmc.aborted(LLM);
        }
        for handle in model.live.keys() {
            bench.reclaim(*handle).unwrap();
        }
        // The window's own level-2 tables stay.
        prop_assert!(bench.spmc.ledger.pool.available() + 1 >= tables);
    }

    #[test]
    fn no_descriptor_makes_the_parsers_panic(mut bytes in vec(any::<u8>(), 0..200), total in any::<usize>()) {
        let _ = wire::sending(&bytes, total, Kind::Lend, 0);
        let _ = wire::retrieving(&bytes);
        let _ = manifest::package(&bytes);
        let _ = manifest::places::<4>(&bytes);
        bytes.resize(18, 0);
        let _ = wire::relinquishing(bytes[..].try_into().unwrap());
        let _ = wire::range(bytes[..16].try_into().unwrap());
    }

    #[test]
    fn a_descriptor_with_wrong_bytes_lends_all_or_nothing(
        changes in vec((0..128_usize, any::<u8>()), 1..4),
        length in 0..160_u64,
    ) {
        let mut bench = Bench::new();
        let mut bytes = descriptor(LLM_PARTITION, &[(FREE, 1), (FREE + 8 * PAGE, 2), (FREE + 4 * PAGE, 1)]);
        let length = if length < 128 { length } else { bytes.len() as u64 };
        for (at, value) in changes {
            bytes[at] = value;
        }
        bench.spmc.hardware.write_normal(common::TX, &bytes).unwrap();
        let step = bench.spmc.normal_call(&registers(FuncId::MemLend64, &[128, length]));
        let Step::Reply(reply) = step else { panic!("{step:?}") };
        let answer = reply.over(&[0; 18]);
        let success = match answer[0] as u32 {
            // The rest, with its wrong bytes.
            0x8400_007a => bench.send_next(answer[2] << 32 | answer[1], &bytes[answer[3] as usize..]).is_ok(),
            function => function == 0x8400_0061,
        };
        let secure = bench.spmc.hardware.worlds.values().filter(|world| **world == Gpi::Secure).count();
        prop_assert_eq!(secure != 0, success);
    }
}
