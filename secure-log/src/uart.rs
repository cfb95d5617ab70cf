//! The logger: one lock, one encoder, one PL011.

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};
use core::{
    cell::UnsafeCell,
    hint::spin_loop,
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering},
};
use flexserve_abi::log::{World, encode};

/// Most turns that a log statement waits, for the lock or for room in the UART. Whoever waits longer goes on:
/// a garbled or lost frame is better than a core that hangs because another one died holding the lock.
const PATIENCE: u32 = 1 << 20;

static UART: AtomicPtr<PL011Registers> = AtomicPtr::new(core::ptr::null_mut());
static WORLD: AtomicU8 = AtomicU8::new(0);
static LOCK: AtomicBool = AtomicBool::new(false);
static ENCODER: Encoder = Encoder(UnsafeCell::new(defmt::Encoder::new()));

struct Encoder(UnsafeCell<defmt::Encoder>);

// SAFETY: the encoder is touched only between `acquire` and `release`, under LOCK.
unsafe impl Sync for Encoder {}

/// Names the world that this image logs for, and its UART. Log statements before it are dropped.
///
/// # Safety
///
/// `base` is the address, in the current translation regime, of a PL011 mapped as device memory, and stays so.
pub unsafe fn init(world: World, base: usize) {
    WORLD.store(world as u8, Ordering::Relaxed);
    UART.store(base as *mut PL011Registers, Ordering::Release);
}

/// Writes a piece of another world's stream of defmt frames, tagged with that world.
pub fn emit(world: World, bytes: &[u8]) {
    acquire();
    send(world as u8, bytes);
    release();
}

fn acquire() {
    for _ in 0..PATIENCE {
        if !LOCK.swap(true, Ordering::Acquire) {
            return;
        }
        spin_loop();
    }
}

fn release() {
    LOCK.store(false, Ordering::Release);
}

fn send(world: u8, bytes: &[u8]) {
    let Some(registers) = NonNull::new(UART.load(Ordering::Acquire)) else { return };
    let Some((world, _)) = World::ALL.into_iter().find(|(w, _)| *w as u8 == world) else { return };
    // SAFETY: `init`'s caller vouched for the mapping. Other worlds may drive the same UART, but only its data
    // register, and only in whole symbols.
    let mut uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
    for symbol in bytes.iter().flat_map(|byte| encode(world, *byte)) {
        for _ in 0..PATIENCE {
            if !uart.is_tx_fifo_full() {
                break;
            }
            spin_loop();
        }
        uart.write_word(symbol);
    }
}

#[defmt::global_logger]
struct Logger;

// SAFETY: `acquire` and `release` bracket every frame with LOCK. Both callers run with interrupts masked, so no
// execution context interrupts another on the same core.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        acquire();
        // SAFETY: LOCK is held.
        unsafe { &mut *ENCODER.0.get() }.start_frame(own);
    }

    unsafe fn flush() {}

    unsafe fn release() {
        // SAFETY: LOCK is held, by this function's contract.
        unsafe { &mut *ENCODER.0.get() }.end_frame(own);
        release();
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: LOCK is held, by this function's contract.
        unsafe { &mut *ENCODER.0.get() }.write(bytes, own);
    }
}

fn own(bytes: &[u8]) {
    send(WORLD.load(Ordering::Relaxed), bytes);
}
