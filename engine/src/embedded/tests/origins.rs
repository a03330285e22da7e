//! Volumes over external origins, against a naive model.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _};

use super::{BLOCK, block, chance, first_byte, pool, reopened};
use crate::embedded::{EmbeddedError, EmbeddedPool, ErrorClass, Volume};
use crate::pool::PoolTable;

const BLOCKS: u64 = 16;
const SIZE: usize = (BLOCKS * BLOCK) as usize;

/// A volume as its blocks, those that were never written and the origin behind them.
struct Model {
    origin: Vec<u8>,
    blocks: Vec<Option<Vec<u8>>>,
}

impl Model {
    fn new(origin: &[u8]) -> Self {
        let mut origin = origin.to_vec();
        origin.resize(SIZE, 0);
        Self { origin, blocks: vec![None; BLOCKS as usize] }
    }

    fn piece(&self, number: usize) -> &[u8] {
        let begin = number * BLOCK as usize;
        self.blocks[number].as_deref().unwrap_or(&self.origin[begin..begin + BLOCK as usize])
    }

    fn bytes(&self) -> Vec<u8> {
        (0..self.blocks.len()).flat_map(|number| self.piece(number).to_vec()).collect()
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        for (at, &byte) in (offset..).zip(bytes) {
            let number = at / BLOCK as usize;
            if self.blocks[number].is_none() {
                self.blocks[number] = Some(self.piece(number).to_vec());
            }
            self.blocks[number].as_mut().unwrap()[at % BLOCK as usize] = byte;
        }
    }

    fn discard(&mut self, offset: usize, length: usize) {
        let block = BLOCK as usize;
        for number in offset.div_ceil(block)..(offset + length) / block {
            self.blocks[number] = None;
        }
    }
}

fn origin_file(dir: &Path, size: usize, chance: &mut StdRng) -> (PathBuf, Vec<u8>) {
    let path = dir.join(format!("origin-{size}"));
    let mut bytes = vec![0; size];
    chance.fill_bytes(&mut bytes);
    fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

fn read(pool: &EmbeddedPool, volume: &Volume) -> Vec<u8> {
    let mut bytes = vec![0; volume.size_bytes as usize];
    pool.read(volume, 0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_volume_reads_its_origin_where_it_was_not_written_whatever_the_sizes() {
    let mut chance = chance();
    let block = BLOCK as usize;
    for (size, skips_zeroing) in [(0, false), (512, true), (5 * block + 777, false), (5 * block + 777, true)]
        .into_iter()
        .chain([(SIZE, false), (SIZE + 3 * block + 1, false)])
    {
        let (dir, pool) = pool();
        let (path, content) = origin_file(dir.path(), size, &mut chance);
        let mut table = PoolTable::without_waiting();
        table.features.skip_block_zeroing = skips_zeroing;
        pool.set_table(table).unwrap();
        let volume = pool.create_volume_over("v", SIZE as u64, &path).unwrap();
        assert_eq!(volume.origin.as_ref().unwrap().size_bytes, size as u64);
        let mut model = Model::new(&content);
        assert!(read(&pool, &volume) == model.bytes(), "{size}: before any write");
        let mut snapshots = Vec::new();
        for round in 0..40 {
            let offset = chance.random_range(0..SIZE);
            let length = chance.random_range(1..=(3 * block).min(SIZE - offset));
            match chance.random_range(0..8) {
                0 if snapshots.len() < 4 => {
                    let name = format!("s{round}");
                    let snapshot = pool.take_snapshots(&[("v", &name)]).unwrap().remove(0);
                    assert_eq!(snapshot.origin, volume.origin);
                    snapshots.push((snapshot, model.bytes()));
                }
                0..=2 => {
                    pool.discard(&volume, offset as u64, length as u64).unwrap();
                    model.discard(offset, length);
                }
                _ => {
                    let mut bytes = vec![0; length];
                    chance.fill_bytes(&mut bytes);
                    // Without zeroing a part of a block that neither origin nor write covers holds anything.
                    if skips_zeroing && offset + length > size {
                        continue;
                    }
                    pool.write(&volume, offset as u64, &bytes).unwrap();
                    model.write(offset, &bytes);
                }
            }
        }
        let pool = reopened(pool);
        let beyond = size.next_multiple_of(block).min(SIZE);
        let clear = |mut bytes: Vec<u8>| {
            if skips_zeroing {
                bytes[size.min(SIZE)..beyond].fill(0);
            }
            bytes
        };
        assert!(clear(read(&pool, &volume)) == clear(model.bytes()), "{size}");
        for (snapshot, bytes) in snapshots {
            assert!(clear(read(&pool, &snapshot)) == clear(bytes), "{size}: {}", snapshot.name);
        }
        assert!(fs::read(&path).unwrap() == content, "the origin was written");
    }
}

#[test]
fn bases_and_candidates_keep_the_origin_and_a_head_has_none() {
    let (dir, pool) = pool();
    let (path, content) = origin_file(dir.path(), 3 * BLOCK as usize, &mut chance());
    let volume = pool.create_volume_over("v", BLOCKS * BLOCK, &path).unwrap();
    let candidate = pool.take_candidates(&["v"]).unwrap().remove(0);
    assert_eq!(candidate.origin, volume.origin);
    assert!(read(&pool, &candidate) == Model::new(&content).bytes());
    pool.write(&volume, 0, &block(7)).unwrap();
    let head = pool.create_head(volume.size_bytes, Some(volume.device)).unwrap();
    assert_eq!((head.origin.as_ref(), first_byte(&pool, &head, 0)), (None, 7));
    let mut second = vec![1; BLOCK as usize];
    pool.read(&head, BLOCK, &mut second).unwrap();
    assert!(second.iter().all(|&byte| byte == 0), "a head reads zeroes where it maps nothing");
    let replaced = pool.replace_volume("v", &head).unwrap();
    assert_eq!((replaced.origin, replaced.uuid), (None, volume.uuid));
    assert_eq!(reopened(pool).volume("v").unwrap().origin, None);
}

#[test]
fn an_origin_that_is_gone_or_shorter_concerns_its_volumes_only() {
    let (dir, pool) = pool();
    let (path, content) = origin_file(dir.path(), 3 * BLOCK as usize, &mut chance());
    let over = pool.create_volume_over("over", BLOCKS * BLOCK, &path).unwrap();
    let plain = pool.create_volume("plain", BLOCK).unwrap();
    pool.take_snapshots(&[("over", "s")]).unwrap();
    pool.write(&plain, 0, &block(1)).unwrap();
    fs::rename(&path, dir.path().join("elsewhere")).unwrap();
    let pool = reopened(pool);
    let snapshot = pool.snapshot("over", "s").unwrap();
    for (volume, name) in [(&over, "`over`"), (&snapshot, "`over@s`")] {
        let error = pool.read(volume, 0, &mut [0]).unwrap_err();
        assert_eq!(error.class(), ErrorClass::NotFound);
        let text = error.to_string();
        assert!(text.contains(name) && text.contains("origin-196608"), "{text}");
    }
    assert_eq!(pool.write(&over, 0, &[1]).unwrap_err().class(), ErrorClass::NotFound);
    assert_eq!(first_byte(&pool, &plain, 0), 1);
    pool.write(&plain, 0, &block(2)).unwrap();
    pool.resize_volume("over", 2 * BLOCKS * BLOCK).unwrap();

    fs::write(&path, &content[..content.len() - 1]).unwrap();
    let error = pool.read(&over, 0, &mut [0]).unwrap_err();
    assert!(
        matches!(error, EmbeddedError::OriginShorter { recorded: 196_608, found: 196_607, .. }),
        "{error}"
    );
    assert_eq!(error.class(), ErrorClass::Refused);
    // What was appended to it is not part of the volume.
    fs::write(&path, [content.clone(), vec![9; 4096]].concat()).unwrap();
    let mut found = vec![1; 4 * BLOCK as usize];
    pool.read(&over, 0, &mut found).unwrap();
    assert!(found[..content.len()] == content && found[content.len()..].iter().all(|&byte| byte == 0));
    pool.remove_snapshot("over", "s").unwrap();
    pool.remove_volume("over").unwrap();
}

#[test]
fn an_origin_is_read_as_it_is_now() {
    let (dir, pool) = pool();
    let (path, _) = origin_file(dir.path(), BLOCK as usize, &mut chance());
    let volume = pool.create_volume_over("v", 2 * BLOCK, &path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for byte in [3, 4] {
        file.write_all_at(&[byte], 0).unwrap();
        assert_eq!(first_byte(&pool, &volume, 0), byte);
    }
}

#[test]
fn what_cannot_be_an_origin_is_refused_and_nothing_is_made() {
    let (dir, pool) = pool();
    let data = pool.data_path();
    let cases = [
        (dir.path().join("none"), ErrorClass::NotFound),
        (dir.path().to_owned(), ErrorClass::Usage),
        (PathBuf::from("relative"), ErrorClass::Usage),
        (data, ErrorClass::Usage),
        (PathBuf::from("/dev/null"), ErrorClass::Usage),
    ];
    for (path, class) in cases {
        let error = pool.create_volume_over("v", BLOCK, &path).unwrap_err();
        assert_eq!(error.class(), class, "{}: {error}", path.display());
    }
    assert!(pool.volumes().is_empty() && pool.pool().devices().unwrap().is_empty());
}
