//! A pool's metadata as text: dump and delta.

use std::{io, path::Path, sync::Arc};

use bytes::Bytes;
use thinbak_engine::{
    BlockDevice, DeviceId, FileDevice,
    delta::{DeltaOptions, delta_json, delta_xml},
    dump::{TextError, dump_json, dump_xml},
    metadata_view::{MetadataView, Roots},
};
use thinbak_proto::{
    Failed, FailureKind,
    v1::{DeltaRequest, DumpRequest, MetadataSource, TextChunk, TextFormat, metadata_source::Source},
};
use tokio::sync::mpsc;
use tonic::Status;

use super::{
    Frozen, PoolManager, ThinPool,
    failure::{of_text, of_view},
};

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
    let (frozen, _pool) = view(manager, request.source.as_ref())?;
    let view = &frozen.view;
    let device = request.device_id.map(device_id).transpose()?;
    send_text(sender, |out| match request.format() {
        TextFormat::Xml => dump_xml(view, device, out),
        TextFormat::Json => dump_json(view, device, out),
    })
}

fn delta_to(manager: &PoolManager, request: &DeltaRequest, sender: &Sender) -> Result<(), Failed> {
    let (frozen, pool) = view(manager, request.source.as_ref())?;
    let view = &frozen.view;
    let from = device_called(pool.as_deref(), &request.from)?;
    let to = device_called(pool.as_deref(), &request.to)?;
    let options = DeltaOptions { data_blocks: request.verbose, changes_only: request.changes_only };
    send_text(sender, |out| match request.format() {
        TextFormat::Xml => delta_xml(view, from, to, options, out),
        TextFormat::Json => delta_json(view, from, to, options, out),
    })
}

/// The metadata asked for.
fn view(
    manager: &PoolManager,
    source: Option<&MetadataSource>,
) -> Result<(Frozen, Option<Arc<dyn ThinPool>>), Failed> {
    let roots = match source {
        Some(MetadataSource { metadata_snap: true, .. }) => Roots::MetadataSnap,
        _ => Roots::Live,
    };
    match source.and_then(|source| source.source.as_ref()) {
        Some(Source::Pool(spec)) => {
            let pool = manager.open(spec)?;
            Ok((pool.view(roots)?, Some(pool)))
        }
        Some(Source::MetadataPath(path)) => {
            let device: Arc<dyn BlockDevice> = Arc::new(open_file(Path::new(path))?);
            Ok((Frozen::unheld(MetadataView::open(device, roots).map_err(of_view)?), None))
        }
        None => Err(Failed::new(FailureKind::Usage, "no pool or metadata is named")),
    }
}

pub(super) fn open_file(path: &Path) -> Result<FileDevice, Failed> {
    if !path.is_absolute() {
        return Err(Failed::new(
            FailureKind::Usage,
            format!("the path {} of metadata must be absolute", path.display()),
        ));
    }
    FileDevice::open_direct(path).map_err(|error| {
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
fn device_called(pool: Option<&dyn ThinPool>, name: &str) -> Result<DeviceId, Failed> {
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
    Ok(volume?.device)
}

fn send_text(
    sender: &Sender,
    write: impl FnOnce(&mut dyn io::Write) -> Result<(), TextError>,
) -> Result<(), Failed> {
    match write(&mut Pieces { sender }) {
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

/// Sends what is written, as it is written: in large pieces. Waits for the reader.
struct Pieces<'a> {
    sender: &'a Sender,
}

impl io::Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = Bytes::copy_from_slice(bytes);
        match self.sender.blocking_send(Ok(TextChunk { text })) {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
