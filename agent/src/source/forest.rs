//! A server of the tests' own: trees and chunks, served honestly or not.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{Stream, stream};
use thinbak_proto::{
    CODEC_PLAIN, ChunkId, FAN_OUT, MapEntry, MapNode, NodeId, levels_for, span_of_level,
    v1::{
        ChunkData, Generation, GetChunksRequest, GetNodesRequest, HoldEvent, HoldRequest, NodeData,
        content_client::ContentClient,
        content_server::{Content, ContentServer},
    },
};
use tonic::{Request, Response, Status, service::Routes};

use crate::channel::{BoxedChannel, in_process};

pub(super) const CHUNK: u32 = 4096;

/// Trees of maps from chunk number to content, all else holes.
#[derive(Default, Clone)]
pub(super) struct Forest {
    pub(super) nodes: HashMap<NodeId, MapNode>,
    pub(super) chunks: HashMap<ChunkId, Vec<u8>>,
    fetched: Arc<AtomicUsize>,
    /// What is answered instead of the honest answers.
    pub(super) lie: Option<fn(Vec<NodeData>) -> Vec<NodeData>>,
    pub(super) chunk_lie: Option<fn(Vec<ChunkData>) -> Vec<ChunkData>>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Content for Forest {
    type GetNodesStream = Answers<NodeData>;
    type GetChunksStream = Answers<ChunkData>;
    type HoldStream = Answers<HoldEvent>;

    async fn get_nodes(
        &self,
        request: Request<GetNodesRequest>,
    ) -> Result<Response<Self::GetNodesStream>, Status> {
        let ids = request.into_inner().ids;
        self.fetched.fetch_add(ids.len(), Ordering::Relaxed);
        let nodes = ids.into_iter().filter_map(|id| {
            let node = self.nodes.get(&NodeId::try_from(&*id).unwrap())?.encode().into();
            Some(NodeData { id, node })
        });
        let nodes: Vec<_> = nodes.collect();
        let nodes = self.lie.map_or_else(|| nodes.clone(), |lie| lie(nodes.clone()));
        Ok(Response::new(Box::pin(stream::iter(nodes.into_iter().map(Ok)))))
    }

    async fn get_chunks(
        &self,
        request: Request<GetChunksRequest>,
    ) -> Result<Response<Self::GetChunksStream>, Status> {
        let chunks = request.into_inner().ids.into_iter().filter_map(|id| {
            let plain = self.chunks.get(&ChunkId::try_from(&*id).unwrap())?.clone();
            let plain_len = u32::try_from(plain.len()).unwrap();
            Some(ChunkData { id, codec: CODEC_PLAIN, plain_len, stored: plain.into() })
        });
        let chunks: Vec<_> = chunks.collect();
        let chunks = self.chunk_lie.map_or_else(|| chunks.clone(), |lie| lie(chunks.clone()));
        Ok(Response::new(Box::pin(stream::iter(chunks.into_iter().map(Ok)))))
    }

    async fn hold(&self, _: Request<HoldRequest>) -> Result<Response<Self::HoldStream>, Status> {
        Err(Status::unimplemented("holds"))
    }
}

impl Forest {
    /// A generation of so many chunks.
    pub(super) fn plant(&mut self, chunks: u64, entries: &[(u64, MapEntry)]) -> Generation {
        let levels = levels_for(chunks);
        let root = self.grow(levels - 1, 0, entries);
        let id = root.id();
        self.nodes.insert(id, root);
        let size_bytes = chunks * u64::from(CHUNK);
        Generation { size_bytes, chunk_bytes: CHUNK, levels, root: id.to_bytes(), ..Generation::default() }
    }

    /// The canonical node over `entries`.
    fn grow(&mut self, level: u32, begin: u64, entries: &[(u64, MapEntry)]) -> MapNode {
        let mut node = MapNode::new(u8::try_from(level).unwrap());
        let span = span_of_level(level);
        for slot in 0..FAN_OUT {
            let first = begin + slot as u64 * span;
            let inside: Vec<_> =
                entries.iter().copied().filter(|(chunk, _)| (first..first + span).contains(chunk)).collect();
            node.slots_mut()[slot] = match (level, inside.first()) {
                (_, None) => MapEntry::Hole,
                (0, Some((_, entry))) => *entry,
                _ => {
                    let child = self.grow(level - 1, first, &inside);
                    let id = child.id();
                    let entry = child.uniform().unwrap_or(MapEntry::from(id));
                    self.nodes.insert(id, child);
                    entry
                }
            };
        }
        node
    }

    pub(super) fn client(&self) -> ContentClient<BoxedChannel> {
        ContentClient::new(in_process(Routes::new(ContentServer::new(self.clone()))))
    }

    /// Node ids asked for since the last time.
    pub(super) fn fetched(&self) -> usize {
        self.fetched.swap(0, Ordering::Relaxed)
    }
}
