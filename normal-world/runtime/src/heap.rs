//! The heap: 64 MiB inside the image's region, never lent.

use core::mem::MaybeUninit;

use linked_list_allocator::LockedHeap;

const SIZE: usize = 64 << 20;

#[repr(C, align(4096))]
struct Arena([MaybeUninit<u8>; SIZE]);

#[unsafe(link_section = ".heap")]
static mut ARENA: Arena = Arena([MaybeUninit::uninit(); SIZE]);

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Opens the heap; once, before the first allocation.
pub fn init() {
    // SAFETY: the arena belongs to the heap alone and lives for ever.
    unsafe { HEAP.lock().init((&raw mut ARENA).cast(), SIZE) };
}
