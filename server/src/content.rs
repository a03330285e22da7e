//! Reading: the Content service, and what every reader of chunks does.

mod hold;
mod plain;

use std::{collections::HashSet, sync::Arc};

use futures::{Stream, StreamExt as _, stream};
use thinbak_proto::{ChunkId, Failed, FailureKind, ID_LEN, NodeId, v1};
use tonic::{Request, Response, Status};

pub(crate) use plain::{PlainError, Unpacker, Unpackers};

use crate::{
    repository::Repository,
    store::{Kind, StoreError, StoredRecord},
};

/// Ids in one request.
const MAX_IDS: usize = 1024;
/// Chunks are fetched in groups of at most this many plain bytes (one chunk if that is larger).
pub(crate) const READ_GROUP_BYTES: u32 = 4 << 20;
/// Map nodes are fetched in groups of this many, 1 MiB at most.
const NODE_GROUP: usize = 256;

/// Chunks to fetch at a time.
pub(crate) fn read_group(chunk_bytes: u32) -> usize {
    usize::try_from(READ_GROUP_BYTES / chunk_bytes.max(1)).unwrap_or(1).max(1)
}

pub(crate) struct ContentService(pub(crate) Arc<Repository>);

type Answers<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl v1::content_server::Content for ContentService {
    type GetNodesStream = Answers<v1::NodeData>;
    type GetChunksStream = Answers<v1::ChunkData>;
    type HoldStream = Answers<v1::HoldEvent>;

    async fn get_nodes(
        &self,
        request: Request<v1::GetNodesRequest>,
    ) -> Result<Response<Self::GetNodesStream>, Status> {
        let ids = ids_of(request.into_inner().ids)?;
        let answers = answers(Arc::clone(&self.0), ids, NODE_GROUP, node_of);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get_chunks(
        &self,
        request: Request<v1::GetChunksRequest>,
    ) -> Result<Response<Self::GetChunksStream>, Status> {
        let mut seen = HashSet::new();
        let ids = ids_of(request.into_inner().ids)?.into_iter().filter(|id| seen.insert(*id)).collect();
        let answers = answers(Arc::clone(&self.0), ids, read_group(self.0.chunk_bytes()), chunk_of);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn hold(&self, request: Request<v1::HoldRequest>) -> Result<Response<Self::HoldStream>, Status> {
        let events = hold::hold(&self.0, request.into_inner()).await?;
        Ok(Response::new(Box::pin(events)))
    }
}

fn ids_of(ids: Vec<bytes::Bytes>) -> Result<Vec<[u8; ID_LEN]>, Failed> {
    if ids.len() > MAX_IDS {
        let message = format!("{} ids in one request, where {MAX_IDS} are allowed", ids.len());
        return Err(Failed::new(FailureKind::Usage, message));
    }
    ids.iter().map(|id| parse_id(id)).collect()
}

/// An id as it came over the wire.
pub(crate) fn parse_id(id: &[u8]) -> Result<[u8; ID_LEN], Failed> {
    ChunkId::try_from(id)
        .map(|id| *id.as_bytes())
        .map_err(|error| Failed::new(FailureKind::Usage, error.to_string()))
}

/// Fetches group after group, as fast as the client takes them.
fn answers<T: Send + 'static>(
    repository: Arc<Repository>,
    ids: Vec<[u8; ID_LEN]>,
    group: usize,
    answer: fn([u8; ID_LEN], Fetched) -> Result<T, Failed>,
) -> impl Stream<Item = Result<T, Status>> + Send {
    let groups: Vec<Vec<[u8; ID_LEN]>> = ids.chunks(group).map(<[_]>::to_vec).collect();
    stream::iter(groups)
        .then(move |ids| {
            let repository = Arc::clone(&repository);
            async move {
                // Held until the client has taken the group: it stands for the group's memory.
                let permit = Arc::clone(&repository.readers).acquire_owned().await;
                let answers: Vec<Result<T, Status>> = match repository.store.get_many(ids.clone()).await {
                    Ok(found) => ids
                        .into_iter()
                        .zip(found)
                        .map(|(id, found)| answer(id, found).map_err(Status::from))
                        .collect(),
                    Err(error) => vec![Err(Failed::from(error).into())],
                };
                stream::iter(answers).map(move |answer| {
                    let _permit = &permit;
                    answer
                })
            }
        })
        .flatten()
}

type Fetched = Option<Result<StoredRecord, StoreError>>;

fn node_of(id: [u8; ID_LEN], found: Fetched) -> Result<v1::NodeData, Failed> {
    let id = NodeId::from_bytes(id);
    let record = found.transpose()?.filter(|record| record.kind == Kind::MapNode);
    let record = record.ok_or_else(|| gone(format!("map node {id} is not in the repository")))?;
    Ok(v1::NodeData { id: id.to_bytes(), node: record.stored })
}

fn chunk_of(id: [u8; ID_LEN], found: Fetched) -> Result<v1::ChunkData, Failed> {
    let id = ChunkId::from_bytes(id);
    let record = found.transpose()?.filter(|record| record.kind == Kind::Chunk);
    let record = record.ok_or_else(|| gone(format!("chunk {id} is not in the repository")))?;
    let StoredRecord { codec, plain_len, stored, .. } = record;
    Ok(v1::ChunkData { id: id.to_bytes(), codec: u32::from(codec), plain_len, stored })
}

/// Ids are learnt from generations, and all that a generation names must be there.
fn gone(message: String) -> Failed {
    Failed::new(FailureKind::Damaged, message).with_hint("`thinbak verify` tells what is affected")
}
