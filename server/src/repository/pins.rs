//! Map trees that are being read or built upon, and so must not be collected although no generation that can
//! be seen may name them any more.
//!
//! Who uses a tree looks it up in the catalogue and pins it, both between [`Pins::enter`] and the end of the
//! [`Entrance`]. Who collects calls [`Pins::close`], and reads the roots of the catalogue and [`Pins::roots`]
//! while the gate is closed. So a tree that was found in the catalogue is either pinned when the collector looks,
//! or is looked up after that, when the catalogue does not name it any more if the collector did not see it.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore};

use crate::map_tree::Tree;

/// Clients that hold generations at a time. Each may hold a thousand or so.
const MAX_HOLDS: usize = 256;

#[derive(Debug)]
pub(crate) struct Pins {
    gate: RwLock<()>,
    /// How often each tree is pinned.
    pinned: Mutex<HashMap<Tree, usize>>,
    /// Places for clients that hold generations.
    pub(crate) holds: Arc<Semaphore>,
}

impl Default for Pins {
    fn default() -> Self {
        let holds = Arc::new(Semaphore::new(MAX_HOLDS));
        Self { gate: RwLock::default(), pinned: Mutex::default(), holds }
    }
}

/// The right to look up and pin. Held for as long as that takes, not for as long as the tree is used.
pub(crate) struct Entrance<'a> {
    pins: &'a Arc<Pins>,
    _open: RwLockReadGuard<'a, ()>,
}

/// Keeps a tree, all its nodes and all its chunks from being collected until it is dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Arc<Pins>,
    tree: Tree,
}

impl Pins {
    /// Waits while the collector looks at what is in use.
    pub(crate) async fn enter(self: &Arc<Self>) -> Entrance<'_> {
        Entrance { pins: self, _open: self.gate.read().await }
    }

    /// Keeps everybody from pinning until the guard is dropped, once those who are about to have done so.
    pub(crate) async fn close(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().await
    }

    /// All trees that are pinned now, each once, in no order.
    pub(crate) fn roots(&self) -> Vec<Tree> {
        self.pinned.lock().keys().copied().collect()
    }
}

impl Entrance<'_> {
    /// Pins a tree that was looked up since this entrance began.
    pub(crate) fn pin(&self, tree: Tree) -> Pin {
        *self.pins.pinned.lock().entry(tree).or_default() += 1;
        Pin { pins: Arc::clone(self.pins), tree }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pinned = self.pins.pinned.lock();
        if let Some(count) = pinned.get_mut(&self.tree) {
            *count -= 1;
            if *count == 0 {
                pinned.remove(&self.tree);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use thinbak_proto::NodeId;

    use super::*;

    fn tree(byte: u8) -> Tree {
        Tree { root: NodeId::from_bytes([byte; 32]), chunks: 7 }
    }

    #[tokio::test]
    async fn a_tree_is_pinned_until_its_last_pin_is_dropped() {
        let pins = Arc::<Pins>::default();
        let entrance = pins.enter().await;
        let (first, second, other) = (entrance.pin(tree(1)), entrance.pin(tree(1)), entrance.pin(tree(2)));
        drop(entrance);
        assert_eq!(pins.roots().len(), 2);
        drop((first, other));
        assert_eq!(pins.roots(), [tree(1)]);
        drop(second);
        assert_eq!(pins.roots(), []);
    }

    #[tokio::test]
    async fn the_gate_closes_behind_those_who_are_about_to_pin_and_before_those_who_come_later() {
        let pins = Arc::<Pins>::default();
        let entrance = pins.enter().await;
        let mut close = std::pin::pin!(pins.close());
        assert!(close.as_mut().now_or_never().is_none());
        assert!(pins.enter().now_or_never().is_none(), "the collector would wait for ever");
        let _pin = entrance.pin(tree(1));
        drop(entrance);
        let closed = close.await;
        assert_eq!(pins.roots(), [tree(1)]);
        assert!(pins.enter().now_or_never().is_none());
        drop(closed);
        assert!(pins.enter().now_or_never().is_some());
    }
}
