//! See `thinbak_server::fuzzing::maps`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: thinbak_server_fuzz::seeds("maps"), |data: &[u8]| thinbak_server::fuzzing::maps(data));
