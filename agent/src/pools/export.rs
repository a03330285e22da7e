//! A volume's content as extents, only where it is mapped or lies over an external origin.

use bytes::Bytes;
use thinbak_proto::{
    Failed, MAX_PAYLOAD_LEN,
    v1::{ExportHeader, ExportRequest, ExportResponse, Extent, export_response::Message, extent::Content},
};
use tokio::sync::mpsc;
use tonic::Status;

use super::{PoolManager, failure::during};
use crate::volume::{MappedRange, PoolVolume};

type Sender = mpsc::Sender<Result<ExportResponse, Status>>;

/// Sends the volume, then the failure if there is one. Waits for the reader; ends when it is gone. Blocking.
pub(super) fn run(manager: &PoolManager, request: &ExportRequest, sender: &Sender) {
    if let Err(failed) = send(manager, request, sender) {
        let _ = sender.blocking_send(Err(failed.into()));
    }
}

fn send(manager: &PoolManager, request: &ExportRequest, sender: &Sender) -> Result<(), Failed> {
    let pool = manager.open(&request.pool)?;
    let found = match request.snapshot.as_str() {
        "" => pool.volume(&request.volume),
        snapshot => pool.snapshot(&request.volume, snapshot),
    };
    let attempt = || format!("export from pool {}", request.pool);
    let volume = PoolVolume::open(pool, found.map_err(during(attempt))?).map_err(during(attempt))?;
    let size_bytes = volume.size_bytes();
    let job = manager.jobs().start("export", &format!("{}/{}", request.pool, volume.volume().name));
    let send = |message| sender.blocking_send(Ok(ExportResponse { message: Some(message) })).is_ok();
    if !send(Message::Header(ExportHeader { size_bytes })) {
        return Ok(());
    }
    for range in volume.readable(0, size_bytes) {
        let MappedRange { mut begin, end } = range?;
        while begin < end {
            let len = usize::try_from(end - begin).unwrap_or(usize::MAX).min(MAX_PAYLOAD_LEN);
            let mut data = vec![0; len];
            volume.read(begin, &mut data)?;
            let content = if data.iter().all(|byte| *byte == 0) {
                Content::ZeroBytes(len as u64)
            } else {
                Content::Data(Bytes::from(data))
            };
            if !send(Message::Extent(Extent { offset_bytes: begin, content: Some(content) })) {
                return Ok(());
            }
            begin += len as u64;
            job.update("transfer", begin, size_bytes);
        }
    }
    volume.confirm().map_err(during(attempt))
}
