//! See `thinbak_server::fuzzing::recovery`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: thinbak_server_fuzz::seeds("recovery"), |data: &[u8]| {
    thinbak_server_fuzz::in_scratch(|dir| thinbak_server::fuzzing::recovery(dir, data));
});
