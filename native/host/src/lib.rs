//! The library that the daemon loads through `bun:ffi`: what Linux has and a JavaScript runtime has not.
//!
//! Rules that hold for every exported function:
//!
//! - the result is zero or more, or `-errno`; nothing is ever thrown, and the errno cannot get lost between two
//!   calls, as it can when JavaScript reads `errno` itself;
//! - nothing waits for another process, a peer or a terminal: the caller is an event loop. Disk work is bounded per
//!   call ([`file::COPY_BYTES_MAX`]); the two calls that may take a device's time say so;
//! - nothing panics: no indexing, no unwrap, no arithmetic that can overflow. A panic would end the daemon;
//! - memory belongs to the caller: a pointer and a length, used during the call and not kept. A null pointer is
//!   `-EFAULT`, a length that does not fit is `-EINVAL`; a wrong address cannot be noticed and is the caller's bug;
//! - every descriptor that is returned is close-on-exec;
//! - every path is bytes with a length, at most 4095, without NUL.
//!
//! All system calls go through `syscall(2)`, not libc's wrappers: the wrappers carry symbol versions of the
//! glibc of the build machine (`fstat` 2.33, `fcntl64` 2.28 …) and would tie the one released file to newer
//! distributions than Bun itself needs. For the same reason a release has no std in it: std's panic machinery alone
//! wants glibc 2.34. What is imported is `syscall`, `__errno_location` and the `mem*` functions.

#![cfg_attr(panic = "abort", no_std)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::panic,
        clippy::expect_used,
        clippy::arithmetic_side_effects
    )
)]

mod call;
pub mod fd;
pub mod file;
pub mod kvm;
pub mod layout;
pub mod memfd;
pub mod message;
pub mod network;
pub mod path;
pub mod process;
pub mod socket;
pub mod xattr;

/// Nothing here panics; if the compiler left a path to it, the process must not run on.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        // SAFETY: integers only; ends this process.
        unsafe {
            libc::syscall(
                libc::SYS_kill,
                libc::syscall(libc::SYS_getpid),
                libc::SIGABRT,
            )
        };
    }
}

/// Raised when an exported function changes its meaning or its arguments. The caller refuses any other number.
pub const ABI_VERSION: i32 = 1;

/// [`ABI_VERSION`].
#[unsafe(no_mangle)]
pub extern "C" fn aerie_abi_version() -> i32 {
    ABI_VERSION
}
