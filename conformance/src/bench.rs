//! What the cases work with.

use alloc::{boxed::Box, format, string::String, vec::Vec};
use core::ops::Range;

use flexserve_abi::{
    GRANULE_SIZE,
    el3::{Feature, fid},
    ffa::{EndpointId, PROBE_SERVICE},
    probe::{REALM_PROBE, RealmOp},
};
use flexserve_client::{
    Conduit, Registers,
    ffa::{self, Function, Transfer},
    registers,
    scatter::Scatter,
};
use flexserve_normal_runtime::{
    cores,
    exceptions::{self, Fault},
    system::{self, Smc, System, page_mut},
};

use crate::{
    proxy::Proxy,
    suite::{Failure, ensure},
};

/// A granule, as addresses count it.
pub const GRANULE: u64 = GRANULE_SIZE as u64;

/// ESR_ELx.FnV: the fault address register holds nothing.
const NO_ADDRESS: u64 = 1 << 10;

/// An SMC from this core, with x1 and what follows.
pub fn call(function: u32, arguments: &[u64]) -> Registers {
    Smc.call(registers(function, arguments))
}

/// A signed status in x0.
pub fn status(answer: &Registers) -> i64 {
    answer[0].cast_signed()
}

/// What the cases share.
pub struct Bench {
    system: Result<System, String>,
    proxy: Option<Proxy>,
    backend: u64,
    /// Pages that follow each other and are not handed out yet.
    contiguous: Range<u64>,
    /// Pages of [`Bench::large`].
    large: Vec<u64>,
}

impl Bench {
    /// Finds out what this port has.
    pub fn start() -> Self {
        let proxy = Proxy::find();
        let mut system = match proxy {
            None => System::start(),
            Some(_) => Err("the Secure world's caller stands in the SPMC's place".into()),
        };
        let mut banks = system::free_banks();
        let contiguous = reserve(&mut banks);
        if let Ok(system) = &mut system {
            system.pages = Scatter::new(banks);
        }
        let backend = call(fid::FEATURES, &[Feature::Backend as u64])[0];
        Self { system, proxy, backend, contiguous, large: Vec::new() }
    }

    /// Whether the Secure world makes calls for the suite, in the SPMC's place.
    pub fn has_proxy(&self) -> bool {
        self.proxy.is_some()
    }

    /// The Secure world's caller.
    pub fn proxy(&self) -> Result<Proxy, Failure> {
        self.proxy.ok_or_else(|| Failure::Missing("no caller in the Secure world".into()))
    }

    /// Which mechanism protects granules (`FEATURES`).
    pub fn backend(&self) -> u64 {
        self.backend
    }

    /// FF-A and memory.
    pub fn system(&mut self) -> Result<&mut System, Failure> {
        self.system.as_mut().map_err(|why| Failure::Missing(format!("no FF-A: {why}")))
    }

    /// A partition that memory can be lent to: the first there is.
    pub fn borrower(&mut self) -> Result<EndpointId, Failure> {
        let answer = self.system()?.ffa.simple(Function::PartitionInfoGetRegs, &[]);
        match answer {
            Ok(registers) => Ok(registers[3] as EndpointId),
            Err(error) => Err(Failure::Missing(format!("no partition to lend to: {error}"))),
        }
    }

    /// The partition that does on request what a partition should not.
    pub fn hostile(&mut self) -> Result<EndpointId, Failure> {
        let found = self.system()?.ffa.find_partition(PROBE_SERVICE);
        found.map_err(|_| Failure::Missing("no partition offers the probe service".into()))
    }

    /// Scattered pages that nothing else uses, in use for the rest of the run.
    pub fn pages(&mut self, count: usize) -> Result<Vec<u64>, Failure> {
        Ok(self.system()?.pages.allocate(count).map_err(|e| format!("{e}"))?)
    }

    /// Pages next to each other, likewise, with a pattern of their own.
    pub fn contiguous(&mut self, count: usize) -> Result<Vec<u64>, Failure> {
        let start = self.contiguous.start;
        let end = start + count as u64 * GRANULE;
        ensure!(end <= self.contiguous.end, "no {count} pages are left that follow each other");
        self.contiguous.start = end;
        let pages: Vec<u64> = (start..end).step_by(GRANULE_SIZE).collect();
        pages.iter().copied().for_each(fill);
        Ok(pages)
    }

    /// More pages next to each other than any call should do at a time, the same for each case, with a pattern of their own.
    pub fn large(&mut self) -> Result<Vec<u64>, Failure> {
        const PAGES: usize = 1200;
        self.system()?;
        if self.large.is_empty() {
            self.large = self.contiguous(PAGES)?;
        }
        self.large.iter().copied().for_each(fill);
        Ok(self.large.clone())
    }

    /// Pages with a pattern of their own.
    pub fn patterned(&mut self, count: usize) -> Result<Vec<u64>, Failure> {
        let pages = self.pages(count)?;
        pages.iter().copied().for_each(fill);
        Ok(pages)
    }

    /// Lends pages to the first partition; answers the handle.
    pub fn lend(&mut self, pages: &[u64]) -> Result<u64, Failure> {
        let borrower = self.borrower()?;
        let ffa = &mut self.system()?.ffa;
        let handle = ffa.transfer(Transfer::Lend, borrower, &ffa::regions(pages));
        Ok(handle.map_err(|e| format!("lending {} pages: {e}", pages.len()))?)
    }

    /// Takes back what was lent.
    pub fn reclaim(&mut self, handle: u64) -> Result<(), Failure> {
        Ok(self.system()?.ffa.reclaim(handle).map_err(|e| format!("reclaiming {handle:#x}: {e}"))?)
    }

    /// Checks that an access ended in the fault that this port's mechanism gives, at its address.
    pub fn expect_fault(&self, what: &str, outcome: Result<(), Fault>, page: u64) -> Result<(), Failure> {
        let Err(fault) = outcome else {
            return Err(Failure::Wrong(format!("{what} of {page:#x} goes through")));
        };
        ensure!(fault.is_stopped_by(self.backend), "{what} of {page:#x} ends in another fault: {fault}");
        let at = fault.esr & NO_ADDRESS != 0 || fault.far == page;
        ensure!(at, "{what} of {page:#x} faults elsewhere: {fault}");
        Ok(())
    }

    /// Checks that a core can neither read, write nor execute a page.
    pub fn expect_closed(&self, core: usize, page: u64) -> Result<(), Failure> {
        let tried = on_core(core, move || {
            // SAFETY: the page is not this world's: both fault, or the case fails.
            let (written, executed) = unsafe { (exceptions::write(page, 1), exceptions::execute(page)) };
            [("a read", exceptions::read(page).map(drop)), ("a write", written), ("a branch", executed)]
        })?;
        for (what, outcome) in tried {
            self.expect_fault(&format!("on core {core}, {what}"), outcome, page)?;
        }
        Ok(())
    }

    /// Makes a call at R-EL2, or an access there: `REALM_PROBE` (answers x1 to x4 of the response).
    pub fn realm(&self, op: RealmOp, arguments: &[u64]) -> Result<[u64; 2], Failure> {
        let mut all = [0; 6];
        all[0] = op as u64;
        all[1..=arguments.len()].copy_from_slice(arguments);
        match call(REALM_PROBE, &all) {
            [0, first, second, ..] => Ok([first, second]),
            _ => Err(Failure::Missing("no Realm world that probes".into())),
        }
    }
}

/// Takes memory for pages that follow each other from the end of the largest bank.
fn reserve(banks: &mut [(u64, u64)]) -> Range<u64> {
    /// Bytes, a multiple of the largest block that tables of either kind know at their second level.
    const SIZE: u64 = 64 << 20;
    match banks.iter_mut().max_by_key(|(_, size)| *size).filter(|(_, size)| *size > SIZE) {
        Some((base, size)) => {
            *size -= SIZE;
            *base + *size..*base + *size + SIZE
        }
        None => 0..0,
    }
}

/// Runs a task on a core.
pub fn on_core<T: Send + 'static>(
    core: usize,
    task: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    Ok(cores::run(core, task)?)
}

/// Begins a task on a core and comes back at once.
pub fn begin(core: usize, task: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    Ok(cores::begin(core, Box::new(task))?)
}

/// Another core of this machine.
pub fn other_core() -> Result<usize, Failure> {
    if cores::count() > 1 { Ok(1) } else { Err(Failure::Missing("the machine has one core".into())) }
}

/// Fills a page with bytes of its own, none of them zero.
pub fn fill(page: u64) {
    let [_, low, high, ..] = (page >> 4).to_le_bytes();
    // SAFETY: the suite allocated the page and has not lent it.
    for (i, byte) in unsafe { page_mut(page) }.iter_mut().enumerate() {
        *byte = low ^ high ^ (i as u8) | 1;
    }
}

/// Bytes of a page that are not zero.
pub fn dirty_bytes(page: u64) -> usize {
    // SAFETY: the page is this world's: otherwise the read faults and ends the run.
    unsafe { page_mut(page) }.iter().filter(|&&byte| byte != 0).count()
}
