//! Why an embedded pool did not do what it was asked.

mod class;

use std::io;
use std::path::PathBuf;

use uuid::Uuid;

use super::names::NameError;
use super::point::BaseNotProven;
use crate::format::{DeviceId, MetadataBlock, MetadataError};
use crate::metadata_view::ViewError;
use crate::pool::PoolError;
use crate::registry::{RegistryError, TransactError};

pub use self::class::ErrorClass;

/// Why an embedded pool did not do what it was asked. Each prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Another process, or another handle of this one, has the pool or one of its devices open.
    #[error("{} is in use by another process", path.display())]
    Busy {
        /// What is locked.
        path: PathBuf,
    },
    /// There is no pool in the directory.
    #[error("{} holds no pool", dir.display())]
    NoPool {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory holds a pool already.
    #[error("{} holds a pool already", dir.display())]
    PoolExists {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory holds something else.
    #[error("{} is not empty: it holds `{entry}`", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// One of the things in it.
        entry: String,
    },
    /// A file of the pool is gone.
    #[error("the pool's file {} is missing", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The pool was made by a newer version.
    #[error("{} has format {found}, newer than {supported}", path.display())]
    NewerFormat {
        /// The description.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that is understood.
        supported: u32,
    },
    /// The description of the pool makes no sense.
    #[error("{} is damaged: {source}", path.display())]
    Description {
        /// The description.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The description and the metadata do not belong together.
    #[error("the pool's description says blocks of {described} bytes, its metadata says {found}")]
    OtherBlockSize {
        /// In the description.
        described: u64,
        /// In the metadata.
        found: u64,
    },
    /// The metadata are those of another pool.
    #[error("the metadata are those of pool {found}, not of {expected}")]
    OtherMetadata {
        /// In the description.
        expected: Uuid,
        /// In the superblock.
        found: Uuid,
    },
    /// The registry knows a device that metadata without an identity do not have.
    #[error(
        "the metadata lack thin device {device} of the pool's registry: they may be those of another pool"
    )]
    DeviceMissing {
        /// The first of them.
        device: DeviceId,
    },
    /// Nothing is where the external origin of a volume was.
    #[error("the external origin {} of `{volume}` is missing", path.display())]
    OriginMissing {
        /// The volume.
        volume: String,
        /// Where the origin was.
        path: PathBuf,
    },
    /// An external origin has lost its end.
    #[error("the external origin {} of `{volume}` has {found} bytes, {recorded} when the volume was created", path.display())]
    OriginShorter {
        /// The volume.
        volume: String,
        /// The origin.
        path: PathBuf,
        /// Its size when the volume was created.
        recorded: u64,
        /// Its size now.
        found: u64,
    },
    /// A path that cannot be that of an external origin.
    #[error("{} cannot be an external origin: {reason}", path.display())]
    OriginPath {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// An external origin cannot be read.
    #[error("the external origin {} of `{volume}` cannot be read: {source}", path.display())]
    Origin {
        /// The volume.
        volume: String,
        /// The origin.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The metadata device is not blank.
    #[error("the first 4 KiB of {} are not zero: it may hold data of somebody else", path.display())]
    MetadataNotBlank {
        /// The device.
        path: PathBuf,
    },
    /// A device has another size than the one asked for.
    #[error("{} has {found} bytes, {wanted} were asked for", path.display())]
    DeviceSize {
        /// The device.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The size asked for.
        wanted: u64,
    },
    /// Data and metadata are one.
    #[error("{} cannot be both data and metadata", path.display())]
    SameDevice {
        /// The device.
        path: PathBuf,
    },
    /// A size that is zero, too large or no multiple.
    #[error("{size} bytes is no size for this: {}", size_advice(*.multiple_of, *.next))]
    Size {
        /// The size asked for.
        size: u64,
        /// It must be a multiple of this.
        multiple_of: u64,
        /// The next larger size that is right, if there is one.
        next: Option<u64>,
    },
    /// A device of the pool would become smaller.
    #[error("a device of {present} bytes cannot shrink to {wanted}")]
    PoolShrink {
        /// Its size.
        present: u64,
        /// The size asked for.
        wanted: u64,
    },
    /// A name that cannot be given.
    #[error("`{name}` is no name: {source}")]
    Name {
        /// The name.
        name: String,
        /// The rule it breaks.
        source: NameError,
    },
    /// No volume has this name.
    #[error("there is no volume `{name}`")]
    NoSuchVolume {
        /// The name.
        name: String,
    },
    /// The volume has no snapshot of this name.
    #[error("there is no snapshot `{volume}@{snapshot}`")]
    NoSuchSnapshot {
        /// The volume.
        volume: String,
        /// The snapshot.
        snapshot: String,
    },
    /// The volume was removed or replaced since it was looked up.
    #[error("`{name}` (device {device}) is no longer there: it was removed or replaced")]
    Stale {
        /// Its name then.
        name: String,
        /// Its device then.
        device: DeviceId,
    },
    /// No base is recorded.
    #[error("no base of volume {volume} is recorded for repository {repository}")]
    NoSuchBase {
        /// The repository.
        repository: Uuid,
        /// The volume.
        volume: Uuid,
    },
    /// The name is taken.
    #[error("`{name}` exists already")]
    Exists {
        /// A volume, or VOLUME@SNAP.
        name: String,
    },
    /// Snapshots depend on the volume's name.
    #[error("volume `{name}` has {snapshots} snapshots")]
    HasSnapshots {
        /// The volume.
        name: String,
        /// How many, bases not counted.
        snapshots: usize,
    },
    /// What was given is not of the kind that the call works on.
    #[error("`{name}` is not {wanted}")]
    WrongKind {
        /// What was given.
        name: String,
        /// What is wanted.
        wanted: &'static str,
    },
    /// The base does not describe the snapshot that is kept.
    #[error("the base describes another snapshot than `{name}`")]
    OtherBase {
        /// The snapshot.
        name: String,
    },
    /// The base is not proven.
    #[error(transparent)]
    BaseNotProven(#[from] BaseNotProven),
    /// The volume is read-only.
    #[error("`{name}` is read-only")]
    ReadOnly {
        /// Its name.
        name: String,
    },
    /// An access beyond the end.
    #[error("{length} bytes at offset {offset} reach beyond the {size} bytes of `{name}`")]
    OutOfBounds {
        /// The volume.
        name: String,
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// The volume's size.
        size: u64,
    },
    /// All device ids were given.
    #[error("all {} device ids of the pool were used", u64::from(DeviceId::MAX) + 1)]
    IdsExhausted,
    /// The pool's snapshot clock is near its end.
    #[error("the pool has counted {time} snapshots of at most {limit}: migrate its volumes to a new pool")]
    ClockExhausted {
        /// The clock.
        time: u64,
        /// Where snapshots end.
        limit: u64,
    },
    /// A metadata snapshot is held.
    #[error("a metadata snapshot of the pool is held {} (root {root})", if *.ours { "by thinbak" } else { "by somebody else" })]
    MsnapHeld {
        /// Its root.
        root: MetadataBlock,
        /// Whether thinbak reserved it.
        ours: bool,
    },
    /// A running job uses the metadata snapshot.
    #[error("the metadata snapshot of the pool is in use by a running job (root {root})")]
    MsnapInUse {
        /// Its root.
        root: MetadataBlock,
    },
    /// No metadata snapshot is held.
    #[error("the pool holds no metadata snapshot")]
    NoMsnap,
    /// A message that would bring pool and registry out of step.
    #[error("the message `{message}` would bring the pool and its registry out of step")]
    MessageRefused {
        /// The message.
        message: String,
    },
    /// The pool did not take a message.
    #[error("the message was refused: {source}{}", errno_text(source))]
    Message {
        /// What the pool said.
        source: PoolError,
    },
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The pool failed.
    #[error("{attempt}: {source}")]
    Pool {
        /// What was attempted.
        attempt: &'static str,
        /// What the pool said.
        source: PoolError,
    },
    /// Metadata is damaged or cannot be read.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// Metadata cannot be viewed.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A file could not be worked on.
    #[error("cannot {attempt} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl EmbeddedError {
    /// For `map_err` on the result of a pool's operation.
    pub(super) fn pool(attempt: &'static str) -> impl FnOnce(PoolError) -> Self {
        move |source| Self::Pool { attempt, source }
    }

    /// For `map_err` on the result of work on a file.
    pub(super) fn io(attempt: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { attempt, path, source }
    }
}

impl From<TransactError> for EmbeddedError {
    fn from(error: TransactError) -> Self {
        match error {
            TransactError::Registry(error) => Self::Registry(error),
            TransactError::Pool { attempt, source } => Self::Pool { attempt, source },
        }
    }
}

fn size_advice(multiple_of: u64, next: Option<u64>) -> String {
    match next {
        Some(next) => format!("it must be a multiple of {multiple_of}, {next} is the next"),
        None => "it is too large".to_owned(),
    }
}

/// What the kernel answers in the same case, in parentheses.
fn errno_text(error: &PoolError) -> String {
    let Some(errno) = error.errno() else { return String::new() };
    let text = io::Error::from(errno).to_string();
    let words = text.split(" (os error").next().unwrap_or_default();
    format!(" ({words})")
}
