//! Helpers of the tests that cross crates: running the built programs, making volumes with known
//! content, asking the independent judges.

mod content;
mod limits;
mod metadata_image;
mod mounts;
mod programs;
mod scratch;
mod timed;
mod world;

pub use content::{Mix, changed_copy, import, write_changes, write_mix};
pub use limits::{Limits, measure, threads};
pub use metadata_image::{Changed, Layout, MetadataImage, Written};
pub use mounts::{Mounted, fill};
pub use programs::{Outcome, Program, Running, ServerProcess, json_lines, program, spawn, summary_of};
pub use scratch::{Scratch, hash_file, seed, thin_check};
pub use timed::{Cost, Timed, load, machine, peak_rss_of, setting, timed};
pub use world::{BLOCK, Model, OpenPool, Way, World, metadata_of, number, text};
