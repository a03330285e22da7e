//! Thin devices over an external origin, which nobody writes.

use std::sync::Arc;

use anyhow::{Result, ensure};
use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use thinbak_engine::{BlockDevice, MemoryDevice, Thin};
use thinbak_tests::seed;

use crate::place::{BLOCK, Place, id};

/// Blocks of the thin device.
const BLOCKS: u64 = 20;

/// Makes a thin over an origin of this size, writes to both ends of it and of the origin, and compares with a naive copy.
fn over(origin_bytes: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed()?);
    let mut origin = vec![0; usize::try_from(origin_bytes)?];
    random.fill_bytes(&mut origin);
    let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes(&origin));
    let size = BLOCKS * BLOCK;
    let mut expected = origin.clone();
    expected.resize(usize::try_from(size)?, 0);
    let place = Place::new(64)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        let thin = pool.open_thin(id(0), size, Some(Arc::clone(&device)))?;
        same(&thin, &expected)?;
        ensure!(thin.status()? == "0 -");
        let end = origin_bytes.min(size);
        let writes = [
            (0, 512),
            (BLOCK + 100, 1),
            (3 * BLOCK, BLOCK),
            (5 * BLOCK - 10, 20),
            (end - 700, 600),
            (size - 512, 512),
            (end.saturating_sub(BLOCK) / BLOCK * BLOCK, 4096),
        ];
        for (offset, length) in writes {
            let mut bytes = vec![0; usize::try_from(length)?];
            random.fill_bytes(&mut bytes);
            thin.write(offset, &bytes)?;
            let begin = usize::try_from(offset)?;
            expected.splice(begin..begin + bytes.len(), bytes);
            same(&thin, &expected)?;
        }
        // A snapshot has the same origin; what is discarded reads as that again.
        pool.create_snap(id(1), id(0))?;
        let snapshot = pool.open_thin(id(1), size, Some(Arc::clone(&device)))?;
        thin.discard(0, size)?;
        same(&snapshot, &expected)?;
        let mut bare = origin.clone();
        bare.resize(usize::try_from(size)?, 0);
        same(&thin, &bare)
    })?;
    let mut after = vec![0; origin.len()];
    device.read_at(0, &mut after)?;
    ensure!(after == origin, "the origin was written");
    Ok(())
}

fn same(thin: &Thin<'_>, expected: &[u8]) -> Result<()> {
    let mut found = vec![1; usize::try_from(thin.size_bytes())?];
    thin.read(0, &mut found)?;
    let differ = found.iter().zip(expected).position(|(found, expected)| found != expected);
    ensure!(differ.is_none(), "device {:?}: other bytes from {differ:?} on", thin.id());
    Ok(())
}

#[test]
fn an_origin_of_the_same_size_shows_through_and_stays() -> Result<()> {
    over(BLOCKS * BLOCK)
}

#[test]
fn an_origin_that_is_larger_shows_through_and_stays() -> Result<()> {
    over(2 * BLOCKS * BLOCK)
}

#[test]
fn an_origin_that_is_smaller_shows_through_and_zeroes_follow() -> Result<()> {
    over(BLOCKS / 2 * BLOCK)
}

#[test]
fn an_origin_that_ends_inside_a_block_shows_through_up_to_there() -> Result<()> {
    over(BLOCKS / 2 * BLOCK + 16 * 512)
}
