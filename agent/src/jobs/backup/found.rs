//! What is to be done for the volumes of one pool.

use std::{sync::Arc, time::Duration};

use thinbak_proto::Failed;
use uuid::Uuid;

use crate::{
    jobs::plan::{self, Due, Sorted, Transfer},
    pools::{Need, PoolManager, ThinPool, with_notes},
};

/// What is to be sent, and what was given up to make room for it; or the names of the volumes that could not be
/// snapshotted, and why.
type Changed = Result<(Vec<Transfer>, Vec<String>), (Vec<String>, Failed)>;

/// The volumes of a pool, by what is to be done for them.
pub(super) struct Found {
    /// Not written since their base: they get their generation whatever becomes of the others.
    pub(super) unchanged: Vec<Due>,
    pub(super) changed: Changed,
    /// How long metadata snapshots were held.
    pub(super) held: Duration,
}

impl Found {
    /// The idle test, then room is made and the snapshots are taken and walked. The volumes of a group are of one moment: if
    /// one is snapshotted, all are. Blocking.
    pub(super) fn find(
        manager: &PoolManager,
        pool: &Arc<dyn ThinPool>,
        dues: Vec<Due>,
        repository: Uuid,
        grouped: bool,
        chunk_bytes: u32,
    ) -> Result<Self, Failed> {
        let locked = dues.iter().map(|due| due.volume.name.clone()).collect();
        let mut sorted = plan::idle_test(pool.as_ref(), dues)?;
        if grouped && !sorted.changed.is_empty() {
            sorted.changed.append(&mut sorted.unchanged);
        }
        let Sorted { unchanged, changed, mut held } = sorted;
        if changed.is_empty() {
            return Ok(Self { unchanged, changed: Ok((Vec::new(), Vec::new())), held });
        }
        let names = changed.iter().map(|due| due.name.clone()).collect();
        let repository = Some(repository);
        let need = Need { snapshots: changed.len() as u64, repository, locked, ..Need::default() };
        let walked = manager.admit(pool.as_ref(), &need).and_then(|notes| {
            let walked = plan::snapshot_and_walk(pool, changed, chunk_bytes);
            let (transfers, held_again) = walked.map_err(|failed| with_notes(failed, &notes))?;
            held += held_again;
            Ok((transfers, notes))
        });
        Ok(Self { unchanged, changed: walked.map_err(|failed| (names, failed)), held })
    }
}
