//! Mapping trees: each node is judged once, however many devices share it.

use std::{ops::Deref, sync::Arc};

use super::{
    checker::{Checker, Place, Role, Scope, Visit},
    raw::{Block, Node},
    table::{Known, Scanned},
    tally::BadMappings,
};

/// What is under a mapping node.
#[derive(Debug, Clone, Copy)]
struct Summary {
    entries: u32,
    levels: u8,
    /// First and last key, if there are any.
    keys: Option<(u64, u64)>,
}

impl Summary {
    /// Of a node that was judged, or is a clean leaf; none when some of it is lost.
    fn known(known: &Known) -> Option<Self> {
        let keys = (known.entries > 0).then_some((known.first, known.last));
        (known.levels > 0).then_some(Self { entries: known.entries, levels: known.levels, keys })
    }
}

impl Checker<'_> {
    /// Entries of a device's tree; none when some of it is lost. `counted` when the reference to the root is
    /// met for the first time.
    pub(super) fn mapping_tree(&mut self, root: u64, scope: Scope, counted: bool) -> Option<u64> {
        let place = Place::root(root);
        let judged = self.table.get(root).role == Some(Role::MappingTree);
        let summary = if judged && !counted {
            self.known_node(&place, scope)
        } else {
            self.mapping_node(&place, scope, &mut Vec::new())
        };
        summary.map(|summary| u64::from(summary.entries))
    }

    fn mapping_node(&mut self, place: &Place, scope: Scope, path: &mut Vec<u64>) -> Option<Summary> {
        if self.is_endless(place, scope, path) {
            return None;
        }
        match self.visit(place, scope) {
            Visit::Wrong => return None,
            Visit::Again => return self.known_node(place, scope),
            Visit::First => {}
        }
        let summary = match self.clean_leaf(place, scope) {
            Some(leaf) => Summary::known(&Known { levels: 1, ..leaf }),
            None => self.read_mapping_node(place, scope, path),
        };
        if let Some(known) = self.table.entry(place.block) {
            let (first, last) = summary.and_then(|summary| summary.keys).unwrap_or_default();
            let (entries, levels) = summary.map_or((0, 0), |summary| (summary.entries, summary.levels));
            *known = Known { first, last, entries, levels, ..*known };
        }
        summary
    }

    /// A node that was met before: it must fit here as well.
    fn known_node(&mut self, place: &Place, scope: Scope) -> Option<Summary> {
        let Some(summary) = Summary::known(&self.table.get(place.block)) else {
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

    fn read_mapping_node(&mut self, place: &Place, scope: Scope, path: &mut Vec<u64>) -> Option<Summary> {
        let node = self.node(place, scope)?;
        if !node.internal {
            return Some(self.mapping_leaf(&node, place, scope));
        }
        path.push(place.block);
        let summary = self.mapping_children(&node, place, scope, path);
        path.pop();
        summary
    }

    fn mapping_children(
        &mut self,
        node: &Node<Arc<Block>>,
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

    /// Reports what is wrong in a leaf, and counts its data blocks unless the scan did. F8.
    fn mapping_leaf<B>(&mut self, leaf: &Node<B>, place: &Place, scope: Scope) -> Summary
    where
        B: Deref<Target = Block>,
    {
        let known = self.table.get(place.block);
        let counted = known.scanned != Scanned::No && known.scanned_as == Some(scope.role);
        let BadMappings { beyond, future } = self.tally.mapping_leaf(leaf, !counted);
        if beyond > 0 {
            let what = format!(
                "block {} maps {beyond} virtual blocks beyond the {} data blocks",
                place.block, self.tally.data_blocks
            );
            self.note("F8", true, place, scope, &what);
        }
        if future > 0 {
            let what = format!(
                "block {} has {future} mappings later than the pool's time {}",
                place.block, self.tally.time
            );
            self.note("F8", true, place, scope, &what);
        }
        let entries = u32::try_from(leaf.len).unwrap_or(u32::MAX);
        Summary { entries, levels: 1, keys: leaf.key_range() }
    }
}
