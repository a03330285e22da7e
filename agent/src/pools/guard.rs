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
//! whose next backup compares all content. A base of a volume that another job works on is never touched, and none where all
//! that may go together cannot be enough: a base has at most the blocks that it maps, and none if another device still has
//! the very same mapping tree.
//!
//! What a restore needs is what is certain to be needed, so that nothing is refused that would fit: as many blocks as the
//! largest of its generations cannot do without. What else is written to the pool meanwhile is not known.

use std::collections::{HashMap, HashSet};

use thinbak_engine::{Base, DeviceId, Kind, Roots};
use thinbak_proto::{
    Failed, FailureKind,
    v1::{Generation, PoolInfo},
};
use uuid::Uuid;

use super::{PoolManager, ThinPool, failure::of_view};
use crate::config::{GuardLimits, Share};

/// Snapshots are refused when the pool's clock has passed this: the format's end is at twice as many.
pub(super) const CLOCK_LIMIT: u64 = 1 << 23;
/// From here on every snapshot is accompanied by a warning.
pub(super) const CLOCK_WARNING: u64 = 1 << 22;

const METADATA_BLOCK_BYTES: u64 = 4096;

/// What a job is about to do to a pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct Need {
    /// Snapshots that are taken, private ones too, and stay for a while.
    pub(crate) snapshots: u64,
    /// Private snapshots that replace a volume or go: only the pool's clock counts them.
    pub(crate) passing: u64,
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
        Self { data_blocks: needed.saturating_sub(present), ..Self::default() }
    }
}

/// Why a pool is left alone.
struct Lack {
    failed: Failed,
    missing: Missing,
}

/// What would have to become free.
#[derive(Clone, Copy)]
enum Missing {
    /// Nothing that a base has.
    Other,
    /// So many snapshots and bases fewer.
    Places(u64),
    /// So many data blocks.
    Data(u64),
    /// Metadata blocks: of how many a base has nothing is known.
    Metadata,
}

impl Missing {
    /// Whether there may be less of a want when a base goes.
    fn is_helped_by(self, spare: &Spare) -> bool {
        match self {
            Self::Other => false,
            Self::Places(_) => true,
            Self::Data(_) => spare.data_blocks > 0,
            Self::Metadata => spare.holds_something,
        }
    }

    /// Whether all of these together may be enough.
    fn is_within(self, spares: &[Spare]) -> bool {
        match self {
            Self::Places(count) => spares.len() as u64 >= count,
            Self::Data(blocks) => spares.iter().map(|spare| spare.data_blocks).sum::<u64>() >= blocks,
            _ => spares.iter().any(|spare| self.is_helped_by(spare)),
        }
    }
}

/// A base that somebody can do without.
struct Spare {
    base: Base,
    why: &'static str,
    /// The name of its volume, if that is still there.
    volume: Option<String>,
    /// That it may have for itself, at the most.
    data_blocks: u64,
    /// Whether it may have anything for itself.
    holds_something: bool,
}

/// A failure, with what was given up before it.
pub(crate) fn with_notes(failed: Failed, notes: &[String]) -> Failed {
    match notes {
        [] => failed,
        notes => Failed { message: format!("{} ({})", failed.message, notes.join("; ")), ..failed },
    }
}

impl PoolManager {
    /// Refuses what a pool has no room for, or makes room by giving up old bases. Returns what was given up, a line each.
    pub(crate) fn admit(&self, pool: &dyn ThinPool, need: &Need) -> Result<Vec<String>, Failed> {
        let mut given_up = Vec::new();
        let made = self.make_room(pool, need, &mut given_up);
        made.map_err(|failed| with_notes(failed, &given_up))?;
        Ok(given_up)
    }

    fn make_room(&self, pool: &dyn ThinPool, need: &Need, given_up: &mut Vec<String>) -> Result<(), Failed> {
        let mut spares = None;
        loop {
            let lacks = lacks(&pool.info()?, self.guard_limits(), need);
            let Some(first) = lacks.first().map(|lack| lack.missing) else { return Ok(()) };
            let spares = match &mut spares {
                Some(spares) => spares,
                None if lacks.iter().any(|lack| matches!(lack.missing, Missing::Other)) => &mut Vec::new(),
                None => spares.insert(self.spare_bases(pool, need)?),
            };
            if let Some(lack) = lacks.into_iter().find(|lack| !lack.missing.is_within(spares)) {
                return Err(lack.failed);
            }
            let at = spares.iter().rposition(|spare| first.is_helped_by(spare)).unwrap_or_default();
            given_up.extend(self.give_up(pool, need, &spares.remove(at))?);
        }
    }

    /// Forgets a base, unless a job began to work on its volume meanwhile. Returns what is told of it.
    fn give_up(&self, pool: &dyn ThinPool, need: &Need, spare: &Spare) -> Result<Option<String>, Failed> {
        let Spare { base, why, volume, .. } = spare;
        let unlocked = volume.as_ref().filter(|volume| !need.locked.contains(volume));
        let lock = unlocked.map(|volume| self.lock_volume(pool.uuid(), volume)).transpose();
        let (Ok(_lock), true) = (lock, pool.base(base.repository, base.volume).as_ref() == Some(base)) else {
            return Ok(None);
        };
        pool.forget_base(base.repository, base.volume)?;
        let note = format!(
            "the base {why} was given up to make room in pool {}: generation {} of volume {} in repository {}",
            pool.name(),
            base.generation,
            base.volume,
            base.repository
        );
        tracing::warn!(pool = pool.name(), "{note}");
        Ok(Some(note))
    }

    /// Bases that somebody can do without, the first to go at the end.
    fn spare_bases(&self, pool: &dyn ThinPool, need: &Need) -> Result<Vec<Spare>, Failed> {
        let bases = pool.bases();
        if bases.is_empty() {
            return Ok(Vec::new());
        }
        let listed = pool.list()?;
        let volumes = listed.iter().map(|(volume, _)| volume).filter(|volume| volume.kind == Kind::Volume);
        let names: HashMap<Uuid, &str> = volumes.map(|volume| (volume.uuid, volume.name.as_str())).collect();
        let is_free = |name: &str| {
            need.locked.iter().any(|locked| locked == name) || self.lock_volume(pool.uuid(), name).is_ok()
        };
        let (mut of_gone, mut of_others): (Vec<Base>, Vec<Base>) =
            bases.into_iter().partition(|base| !names.contains_key(&base.volume));
        of_others.retain(|base| {
            need.repository.is_some_and(|ours| base.repository != ours)
                && names.get(&base.volume).is_some_and(|name| is_free(name))
        });
        for bases in [&mut of_gone, &mut of_others] {
            bases.sort_by_key(|base| std::cmp::Reverse(base.point.created_at_ms));
        }
        let others = listed.iter().map(|(volume, _)| volume);
        let others = others.filter(|volume| !matches!(volume.kind, Kind::Base { .. }));
        let roots = roots_of(pool, others.map(|volume| volume.device))?;
        let spare = |base: Base, why| {
            let holds_something = !roots.contains(&base.point.root_block.0) && base.point.mapped_blocks > 0;
            let data_blocks = if holds_something { base.point.mapped_blocks } else { 0 };
            let volume = names.get(&base.volume).map(|name| (*name).to_owned());
            Spare { base, why, volume, data_blocks, holds_something }
        };
        let of_others = of_others.into_iter().map(|base| spare(base, "for another repository"));
        Ok(of_others.chain(of_gone.into_iter().map(|base| spare(base, "of a volume that is gone"))).collect())
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

/// Where the mapping trees of devices begin.
fn roots_of(pool: &dyn ThinPool, devices: impl Iterator<Item = DeviceId>) -> Result<HashSet<u64>, Failed> {
    let frozen = pool.view(Roots::Live)?;
    let found: Result<HashSet<u64>, _> = devices
        .filter_map(|device| frozen.view.device(device).transpose())
        .map(|info| info.map(|info| info.root.0))
        .collect();
    frozen.release()?;
    found.map_err(of_view)
}

/// Why a pool is left alone; what no base helps with before what one may help with.
fn lacks(info: &PoolInfo, limits: &GuardLimits, need: &Need) -> Vec<Lack> {
    let mut lacks: Vec<Lack> = lack_of_state(info).into_iter().chain(lacks_of(info, limits, need)).collect();
    lacks.sort_by_key(|lack| !matches!(lack.missing, Missing::Other));
    lacks
}

fn lack_of_state(info: &PoolInfo) -> Option<Lack> {
    let why = match info.mode.as_str() {
        _ if info.needs_check => "its metadata need a check",
        "rw" => return None,
        "fail" => "it has failed",
        "out_of_data_space" => {
            let message = format!("no data block of its {} is free", info.data_total_blocks);
            let failed = refused(info, &message, "make room in the pool first, or make it larger");
            return Some(Lack { failed, missing: Missing::Data(1) });
        }
        _ => "it is read-only",
    };
    let hint = format!("thinbak pool status shows its state; it says: {}", info.status_line.trim_end());
    Some(Lack { failed: refused(info, why, &hint), missing: Missing::Other })
}

fn lacks_of(info: &PoolInfo, limits: &GuardLimits, need: &Need) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let mut add = |missing, message: String, hint: &str| {
        lacks.push(Lack { failed: refused(info, &message, hint), missing });
    };
    let clock = info.snapshot_clock;
    if clock.saturating_add(need.snapshots).saturating_add(need.passing) > CLOCK_LIMIT {
        let message = format!("it has counted {clock} snapshots of at most {CLOCK_LIMIT}");
        let hint = "restore or copy its volumes to a new pool: the count never goes back";
        add(Missing::Other, message, hint);
    }
    let (snapshots, most) = (info.snapshots, limits.max_snapshots);
    let too_many = snapshots.saturating_add(need.snapshots).saturating_sub(most);
    if need.snapshots > 0 && too_many > 0 {
        let message = format!("it has {snapshots} snapshots and bases, and may have {most}");
        let hint = "remove some, or raise max_snapshots of [guard] in agent.toml";
        add(Missing::Places(too_many), message, hint);
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
    if let Some((message, hint, blocks)) = data.lack(limits.min_free_data, need.data_blocks) {
        add(Missing::Data(blocks), message, &hint);
    }
    if let Some((message, hint, _)) = metadata.lack(limits.min_free_metadata, 0) {
        add(Missing::Metadata, message, &hint);
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
    /// What is wrong, the way out, and how many blocks are missing, if too little is free.
    fn lack(&self, limit: Share, needed_blocks: u64) -> Option<(String, String, u64)> {
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
        let missing = needed.saturating_add(kept).saturating_sub(free);
        Some((message, hint, missing.div_ceil(self.block.max(1))))
    }
}

fn refused(info: &PoolInfo, why: &str, hint: &str) -> Failed {
    Failed::new(FailureKind::Refused, format!("pool {}: {why}", info.name)).with_hint(hint)
}

#[cfg(test)]
mod tests;
