//! The service's loop and its attacks.

use flexserve_abi::{
    el3::{Gpi, fid},
    ffa::{HOSTILE_PARTITION, NORMAL_WORLD},
    probe::Op,
};
use flexserve_partition_runtime::{Borrower, Error, IsaFeatures, raw_call, wait};

/// x4 of the response to an unknown operation.
const UNKNOWN_OP: u64 = u64::MAX;

#[unsafe(no_mangle)]
fn partition_main(_isa: IsaFeatures) -> ! {
    let mut borrower = Borrower::new(HOSTILE_PARTITION);
    let mut request = wait();
    loop {
        let [op, arg, ..] = request.args;
        let mut reply = [0; 14];
        match Op::from_code(op) {
            Some(op) => reply[1] = attempt(op, arg, &mut borrower),
            None => reply[0] = UNKNOWN_OP,
        }
        request = request.respond_and_wait(reply);
    }
}

fn attempt(op: Op, arg: u64, borrower: &mut Result<Borrower, Error>) -> u64 {
    match op {
        // SAFETY: none: this is the attack. Whatever the address, the fault ends this partition's run, not the system.
        Op::Read => unsafe { (arg as *const u64).read_volatile() },
        Op::Write => {
            // SAFETY: as for `Read`.
            unsafe { (arg as *mut u64).write_volatile(0x6b6f_6f72_6370_7773) };
            0
        }
        Op::Execute => {
            // SAFETY: as for `Read`.
            let target: extern "C" fn() = unsafe { core::mem::transmute(arg as usize) };
            target();
            0
        }
        Op::Retrieve => steal(arg, borrower),
        Op::GranuleSet => raw_call(fid::GRANULE_SET.into(), [arg, 1, Gpi::NonSecure as u64]),
        Op::Spin => loop {
            core::hint::spin_loop();
        },
        Op::Hold => hold(arg, borrower),
    }
}

/// Never gives back what it was lent.
fn hold(handle: u64, borrower: &mut Result<Borrower, Error>) -> u64 {
    let Some(Ok(region)) = borrower.as_mut().ok().map(|b| b.retrieve_lent(NORMAL_WORLD, handle)) else {
        return UNKNOWN_OP;
    };
    loop {
        core::hint::black_box(region.iter().fold(0_u8, |all, byte| all ^ core::hint::black_box(*byte)));
    }
}

/// Asks for a handle that was lent to another partition. Answers the FF-A error code, or 0 if it was granted.
fn steal(handle: u64, borrower: &mut Result<Borrower, Error>) -> u64 {
    let error = match borrower {
        Ok(borrower) => match borrower.retrieve_lent(NORMAL_WORLD, handle) {
            Ok(_) => return 0,
            Err(error) => error,
        },
        Err(error) => *error,
    };
    defmt::debug!("retrieve of {=u64:#x} refused", handle);
    match error {
        Error::Ffa(code) => (code as i64).cast_unsigned(),
        Error::Unexpected(_) | Error::BadDescriptor => UNKNOWN_OP,
    }
}
