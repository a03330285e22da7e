//! What is kept of what a pool looked like and of its metadata: by a rule of its own, no policy is for it.
//!
//! Whoever may add generations could push out the former ones by many new ones, were only the newest kept. So those of days
//! and months are kept too.

use jiff::tz::TimeZone;
use thinbak_proto::{Failed, FailureKind, v1::RetentionPolicy};
use uuid::Uuid;

use super::{
    Policy,
    delete::{STEP, delete},
    plan::plan,
};
use crate::{catalogue::GenerationKey, repository::Repository};

/// Of HOST/POOL/.shape and HOST/POOL/.metadata each.
const RULE: RetentionPolicy =
    RetentionPolicy { last: 30, daily: 30, monthly: 12, hourly: 0, weekly: 0, yearly: 0, within_seconds: 0 };

/// Deletes what the rule does not keep.
pub(crate) async fn prune_hidden(repository: &Repository, volume: Uuid) -> Result<(), Failed> {
    let policy = Policy::new(&RULE).map_err(|error| Failed::new(FailureKind::Failed, error.to_string()))?;
    let (candidates, now_ms) = (repository.catalogue.candidates(volume).await?, repository.now_ms());
    let keys: Vec<_> = plan(&policy, candidates, now_ms, &TimeZone::system())
        .into_iter()
        .filter(super::plan::Decision::removes)
        .map(|decision| GenerationKey { volume, number: decision.candidate.number })
        .collect();
    for step in keys.chunks(STEP) {
        delete(repository, step, now_ms).await?;
    }
    Ok(())
}
