//! Holding generations for as long as a client listens.

use std::{collections::BTreeMap, sync::Arc};

use futures::{Stream, StreamExt as _, stream};
use thinbak_proto::{Failed, FailureKind, v1};
use tonic::Status;

use crate::{
    catalogue::Entry,
    ingest::tree_of,
    repository::{Pin, Repository},
};

/// Generations of one call.
const MAX_HELD: usize = 1024;

/// Looks up and pins what is asked for; the pins last as long as the stream that is returned.
pub(super) async fn hold(
    repository: &Arc<Repository>,
    request: v1::HoldRequest,
) -> Result<impl Stream<Item = Result<v1::HoldEvent, Status>> + Send + use<>, Failed> {
    let place = Arc::clone(&repository.pins.holds).try_acquire_owned().map_err(|_| {
        let message = "too many clients hold generations";
        Failed::new(FailureKind::Busy, message).with_hint("try again when a restore has ended")
    })?;
    let mut stopping = repository.stopping();
    let entrance = repository.pins.enter().await;
    let held = find(repository, request).await?;
    let trees = held.iter().map(tree_of).collect::<Result<Vec<_>, _>>()?;
    let pins: Vec<Pin> = trees.into_iter().map(|tree| entrance.pin(tree)).collect();
    drop(entrance);
    let end = async move {
        let _held = (place, pins);
        // An error means that the repository is gone, which ends the hold as well.
        let _ = stopping.wait_for(|stopping| *stopping).await.is_ok();
        Err(Failed::new(FailureKind::Busy, "generations are no longer held: the server is stopping").into())
    };
    Ok(stream::iter([Ok(v1::HoldEvent { held })]).chain(stream::once(end)))
}

/// The generations that are asked for, by ascending number.
async fn find(repository: &Repository, request: v1::HoldRequest) -> Result<Vec<v1::Generation>, Failed> {
    let v1::HoldRequest { volume: name, selectors, ranges } = request;
    let too_many = || {
        Failed::new(FailureKind::Usage, format!("more than {MAX_HELD} generations are to be held at a time"))
    };
    if selectors.len() > MAX_HELD || ranges.len() > MAX_HELD {
        return Err(too_many());
    }
    let shown = name.as_ref().map(|name| name.name.clone()).unwrap_or_default();
    let volume = repository.volume(name.clone()).await?;
    let mut found = BTreeMap::new();
    for selector in selectors {
        let Entry { generation, .. } = repository.generation(name.clone(), Some(selector)).await?;
        found.insert(generation.number, generation);
    }
    for v1::GenerationRange { first, last } in ranges {
        let entries = repository.catalogue.range(volume, first, last, MAX_HELD + 1).await?;
        if entries.is_empty() {
            let last = if last == u64::MAX { String::new() } else { last.to_string() };
            let message = format!("volume {shown} has no generation in {first}..{last}");
            return Err(Failed::new(FailureKind::NotFound, message)
                .with_hint(format!("`thinbak generation list {shown}` shows what is there")));
        }
        found.extend(entries.into_iter().map(|entry| (entry.generation.number, entry.generation)));
        if found.len() > MAX_HELD {
            return Err(too_many());
        }
    }
    if found.is_empty() {
        return Err(Failed::new(FailureKind::Usage, "the request does not say which generations are meant"));
    }
    Ok(found.into_values().collect())
}
