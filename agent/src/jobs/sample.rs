//! A guard against being silently wrong: before a difference is sent, some blocks of the base, drawn at
//! random, are hashed again and held against what the server has of the parent generation. The base shares
//! every unchanged block with the volume, so what is true of the sample is true of what is not sent.

use std::sync::Arc;

use rand::Rng as _;
use thinbak_engine::{Base, Volume};
use thinbak_proto::{
    ChunkId, FAN_OUT, Failed, FailureKind, MapEntry, MapNode, NodeId, chunk_count, levels_for, span_of_level,
    v1::{GetNodesRequest, content_client::ContentClient},
};

use super::{events::blocking, healing::Halt};
use crate::{channel::BoxedChannel, pools::ThinPool, volume::PoolVolume};

/// Chunks drawn in one run.
const SAMPLES: usize = 8;

/// A chunk of the base as it reads now.
struct Drawn {
    chunk: u64,
    id: ChunkId,
    is_zero: bool,
}

/// Draws mapped chunks of the base of `name` and compares them with the parent generation. Returns how many
/// were compared; [`FailureKind::Damaged`] when one differs: then pool or repository is not what it should be,
/// and nothing may be built on them.
/// A map that cannot be read is [`Halt::Damage`].
pub(super) async fn check(
    content: ContentClient<BoxedChannel>,
    pool: &Arc<dyn ThinPool>,
    base: &Base,
    chunk_bytes: u32,
    name: &str,
) -> Result<usize, Halt> {
    let device = base.point.device_id;
    let Some(snapshot) = pool.by_device(device) else {
        return Err(Failed::new(
            FailureKind::Failed,
            format!("the base of {name} is not in the pool any more"),
        )
        .into());
    };
    let engine = Arc::clone(pool);
    let drawn = blocking(move || draw(engine, snapshot, u64::from(chunk_bytes))).await?;
    let mut map = Map { content, root: NodeId::from_bytes(base.root) };
    let levels = levels_for(chunk_count(base.point.size_bytes, chunk_bytes));
    for one in &drawn {
        let same = match map.entry(one.chunk, levels).await.map_err(Halt::of_server)? {
            MapEntry::Id(id) => ChunkId::from_bytes(id) == one.id,
            MapEntry::Zero | MapEntry::Hole => one.is_zero,
        };
        if !same {
            let offset = one.chunk * u64::from(chunk_bytes);
            let generation = base.generation;
            let message = format!(
                "{name}: the base does not read as generation {generation} has it at byte {offset}, although \
                 nothing was written to it"
            );
            return Err(Failed::new(FailureKind::Damaged, message).with_hint(
                "check the pool's data device and run thinbak verify; to compare all content, remove the base \
                 snapshot and back up again",
            ).into());
        }
    }
    Ok(drawn.len())
}

/// Reads mapped chunks at random places; over an external origin, which may have changed, only such as are mapped as a
/// whole. Blocking.
fn draw(pool: Arc<dyn ThinPool>, snapshot: Volume, chunk_bytes: u64) -> Result<Vec<Drawn>, Failed> {
    let volume = PoolVolume::open(pool, snapshot)?;
    let size = volume.size_bytes();
    let mut random = rand::rng();
    let mut drawn: Vec<Drawn> = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let from = random.random_range(0..size.max(1));
        let found = match volume.mapped(from, size).next() {
            Some(found) => found?,
            // Nothing is mapped behind that place: the first that is.
            None => match volume.mapped(0, size).next() {
                Some(found) => found?,
                None => break,
            },
        };
        let chunk = found.begin / chunk_bytes;
        if drawn.iter().any(|one| one.chunk == chunk) {
            continue;
        }
        let offset = chunk * chunk_bytes;
        let covered = found.begin <= offset && (offset + chunk_bytes).min(size) <= found.end;
        if volume.origin_bytes() > offset && !covered {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(chunk_bytes.min(size - offset)).unwrap_or(0)];
        volume.read(offset, &mut bytes)?;
        drawn.push(Drawn { chunk, id: ChunkId::of(&bytes), is_zero: bytes.iter().all(|byte| *byte == 0) });
    }
    Ok(drawn)
}

/// The map tree of the parent generation, read where it is asked for.
struct Map {
    content: ContentClient<BoxedChannel>,
    root: NodeId,
}

impl Map {
    async fn entry(&mut self, chunk: u64, levels: u32) -> Result<MapEntry, Failed> {
        let mut entry = MapEntry::from(self.root);
        for level in (0..levels).rev() {
            let Some(id) = entry.node() else { break };
            let node = self.node(id).await?;
            let slot = chunk / span_of_level(level) % FAN_OUT as u64;
            entry = usize::try_from(slot)
                .ok()
                .and_then(|slot| node.slots().get(slot))
                .copied()
                .unwrap_or_default();
        }
        Ok(entry)
    }

    async fn node(&mut self, id: NodeId) -> Result<MapNode, Failed> {
        let damaged = |why: &str| {
            Failed::new(FailureKind::Damaged, format!("the map of the parent generation: node {id} {why}"))
                .with_hint("thinbak verify tells what is damaged")
        };
        let request = GetNodesRequest { ids: vec![id.to_bytes()] };
        let data = self.content.get_nodes(request).await?.into_inner().message().await?;
        let data = data.ok_or_else(|| damaged("was not sent"))?;
        if NodeId::of(&data.node) != id {
            return Err(damaged("is not what its id says"));
        }
        MapNode::decode(&data.node).map_err(|error| damaged(&error.to_string()))
    }
}
