//! Trees that nothing known to be damaged or lost belongs to: while that stays so they need not be walked again.

use std::collections::HashSet;

use parking_lot::Mutex;

use crate::map_tree::Tree;

/// Trees that are remembered; then all are forgotten, and walked once more when somebody asks.
const MAX_TREES: usize = 1 << 16;

/// Trees that were walked, by how much damage was known then ([`Store::damages`](crate::store::Store::damages)).
#[derive(Debug, Default)]
pub(crate) struct SoundTrees(Mutex<(u64, HashSet<Tree>)>);

impl SoundTrees {
    /// Whether everything that a tree names is there, as far as is known now.
    pub(crate) fn contains(&self, tree: Tree, damages: u64) -> bool {
        let known = self.0.lock();
        known.0 == damages && known.1.contains(&tree)
    }

    /// Notes that everything was there. `damages` is what was known before anybody looked.
    pub(crate) fn add(&self, tree: Tree, damages: u64) {
        let mut known = self.0.lock();
        let (of, trees) = &mut *known;
        if *of < damages || trees.len() >= MAX_TREES {
            *of = damages.max(*of);
            trees.clear();
        }
        if *of == damages {
            trees.insert(tree);
        }
    }
}
