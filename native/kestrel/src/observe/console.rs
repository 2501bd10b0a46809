//! kestrel's own voice: few lines, on the console and in the log ring as stream 3.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, OnceLock};

use aerie_protocol::LogStream;

use crate::observe::ring::Ring;
use crate::sys::lock;

static CONSOLE: OnceLock<Mutex<Option<File>>> = OnceLock::new();
static RING: OnceLock<&'static Ring> = OnceLock::new();

/// Opens the console; a guest without one (no serial port, no `console=`) is fine. Non-blocking, since a console whose
/// reader stands still must not hold up PID 1.
pub fn open() {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open("/dev/console")
        .ok();
    // A second call keeps the first console, which is the same device.
    let _ = CONSOLE.set(Mutex::new(file));
}

/// Makes lines go into the log too, from here on.
pub fn keep_in(ring: &'static Ring) {
    let _ = RING.set(ring);
}

/// Says one line.
pub fn say(line: &str) {
    let text = format!("kestrel: {line}\n");
    if let Some(ring) = RING.get() {
        ring.append(LogStream::Kestrel, text.as_bytes());
    }
    if let Some(console) = CONSOLE.get() {
        print(&mut lock(console), &text);
    }
}

/// Says one line without waiting for any lock: this thread may hold it and be broken.
pub fn say_now(line: &str) {
    if let Some(console) = CONSOLE.get()
        && let Ok(mut file) = console.try_lock()
    {
        print(&mut file, &format!("kestrel: {line}\n"));
    }
}

fn print(console: &mut Option<File>, text: &str) {
    if let Some(file) = console.as_mut() {
        // One write, so that lines of the kernel do not get between; a full console loses the line.
        let _ = file.write(text.replace('\n', "\r\n").as_bytes());
    }
}

/// An error with all its causes, as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
