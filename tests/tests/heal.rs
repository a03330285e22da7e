//! Damage in packs is named by `verify`, healed by the next backup, and what was healed restores.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use thinbak_proto::{ChunkId, MapEntry, MapNode, NodeId};
use thinbak_tests::{Model, Way, World, number, seed, text};

const CHUNK: usize = 64 * 1024;
const SIZE: u64 = 4 << 20;

/// Changes one byte of the stored content of the record with this id, wherever it lies first. A record header has the id at
/// offset 36 and the content at 104.
fn spoil(world: &World, id: &[u8; 32]) -> Result<()> {
    for path in world.packs()? {
        let bytes = fs::read(&path)?;
        let header = (64..bytes.len().saturating_sub(104)).step_by(8).find(|&at| {
            bytes.get(at..at + 4) == Some(b"tbrc") && bytes.get(at + 36..at + 68) == Some(&id[..])
        });
        if let Some(at) = header {
            let file = OpenOptions::new().write(true).open(&path)?;
            let byte = bytes.get(at + 110).context("a short record")? ^ 0x04;
            return Ok(file.write_all_at(&[byte], at as u64 + 110)?);
        }
    }
    anyhow::bail!("no record has this id")
}

/// The plain content of a map node, by its id.
fn node(world: &World, id: NodeId) -> Result<MapNode> {
    for path in world.packs()? {
        let bytes = fs::read(&path)?;
        for at in (64..bytes.len().saturating_sub(104)).step_by(8) {
            let header = bytes.get(at..at + 104).unwrap_or_default();
            if header.starts_with(b"tbrc") && header.get(36..68) == Some(id.as_bytes()) {
                let len = header.get(12..16).and_then(|len| len.try_into().ok()).map(u32::from_le_bytes);
                let end = at + 104 + usize::try_from(len.context("a length")?)?;
                return Ok(MapNode::decode(bytes.get(at + 104..end).context("a node")?)?);
            }
        }
    }
    anyhow::bail!("no such node")
}

fn root_of(world: &World, generation: u64) -> Result<NodeId> {
    let shown = world.on_repository(&["generation", "show", &format!("p/v:{generation}")])?.expect(0)?.text();
    let shown: Value = serde_json::from_str(&shown)?;
    let root = text(&shown, "root")?;
    let bytes: Vec<u8> = (0..root.len())
        .step_by(2)
        .map(|at| Ok(u8::from_str_radix(root.get(at..at + 2).context("hex")?, 16)?))
        .collect::<Result<_>>()?;
    Ok(NodeId::try_from(bytes.as_slice())?)
}

fn verify(world: &World, code: i32) -> Result<Vec<Value>> {
    let lines = world.on_repository(&["verify"])?.expect(code)?.text();
    lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// The generations that a verification names, each once.
fn named(events: &[Value]) -> Vec<u64> {
    let mut named: Vec<u64> = events
        .iter()
        .filter(|event| event.get("message_type").is_some_and(|kind| kind == "error"))
        .filter_map(|event| event.get("generation").and_then(Value::as_u64))
        .collect();
    named.dedup();
    named
}

fn chunk_of(model: &Model, wanted: impl Fn(&[u8]) -> bool) -> Option<ChunkId> {
    model
        .bytes
        .chunks(CHUNK)
        .find(|chunk| chunk.iter().any(|byte| *byte != 0) && wanted(chunk))
        .map(ChunkId::of)
}

fn restores(world: &World, generation: u64, to: &str, expected: &[u8]) -> Result<()> {
    world.restore("v", generation, to)?;
    ensure!(world.export(to)? == expected, "generation {generation} is not what it was");
    Ok(())
}

fn a_damaged_chunk_heals(way: Way, idle: bool) -> Result<()> {
    let world = World::new(way, SIZE)?;
    let mut model = Model::new(SIZE, seed()?);
    model.scribble(&*world.open_pool()?, "v", 60)?;
    world.backup("v")?;
    let first = model.bytes.clone();
    let wanted = chunk_of(&model, |_| true).context("a chunk")?;
    spoil(&world, wanted.as_bytes())?;
    let events = verify(&world, 4)?;
    ensure!(named(&events) == [1], "{events:?}");
    let record = events.iter().find(|event| event.get("kind").is_some_and(|kind| kind == "damaged_record"));
    let record = record.context("no record is named")?;
    ensure!(text(record, "id")? == wanted.to_string(), "{record}");
    ensure!(number(record, "pack")? == 0 && number(record, "pack_offset_bytes")? >= 64, "{record}");
    world.on_repository(&["restore", "p/v:1", "--to", &world.volume("broken")])?.expect(4)?;
    if !idle {
        // Elsewhere than in that chunk.
        let at =
            model.bytes.chunks(CHUNK).position(|chunk| ChunkId::of(chunk) == wanted).context("a chunk")?;
        let other = if at == 0 { SIZE - 4096 } else { 0 };
        let pool = world.open_pool()?;
        let volume = pool.volume("v")?;
        pool.write(&volume, other, &[0x5a; 4096])?;
        pool.flush()?;
        let other = usize::try_from(other)?;
        model.bytes.get_mut(other..other + 4096).context("inside")?.fill(0x5a);
    }
    let summary = world.backup("v")?;
    ensure!(text(&summary, "mode")? == "incremental", "{summary}");
    ensure!(number(&summary, "healed_bytes")? == CHUNK as u64, "{summary}");
    verify(&world, 0)?;
    restores(&world, 1, "one", &first)?;
    restores(&world, 2, "two", &model.bytes)?;
    let again = world.backup("v")?;
    ensure!(text(&again, "mode")? == "unchanged" && number(&again, "healed_bytes")? == 0, "{again}");
    Ok(())
}

#[test]
fn a_damaged_chunk_of_an_unchanged_volume_heals() -> Result<()> {
    a_damaged_chunk_heals(Way::Embedded, true)
}

#[test]
fn a_damaged_chunk_heals_over_the_network_beside_changes() -> Result<()> {
    a_damaged_chunk_heals(Way::Network, false)
}

#[test]
fn a_damaged_map_node_makes_the_next_backup_compare_and_heals() -> Result<()> {
    for leaf in [false, true] {
        let size = 24 << 20;
        let world = World::new(Way::Embedded, size)?;
        let mut model = Model::new(size, seed()?);
        model.scribble(&*world.open_pool()?, "v", 60)?;
        world.backup("v")?;
        let root = root_of(&world, 1)?;
        let damaged = if leaf {
            let leaf = node(&world, root)?.slots().iter().find_map(MapEntry::node);
            leaf.context("a leaf")?
        } else {
            root
        };
        spoil(&world, damaged.as_bytes())?;
        ensure!(named(&verify(&world, 4)?) == [1]);
        let summary = world.backup("v")?;
        ensure!(text(&summary, "mode")? == "compared", "{summary}");
        ensure!(text(&summary, "reason")? == "the map of generation 1 is damaged", "{summary}");
        ensure!(number(&summary, "healed_bytes")? > 0, "{summary}");
        verify(&world, 0)?;
        restores(&world, 1, "copy", &model.bytes)?;
    }
    Ok(())
}

/// Nobody has looked before: the backup itself stumbles over the damage.
#[test]
fn a_backup_that_stumbles_over_a_damaged_map_heals_it_by_itself() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let mut model = Model::new(SIZE, seed()?);
    model.scribble(&*world.open_pool()?, "v", 60)?;
    world.backup("v")?;
    spoil(&world, root_of(&world, 1)?.as_bytes())?;
    let first = model.bytes.clone();
    let summary = world.backup("v")?;
    ensure!(text(&summary, "mode")? == "compared" && number(&summary, "healed_bytes")? > 0, "{summary}");
    verify(&world, 0)?;
    restores(&world, 1, "one", &first)
}

#[test]
fn what_is_gone_for_good_stays_named_and_the_others_are_good() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let mut model = Model::new(SIZE, seed()?);
    model.scribble(&*world.open_pool()?, "v", 60)?;
    world.backup("v")?;
    let before = model.bytes.clone();
    // The whole volume is written anew, so that nothing of the first generation is left.
    let pool = world.open_pool()?;
    let volume = pool.volume("v")?;
    for (number, chunk) in (1u64..).zip(model.bytes.chunks_mut(CHUNK)) {
        chunk.fill(0x77);
        chunk.iter_mut().zip(number.to_le_bytes()).for_each(|(byte, new)| *byte = new);
    }
    pool.write(&volume, 0, &model.bytes)?;
    pool.flush()?;
    drop(pool);
    world.backup("v")?;
    let gone = before.chunks(CHUNK).find(|chunk| chunk.iter().any(|byte| *byte != 0)).context("a chunk")?;
    spoil(&world, ChunkId::of(gone).as_bytes())?;
    ensure!(named(&verify(&world, 4)?) == [1]);
    world.backup("v")?;
    ensure!(named(&verify(&world, 4)?) == [1], "only what is gone is named");
    restores(&world, 2, "two", &model.bytes)?;
    world.on_repository(&["restore", "p/v:1", "--to", &world.volume("broken")])?.expect(4)?;
    Ok(())
}
