//! talon's allocator: powers of two from a block that is in the program, and freed pieces kept for their size.
//!
//! musl's gives each size a mapping of its own, which was a quarter of all system calls of a restore and a page fault
//! each. Here small pieces lie side by side, and a machine at rest has called the host for none of them. What is freed is
//! never given back: the largest that talon ever holds is bounded by what its inputs are bounded by.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

/// The smallest piece: a list link and 16-byte alignment.
const SMALLEST_BITS: u32 = 4;
/// The largest; what is larger is mapped by itself.
const LARGEST_BITS: u32 = 16;
const CLASSES: usize = 13;
const FIRST_BYTES: usize = 256 << 10;
const CHUNK_BYTES: usize = 1 << 20;
const PAGE: usize = 4096;

const _: () = assert!(CLASSES == (LARGEST_BITS - SMALLEST_BITS + 1) as usize);

#[repr(align(4096))]
struct First(UnsafeCell<[u8; FIRST_BYTES]>);

// SAFETY: its bytes are handed out by the arena alone, each once.
unsafe impl Sync for First {}

static FIRST: First = First(UnsafeCell::new([0; FIRST_BYTES]));

struct Inner {
    free: [*mut u8; CLASSES],
    next: *mut u8,
    left: usize,
    begun: bool,
}

/// The allocator.
pub struct Arena {
    busy: AtomicBool,
    inner: UnsafeCell<Inner>,
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Arena")
    }
}

// SAFETY: `inner` is only touched between taking and giving back `busy`.
unsafe impl Sync for Arena {}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

/// The class of a piece that holds this layout, or none for one that is mapped by itself.
fn class(layout: Layout) -> Option<usize> {
    let bytes = layout
        .size()
        .max(layout.align())
        .max(1 << SMALLEST_BITS)
        .checked_next_power_of_two()?;
    let bits = bytes.trailing_zeros();
    (bits <= LARGEST_BITS).then_some((bits - SMALLEST_BITS) as usize)
}

fn map(bytes: usize) -> *mut u8 {
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
    let mapped = unsafe {
        libc::mmap(
            null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        null_mut()
    } else {
        mapped.cast()
    }
}

impl Arena {
    /// An empty one; there is one in a program.
    #[must_use]
    pub const fn new() -> Self {
        let inner = Inner {
            free: [null_mut(); CLASSES],
            next: null_mut(),
            left: 0,
            begun: false,
        };
        Self {
            busy: AtomicBool::new(false),
            inner: UnsafeCell::new(inner),
        }
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        while self
            .busy
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            std::hint::spin_loop();
        }
        // SAFETY: `busy` is ours, so nobody else holds a reference.
        let result = work(unsafe { &mut *self.inner.get() });
        self.busy.store(false, Ordering::Release);
        result
    }
}

impl Inner {
    fn take(&mut self, class: usize) -> *mut u8 {
        let head = self.free[class];
        if !head.is_null() {
            // SAFETY: a free piece holds the link to the next in its first eight bytes, and is aligned for it.
            self.free[class] = unsafe { head.cast::<*mut u8>().read() };
            return head;
        }
        let bytes = 1usize << (class + SMALLEST_BITS as usize);
        if !self.begun {
            self.begun = true;
            self.next = FIRST.0.get().cast();
            self.left = FIRST_BYTES;
        }
        let mut skip = self.next.align_offset(bytes.min(PAGE));
        if self.left < bytes + skip {
            // What is left of the old chunk is lost: less than one piece of this size.
            self.next = map(CHUNK_BYTES);
            self.left = if self.next.is_null() { 0 } else { CHUNK_BYTES };
            skip = 0;
            if self.left < bytes {
                return null_mut();
            }
        }
        let piece = self.next.wrapping_add(skip);
        self.next = piece.wrapping_add(bytes);
        self.left -= bytes + skip;
        piece
    }

    fn give(&mut self, class: usize, piece: *mut u8) {
        // SAFETY: the piece was handed out for this class and nobody uses it any more; it is aligned for a pointer.
        unsafe { piece.cast::<*mut u8>().write(self.free[class]) };
        self.free[class] = piece;
    }
}

// SAFETY: pieces are as large as their class and aligned to the smaller of their size and a page; a larger alignment than
// a page is refused. No piece is handed out twice before it is given back.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() > PAGE {
            return null_mut();
        }
        match class(layout) {
            Some(class) => self.locked(|inner| inner.take(class)),
            None => map(layout.size()),
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is `alloc`'s.
        let piece = unsafe { self.alloc(layout) };
        if !piece.is_null() && class(layout).is_some() {
            // SAFETY: the piece holds the layout. A mapping of its own is zero already.
            unsafe { piece.write_bytes(0, layout.size()) };
        }
        piece
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        match class(layout) {
            Some(class) => self.locked(|inner| inner.give(class, piece)),
            // SAFETY: this mapping was made for this layout.
            None => unsafe {
                libc::munmap(piece.cast(), layout.size());
            },
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(bytes, layout.align()) else {
            return null_mut();
        };
        let (old_class, new_class) = (class(layout), class(new));
        if old_class.is_some() && old_class == new_class {
            return piece;
        }
        // SAFETY: `new` is a valid layout, and the caller's promise covers `piece` and `layout`.
        unsafe {
            let moved = self.alloc(new);
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(piece, layout.size().min(bytes));
                self.dealloc(piece, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_never_overlap_and_keep_their_bytes(sizes in proptest::collection::vec((1usize..200_000, 0u32..9), 1..60)) {
            let arena = Arena::new();
            let mut held: Vec<(*mut u8, Layout, u8)> = Vec::new();
            for (index, (size, align)) in sizes.into_iter().enumerate() {
                let layout = Layout::from_size_align(size, 1 << align).unwrap();
                let mark = u8::try_from(index % 251).unwrap();
                // SAFETY: the layout is not empty; the piece is written within it.
                let piece = unsafe { arena.alloc(layout) };
                prop_assert!(!piece.is_null() && piece.align_offset(layout.align()) == 0);
                // SAFETY: as above.
                unsafe { piece.write_bytes(mark, size) };
                held.push((piece, layout, mark));
                if index % 3 == 2 {
                    let (piece, layout, mark) = held.swap_remove(index % held.len());
                    // SAFETY: the piece is ours and is not used afterwards.
                    unsafe {
                        let grown = arena.realloc(piece, layout, layout.size() * 2);
                        prop_assert!((0..layout.size()).all(|at| grown.add(at).read() == mark));
                        arena.dealloc(grown, Layout::from_size_align(layout.size() * 2, layout.align()).unwrap());
                    }
                }
            }
            for (piece, layout, mark) in held {
                // SAFETY: the piece is ours and is not used afterwards.
                unsafe {
                    prop_assert!((0..layout.size()).all(|at| piece.add(at).read() == mark));
                    arena.dealloc(piece, layout);
                }
            }
        }
    }
}
