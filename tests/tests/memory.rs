//! Memory does not grow with the volume, and an unchanged one costs next to nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use thinbak_tests::{BLOCK, Program, Way, World, number, summary_of, text};

const LIMIT: u64 = 256 * 1024 * 1024;
const TIB: u64 = 1 << 40;

/// Runs a command and watches its resident memory: its standard output and the peak.
fn watched(program: &Program, words: &[String]) -> Result<(thinbak_tests::Outcome, u64)> {
    let mut running = program.start(words)?;
    let mut peak = 0;
    while !running.has_ended()? {
        peak = peak.max(running.peak_rss().unwrap_or(0));
        // A sample: the kernel keeps the peak, which is gone with the process.
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok((running.wait()?.expect(0)?, peak))
}

#[test]
fn a_tebibyte_volume_is_backed_up_and_restored_in_bounded_memory() -> Result<()> {
    let mut world = World::bare(Way::Network)?;
    world.create_pool(&["--size", "4G", "--metadata-size", "64M"])?;
    world.thinbak.ok(&["volume", "create", &world.volume("v"), "--size", &TIB.to_string()])?;
    // 768 MiB in blocks scattered over the whole tebibyte: no two neighbours, so the lists are longest.
    let pool = world.open_pool()?;
    let volume = pool.volume("v")?;
    let mut block = vec![0; usize::try_from(BLOCK)?];
    for number in 0..12 * 1024u64 {
        let offset = number * (TIB / (12 * 1024)) / BLOCK * BLOCK;
        for (place, word) in block.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *word = (number << 32 | place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        }
        pool.write(&volume, offset, &block)?;
    }
    pool.flush()?;
    drop(pool);

    let (outcome, peak) = watched(&world.thinbak, &world.with_repository(&["backup", &world.volume("v")]))?;
    let summary = summary_of(&outcome)?;
    ensure!(
        number(&summary, "volume_bytes")? == TIB && number(&summary, "mapped_bytes")? == 12 * 1024 * BLOCK
    );
    ensure!(peak < LIMIT, "the agent took {peak} bytes for a backup");

    let (outcome, peak) = watched(&world.thinbak, &world.with_repository(&["backup", &world.volume("v")]))?;
    let summary = summary_of(&outcome)?;
    ensure!(text(&summary, "mode")? == "unchanged" && number(&summary, "read_bytes")? == 0, "{summary}");
    ensure!(peak < LIMIT, "the agent took {peak} bytes for an unchanged volume");

    let words = world.with_repository(&["restore", "p/v:2", "--to", &world.volume("copy")]);
    let (_, peak) = watched(&world.thinbak, &words)?;
    ensure!(peak < LIMIT, "the agent took {peak} bytes for a restore");
    let server = world.running.take().and_then(|server| server.peak_rss()).unwrap_or(0);
    ensure!(server > 0 && server < LIMIT, "the server took {server} bytes");
    world.check_pool()?;

    // Equal mappings, equal content where mapped: the rest of the tebibyte is hole in both.
    let pool = world.open_pool()?;
    let (v, copy) = (pool.volume("v")?, pool.volume("copy")?);
    let mapped =
        |device| -> Result<u64> { Ok(pool.pool().device(device)?.map_or(0, |d| d.details.mapped_blocks)) };
    ensure!(mapped(v.device)? == mapped(copy.device)?);
    let mut other = block.clone();
    for number in 0..12 * 1024u64 {
        let offset = number * (TIB / (12 * 1024)) / BLOCK * BLOCK;
        pool.read(&v, offset, &mut block)?;
        pool.read(&copy, offset, &mut other)?;
        ensure!(block == other, "the block at {offset} differs");
    }
    Ok(())
}
