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

/// A pack is small below this length. Each collection and each verification opens every pack, and one that is
/// collected every night gets a pack a night, however little was backed up.
const SMALL: u64 = 4 << 20;
/// So many small packs are put together, fewer are left alone: what is copied again and again until it is no small
/// pack is at most [`SMALL`] for so many packs.
const MANY: usize = 8;

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
    /// Small packs, which are put together.
    pub(super) merge: Vec<Doomed>,
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
        let mut candidates = Vec::new();
        for pack in &roots.packs {
            plan.totals.packs += 1;
            plan.totals.pack_bytes += pack.len;
            let live = marked.live.count(pack.number);
            if !pack.whole && !marked.lost.is_empty() {
                // What is missing may be in there, and come back with a copy of the file.
                continue;
            }
            let SealedPack { number, len, records, whole } = *pack;
            if live == 0 {
                plan.dead.push(Doomed { number, len, live_bytes: 0 });
            } else if live < records || (whole && len < SMALL) {
                let Some((live_bytes, dead_bytes)) = shares(repository, marked, number).await? else {
                    continue;
                };
                candidates.push(Candidate { pack: Doomed { number, len, live_bytes }, dead_bytes });
            }
        }
        plan.choose(candidates, options);
        Ok(plan)
    }

    fn choose(&mut self, mut candidates: Vec<Candidate>, options: &Options) {
        candidates.sort_unstable_by_key(|candidate| (candidate.pack.live_bytes, candidate.pack.number));
        candidates.retain(|candidate| {
            let allowed = candidate.pack.live_bytes <= options.max_extra_space;
            self.totals.kept_dead_bytes += if allowed { 0 } else { candidate.dead_bytes };
            allowed
        });
        let (repack, rest): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|candidate| candidate.is_mostly_dead(options.threshold));
        let mut budget = options.max_repack;
        self.repack = self.affordable(repack, &mut budget);
        let (small, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|rest| rest.pack.len < SMALL);
        let dead_in = |packs: &[Candidate]| packs.iter().map(|kept| kept.dead_bytes).sum::<u64>();
        self.totals.kept_dead_bytes += dead_in(&rest);
        let bytes = small.iter().map(|small| small.pack.live_bytes).sum::<u64>();
        if small.len() >= MANY && bytes <= budget {
            self.merge = small.into_iter().map(|small| small.pack).collect();
        } else {
            self.totals.kept_dead_bytes += dead_in(&small);
        }
        self.sum_up();
    }

    /// Those of which no more is copied than the budget has. The others stay.
    fn affordable(&mut self, candidates: Vec<Candidate>, budget: &mut u64) -> Vec<Doomed> {
        let mut chosen = Vec::new();
        for Candidate { pack, dead_bytes } in candidates {
            match budget.checked_sub(pack.live_bytes) {
                Some(left) => {
                    *budget = left;
                    chosen.push(pack);
                }
                None => self.totals.kept_dead_bytes += dead_bytes,
            }
        }
        chosen
    }

    fn sum_up(&mut self) {
        let sums = |packs: &[Doomed]| {
            let (len, live) = (packs.iter().map(|pack| pack.len), packs.iter().map(|pack| pack.live_bytes));
            (packs.len() as u64, len.sum::<u64>(), live.sum::<u64>())
        };
        let totals = &mut self.totals;
        (totals.dead_packs, totals.dead_pack_bytes, _) = sums(&self.dead);
        (totals.repack_packs, totals.repack_pack_bytes, totals.repack_live_bytes) = sums(&self.repack);
        (totals.merge_packs, totals.merge_pack_bytes, totals.merge_live_bytes) = sums(&self.merge);
        totals.free_bytes = (totals.dead_pack_bytes + totals.repack_pack_bytes + totals.merge_pack_bytes)
            .saturating_sub(totals.repack_live_bytes + totals.merge_live_bytes);
    }
}

/// A pack of which something is in use.
struct Candidate {
    pack: Doomed,
    dead_bytes: u64,
}

impl Candidate {
    fn is_mostly_dead(&self, threshold: f64) -> bool {
        let bytes = (self.pack.live_bytes + self.dead_bytes).max(1);
        self.dead_bytes > 0 && self.pack.live_bytes as f64 / bytes as f64 <= threshold
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
