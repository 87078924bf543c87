//! Counts the allocations of each thread separately, so that concurrent tests do not affect the result.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    /// The bytes that this thread currently holds, and the maximum so far. Memory that another thread
    /// allocated is also subtracted when this thread frees it, so the first number can be negative.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// Returns the result of `work`, and the peak of the thread's allocations during `work`.
pub(crate) fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    HELD.set((0, 0));
    let done = work();
    (done, HELD.get().1.unsigned_abs())
}

fn count(bytes: isize) {
    // At the end of a thread, its `HELD` may already be destroyed.
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        let now = now + bytes;
        held.set((now, most.max(now)));
    });
}

fn size(layout: Layout) -> isize {
    layout.size().try_into().unwrap_or(isize::MAX)
}

// SAFETY: every call is forwarded unchanged to `System`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(size(layout));
        // SAFETY: the caller upholds the requirements.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(size(layout));
        // SAFETY: the caller upholds the requirements.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-size(layout));
        // SAFETY: the caller upholds the requirements.
        unsafe { System.dealloc(at, layout) }
    }
}
