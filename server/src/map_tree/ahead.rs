//! Nodes read together before each is asked for.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use thinbak_proto::{FAN_OUT, MapNode, NodeId};

use super::{NodeError, NodeSource, node_of};
use crate::store::Store;

/// Nodes that wait to be asked for, at most: as many as two nodes have below them. About 9 KiB each.
const MAX_AHEAD: usize = 2 * FAN_OUT;

/// The nodes of a store. What will be asked for soon is read at once, in the order in which it lies on disk; one by one
/// each costs the way to another thread and back.
pub(crate) struct NodesAhead {
    store: Store,
    ahead: Mutex<HashMap<NodeId, MapNode>>,
}

impl NodesAhead {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, ahead: Mutex::default() }
    }
}

impl NodeSource for NodesAhead {
    async fn load(&self, id: NodeId) -> Result<MapNode, NodeError> {
        let ahead = self.ahead.lock().remove(&id);
        match ahead {
            Some(node) => Ok(node),
            None => self.store.load(id).await,
        }
    }

    async fn will_load(&self, ids: Vec<NodeId>) {
        let ids: Vec<NodeId> = {
            let mut ahead = self.ahead.lock();
            if ahead.len() + ids.len() > MAX_AHEAD {
                ahead.clear();
            }
            let mut seen = HashSet::new();
            let wanted = ids.into_iter().filter(|id| !ahead.contains_key(id) && seen.insert(*id));
            wanted.take(MAX_AHEAD).collect()
        };
        if ids.len() < 2 {
            return;
        }
        // One that cannot be read is asked for by itself, and then it is said why.
        let records = self.store.get_many(ids.iter().map(|id| *id.as_bytes()).collect()).await;
        let records = records.unwrap_or_default().into_iter().map(|record| record.and_then(Result::ok));
        let nodes =
            ids.into_iter().zip(records).filter_map(|(id, record)| Some((id, node_of(id, record).ok()?)));
        self.ahead.lock().extend(nodes);
    }
}
