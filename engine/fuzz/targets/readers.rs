//! Images that may hold anything, read by everything that reads metadata.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use thinbak_engine_fuzz::{edits::edited, exercise::read};

fuzz_target!(|data: &[u8]| {
    let (device, _) = edited(data);
    read(&Arc::new(device));
});
