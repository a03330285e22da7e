//! Which generations need what is damaged, and where.
//!
//! The generations of a volume are walked in ascending order, each by its difference to the one before. The damaged
//! places of one are those of the one before, without what was overwritten and with what came: so the work is one
//! tree and the changes, and every generation that has a damaged place is named.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use thinbak_proto::{ChunkId, Failed, MapEntry, v1};

use crate::{
    ingest::{Geometry, tree_of},
    map_tree::{Tree, TreeDiff},
    store::Store,
};

/// Damaged places that are remembered of a volume.
const MAX_PLACES: usize = 1 << 20;
/// Ranges that are named of a generation.
const MAX_RANGES: usize = 1000;

/// What cannot be had.
#[derive(Debug, Default)]
pub(crate) struct Bad {
    /// Damaged and lost records that trees may need, and why.
    pub(crate) records: HashMap<[u8; 32], Arc<str>>,
    /// Chunks that are not as long as chunks are, and their length in bytes.
    pub(crate) odd_chunks: HashMap<ChunkId, u32>,
    /// There are more than are in here.
    pub(crate) more: bool,
}

/// What is wrong with a range of chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    chunks: u64,
    /// A map node: what is under it is not known.
    node: bool,
    reason: Arc<str>,
}

/// A range of a generation that cannot be had, in chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DamagedPlace {
    pub(crate) first: u64,
    pub(crate) chunks: u64,
    pub(crate) node: bool,
    pub(crate) reason: String,
}

/// The damaged places of one volume, generation after generation.
pub(crate) struct Places<'a> {
    store: &'a Store,
    bad: &'a Bad,
    before: Option<(String, Tree)>,
    places: BTreeMap<u64, Place>,
    more: bool,
}

impl<'a> Places<'a> {
    pub(crate) fn new(store: &'a Store, bad: &'a Bad) -> Self {
        Self { store, bad, before: None, places: BTreeMap::new(), more: false }
    }

    /// Goes on to a generation, those of a volume in ascending order, and returns its damaged ranges.
    pub(crate) async fn generation(
        &mut self,
        generation: &v1::Generation,
    ) -> Result<Vec<DamagedPlace>, Failed> {
        let tree = tree_of(generation)?;
        let geometry = Geometry { chunk_bytes: generation.chunk_bytes, size_bytes: generation.size_bytes };
        if self.before.as_ref().is_some_and(|(volume, _)| *volume != generation.volume_uuid) {
            (self.before, self.more) = (None, false);
            self.places.clear();
        }
        let before = self.before.take().map(|(_, tree)| tree);
        self.update(before, tree, geometry).await;
        self.before = Some((generation.volume_uuid.clone(), tree));
        Ok(coalesce(&self.places, tree.chunks, self.more || self.bad.more))
    }

    async fn update(&mut self, before: Option<Tree>, tree: Tree, geometry: Geometry) {
        let mut differences = TreeDiff::new(self.store.clone(), before, tree).tolerant();
        while let Some(difference) = differences.next().await {
            for (first, chunks) in differences.take_replaced() {
                self.clear(first, chunks);
            }
            match difference {
                Ok(difference) => {
                    self.clear(difference.first, difference.chunks);
                    if let Some(reason) = self.judge(difference.first, difference.new, geometry) {
                        self.insert(difference.first, Place { chunks: 1, node: false, reason });
                    }
                }
                Err(unreadable) => {
                    self.clear(unreadable.first, unreadable.chunks);
                    let reason = unreadable.source.to_string().into();
                    self.insert(unreadable.first, Place { chunks: unreadable.chunks, node: true, reason });
                }
            }
        }
        for (first, chunks) in differences.take_replaced() {
            self.clear(first, chunks);
        }
    }

    /// What is wrong with a chunk at this place.
    fn judge(&self, chunk: u64, entry: MapEntry, geometry: Geometry) -> Option<Arc<str>> {
        let id = entry.chunk()?;
        if let Some(reason) = self.bad.records.get(id.as_bytes()) {
            return Some(Arc::clone(reason));
        }
        let expected = geometry.bytes_of(chunk, 1);
        let found = self.bad.odd_chunks.get(&id).map_or(geometry.chunk_bytes, |found| *found);
        (u64::from(found) != expected).then(|| format!("chunk {id} has {found} bytes, not {expected}").into())
    }

    fn insert(&mut self, first: u64, place: Place) {
        self.more |= self.places.len() >= MAX_PLACES;
        if self.places.len() < MAX_PLACES {
            self.places.insert(first, place);
        }
    }

    /// Forgets what is wrong within a range. A place that reaches out of it keeps what is outside.
    fn clear(&mut self, first: u64, chunks: u64) {
        let end = first.saturating_add(chunks);
        let before = self.places.range(..first).next_back().map(|(at, place)| (*at, place.chunks));
        if let Some((at, len)) = before.filter(|(at, len)| at.saturating_add(*len) > first) {
            let rest_end = at.saturating_add(len);
            let rest = self.places.get_mut(&at).map(|place| {
                place.chunks = first - at;
                place.clone()
            });
            if let Some(place) = rest.filter(|_| rest_end > end) {
                self.places.insert(end, Place { chunks: rest_end - end, ..place });
            }
        }
        let inside: Vec<u64> = self.places.range(first..end).map(|(at, _)| *at).collect();
        for at in inside {
            let Some(place) = self.places.remove(&at) else { continue };
            let rest_end = at.saturating_add(place.chunks);
            if rest_end > end {
                self.places.insert(end, Place { chunks: rest_end - end, ..place });
            }
        }
    }
}

/// Joins neighbours, and cuts at the end of the volume.
fn coalesce(places: &BTreeMap<u64, Place>, chunks: u64, more: bool) -> Vec<DamagedPlace> {
    let mut ranges: Vec<DamagedPlace> = Vec::new();
    let mut joined = 0u64;
    let close = |ranges: &mut Vec<DamagedPlace>, joined: u64| {
        if let Some(last) = ranges.last_mut().filter(|_| joined > 0) {
            last.reason = format!("{}; and {joined} more", last.reason);
        }
    };
    for (&first, place) in places.range(..chunks) {
        let len = place.chunks.min(chunks - first);
        match ranges.last_mut() {
            Some(last) if last.node == place.node && last.first + last.chunks == first => {
                last.chunks += len;
                joined += 1;
            }
            _ => {
                close(&mut ranges, std::mem::take(&mut joined));
                if ranges.len() == MAX_RANGES {
                    let reason = "this and further ranges behind it".to_owned();
                    ranges.push(DamagedPlace { first, chunks: len, node: place.node, reason });
                    return ranges;
                }
                let reason = place.reason.to_string();
                ranges.push(DamagedPlace { first, chunks: len, node: place.node, reason });
            }
        }
    }
    close(&mut ranges, joined);
    if more && let Some(last) = ranges.last_mut() {
        last.reason.push_str("; there is more damage than could be kept in mind");
    }
    ranges
}
