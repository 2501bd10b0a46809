//! Conversions between widths that cannot lose anything on the one platform there is: 64-bit x86.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("talon is for x86-64 only");

/// A `u64` as a `usize` of the same width.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits here")]
pub const fn to_usize(value: u64) -> usize {
    value as usize
}

/// The lower half.
#[must_use]
pub const fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}
