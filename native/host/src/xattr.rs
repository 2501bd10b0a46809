//! Extended attributes of a path itself, not of what a link points to: xattr(7).

use crate::call::{Path, bytes, narrow, out_bytes, result, run};

/// The names that `path` has, each with a NUL behind it: llistxattr(2). The bytes of them all. ERANGE: `names` is too
/// small, 64 KiB never is (XATTR_LIST_MAX); EOPNOTSUPP: this file system has none.
///
/// # Safety
/// Both pointers are null or valid for their lengths.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_llistxattr(
    path: *const u8,
    path_len: u32,
    names: *mut u8,
    names_len: u32,
) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise.
        let (path, names) = unsafe { (Path::new(path, path_len)?, out_bytes(names, names_len)?) };
        // SAFETY: the path ends in NUL; the slice is valid for its length.
        Ok(result(unsafe {
            libc::syscall(
                libc::SYS_llistxattr,
                path.as_ptr(),
                names.as_mut_ptr(),
                names.len(),
            )
        }))
    }))
}

/// The value of one of them, whose name ends with its NUL: lgetxattr(2). Its bytes. ENODATA: it has no such attribute;
/// ERANGE: `value` is too small, 64 KiB never is (XATTR_SIZE_MAX). EINVAL: a name without its NUL, or with another.
///
/// # Safety
/// Each pointer is null or valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_lgetxattr(
    path: *const u8,
    path_len: u32,
    name: *const u8,
    name_len: u32,
    value: *mut u8,
    value_len: u32,
) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise.
        let (path, name) = unsafe { (Path::new(path, path_len)?, bytes(name, name_len)?) };
        // SAFETY: the caller's promise.
        let value = unsafe { out_bytes(value, value_len) }?;
        let Ok(name) = core::ffi::CStr::from_bytes_with_nul(name) else {
            return Err(crate::call::error(libc::EINVAL));
        };
        // SAFETY: the path and the name end in NUL; the slice is valid for its length.
        Ok(result(unsafe {
            libc::syscall(
                libc::SYS_lgetxattr,
                path.as_ptr(),
                name.as_ptr(),
                value.as_mut_ptr(),
                value.len(),
            )
        }))
    }))
}
