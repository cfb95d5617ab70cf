//! In which state an exception arrives.

use core::arch::global_asm;

use flexserve_normal_runtime::exceptions;

global_asm!(include_str!("taken.S"));

/// An exception, as the level that took it sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// ESR_ELx.
    pub syndrome: u64,
    /// FAR_ELx.
    pub address: u64,
    /// ELR_ELx.
    pub return_address: u64,
    /// SPSR_ELx.
    pub saved_state: u64,
    /// Which of the 16 vectors.
    pub vector: u64,
    /// PSTATE there, as an SPSR holds it.
    pub state: u64,
}

const _: () = assert!(size_of::<Taken>() == 48);

unsafe extern "C" {
    fn exception_taken(address: u64, begin: u64, state: u64, guest: u64, taken: *mut Taken);
    fn taken_read();
    fn taken_write();
    fn taken_branch();
    fn taken_call();
    fn taken_hypervisor_call();
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// A branch.
    Branch,
    /// The first instruction is fetched there.
    Fetch,
}

impl Access {
    /// The access's own instruction; `None` if it lies at the address.
    pub fn instruction(self) -> Option<u64> {
        let routine = match self {
            Self::Read => taken_read,
            Self::Write => taken_write,
            Self::Branch => taken_branch,
            Self::Fetch => return None,
        };
        Some(routine as *const () as u64)
    }
}

/// Who does it.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Its name.
    pub name: &'static str,
    /// PSTATE. The exception level is that of this program, a guest's, or EL0; interrupts stay masked.
    pub state: u64,
    /// HCR_EL2 while a guest runs, at EL1 or EL0, without an MMU. 0: no guest.
    pub guest: u64,
}

impl Origin {
    /// Makes an access; answers the exception that it, or else a call behind it, ended in.
    ///
    /// # Safety
    ///
    /// The access faults, or the memory is this program's.
    pub unsafe fn access(&self, access: Access, address: u64) -> Taken {
        // SAFETY: passed on to the caller.
        unsafe { self.begin(access.instruction().unwrap_or(address), address) }
    }

    /// Makes a call to the level that takes the origin's faults: one below EL2 if `to_el2`.
    pub fn call(&self, to_el2: bool) -> Taken {
        let routine = if to_el2 { taken_hypervisor_call } else { taken_call };
        // SAFETY: no memory is accessed.
        unsafe { self.begin(routine as *const () as u64, 0) }
    }

    unsafe fn begin(&self, begin: u64, address: u64) -> Taken {
        assert!(self.guest == 0 || exceptions::level() == 2, "guests need EL2");
        let mut taken = Taken::default();
        // SAFETY: the routine comes back from any exception, with all that it changed as it was.
        unsafe { exception_taken(address, begin, self.state, self.guest, &mut taken) };
        taken
    }
}
