//! Nobody's pool is filled by us: what is looked at before a snapshot is taken and before a restore writes.
//!
//! | looked at | refused when |
//! |---|---|
//! | mode, `needs_check` | the pool takes no writes |
//! | the clock, 24 bits that count snapshots and never go back | it would pass 2^23; from 2^22 on there is a warning |
//! | free data and metadata | less is free than `[guard]` says, or would be once the generation is there |
//! | snapshots and bases | there would be more than `[guard]` says |
//!
//! Before a job is refused for want of room, bases of ours go that somebody can do without, the oldest first, one after the
//! other until there is room: those of volumes that are no longer there, then, for a backup, those of other repositories,
//! whose next backup compares all content. A base of a volume that another job works on is never touched.
//!
//! What a restore needs is what is certain to be needed, so that nothing is refused that would fit: as many blocks as the
//! largest of its generations cannot do without. What else is written to the pool meanwhile is not known.

use std::collections::HashSet;

use thinbak_engine::{Base, Kind};
use thinbak_proto::{
    Failed, FailureKind,
    v1::{Generation, PoolInfo},
};
use uuid::Uuid;

use super::{PoolManager, ThinPool};
use crate::config::{GuardLimits, Share};

/// Snapshots are refused when the pool's clock has passed this: the format's end is at twice as many.
pub(super) const CLOCK_LIMIT: u64 = 1 << 23;
/// From here on every snapshot is accompanied by a warning.
pub(super) const CLOCK_WARNING: u64 = 1 << 22;

const METADATA_BLOCK_BYTES: u64 = 4096;

/// What a job is about to do to a pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct Need {
    /// Snapshots that are taken, private ones too.
    pub(crate) snapshots: u64,
    /// Data blocks that are certainly allocated.
    pub(crate) data_blocks: u64,
    /// The repository of a backup: bases for others may go.
    pub(crate) repository: Option<Uuid>,
    /// The volumes that the job has locked.
    pub(crate) locked: Vec<String>,
}

impl Need {
    /// A restore of generations to a device that holds `present_bytes` already.
    pub(crate) fn of_restore(generations: &[Generation], block_bytes: u64, present_bytes: u64) -> Self {
        let blocks = |generation: &Generation| {
            // A chunk that is larger than a block may be zero but for one.
            let unit = block_bytes.max(generation.chunk_bytes.into()).max(1);
            generation.mapped_bytes.div_ceil(unit)
        };
        let needed = generations.iter().map(blocks).max().unwrap_or_default();
        let present = present_bytes / block_bytes.max(1);
        Self { data_blocks: needed.saturating_sub(present), snapshots: 1, ..Self::default() }
    }
}

/// Why a pool is left alone.
struct Lack {
    failed: Failed,
    /// Whether there may be room when a base goes.
    bases_help: bool,
}

impl PoolManager {
    /// Refuses what a pool has no room for, or makes room by giving up old bases. Returns what was given up, a line each.
    pub(crate) fn admit(&self, pool: &dyn ThinPool, need: &Need) -> Result<Vec<String>, Failed> {
        let mut dropped = Vec::new();
        let mut spare = None;
        loop {
            let info = pool.info()?;
            let Some(lack) = lack(&info, self.guard_limits(), need) else { return Ok(dropped) };
            if !lack.bases_help {
                return Err(lack.failed);
            }
            let spare = match &mut spare {
                Some(spare) => spare,
                None => spare.insert(self.spare_bases(pool, need)?),
            };
            let Some((base, why)) = spare.pop() else { return Err(lack.failed) };
            pool.forget_base(base.repository, base.volume)?;
            let note = format!(
                "the base {why} was given up to make room in pool {}: generation {} of volume {} in repository {}",
                pool.name(),
                base.generation,
                base.volume,
                base.repository
            );
            tracing::warn!(pool = pool.name(), reason = lack.failed.message, "{note}");
            dropped.push(note);
        }
    }

    /// Bases that somebody can do without, the first to go at the end.
    fn spare_bases(&self, pool: &dyn ThinPool, need: &Need) -> Result<Vec<(Base, &'static str)>, Failed> {
        let bases = pool.bases();
        if bases.is_empty() {
            return Ok(Vec::new());
        }
        let listed = pool.list()?;
        let volumes = listed.iter().map(|(volume, _)| volume).filter(|volume| volume.kind == Kind::Volume);
        let (mut there, mut free) = (HashSet::new(), HashSet::new());
        for volume in volumes {
            there.insert(volume.uuid);
            if need.locked.contains(&volume.name) || self.lock_volume(pool.uuid(), &volume.name).is_ok() {
                free.insert(volume.uuid);
            }
        }
        let (mut of_gone, mut of_others): (Vec<Base>, Vec<Base>) =
            bases.into_iter().partition(|base| !there.contains(&base.volume));
        of_others.retain(|base| {
            need.repository.is_some_and(|ours| base.repository != ours) && free.contains(&base.volume)
        });
        for bases in [&mut of_gone, &mut of_others] {
            bases.sort_by_key(|base| std::cmp::Reverse(base.point.created_at_ms));
        }
        let of_others = of_others.into_iter().map(|base| (base, "for another repository"));
        let of_gone = of_gone.into_iter().map(|base| (base, "of a volume that is gone"));
        Ok(of_others.chain(of_gone).collect())
    }

    /// What is told of a pool, with what the guard would say.
    pub(super) fn with_warnings(&self, mut info: PoolInfo) -> PoolInfo {
        // The mode has warnings of its own.
        if info.error.is_empty() && info.mode == "rw" && !info.needs_check {
            let lacks = lacks_of(&info, self.guard_limits(), &Need { snapshots: 1, ..Need::default() });
            let warnings =
                lacks.into_iter().map(|lack| format!("no snapshots are taken: {}", lack.failed.message));
            info.warnings.extend(warnings);
            if (CLOCK_WARNING..CLOCK_LIMIT).contains(&info.snapshot_clock) {
                let clock = info.snapshot_clock;
                info.warnings
                    .push(format!("{clock} of at most {CLOCK_LIMIT} snapshots were taken in its life"));
            }
        }
        info
    }
}

/// Why a pool is left alone; nothing that a base would help with before anything that it would not.
fn lack(info: &PoolInfo, limits: &GuardLimits, need: &Need) -> Option<Lack> {
    lack_of_state(info).or_else(|| lacks_of(info, limits, need).into_iter().next())
}

fn lack_of_state(info: &PoolInfo) -> Option<Lack> {
    let why = match info.mode.as_str() {
        _ if info.needs_check => "its metadata need a check",
        "rw" => return None,
        "fail" => "it has failed",
        "out_of_data_space" => {
            let message = format!("no data block of its {} is free", info.data_total_blocks);
            let failed = refused(info, &message, "make room in the pool first, or make it larger");
            return Some(Lack { failed, bases_help: true });
        }
        _ => "it is read-only",
    };
    let hint = format!("thinbak pool status shows its state; it says: {}", info.status_line.trim_end());
    Some(Lack { failed: refused(info, why, &hint), bases_help: false })
}

fn lacks_of(info: &PoolInfo, limits: &GuardLimits, need: &Need) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let mut add = |bases_help, message: String, hint: &str| {
        lacks.push(Lack { failed: refused(info, &message, hint), bases_help });
    };
    let clock = info.snapshot_clock;
    if clock.saturating_add(need.snapshots) > CLOCK_LIMIT {
        let message = format!("it has counted {clock} snapshots of at most {CLOCK_LIMIT}");
        add(false, message, "restore or copy its volumes to a new pool: the count never goes back");
    }
    let (snapshots, most) = (info.snapshots, limits.max_snapshots);
    if need.snapshots > 0 && snapshots.saturating_add(need.snapshots) > most {
        let message = format!("it has {snapshots} snapshots and bases, and may have {most}");
        add(true, message, "remove some, or raise max_snapshots of [guard] in agent.toml");
    }
    let data = Space {
        what: "data",
        key: "min_free_data",
        block: info.block_bytes,
        free_blocks: info.data_total_blocks.saturating_sub(info.data_used_blocks),
        total_blocks: info.data_total_blocks,
    };
    let metadata = Space {
        what: "metadata",
        key: "min_free_metadata",
        block: METADATA_BLOCK_BYTES,
        free_blocks: info.metadata_total_blocks.saturating_sub(info.metadata_used_blocks),
        total_blocks: info.metadata_total_blocks,
    };
    for (space, limit, needed) in
        [(data, limits.min_free_data, need.data_blocks), (metadata, limits.min_free_metadata, 0)]
    {
        if let Some((message, hint)) = space.lack(limit, needed) {
            add(true, message, &hint);
        }
    }
    lacks
}

/// What is free of a device of a pool.
struct Space {
    what: &'static str,
    key: &'static str,
    block: u64,
    free_blocks: u64,
    total_blocks: u64,
}

impl Space {
    /// What is wrong and the way out, if too little is free.
    fn lack(&self, limit: Share, needed_blocks: u64) -> Option<(String, String)> {
        let bytes = |blocks: u64| blocks.saturating_mul(self.block);
        let (free, total, needed) = (bytes(self.free_blocks), bytes(self.total_blocks), bytes(needed_blocks));
        let kept = limit.of(total);
        let Self { what, key, .. } = self;
        if free >= needed.saturating_add(kept) {
            return None;
        }
        let needs = if needed > 0 { format!("{needed} bytes are needed and ") } else { String::new() };
        let message = format!(
            "of {total} bytes of {what} {free} are free, where {needs}{kept} ({limit}) are to stay free"
        );
        let hint = format!("make room, make the pool larger, or lower {key} of [guard] in agent.toml");
        Some((message, hint))
    }
}

fn refused(info: &PoolInfo, why: &str, hint: &str) -> Failed {
    Failed::new(FailureKind::Refused, format!("pool {}: {why}", info.name)).with_hint(hint)
}

#[cfg(test)]
mod tests;
