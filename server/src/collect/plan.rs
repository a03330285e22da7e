//! What is to be done with each pack.

use thinbak_proto::v1;

use super::{
    End, Options,
    roots::{Marked, Roots},
};
use crate::{
    repository::Repository,
    store::{PackRecord, SealedPack},
};

/// A pack that is to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Doomed {
    pub(super) number: u32,
    /// Length of the file.
    pub(super) len: u64,
    /// Bytes of the records in use, which are copied before.
    pub(super) live_bytes: u64,
}

/// The packs to be removed, and what that comes to.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nothing in them is in use.
    pub(super) dead: Vec<Doomed>,
    /// The emptiest first.
    pub(super) repack: Vec<Doomed>,
    pub(super) totals: v1::CollectPlan,
}

impl Plan {
    /// Looks at all packs that were sealed when the roots were read, one at a time.
    pub(super) async fn make(
        repository: &Repository,
        options: &Options,
        roots: &Roots,
        marked: &Marked,
    ) -> Result<Self, End> {
        let mut plan = Self::default();
        let mut candidates: Vec<(Doomed, u64)> = Vec::new();
        for pack in &roots.packs {
            plan.totals.packs += 1;
            plan.totals.pack_bytes += pack.len;
            let live = marked.live.count(pack.number);
            if !pack.whole && !marked.lost.is_empty() {
                // What is missing may be in there, and come back with a copy of the file.
                continue;
            }
            let SealedPack { number, len, records, .. } = *pack;
            if live == 0 {
                plan.dead.push(Doomed { number, len, live_bytes: 0 });
            } else if live < records {
                let Some((live_bytes, dead_bytes)) = shares(repository, marked, number).await? else {
                    continue;
                };
                candidates.push((Doomed { number, len, live_bytes }, dead_bytes));
            }
        }
        plan.choose(candidates, options);
        Ok(plan)
    }

    fn choose(&mut self, mut candidates: Vec<(Doomed, u64)>, options: &Options) {
        candidates.sort_unstable_by_key(|(pack, _)| (pack.live_bytes, pack.number));
        let mut budget = options.max_repack;
        for (pack, dead_bytes) in candidates {
            let share = pack.live_bytes as f64 / (pack.live_bytes + dead_bytes).max(1) as f64;
            let left = budget.checked_sub(pack.live_bytes);
            let fits =
                dead_bytes > 0 && share <= options.threshold && pack.live_bytes <= options.max_extra_space;
            match left.filter(|_| fits) {
                Some(left) => {
                    budget = left;
                    self.repack.push(pack);
                }
                None => self.totals.kept_dead_bytes += dead_bytes,
            }
        }
        let totals = &mut self.totals;
        totals.dead_packs = self.dead.len() as u64;
        totals.dead_pack_bytes = self.dead.iter().map(|pack| pack.len).sum();
        totals.repack_packs = self.repack.len() as u64;
        totals.repack_pack_bytes = self.repack.iter().map(|pack| pack.len).sum();
        totals.repack_live_bytes = self.repack.iter().map(|pack| pack.live_bytes).sum();
        totals.free_bytes =
            (totals.dead_pack_bytes + totals.repack_pack_bytes).saturating_sub(totals.repack_live_bytes);
    }
}

/// Bytes of the records of a pack that are in use, and of the others; `None` if the pack cannot be read.
async fn shares(repository: &Repository, marked: &Marked, pack: u32) -> Result<Option<(u64, u64)>, End> {
    let records = match repository.store.pack_records(pack).await {
        Ok(records) => records,
        Err(error) if error.is_damage() => {
            tracing::warn!(pack, %error, "a pack cannot be read and is left alone");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let (mut live, mut dead) = (0, 0);
    for record in &records {
        *if marked.needs(record) { &mut live } else { &mut dead } += record.len();
    }
    Ok(Some((live, dead)))
}

impl Marked {
    /// Whether this copy of a record is in use.
    pub(super) fn needs(&self, record: &PackRecord) -> bool {
        record.indexed && self.live.contains(record.location.pack, record.location.ordinal)
    }
}
