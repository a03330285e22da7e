//! Storing the shape of a pool.

use std::sync::Arc;

use bytes::Bytes;
use thinbak_proto::{
    Failed, FailureKind, SHAPE_VOLUME,
    v1::{
        self, BackupBegin, GenerationSelector, GetGenerationRequest, VolumeName, generation_selector::Which,
    },
};

use super::{Shape, derived};
use crate::{
    pools::{ThinPool, blocking, now_ms},
    repository_client::RepositoryConnection,
    sink::{Commit, GenerationSink},
    stream::{BATCH_LEN, Content, Extent, Sink as _},
};

/// Stores what a pool looks like, if that is not what is stored already.
pub(crate) async fn store(
    connection: &RepositoryConnection,
    host: &str,
    pool: &Arc<dyn ThinPool>,
) -> Result<(), Failed> {
    let (engine, of_host) = (Arc::clone(pool), host.to_owned());
    let shape = blocking(move || {
        let (info, parts) = (engine.info()?, engine.parts()?);
        Ok(Shape::of(&of_host, engine.uuid(), &info, parts))
    })
    .await?;
    let name = format!("{host}/{}/{SHAPE_VOLUME}", pool.name());
    let identity = shape.identity()?.to_string();
    if stored(connection, &name).await?.is_some_and(|point| point.identity == identity) {
        return Ok(());
    }
    let bytes = Bytes::from(shape.encode()?);
    let document = Document { name, identity, size_bytes: bytes.len() as u64 };
    let mut sending = document.begin(connection, pool.as_ref()).await?;
    for piece in bytes.chunks(BATCH_LEN) {
        sending.add(bytes.slice_ref(piece)).await?;
    }
    sending.commit().await
}

/// What is stored of a pool beside its volumes.
pub(super) struct Document {
    /// In the repository.
    pub(super) name: String,
    /// Of what it tells.
    pub(super) identity: String,
    /// A multiple of a sector.
    pub(super) size_bytes: u64,
}

impl Document {
    /// Begins to send it.
    pub(super) async fn begin(
        self,
        connection: &RepositoryConnection,
        pool: &dyn ThinPool,
    ) -> Result<Sending, Failed> {
        let begin = BackupBegin {
            // The same for each pool that ever has the name: only an admin's token lets another volume adopt one.
            volume_uuid: derived("thinbak document", &[self.name.as_bytes()]).to_string(),
            volume_name: self.name,
            size_bytes: self.size_bytes,
            point: Some(v1::Point {
                identity: self.identity,
                pool_uuid: pool.uuid().to_string(),
                created_at_ms: now_ms(),
                size_bytes: self.size_bytes,
                block_bytes: pool.block_bytes(),
                ..v1::Point::default()
            }),
            ..BackupBegin::default()
        };
        Ok(Sending { sink: GenerationSink::begin(connection.ingest(), begin).await?, offset: 0 })
    }
}

/// A document on its way.
pub(super) struct Sending {
    sink: GenerationSink,
    offset: u64,
}

impl Sending {
    /// Sends the next piece: [`BATCH_LEN`] bytes, or what is left.
    pub(super) async fn add(&mut self, piece: Bytes) -> Result<(), Failed> {
        let (offset, len) = (self.offset, piece.len() as u64);
        self.offset = offset.saturating_add(len);
        self.sink.apply(vec![Extent { offset, content: Content::Data(piece) }]).await
    }

    /// Makes it visible.
    pub(super) async fn commit(mut self) -> Result<(), Failed> {
        self.sink.finish().await?;
        match self.sink.commit().await? {
            Commit::Done { .. } => Ok(()),
            _ => Err(Failed::new(FailureKind::Failed, "the server found damage while it was stored")),
        }
    }
}

/// The moment that the newest stored shape is of.
async fn stored(connection: &RepositoryConnection, name: &str) -> Result<Option<v1::Point>, Failed> {
    let request = GetGenerationRequest {
        volume: Some(VolumeName { name: name.to_owned(), host: String::new() }),
        selector: Some(GenerationSelector { which: Some(Which::Latest(true)) }),
    };
    match connection.repository().get_generation(request).await.map_err(Failed::from) {
        Ok(generation) => Ok(generation.into_inner().point),
        Err(failed) if failed.kind == FailureKind::NotFound => Ok(None),
        Err(failed) => Err(failed),
    }
}
