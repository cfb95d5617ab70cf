//! The measurements.

use core::arch::{asm, global_asm};
use flexserve_abi::{
    GRANULE_SIZE,
    el3::{BATCH_LIMIT, Counter, Gpi, LIST_LIMIT, Status, fid, peer},
    log::World,
};
use flexserve_platform::{ISOLATION, Isolation, LENDABLE, SECURE_UART_BASE};
use smccc::smc64;

const GRANULE: u64 = GRANULE_SIZE as u64;
/// Where granules are taken from: two 2 MB blocks of the first bank, away from its start, which the payload uses.
const BLOCK: u64 = LENDABLE[0].base + (64 << 20);
/// BL31 has a library for granule protection tables only.
const HAS_PEER: bool = matches!(ISOLATION, Isolation::GranuleProtectionTable);
/// Repetitions, after one that is not counted: it shatters large blocks.
const TIMES: u64 = 64;

global_asm!(
    r#"
    .section .text.entry, "ax"
    .global bench_entry
bench_entry:
    adrp    x0, __stack_end
    add     x0, x0, :lo12:__stack_end
    mov     sp, x0
    adrp    x0, __bss_start
    add     x0, x0, :lo12:__bss_start
    adrp    x1, __bss_end
    add     x1, x1, :lo12:__bss_end
0:  cmp     x0, x1
    b.hs    1f
    stp     xzr, xzr, [x0], #16
    b       0b
1:  b       {main}
"#,
    main = sym main,
);

extern "C" fn main() -> ! {
    // SAFETY: the MMU is off, so every access is a device access at its physical address.
    unsafe { flexserve_secure_log::init(World::Spmc, SECURE_UART_BASE as usize) };
    row("null_smc", 1, || call(fid::VERSION, &[]), || call(peer::NULL, &[]));
    alone("granule_get", || call(fid::GRANULE_GET, &[BLOCK]));
    alone("core_state", || call(fid::CORE_STATE, &[0]));
    // Keeps the blocks around it from becoming uniform, so that no figure but the batch's makes or shatters large blocks.
    set(BLOCK + 511 * GRANULE, 1, Gpi::Secure);
    single();
    list();
    set(BLOCK + 511 * GRANULE, 1, Gpi::NonSecure);
    only();
    batch();
    tlbi();
    defmt::info!("bench done");
    loop {
        // SAFETY: a hint.
        unsafe { asm!("wfi", options(nomem, nostack)) };
    }
}

/// One call, and what it answers in x0 and x1.
fn call(function: u32, args: &[u64]) -> [u64; 2] {
    let mut registers = [0; 17];
    registers[..args.len()].copy_from_slice(args);
    let answer = smc64(function, registers);
    [answer[0], answer[1]]
}

fn set(base: u64, count: u64, to: Gpi) {
    let answer = call(fid::GRANULE_SET, &[base, count, to as u64]);
    assert_eq!(answer, [Status::Success.code(), count]);
}

fn delegate(base: u64) {
    assert_eq!(call(peer::DELEGATE, &[base])[0], 0);
}

fn undelegate(base: u64) {
    assert_eq!(call(peer::UNDELEGATE, &[base])[0], 0);
}

/// Instructions of one turn of `f`.
fn count<T>(mut f: impl FnMut() -> T) -> u64 {
    let now = || -> u64 {
        let counter;
        // SAFETY: reads the physical counter; barriers keep it in its place.
        unsafe { asm!("isb", "mrs {}, cntpct_el0", "isb", out(reg) counter, options(nostack)) };
        counter
    };
    let overhead = {
        let start = now();
        now() - start
    };
    let start = now();
    f();
    now() - start - overhead
}

/// Prints the means of `TIMES` turns, each divided by `units`.
fn row<T>(name: &str, units: u64, mut ours: impl FnMut() -> T, mut theirs: impl FnMut() -> T) {
    ours();
    theirs();
    let mean = |sum: u64| sum * 100 / (TIMES * units);
    let ours = mean((0..TIMES).map(|_| count(&mut ours)).sum());
    let theirs = mean((0..TIMES).map(|_| count(&mut theirs)).sum());
    defmt::info!("row {=str} {=u64} {=u64}", name, ours, theirs);
}

/// Prints the mean of `TIMES` turns of what has no peer, after one that is not counted.
fn alone<T>(name: &str, mut ours: impl FnMut() -> T) {
    ours();
    let sum: u64 = (0..TIMES).map(|_| count(&mut ours)).sum();
    defmt::info!("row {=str} {=u64} {=u64}", name, sum * 100 / TIMES, 0);
}

/// Prints both directions: means of `TIMES` turns of moving there and back, for each of `units` granules.
fn rows([lend, give_back]: [&str; 2], units: u64, mut ours: impl FnMut(Gpi), mut theirs: impl FnMut(Gpi)) {
    let mut sums = [[0; 2]; 2];
    for turn in 0..=TIMES {
        for (sum, to) in sums[0].iter_mut().zip([Gpi::Secure, Gpi::NonSecure]) {
            *sum += count(|| ours(to)) * u64::from(turn > 0);
        }
        let peer = sums[1].iter_mut().filter(|_| HAS_PEER);
        for (sum, to) in peer.zip([Gpi::Secure, Gpi::NonSecure]) {
            *sum += count(|| theirs(to)) * u64::from(turn > 0);
        }
    }
    for (i, name) in [lend, give_back].into_iter().enumerate() {
        let mean = |sum: u64| sum * 100 / (TIMES * units);
        defmt::info!("row {=str} {=u64} {=u64}", name, mean(sums[0][i]), mean(sums[1][i]));
    }
}

/// The peer's way with `count` granules, `step` apart: one call for each.
fn one_by_one(to: Gpi, count: u64, step: u64) {
    for i in 0..count {
        if to == Gpi::Secure { delegate(BLOCK + i * step) } else { undelegate(BLOCK + i * step) }
    }
}

/// A granule between others that stay where they are.
fn single() {
    let granule = BLOCK + 5 * GRANULE;
    rows(
        ["granule_single_lend", "granule_single_return"],
        1,
        |to| set(granule, 1, to),
        |to| if to == Gpi::Secure { delegate(granule) } else { undelegate(granule) },
    );
}

/// The only granule of its block that is lent: the block is split, and made again.
fn only() {
    let granule = BLOCK + 5 * GRANULE;
    rows(
        ["granule_only_lend", "granule_only_return"],
        1,
        |to| set(granule, 1, to),
        |to| if to == Gpi::Secure { delegate(granule) } else { undelegate(granule) },
    );
}

/// A whole 2 MB block.
fn batch() {
    rows(
        ["granule_batch512_lend", "granule_batch512_return"],
        BATCH_LIMIT,
        |to| set(BLOCK, BATCH_LIMIT, to),
        |to| one_by_one(to, BATCH_LIMIT, GRANULE),
    );
}

/// From one granule of a list to the next: none is next to another.
const STEP: u64 = 3 * GRANULE;

/// The arguments for sixteen granules of one block.
fn scattered(to: Gpi) -> [u64; 1 + LIST_LIMIT] {
    let mut arguments = [to as u64; 1 + LIST_LIMIT];
    for (range, i) in arguments[1..].iter_mut().zip(0..) {
        *range = (BLOCK + i * STEP) | 1;
    }
    arguments
}

fn set_list(arguments: &[u64]) {
    assert_eq!(call(fid::GRANULE_SET_LIST, arguments), [0, LIST_LIMIT as u64]);
}

/// Sixteen granules, none next to another.
fn list() {
    let ranges = scattered(Gpi::Secure);
    let ours = |to: Gpi| {
        let mut ranges = ranges;
        ranges[0] = to as u64;
        set_list(&ranges);
    };
    let units = LIST_LIMIT as u64;
    rows(["granule_list_lend", "granule_list_return"], units, ours, |to| one_by_one(to, units, STEP));
}

/// TLB invalidations for a whole 2 MB block, and for granules scattered over one. The peer makes one for each granule, and one to
/// fuse the block.
fn tlbi() {
    let made = || call(fid::STATS, &[Counter::TlbInvalidations as u64])[1];
    let row = |name: &str, f: &dyn Fn()| {
        let before = made();
        f();
        defmt::info!("row {=str} {=u64} {=u64}", name, (made() - before) * 100, 0);
    };
    for (name, to) in [("tlbi_per_2mb", Gpi::Secure), ("tlbi_per_2mb_return", Gpi::NonSecure)] {
        row(name, &|| set(BLOCK, BATCH_LIMIT, to));
    }
    for (name, to) in [("tlbi_per_2mb_list", Gpi::Secure), ("tlbi_per_2mb_list_return", Gpi::NonSecure)] {
        row(name, &|| set_list(&scattered(to)));
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    if let Some(at) = info.location() {
        defmt::error!("panic at {=str}:{=u32}", at.file(), at.line());
    }
    loop {
        // SAFETY: a hint.
        unsafe { asm!("wfi", options(nomem, nostack)) };
    }
}
