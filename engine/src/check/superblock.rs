//! F1, F2, F14: the superblock and the copy of it in a metadata snapshot.

use super::{
    CheckReport, Damage,
    raw::{BLOCK_LEN, Block, MAX_DATA_BLOCKS, MAX_METADATA_BLOCKS, Salt, read_block, u32_at, u64_at},
};
use crate::{BlockDevice, MetadataBlock};

const MAGIC: u64 = 27_022_010;
const NEWEST_VERSION: u32 = 2;
const NEEDS_CHECK: u32 = 1;
const METADATA_BLOCK_SECTORS: u32 = 8;
const DATA_BLOCK_STEP_SECTORS: u32 = 128;
const MAX_DATA_BLOCK_SECTORS: u32 = 1 << 21;
const SECTOR_BYTES: u128 = 512;

/// A space map as the superblock has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SpaceMapRoot {
    pub(super) blocks: u64,
    pub(super) allocated: u64,
    pub(super) bitmap_root: u64,
    pub(super) ref_count_root: u64,
}

impl SpaceMapRoot {
    fn decode(block: &Block, offset: usize) -> Self {
        Self {
            blocks: u64_at(block, offset),
            allocated: u64_at(block, offset + 8),
            bitmap_root: u64_at(block, offset + 16),
            ref_count_root: u64_at(block, offset + 24),
        }
    }
}

/// The fields that the checker goes by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Superblock {
    pub(super) time: u32,
    pub(super) transaction_id: u64,
    pub(super) held_root: u64,
    pub(super) data_map: SpaceMapRoot,
    pub(super) metadata_map: SpaceMapRoot,
    pub(super) mapping_root: u64,
    pub(super) details_root: u64,
    data_block_sectors: u32,
}

fn damage(invariant: &'static str, fatal: bool, block: u64, description: String) -> Damage {
    Damage { invariant, fatal, block: Some(MetadataBlock(block)), device: None, keys: None, description }
}

impl Superblock {
    /// The pool's superblock; none when it is beyond use, which the report then says.
    pub(super) fn read(device: &dyn BlockDevice, report: &mut CheckReport) -> Option<Self> {
        Self::read_at(device, 0, "F1", "the superblock", report)
    }

    /// The copy in a metadata snapshot, which must fit `live`.
    pub(super) fn read_copy(&self, device: &dyn BlockDevice, report: &mut CheckReport) -> Option<Self> {
        let block = self.held_root;
        let what = format!("the metadata snapshot in block {block}");
        let copy = Self::read_at(device, block, "F14", &what, report)?;
        let empty = SpaceMapRoot { blocks: 0, allocated: 0, bitmap_root: 0, ref_count_root: 0 };
        let mut wrong = |description: String| report.add(damage("F14", true, block, description));
        if copy.data_map != empty || copy.metadata_map != empty {
            wrong(format!("{what} has space maps, which a copy must not have"));
        }
        if copy.held_root != 0 {
            wrong(format!("{what} names metadata snapshot {} itself", copy.held_root));
        }
        if copy.time > self.time || copy.transaction_id > self.transaction_id {
            wrong(format!(
                "{what} is from time {}, transaction {}, the pool is at time {}, transaction {}",
                copy.time, copy.transaction_id, self.time, self.transaction_id
            ));
        }
        if copy.data_block_sectors != self.data_block_sectors {
            wrong(format!(
                "{what} has data blocks of {} sectors, the pool of {}",
                copy.data_block_sectors, self.data_block_sectors
            ));
        }
        Some(copy)
    }

    fn read_at(
        device: &dyn BlockDevice,
        number: u64,
        invariant: &'static str,
        what: &str,
        report: &mut CheckReport,
    ) -> Option<Self> {
        let block = match read_block(device, number, Salt::Superblock) {
            Ok(block) => block,
            Err(fault) => {
                report.add(damage(invariant, true, number, format!("{what} is damaged: {fault}")));
                return None;
            }
        };
        let mut wrong = |fatal: bool, description: String| {
            report.add(damage(invariant, fatal, number, format!("{what} {description}")));
        };
        let magic = u64_at(block.as_slice(), 32);
        if magic != MAGIC {
            wrong(true, format!("is not that of a thin pool: magic {magic} where {MAGIC} is due"));
            return None;
        }
        let version = u32_at(block.as_slice(), 40);
        if version > NEWEST_VERSION {
            wrong(true, format!("has version {version}, the newest known is {NEWEST_VERSION}"));
        }
        for (offset, name) in [(360, "incompatible"), (356, "read-only compatible")] {
            let features = u32_at(block.as_slice(), offset);
            if features != 0 {
                wrong(true, format!("has unknown {name} features {features:#x}"));
            }
        }
        let flags = u32_at(block.as_slice(), 4);
        if flags & NEEDS_CHECK != 0 {
            wrong(false, "has the needs_check flag set: the kernel gave up a transaction".to_owned());
        }
        if flags & !NEEDS_CHECK != 0 {
            wrong(true, format!("has unknown flags {flags:#x}"));
        }
        let metadata_block = u32_at(block.as_slice(), 340);
        if metadata_block != METADATA_BLOCK_SECTORS {
            wrong(true, format!("has metadata blocks of {metadata_block} sectors where 8 are due"));
        }
        let sectors = u32_at(block.as_slice(), 336);
        let legal = (DATA_BLOCK_STEP_SECTORS..=MAX_DATA_BLOCK_SECTORS).contains(&sectors);
        if !legal || !sectors.is_multiple_of(DATA_BLOCK_STEP_SECTORS) {
            wrong(true, format!("has data blocks of {sectors} sectors, no legal size"));
        }
        Some(Self::decode(&block))
    }

    fn decode(block: &Block) -> Self {
        Self {
            time: u32_at(block, 44),
            transaction_id: u64_at(block, 48),
            held_root: u64_at(block, 56),
            data_map: SpaceMapRoot::decode(block, 64),
            metadata_map: SpaceMapRoot::decode(block, 192),
            mapping_root: u64_at(block, 320),
            details_root: u64_at(block, 328),
            data_block_sectors: u32_at(block, 336),
        }
    }

    /// F2.
    pub(super) fn check_sizes(&self, metadata_bytes: u64, data_bytes: Option<u64>, report: &mut CheckReport) {
        let limit = (metadata_bytes / BLOCK_LEN as u64).min(MAX_METADATA_BLOCKS);
        let blocks = self.metadata_map.blocks;
        if blocks > limit {
            let description =
                format!("the metadata space map covers {blocks} blocks, the device has {limit} usable ones");
            report.add(damage("F2", true, 0, description));
        }
        if self.data_map.blocks > MAX_DATA_BLOCKS {
            let description = format!(
                "the data space map covers {} blocks, mappings can name {MAX_DATA_BLOCKS}",
                self.data_map.blocks
            );
            report.add(damage("F2", true, 0, description));
        }
        let needed = u128::from(self.data_map.blocks) * u128::from(self.data_block_sectors) * SECTOR_BYTES;
        if let Some(bytes) = data_bytes.filter(|bytes| u128::from(*bytes) < needed) {
            let description = format!(
                "the data space map covers {} blocks, {needed} bytes, the data device has {bytes} bytes",
                self.data_map.blocks
            );
            report.add(damage("F2", true, 0, description));
        }
    }
}
