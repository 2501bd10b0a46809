//! wing: the short helpers of an aerie host, one static file with five commands.
//! Each command is a module of its own and shares with its neighbours this table, how an error is said, and how a filter
//! of system calls is made.

mod bare;
mod error_line;
mod filter;
mod launch;
mod net;
mod pack;
mod vsock;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut argv = std::env::args_os();
    let _ = argv.next();
    match argv.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("bare") => bare::main(argv),
        Some("launch") => launch::main(argv),
        Some("net") => net::main(argv),
        Some("vsock") => vsock::main(argv),
        Some("pack") => pack::main(argv),
        _ => {
            eprintln!("usage: wing launch|bare|net|vsock|pack …");
            ExitCode::from(2)
        }
    }
}
