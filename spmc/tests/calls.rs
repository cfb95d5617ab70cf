//! Setup, messages and scheduling: what each call answers, and when it is refused.

mod common;

use arm_ffa::{FfaError, FuncId};
use common::{BANK, Bench, FREE, Fake, HOSTILE, LLM, RX, TX, error, refused, registers, short};
use flexserve_abi::{
    el3::Gpi,
    ffa::{HOSTILE_PARTITION, LLM_PARTITION, LLM_SERVICE, PROBE_SERVICE, UuidRegisters},
};
use flexserve_spmc::{
    claims, descriptor,
    hardware::{Hardware as _, Unreachable},
    lending,
    partition::{Entry, Phase, Step},
    registers::Reply,
    space,
    tables::PAGE,
};

const LLM_UUID: UuidRegisters = UuidRegisters::new(LLM_SERVICE);

fn ask(bench: &mut Bench, id: u16, uuid: UuidRegisters) -> Step {
    bench.normal(FuncId::MsgSendDirectReq64_2, &[id.into(), uuid.0, uuid.1, 42])
}

fn framework(bench: &mut Bench, function: u64, value: u64) -> [u64; 4] {
    let args = [0xffff_8000, 1 << 31 | function, value];
    short(bench.normal(FuncId::MsgSendDirectReq32, &args))[..4].try_into().unwrap()
}

#[test]
fn the_spmd_asks_for_the_version() {
    let mut bench = Bench::new();
    let answer = |version| [0x8400_0070, 0x8000_ffff, 1 << 31 | 9, version];
    for (asked, answered) in [
        (0x1_0000, 0x1_0002),
        (0x1_0002, 0x1_0002),
        (0x1_ffff, 0x1_0002),
        (0x2_0000, 0xffff_ffff),
        (0, 0xffff_ffff),
        (0x8001_0002, 0xffff_ffff),
    ] {
        assert_eq!(framework(&mut bench, 8, asked), answer(answered), "{asked:#x}");
    }
}

#[test]
fn the_spmd_tells_of_a_core_that_goes_off() {
    let mut bench = Bench::new();
    assert_eq!(framework(&mut bench, 0, 0x8400_0002), [0x8400_0070, 0x8000_ffff, 1 << 31 | 2, 0]);
    for (function, value) in [(0, 0x8400_0001), (1, 0), (7, 0)] {
        let answer = framework(&mut bench, function, value);
        assert_eq!(answer[0], 0x8400_0060);
    }
}

#[test]
fn nobody_else_sends_framework_messages() {
    let mut bench = Bench::new();
    for endpoints in [0x0000_8000_u64, 0x8001_8000, 0xffff_8001] {
        let step = bench.normal(FuncId::MsgSendDirectReq32, &[endpoints, 1 << 31 | 8, 0x1_0002]);
        assert_eq!(step, refused(FfaError::InvalidParameters), "{endpoints:#x}");
    }
}

#[test]
fn features_are_what_is_provided() {
    let mut bench = Bench::new();
    for function in [FuncId::MemLend64, FuncId::MsgSendDirectReq64_2, FuncId::Run32, FuncId::RxRelease] {
        bench.ok(FuncId::Features, &[u32::from(function).into()]).unwrap();
    }
    let map = bench.ok(FuncId::Features, &[u32::from(FuncId::RxTxMap64).into()]).unwrap();
    assert_eq!(map[0], 16 << 16, "pages of 4 KiB, at most 16");
    for id in [u32::from(FuncId::MemRetrieveReq32), u32::from(FuncId::NotificationGet), 1, 0, u32::MAX] {
        assert_eq!(bench.ok(FuncId::Features, &[id.into()]), Err(FfaError::NotSupported), "{id:#x}");
    }
    bench.request(LLM);
    bench.secure_ok(LLM, FuncId::Features, &[u32::from(FuncId::MemRetrieveReq32).into()]).unwrap();
}

#[test]
fn ids() {
    let mut bench = Bench::new();
    assert_eq!(bench.ok(FuncId::IdGet, &[]).unwrap()[0], 0);
    assert_eq!(bench.ok(FuncId::SpmIdGet, &[]).unwrap()[0], 0x8000);
    bench.request(HOSTILE);
    assert_eq!(bench.secure_ok(HOSTILE, FuncId::IdGet, &[]).unwrap()[0], 0x8002);
    assert_eq!(bench.secure_ok(HOSTILE, FuncId::SpmIdGet, &[]).unwrap()[0], 0x8000);
}

#[test]
fn partition_information_in_the_buffer() {
    let mut bench = Bench::new();
    assert_eq!(bench.ok(FuncId::PartitionInfoGet, &[0, 0, 0, 0, 1]).unwrap()[0], 2);
    assert_eq!(bench.ok(FuncId::PartitionInfoGet, &[0; 5]).unwrap()[..2], [2, 24]);
    let mut rx = [0; 48];
    bench.spmc.hardware.read_normal(RX, &mut rx).unwrap();
    assert_eq!(rx[..8], [0x01, 0x80, 1, 0, 0x00, 0x03, 0, 0]);
    assert_eq!(rx[8..24], LLM_SERVICE.to_be_bytes());
    assert_eq!(rx[24..32], [0x02, 0x80, 1, 0, 0x01, 0x03, 0, 0]);
    assert_eq!(bench.ok(FuncId::PartitionInfoGet, &[0; 5]), Err(FfaError::Busy), "RX is the reader's");
    bench.ok(FuncId::RxRelease, &[]).unwrap();
    assert_eq!(bench.ok(FuncId::RxRelease, &[]), Err(FfaError::Denied));

    let [a, b] = [LLM_UUID.0, LLM_UUID.1];
    let uuid = [a & 0xffff_ffff, a >> 32, b & 0xffff_ffff, b >> 32];
    let args = [uuid[0], uuid[1], uuid[2], uuid[3], 0];
    assert_eq!(bench.ok(FuncId::PartitionInfoGet, &args).unwrap()[..2], [1, 24]);
    bench.spmc.hardware.read_normal(RX, &mut rx).unwrap();
    assert_eq!(rx[8..24], [0; 16], "the UUID is known to whoever asked for it");
    bench.ok(FuncId::RxRelease, &[]).unwrap();
    for args in [[1, 2, 3, 4, 0], [0, 0, 0, 0, 2]] {
        assert_eq!(bench.ok(FuncId::PartitionInfoGet, &args), Err(FfaError::InvalidParameters));
    }
}

#[test]
fn a_caller_of_version_1_0_gets_short_descriptors() {
    let mut bench = Bench::new();
    framework(&mut bench, 8, 0x1_0000);
    assert_eq!(bench.ok(FuncId::PartitionInfoGet, &[0; 5]).unwrap()[..2], [2, 0]);
    let mut rx = [0; 16];
    bench.spmc.hardware.read_normal(RX, &mut rx).unwrap();
    assert_eq!(rx[8..10], [0x02, 0x80]);
}

#[test]
fn partition_information_in_registers() {
    let mut bench = Bench::new();
    let answer = short(bench.normal(FuncId::PartitionInfoGetRegs, &[0, 0, 0]));
    assert_eq!(answer[0], 0xc400_0061);
    assert_eq!(answer[2], 24 << 48 | 1 << 16 | 1);
    assert_eq!(answer[3], 0x0000_0300_0001_8001);
    assert_eq!(answer[4..6], [LLM_UUID.0, LLM_UUID.1]);
    let probe = UuidRegisters::new(PROBE_SERVICE);
    let answer = short(bench.normal(FuncId::PartitionInfoGetRegs, &[probe.0, probe.1, 0]));
    assert_eq!(answer[2..6], [24 << 48, 0x0000_0301_0001_8002, 0, 0]);
    for (args, code) in [
        ([0, 0, 2], FfaError::InvalidParameters),
        ([1, 1, 0], FfaError::InvalidParameters),
        ([0, 0, 1 << 16], FfaError::Retry),
        ([0, 0, 1 << 32], FfaError::InvalidParameters),
    ] {
        assert_eq!(bench.normal(FuncId::PartitionInfoGetRegs, &args), refused(code), "{args:x?}");
    }
}

#[test]
fn buffers_are_the_normal_worlds_own_pages() {
    let mut bench = Bench::with_tables(64);
    bench.spmc.hardware.worlds.insert(FREE + PAGE, Gpi::Realm);
    for (args, code) in [
        ([TX, TX, 1], FfaError::InvalidParameters),
        ([TX, RX, 17], FfaError::InvalidParameters),
        ([BANK.base - PAGE, RX, 1], FfaError::InvalidParameters),
        ([TX, 0x0e50_0000, 1], FfaError::InvalidParameters),
        ([TX, FREE, 2], FfaError::InvalidParameters),
    ] {
        assert_eq!(bench.ok(FuncId::RxTxMap64, &args), Err(code), "{args:x?}");
    }
    bench.map(16).unwrap();
    assert_eq!(bench.map(16), Err(FfaError::Denied), "they are mapped");
    assert_eq!(bench.ok(FuncId::RxTxUnmap, &[1 << 16]), Err(FfaError::InvalidParameters));
    bench.ok(FuncId::RxTxUnmap, &[0]).unwrap();
    assert_eq!(bench.ok(FuncId::RxTxUnmap, &[0]), Err(FfaError::InvalidParameters));
    let no_buffers = bench.ok(FuncId::MemLend64, &[96, 96]);
    assert_eq!(no_buffers, Err(FfaError::InvalidParameters));
    assert_eq!(bench.ok(FuncId::PartitionInfoGet, &[0; 5]), Err(FfaError::Busy));
    bench.map(1).unwrap();
    bench.lend(&[(RX + PAGE, 1)]).unwrap();
}

#[test]
fn a_request_is_answered_by_its_partition() {
    let mut bench = Bench::new();
    let Step::Run(LLM, Entry::Answer(message)) = ask(&mut bench, LLM_PARTITION, LLM_UUID) else { panic!() };
    assert_eq!(message[..5], [0xc400_008d, 0x8001, LLM_UUID.0, LLM_UUID.1, 42]);
    assert_eq!(ask(&mut bench, LLM_PARTITION, LLM_UUID), refused(FfaError::Busy));
    let answer = registers(FuncId::MsgSendDirectResp64_2, &[0x8001_0000, 0, 0, 43]);
    assert_eq!(bench.spmc.partition_call(LLM, &answer), Step::Reply(Reply::Full(answer)));
    assert_eq!(bench.spmc.partition(LLM).phase, Phase::Waiting);
    assert!(matches!(ask(&mut bench, LLM_PARTITION, UuidRegisters(0, 0)), Step::Run(LLM, _)));
}

#[test]
fn only_the_right_answer_counts() {
    let mut bench = Bench::new();
    ask(&mut bench, LLM_PARTITION, LLM_UUID);
    for (function, endpoints) in [
        (FuncId::MsgSendDirectResp64_2, 0x8002_0000_u64),
        (FuncId::MsgSendDirectResp64_2, 0x8001_0001),
        (FuncId::MsgSendDirectResp64_2, 0x0000_8001),
        (FuncId::MsgSendDirectResp64, 0x8001_0000),
        (FuncId::MsgSendDirectResp32, 0x8001_0000),
    ] {
        let answer = short(bench.secure(LLM, function, &[endpoints]));
        assert_eq!(error(&answer), FfaError::InvalidParameters, "{endpoints:#x}");
    }
    let wait = short(bench.secure(LLM, FuncId::MsgWait32, &[]));
    assert_eq!(error(&wait), FfaError::Denied, "it owes an answer");
}

#[test]
fn requests_that_nobody_can_serve_are_refused() {
    let mut bench = Bench::new();
    for (id, uuid, code) in [
        (0x8003, LLM_UUID, FfaError::InvalidParameters),
        (0, LLM_UUID, FfaError::InvalidParameters),
        (HOSTILE_PARTITION, LLM_UUID, FfaError::InvalidParameters),
    ] {
        assert_eq!(ask(&mut bench, id, uuid), refused(code));
    }
    let from_secure = bench.normal(FuncId::MsgSendDirectReq64_2, &[0x8002_8001]);
    assert_eq!(from_secure, refused(FfaError::InvalidParameters));
    let no_receiver = bench.normal(FuncId::MsgSendDirectReq32, &[0x8001]);
    assert_eq!(no_receiver, refused(FfaError::Denied), "its manifest says REQ2 only");
    let framework = bench.normal(FuncId::MsgSendDirectReq32, &[0x8002, 1 << 31]);
    assert_eq!(framework, refused(FfaError::InvalidParameters));
}

#[test]
fn short_messages_carry_words() {
    let mut bench = Bench::new();
    let step = bench.normal(FuncId::MsgSendDirectReq32, &[0x8002, 0, u64::MAX, 1, 2, 3, 4, 5]);
    let Step::Run(HOSTILE, Entry::Answer(message)) = step else { panic!("{step:?}") };
    assert_eq!(message[3..9], [0xffff_ffff, 1, 2, 3, 4, 0]);
    let answer = bench.secure(HOSTILE, FuncId::MsgSendDirectResp32, &[0x8002_0000, 0, u64::MAX, 9]);
    let Step::Reply(Reply::Short(values)) = answer else { panic!("{answer:?}") };
    assert_eq!(values[2..5], [0, 0xffff_ffff, 9]);
}

#[test]
fn an_interrupt_pauses_and_run_goes_on() {
    let mut bench = Bench::new();
    let run = |bench: &mut Bench| bench.normal(FuncId::Run32, &[0x8001_0000]);
    assert_eq!(run(&mut bench), refused(FfaError::Denied), "nothing to do");
    ask(&mut bench, LLM_PARTITION, LLM_UUID);
    assert_eq!(run(&mut bench), refused(FfaError::Busy), "it runs");
    let told = short(bench.spmc.interrupted(LLM));
    assert_eq!(told[..3], [0x8400_0062, 0x8001_0000, 0]);
    assert_eq!(ask(&mut bench, LLM_PARTITION, LLM_UUID), refused(FfaError::Busy));
    assert_eq!(run(&mut bench), Step::Run(LLM, Entry::Resume));
    let yielded = short(bench.secure(LLM, FuncId::Yield32, &[]));
    assert_eq!(yielded[..2], [0x8400_006c, 0x8001_0000]);
    let Step::Run(LLM, Entry::Answer(answer)) = run(&mut bench) else { panic!() };
    assert_eq!(answer[0], 0x8400_0061);
    bench.spmc.interrupted(LLM);
    assert_eq!(run(&mut bench), Step::Run(LLM, Entry::Resume));
    for target in [0x8001_0001_u64, 0x8003_0000, 0x0000_8001] {
        assert_eq!(bench.normal(FuncId::Run32, &[target]), refused(FfaError::InvalidParameters));
    }
}

#[test]
fn a_partition_that_aborts_is_gone_unless_it_restarts() {
    let mut bench = Bench::new();
    for (index, id) in [(LLM, LLM_PARTITION), (HOSTILE, HOSTILE_PARTITION)] {
        bench.request(index);
        bench.map_secure(index);
        assert_eq!(bench.spmc.aborted(index), refused(FfaError::Aborted));
        assert!(bench.spmc.partition(index).mailbox.is_none());
        assert_eq!(
            bench.normal(FuncId::Run32, &[u64::from(id) << 16]),
            refused(if index == LLM { FfaError::Aborted } else { FfaError::Denied })
        );
    }
    assert_eq!(ask(&mut bench, LLM_PARTITION, LLM_UUID), refused(FfaError::Aborted));
    let probe = UuidRegisters::new(PROBE_SERVICE);
    assert_eq!(ask(&mut bench, HOSTILE_PARTITION, probe), Step::Run(HOSTILE, Entry::Start));
    let tx = bench.secure_tx(HOSTILE);
    bench.secure_ok(HOSTILE, FuncId::MemPermSet64, &[tx, 1, 0b101]).unwrap();
    let Step::Run(HOSTILE, Entry::Answer(message)) = bench.secure(HOSTILE, FuncId::MsgWait32, &[]) else {
        panic!()
    };
    assert_eq!(message[4], 42, "the message that started it");
}

#[test]
fn a_partition_that_fails_to_start_answers_its_caller() {
    let mut bench = Bench::new();
    bench.request(HOSTILE);
    bench.spmc.aborted(HOSTILE);
    let probe = UuidRegisters::new(PROBE_SERVICE);
    ask(&mut bench, HOSTILE_PARTITION, probe);
    assert_eq!(ask(&mut bench, HOSTILE_PARTITION, probe), refused(FfaError::Busy));
    assert_eq!(
        bench.secure(HOSTILE, FuncId::Error32, &[0, -8_i32 as u32 as u64]),
        refused(FfaError::Aborted)
    );
    assert_eq!(ask(&mut bench, HOSTILE_PARTITION, probe), Step::Run(HOSTILE, Entry::Start));
}

#[test]
fn permissions_change_only_while_a_partition_starts() {
    let mut bench = Bench::new();
    bench.request(HOSTILE);
    bench.spmc.aborted(HOSTILE);
    bench.normal(FuncId::MsgSendDirectReq64_2, &[HOSTILE_PARTITION.into()]);
    let entry = bench.spmc.partition(HOSTILE).entry;
    let set = |bench: &mut Bench, args: [u64; 3]| bench.secure_ok(HOSTILE, FuncId::MemPermSet64, &args);
    let get = |bench: &mut Bench, at| bench.secure_ok(HOSTILE, FuncId::MemPermGet64, &[at]).map(|v| v[0]);
    assert_eq!(get(&mut bench, entry), Ok(0b011));
    set(&mut bench, [entry, 1, 0b111]).unwrap();
    assert_eq!(get(&mut bench, entry), Ok(0b111));
    set(&mut bench, [entry, 2, 0b101]).unwrap();
    assert_eq!(get(&mut bench, entry + PAGE), Ok(0b101));
    for args in [
        [entry, 1, 0b001], // writable and executable
        [entry, 1, 0b000],
        [entry, 1, 0b1011],
        [entry - PAGE, 1, 0b101],
        [entry, 0x1_0000, 0b101],
        [entry, 0, 0b101],
        [entry + 1, 1, 0b101],
        [0x10_0000_0000, 1, 0b011],
    ] {
        assert_eq!(set(&mut bench, args), Err(FfaError::InvalidParameters), "{args:x?}");
    }
    bench.secure(HOSTILE, FuncId::MsgWait32, &[]);
    assert_eq!(set(&mut bench, [entry, 1, 0b011]), Err(FfaError::Denied));
    assert_eq!(get(&mut bench, entry), Err(FfaError::Denied));
}

#[test]
fn a_partitions_buffers_are_its_own_writable_pages() {
    let mut bench = Bench::new();
    bench.request(LLM);
    let tx = bench.secure_tx(LLM);
    let other = bench.secure_tx(HOSTILE);
    for args in [[tx - PAGE, tx, 1], [tx, other, 1], [FREE, tx, 1], [tx, tx, 1], [tx, tx + 0xf_0000, 16]] {
        let map = bench.secure_ok(LLM, FuncId::RxTxMap64, &args);
        assert_eq!(map, Err(FfaError::InvalidParameters), "{args:x?}");
    }
    bench.map_secure(LLM);
    let again = bench.secure_ok(LLM, FuncId::RxTxMap64, &[tx + 4 * PAGE, tx + 5 * PAGE, 1]);
    assert_eq!(again, Err(FfaError::Denied));
    assert_eq!(bench.secure_ok(LLM, FuncId::RxTxUnmap, &[0x8002 << 16]), Err(FfaError::InvalidParameters));
    bench.secure_ok(LLM, FuncId::RxTxUnmap, &[0]).unwrap();
    assert_eq!(bench.secure_ok(LLM, FuncId::MemRelinquish, &[]), Err(FfaError::InvalidParameters));
    assert_eq!(bench.secure_ok(LLM, FuncId::MemRetrieveReq32, &[64, 64]), Err(FfaError::InvalidParameters));
    assert_eq!(bench.secure_ok(LLM, FuncId::RxRelease, &[]), Err(FfaError::Denied));
}

#[test]
fn a_retrieve_needs_room_in_rx_and_a_whole_descriptor() {
    let mut bench = Bench::new();
    bench.request(LLM);
    bench.map_secure(LLM);
    for args in [[64, 32], [4097, 4097], [47, 47], [0, 0]] {
        let answer = bench.secure_ok(LLM, FuncId::MemRetrieveReq64, &args);
        assert_eq!(answer, Err(FfaError::InvalidParameters), "{args:?}");
    }
    let separate_buffer = bench.secure_ok(LLM, FuncId::MemRetrieveReq64, &[64, 64, FREE, 1]);
    assert_eq!(separate_buffer, Err(FfaError::InvalidParameters));
}

#[test]
fn logs_pass_by() {
    let mut bench = Bench::new();
    bench.request(LLM);
    let text = u64::from_le_bytes(*b"abcdefgh");
    bench.secure_ok(LLM, FuncId::ConsoleLog64, &[9, text, 0x69]).unwrap();
    bench.secure_ok(LLM, FuncId::ConsoleLog32, &[6, 0x6463_6261, 0x6665]).unwrap();
    assert_eq!(bench.spmc.hardware.logged, [(0x8001, b"abcdefghi".to_vec()), (0x8001, b"abcdef".to_vec())]);
    for (function, count) in
        [(FuncId::ConsoleLog64, 0), (FuncId::ConsoleLog64, 129), (FuncId::ConsoleLog32, 25)]
    {
        assert_eq!(bench.secure_ok(LLM, function, &[count]), Err(FfaError::InvalidParameters));
    }
}

#[test]
fn a_partition_speaks_ff_a_and_nothing_else() {
    let mut bench = Bench::new();
    bench.request(LLM);
    for x0 in [0xc300_0002_u64, 0x8400_0008, 0, u64::MAX] {
        let mut call = [5; 18];
        call[0] = x0;
        let Step::Run(LLM, Entry::Answer(answer)) = bench.spmc.partition_call(LLM, &call) else { panic!() };
        assert_eq!(answer[0], u64::MAX, "{x0:#x}");
        assert_eq!(answer[1..], call[1..]);
    }
    for function in [
        FuncId::MemLend64,
        FuncId::MemReclaim,
        FuncId::MsgSendDirectReq64_2,
        FuncId::Run32,
        FuncId::NotificationGet,
        FuncId::PartitionInfoGet,
    ] {
        assert_eq!(bench.secure_ok(LLM, function, &[]), Err(FfaError::NotSupported), "{function:?}");
    }
    let version = short(bench.secure(LLM, FuncId::Version, &[0x1_0002]));
    assert_eq!(version[0], 0x1_0002);
}

#[test]
fn unknown_calls_of_the_normal_world_are_not_supported() {
    let mut bench = Bench::new();
    for x0 in [0_u64, 0x8400_0000, 0xffff_ffff, 0x8400_00ff] {
        let mut call = [0; 18];
        call[0] = x0;
        assert_eq!(bench.spmc.normal_call(&call), refused(FfaError::NotSupported));
    }
    for function in [
        FuncId::MsgSend2,
        FuncId::NotificationGet,
        FuncId::MemFragRx,
        FuncId::ConsoleLog64,
        FuncId::MsgWait32,
    ] {
        assert_eq!(bench.ok(function, &[]), Err(FfaError::NotSupported), "{function:?}");
    }
}

#[test]
fn every_error_has_a_code() {
    let mut codes: Vec<FfaError> = descriptor::Error::ALL.map(FfaError::from).to_vec();
    codes.extend([claims::Error::NotLendable, claims::Error::Taken].map(FfaError::from));
    codes.extend(
        [space::Error::OutOfTables, space::Error::OutOfAddresses, space::Error::NotOwn].map(FfaError::from),
    );
    codes.push(Unreachable.into());
    use lending::Error::{Busy, Claim, Descriptor, Granule, Handle, Mismatch, NoMemory, PageCount, State};
    let nested = [
        Descriptor(descriptor::Error::Range),
        Claim(claims::Error::Taken),
        NoMemory,
        PageCount,
        Handle,
        State,
        Mismatch,
        Granule,
        Busy,
    ];
    codes.extend(nested.map(FfaError::from));
    assert!(codes.iter().all(|code| i32::from(*code) < 0));
    assert_eq!(FfaError::from(nested[0]), FfaError::InvalidParameters);
    assert_eq!(FfaError::from(nested[1]), FfaError::Denied);
}

#[test]
fn the_fake_machine_faults_like_the_real_one() {
    let mut fake = Fake::default();
    fake.worlds.insert(FREE, Gpi::Secure);
    assert_eq!(fake.read_normal(FREE - 4, &mut [0; 8]), Err(Unreachable));
    assert_eq!(fake.read_normal(FREE - 8, &mut [0; 8]), Ok(()));
}
