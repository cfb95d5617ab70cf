use super::*;
use arm_ffa::memory_management::Handle;
use flexserve_abi::ffa::LLM_PARTITION;
use proptest::prelude::*;

/// Answers calls from a list, and keeps what it was asked.
#[derive(Default)]
struct Script {
    answers: Vec<Registers>,
    calls: Vec<Registers>,
}

impl Conduit for Script {
    fn call(&mut self, call: Registers) -> Registers {
        self.calls.push(call);
        self.answers.remove(0)
    }
}

fn script(answers: &[(FuncId, &[u64])]) -> Script {
    let answers = answers.iter().map(|(function, rest)| registers((*function).into(), rest)).collect();
    Script { answers, calls: Vec::new() }
}

fn error(code: FfaError) -> u64 {
    u64::from(i32::from(code).cast_unsigned())
}

#[test]
fn the_version_is_offered_and_errors_are_negative() {
    let mut tx = [];
    let mut ffa = Ffa::new(Script { answers: vec![registers(VERSION, &[])], calls: vec![] }, &mut tx);
    assert_eq!(ffa.version(), Ok(VERSION));
    assert_eq!(ffa.conduit().calls[0][..2], [0x8400_0063, 0x0001_0002]);
    ffa.conduit().answers.push(registers(error(FfaError::NotSupported) as u32, &[]));
    assert_eq!(ffa.version(), Err(Error::Code(FfaError::NotSupported)));
}

#[test]
fn every_error_code_comes_through() {
    use FfaError::{
        Aborted, Busy, Denied, Interrupted, InvalidParameters, NoData, NoMemory, NotSupported, Retry,
    };
    for code in [NotSupported, InvalidParameters, NoMemory, Busy, Interrupted, Denied, Retry, Aborted, NoData]
    {
        let mut tx = [];
        let mut ffa = Ffa::new(script(&[(FuncId::Error32, &[0, error(code)])]), &mut tx);
        assert_eq!(ffa.simple(FuncId::MemReclaim, &[1]), Err(Error::Code(code)));
    }
    let mut tx = [];
    let mut ffa = Ffa::new(script(&[(FuncId::Error32, &[0, 0xffff_ff00])]), &mut tx);
    assert_eq!(ffa.reclaim(1), Err(Error::UnknownCode(-256)));
}

#[test]
fn an_answer_of_another_call_is_not_a_success() {
    let mut tx = [];
    let mut ffa = Ffa::new(script(&[(FuncId::MemRetrieveResp, &[])]), &mut tx);
    assert_eq!(ffa.id(), Err(Error::Unexpected(0x8400_0075)));
    ffa.conduit().answers.push(registers(7, &[]));
    assert_eq!(ffa.id(), Err(Error::Unexpected(7)));
}

#[test]
fn a_partition_is_found_by_its_service() {
    let mut tx = [];
    let found: &[u64] = &[0, 0x18 << 48, 0x1_8001 | 0x501 << 32, 0, 0];
    let mut ffa = Ffa::new(script(&[(FuncId::Success64, found)]), &mut tx);
    let uuid = flexserve_abi::ffa::LLM_SERVICE;
    assert_eq!(ffa.find_partition(uuid), Ok(LLM_PARTITION));
    let UuidRegisters(low, high) = UuidRegisters::new(uuid);
    assert_eq!(ffa.conduit().calls[0][..4], [0xc400_008b, low, high, 0]);
    for nothing in [FfaError::InvalidParameters, FfaError::NoData] {
        ffa.conduit().answers.push(registers(FuncId::Error32.into(), &[0, error(nothing)]));
        assert_eq!(ffa.find_partition(uuid), Err(Error::NoPartition));
    }
}

#[test]
fn a_request_survives_interrupts_and_yields() {
    let mut tx = [];
    let target = u64::from(LLM_PARTITION) << 16;
    let mut done = registers(FuncId::MsgSendDirectResp64_2.into(), &[0x8001_0000]);
    done[4..].copy_from_slice(&core::array::from_fn::<u64, 14, _>(|i| 100 + i as u64));
    let mut conduit = script(&[
        (FuncId::Interrupt32, &[target, 26]),
        (FuncId::Yield32, &[target]),
        (FuncId::Interrupt32, &[target, 26]),
    ]);
    conduit.answers.push(done);
    let mut ffa = Ffa::new(conduit, &mut tx);
    let mut interrupts = 0;
    let message = core::array::from_fn(|i| i as u64);
    let answer = ffa.request(LLM_PARTITION, UuidRegisters(1, 2), &message, &mut || interrupts += 1);
    assert_eq!(answer, Ok(core::array::from_fn(|i| 100 + i as u64)));
    assert_eq!(interrupts, 2);
    let calls = &ffa.conduit().calls;
    assert_eq!(calls[0][..6], [0xc400_008d, 0x8001, 1, 2, 0, 1]);
    for run in &calls[1..] {
        assert_eq!(*run, registers(FuncId::Run32.into(), &[target]));
    }
}

#[test]
fn a_response_from_somebody_else_is_refused() {
    let mut tx = [];
    let mut ffa = Ffa::new(script(&[(FuncId::MsgSendDirectResp64_2, &[0x8002_0000])]), &mut tx);
    let answer = ffa.request(LLM_PARTITION, UuidRegisters(1, 2), &[0; 14], &mut || {});
    assert_eq!(answer, Err(Error::Unexpected(0xc400_008e)));
}

#[test]
fn a_descriptor_says_what_is_lent_to_whom() {
    let regions =
        [Region { address: 0x5000_0000, page_cnt: 3 }, Region { address: 0x4300_0000, page_cnt: 1 }];
    for (transfer, attributes) in [(Transfer::Lend, 0), (Transfer::Share, 0b10_1111)] {
        let bytes = descriptor(transfer, LLM_PARTITION, &regions);
        let (transaction, mut access, constituents) = MemTransactionDesc::unpack(&bytes).unwrap();
        assert_eq!(u16::from(transaction.mem_region_attr), attributes);
        assert_eq!((transaction.sender_id, transaction.handle), (NORMAL_WORLD, Handle(0)));
        let access = access.next().unwrap().unwrap();
        assert_eq!((access.endpoint_id, access.data_access), (LLM_PARTITION, DataAccessPerm::ReadWrite));
        let constituents: Vec<_> = constituents.unwrap().map(Result::unwrap).collect();
        assert_eq!(constituents, regions);
    }
}

#[test]
fn a_refused_fragment_ends_the_transfer() {
    let mut tx = [0; 96];
    let conduit =
        script(&[(FuncId::MemFragRx, &[7, 8, 96]), (FuncId::Error32, &[0, error(FfaError::NoMemory)])]);
    let mut ffa = Ffa::new(conduit, &mut tx);
    let regions = [Region { address: 0x5000_0000, page_cnt: 1 }; 3];
    assert_eq!(ffa.transfer(Transfer::Lend, LLM_PARTITION, &regions), Err(Error::Code(FfaError::NoMemory)));
    assert_eq!(ffa.conduit().calls[1][..4], [0x8400_007b, 7, 8, 32]);
}

#[test]
fn a_reclaim_is_repeated_until_all_is_back() {
    let mut tx = [];
    let retry: (FuncId, &[u64]) = (FuncId::Error32, &[0, error(FfaError::Retry)]);
    let mut ffa = Ffa::new(script(&[retry, retry, (FuncId::Success32, &[])]), &mut tx);
    assert_eq!(ffa.reclaim(5 << 32 | 7), Ok(()));
    assert_eq!(ffa.conduit().calls, [registers(FuncId::MemReclaim.into(), &[7, 5, 0]); 3]);
    ffa.conduit().answers =
        script(&[retry, (FuncId::Error32, &[0, error(FfaError::InvalidParameters)])]).answers;
    assert_eq!(ffa.reclaim(7), Err(Error::Code(FfaError::InvalidParameters)), "another core was faster");
}

#[test]
fn the_spmc_says_what_it_wants_next() {
    let mut tx = [0; 4096];
    let regions: Vec<_> =
        (0..4).map(|i| Region { address: 0x5000_0000 + 2 * i * PAGE_SIZE, page_cnt: 1 }).collect();
    let bytes = descriptor(Transfer::Lend, LLM_PARTITION, &regions);
    // It takes two ranges of the first fragment, then one, then the last one, and needs a call more.
    let more = |offset| (FuncId::MemFragRx, [7, 8, offset]);
    let answers = [more(112), more(128), more(144), more(144)];
    let mut answers: Vec<_> = answers.iter().map(|(function, rest)| (*function, &rest[..])).collect();
    answers.push((FuncId::Success32, &[0, 7, 8]));
    let mut ffa = Ffa::new(script(&answers), &mut tx);
    assert_eq!(ffa.transfer(Transfer::Lend, LLM_PARTITION, &regions), Ok(8 << 32 | 7));
    let lengths: Vec<_> = ffa.conduit().calls.iter().map(|call| call[3]).collect();
    assert_eq!((bytes.len(), &lengths[1..]), (144, &[32, 16, 0, 0][..]));
    ffa.conduit().answers = script(&[(FuncId::MemFragRx, &[7, 8, 145])]).answers;
    let beyond = ffa.transfer(Transfer::Lend, LLM_PARTITION, &regions);
    assert_eq!(beyond, Err(Error::Unexpected(0x8400_007a)), "there is nothing beyond the end");
}

/// Puts fragments together as a relayer does: the length sent so far decides.
struct Relayer<'a> {
    total: u64,
    lengths: &'a mut Vec<u64>,
}

impl Conduit for Relayer<'_> {
    fn call(&mut self, r: Registers) -> Registers {
        if r[0] == u64::from(u32::from(FuncId::MemLend32)) {
            self.total = r[1];
            self.lengths.push(r[2]);
        } else {
            assert_eq!(r[..3], [0x8400_007b, 5, 6]);
            self.lengths.push(r[3]);
        }
        let sent: u64 = self.lengths.iter().sum();
        if sent < self.total {
            registers(FuncId::MemFragRx.into(), &[5, 6, sent])
        } else {
            registers(FuncId::Success32.into(), &[0, 5, 6])
        }
    }
}

proptest! {
    #[test]
    fn fragments_add_up_and_fit_the_buffer(count in 1_usize..600, units in 6_usize..256) {
        let mut tx = vec![0; units * 16];
        let mut lengths = Vec::new();
        let mut ffa = Ffa::new(Relayer { total: 0, lengths: &mut lengths }, &mut tx);
        let pages: Vec<u64> = (0..count as u64).map(|i| 0x4200_0000 + i * 2 * PAGE_SIZE).collect();
        let handle = ffa.transfer(Transfer::Lend, LLM_PARTITION, &regions(&pages));
        prop_assert_eq!(handle, Ok(6 << 32 | 5));
        prop_assert_eq!(lengths.iter().sum::<u64>(), 80 + 16 * count as u64);
        prop_assert!(lengths.iter().all(|&length| length as usize <= units * 16 && length % 16 == 0));
    }

    #[test]
    fn regions_hold_the_pages_in_their_order(pages in prop::collection::vec(0_u64..20, 0..40)) {
        let pages: Vec<u64> = pages.into_iter().map(|page| page * PAGE_SIZE).collect();
        let expanded: Vec<u64> = regions(&pages)
            .iter()
            .flat_map(|r| (0..u64::from(r.page_cnt)).map(|i| r.address + i * PAGE_SIZE))
            .collect();
        prop_assert_eq!(expanded, pages);
    }
}
