//! The gRPC services of thinbak and what both of their sides must agree on:
//! chunk and map-node ids, the encoding of map nodes, how a failure travels, how lengths of time, moments, schedules and
//! patterns of names are written, how a server is reached and trusted, and what `--json` says of the events of jobs.

mod buffers;
mod codec;
mod duration;
mod failure;
mod id;
pub mod json;
mod map_node;
mod moment;
mod pattern;
mod redacted;
pub mod remote;
mod schedule;

pub use buffers::{Buffer, BufferPool, TRANSFER_ALIGNMENT};
pub use codec::{MessageCodec, MessageEncoder};
pub use duration::{InvalidDuration, format_duration, parse_duration};
pub use failure::{Failed, FailureKind};
pub use id::{ChunkId, ID_LEN, InvalidId, ManifestId, NodeId};
pub use map_node::{
    FAN_OUT, MAX_LEVELS, MAX_NODE_LEN, MapEntry, MapNode, MapNodeError, chunk_count, levels_for,
    span_of_level,
};
pub use moment::{format_local, format_utc};
pub use pattern::{InvalidPattern, Pattern};
pub use schedule::{InvalidCron, InvalidSchedule, When};

/// Generated messages, clients and servers.
#[expect(
    missing_docs,
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    reason = "generated code; the documentation is in the .proto files"
)]
pub mod v1 {
    tonic::include_proto!("thinbak.v1");
}

/// The encoded `FileDescriptorSet` of all services, for gRPC reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/thinbak.bin"));

/// Payload of one message at most, by our own rule: the decoding limit is set above it.
pub const MAX_PAYLOAD_LEN: usize = 1024 * 1024;

/// Decoding limit of every client and server: a payload and what wraps it.
pub const MAX_MESSAGE_LEN: usize = 4 * 1024 * 1024;

/// HTTP/2 frames that a side takes, in bytes: with the 16 KiB that are usual a chunk comes in many pieces, each of which
/// costs a wake-up.
pub const FRAME_LEN: u32 = 256 * 1024;

/// The last part of the name under which a repository has what a pool looked like: HOST/POOL/.shape. No volume of a pool can
/// have a name that begins with a dot.
pub const SHAPE_VOLUME: &str = ".shape";

/// The same of a dump of the pool's metadata: HOST/POOL/.metadata.
pub const METADATA_VOLUME: &str = ".metadata";

/// Whether a name on a server is that of something else than a volume of a pool.
#[must_use]
pub fn is_hidden(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|last| last.starts_with('.'))
}

/// Chunk codec: the stored bytes are the plain bytes.
pub const CODEC_PLAIN: u32 = 0;
/// Chunk codec: one zstd frame.
pub const CODEC_ZSTD: u32 = 1;
