//! Where change streams go.

mod compress;
mod file;
mod generation;
mod pack_chunks;
mod session;
mod volume;

pub use compress::chunk_compressor;
pub use file::FileSink;
pub use generation::{GenerationSink, GenerationStats};
pub use session::Commit;
pub use volume::VolumeSink;
