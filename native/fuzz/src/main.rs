//! `aerie-fuzz TARGET SECONDS FOLDER [SEED]`: fuzzes one target, with the repository's corpus and what FOLDER holds of
//! earlier runs. Every input is in `FOLDER/../TARGET.current` before it is run: whatever ends the process, it is there.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use aerie_fuzz::coverage::Coverage;
use aerie_fuzz::mutate::Chance;
use aerie_fuzz::{folder, inputs, run, targets};

/// What one input may take of the processor, in seconds, then SIGVTALRM ends the process: nothing that is read takes a
/// hundredth of it, not even a row of a few hundred inputs, which the timer is set for.
const RUN_SECONDS: i64 = 10;
/// What the process may take of memory.
const MEMORY_BYTES: u64 = 2 << 30;

struct Current(File);

impl Current {
    fn note(&self, input: &[u8]) -> io::Result<()> {
        self.0.write_all_at(input, 0)?;
        self.0.set_len(input.len() as u64)
    }
}

/// Sets the timer: it counts our processor time and nothing else, so a busy machine is no hang.
fn guard() {
    let time = |seconds| libc::itimerval {
        it_interval: libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        },
        it_value: libc::timeval {
            tv_sec: seconds,
            tv_usec: 0,
        },
    };
    // SAFETY: reads one structure; the signal's default action ends the process.
    unsafe {
        libc::setitimer(
            libc::ITIMER_VIRTUAL,
            &time(RUN_SECONDS),
            std::ptr::null_mut(),
        )
    };
}

fn limit_memory() {
    let limit = libc::rlimit {
        rlim_cur: MEMORY_BYTES,
        rlim_max: MEMORY_BYTES,
    };
    // SAFETY: reads one structure.
    unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
}

fn fuzz(target: &str, time: Duration, found: &Path, seed: u64) -> io::Result<()> {
    fs::create_dir_all(found)?;
    let current = Current(File::create(found.with_extension("current"))?);
    let mut coverage = Coverage::default();
    let mut corpus = Vec::new();
    let mut executions = 0u64;
    let mut execute = |input: &[u8]| -> io::Result<bool> {
        executions += 1;
        current.note(input)?;
        if executions % 256 == 1 {
            guard();
        }
        coverage.begin();
        run(target, input);
        Ok(coverage.is_new())
    };
    for input in inputs(&folder(target))?.into_iter().chain(inputs(found)?) {
        execute(&input)?;
        corpus.push(input);
    }
    let (until, given) = (Instant::now() + time, corpus.len());
    let mut chance = Chance::new(seed);
    while Instant::now() < until {
        let input = chance.mutate(&corpus);
        if execute(&input)? {
            let name = format!("{:08}-{}", corpus.len(), input.len());
            fs::write(found.join(name), &input)?;
            corpus.push(input);
        }
    }
    let (edges, reached) = coverage.edges();
    println!(
        "{target}: {executions} inputs, {given} known, {} new, {reached} of {edges} edges",
        corpus.len() - given
    );
    if edges == 0 {
        println!("{target}: built without counters, so nothing led the way: use scripts/fuzz");
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (target, seconds, found, seed) = match arguments.as_slice() {
        [target, seconds, found] => (target, seconds, found, "1"),
        [target, seconds, found, seed] => (target, seconds, found, seed.as_str()),
        _ => {
            println!("{}", targets().join("\n"));
            return ExitCode::SUCCESS;
        }
    };
    let (Ok(seconds), Ok(seed)) = (seconds.parse(), seed.parse()) else {
        eprintln!("usage: aerie-fuzz TARGET SECONDS FOLDER [SEED]");
        return ExitCode::from(2);
    };
    if !targets().contains(&target.as_str()) {
        eprintln!("{target} is no target; there are {}", targets().join(", "));
        return ExitCode::from(2);
    }
    limit_memory();
    match fuzz(
        target,
        Duration::from_secs(seconds),
        &PathBuf::from(found),
        seed,
    ) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
