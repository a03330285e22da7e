//! `thinbak generation diff`: two map trees side by side, equal ids skipped with all that is under them.

use std::collections::{HashMap, HashSet};

use thinbak_proto::{
    FAN_OUT, Failed, FailureKind, MapEntry, MapNode, NodeId, span_of_level,
    v1::{Generation, GetNodesRequest},
};

use super::{Context, stop::Stop};
use crate::{
    output::{human, json},
    repository_client::RepositoryConnection,
};

/// What the second generation has in a range in which the two differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Zero,
    Unmapped,
}

impl Kind {
    fn of(entry: MapEntry) -> Self {
        match entry {
            MapEntry::Id(_) => Self::Data,
            MapEntry::Zero => Self::Zero,
            MapEntry::Hole => Self::Unmapped,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Zero => "zero",
            Self::Unmapped => "unmapped",
        }
    }
}

/// Chunks in a row that differ in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    begin: u64,
    end: u64,
    kind: Kind,
}

/// Where nodes come from.
trait Nodes {
    async fn fetch(&mut self, ids: Vec<NodeId>) -> Result<HashMap<NodeId, MapNode>, Failed>;
}

pub(super) async fn run(
    context: &Context,
    connection: &RepositoryConnection,
    from: &Generation,
    to: &Generation,
) -> Result<(), Stop> {
    let mut printer = Printer { context, from, to, ranges: 0, bytes: 0 };
    printer.begin()?;
    let mut nodes = Remote { connection };
    compare(&mut nodes, tree(from)?, tree(to)?, &mut |range| printer.range(range)).await?;
    printer.end()
}

/// A generation's tree: root and levels.
fn tree(generation: &Generation) -> Result<(NodeId, u32), Failed> {
    let damaged = |why: &str| {
        let name = format!("{}:{}", generation.volume_name, generation.number);
        Failed::new(FailureKind::Damaged, format!("read the map of {name}: {why}"))
    };
    let root = NodeId::try_from(generation.root.as_ref()).map_err(|error| damaged(&error.to_string()))?;
    match generation.levels {
        levels @ 1..=thinbak_proto::MAX_LEVELS => Ok((root, levels)),
        _ => Err(damaged("its number of levels is impossible")),
    }
}

/// Two slots of one place that differ.
struct Pair {
    begin: u64,
    left: MapEntry,
    right: MapEntry,
}

/// Calls `found` for every range that differs, ascending. Holds no more than a path of nodes, each with its
/// siblings' differences.
async fn compare(
    nodes: &mut impl Nodes,
    (left, left_levels): (NodeId, u32),
    (right, right_levels): (NodeId, u32),
    found: &mut impl FnMut(Range) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let levels = left_levels.max(right_levels);
    let mut local = HashMap::new();
    let left = raised(left, left_levels, levels, &mut local);
    let right = raised(right, right_levels, levels, &mut local);
    if left == right {
        return Ok(());
    }
    let mut join = Join { pending: None, found };
    let top = vec![Pair { begin: 0, left, right }];
    let fetched = load(nodes, &local, &top).await?;
    // Per level the pairs still to be looked at, the next one last, and the nodes that they name.
    let mut stack = vec![(levels, top, fetched)];
    while let Some((level, pairs, fetched)) = stack.last_mut() {
        let Some(pair) = pairs.pop() else {
            stack.pop();
            continue;
        };
        let child_level = *level - 1;
        let left = slots(pair.left, child_level, fetched)?;
        let right = slots(pair.right, child_level, fetched)?;
        let mut below = differing(pair.begin, child_level, &left, &right);
        if child_level == 0 || below.iter().all(is_uniform) {
            below.iter().try_for_each(|pair| join.add(pair, span_of_level(child_level)))?;
            continue;
        }
        let fetched = load(nodes, &local, &below).await?;
        below.reverse();
        stack.push((child_level, below, fetched));
    }
    join.end()
}

/// The nodes that `pairs` name: raised ones are here, the others are fetched.
async fn load(
    nodes: &mut impl Nodes,
    local: &HashMap<NodeId, MapNode>,
    pairs: &[Pair],
) -> Result<HashMap<NodeId, MapNode>, Failed> {
    let ids: HashSet<NodeId> =
        pairs.iter().flat_map(|pair| [pair.left.node(), pair.right.node()]).flatten().collect();
    let (known, unknown): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| local.contains_key(id));
    let mut loaded = nodes.fetch(unknown).await?;
    loaded.extend(known.into_iter().filter_map(|id| local.get(&id).map(|node| (id, node.clone()))));
    Ok(loaded)
}

fn is_uniform(pair: &Pair) -> bool {
    pair.left.node().is_none() && pair.right.node().is_none()
}

/// The entry of a root as if its tree had `levels`: wrapped in nodes that exist only here.
fn raised(root: NodeId, own: u32, levels: u32, local: &mut HashMap<NodeId, MapNode>) -> MapEntry {
    let mut entry = MapEntry::from(root);
    for level in own..levels {
        let mut node = MapNode::new(u8::try_from(level).unwrap_or(u8::MAX));
        if let Some(first) = node.slots_mut().first_mut() {
            *first = entry;
        }
        let id = node.id();
        local.insert(id, node);
        entry = MapEntry::from(id);
    }
    entry
}

/// The slots that an entry above the leaves stands for.
fn slots(
    entry: MapEntry,
    level: u32,
    fetched: &HashMap<NodeId, MapNode>,
) -> Result<[MapEntry; FAN_OUT], Failed> {
    let Some(id) = entry.node() else { return Ok([entry; FAN_OUT]) };
    match fetched.get(&id) {
        Some(node) if u32::from(node.level()) == level => Ok(*node.slots()),
        Some(_) => Err(Failed::new(FailureKind::Damaged, format!("map node {id} is on the wrong level"))),
        None => Err(Failed::new(FailureKind::Damaged, format!("map node {id} is missing"))),
    }
}

fn differing(begin: u64, level: u32, left: &[MapEntry], right: &[MapEntry]) -> Vec<Pair> {
    let span = span_of_level(level);
    let pairs = left.iter().zip(right).enumerate();
    pairs
        .filter(|(_, (left, right))| left != right)
        .map(|(slot, (left, right))| Pair {
            begin: begin.saturating_add((slot as u64).saturating_mul(span)),
            left: *left,
            right: *right,
        })
        .collect()
}

/// Joins neighbours of a kind.
struct Join<'a, F> {
    pending: Option<Range>,
    found: &'a mut F,
}

impl<F: FnMut(Range) -> Result<(), Stop>> Join<'_, F> {
    fn add(&mut self, pair: &Pair, chunks: u64) -> Result<(), Stop> {
        let next =
            Range { begin: pair.begin, end: pair.begin.saturating_add(chunks), kind: Kind::of(pair.right) };
        match &mut self.pending {
            Some(range) if range.end == next.begin && range.kind == next.kind => {
                range.end = next.end;
                Ok(())
            }
            pending => match pending.replace(next) {
                Some(complete) => (self.found)(complete),
                None => Ok(()),
            },
        }
    }

    fn end(self) -> Result<(), Stop> {
        self.pending.map_or(Ok(()), self.found)
    }
}

/// Nodes of a repository, their ids recomputed.
struct Remote<'a> {
    connection: &'a RepositoryConnection,
}

impl Nodes for Remote<'_> {
    async fn fetch(&mut self, ids: Vec<NodeId>) -> Result<HashMap<NodeId, MapNode>, Failed> {
        let mut nodes = HashMap::with_capacity(ids.len());
        if ids.is_empty() {
            return Ok(nodes);
        }
        let request = GetNodesRequest { ids: ids.iter().map(NodeId::to_bytes).collect() };
        let mut answers = self.connection.content().get_nodes(request).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            let id = NodeId::of(&answer.node);
            let node = MapNode::decode(&answer.node)
                .map_err(|error| Failed::new(FailureKind::Damaged, format!("map node {id}: {error}")))?;
            nodes.insert(id, node);
        }
        Ok(nodes)
    }
}

/// Prints ranges as they are found.
struct Printer<'a> {
    context: &'a Context,
    from: &'a Generation,
    to: &'a Generation,
    ranges: u64,
    bytes: u64,
}

impl Printer<'_> {
    fn begin(&self) -> Result<(), Stop> {
        let output = self.context.output;
        if output.is_json() {
            let (from, to) = (json::generation(self.from), json::generation(self.to));
            return Ok(output.line(&format!("{{\"from\":{from},\n\"to\":{to},\n\"ranges\":["))?);
        }
        Ok(output.line(&format!("{:>20}  {:>20}  CONTENT", "OFFSET", "LENGTH"))?)
    }

    /// Chunks to bytes, clipped to the larger of the two sizes.
    fn range(&mut self, range: Range) -> Result<(), Stop> {
        let chunk = u64::from(self.to.chunk_bytes);
        let size = self.from.size_bytes.max(self.to.size_bytes);
        let begin = range.begin.saturating_mul(chunk).min(size);
        let length = range.end.saturating_mul(chunk).min(size) - begin;
        if length == 0 {
            return Ok(());
        }
        let output = self.context.output;
        if output.is_json() {
            let comma = if self.ranges > 0 { "," } else { "" };
            let range = serde_json::json!({
                "offset_bytes": begin, "length_bytes": length, "content": range.kind.name(),
            });
            output.line(&format!("{comma}{range}"))?;
        } else {
            output.line(&format!("{begin:>20}  {length:>20}  {}", range.kind.name()))?;
        }
        self.ranges += 1;
        self.bytes += length;
        Ok(())
    }

    fn end(self) -> Result<(), Stop> {
        let output = self.context.output;
        if output.is_json() {
            return Ok(output.line(&format!("],\n\"changed_bytes\":{}}}", self.bytes))?);
        }
        output.note(&format!("{} in {} ranges differ", human::bytes(self.bytes), self.ranges));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
