//! Buffers end where memory ends: a kernel that reads or writes beyond one faults, whatever instructions it uses.

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator for what is small; mappings of their own, with a page behind them that nobody may touch, for the rest.
struct Guarded;

#[global_allocator]
static GUARDED: Guarded = Guarded;

/// The largest page of AArch64.
const PAGE: usize = 1 << 16;
/// The least bytes that are worth two system calls.
const GUARDED_MIN: usize = 64;

/// Bytes in front of the guard, and where an allocation begins among them, so that it ends at most an alignment before it.
fn place(layout: Layout) -> Option<(usize, usize)> {
    let fits = (GUARDED_MIN..=isize::MAX as usize - PAGE).contains(&layout.size()) && layout.align() <= 4096;
    let bytes = layout.size().next_multiple_of(PAGE);
    fits.then(|| (bytes, (bytes - layout.size()) & !(layout.align() - 1)))
}

// SAFETY: a mapping is as long as asked for and nobody else's; mappings are aligned to 4 KB, and so are allocations in them as they
// ask for it.
unsafe impl GlobalAlloc for Guarded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((bytes, at)) = place(layout) else {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc(layout) };
        };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the mapping is a new one, and its last page is in it.
        unsafe {
            mmap_anonymous(std::ptr::null_mut(), bytes + PAGE, access, MapFlags::PRIVATE)
                .and_then(|start| {
                    mprotect(start.byte_add(bytes), PAGE, MprotectFlags::empty())?;
                    Ok(start.cast::<u8>().add(at))
                })
                .unwrap_or(std::ptr::null_mut())
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let Some((bytes, at)) = place(layout) else {
            // SAFETY: the caller's promise; `alloc` took the same way.
            return unsafe { System.dealloc(pointer, layout) };
        };
        // SAFETY: `alloc` made a mapping of that many bytes; one that stays does no harm.
        let _ = unsafe { munmap(pointer.sub(at).cast(), bytes + PAGE) };
    }
}
