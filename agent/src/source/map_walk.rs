//! Walks the map tree of a generation and says what each chunk of the volume holds.

use thinbak_proto::{
    ChunkId, FAN_OUT, Failed, FailureKind, MAX_LEVELS, MapEntry, MapNode, NodeId, chunk_count, span_of_level,
    v1::{Generation, GetNodesRequest, content_client::ContentClient},
};

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
}

/// A walk in ascending order. Holds at most one path of the tree with its siblings: a few hundred
/// nodes, whatever the size of the volume. Every node's id is recomputed.
pub struct MapWalk {
    content: ContentClient<BoxedChannel>,
    /// Nodes and ready runs still to visit, the next one last.
    stack: Vec<Pending>,
    chunks: u64,
}

enum Pending {
    /// A node that is not fetched yet.
    Node { id: NodeId, level: u32, first: u64 },
    /// A fetched leaf.
    Leaf { node: Box<MapNode>, first: u64 },
    /// A slot above the leaves that stands for everything below it.
    Run(MapRun),
}

impl MapWalk {
    /// A walk over all of `generation`.
    pub fn new(content: ContentClient<BoxedChannel>, generation: &Generation) -> Result<Self, Failed> {
        let root = NodeId::try_from(&*generation.root).map_err(|error| damaged(&error.to_string()))?;
        if !(1..=MAX_LEVELS).contains(&generation.levels) {
            return Err(damaged(&format!("a map of {} levels", generation.levels)));
        }
        let chunks = chunk_count(generation.size_bytes, generation.chunk_bytes);
        let top = Pending::Node { id: root, level: generation.levels - 1, first: 0 };
        Ok(Self { content, stack: vec![top], chunks })
    }

    /// The next runs, ascending and without gaps; `None` after the last chunk of the volume.
    pub async fn next(&mut self) -> Result<Option<Vec<MapRun>>, Failed> {
        loop {
            match self.stack.pop() {
                None => return Ok(None),
                Some(Pending::Run(run)) => {
                    if let Some(run) = self.clip(run)? {
                        return Ok(Some(vec![run]));
                    }
                }
                Some(Pending::Leaf { node, first }) => {
                    let runs = self.leaf_runs(&node, first)?;
                    if !runs.is_empty() {
                        return Ok(Some(runs));
                    }
                }
                Some(Pending::Node { id, level, first }) => {
                    self.stack.push(Pending::Node { id, level, first });
                    self.fetch_top().await?;
                }
            }
        }
    }

    /// Fetches the nodes of one level that lie together at the top of the stack, in one call, and puts
    /// what they hold in their place.
    async fn fetch_top(&mut self) -> Result<(), Failed> {
        let mut wanted = Vec::new();
        // Leaves are small in number per parent and fetched together; above them one at a time, so that
        // the stack stays short.
        while let Some(&Pending::Node { id, level, first }) = self.stack.last() {
            let together = wanted.last().is_none_or(|&(_, last, _): &(_, u32, _)| last == 0 && level == 0);
            if !together || wanted.len() >= FAN_OUT {
                break;
            }
            wanted.push((id, level, first));
            self.stack.pop();
        }
        let nodes = self.fetch(&wanted).await?;
        let mut found = Vec::new();
        for (node, (_, level, first)) in nodes.into_iter().zip(wanted) {
            if u32::from(node.level()) != level {
                return Err(damaged(&format!("a map node of level {} where {level} belongs", node.level())));
            }
            if level == 0 {
                found.push(Pending::Leaf { node: Box::new(node), first });
            } else {
                Self::expand(&node, level, first, &mut found);
            }
        }
        self.stack.extend(found.into_iter().rev());
        Ok(())
    }

    fn expand(node: &MapNode, level: u32, first: u64, found: &mut Vec<Pending>) {
        let span = span_of_level(level);
        let mut at = first;
        for slot in node.slots() {
            match (slot.node(), found.last_mut()) {
                (Some(id), _) => found.push(Pending::Node { id, level: level - 1, first: at }),
                (None, Some(Pending::Run(run))) if run.entry == *slot => run.count += span,
                (None, _) => found.push(Pending::Run(MapRun { chunk: at, count: span, entry: *slot })),
            }
            at = at.saturating_add(span);
        }
    }

    async fn fetch(&mut self, wanted: &[(NodeId, u32, u64)]) -> Result<Vec<MapNode>, Failed> {
        let ids = wanted.iter().map(|(id, ..)| id.to_bytes()).collect();
        let mut answers = self.content.get_nodes(GetNodesRequest { ids }).await?.into_inner();
        let mut nodes = Vec::with_capacity(wanted.len());
        for (id, ..) in wanted {
            let data =
                answers.message().await?.ok_or_else(|| damaged("the server sent too few map nodes"))?;
            if NodeId::of(&data.node) != *id {
                return Err(damaged(&format!("map node {id} is not what its id says")));
            }
            nodes.push(MapNode::decode(&data.node).map_err(|error| damaged(&error.to_string()))?);
        }
        Ok(nodes)
    }

    fn leaf_runs(&self, node: &MapNode, first: u64) -> Result<Vec<MapRun>, Failed> {
        let mut runs: Vec<MapRun> = Vec::new();
        for (slot, chunk) in node.slots().iter().zip(first..) {
            match runs.last_mut() {
                Some(run) if run.entry == *slot && slot.chunk().is_none() => run.count += 1,
                _ => runs.push(MapRun { chunk, count: 1, entry: *slot }),
            }
        }
        let mut clipped = Vec::with_capacity(runs.len());
        for run in runs {
            clipped.extend(self.clip(run)?);
        }
        Ok(clipped)
    }

    /// Cuts a run at the end of the volume, beyond which a tree holds nothing.
    fn clip(&self, run: MapRun) -> Result<Option<MapRun>, Failed> {
        let end = run.chunk.saturating_add(run.count).min(self.chunks);
        if end < run.chunk.saturating_add(run.count) && run.entry != MapEntry::Hole {
            return Err(damaged("the map names chunks beyond the end of the volume"));
        }
        Ok((run.chunk < end).then(|| MapRun { count: end - run.chunk, ..run }))
    }
}

fn damaged(what: &str) -> Failed {
    Failed::new(FailureKind::Damaged, format!("reading the map of a generation: {what}"))
}
