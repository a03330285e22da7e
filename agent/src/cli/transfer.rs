//! `thinbak volume import` and `export`: stdin and stdout as the other end.

mod input;
mod output;

use std::io::{self, IsTerminal as _};

use thinbak_proto::{
    Failed, FailureKind,
    v1::{
        ExportRequest, ImportRequest, ImportTarget, export_response, extent::Content,
        import_request::Message, pools_client::PoolsClient,
    },
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use self::{input::Input, output::Sparse};
use super::{Context, grammar::VolumeArg, stop::Stop, volume};
use crate::{channel::BoxedChannel, output::human};

/// Extents that may wait for the service.
const QUEUED_EXTENTS: usize = 4;

pub(super) async fn import(
    context: &Context,
    mut pools: PoolsClient<BoxedChannel>,
    to: VolumeArg,
    size: Option<u64>,
) -> Result<(), Stop> {
    let input = Input::stdin().map_err(reading)?;
    let name = format!("{}/{}", to.pool, to.volume);
    let size_bytes = size.or(input.size_bytes()).unwrap_or_default();
    let target = ImportTarget { pool: to.pool.clone(), volume: to.volume, size_bytes };
    let (sender, receiver) = mpsc::channel(QUEUED_EXTENTS);
    let (fail, failed) = oneshot::channel();
    let mut bars = context.output.progress();
    // A thread of its own: a read of a terminal or pipe cannot be interrupted, and nothing waits for it.
    std::thread::spawn(move || {
        let first = ImportRequest { message: Some(Message::Target(target)) };
        let send = |request| sender.blocking_send(request).is_ok();
        let read = match send(first) {
            true => input.read(&mut |extent| {
                bars.update(&name, "import", extent.offset_bytes, size_bytes);
                send(ImportRequest { message: Some(Message::Extent(extent)) })
            }),
            false => Ok(()),
        };
        if let Err(error) = read {
            // The sender goes along, so that the stream does not end as if the input had: the call is dropped.
            let _ = fail.send((error, sender));
        }
    });
    let answer = tokio::select! {
        answer = pools.import_volume(ReceiverStream::new(receiver)) => answer?,
        Ok((error, _stream)) = failed => return Err(reading(error).into()),
    };
    let made = answer.into_inner();
    let what =
        format!("is imported: {}, {} mapped", human::bytes(made.size_bytes), human::bytes(made.mapped_bytes));
    volume::tell(context, &to.pool, &what, &[made])
}

fn reading(error: io::Error) -> Failed {
    Failed::new(FailureKind::Failed, format!("read stdin: {error}"))
}

pub(super) async fn export(
    context: &Context,
    mut pools: PoolsClient<BoxedChannel>,
    from: VolumeArg,
) -> Result<(), Stop> {
    if io::stdout().is_terminal() {
        return Err(Failed::new(FailureKind::Usage, "a volume's content is not written to a terminal")
            .with_hint("redirect it: thinbak volume export POOL/VOLUME > FILE")
            .into());
    }
    let name = format!("{}/{}", from.pool, from.volume);
    let request =
        ExportRequest { pool: from.pool, volume: from.volume, snapshot: from.snapshot.unwrap_or_default() };
    let mut extents = pools.export_volume(request).await?.into_inner();
    let Some(export_response::Message::Header(header)) =
        extents.message().await?.and_then(|first| first.message)
    else {
        return Err(protocol("an export does not begin with its header"));
    };
    let mut out = Sparse::stdout(header.size_bytes)?;
    let mut bars = context.output.progress();
    while let Some(response) = extents.message().await? {
        let Some(export_response::Message::Extent(extent)) = response.message else {
            return Err(protocol("an export has more than one header"));
        };
        if let Some(Content::Data(data)) = extent.content {
            out.write(extent.offset_bytes, &data)?;
        }
        bars.update(&name, "export", extent.offset_bytes, header.size_bytes);
    }
    Ok(out.finish()?)
}

fn protocol(message: &str) -> Stop {
    Failed::new(FailureKind::Failed, message).into()
}
