//! The chunks that may be short.

use std::collections::HashMap;

use thinbak_proto::{ChunkId, Failed, v1};

use super::{geometry_of, places::DamagedPlace};
use crate::{ingest::tree_of, map_tree, repository::Repository};

/// Where the generations of each volume end: there, and nowhere else, a chunk may be short.
pub(super) struct Ends(HashMap<String, Vec<u64>>);

impl Ends {
    pub(super) fn of(generations: &[v1::Generation]) -> Self {
        let mut ends: HashMap<String, Vec<u64>> = HashMap::new();
        for generation in generations {
            let geometry = geometry_of(generation);
            let last = geometry.chunks().saturating_sub(1);
            let of_volume = ends.entry(generation.volume_uuid.clone()).or_default();
            let short = geometry.bytes_of(last, 1) < u64::from(generation.chunk_bytes);
            if short && !of_volume.contains(&last) {
                of_volume.push(last);
            }
        }
        Self(ends)
    }

    /// Checks the lengths of a generation's chunks where any generation of the volume ends. Chunks that are rightly
    /// short are put into `usual`.
    pub(super) async fn check(
        &self,
        repository: &Repository,
        generation: &v1::Generation,
        usual: &mut HashMap<ChunkId, u32>,
    ) -> Result<Vec<DamagedPlace>, Failed> {
        let (tree, geometry) = (tree_of(generation)?, geometry_of(generation));
        let mut wrong = Vec::new();
        for &chunk in self.0.get(&generation.volume_uuid).map(Vec::as_slice).unwrap_or_default() {
            // A node that cannot be read is named as such.
            let Ok(entry) = map_tree::entry_at(&repository.store, tree, chunk).await else { continue };
            let Some(id) = entry.chunk() else { continue };
            let located = repository.store.indexed_at(vec![*id.as_bytes()]).await?;
            let Some(found) = located.first().copied().flatten().map(|location| location.plain_len) else {
                continue;
            };
            let expected = geometry.bytes_of(chunk, 1);
            if u64::from(found) == expected {
                usual.insert(id, found);
            } else {
                let reason = format!("chunk {id} has {found} bytes, not {expected}");
                wrong.push(DamagedPlace { first: chunk, chunks: 1, node: false, reason });
            }
        }
        Ok(wrong)
    }
}
