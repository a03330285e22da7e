//! Carrying out a plan, one pack at a time.

use std::collections::HashSet;

use thinbak_proto::{ChunkId, Failed, v1};
use v1::{CollectReason, collect_event::Event};

use super::{
    End, Options, Report, Throttle,
    plan::{Doomed, Plan},
    roots::Marked,
};
use crate::{
    repository::Repository,
    store::{PackRecord, Removal, Store, StoreError},
};

/// Records are copied in groups of at most so many bytes (or one record): so much memory is taken, and puts wait
/// no longer than one group takes.
const GROUP_BYTES: u64 = 4 << 20;
/// How often records that somebody came to rely on are copied out of one pack, before it is left alone.
const ATTEMPTS: usize = 3;

pub(super) struct Sweep<'a> {
    repository: &'a Repository,
    store: &'a Store,
    marked: &'a Marked,
    throttle: Throttle,
    progress: v1::CollectProgress,
}

/// Why a pack stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// A backup relies on records of it.
    ReliedOn,
    /// Records in use cannot be read, or are not found.
    Damaged,
    /// Its file is another pack, or no pack at all.
    Foreign,
    /// It may hold what a generation misses.
    Missed,
    /// The index finds something in use there.
    InUse,
    /// Putting small packs together must not take what is kept free.
    NoRoom,
}

impl Kept {
    fn reason(self) -> &'static str {
        match self {
            Self::ReliedOn => "a running backup relies on what is in it",
            Self::Damaged => "records in use are damaged",
            Self::Foreign => "its file does not hold this pack",
            Self::Missed => "it may hold what a generation misses",
            Self::InUse => "it is in use again",
            Self::NoRoom => "there is no room to put small packs together",
        }
    }
}

impl<'a> Sweep<'a> {
    pub(super) fn new(repository: &'a Repository, marked: &'a Marked, options: &Options) -> Self {
        let throttle = Throttle::new(options.rate);
        let store = &repository.store;
        Self { repository, store, marked, throttle, progress: v1::CollectProgress::default() }
    }

    pub(super) async fn run(
        mut self,
        plan: &Plan,
        summary: &mut v1::CollectSummary,
        report: &mut Report<'_>,
    ) -> Result<(), End> {
        let totals = &plan.totals;
        self.progress.total_bytes =
            totals.dead_pack_bytes + totals.repack_pack_bytes + totals.merge_pack_bytes;
        let dead = plan.dead.iter().map(|pack| (pack, CollectReason::Dead));
        let mostly = plan.repack.iter().map(|pack| (pack, CollectReason::MostlyDead));
        let small = plan.merge.iter().map(|pack| (pack, CollectReason::Small));
        for (pack, reason) in dead.chain(mostly).chain(small) {
            report(Event::Progress(self.progress)).await?;
            let mut moved_bytes = 0;
            let outcome = self.pack(pack, reason, &mut moved_bytes, report).await;
            summary.moved_bytes += moved_bytes;
            let kept = outcome?;
            let freed_bytes = if kept.is_none() { pack.len } else { 0 };
            match kept {
                None => {
                    summary.removed_packs += 1;
                    self.repository.forget_packs(&[pack.number]).await.map_err(Failed::from)?;
                }
                Some(_) => summary.kept_packs += 1,
            }
            summary.removed_bytes += freed_bytes;
            self.progress.done_bytes += pack.len;
            let kept = kept.map(Kept::reason).unwrap_or_default();
            tracing::debug!(pack = pack.number, moved_bytes, freed_bytes, kept, "pack collected");
            report(Event::Pack(v1::CollectPack {
                pack: pack.number,
                reason: reason.into(),
                moved_bytes,
                freed_bytes,
                kept: kept.into(),
            }))
            .await?;
        }
        Ok(())
    }

    /// Copies what is in use out of a pack, and removes it. `None`: it is gone.
    async fn pack(
        &mut self,
        pack: &Doomed,
        reason: CollectReason,
        moved_bytes: &mut u64,
        report: &mut Report<'_>,
    ) -> Result<Option<Kept>, End> {
        if reason == CollectReason::Small
            && self.store.available_bytes().await.is_some_and(|available| available < pack.len)
        {
            return Ok(Some(Kept::NoRoom));
        }
        let records = match self.store.pack_records(pack.number).await {
            Ok(records) => records,
            // Its file is gone, nothing of it is in use, and nothing is missed: so it is forgotten.
            Err(StoreError::PackMissing { .. })
                if reason == CollectReason::Dead && self.marked.lost.is_empty() =>
            {
                Vec::new()
            }
            // What is in the file may be the only copy of what another pack should have.
            Err(StoreError::WrongPack { .. } | StoreError::OversizedPack { .. }) => {
                return Ok(Some(Kept::Foreign));
            }
            Err(error) if error.is_damage() => return Ok(Some(Kept::Damaged)),
            Err(error) => return Err(error.into()),
        };
        if records.iter().any(|record| self.is_missed(record)) {
            return Ok(Some(Kept::Missed));
        }
        let live: Vec<PackRecord> =
            records.iter().filter(|record| self.marked.needs(record)).copied().collect();
        if live.len() as u64 != self.marked.live.count(pack.number) {
            return Ok(Some(Kept::Damaged));
        }
        let mut needed: HashSet<[u8; 32]> = live.iter().map(|record| record.id).collect();
        if !self.copy(pack.number, live, moved_bytes, report).await? {
            return Ok(Some(Kept::Damaged));
        }
        for _ in 0..ATTEMPTS {
            let is_needed = |record: &PackRecord| record.indexed && needed.contains(&record.id);
            match self.store.retire(pack.number, &records, is_needed).await? {
                Removal::Removed => return Ok(None),
                Removal::InUse => return Ok(Some(Kept::InUse)),
                // Removing dead packs must take no space.
                Removal::Touched(_) if reason == CollectReason::Dead => break,
                Removal::Touched(ids) => {
                    let ids: HashSet<[u8; 32]> = ids.into_iter().collect();
                    let touched = records.iter().filter(|record| record.indexed && ids.contains(&record.id));
                    if !self.copy(pack.number, touched.copied().collect(), moved_bytes, report).await? {
                        return Ok(Some(Kept::Damaged));
                    }
                    needed.extend(ids);
                }
            }
        }
        Ok(Some(Kept::ReliedOn))
    }

    fn is_missed(&self, record: &PackRecord) -> bool {
        let lost = &self.marked.lost.chunks;
        !lost.is_empty() && lost.contains(&ChunkId::from_bytes(record.id))
    }

    /// Copies records, at the rate that is allowed. False if some cannot be read.
    async fn copy(
        &mut self,
        pack: u32,
        records: Vec<PackRecord>,
        moved_bytes: &mut u64,
        report: &mut Report<'_>,
    ) -> Result<bool, End> {
        let mut bytes = 0;
        let group_of = |record: &PackRecord| {
            bytes += record.len();
            bytes / GROUP_BYTES
        };
        let groups: Vec<u64> = records.iter().map(group_of).collect();
        let mut whole = true;
        let mut rest = records.as_slice();
        for group in groups.chunk_by(|one, next| one == next) {
            let (now, later) = rest.split_at_checked(group.len()).unwrap_or((rest, &[]));
            rest = later;
            let moved = self.store.move_records(pack, now.to_vec()).await?;
            *moved_bytes += moved.bytes;
            for error in moved.damaged {
                tracing::error!(pack, %error, "a record in use is damaged");
                whole = false;
            }
            tokio::time::sleep(self.throttle.after(moved.bytes)).await;
            report(Event::Progress(self.progress)).await?;
        }
        Ok(whole)
    }
}
