//! Mapping trees: each node is read once, however many devices share it.

use super::{
    checker::{Checker, Place, Scope, Visit},
    raw::{Node, u64_at},
};

/// What is under a mapping node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Summary {
    entries: u64,
    levels: usize,
    /// First and last key, if there are any.
    keys: Option<(u64, u64)>,
}

const TIME_BITS: u32 = 24;

impl Checker<'_> {
    /// Entries of a device's tree; none when some of it is lost. `counted` when the reference to the root is
    /// met for the first time.
    pub(super) fn mapping_tree(&mut self, root: u64, scope: Scope, counted: bool) -> Option<u64> {
        let place = Place::root(root);
        let known = self.mapping_nodes.get(&root).copied();
        let summary = match known {
            Some(known) if !counted => self.known_node(&place, scope, known),
            _ => self.mapping_node(&place, scope, &mut Vec::new()),
        };
        summary.map(|summary| summary.entries)
    }

    fn mapping_node(&mut self, place: &Place, scope: Scope, path: &mut Vec<u64>) -> Option<Summary> {
        if self.is_endless(place, scope, path) {
            return None;
        }
        match self.visit(place, scope) {
            Visit::Wrong => return None,
            Visit::Again => {
                let known = self.mapping_nodes.get(&place.block).copied().flatten();
                return self.known_node(place, scope, known);
            }
            Visit::First => {}
        }
        let node = self.node(place, scope);
        let summary = node.and_then(|node| {
            if !node.internal {
                return Some(self.mapping_leaf(&node, place, scope));
            }
            path.push(place.block);
            let summary = self.mapping_children(&node, place, scope, path);
            path.pop();
            summary
        });
        self.mapping_nodes.insert(place.block, summary);
        summary
    }

    /// A node that was met before: it must fit here as well.
    fn known_node(&mut self, place: &Place, scope: Scope, known: Option<Summary>) -> Option<Summary> {
        let Some(summary) = known else {
            let what = format!("block {} is shared, and damage in or under it was found before", place.block);
            self.lost("F3", place, scope, &what);
            return None;
        };
        if let Some((first, last)) =
            summary.keys.filter(|(first, last)| *first < place.first || *last > place.last)
        {
            let what = format!("block {} has keys {first} to {last}", place.block);
            self.lost("F5", place, scope, &what);
            return None;
        }
        Some(summary)
    }

    fn mapping_children(
        &mut self,
        node: &Node,
        place: &Place,
        scope: Scope,
        path: &mut Vec<u64>,
    ) -> Option<Summary> {
        let mut all: Option<Summary> = None;
        let mut complete = true;
        for (first, last, block) in node.children(place.last) {
            let child = Place { block, first, last, is_root: false };
            let Some(found) = self.mapping_node(&child, scope, path) else {
                complete = false;
                continue;
            };
            let sum = all.get_or_insert(Summary { entries: 0, levels: found.levels, keys: found.keys });
            sum.entries = sum.entries.saturating_add(found.entries);
            sum.keys = match (sum.keys, found.keys) {
                (Some((first, _)), Some((_, last))) => Some((first, last)),
                (one, other) => one.or(other),
            };
            let levels = sum.levels;
            complete &= self.same_levels(&child, scope, levels, found.levels);
        }
        all.filter(|_| complete).map(|sum| Summary { levels: sum.levels + 1, ..sum })
    }

    /// Counts the data blocks of a leaf. F8.
    fn mapping_leaf(&mut self, node: &Node, place: &Place, scope: Scope) -> Summary {
        let mut beyond = 0_u64;
        let mut future = 0_u64;
        for (_, value) in node.entries() {
            let packed = u64_at(value, 0);
            let data_block = packed >> TIME_BITS;
            if data_block < self.data_blocks {
                self.data_counts.increment(data_block);
            } else {
                beyond += 1;
            }
            future += u64::from(packed & ((1 << TIME_BITS) - 1) > u64::from(self.time));
        }
        if beyond > 0 {
            let what = format!(
                "block {} maps {beyond} virtual blocks beyond the {} data blocks",
                place.block, self.data_blocks
            );
            self.note("F8", true, place, scope, &what);
        }
        if future > 0 {
            let what = format!(
                "block {} has {future} mappings later than the pool's time {}",
                place.block, self.time
            );
            self.note("F8", true, place, scope, &what);
        }
        Summary {
            entries: node.keys.len() as u64,
            levels: 1,
            keys: node.keys.first().copied().zip(node.keys.last().copied()),
        }
    }
}
