//! Runs tests one after the other: a bed has one processor, and counters of two guests would mix.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use crate::machine::Context;

pub struct Suite {
    wanted: Vec<String>,
    passed: u32,
    failed: u32,
}

/// The rule of detection: the processor shows `svm` or `vmx`, and `/dev/kvm` is there. The file alone proves nothing.
pub fn usable_kvm() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    (has("svm") || has("vmx")) && std::path::Path::new("/dev/kvm").exists()
}

impl Suite {
    pub fn new(wanted: Vec<String>) -> Self {
        Self {
            wanted,
            passed: 0,
            failed: 0,
        }
    }

    /// Runs a test whose name holds one of the wanted words.
    pub fn test(&mut self, name: &str, body: fn(&Context)) {
        if !self.wanted.is_empty() && !self.wanted.iter().any(|word| name.contains(word.as_str())) {
            return;
        }
        let began = Instant::now();
        let context = Context::new(name);
        let outcome = catch_unwind(AssertUnwindSafe(|| body(&context)));
        let seconds = began.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("ok    {name} ({seconds:.1} s)");
            }
            Err(_) => {
                self.failed += 1;
                let kept = context.keep();
                println!("FAIL  {name} ({seconds:.1} s), see {}", kept.display());
            }
        }
    }

    pub fn finish(self) -> ExitCode {
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
