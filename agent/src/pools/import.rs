//! A volume's content from extents.
//!
//! They are written to a private head that takes the volume's place when all are there, so a failed or
//! interrupted import leaves nothing, and an existing volume as it was.

use std::sync::Arc;

use thinbak_engine::{Volume, embedded::check_volume_name};
use thinbak_proto::{
    Failed, FailureKind, MAX_PAYLOAD_LEN,
    v1::{Extent, ImportRequest, ImportTarget, VolumeInfo, extent::Content, import_request::Message},
};
use tokio::sync::mpsc;
use tonic::Streaming;

use super::{Need, PoolManager, ThinPool, VolumeLock, blocking, failure::during, volumes};
use crate::volume::PoolVolume;

/// Extents that may wait for the pool.
const QUEUED_EXTENTS: usize = 4;
const SECTOR_BYTES: u64 = 512;

/// What reaches the thread that writes. A queue that ends without `End` was abandoned.
enum Piece {
    Extent(Extent),
    End,
}

/// Takes in a whole stream.
pub(super) async fn run(
    manager: Arc<PoolManager>,
    mut requests: Streaming<ImportRequest>,
) -> Result<VolumeInfo, Failed> {
    let Some(ImportRequest { message: Some(Message::Target(target)) }) = requests.message().await? else {
        return Err(usage("an import must begin with its target"));
    };
    let (sender, receiver) = mpsc::channel(QUEUED_EXTENTS);
    let writing = tokio::spawn(blocking(move || write(&manager, &target, receiver)));
    let forwarded = forward(&mut requests, &sender).await;
    if forwarded.is_ok() {
        // A writer that is gone says itself why.
        let _ = sender.send(Piece::End).await;
    }
    drop(sender);
    let written = writing.await.unwrap_or_else(|error| {
        Err(Failed::new(FailureKind::Failed, format!("an import ended early: {error}")))
    });
    forwarded.and(written)
}

async fn forward(
    requests: &mut Streaming<ImportRequest>,
    sender: &mpsc::Sender<Piece>,
) -> Result<(), Failed> {
    while let Some(request) = requests.message().await? {
        let Some(Message::Extent(extent)) = request.message else {
            return Err(usage("an import has one target, then extents"));
        };
        if sender.send(Piece::Extent(extent)).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn write(
    manager: &PoolManager,
    target: &ImportTarget,
    pieces: mpsc::Receiver<Piece>,
) -> Result<VolumeInfo, Failed> {
    let mut import = Import::begin(manager, target)?;
    let job = manager.jobs().start("import", &format!("{}/{}", target.pool, target.volume));
    let applied = import.apply(pieces, |done| job.update("transfer", done, target.size_bytes));
    let outcome = applied.and_then(|()| import.publish());
    let volume = outcome.inspect_err(|_| give_up(import.pool.as_ref(), &import.head))?;
    volumes::info(import.pool.as_ref(), &volume)
}

struct Import {
    name: String,
    pool: Arc<dyn ThinPool>,
    head: Volume,
    /// The head as a sink writes it; absent when all is written.
    target: Option<PoolVolume>,
    replaces: bool,
    /// Everything before this has been dealt with.
    next: u64,
    _lock: VolumeLock,
}

impl Import {
    fn begin(manager: &PoolManager, target: &ImportTarget) -> Result<Self, Failed> {
        let name = format!("{}/{}", target.pool, target.volume);
        let attempt = || format!("import into {name}");
        let pool = manager.open_for_volume(&target.pool)?;
        let lock = manager.lock_volume(pool.uuid(), &target.volume)?;
        let existing = match pool.volume(&target.volume) {
            Ok(volume) => Some(volume),
            Err(failed) if failed.kind == FailureKind::NotFound => None,
            Err(failed) => return Err(during(attempt)(failed)),
        };
        let size_bytes = match &existing {
            Some(volume) => {
                pool.check_replaceable().map_err(during(attempt))?;
                pool.check_closed(volume).map_err(during(attempt))?;
                refuse_content(pool.as_ref(), volume, &name)?;
                if target.size_bytes > volume.size_bytes {
                    return Err(too_large(&name, volume.size_bytes));
                }
                volume.size_bytes
            }
            None if target.size_bytes == 0 => {
                return Err(usage(format!(
                    "import into {name}: there is no such volume, and the size is unknown"
                ))
                .with_hint("make the volume first, or give --size"));
            }
            None => {
                check_volume_name(&target.volume).map_err(|error| {
                    usage(format!("import into {name}: `{}` is no name: {error}", target.volume))
                })?;
                target.size_bytes.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(target.size_bytes)
            }
        };
        // A volume that is replaced is empty, and so is a snapshot of it.
        let like = existing.as_ref().map(|volume| volume.device);
        let need = Need { passing: like.is_some().into(), ..Need::default() };
        manager.admit(pool.as_ref(), &need).map_err(during(attempt))?;
        let head = pool.create_head(size_bytes, like).map_err(during(attempt))?;
        let target = PoolVolume::open(Arc::clone(&pool), head.clone())
            .inspect_err(|_| give_up(pool.as_ref(), &head))
            .map_err(during(attempt))?;
        Ok(Self {
            name,
            pool,
            head,
            target: Some(target),
            replaces: existing.is_some(),
            next: 0,
            _lock: lock,
        })
    }

    fn apply(&mut self, mut pieces: mpsc::Receiver<Piece>, tell: impl Fn(u64)) -> Result<(), Failed> {
        loop {
            match pieces.blocking_recv() {
                Some(Piece::Extent(extent)) => self.extent(&extent)?,
                Some(Piece::End) => return Ok(()),
                None => {
                    return Err(Failed::new(
                        FailureKind::Failed,
                        format!("import into {} was interrupted", self.name),
                    ));
                }
            }
            tell(self.next);
        }
    }

    /// What reads as zero needs no writing: the head is empty.
    fn extent(&mut self, extent: &Extent) -> Result<(), Failed> {
        let begin = extent.offset_bytes;
        let len = match &extent.content {
            Some(Content::Data(data)) => data.len() as u64,
            Some(Content::ZeroBytes(len) | Content::UnmappedBytes(len)) => *len,
            None => return Err(usage(format!("import into {}: an extent without content", self.name))),
        };
        if begin < self.next {
            return Err(usage(format!(
                "import into {}: an extent at byte {begin} after one that ends at {}",
                self.name, self.next
            )));
        }
        let end = begin.saturating_add(len);
        if end > self.head.size_bytes {
            return Err(too_large(&self.name, self.head.size_bytes));
        }
        if let Some(Content::Data(data)) = &extent.content {
            if data.len() > MAX_PAYLOAD_LEN {
                return Err(usage(format!(
                    "import into {}: an extent of {len} bytes is too large",
                    self.name
                )));
            }
            let target = self.target.as_ref();
            let target = target.ok_or_else(|| usage(format!("import into {}: it has ended", self.name)))?;
            target.write(begin, data).map_err(|failed| Failed {
                message: format!("import into {}: {}", self.name, failed.message),
                ..failed
            })?;
        }
        self.next = end;
        Ok(())
    }

    /// What is written is on stable storage before it has a name, and nobody has the head open any more.
    fn publish(&mut self) -> Result<Volume, Failed> {
        if let Some(target) = self.target.take() {
            target.flush().map_err(during(|| format!("import into {}", self.name)))?;
        }
        let volume = self.name.rsplit('/').next().unwrap_or_default();
        let published = if self.replaces {
            // Others may have written to it meanwhile.
            let present = self.pool.volume(volume)?;
            refuse_content(self.pool.as_ref(), &present, &self.name)?;
            self.pool.replace_volume(volume, &self.head)
        } else {
            self.pool.publish_head(&self.head, volume, &[])
        };
        published.map_err(during(|| format!("import into {}", self.name)))
    }
}

fn give_up(pool: &dyn ThinPool, head: &Volume) {
    if let Err(error) = pool.drop_transient(head) {
        tracing::warn!(device = %head.device, %error, "a private head is left until the pool is opened again");
    }
}

fn refuse_content(pool: &dyn ThinPool, volume: &Volume, name: &str) -> Result<(), Failed> {
    if pool.mapped_bytes(volume)? == 0 && volume.origin.is_none() {
        return Ok(());
    }
    Err(Failed::new(FailureKind::Refused, format!("import into {name}: the volume is not empty"))
        .with_hint("import into a new volume, or remove this one first"))
}

fn too_large(name: &str, size_bytes: u64) -> Failed {
    Failed::new(
        FailureKind::Refused,
        format!("import into {name}: the input is larger than the volume's {size_bytes} bytes"),
    )
    .with_hint("enlarge the volume with: thinbak volume resize")
}

fn usage(message: impl Into<String>) -> Failed {
    Failed::new(FailureKind::Usage, message)
}
