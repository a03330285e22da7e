//! A pool's metadata as text: dump and delta.

use std::{io, path::Path, sync::Arc};

use bytes::{Bytes, BytesMut};
use thinbak_engine::{
    Access, BlockDevice, DeviceId, FileDevice,
    delta::{delta_json, delta_xml},
    dump::{TextError, dump_json, dump_xml},
    embedded::EmbeddedPool,
    metadata_view::{MetadataView, Roots},
};
use thinbak_proto::{
    Failed, FailureKind,
    v1::{DeltaRequest, DumpRequest, MetadataSource, TextChunk, TextFormat, metadata_source::Source},
};
use tokio::sync::mpsc;
use tonic::Status;

use super::{
    PoolManager,
    failure::{failed, of_text, of_view},
};

const CHUNK_BYTES: usize = 64 * 1024;

type Sender = mpsc::Sender<Result<TextChunk, Status>>;

/// Sends the text, then the failure if there is one. Blocking.
pub(super) fn dump(manager: &PoolManager, request: &DumpRequest, sender: Sender) {
    let outcome = dump_to(manager, request, &sender);
    end(&sender, outcome);
}

/// As [`dump`], for the difference of two devices.
pub(super) fn delta(manager: &PoolManager, request: &DeltaRequest, sender: Sender) {
    let outcome = delta_to(manager, request, &sender);
    end(&sender, outcome);
}

fn dump_to(manager: &PoolManager, request: &DumpRequest, sender: &Sender) -> Result<(), Failed> {
    let (view, _pool) = view(manager, request.source.as_ref())?;
    let device = request.device_id.map(device_id).transpose()?;
    send_text(sender, |out| match request.format() {
        TextFormat::Xml => dump_xml(&view, device, out),
        TextFormat::Json => dump_json(&view, device, out),
    })
}

fn delta_to(manager: &PoolManager, request: &DeltaRequest, sender: &Sender) -> Result<(), Failed> {
    let (view, pool) = view(manager, request.source.as_ref())?;
    let from = device_called(pool.as_deref(), &request.from)?;
    let to = device_called(pool.as_deref(), &request.to)?;
    send_text(sender, |out| match request.format() {
        TextFormat::Xml => delta_xml(&view, from, to, request.verbose, out),
        TextFormat::Json => delta_json(&view, from, to, request.verbose, out),
    })
}

/// The metadata asked for. Of a pool the last commit is shown, after one.
fn view(
    manager: &PoolManager,
    source: Option<&MetadataSource>,
) -> Result<(MetadataView, Option<Arc<EmbeddedPool>>), Failed> {
    let roots = match source {
        Some(MetadataSource { metadata_snap: true, .. }) => Roots::MetadataSnap,
        _ => Roots::Live,
    };
    let (device, pool): (Arc<dyn BlockDevice>, _) = match source.and_then(|source| source.source.as_ref()) {
        Some(Source::Pool(spec)) => {
            let pool = manager.open(spec)?;
            pool.flush().map_err(failed)?;
            (Arc::clone(pool.pool().metadata_device()), Some(pool))
        }
        Some(Source::MetadataPath(path)) => (Arc::new(open_file(Path::new(path))?), None),
        None => return Err(Failed::new(FailureKind::Usage, "no pool or metadata is named")),
    };
    Ok((MetadataView::open(device, roots).map_err(of_view)?, pool))
}

fn open_file(path: &Path) -> Result<FileDevice, Failed> {
    if !path.is_absolute() {
        return Err(Failed::new(
            FailureKind::Usage,
            format!("the path {} of metadata must be absolute", path.display()),
        ));
    }
    FileDevice::open(path, Access::ReadOnly).map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => FailureKind::NotFound,
            io::ErrorKind::PermissionDenied => FailureKind::Denied,
            _ => FailureKind::Failed,
        };
        Failed::new(kind, format!("open metadata {}: {error}", path.display()))
    })
}

fn device_id(id: u64) -> Result<DeviceId, Failed> {
    DeviceId::new(id).map_err(|error| Failed::new(FailureKind::Usage, error.to_string()))
}

/// A device id (`7` or `#7`), VOLUME or VOLUME@SNAP; a `POOL/` in front is taken off.
fn device_called(pool: Option<&EmbeddedPool>, name: &str) -> Result<DeviceId, Failed> {
    if let Ok(id) = name.strip_prefix('#').unwrap_or(name).parse() {
        return device_id(id);
    }
    let Some(pool) = pool else {
        return Err(Failed::new(
            FailureKind::Usage,
            format!("`{name}`: devices of a metadata file have no names, only ids"),
        ));
    };
    let name = name.rsplit('/').next().unwrap_or(name);
    let volume = match name.split_once('@') {
        Some((volume, snapshot)) => pool.snapshot(volume, snapshot),
        None => pool.volume(name),
    };
    Ok(volume.map_err(failed)?.device)
}

fn send_text(
    sender: &Sender,
    write: impl FnOnce(&mut dyn io::Write) -> Result<(), TextError>,
) -> Result<(), Failed> {
    let mut out = ChunkWriter { sender, buffer: BytesMut::new() };
    match write(&mut out).and_then(|()| io::Write::flush(&mut out).map_err(TextError::Write)) {
        // Nobody listens any more: nothing to tell.
        Err(TextError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(of_text),
    }
}

fn end(sender: &Sender, outcome: Result<(), Failed>) {
    if let Err(failed) = outcome {
        let _ = sender.blocking_send(Err(failed.into()));
    }
}

/// Sends what is written in pieces, waiting for the reader.
struct ChunkWriter<'a> {
    sender: &'a Sender,
    buffer: BytesMut,
}

impl ChunkWriter<'_> {
    fn send(&mut self, text: Bytes) -> io::Result<()> {
        self.sender
            .blocking_send(Ok(TextChunk { text }))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl io::Write for ChunkWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let text = self.buffer.split().freeze();
        self.send(text)
    }
}
