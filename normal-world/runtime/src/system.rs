//! What every part of the payload works with: FF-A, set up, and the memory that can be lent.

use alloc::{boxed::Box, format, string::String, vec, vec::Vec};
use core::sync::atomic::AtomicU32;

use flexserve_abi::{
    GRANULE_SIZE,
    ffa::{EndpointId, LLM_SERVICE},
};
use flexserve_client::{
    Conduit, Registers,
    ffa::{self, Ffa, Transfer},
    scatter::Scatter,
};
use flexserve_platform::{DRAM, LENDABLE, PAYLOAD_BASE};

use crate::{exceptions, mmu};

/// Pages of each of the RX/TX buffers: all that the SPMC takes in a call.
const BUFFER_PAGES: usize = ffa::FRAGMENT / ffa::PAGE_SIZE as usize;

/// RAM comes in multiples of this many bytes.
const RAM_UNIT: u64 = 1 << 20;

/// SMC64.
pub struct Smc;

impl Conduit for Smc {
    fn call(&mut self, registers: Registers) -> Registers {
        let [function, arguments @ ..] = registers;
        smccc::smc64(function as u32, arguments)
    }
}

/// A granule, aligned as one.
#[repr(C, align(4096))]
struct Granule([u8; GRANULE_SIZE]);

/// Page-aligned memory from the heap that is never given back.
pub fn leak_pages(count: usize) -> &'static mut [u8] {
    let granules: Vec<Granule> = (0..count).map(|_| Granule([0; GRANULE_SIZE])).collect();
    let granules = Box::leak(granules.into_boxed_slice());
    // SAFETY: the same memory, exclusively borrowed for ever; bytes have no invalid values.
    unsafe { core::slice::from_raw_parts_mut(granules.as_mut_ptr().cast(), count * GRANULE_SIZE) }
}

/// Page-aligned memory from the heap, as words that somebody else may write too.
pub fn leak_shared_pages(count: usize) -> &'static [AtomicU32] {
    let bytes = leak_pages(count);
    // SAFETY: exclusively borrowed for ever, aligned, and any bits are a word; from here on accessed as atomics only.
    unsafe { core::slice::from_raw_parts(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<AtomicU32>()) }
}

/// Memory that has been handed over.
pub struct Lent {
    /// The handle that FF-A knows it by.
    pub handle: u64,
    /// Its pages, in the order of the descriptor.
    pub pages: Vec<u64>,
}

/// FF-A and memory.
pub struct System {
    /// The SPMC.
    pub ffa: Ffa<'static, Smc>,
    /// Pages that are free to be lent.
    pub pages: Scatter,
    /// Where the TX and the RX buffer lie.
    pub buffers: (u64, u64),
}

impl System {
    /// Finds the SPMC and maps the buffers.
    ///
    /// # Errors
    ///
    /// There is no SPMC that speaks FF-A v1.2.
    pub fn start() -> Result<Self, String> {
        let tx = leak_pages(BUFFER_PAGES);
        let rx = leak_pages(BUFFER_PAGES);
        let buffers = (tx.as_ptr() as u64, rx.as_ptr() as u64);
        let mut ffa = Ffa::new(Smc, tx);
        let version = ffa
            .version()
            .map_err(|e| format!("no SPMC answers FFA_VERSION ({e}): is this firmware ours?"))?;
        if version < ffa::VERSION {
            return Err(format!(
                "the SPMC speaks FF-A {}.{}, 1.2 is needed",
                version >> 16,
                version & 0xffff
            ));
        }
        ffa.map_buffers(buffers.0, buffers.1).map_err(|e| format!("FFA_RXTX_MAP: {e}"))?;
        Ok(Self { ffa, pages: Scatter::new(free_banks()), buffers })
    }

    /// The partition that serves the model.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn llm_partition(&mut self) -> Result<EndpointId, String> {
        self.ffa.find_partition(LLM_SERVICE).map_err(|e| format!("looking for the LLM partition: {e}"))
    }

    /// Lends pages to `receiver`. They are read back as [`Lent`]'s only after a reclaim.
    ///
    /// # Errors
    ///
    /// The SPMC refused; the pages are free again then.
    pub fn lend(&mut self, receiver: EndpointId, pages: Vec<u64>) -> Result<Lent, ffa::Error> {
        match self.ffa.transfer(Transfer::Lend, receiver, &ffa::regions(&pages)) {
            Ok(handle) => Ok(Lent { handle, pages }),
            Err(error) => {
                self.pages.release(&pages);
                Err(error)
            }
        }
    }

    /// Takes back what the receiver has relinquished; answers how many of its granules are not all zero.
    ///
    /// # Errors
    ///
    /// The SPMC refused: the receiver still holds it.
    pub fn reclaim(&mut self, lent: &Lent) -> Result<u64, ffa::Error> {
        self.ffa.reclaim(lent.handle)?;
        Ok(self.release(lent))
    }

    /// Puts reclaimed pages among the free ones; answers how many are not all zero.
    pub fn release(&mut self, lent: &Lent) -> u64 {
        // SAFETY: the pages were just taken back.
        let dirty = lent.pages.iter().filter(|&&page| unsafe { !is_zero(page) }).count();
        self.pages.release(&lent.pages);
        dirty as u64
    }
}

/// A page of the pool, for the time before it is lent.
///
/// # Safety
///
/// `page` was allocated from [`System::pages`], is not lent, and no other reference to it exists.
pub unsafe fn page_mut<'a>(page: u64) -> &'a mut [u8; GRANULE_SIZE] {
    // SAFETY: identity-mapped memory that the caller owns.
    unsafe { &mut *(page as *mut [u8; GRANULE_SIZE]) }
}

/// The same as words, which this target, whose accesses are aligned, reads and writes eight bytes at a time.
///
/// # Safety
///
/// As for [`page_mut`].
pub unsafe fn page_words<'a>(page: u64) -> &'a mut [u64; GRANULE_SIZE / 8] {
    // SAFETY: identity-mapped memory that the caller owns.
    unsafe { &mut *(page as *mut [u64; GRANULE_SIZE / 8]) }
}

/// Whether every byte of a page is zero.
///
/// # Safety
///
/// As for [`page_mut`].
pub unsafe fn is_zero(page: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe { page_words(page) }.iter().all(|&word| word == 0)
}

/// First address behind this machine's RAM: the platform says how much there can be, a read of what is not there faults.
fn ram_end() -> u64 {
    let (mut present, mut absent) = (DRAM.base, DRAM.end());
    while absent - present > RAM_UNIT {
        let middle = present + (absent - present) / 2 / RAM_UNIT * RAM_UNIT;
        if exceptions::read(middle).is_ok() { present = middle } else { absent = middle }
    }
    absent
}

/// The lendable banks as far as this machine has memory there, without this program's image.
pub fn free_banks() -> Vec<(u64, u64)> {
    let (image, image_end) = (PAYLOAD_BASE, mmu::image_end_address());
    let ram_end = ram_end();
    let mut banks = vec![];
    for bank in LENDABLE {
        let end = bank.end().min(ram_end);
        for (start, end) in [(bank.base, end.min(image)), (bank.base.max(image_end), end)] {
            if start < end {
                banks.push((start, end - start));
            }
        }
    }
    banks
}
