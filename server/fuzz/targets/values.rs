//! See `thinbak_server::fuzzing::values`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: thinbak_server_fuzz::seeds("values"), |data: &[u8]| thinbak_server::fuzzing::values(data));
