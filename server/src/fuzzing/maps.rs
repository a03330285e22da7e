//! Trees of map nodes that nobody's editor made, and edits of any order and length.

use super::Input;
use crate::map_tree;

/// `[parent nodes] [edits]`: edits a tree, compares it with its parent, and looks chunks up.
pub fn maps(data: &[u8]) {
    map_tree::fuzzing::edit(&mut Input::new(data));
}
