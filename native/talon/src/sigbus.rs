//! A mapped file that is cut short under a running guest ends the machine with a reason, not with a core.

use std::io;

/// The process's last words: the line that every failure ends with.
const LAST_WORDS: &[u8] =
    b"{\"code\":\"memory_lost\",\"message\":\"guest memory is gone from the host\",\"chain\":[\"SIGBUS: the file behind it was cut short or cannot be read\"]}\n";

/// Installs the handler.
///
/// # Errors
/// When the host refuses.
pub fn install() -> io::Result<()> {
    extern "C" fn end(_: i32) {
        // SAFETY: write and _exit are async-signal-safe; the buffer is static.
        unsafe {
            libc::write(2, LAST_WORDS.as_ptr().cast(), LAST_WORDS.len());
            libc::_exit(1);
        }
    }
    // SAFETY: `action` is fully initialised and the handler is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = end as *const () as usize;
        if libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
