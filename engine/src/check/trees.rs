//! The small trees: their nodes are judged again for each root that leads to them, but counted once.

use std::sync::Arc;

use super::{
    checker::{Checker, MAX_LEVELS, Place, Scope, Visit},
    raw::{Block, Node},
};

/// Takes a leaf's entry: key, value, and whether the leaf is met for the first time. It does not see the leaves of large
/// counts that the scan took up and found flawless.
pub(super) type Each<'a> = &'a mut dyn FnMut(u64, &[u8], bool);

impl Checker<'_> {
    /// Walks a tree other than a mapping tree, in key order. False when some of it is lost.
    pub(super) fn small_tree(&mut self, root: u64, scope: Scope, each: Each<'_>) -> bool {
        let mut path = Vec::new();
        self.small_node(&Place::root(root), scope, true, &mut path, each).is_some()
    }

    /// The levels under and including a node; none when some of it is lost.
    fn small_node(
        &mut self,
        place: &Place,
        scope: Scope,
        counted: bool,
        path: &mut Vec<u64>,
        each: Each<'_>,
    ) -> Option<u8> {
        if self.is_endless(place, scope, path) {
            return None;
        }
        let first_visit = match counted.then(|| self.visit(place, scope)) {
            Some(Visit::Wrong) => return None,
            Some(Visit::First) => true,
            Some(Visit::Again) | None => false,
        };
        if self.clean_leaf(place, scope).is_some() {
            return Some(1);
        }
        let node = self.node(place, scope)?;
        if !node.internal {
            for (key, value) in node.entries() {
                each(key, value, first_visit);
            }
            return Some(1);
        }
        path.push(place.block);
        let levels = self.small_children(&node, place, scope, first_visit, path, each);
        path.pop();
        levels.map(|levels| levels + 1)
    }

    fn small_children(
        &mut self,
        node: &Node<Arc<Block>>,
        place: &Place,
        scope: Scope,
        counted: bool,
        path: &mut Vec<u64>,
        each: Each<'_>,
    ) -> Option<u8> {
        let mut levels = None;
        let mut complete = true;
        for (first, last, block) in node.children(place.last) {
            let child = Place { block, first, last, is_root: false };
            match self.small_node(&child, scope, counted, path, each) {
                Some(found) => {
                    complete &= self.same_levels(&child, scope, *levels.get_or_insert(found), found)
                }
                None => complete = false,
            }
        }
        levels.filter(|_| complete)
    }

    /// F5: whether a subtree is as high as its sibling.
    pub(super) fn same_levels(&mut self, place: &Place, scope: Scope, expected: u8, found: u8) -> bool {
        if expected != found {
            let what =
                format!("block {} is {found} levels above the leaves, its sibling {expected}", place.block);
            self.lost("F5", place, scope, &what);
        }
        expected == found
    }

    /// F6: whether the walk came back to a node that it is under, or is deeper than trees are.
    pub(super) fn is_endless(&mut self, place: &Place, scope: Scope, path: &[u64]) -> bool {
        if path.contains(&place.block) {
            self.lost("F6", place, scope, &format!("block {} is under itself", place.block));
            return true;
        }
        if path.len() >= MAX_LEVELS {
            self.lost("F6", place, scope, &format!("block {} is under {} others", place.block, path.len()));
            return true;
        }
        false
    }
}
