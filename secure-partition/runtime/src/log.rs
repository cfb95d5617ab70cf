//! defmt by `FFA_CONSOLE_LOG`, and the panic handler.

use crate::{conduit::svc, message::call, workers::is_worker};
use arm_ffa::{FfaError, FuncId};
use core::cell::UnsafeCell;

/// Bytes that one call carries: x2 to x17.
const BATCH: usize = 128;

struct State {
    encoder: defmt::Encoder,
    bytes: [u8; BATCH],
    len: usize,
}

struct Log(UnsafeCell<State>);

// SAFETY: a partition's main context alone logs, and it has no interrupt handlers.
unsafe impl Sync for Log {}

static LOG: Log = Log(UnsafeCell::new(State { encoder: defmt::Encoder::new(), bytes: [0; BATCH], len: 0 }));

fn push(bytes: &[u8]) {
    for byte in bytes {
        // SAFETY: one context; the encoder's borrow (another field) does not overlap `bytes` and `len`.
        let (buffer, len) = unsafe { (&mut (*LOG.0.get()).bytes, &mut (*LOG.0.get()).len) };
        buffer[*len] = *byte;
        *len += 1;
        if *len == BATCH {
            send();
        }
    }
}

fn send() {
    // SAFETY: as in `push`.
    let (buffer, len) = unsafe { (&(*LOG.0.get()).bytes, &mut (*LOG.0.get()).len) };
    if *len == 0 {
        return;
    }
    let mut registers = call(FuncId::ConsoleLog64, &[*len as u64]);
    let (words, _) = buffer.as_chunks::<8>();
    for (register, word) in registers[2..].iter_mut().zip(words) {
        *register = u64::from_le_bytes(*word);
    }
    *len = 0;
    // A log that the SPMC refuses has nowhere else to go.
    let _ = svc(registers);
}

#[defmt::global_logger]
struct Logger;

// SAFETY: one context, so frames never overlap; `acquire` is not called again before `release`.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        // SAFETY: as above.
        unsafe { &mut (*LOG.0.get()).encoder }.start_frame(push);
    }

    unsafe fn flush() {
        send();
    }

    unsafe fn release() {
        // SAFETY: as above.
        unsafe { &mut (*LOG.0.get()).encoder }.end_frame(push);
        send();
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: as above.
        unsafe { &mut (*LOG.0.get()).encoder }.write(bytes, push);
    }
}

/// Tells where, never what: a message could carry the partition's data. A worker tells nothing.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    match info.location() {
        _ if is_worker() => {}
        Some(at) => defmt::error!("panic at {=str}:{=u32}", at.file(), at.line()),
        None => defmt::error!("panic"),
    }
    loop {
        // The SPMC marks the partition aborted and never comes back.
        svc(call(FuncId::Error32, &[0, u64::from(FfaError::Aborted as i32 as u32)]));
    }
}
