//! See `thinbak_server::fuzzing::packs`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: thinbak_server_fuzz::seeds("packs"), |data: &[u8]| thinbak_server::fuzzing::packs(data));
