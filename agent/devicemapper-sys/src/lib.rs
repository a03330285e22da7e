//! linux/dm-ioctl.h and the constants of sys/sem.h, as bindgen 0.72 wrote them down on 64-bit Linux.
#![allow(non_camel_case_types, non_snake_case, missing_docs, clippy::all)]

mod ioctl;
mod semaphores;

pub use ioctl::*;
pub use semaphores::*;
