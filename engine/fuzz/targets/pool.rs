//! Images that may hold anything, opened as a pool and changed.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use thinbak_engine_fuzz::{edits::edited, exercise::operate};

fuzz_target!(|data: &[u8]| {
    let (device, mut rest) = edited(data);
    operate(Arc::new(device), &mut rest);
});
