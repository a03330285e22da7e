//! The superblock.

use super::checksum::BlockKind;
use super::error::{MetadataError, SuperblockProblem};
use super::raw_block::{BLOCK_BYTES, BlockBytes, RawBlock, seal};
use super::units::{BlockSize, MetadataBlock};
use super::{get_u32, get_u64, put};

/// The number that says dm-thin.
pub const MAGIC: u64 = 27_022_010;
/// The metadata version read and written.
pub const VERSION: u32 = 2;
/// Metadata blocks in sectors.
const METADATA_BLOCK_SECTORS: u32 = 8;
const NEEDS_CHECK: u32 = 1;

/// Where a space map is and how much of it is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceMapRoot {
    /// Blocks covered.
    pub nr_blocks: u64,
    /// Blocks with a count above zero.
    pub nr_allocated: u64,
    /// The metadata index, or the root of the data space map's tree of index entries.
    pub bitmap_root: MetadataBlock,
    /// Root of the tree of counts of 3 and more.
    pub ref_count_root: MetadataBlock,
}

impl SpaceMapRoot {
    fn decode(bytes: &BlockBytes, offset: usize) -> Self {
        Self {
            nr_blocks: get_u64(bytes, offset),
            nr_allocated: get_u64(bytes, offset + 8),
            bitmap_root: MetadataBlock(get_u64(bytes, offset + 16)),
            ref_count_root: MetadataBlock(get_u64(bytes, offset + 24)),
        }
    }

    fn encode(&self, bytes: &mut BlockBytes, offset: usize) {
        put(bytes, offset, &self.nr_blocks.to_le_bytes());
        put(bytes, offset + 8, &self.nr_allocated.to_le_bytes());
        put(bytes, offset + 16, &self.bitmap_root.0.to_le_bytes());
        put(bytes, offset + 24, &self.ref_count_root.0.to_le_bytes());
    }
}

/// The root of everything. Layout (offset, bytes):
///
/// | at | bytes | field |
/// |---|---|---|
/// | 0 | 4 | checksum |
/// | 4 | 4 | flags: bit 0 is `needs_check` |
/// | 8 | 8 | own location |
/// | 16 | 16 | uuid, zero |
/// | 32 | 8 | magic 27022010 |
/// | 40 | 4 | version 2 |
/// | 44 | 4 | time |
/// | 48 | 8 | transaction id |
/// | 56 | 8 | held root |
/// | 64 | 128 | data space map root (32 bytes used) |
/// | 192 | 128 | metadata space map root (32 bytes used) |
/// | 320 | 8 | root of the tree of mapping trees |
/// | 328 | 8 | root of the tree of device details |
/// | 336 | 4 | data block size in sectors |
/// | 340 | 4 | metadata block size in sectors, 8 |
/// | 344 | 8 | metadata blocks when formatted |
/// | 352 | 12 | compatible, read-only compatible, incompatible features: none defined |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Where it stands: 0, or the place of the metadata snapshot's copy.
    pub location: MetadataBlock,
    /// Set when a transaction had to be given up; no writing until a check has cleared it.
    pub needs_check: bool,
    /// All other flag bits, kept as found.
    pub other_flags: u32,
    /// Kept as found.
    pub uuid: [u8; 16],
    /// The snapshot clock.
    pub time: u32,
    /// User space's compare-and-swap number.
    pub transaction_id: u64,
    /// Block of the metadata snapshot's superblock.
    pub held_root: Option<MetadataBlock>,
    /// Data space map; zero in a metadata snapshot.
    pub data_space_map: SpaceMapRoot,
    /// Metadata space map; zero in a metadata snapshot.
    pub metadata_space_map: SpaceMapRoot,
    /// Tree from device id to the root of its mapping tree.
    pub mapping_root: MetadataBlock,
    /// Tree from device id to device details.
    pub details_root: MetadataBlock,
    /// Size of data blocks.
    pub block_size: BlockSize,
    /// Size of the metadata in blocks when it was formatted. The size now is that of the space map.
    pub metadata_nr_blocks: u64,
    /// Compatible features, kept as found.
    pub compat_flags: u32,
    /// Features that forbid writing when unknown.
    pub compat_ro_flags: u32,
}

impl Superblock {
    /// That of a pool that has nothing yet.
    #[must_use]
    pub fn blank(block_size: BlockSize, metadata_nr_blocks: u64) -> Self {
        Self {
            location: MetadataBlock(0),
            needs_check: false,
            other_flags: 0,
            uuid: [0; 16],
            time: 0,
            transaction_id: 0,
            held_root: None,
            data_space_map: SpaceMapRoot::default(),
            metadata_space_map: SpaceMapRoot::default(),
            mapping_root: MetadataBlock(0),
            details_root: MetadataBlock(0),
            block_size,
            metadata_nr_blocks,
            compat_flags: 0,
            compat_ro_flags: 0,
        }
    }

    /// The copy of it that is a metadata snapshot: it says nothing of space maps, nor of itself.
    #[must_use]
    pub fn snapshot_at(&self, location: MetadataBlock) -> Self {
        Self {
            location,
            held_root: None,
            data_space_map: SpaceMapRoot::default(),
            metadata_space_map: SpaceMapRoot::default(),
            ..self.clone()
        }
    }

    /// Reads and verifies the superblock (location 0) or a copy of it.
    ///
    /// # Errors
    /// See [`Superblock::verify`]; also a failed read.
    pub fn read(device: &dyn crate::BlockDevice, location: MetadataBlock) -> Result<Self, MetadataError> {
        Self::verify(RawBlock::read(device, location)?)
    }

    /// The superblock in a block that was read.
    ///
    /// # Errors
    /// A checksum, location, magic, version, block size or incompatible feature that is not right.
    pub fn verify(raw: RawBlock) -> Result<Self, MetadataError> {
        let location = raw.location();
        let found = get_u64(raw.bytes(), 32);
        if found != MAGIC {
            return Err(MetadataError::BadSuperblock {
                block: location,
                problem: SuperblockProblem::Magic(found),
            });
        }
        let bytes = raw.verify(BlockKind::Superblock)?;
        Self::decode(location, &bytes)
            .map_err(|problem| MetadataError::BadSuperblock { block: location, problem })
    }

    fn decode(location: MetadataBlock, bytes: &BlockBytes) -> Result<Self, SuperblockProblem> {
        let version = get_u32(bytes, 40);
        // The kernel writes 2 and tests nothing; version 1 differs in nothing that is read here.
        if !(1..=VERSION).contains(&version) {
            return Err(SuperblockProblem::Version(version));
        }
        let incompat = get_u32(bytes, 360);
        if incompat != 0 {
            return Err(SuperblockProblem::Incompatible(incompat));
        }
        let metadata_block_size = get_u32(bytes, 340);
        if metadata_block_size != METADATA_BLOCK_SECTORS {
            return Err(SuperblockProblem::MetadataBlockSize(metadata_block_size));
        }
        let flags = get_u32(bytes, 4);
        let held_root = get_u64(bytes, 56);
        Ok(Self {
            location,
            needs_check: flags & NEEDS_CHECK != 0,
            other_flags: flags & !NEEDS_CHECK,
            uuid: bytes.get(16..).and_then(|tail| tail.first_chunk()).copied().unwrap_or_default(),
            time: get_u32(bytes, 44),
            transaction_id: get_u64(bytes, 48),
            held_root: (held_root != 0).then_some(MetadataBlock(held_root)),
            data_space_map: SpaceMapRoot::decode(bytes, 64),
            metadata_space_map: SpaceMapRoot::decode(bytes, 192),
            mapping_root: MetadataBlock(get_u64(bytes, 320)),
            details_root: MetadataBlock(get_u64(bytes, 328)),
            block_size: BlockSize::from_sectors(get_u32(bytes, 336))?,
            metadata_nr_blocks: get_u64(bytes, 344),
            compat_flags: get_u32(bytes, 352),
            compat_ro_flags: get_u32(bytes, 356),
        })
    }

    /// The block to write at [`location`](Superblock::location).
    #[must_use]
    pub fn encode(&self) -> Box<BlockBytes> {
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        let flags = self.other_flags | u32::from(self.needs_check);
        put(bytes.as_mut_slice(), 4, &flags.to_le_bytes());
        put(bytes.as_mut_slice(), 16, &self.uuid);
        put(bytes.as_mut_slice(), 32, &MAGIC.to_le_bytes());
        put(bytes.as_mut_slice(), 40, &VERSION.to_le_bytes());
        put(bytes.as_mut_slice(), 44, &self.time.to_le_bytes());
        put(bytes.as_mut_slice(), 48, &self.transaction_id.to_le_bytes());
        put(bytes.as_mut_slice(), 56, &self.held_root.unwrap_or_default().0.to_le_bytes());
        self.data_space_map.encode(&mut bytes, 64);
        self.metadata_space_map.encode(&mut bytes, 192);
        put(bytes.as_mut_slice(), 320, &self.mapping_root.0.to_le_bytes());
        put(bytes.as_mut_slice(), 328, &self.details_root.0.to_le_bytes());
        put(bytes.as_mut_slice(), 336, &self.block_size.sectors().to_le_bytes());
        put(bytes.as_mut_slice(), 340, &METADATA_BLOCK_SECTORS.to_le_bytes());
        put(bytes.as_mut_slice(), 344, &self.metadata_nr_blocks.to_le_bytes());
        put(bytes.as_mut_slice(), 352, &self.compat_flags.to_le_bytes());
        put(bytes.as_mut_slice(), 356, &self.compat_ro_flags.to_le_bytes());
        seal(&mut bytes, self.location, BlockKind::Superblock);
        bytes
    }
}
