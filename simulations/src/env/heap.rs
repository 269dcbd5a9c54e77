//! What a run has on the heap: all of it is allocated on the run's own thread.
//!
//! Invariant: counting changes nothing of what is allocated, and other threads are counted apart.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes in use. Less than nothing on a thread that frees what others allocated.
    static USED: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, counted for each thread.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that were in use on this thread since it began.
pub fn peak_bytes() -> u64 {
    u64::try_from(PEAK.get()).unwrap_or(0)
}

fn count(bytes: isize) {
    // A thread that ends may free after its locals are gone.
    let _ = USED.try_with(|used| {
        let now = used.get() + bytes;
        used.set(now);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now)));
    });
}

/// A layout's size: at most `isize::MAX`, as `Layout` demands.
fn size(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-size(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(size(new_size) - size(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(memory, layout, new_size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_here_is_counted() {
        let before = USED.get();
        let bytes = std::hint::black_box(vec![1_u8; 100_000]);
        assert!(USED.get() >= before + 100_000);
        // This thread may have freed what another one allocated for it.
        assert!(PEAK.get() >= before + 100_000);
        drop(bytes);
        assert!(USED.get() < before + 100_000);
    }
}
