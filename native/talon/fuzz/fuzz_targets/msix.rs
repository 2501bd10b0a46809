//! See `talon::hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| talon::hostile::run("msix", input));
