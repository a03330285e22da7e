//! Collection beside backups, on a whole repository.

mod interleaving;
mod merging;
mod model;
mod refusals;
mod survival;

use std::collections::HashSet;

use futures::FutureExt as _;
use thinbak_proto::{MapEntry, MapNode, NodeId, v1};
use v1::collect_event::Event;

use super::{End, Options, run};
use crate::{
    ingest::tests::client::{Place, named, number},
    store::Kind,
};

/// Everything that is not in use goes, and no deletion can be undone.
const ALL: Options = Options {
    dry_run: false,
    threshold: 1.0,
    max_extra_space: u64::MAX,
    max_repack: u64::MAX,
    rate: 0,
    grace_ms: Some(0),
};

/// Collects, and gives back what was said.
async fn collect(place: &Place, options: Options) -> Result<(v1::CollectPlan, v1::CollectSummary), End> {
    let mut plan = None;
    let mut report = |event: Event| {
        if let Event::Plan(said) = event {
            plan = Some(said);
        }
        async { Ok(()) }.boxed()
    };
    let summary = run(&place.repository, options, &mut report).await?;
    Ok((plan.unwrap(), summary))
}

fn message(end: End) -> (u8, String) {
    match end {
        End::Failed(failed) => (failed.exit_code(), format!("{} / {:?}", failed.message, failed.hint)),
        End::Gone => panic!("nobody is gone"),
    }
}

async fn delete(place: &Place, generation: &v1::Generation) {
    let volume = named(&generation.volume_name);
    let request = v1::DeleteGenerationRequest { volume, selector: number(generation.number) };
    place.generations().delete_generation(request).await.unwrap();
}

/// The ids of the chunks and map nodes that generations need, found one by one.
pub(crate) async fn needed(place: &Place, generations: &[v1::Generation]) -> HashSet<[u8; 32]> {
    let mut needed = HashSet::new();
    for generation in generations {
        let mut pending = vec![NodeId::try_from(generation.root.as_ref()).unwrap()];
        while let Some(id) = pending.pop() {
            if !needed.insert(*id.as_bytes()) {
                continue;
            }
            let record = place.repository.store.get(*id.as_bytes()).await.unwrap().unwrap();
            let node = MapNode::decode(&record.stored).unwrap();
            match node.level() {
                0 => needed.extend(node.slots().iter().filter_map(MapEntry::chunk).map(|id| *id.as_bytes())),
                _ => pending.extend(node.slots().iter().filter_map(MapEntry::node)),
            }
        }
    }
    needed
}

/// The ids of all chunks and map nodes in the packs. Each is there once, or it is an error.
pub(crate) fn stored(place: &Place) -> HashSet<[u8; 32]> {
    let mut stored = HashSet::new();
    for kind in [Kind::Chunk, Kind::MapNode] {
        for record in place.repository.store.records(kind).unwrap() {
            assert!(stored.insert(record.unwrap().id), "a record is stored twice");
        }
    }
    stored
}

/// Whether a catalogue made from the packs would show a generation that the catalogue does not.
pub(crate) fn raises_the_dead(place: &Place, visible: &[v1::Generation]) -> bool {
    let mut ended = std::collections::HashMap::new();
    for record in place.repository.store.records(Kind::Tombstone).unwrap() {
        let (key, revision) = crate::manifest::subject_of(&record.unwrap()).unwrap();
        let highest: &mut u64 = ended.entry(key).or_default();
        *highest = revision.max(*highest);
    }
    place.repository.store.records(Kind::Manifest).unwrap().any(|record| {
        let (key, revision) = crate::manifest::subject_of(&record.unwrap()).unwrap();
        let is_visible = visible.iter().any(|generation| {
            (&generation.volume_uuid, generation.number) == (&key.volume.to_string(), key.number)
        });
        !is_visible && ended.get(&key).is_none_or(|ended| *ended < revision)
    })
}
