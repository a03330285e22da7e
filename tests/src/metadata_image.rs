//! Large metadata images, as a pool with one volume and one snapshot of it has them, without writing through a pool.
//!
//! Device 1 is the origin, device 2 its snapshot. Both map the same virtual blocks. After the snapshot some blocks of the
//! origin were written: the nodes on the way to them are copies of the origin's own, all others belong to both trees, and
//! their count is 2. Counts of both space maps are exact, so `thin_check` and our checker find nothing.

mod blocks;
mod trees;

use std::path::Path;

use anyhow::{Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use thinbak_engine::{
    BlockSize, MetadataBlock,
    format::{DeviceDetails, MAX_METADATA_BLOCKS, SpaceMapRoot, Superblock},
};

use self::{
    blocks::{BlockFile, Counts},
    trees::{Copies, Levels, write_mapping_trees, write_tree},
};

/// How a pool's data and nodes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Written once, in order: data in the order of the virtual blocks, nodes in the order of the keys.
    Sequential,
    /// Long in use: runs of data of this mean length in random order, and every node in a random place.
    Aged {
        /// Mean length of a run, in blocks.
        run_blocks: u64,
    },
}

/// Which blocks of the origin were written after the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// None.
    Nothing,
    /// So many in a row.
    Clustered(u64),
    /// So many in random places.
    Scattered(u64),
}

/// What to write.
#[derive(Debug, Clone, Copy)]
pub struct MetadataImage {
    /// Blocks of 64 KiB that each of the two devices maps.
    pub blocks: u64,
    /// Changed blocks of the origin.
    pub changed: Changed,
    /// Where data and nodes lie.
    pub layout: Layout,
    /// Entries of a node, 84 to 252: the kernel leaves about 126 where keys come in order.
    pub entries_per_node: u64,
    /// Whether the pool holds a metadata snapshot.
    pub metadata_snap: bool,
    /// Seed of all that is random.
    pub seed: u64,
}

/// What was written.
#[derive(Debug, Clone)]
pub struct Written {
    /// Bytes of the image.
    pub bytes: u64,
    /// Nodes of the snapshot's mapping tree.
    pub nodes: u64,
    /// Nodes that the origin has copies of.
    pub copied_nodes: u64,
    /// Changed virtual blocks of the origin, ascending.
    pub changed: Vec<u64>,
}

/// Where the data of the virtual blocks lies: runs by their first virtual block, with their first data block.
struct DataLayout {
    runs: Vec<(u64, u64)>,
}

impl DataLayout {
    fn new(blocks: u64, layout: Layout, random: &mut StdRng) -> Self {
        let Layout::Aged { run_blocks } = layout else { return Self { runs: vec![(0, 0)] } };
        let chance = 1.0 / run_blocks.max(1) as f64;
        let begins: Vec<u64> =
            (0..blocks).filter(|block| *block == 0 || random.random_bool(chance)).collect();
        let ends = begins.iter().skip(1).copied().chain([blocks]);
        let mut places: Vec<(usize, u64)> =
            begins.iter().zip(ends).map(|(begin, end)| end - begin).enumerate().collect();
        places.shuffle(random);
        let mut data = 0;
        for (_, length_then_place) in &mut places {
            let length = *length_then_place;
            *length_then_place = data;
            data += length;
        }
        places.sort_unstable_by_key(|(index, _)| *index);
        Self { runs: begins.into_iter().zip(places.into_iter().map(|(_, place)| place)).collect() }
    }

    /// The data blocks of the virtual blocks from `begin` on, without end.
    fn from(&self, begin: u64) -> impl Iterator<Item = u64> + '_ {
        let first = self.runs.partition_point(|(run, _)| *run <= begin).saturating_sub(1);
        let runs = self.runs.get(first..).unwrap_or_default();
        let ends = runs.iter().skip(1).map(|(run, _)| *run).chain([u64::MAX]);
        runs.iter().zip(ends).flat_map(move |((run, data), end)| {
            let skipped = begin.saturating_sub(*run);
            data + skipped..data + (end - run)
        })
    }
}

impl MetadataImage {
    /// Writes the image to a new file, and makes it durable: what is still to be written would slow its readers.
    ///
    /// # Errors
    /// More changed blocks than there are, more nodes than metadata can have, a file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<Written> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let data = DataLayout::new(self.blocks, self.layout, &mut random);
        let changed = self.choose_changed(&mut random)?;
        // In the order in which they were written, which is not that of the volume.
        let mut new_data: Vec<u64> = (self.blocks..).take(changed.len()).collect();
        if matches!(self.changed, Changed::Scattered(_)) {
            new_data.shuffle(&mut random);
        }
        let levels = Levels::new(self.blocks, self.entries_per_node);
        let copies = Copies::new(&levels, &changed);
        let nodes = levels.nodes() + copies.nodes();
        let mut places: Vec<u64> = (1..=nodes).collect();
        if self.layout != Layout::Sequential {
            places.shuffle(&mut random);
        }
        let file = BlockFile::create(path)?;
        let data_blocks = self.blocks + changed.len() as u64 + (self.blocks / 10).max(16384);
        let mut counts = Counts::new(data_blocks);
        let entries = trees::Entries { data: &data, changed: &changed, new_data: &new_data };
        let (new_root, old_root) =
            write_mapping_trees(&file, &levels, &copies, &places, &entries, &mut counts)?;
        let bytes = self.write_the_rest(&file, counts, nodes + 1, new_root, old_root)?;
        file.sync()?;
        Ok(Written { bytes, nodes: levels.nodes(), copied_nodes: copies.nodes(), changed })
    }

    fn choose_changed(&self, random: &mut StdRng) -> Result<Vec<u64>> {
        let count = match self.changed {
            Changed::Nothing => 0,
            Changed::Clustered(count) | Changed::Scattered(count) => count,
        };
        ensure!(self.blocks > 0 && count < self.blocks, "{count} of {} blocks cannot change", self.blocks);
        if let Changed::Clustered(_) = self.changed {
            let first = random.random_range(0..self.blocks - count);
            return Ok((first..first + count).collect());
        }
        let (length, amount) = (usize::try_from(self.blocks)?, usize::try_from(count)?);
        let mut changed: Vec<u64> =
            rand::seq::index::sample(random, length, amount).into_iter().map(|index| index as u64).collect();
        changed.sort_unstable();
        Ok(changed)
    }

    /// Device trees, space maps and superblock, from block `next` on. The size of the image.
    fn write_the_rest(
        &self,
        file: &BlockFile,
        mut counts: Counts,
        next: u64,
        new_root: u64,
        old_root: u64,
    ) -> Result<u64> {
        let mut next = next;
        let roots = [MetadataBlock(new_root), MetadataBlock(old_root)];
        counts.metadata(new_root);
        counts.metadata(old_root);
        let devices = write_tree(file, &mut next, &mut counts, &numbered(1, &roots))?;
        let details = |transaction_id, creation_time| DeviceDetails {
            mapped_blocks: self.blocks,
            transaction_id,
            creation_time,
            snapshotted_time: 1,
        };
        let details =
            write_tree(file, &mut next, &mut counts, &numbered(1, &[details(0, 0), details(1, 1)]))?;
        counts.metadata(devices);
        counts.metadata(details);
        let held_root = self.metadata_snap.then_some(next);
        if let Some(held) = held_root {
            next += 1;
            for block in [held, devices, details] {
                counts.metadata(block);
            }
        }
        let data_space_map = self.write_data_space_map(file, &mut next, &mut counts)?;
        let metadata_space_map = write_metadata_space_map(file, &mut next, &mut counts)?;
        let live = Superblock {
            time: 1,
            transaction_id: 2,
            held_root: held_root.map(MetadataBlock),
            data_space_map,
            metadata_space_map,
            mapping_root: MetadataBlock(devices),
            details_root: MetadataBlock(details),
            ..Superblock::blank(BlockSize::from_bytes(64 * 1024)?, metadata_space_map.nr_blocks)
        };
        if let Some(held) = held_root {
            file.put(held, &live.snapshot_at(MetadataBlock(held)).encode())?;
        }
        file.put(0, &live.encode())?;
        let bytes = metadata_space_map.nr_blocks * blocks::BLOCK_BYTES;
        file.set_len(bytes)?;
        Ok(bytes)
    }

    fn write_data_space_map(
        &self,
        file: &BlockFile,
        next: &mut u64,
        counts: &mut Counts,
    ) -> Result<SpaceMapRoot> {
        let data = counts.take_data();
        let index = blocks::write_bitmaps(file, next, &data)?;
        for entry in &index {
            counts.metadata(entry.bitmap.0);
        }
        let bitmap_root = write_tree(file, next, counts, &numbered(0, &index))?;
        let ref_count_root = write_tree::<u32>(file, next, counts, &[])?;
        counts.metadata(bitmap_root);
        counts.metadata(ref_count_root);
        Ok(SpaceMapRoot {
            nr_blocks: data.len() as u64,
            nr_allocated: data.iter().filter(|count| **count > 0).count() as u64,
            bitmap_root: MetadataBlock(bitmap_root),
            ref_count_root: MetadataBlock(ref_count_root),
        })
    }
}

/// Values with consecutive keys.
fn numbered<V: Copy>(first: u64, values: &[V]) -> Vec<(u64, V)> {
    (first..).zip(values.iter().copied()).collect()
}

/// The last that is written, for it counts itself. A tenth of the metadata and a little more stays free.
fn write_metadata_space_map(file: &BlockFile, next: &mut u64, counts: &mut Counts) -> Result<SpaceMapRoot> {
    let ref_count_root = write_tree::<u32>(file, next, counts, &[])?;
    let index_block = *next;
    *next += 1;
    counts.metadata(ref_count_root);
    counts.metadata(index_block);
    let nr_blocks = (*next + *next / 8 + 1024).next_multiple_of(1024);
    ensure!(nr_blocks <= MAX_METADATA_BLOCKS, "{nr_blocks} blocks are more than metadata can have");
    let bitmaps = nr_blocks.div_ceil(thinbak_engine::format::ENTRIES_PER_BITMAP);
    for bitmap in *next..*next + bitmaps {
        counts.metadata(bitmap);
    }
    counts.metadata(0);
    let metadata = counts.take_metadata(nr_blocks);
    let entries = blocks::write_bitmaps(file, next, &metadata)?;
    blocks::write_index(file, index_block, entries)?;
    Ok(SpaceMapRoot {
        nr_blocks,
        nr_allocated: metadata.iter().filter(|count| **count > 0).count() as u64,
        bitmap_root: MetadataBlock(index_block),
        ref_count_root: MetadataBlock(ref_count_root),
    })
}
