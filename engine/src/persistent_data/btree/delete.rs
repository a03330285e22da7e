//! Deleting a tree.

use std::sync::Arc;

use crate::format::{MetadataBlock, Node, NodeValue};

use super::{MAX_LEVELS, References, too_deep};
use crate::persistent_data::{MetadataStore, Result};

struct Level {
    block: MetadataBlock,
    node: Arc<Node>,
    next: usize,
}

/// Takes one pointer to a tree away. What nothing else refers to is freed: node by node from the bottom, keeping one node of
/// each level in memory; shared parts only lose one count at their top.
pub(crate) fn delete_tree<V: NodeValue, R: References<V>>(
    store: &mut MetadataStore,
    references: &mut R,
    root: MetadataBlock,
) -> Result<()> {
    let mut path = Vec::new();
    enter::<V>(store, &mut path, root)?;
    while let Some(level) = path.last_mut() {
        let block = level.block;
        if level.node.is_leaf() {
            let node = level.node.clone();
            node.entries::<V>().try_for_each(|(_, value)| references.dec(store, value))?;
        } else if let Some(child) = level.node.child(level.next) {
            level.next += 1;
            enter::<V>(store, &mut path, child)?;
            continue;
        }
        store.dec(block)?;
        path.pop();
    }
    Ok(())
}

fn enter<V: NodeValue>(store: &mut MetadataStore, path: &mut Vec<Level>, block: MetadataBlock) -> Result<()> {
    if path.len() >= MAX_LEVELS {
        return Err(too_deep(block));
    }
    if store.count(block)? > 1 {
        return store.dec(block);
    }
    path.push(Level { block, node: store.node::<V>(block)?, next: 0 });
    Ok(())
}
