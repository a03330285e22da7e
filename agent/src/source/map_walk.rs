//! Walks the map tree of a generation and says what each chunk of the volume holds: all of them, or those
//! that another generation of the volume says something else of.
//!
//! Two trees are walked side by side, and what they share is skipped without reading it: equal ids are equal
//! content. A single tree is walked beside one of which nothing is known. Nodes come from a server that is not
//! trusted: the id of each is recomputed, and it must stand at the level where it was found, so that a walk goes down
//! at most [`MAX_LEVELS`](thinbak_proto::MAX_LEVELS) steps.

use std::collections::HashMap;

use thinbak_proto::{
    ChunkId, FAN_OUT, Failed, FailureKind, MapEntry, MapNode, NodeId, span_of_level,
    v1::{Generation, GetNodesRequest, content_client::ContentClient},
};

use super::geometry::Geometry;
use crate::channel::BoxedChannel;

/// What a run of chunks holds. Zero and hole runs may be long, a chunk is always alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapRun {
    /// Number of the first chunk.
    pub chunk: u64,
    /// Number of chunks.
    pub count: u64,
    /// What they hold.
    pub entry: MapEntry,
}

impl MapRun {
    /// The chunk's id, if there is one.
    #[must_use]
    pub fn id(&self) -> Option<ChunkId> {
        self.entry.chunk()
    }

    /// Takes in a run that goes on with the same and is no chunk; returns any other.
    pub(super) fn absorb(&mut self, next: Self) -> Option<Self> {
        if self.entry != next.entry || next.id().is_some() || self.chunk + self.count != next.chunk {
            return Some(next);
        }
        self.count += next.count;
        None
    }
}

/// Appends a run, to the last one if that takes it in.
pub(super) fn join(runs: &mut Vec<MapRun>, next: MapRun) {
    let rest = match runs.last_mut() {
        Some(last) => last.absorb(next),
        None => Some(next),
    };
    runs.extend(rest);
}

/// A walk in ascending order. Holds one path of nodes with their siblings: a few hundred nodes a level, whatever the
/// size of the volume.
pub struct MapWalk {
    content: ContentClient<BoxedChannel>,
    /// Where the walk begins, until it has begun.
    top: Option<Pair>,
    /// From the highest level down to where the walk is.
    path: Vec<Frame>,
    /// Chunks of the volume: the tree has holes behind them.
    chunks: u64,
    /// Behind which nothing is told.
    end: u64,
}

/// What one tree says of the first chunks of a range; the rest of the range is hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Nothing is known, so all is different.
    Unknown,
    /// An entry that stands for `span_of_level(level)` chunks.
    Known { entry: MapEntry, level: u32 },
}

impl Side {
    /// What the side says of a range of `level`, when it says one thing.
    fn uniform(self, level: u32) -> Option<MapEntry> {
        match self {
            Self::Known { entry: MapEntry::Hole, .. } => Some(MapEntry::Hole),
            Self::Known { entry, level: own } if own == level && (level == 0 || entry.node().is_none()) => {
                Some(entry)
            }
            _ => None,
        }
    }

    /// The node that says what lies in a range of `level`.
    fn node(self, level: u32) -> Option<NodeId> {
        match self {
            Self::Known { entry, level: own } if own == level && level > 0 => entry.node(),
            _ => None,
        }
    }

    /// What the side says of the slots of a range of `level`.
    fn slots(self, level: u32, nodes: &HashMap<NodeId, MapNode>) -> Result<[Self; FAN_OUT], Failed> {
        let below = level.saturating_sub(1);
        let known = |entry| Self::Known { entry, level: below };
        match self {
            Self::Unknown => Ok([Self::Unknown; FAN_OUT]),
            Self::Known { level: own, .. } if own < level => {
                let mut slots = [known(MapEntry::Hole); FAN_OUT];
                if let Some(first) = slots.first_mut() {
                    *first = self;
                }
                Ok(slots)
            }
            Self::Known { entry, .. } => match entry.node() {
                None => Ok([known(entry); FAN_OUT]),
                Some(id) => match nodes.get(&id) {
                    Some(node) if u32::from(node.level()) == below => Ok(node.slots().map(known)),
                    Some(node) => {
                        Err(damaged(&format!("a map node of level {} where {below} belongs", node.level())))
                    }
                    None => Err(damaged(&format!("map node {id} is missing"))),
                },
            },
        }
    }
}

/// A range that the two sides may say different things of.
#[derive(Debug, Clone, Copy)]
struct Pair {
    first: u64,
    level: u32,
    old: Side,
    new: Side,
}

impl Pair {
    fn is_same(&self) -> bool {
        let uniform = || self.old.uniform(self.level).zip(self.new.uniform(self.level));
        self.old == self.new || uniform().is_some_and(|(old, new)| old == new)
    }

    /// What the new side holds, when nothing has to be read to know where it differs.
    fn settled(&self) -> Option<MapRun> {
        let told = self.old == Side::Unknown || self.old.uniform(self.level).is_some();
        let entry = self.new.uniform(self.level).filter(|_| told)?;
        Some(MapRun { chunk: self.first, count: span_of_level(self.level), entry })
    }
}

/// Ranges of one level that differ.
struct Frame {
    /// Still to be visited, the next one last.
    pairs: Vec<Pair>,
    /// The nodes that they name.
    nodes: HashMap<NodeId, MapNode>,
}

impl MapWalk {
    /// A walk over all of `generation`.
    pub fn new(content: ContentClient<BoxedChannel>, generation: &Generation) -> Result<Self, Failed> {
        Self::over(content, None, generation)
    }

    /// A walk over what `generation` says differently than `base`, up to the end of the longer one: the rest of the
    /// shorter one is hole.
    pub fn difference(
        content: ContentClient<BoxedChannel>,
        base: &Generation,
        generation: &Generation,
    ) -> Result<Self, Failed> {
        Self::over(content, Some(base), generation)
    }

    fn over(
        content: ContentClient<BoxedChannel>,
        base: Option<&Generation>,
        generation: &Generation,
    ) -> Result<Self, Failed> {
        let geometry = Geometry::of(generation)?;
        let (new, chunks) = (root(generation)?, geometry.chunks());
        let (mut old, mut end, mut level) = (Side::Unknown, chunks, generation.levels);
        if let Some(base) = base {
            let of_base = Geometry::of(base)?;
            if of_base.chunk != geometry.chunk {
                return Err(damaged("two generations of one repository have chunks of different sizes"));
            }
            (old, end) = (root(base)?, end.max(of_base.chunks()));
            level = level.max(base.levels);
        }
        let top = Pair { first: 0, level, old, new };
        Ok(Self { content, top: Some(top).filter(|top| !top.is_same()), path: Vec::new(), chunks, end })
    }

    /// The next runs, ascending; `None` after the last one. Of a walk over all they are without gaps up to the end
    /// of the volume.
    pub async fn next(&mut self) -> Result<Option<Vec<MapRun>>, Failed> {
        if let Some(top) = self.top.take() {
            self.descend(vec![top]).await?;
        }
        while let Some(frame) = self.path.last_mut() {
            let Some(pair) = frame.pairs.pop() else {
                self.path.pop();
                continue;
            };
            let mut runs = Vec::new();
            if let Some(run) = pair.settled() {
                runs.push(run);
            } else {
                let below = differing(&pair, &frame.nodes)?;
                if below.iter().any(|pair| pair.settled().is_none()) {
                    self.descend(below).await?;
                    continue;
                }
                below.iter().filter_map(Pair::settled).for_each(|run| join(&mut runs, run));
            }
            let runs = self.clip(runs)?;
            if !runs.is_empty() {
                return Ok(Some(runs));
            }
        }
        Ok(None)
    }

    /// Fetches what `pairs` name and goes on with them.
    async fn descend(&mut self, mut pairs: Vec<Pair>) -> Result<(), Failed> {
        let mut ids: Vec<NodeId> = Vec::new();
        for pair in pairs.iter().filter(|pair| pair.settled().is_none()) {
            ids.extend(pair.old.node(pair.level));
            ids.extend(pair.new.node(pair.level));
        }
        ids.sort_unstable();
        ids.dedup();
        let nodes = self.fetch(&ids).await?;
        pairs.reverse();
        self.path.push(Frame { pairs, nodes });
        Ok(())
    }

    /// The nodes with these ids, each recomputed; at most two for each slot of a node.
    async fn fetch(&mut self, ids: &[NodeId]) -> Result<HashMap<NodeId, MapNode>, Failed> {
        let mut nodes = HashMap::with_capacity(ids.len());
        if ids.is_empty() {
            return Ok(nodes);
        }
        let request = GetNodesRequest { ids: ids.iter().map(NodeId::to_bytes).collect() };
        let mut answers = self.content.get_nodes(request).await?.into_inner();
        for id in ids {
            let data =
                answers.message().await?.ok_or_else(|| damaged("the server sent too few map nodes"))?;
            if NodeId::of(&data.node) != *id {
                return Err(damaged(&format!("map node {id} is not what its id says")));
            }
            let node = MapNode::decode(&data.node).map_err(|error| damaged(&error.to_string()))?;
            nodes.insert(*id, node);
        }
        Ok(nodes)
    }

    /// Cuts what lies behind the end, where a tree holds nothing.
    fn clip(&self, mut runs: Vec<MapRun>) -> Result<Vec<MapRun>, Failed> {
        for run in &mut runs {
            let end = run.chunk.saturating_add(run.count);
            if end > self.chunks && run.entry != MapEntry::Hole {
                return Err(damaged("the map names chunks beyond the end of the volume"));
            }
            run.count = end.min(self.end).saturating_sub(run.chunk);
        }
        runs.retain(|run| run.count > 0);
        Ok(runs)
    }
}

/// The whole tree of a generation.
fn root(generation: &Generation) -> Result<Side, Failed> {
    let id = NodeId::try_from(&*generation.root).map_err(|error| damaged(&error.to_string()))?;
    Ok(Side::Known { entry: id.into(), level: generation.levels })
}

/// The parts of a range that the two sides say different things of.
fn differing(pair: &Pair, nodes: &HashMap<NodeId, MapNode>) -> Result<Vec<Pair>, Failed> {
    let level = pair.level.saturating_sub(1);
    let (old, new) = (pair.old.slots(pair.level, nodes)?, pair.new.slots(pair.level, nodes)?);
    let slots = (0u64..).zip(old.into_iter().zip(new)).map(|(slot, (old, new))| {
        let first = pair.first.saturating_add(slot.saturating_mul(span_of_level(level)));
        Pair { first, level, old, new }
    });
    Ok(slots.filter(|pair| !pair.is_same()).collect())
}

fn damaged(what: &str) -> Failed {
    Failed::new(FailureKind::Damaged, format!("reading the map of a generation: {what}"))
}

#[cfg(test)]
mod tests;
