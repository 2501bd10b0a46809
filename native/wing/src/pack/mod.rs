//! `wing pack`: archives into what a guest boots from. It reads what strangers made, so it is a process of its own,
//! confined before the first byte, with typed refusals and bounds on memory, disk and time. `native/README.md` has the
//! table of its commands and codes.

mod args;
mod codec;
mod confine;
mod error;
mod hex;
mod image;
mod input;
mod kernel;
mod output;
mod path;

use std::{ffi::OsString, io::Write as _, process::ExitCode};

use serde::Serialize;
use serde_json::json;

use args::{Access, Args};
use error::{Code, Error, Result};

/// Exit code of every failure but a wrong command line, which has 2.
const FAILED: u8 = 1;

/// Bounds where the command line gives none, GiB: an image; a kernel with all modules of a distribution and their
/// debug data.
const IMAGE_GIB: u64 = 16;
const KERNEL_GIB: u64 = 4;

/// Runs one command; `argv` is what stands behind `wing pack`.
pub fn main(mut argv: impl Iterator<Item = OsString>) -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        report(
            &json!({ "code": "internal", "message": format!("wing pack has a bug: {panic}"), "chain": [] }),
        );
        std::process::exit(FAILED.into());
    }));
    let command = argv
        .next()
        .and_then(|command| command.into_string().ok())
        .unwrap_or_default();
    match run(&command, argv) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.code();
            let mut line = json!({ "code": code.as_str(), "message": error.to_string(), "chain": error.chain() });
            if let Some(flag) = error.flag() {
                line["flag"] = flag.into();
            }
            report(&line);
            ExitCode::from(if code == Code::Usage { 2 } else { FAILED })
        }
    }
}

/// One line on standard error; if no one reads it, the exit code is left.
fn report(line: &serde_json::Value) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn run(command: &str, argv: impl Iterator<Item = OsString>) -> Result<()> {
    let mut args = Args::parse(argv)?;
    match command {
        "image" => {
            let out = args.file("out-fd", Access::ReadWrite)?;
            let scratch = args.file_if_given("scratch-fd", Access::ReadWrite)?;
            let limits = args.limits(IMAGE_GIB)?;
            confined(args, || image::run(out, scratch, limits))
        }
        "kernel" => {
            let out = args.file("out-fd", Access::ReadWrite)?;
            let modules = args.file("modules-fd", Access::ReadWrite)?;
            let limits = args.limits(KERNEL_GIB)?;
            confined(args, || kernel::run(out, modules, limits))
        }
        "vmlinux" => {
            let out = args.file("out-fd", Access::Write)?;
            confined(args, || kernel::bzimage::run(out))
        }
        "initramfs" => {
            let kestrel = args.file("kestrel-fd", Access::Read)?;
            let modules = args.file_if_given("modules-fd", Access::Read)?;
            let out = args.file("out-fd", Access::Write)?;
            confined(args, || kernel::initramfs::run(kestrel, modules, out))
        }
        "probe" => {
            args.finish()?;
            print(&confine::probe())
        }
        _ => Err(Error::Usage {
            reason: "wing pack image|kernel|vmlinux|initramfs|probe …".into(),
        }),
    }
}

/// Runs `work` with nothing but the files that are open, and prints what it found.
fn confined<T: Serialize>(args: Args, work: impl FnOnce() -> Result<T>) -> Result<()> {
    args.finish()?;
    confine::confine()?;
    print(&work()?)
}

fn print(value: &impl Serialize) -> Result<()> {
    let failed = |source| Error::Write {
        what: "standard output",
        source,
    };
    let mut line = serde_json::to_vec(value).map_err(|error| failed(error.into()))?;
    line.push(b'\n');
    std::io::stdout()
        .write_all(&line)
        .and_then(|()| std::io::stdout().flush())
        .map_err(failed)
}
