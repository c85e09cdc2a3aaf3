//! The allocator of the WebAssembly build: size classes below 64 kB, first fit with joining above.
//!
//! Promises a null pointer, not a trap, where memory cannot grow. Knows that there is one thread.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::wasm32::{memory_grow, memory_size};
use core::cell::UnsafeCell;
use core::ptr::null_mut;

const SMALLEST: usize = 16;
const LARGEST_CLASS: usize = 1 << 16;
const CLASSES: usize = 49; // four to each doubling from 16 bytes to 64 kB
const PAGE: usize = 1 << 16;

struct Free {
    size: usize,
    next: *mut Free,
}

struct State {
    classes: [*mut Free; CLASSES],
    large: *mut Free, // in order of address
    fresh: usize,
    end: usize,
}

/// The one heap.
pub struct Heap(UnsafeCell<State>);

// SAFETY: this build has one thread.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap =
    Heap(UnsafeCell::new(State { classes: [null_mut(); CLASSES], large: null_mut(), fresh: 0, end: 0 }));

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}

/// The class of a size, and the size that all blocks of that class have.
fn class(size: usize) -> (usize, usize) {
    let size = size.max(SMALLEST);
    let doubling = (usize::BITS - 1 - (size - 1).max(SMALLEST - 1).leading_zeros()) as usize; // 2^doubling < size
    let step = if doubling < 4 { SMALLEST } else { (1 << doubling) / 4 };
    let rounded = size.div_ceil(step) * step;
    if doubling < 4 {
        return (0, SMALLEST);
    }
    ((doubling - 4) * 4 + (rounded - (1 << doubling)) / step, rounded.next_multiple_of(SMALLEST))
}

impl State {
    /// Fresh bytes, 16-aligned, from the end of memory.
    unsafe fn extend(&mut self, size: usize) -> *mut u8 {
        if self.end == 0 {
            self.end = memory_size(0) * PAGE;
            self.fresh = self.end;
        }
        if size > self.end - self.fresh {
            let missing = size - (self.end - self.fresh);
            let pages = missing.div_ceil(PAGE);
            let before = memory_grow(0, pages);
            if before == usize::MAX {
                return null_mut();
            }
            self.end += pages * PAGE;
        }
        let at = self.fresh;
        self.fresh += size;
        at as *mut u8
    }

    unsafe fn take_large(&mut self, size: usize) -> *mut u8 {
        let mut link: *mut *mut Free = &mut self.large;
        while !(*link).is_null() {
            let block = *link;
            if (*block).size >= size {
                let rest = (*block).size - size; // whole pages, as every size here is
                if rest > 0 {
                    let left = (block as usize + size) as *mut Free;
                    left.write(Free { size: rest, next: (*block).next });
                    *link = left;
                } else {
                    *link = (*block).next;
                }
                return block as *mut u8;
            }
            link = &mut (*block).next;
        }
        self.extend(size)
    }

    unsafe fn give_large(&mut self, at: *mut u8, size: usize) {
        let block = at as *mut Free;
        let mut before: *mut Free = null_mut();
        let mut after = self.large;
        while !after.is_null() && after < block {
            before = after;
            after = (*after).next;
        }
        block.write(Free { size, next: after });
        if !after.is_null() && at as usize + size == after as usize {
            (*block).size += (*after).size;
            (*block).next = (*after).next;
        }
        if before.is_null() {
            self.large = block;
        } else if before as usize + (*before).size == at as usize {
            (*before).size += (*block).size;
            (*before).next = (*block).next;
        } else {
            (*before).next = block;
        }
    }
}

// SAFETY: blocks are 16-aligned and disjoint; larger alignments are refused.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let state = &mut *self.0.get();
        if layout.align() > 16 || layout.size() > isize::MAX as usize - PAGE {
            return null_mut();
        }
        if layout.size() > LARGEST_CLASS {
            return state.take_large(layout.size().next_multiple_of(PAGE));
        }
        let (place, size) = class(layout.size());
        let block = state.classes[place];
        if block.is_null() {
            return state.extend(size);
        }
        state.classes[place] = (*block).next;
        block as *mut u8
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let state = &mut *self.0.get();
        if layout.size() > LARGEST_CLASS {
            return state.give_large(at, layout.size().next_multiple_of(PAGE));
        }
        let (place, size) = class(layout.size());
        let block = at as *mut Free;
        block.write(Free { size, next: state.classes[place] });
        state.classes[place] = block;
    }
}
