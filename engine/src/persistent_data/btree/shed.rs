//! Taking leaves off a tree that is to be deleted, a few at a time.

use crate::format::{MetadataBlock, Node, NodeValue};

use super::remove::{enter_spare, least};
use super::{MAX_LEVELS, References, child_at, delete_tree, key_at, shadow, too_deep};
use crate::persistent_data::{MetadataStore, Result};

/// Takes up to `max` leaves off, of a part of the tree that no other tree has; the new root and how many entries they had.
/// None when nothing is left but what one step can delete: shared parts, which lose a count at their top, and a few leaves.
pub(crate) fn shed_leaves<V: NodeValue, R: References<V>>(
    store: &mut MetadataStore,
    references: &mut R,
    root: MetadataBlock,
    max: usize,
) -> Result<(MetadataBlock, u64)> {
    let Some(key) = own_leaves::<V>(store, root, 0)? else { return Ok((root, 0)) };
    let root = shadow::<V, R>(store, references, root)?;
    let mut block = root;
    // Each level may take one more round, in which the root gives way to its only child.
    for _ in 0..2 * MAX_LEVELS {
        let node = store.node::<V>(block)?;
        if is_above_leaves::<V>(store, &node, block)? {
            let spare =
                if block == root { node.len() - 1 } else { node.len().saturating_sub(least(&node)).max(1) };
            let entry = node.lower_bound(key).unwrap_or(0);
            let count = max.min(spare).min(node.len() - entry);
            drop(node);
            return Ok((root, take_leaves::<V, R>(store, references, block, entry, count)?));
        }
        drop(node);
        block = enter_spare::<V, R>(store, references, root, block, key)?;
    }
    Err(too_deep(block))
}

/// The first key of the first node above leaves that, like all nodes on the way to it, no other tree has, and that can lose
/// some. A root above leaves counts only while it has several.
fn own_leaves<V: NodeValue>(
    store: &MetadataStore,
    block: MetadataBlock,
    level: usize,
) -> Result<Option<u64>> {
    if level >= MAX_LEVELS {
        return Err(too_deep(block));
    }
    if store.count(block)? > 1 {
        return Ok(None);
    }
    let node = store.node::<V>(block)?;
    if node.is_leaf() {
        return Ok(None);
    }
    if is_above_leaves::<V>(store, &node, block)? {
        return if level == 0 && node.len() < 2 { Ok(None) } else { key_at(&node, block, 0).map(Some) };
    }
    for (entry, (_, child)) in node.children().enumerate() {
        if can_lose::<V>(store, &node, block, entry, child)?
            && let Some(key) = own_leaves::<V>(store, child, level + 1)?
        {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// Whether a child can lose entries without a sibling that another tree has: to fill it up from that would copy what is
/// better left shared.
fn can_lose<V: NodeValue>(
    store: &MetadataStore,
    parent: &Node,
    block: MetadataBlock,
    entry: usize,
    child: MetadataBlock,
) -> Result<bool> {
    let node = store.node::<V>(child)?;
    if node.is_leaf() || node.len() > least(&node) || parent.len() < 2 {
        return Ok(true);
    }
    // The sibling that `fill` takes.
    let sibling = if entry == 0 { 1 } else { entry - 1 };
    Ok(store.count(child_at(parent, block, sibling)?)? == 1)
}

fn is_above_leaves<V: NodeValue>(store: &MetadataStore, node: &Node, block: MetadataBlock) -> Result<bool> {
    if node.is_leaf() {
        return Ok(false);
    }
    Ok(store.node::<V>(child_at(node, block, 0)?)?.is_leaf())
}

/// Removes `count` leaves from `entry` of their parent on; how many entries they had.
fn take_leaves<V: NodeValue, R: References<V>>(
    store: &mut MetadataStore,
    references: &mut R,
    parent: MetadataBlock,
    entry: usize,
    count: usize,
) -> Result<u64> {
    let mut entries = 0;
    for leaf in entry..entry + count {
        let leaf = child_at(store.node::<V>(parent)?.as_ref(), parent, leaf)?;
        entries += store.node::<V>(leaf)?.len() as u64;
        delete_tree::<V, R>(store, references, leaf)?;
    }
    store.edit_node(parent, |node| node.remove_entries(entry, count))?;
    Ok(entries)
}
