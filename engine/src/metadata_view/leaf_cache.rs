//! Leaves that several trees share, kept packed from one walk to the next.

use std::{collections::HashMap, fmt, sync::Arc};

use parking_lot::Mutex;

use crate::MetadataBlock;

/// Memory of all leaves together, with what finding them takes.
const LIMIT_BYTES: usize = 11 << 20;
/// What finding one leaf takes: an entry of the map, which is half empty at worst.
const LEAF_BYTES: usize = 26;
/// A walk that finds less than one leaf in so many has little in common with the walks before it.
const FEW_HITS: u64 = 8;

/// Leaves read before, for walks over trees that have many in common: a volume and its snapshots. A few MiB; the
/// leaves of a tebibyte that was written in order fit. Clones are the same cache.
///
/// What is in it stays until a walk has shown that it is of no use: walks come back to leaves in the order in which they
/// read them, so a cache that drops what is oldest would always have dropped what comes next.
#[derive(Clone, Default)]
pub struct LeafCache {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// Where a leaf is in `packed`, and how long it is, by the number of its block: metadata has no more than fit.
    places: HashMap<u32, (u32, u16)>,
    packed: Vec<u8>,
    hits: u64,
    misses: u64,
    full: bool,
}

impl fmt::Debug for LeafCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeafCache").field("leaves", &self.inner.lock().places.len()).finish_non_exhaustive()
    }
}

impl LeafCache {
    /// Before a walk.
    pub(super) fn begin_walk(&self) {
        let mut inner = self.inner.lock();
        let useless = inner.full && inner.hits * FEW_HITS < inner.misses;
        if useless {
            *inner = Inner::default();
        }
        (inner.hits, inner.misses) = (0, 0);
    }

    /// The leaf in a block, if it is known.
    pub(super) fn get(&self, block: MetadataBlock) -> Option<Arc<[u8]>> {
        let mut inner = self.inner.lock();
        let place = u32::try_from(block.0).ok().and_then(|key| inner.places.get(&key));
        let found = place.and_then(|(begin, length)| {
            let begin = *begin as usize;
            inner.packed.get(begin..begin + usize::from(*length)).map(Arc::from)
        });
        match found {
            Some(_) => inner.hits += 1,
            None => inner.misses += 1,
        }
        found
    }

    /// Whether the leaf in a block is known.
    pub(super) fn has(&self, block: MetadataBlock) -> bool {
        u32::try_from(block.0).is_ok_and(|key| self.inner.lock().places.contains_key(&key))
    }

    /// Whether a leaf has not been kept for want of room.
    pub(super) fn is_full(&self) -> bool {
        self.inner.lock().full
    }

    /// Keeps a leaf, if there is room.
    pub(super) fn insert(&self, block: MetadataBlock, packed: &[u8]) {
        let mut inner = self.inner.lock();
        let begin = inner.packed.len();
        let end = begin + packed.len();
        if end + (inner.places.len() + 1) * LEAF_BYTES > LIMIT_BYTES {
            inner.full = true;
            return;
        }
        let (key, length) = (u32::try_from(block.0), u16::try_from(packed.len()));
        if let (Ok(key), Ok(begin), Ok(length)) = (key, u32::try_from(begin), length) {
            inner.places.insert(key, (begin, length));
            inner.packed.extend_from_slice(packed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LIMIT_BYTES, LeafCache};
    use crate::MetadataBlock;

    #[test]
    fn what_fits_stays_and_the_rest_is_not_kept() {
        let cache = LeafCache::default();
        let leaf = [7; 1000];
        for block in 0..20_000 {
            cache.insert(MetadataBlock(block), &leaf);
        }
        let kept = (0..20_000).filter(|block| cache.get(MetadataBlock(*block)).is_some()).count();
        assert!((LIMIT_BYTES / 1100..LIMIT_BYTES / 1000).contains(&kept), "{kept}");
        assert_eq!(cache.get(MetadataBlock(0)).as_deref(), Some(leaf.as_slice()));
    }

    #[test]
    fn a_full_cache_that_a_walk_found_useless_is_emptied() {
        let cache = LeafCache::default();
        let fill = |from: u64| {
            (from..from + 20_000).for_each(|block| cache.insert(MetadataBlock(block), &[1; 1000]))
        };
        fill(0);
        cache.begin_walk();
        (0..100).for_each(|block| drop(cache.get(MetadataBlock(block))));
        cache.begin_walk();
        assert!(cache.get(MetadataBlock(0)).is_some(), "it was of use");
        (50_000..50_100).for_each(|block| drop(cache.get(MetadataBlock(block))));
        cache.begin_walk();
        assert!(cache.get(MetadataBlock(0)).is_none());
        fill(50_000);
        assert!(cache.get(MetadataBlock(50_000)).is_some());
    }
}
