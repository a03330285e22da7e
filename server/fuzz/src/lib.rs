//! What the fuzz targets share: the first inputs of a corpus, scratch space, and a repository that takes
//! requests of any bytes.

mod corpus;
mod requests;

use std::path::Path;

pub use corpus::seeds;
pub use requests::requests;

/// Memory, where there is such a file system: a fuzzer writes without end.
const SCRATCH: &str = "/dev/shm";

fn scratch() -> tempfile::TempDir {
    let made = tempfile::Builder::new().prefix("thinbak-fuzz-").tempdir_in(SCRATCH);
    made.or_else(|_| tempfile::tempdir()).expect("a scratch directory")
}

/// Runs `work` in one directory that all calls of this thread share.
pub fn in_scratch(work: impl FnOnce(&Path)) {
    thread_local!(static DIR: tempfile::TempDir = scratch());
    DIR.with(|dir| work(dir.path()));
}
