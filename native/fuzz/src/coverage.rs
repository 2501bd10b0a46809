//! Which code an input reached: LLVM's inline counters, a byte for each edge, which the build of `scripts/fuzz` puts into
//! every crate (`-Cpasses=sancov-module`, a stable option). Without them nothing is ever new, and fuzzing is blind.

use std::sync::Mutex;

/// Start and length of the counters of each compiled part.
static PARTS: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// Called by each instrumented part before `main`.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, end: *mut u8) {
    let bytes = (end as usize).saturating_sub(start as usize);
    if let Ok(mut parts) = PARTS.lock()
        && bytes > 0
        && !parts.iter().any(|part| part.0 == start as usize)
    {
        parts.push((start as usize, bytes));
    }
}

/// Called with the places of the counters, which nobody asks for here.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_pcs_init(_start: *const usize, _end: *const usize) {}

/// What has been reached so far.
#[derive(Debug, Default)]
pub struct Coverage {
    seen: Vec<u8>,
}

/// How often, in steps: one more turn of a long loop is nothing new.
const fn class(count: u8) -> u8 {
    match count {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 4,
        4..=7 => 8,
        8..=15 => 16,
        16..=31 => 32,
        32..=127 => 64,
        _ => 128,
    }
}

fn each(mut visit: impl FnMut(*mut u8)) {
    let parts = PARTS.lock().map(|parts| parts.clone()).unwrap_or_default();
    for (start, bytes) in parts {
        for at in start..start + bytes {
            visit(at as *mut u8);
        }
    }
}

impl Coverage {
    /// Forgets what the counters hold.
    pub fn begin(&self) {
        // SAFETY: the address is within a part's counters, which live as long as the program; a count that another thread
        // loses is no harm.
        each(|counter| unsafe { counter.write_volatile(0) });
    }

    /// Whether something was reached that had not been before, or more often.
    pub fn is_new(&mut self) -> bool {
        let (mut index, mut new) = (0, false);
        each(|counter| {
            // SAFETY: as above.
            let found = class(unsafe { counter.read_volatile() });
            if self.seen.len() <= index {
                self.seen.resize(index + 1, 0);
            }
            if found & !self.seen[index] != 0 {
                self.seen[index] |= found;
                new = true;
            }
            index += 1;
        });
        new
    }

    /// Edges that there are, and those reached.
    #[must_use]
    pub fn edges(&self) -> (usize, usize) {
        let reached = self.seen.iter().filter(|seen| **seen != 0).count();
        (self.seen.len(), reached)
    }
}
