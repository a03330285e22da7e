//! See `thinbak_server_fuzz::requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: thinbak_server_fuzz::seeds("requests"), |data: &[u8]| {
    thinbak_server_fuzz::requests(data);
});
