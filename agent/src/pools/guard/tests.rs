use std::sync::Arc;

use thinbak_engine::{BlockSize, CreateOptions, EmbeddedPool, PoolTable, Roots};

use super::*;

const BLOCK: u64 = 64 << 10;

fn info() -> PoolInfo {
    PoolInfo {
        name: "p".to_owned(),
        mode: "rw".to_owned(),
        block_bytes: BLOCK,
        data_total_blocks: 1000,
        data_used_blocks: 100,
        metadata_total_blocks: 1000,
        metadata_used_blocks: 100,
        ..PoolInfo::default()
    }
}

fn said(info: &PoolInfo, need: &Need) -> String {
    let lack = lacks(info, &GuardLimits::default(), need).into_iter().next();
    lack.map_or(String::new(), |lack| {
        assert_eq!(lack.failed.exit_code(), 5);
        assert!(lack.failed.hint.is_some(), "{}", lack.failed);
        lack.failed.message
    })
}

#[test]
fn what_leaves_too_little_is_refused_and_what_just_fits_is_not() {
    let one = Need { snapshots: 1, ..Need::default() };
    assert_eq!(said(&info(), &one), "");
    let of_data = |blocks| Need { data_blocks: blocks, ..Need::default() };
    assert_eq!(said(&info(), &of_data(850)), "");
    assert!(
        said(&info(), &of_data(851)).contains("55771136 bytes are needed"),
        "{}",
        said(&info(), &of_data(851))
    );
    let full = PoolInfo { data_used_blocks: 951, ..info() };
    assert!(said(&full, &one).contains("3211264 are free, where 3276800 (5%)"), "{}", said(&full, &one));
    let full = PoolInfo { metadata_used_blocks: 951, ..info() };
    assert!(said(&full, &one).contains("of metadata 200704 are free"), "{}", said(&full, &one));
    let many = PoolInfo { snapshots: 10_000, ..info() };
    assert!(said(&many, &one).contains("10000 snapshots"));
    // What replaces a volume is none more than there are.
    assert_eq!(said(&many, &Need { passing: 1, ..Need::default() }), "");
    assert_eq!(said(&many, &Need::default()), "");
}

#[test]
fn the_clock_and_the_state_of_a_pool_are_looked_at() {
    let one = Need { snapshots: 1, ..Need::default() };
    let at = |clock| PoolInfo { snapshot_clock: clock, ..info() };
    assert_eq!(said(&at(CLOCK_LIMIT - 1), &one), "");
    assert!(said(&at(CLOCK_LIMIT), &one).contains("8388608 snapshots of at most 8388608"));
    assert!(said(&at(CLOCK_LIMIT), &Need { passing: 1, ..Need::default() }).contains("at most 8388608"));
    // What no base helps with comes first.
    let full = PoolInfo { mode: "out_of_data_space".to_owned(), ..at(CLOCK_LIMIT) };
    assert!(said(&full, &one).contains("at most 8388608"));
    for (mode, why) in [("ro", "read-only"), ("fail", "failed"), ("out_of_data_space", "no data block")] {
        let info = PoolInfo { mode: mode.to_owned(), ..info() };
        assert!(said(&info, &one).contains(why), "{mode}");
    }
    assert!(said(&PoolInfo { needs_check: true, ..info() }, &one).contains("need a check"));
}

#[test]
fn a_restore_needs_what_the_largest_generation_cannot_do_without() {
    let generation =
        |mapped_bytes, chunk_bytes| Generation { mapped_bytes, chunk_bytes, ..Generation::default() };
    let chunk = 64 << 10;
    let both = [generation(10 * BLOCK, chunk), generation(3 * BLOCK, chunk)];
    assert_eq!(Need::of_restore(&both, BLOCK, 0).data_blocks, 10);
    assert_eq!(Need::of_restore(&both, BLOCK, 4 * BLOCK).data_blocks, 6);
    assert_eq!(Need::of_restore(&both, 4 * BLOCK, 0).data_blocks, 3);
    // Chunks of sixteen blocks, of which each has at least one.
    assert_eq!(Need::of_restore(&[generation(32 * BLOCK, 16 * chunk)], BLOCK, 0).data_blocks, 2);
}

/// A volume with a base for each of these repositories, in this order.
fn with_bases(pool: &Arc<EmbeddedPool>, name: &str, repositories: &[Uuid]) -> Uuid {
    let volume = pool.create_volume(name, 4 * BLOCK).unwrap();
    for (repository, fill) in repositories.iter().zip(1..) {
        pool.write(&volume, 0, &vec![fill; 4 * BLOCK as usize]).unwrap();
        let taken = pool.take_candidates(&[name]).unwrap().pop().unwrap();
        let frozen = ThinPool::view(pool.as_ref(), Roots::Live).unwrap();
        let point = pool.point(&taken, &frozen.view).unwrap();
        frozen.release().unwrap();
        let base = Base { repository: *repository, volume: volume.uuid, generation: 1, root: [0; 32], point };
        pool.keep_base(&taken, base).unwrap();
    }
    volume.uuid
}

fn pool(dir: &std::path::Path) -> Arc<EmbeddedPool> {
    let options = CreateOptions {
        name: "p".to_owned(),
        data_bytes: 64 * BLOCK,
        block_size: BlockSize::from_bytes(BLOCK).unwrap(),
        metadata_bytes: None,
        devices: None,
        table: PoolTable::without_waiting(),
    };
    Arc::new(EmbeddedPool::create(&dir.join("p"), options).unwrap())
}

fn manager(dir: &std::path::Path, limits: GuardLimits) -> Arc<PoolManager> {
    PoolManager::with_guard(dir.join("state"), limits)
}

fn free_data(blocks: u64) -> GuardLimits {
    GuardLimits { min_free_data: Share::Bytes(blocks * BLOCK), ..GuardLimits::default() }
}

fn bases_of(pool: &EmbeddedPool) -> Vec<(Uuid, Uuid)> {
    pool.bases().iter().map(|base| (base.repository, base.volume)).collect()
}

#[test]
fn bases_for_other_repositories_go_before_a_backup_is_refused_but_never_its_own_or_those_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    let [ours, theirs, others] = [1, 2, 3].map(Uuid::from_u128);
    let volume = with_bases(&pool, "v", &[theirs, others, ours]);
    let busy = with_bases(&pool, "busy", &[theirs, others]);
    // Of 64 blocks 20 are used; what may go has 8.
    let free = 64 - pool.info().unwrap().data_used_blocks;
    let manager = manager(dir.path(), free_data(free + 8));
    let _ours = manager.lock_volume(pool.uuid(), "v").unwrap();
    let elsewhere = manager.lock_volume(pool.uuid(), "busy").unwrap();
    let need = Need { snapshots: 1, repository: Some(ours), locked: vec!["v".to_owned()], ..Need::default() };

    // Nobody's but a backup's business.
    let refused = manager.admit(pool.as_ref(), &Need { repository: None, ..need.clone() }).unwrap_err();
    assert_eq!((refused.exit_code(), pool.bases().len()), (5, 5));
    let dropped = manager.admit(pool.as_ref(), &need).unwrap();
    assert_eq!(dropped.len(), 2, "{dropped:?}");
    let mut left = bases_of(&pool);
    left.sort();
    assert_eq!(left, [(ours, volume), (theirs, busy), (others, busy)]);
    drop(elsewhere);

    // No more than makes room.
    with_bases(&pool, "w", &[theirs, others, ours]);
    let free = 64 - pool.info().unwrap().data_used_blocks;
    let manager = self::manager(dir.path(), free_data(free + 2));
    let _elsewhere = manager.lock_volume(pool.uuid(), "busy").unwrap();
    let dropped = manager.admit(pool.as_ref(), &Need { locked: Vec::new(), ..need }).unwrap();
    assert_eq!(dropped.len(), 1, "{dropped:?}");
    assert!(dropped[0].contains("another repository"), "{dropped:?}");
}

#[test]
fn no_base_goes_where_all_that_may_go_are_not_enough() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    let [ours, theirs, others] = [1, 2, 3].map(Uuid::from_u128);
    // The second is what the volume is: it has no block for itself.
    with_bases(&pool, "v", &[theirs, others]);
    let need = Need { snapshots: 1, repository: Some(ours), ..Need::default() };
    let free = 64 - pool.info().unwrap().data_used_blocks;
    let places = |most| GuardLimits { max_snapshots: most, ..free_data(0) };
    let both = |blocks, most| GuardLimits { max_snapshots: most, ..free_data(blocks) };
    for limits in [free_data(free + 5), places(0), both(free + 1, 0), both(free + 5, 2)] {
        let refused = manager(dir.path(), limits).admit(pool.as_ref(), &need).unwrap_err();
        assert_eq!((refused.exit_code(), bases_of(&pool).len()), (5, 2), "{refused}");
    }
    let dropped = manager(dir.path(), free_data(free + 4)).admit(pool.as_ref(), &need).unwrap();
    assert_eq!(dropped.len(), 1, "{dropped:?}");
    let refused = manager(dir.path(), free_data(free + 5)).admit(pool.as_ref(), &need).unwrap_err();
    assert_eq!((refused.exit_code(), bases_of(&pool).len()), (5, 1), "{refused}");
    // As one of two places.
    let dropped = manager(dir.path(), places(1)).admit(pool.as_ref(), &need).unwrap();
    assert_eq!((dropped.len(), bases_of(&pool).len()), (1, 0), "{dropped:?}");
}

#[test]
fn a_refusal_says_what_was_given_up_before_it() {
    let refused = Failed::new(FailureKind::Refused, "pool p: full");
    assert_eq!(with_notes(refused.clone(), &[]).message, "pool p: full");
    let notes = ["one".to_owned(), "two".to_owned()];
    assert_eq!(with_notes(refused, &notes).message, "pool p: full (one; two)");
}
