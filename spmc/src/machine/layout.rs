//! Where things are: linker symbols, windows, and the physical addresses of what the linker placed.

use flexserve_spmc::tables::{PAGE, Table};

/// Most cores.
pub const CORES: usize = flexserve_abi::el3::MAX_CORES;
/// Bytes of a core's stack, a power of two and its alignment; the lowest page is never mapped.
pub const STACK_SIZE: u64 = 8 * PAGE;

/// Secure memory, devices and the SPMC itself: address = physical address + this.
pub const SECURE_WINDOW: u64 = 0xffff_ff80_0000_0000;
/// The lendable banks as the normal world's memory: address = physical address + this.
pub const NORMAL_WINDOW: u64 = 0xffff_ffc0_0000_0000;
/// Physical addresses that the windows reach.
pub const WINDOW_SIZE: u64 = NORMAL_WINDOW - SECURE_WINDOW;

unsafe extern "C" {
    static __image_start: [u8; 0];
    static __entry_end: [u8; 0];
    static __text_end: [u8; 0];
    static __rodata_end: [u8; 0];
    static __pool_start: [Table; 0];
    static __pool_end: [u8; 0];
    static stacks: [u8; 0];
    static secondary_entry: [u8; 0];
}

/// Addresses of the image's parts, in the Secure window.
pub struct Image {
    /// First byte.
    pub start: u64,
    /// End of what runs at physical addresses.
    pub entry_end: u64,
    /// End of code, start of constants.
    pub text_end: u64,
    /// End of constants, start of data.
    pub rodata_end: u64,
    /// First byte of the cores' stacks.
    pub stacks: u64,
    /// End of the SPMC's place.
    pub end: u64,
}

/// The parts of the image.
pub fn image() -> Image {
    Image {
        start: (&raw const __image_start) as u64,
        entry_end: (&raw const __entry_end) as u64,
        text_end: (&raw const __text_end) as u64,
        rodata_end: (&raw const __rodata_end) as u64,
        stacks: (&raw const stacks) as u64,
        end: (&raw const __pool_end) as u64,
    }
}

/// Tables of the pool: what lies behind the image.
pub fn pool() -> &'static [Table] {
    let start = &raw const __pool_start;
    let bytes = (&raw const __pool_end) as u64 - start as u64;
    // SAFETY: the linker script reserves the range for tables and nothing else; a table is an array of atomics, for
    // which every content is valid.
    unsafe { core::slice::from_raw_parts(start.cast(), (bytes / PAGE) as usize) }
}

/// Physical address of where other cores start.
pub fn secondary_start() -> u64 {
    physical((&raw const secondary_entry) as u64)
}

/// Physical address of something in the Secure window.
pub fn physical(address: u64) -> u64 {
    address - SECURE_WINDOW
}
