//! The dm-thin on-disk format, and a thin pool in user space.
//!
//! From the bottom up, each layer knowing only those below it:
//!
//! 1. [`BlockDevice`]: bytes of a file, a device or memory.
//! 2. [`format`](mod@format): 4 KiB metadata blocks, checksummed and self-located.
//! 3. `persistent_data`: transactions by shadowing, space maps with reference counts, B-trees.
//! 4. `thin_metadata`: devices, mapping trees, snapshots, metadata snapshots, commit.
//! 5. [`Pool`]: allocation, copy on write, discards, messages and status of a thin pool.
//!
//! Beside the pool stand the readers ([`metadata_view`], [`delta`], [`dump`], [`check`]), which work on any metadata
//! device, also on that of a live kernel pool, and the [`embedded`] pool, a pool in a directory with a [`registry`].

mod block_device;
pub mod check;
pub mod delta;
pub mod dump;
pub mod embedded;
pub mod format;
pub mod metadata_view;
mod persistent_data;
mod pool;
pub mod registry;
mod text;
mod thin_metadata;

pub use self::block_device::{
    Access, BlockDevice, CrashReplay, Fate, Fault, FaultDevice, FaultLog, FileDevice, IoEvent, IoKind,
    MemoryDevice, Remains, crash_image,
};
pub use self::embedded::{
    Base, BaseNotProven, CreateOptions, EmbeddedError, EmbeddedPool, ErrorClass, ExternalOrigin, Kind,
    MsnapGuard, NotProven, Point, Volume,
};
pub use self::format::{
    BlockSize, DataBlock, DeviceDetails, DeviceId, DeviceInfo, MetadataBlock, MetadataError, VirtualBlock,
};
pub use self::metadata_view::{Change, ChangeKind, MetadataView, Roots, ViewError};
pub use self::pool::{
    DiscardMode, Features, MappedRun, Operation, Pool, PoolError, PoolMode, PoolStatus, PoolTable, Thin,
};
pub use self::registry::Role;
