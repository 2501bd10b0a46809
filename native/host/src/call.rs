//! What every exported function needs: results as `-errno`, and memory and paths of the caller.

use core::mem::size_of;

use libc::{c_int, c_long};

/// Bytes of a path with its NUL (PATH_MAX, linux/limits.h).
const PATH_BYTES_MAX: usize = 4096;

/// The result of a system call that has just been made: its value, or `-errno`.
pub fn result(ret: c_long) -> i64 {
    if ret >= 0 {
        return ret;
    }
    // SAFETY: the thread's own errno, valid for the life of the thread.
    error(unsafe { *libc::__errno_location() })
}

/// `-errno` as the result of an exported function.
pub fn error(errno: c_int) -> i64 {
    i64::from(errno).wrapping_neg()
}

/// The same as a 32-bit result: descriptors, flags and errnos all fit.
pub fn narrow(result: i64) -> i32 {
    i32::try_from(result).unwrap_or(libc::EOVERFLOW.wrapping_neg())
}

/// The `len` bytes at `pointer`.
///
/// # Safety
/// Where it is not null, `pointer` must be valid for reading `len` bytes during the call.
pub unsafe fn bytes<'a>(pointer: *const u8, len: u32) -> Result<&'a [u8], i64> {
    let len = usize::try_from(len).map_err(|_| error(libc::EINVAL))?;
    if len == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(error(libc::EFAULT));
    }
    // SAFETY: not null, and the caller's promise.
    Ok(unsafe { core::slice::from_raw_parts(pointer, len) })
}

/// The room of `len` bytes at `pointer`, which is there to be written.
///
/// # Safety
/// Where it is not null, `pointer` must be valid for reading and writing `len` bytes during the call.
pub unsafe fn out_bytes<'a>(pointer: *mut u8, len: u32) -> Result<&'a mut [u8], i64> {
    let len = usize::try_from(len).map_err(|_| error(libc::EINVAL))?;
    if pointer.is_null() {
        return Err(error(libc::EFAULT));
    }
    // SAFETY: not null, and the caller's promise.
    Ok(unsafe { core::slice::from_raw_parts_mut(pointer, len) })
}

/// The structure that an exported function fills; `len` is the caller's idea of its size.
///
/// # Safety
/// Where it is not null, `pointer` must be valid for reading and writing `len` bytes during the call, and
/// every byte pattern must be a `T`.
pub unsafe fn out<'a, T>(pointer: *mut T, len: u32) -> Result<&'a mut T, i64> {
    if usize::try_from(len) != Ok(size_of::<T>()) || !pointer.is_aligned() {
        return Err(error(libc::EINVAL));
    }
    // SAFETY: aligned, of the right size, and the caller's promise; null gives None.
    unsafe { pointer.as_mut() }.ok_or(error(libc::EFAULT))
}

/// A path of the caller with the NUL that the kernel wants.
#[derive(Debug)]
pub struct Path([u8; PATH_BYTES_MAX]);

impl Path {
    /// # Errors
    /// ENOENT: empty, as the kernel has it. ENAMETOOLONG: more than 4095 bytes. EINVAL: a NUL inside.
    ///
    /// # Safety
    /// The rules of [`bytes`] apply.
    pub unsafe fn new(pointer: *const u8, len: u32) -> Result<Self, i64> {
        // SAFETY: handed on.
        Self::from_bytes(unsafe { bytes(pointer, len) }?)
    }

    pub fn from_bytes(path: &[u8]) -> Result<Self, i64> {
        if path.is_empty() {
            return Err(error(libc::ENOENT));
        }
        if path.contains(&0) {
            return Err(error(libc::EINVAL));
        }
        let mut buffer = [0; PATH_BYTES_MAX];
        match buffer.get_mut(..path.len()) {
            Some(start) if path.len() < PATH_BYTES_MAX => start.copy_from_slice(path),
            _ => return Err(error(libc::ENAMETOOLONG)),
        }
        Ok(Self(buffer))
    }

    /// The bytes without the NUL.
    pub fn bytes(&self) -> impl Iterator<Item = u8> {
        self.0.iter().copied().take_while(|&byte| byte != 0)
    }

    pub fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }
}

/// An exported function's body: the value, or the error that ended it early.
pub fn run(body: impl FnOnce() -> Result<i64, i64>) -> i64 {
    body().unwrap_or_else(|error| error)
}

/// A result below zero as the error of a body.
pub fn checked(result: i64) -> Result<i64, i64> {
    if result < 0 { Err(result) } else { Ok(result) }
}
