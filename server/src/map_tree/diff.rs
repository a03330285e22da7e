//! Where two trees differ.

use thinbak_proto::{FAN_OUT, MapEntry, NodeId, span_of_level};

use super::{NodeError, NodeSource, Tree, load_at};

/// A range that the two trees say different things of: one chunk, or a run that is hole or zero in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Difference {
    /// First chunk.
    pub(crate) first: u64,
    /// Chunks; 1 if either side has content.
    pub(crate) chunks: u64,
    pub(crate) old: MapEntry,
    pub(crate) new: MapEntry,
}

/// A part of the new tree that could not be compared, because a node is not readable. The walk goes on
/// behind it.
#[derive(Debug, thiserror::Error)]
#[error("chunks {first} to {}: {source}", first.saturating_add(*chunks))]
pub(crate) struct Unreadable {
    /// First chunk of the node's range.
    pub(crate) first: u64,
    /// Chunks of the node's range, which may end behind the volume.
    pub(crate) chunks: u64,
    pub(crate) source: NodeError,
}

/// What one tree says of the first `span_of_level(level)` chunks of a range; the rest of it is hole.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Side {
    entry: MapEntry,
    level: u32,
}

impl Side {
    fn uniform_over(&self, level: u32) -> bool {
        self.entry == MapEntry::Hole || (self.entry == MapEntry::Zero && self.level == level)
    }

    /// What the side says of a range of `level`, when it says one thing.
    fn at(&self, level: u32) -> MapEntry {
        if self.level == level { self.entry } else { MapEntry::Hole }
    }
}

struct Pair {
    first: u64,
    level: u32,
    old: Side,
    new: Side,
}

/// The walk over both trees, in ascending order. Holds at most one node's slots a level, and the nodes below them that
/// differ where the source reads them ahead.
pub(crate) struct TreeDiff<S> {
    source: S,
    pending: Vec<Pair>,
    /// A node of the old tree that cannot be read counts as hole, so that all of the new one is seen.
    tolerant: bool,
    /// Ranges of the old tree that could not be read, where the new one can: first chunk and chunks.
    replaced: Vec<(u64, u64)>,
}

impl<S: NodeSource> TreeDiff<S> {
    /// Compares `new` with `old`, or with nothing but holes.
    pub(crate) fn new(source: S, old: Option<Tree>, new: Tree) -> Self {
        let level = new.levels().max(old.map_or(0, |old| old.levels()));
        let side = |tree: Tree| Side { entry: tree.root.into(), level: tree.levels() };
        let hole = Side { entry: MapEntry::Hole, level };
        let pair = Pair { first: 0, level, old: old.map_or(hole, side), new: side(new) };
        Self { source, pending: vec![pair], tolerant: false, replaced: Vec::new() }
    }

    /// Nodes of the old tree that cannot be read count as holes instead of ending in an error.
    pub(crate) fn tolerant(mut self) -> Self {
        self.tolerant = true;
        self
    }

    /// What of the old tree could not be read, where the new tree can, since this was last asked: first chunk and
    /// chunks of each range. What [`next`](Self::next) returned last may lie in the last of them.
    pub(crate) fn take_replaced(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.replaced)
    }

    /// The next difference; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Result<Difference, Unreadable>> {
        while let Some(pair) = self.pending.pop() {
            if pair.old == pair.new {
                continue;
            }
            let (level, first) = (pair.level, pair.first);
            if level == 0 || (pair.old.uniform_over(level) && pair.new.uniform_over(level)) {
                let (old, new) = (pair.old.at(level), pair.new.at(level));
                if old != new {
                    return Some(Ok(Difference { first, chunks: span_of_level(level), old, new }));
                }
                continue;
            }
            if let Err(source) = self.descend(pair).await {
                return Some(Err(Unreadable { first, chunks: span_of_level(level), source }));
            }
        }
        None
    }

    async fn descend(&mut self, pair: Pair) -> Result<(), NodeError> {
        let below = pair.level.saturating_sub(1);
        let new = self.slots(pair.new, pair.level).await?;
        let old = match self.slots(pair.old, pair.level).await {
            Err(_) if self.tolerant => {
                self.replaced.push((pair.first, span_of_level(pair.level)));
                [Side { entry: MapEntry::Hole, level: below }; FAN_OUT]
            }
            slots => slots?,
        };
        let slots: Vec<_> =
            (0u64..).zip(old.into_iter().zip(new)).filter(|(_, (old, new))| old != new).collect();
        if below > 0 {
            let sides =
                slots.iter().flat_map(|(_, (old, new))| [old, new]).filter(|side| side.level == below);
            self.source.will_load(sides.filter_map(|side| side.entry.node()).collect()).await;
        }
        for (slot, (old, new)) in slots.into_iter().rev() {
            let first = pair.first.saturating_add(slot.saturating_mul(span_of_level(below)));
            self.pending.push(Pair { first, level: below, old, new });
        }
        Ok(())
    }

    /// What `side` says of the slots of a node whose range is one slot of `level`.
    async fn slots(&self, side: Side, level: u32) -> Result<[Side; FAN_OUT], NodeError> {
        let below = level.saturating_sub(1);
        let slot = |entry| Side { entry, level: below };
        if side.level < level {
            let mut slots = [slot(MapEntry::Hole); FAN_OUT];
            if let Some(first) = slots.first_mut() {
                *first = side;
            }
            return Ok(slots);
        }
        match side.entry.node() {
            Some(id) => Ok(self.load(id, below).await?.map(slot)),
            None => Ok([slot(side.entry); FAN_OUT]),
        }
    }

    async fn load(&self, id: NodeId, level: u32) -> Result<[MapEntry; FAN_OUT], NodeError> {
        Ok(*load_at(&self.source, id, level).await?.slots())
    }
}
