//! Metadata that cannot be used: one error that says what and where, and nothing is written.

mod hostile;

use std::collections::BTreeSet;
use std::sync::Arc;

use rand::Rng;

use super::history::operation::{Op, fill};
use super::history::recording::Recorder;
use super::{BLOCK, id, seeded};
use crate::format::{
    Bitmap, BlockBytes, BlockKind, MetadataIndex, RawBlock, RawCount, Superblock, SuperblockProblem, seal,
};
use crate::{
    BlockDevice, BlockSize, FaultDevice, FaultLog, IoEvent, MemoryDevice, MetadataBlock, MetadataError, Pool,
    PoolError, PoolMode, VirtualBlock,
};

/// A pool with all that there can be in metadata: trees of two levels, counts above 2, a metadata snapshot.
fn image() -> MemoryDevice {
    let mut recorder = Recorder::format(256, 420);
    let more = [
        Op::CreateSnap { new: 1, origin: 0 },
        Op::CreateSnap { new: 2, origin: 1 },
        Op::CreateSnap { new: 3, origin: 2 },
        Op::Write { device: 1, granules: 0..1 },
        Op::Write { device: 2, granules: 0..1 },
        Op::Write { device: 3, granules: 0..1 },
        Op::Reserve,
        Op::Write { device: 0, granules: 0..1 },
        Op::Delete(2),
        Op::Commit,
    ];
    for op in fill(0, 0..260).chain(more) {
        recorder.step(&op).unwrap();
    }
    let [metadata, _] = recorder.disks();
    metadata
}

/// Every block that is counted; the checker has counted them again.
fn blocks_in_use(image: &MemoryDevice) -> Vec<u64> {
    assert_eq!(crate::check::check(Arc::new(image.duplicate()), None).unwrap().damage, []);
    let bitmap = Bitmap::verify(RawBlock::read(image, bitmap_place(image)).unwrap()).unwrap();
    (0..image.size_bytes() / 4096).filter(|block| bitmap.get(*block) != RawCount::Exact(0)).collect()
}

/// The only bitmap of the metadata space map.
fn bitmap_place(image: &MemoryDevice) -> MetadataBlock {
    let roots = Superblock::read(image, MetadataBlock(0)).unwrap().metadata_space_map;
    let index = RawBlock::read(image, roots.bitmap_root).unwrap();
    MetadataIndex::verify(index, roots.nr_blocks).unwrap().entries[0].bitmap
}

struct Opened {
    metadata: Arc<FaultDevice<MemoryDevice>>,
    log: Arc<FaultLog>,
    pool: Result<Pool, PoolError>,
}

fn open(metadata: MemoryDevice, data: MemoryDevice) -> Opened {
    let log = FaultLog::new();
    let metadata = Arc::new(FaultDevice::new(metadata, 0, log.clone()));
    let data = Arc::new(FaultDevice::new(data, 1, log.clone()));
    Opened { pool: Pool::open(metadata.clone(), data), metadata, log }
}

fn data() -> MemoryDevice {
    MemoryDevice::new(420 * BLOCK)
}

/// The block that an error complains of.
fn blamed(error: &PoolError) -> Option<u64> {
    match error {
        PoolError::Metadata(
            MetadataError::Checksum { block, .. }
            | MetadataError::WrongLocation { block, .. }
            | MetadataError::BadSuperblock { block, .. },
        ) => Some(block.0),
        _ => None,
    }
}

/// Everything that reads. The errors.
fn read_all(pool: &Pool) -> Vec<PoolError> {
    let mut errors = Vec::new();
    let devices = pool.devices().unwrap_or_else(|error| {
        errors.push(error);
        Vec::new()
    });
    for device in devices.iter().map(|device| device.id).chain([id(0), id(3), id(99)]) {
        errors.extend(pool.device(device).err());
        errors.extend(pool.device_status(device).err());
        errors.extend(pool.mapped_runs(device, VirtualBlock(0), VirtualBlock(1000), 10_000).err());
        errors.extend(pool.read(device, 0, &mut [0; 4096]).err());
        errors.extend(pool.read(device, 255 * BLOCK, &mut vec![0; 4 * BLOCK as usize]).err());
    }
    errors.retain(|error| !matches!(error, PoolError::NoSuchDevice(_)));
    let _ = pool.status().to_string();
    errors
}

#[test]
fn any_wrong_byte_of_any_block_is_found_before_it_is_used_and_nothing_is_written() {
    let mut rng = seeded();
    let image = image();
    let blocks = blocks_in_use(&image);
    assert!(blocks.len() > 20, "{blocks:?}");
    let mut met = BTreeSet::new();
    for &block in &blocks {
        let random: Vec<u64> = (0..24).map(|_| rng.random_range(0..4096)).collect();
        for at in (0..40).chain([4095]).chain(random) {
            let spoilt = image.duplicate();
            let mut byte = [0];
            spoilt.read_at(block * 4096 + at, &mut byte).unwrap();
            spoilt.write_at(block * 4096 + at, &[byte[0] ^ rng.random_range(1..=255)]).unwrap();
            let context = format!("byte {at} of block {block}");
            let report = crate::check::check(Arc::new(spoilt.duplicate()), None).unwrap();
            assert!(!report.is_sound(), "{context}");
            let told = report.damage.iter().any(|damage| damage.block == Some(MetadataBlock(block)));
            assert!(told, "{context}: {:?}", report.damage);
            let Opened { log, pool, .. } = open(spoilt, data());
            let errors = pool.map_or_else(|error| vec![error], |pool| read_all(&pool));
            assert!(block != 0 || errors.len() == 1, "{context}: {errors:?}");
            for error in errors {
                assert_eq!(blamed(&error), Some(block), "{context}: {error}");
                met.insert(block);
            }
            assert!(log.is_empty(), "{context}: written to");
        }
    }
    // Reading meets the superblock, the index and the trees; the rest is for the checker and for changes.
    assert!(met.len() > 8, "{met:?}");
}

type Change = (&'static str, fn(&Pool) -> Result<(), PoolError>);

const CHANGES: &[Change] = &[
    ("create_thin", |pool| pool.create_thin(id(50))),
    ("create_snap", |pool| pool.create_snap(id(50), id(3))),
    ("delete", |pool| pool.delete(id(0))),
    ("delete a snapshot", |pool| pool.delete(id(3))),
    ("write", |pool| pool.write(id(0), 5 * BLOCK, &[1; 5000])),
    ("write a new block", |pool| pool.write(id(1), 300 * BLOCK, &[1; 65_536])),
    ("discard", |pool| pool.discard(id(0), 0, 200 * BLOCK)),
    ("reserve or release", |pool| pool.release_metadata_snap()),
    ("grow", |pool| pool.grow_data(420 * BLOCK)),
];

/// A change that meets a bad block is given up as a whole. What may be written then is the superblock, with the flag that says
/// that a check is needed, as the kernel does.
#[test]
fn a_change_that_meets_a_bad_block_writes_nothing_but_that_a_check_is_needed() {
    let mut rng = seeded();
    let image = image();
    let mut failed = BTreeSet::new();
    for &block in &blocks_in_use(&image) {
        let at = rng.random_range(0..4096);
        let spoilt = image.duplicate();
        let mut byte = [0];
        spoilt.read_at(block * 4096 + at, &mut byte).unwrap();
        spoilt.write_at(block * 4096 + at, &[!byte[0]]).unwrap();
        for (name, change) in CHANGES {
            let context = format!("{name}, block {block}");
            let Opened { metadata, log, pool } = open(spoilt.duplicate(), data());
            let Ok(pool) = pool else { continue };
            let done = change(&pool).and_then(|()| pool.commit());
            let superblock_only = |event: &IoEvent| match event {
                IoEvent::Write { device: 0, offset, bytes } => *offset == 0 && bytes.len() == 4096,
                IoEvent::Flush { device: 0, .. } => true,
                // New blocks of data are written before it is known whether they can be mapped.
                IoEvent::Write { device: 1, .. } | IoEvent::Flush { device: 1, .. } => true,
                _ => false,
            };
            if let Err(error) = done {
                failed.insert(block);
                assert_eq!(blamed(&error), Some(block), "{context}: {error}");
                assert!(log.events().iter().all(superblock_only), "{context}: {:?}", log.events());
                assert_eq!(read_flags(metadata.inner()) | 1, 1, "{context}");
                let only_flag = unflagged(metadata.inner()) == unflagged(&image);
                assert!(only_flag || block == 0, "{context}: more than the flag has changed");
                assert_ne!(pool.status().mode, PoolMode::Fail, "{context}");
            } else {
                // It did without that block, which is still what it was.
                let mut now = [0];
                metadata.read_at(block * 4096 + at, &mut now).unwrap();
                assert!(now[0] == !byte[0] || block == 0, "{context}: written over");
            }
        }
    }
    assert!(failed.len() > 15, "{failed:?}");
}

fn superblock(metadata: &MemoryDevice) -> Box<BlockBytes> {
    let mut bytes = Box::new([0; 4096]);
    metadata.read_at(0, bytes.as_mut_slice()).unwrap();
    bytes
}

fn read_flags(metadata: &MemoryDevice) -> u32 {
    u32::from_le_bytes(superblock(metadata)[4..8].try_into().unwrap())
}

/// The superblock without the flag and the checksum.
fn unflagged(metadata: &MemoryDevice) -> Vec<u8> {
    superblock(metadata)[8..].to_vec()
}

/// A superblock with one field changed and everything else right.
fn with_field(image: &MemoryDevice, at: usize, value: u32) -> MemoryDevice {
    let mut bytes = superblock(image);
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    seal(&mut bytes, MetadataBlock(0), BlockKind::Superblock);
    let changed = image.duplicate();
    changed.write_at(0, bytes.as_slice()).unwrap();
    changed
}

#[track_caller]
fn refused(metadata: MemoryDevice, is_right: impl FnOnce(&PoolError) -> bool) {
    let before = superblock(&metadata);
    let Opened { metadata, log, pool } = open(metadata, data());
    let error = pool.err().expect("an error");
    assert!(is_right(&error), "{error:?}");
    assert!(log.is_empty());
    assert!(superblock(metadata.inner()) == before);
    // Nor is it taken for an empty device.
    let formatted = Pool::format(metadata, Arc::new(data()), BlockSize::from_bytes(BLOCK).unwrap());
    assert!(matches!(formatted, Err(PoolError::NotBlank | PoolError::MetadataTooSmall { .. })));
    assert!(log.is_empty());
}

fn problem(error: &PoolError) -> Option<&SuperblockProblem> {
    match error {
        PoolError::Metadata(MetadataError::BadSuperblock { problem, .. }) => Some(problem),
        _ => None,
    }
}

#[test]
fn metadata_of_the_future_are_refused() {
    let image = image();
    let version = 40;
    let (compatible, read_only_compatible, incompatible) = (352, 356, 360);
    for future in [3, 4, u32::MAX] {
        refused(
            with_field(&image, version, future),
            |error| matches!(problem(error), Some(SuperblockProblem::Version(found)) if *found == future),
        );
    }
    for feature in [1, 1 << 31, u32::MAX] {
        refused(
            with_field(&image, incompatible, feature),
            |error| matches!(problem(error), Some(SuperblockProblem::Incompatible(found)) if *found == feature),
        );
        refused(
            with_field(&image, read_only_compatible, feature),
            |error| matches!(problem(error), Some(SuperblockProblem::ReadOnlyCompatible(found)) if *found == feature),
        );
        assert!(open(with_field(&image, compatible, feature), data()).pool.is_ok());
    }
    let block_sizes = [(336, 0), (336, 127), (336, 129), (336, 2_097_280), (340, 0), (340, 16)];
    for (field, size) in block_sizes {
        refused(with_field(&image, field, size), |error| problem(error).is_some());
    }
}

#[test]
fn devices_shorter_than_the_superblock_says_are_refused() {
    let image = image();
    for blocks in [1, 2, 100, 255] {
        let short = image.duplicate();
        short.resize(blocks * 4096).unwrap();
        let report = crate::check::check(Arc::new(short.duplicate()), None).unwrap();
        assert!(!report.is_sound(), "{blocks} blocks");
        refused(
            short,
            |error| matches!(problem(error), Some(SuperblockProblem::TooLarge { blocks: 256, limit, .. }) if *limit == blocks),
        );
    }
    for bytes in [0, BLOCK, 420 * BLOCK - 1] {
        let Opened { log, pool, .. } = open(image.duplicate(), MemoryDevice::new(bytes));
        let error = pool.err().expect("an error");
        let found = bytes / BLOCK;
        assert!(
            matches!(error, PoolError::DataTooSmall { expected: 420, found: short } if short == found),
            "{error}"
        );
        assert!(log.is_empty());
    }
}
