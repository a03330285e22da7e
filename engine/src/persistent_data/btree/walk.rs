//! Reading a tree.

use std::ops::{ControlFlow, RangeInclusive};

use crate::format::{MetadataBlock, MetadataError, NodeProblem, NodeValue};

use super::{MAX_LEVELS, child_at, too_deep};
use crate::persistent_data::{MetadataStore, Result};

/// The value of a key.
pub(crate) fn lookup<V: NodeValue>(
    store: &MetadataStore,
    root: MetadataBlock,
    key: u64,
) -> Result<Option<V>> {
    let mut block = root;
    for _ in 0..MAX_LEVELS {
        let node = store.node::<V>(block)?;
        if node.is_leaf() {
            return Ok(node.search(key).ok().and_then(|entry| node.value(entry)));
        }
        let Some(entry) = node.lower_bound(key) else { return Ok(None) };
        block = child_at(&node, block, entry)?;
    }
    Err(too_deep(block))
}

/// Calls `visit` for every entry with a key in `keys`, ascending, until it breaks.
pub(crate) fn walk<V: NodeValue>(
    store: &MetadataStore,
    root: MetadataBlock,
    keys: RangeInclusive<u64>,
    mut visit: impl FnMut(u64, V) -> ControlFlow<()>,
) -> Result<()> {
    walk_below(store, root, &keys, &mut visit, 0, 0..=u64::MAX).map(|_| ())
}

/// `within` are the keys that the tree keeps under the node. To hold nodes to that ends every walk: a node that is met again
/// under other keys is refused.
fn walk_below<V: NodeValue>(
    store: &MetadataStore,
    block: MetadataBlock,
    keys: &RangeInclusive<u64>,
    visit: &mut impl FnMut(u64, V) -> ControlFlow<()>,
    level: usize,
    within: RangeInclusive<u64>,
) -> Result<ControlFlow<()>> {
    if level >= MAX_LEVELS {
        return Err(too_deep(block));
    }
    let node = store.node::<V>(block)?;
    let outer = [node.key(0), node.len().checked_sub(1).and_then(|last| node.key(last))];
    if let Some((entry, key)) = outer
        .into_iter()
        .enumerate()
        .find_map(|(at, key)| Some((at, key.filter(|key| !within.contains(key))?)))
    {
        let entry = if entry == 0 { 0 } else { node.len() - 1 };
        return Err(MetadataError::BadNode { block, problem: NodeProblem::KeyOrder { entry, key } });
    }
    let first = if node.is_leaf() {
        node.search(*keys.start()).unwrap_or_else(|entry| entry)
    } else {
        node.lower_bound(*keys.start()).unwrap_or(0)
    };
    for entry in first..node.len() {
        let Some(key) = node.key(entry).filter(|key| key <= keys.end()) else {
            return Ok(ControlFlow::Continue(()));
        };
        let flow = match node.is_leaf() {
            true => node.value(entry).map_or(ControlFlow::Continue(()), |value| visit(key, value)),
            false => {
                let end = node.key(entry + 1).map_or(*within.end(), |next| next.saturating_sub(1));
                walk_below(store, child_at(&node, block, entry)?, keys, visit, level + 1, key..=end)?
            }
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The largest key.
pub(crate) fn last_key<V: NodeValue>(store: &MetadataStore, root: MetadataBlock) -> Result<Option<u64>> {
    let mut block = root;
    for _ in 0..MAX_LEVELS {
        let node = store.node::<V>(block)?;
        let Some(last) = node.len().checked_sub(1) else { return Ok(None) };
        if node.is_leaf() {
            return Ok(node.key(last));
        }
        block = child_at(&node, block, last)?;
    }
    Err(too_deep(block))
}
