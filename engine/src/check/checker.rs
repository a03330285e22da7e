//! What the parts of the checker share: where everything is noted, and the walk over the pool's trees.

use std::{fmt, sync::Arc};

use super::{
    CheckReport, Damage,
    raw::{BLOCK_LEN, Block, BlockFault, MAX_METADATA_BLOCKS, Node, Salt, max_entries, read_block},
    scan::{Kept, scan},
    superblock::Superblock,
    table::{Known, Scanned, Table},
    tally::Tally,
};
use crate::{BlockDevice, DeviceId, MetadataBlock};

/// A tree of more levels cannot be, even if its nodes were almost empty.
pub(super) const MAX_LEVELS: usize = 16;

/// What a metadata block is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Superblock,
    SnapshotSuperblock,
    DeviceTree,
    DetailsTree,
    MappingTree,
    DataIndexTree,
    DataBitmap,
    DataCountTree,
    MetadataIndex,
    MetadataBitmap,
    MetadataCountTree,
}

impl Role {
    const ALL: [Self; 11] = [
        Self::Superblock,
        Self::SnapshotSuperblock,
        Self::DeviceTree,
        Self::DetailsTree,
        Self::MappingTree,
        Self::DataIndexTree,
        Self::DataBitmap,
        Self::DataCountTree,
        Self::MetadataIndex,
        Self::MetadataBitmap,
        Self::MetadataCountTree,
    ];

    /// Not zero.
    pub(super) const fn code(self) -> u8 {
        self as u8 + 1
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.code() == code)
    }

    /// Bytes of a value in the leaves, for trees.
    pub(super) const fn value_size(self) -> usize {
        match self {
            Self::DetailsTree => 24,
            Self::DataIndexTree => 16,
            Self::DataCountTree | Self::MetadataCountTree => 4,
            _ => 8,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::SnapshotSuperblock => "metadata snapshot",
            Self::DeviceTree => "device tree",
            Self::DetailsTree => "device details tree",
            Self::MappingTree => "mapping tree",
            Self::DataIndexTree => "data space map's index tree",
            Self::DataBitmap => "data space map bitmap",
            Self::DataCountTree => "data space map's count tree",
            Self::MetadataIndex => "metadata space map index",
            Self::MetadataBitmap => "metadata space map bitmap",
            Self::MetadataCountTree => "metadata space map's count tree",
        })
    }
}

/// Where in the pool the walk is; every damage names it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope {
    pub(super) role: Role,
    /// In the trees of the metadata snapshot.
    pub(super) held: bool,
    pub(super) device: Option<DeviceId>,
}

impl Scope {
    pub(super) fn new(role: Role, held: bool) -> Self {
        Self { role, held, device: None }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.held && self.role != Role::SnapshotSuperblock {
            f.write_str("metadata snapshot, ")?;
        }
        if let Some(device) = self.device {
            write!(f, "device {device}, ")?;
        }
        write!(f, "{}", self.role)
    }
}

/// A node to look at, and the keys that its tree keeps under it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) block: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) is_root: bool,
}

impl Place {
    pub(super) fn root(block: u64) -> Self {
        Self { block, first: 0, last: u64::MAX, is_root: true }
    }
}

/// What is known of a block at a reference to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Visit {
    /// It was not met before.
    First,
    /// Another reference in the same role.
    Again,
    /// It cannot be what the reference says.
    Wrong,
}

/// Everything that was found so far.
pub(super) struct Checker<'a> {
    pub(super) device: &'a dyn BlockDevice,
    pub(super) superblock: &'a Superblock,
    /// Metadata blocks that may be referred to.
    pub(super) blocks: u64,
    pub(super) table: Table,
    kept: Kept,
    /// Of the data blocks that are counted at present.
    pub(super) tally: Arc<Tally>,
    /// Some references are not known, so counts cannot be judged.
    pub(super) incomplete: bool,
    pub(super) report: CheckReport,
}

impl<'a> Checker<'a> {
    /// Scans the metadata; data blocks of the first `span_bitmaps` bitmaps are counted.
    pub(super) fn new(
        device: &'a dyn BlockDevice,
        superblock: &'a Superblock,
        span_bitmaps: u64,
        report: CheckReport,
    ) -> Self {
        let limit = (device.size_bytes() / BLOCK_LEN as u64).min(MAX_METADATA_BLOCKS);
        let blocks = superblock.metadata_map.blocks.min(limit);
        let tally = Arc::new(Tally::new(superblock, blocks, 0..span_bitmaps));
        let mut table = Table::new(blocks);
        // What is wrong with the copy is reported when the checker comes to it.
        let held = (superblock.held_root != 0)
            .then(|| superblock.read_copy(device, &mut CheckReport::default()))
            .flatten();
        let kept = scan(device, superblock, held.as_ref(), &tally, blocks, &mut table);
        Self { device, superblock, blocks, table, kept, tally, incomplete: false, report }
    }

    pub(super) fn finish(self) -> CheckReport {
        self.report
    }

    /// Notes the superblock as what it is.
    pub(super) fn superblock_block(&mut self) {
        if let Some(known) = self.table.entry(0) {
            *known = Known { role: Some(Role::Superblock), references: 1, ..Known::default() };
        }
        self.report.blocks += 1;
    }

    /// The trees of the pool and of its metadata snapshot.
    pub(super) fn pool(&mut self) {
        let superblock = self.superblock;
        let (devices, mappings) = self.devices(superblock, false);
        self.report.devices = devices;
        self.report.mappings = mappings;
        if superblock.held_root == 0 {
            return;
        }
        let scope = Scope::new(Role::SnapshotSuperblock, true);
        if self.visit(&Place::root(superblock.held_root), scope) != Visit::First {
            return;
        }
        match superblock.read_copy(self.device, &mut self.report) {
            Some(copy) => {
                self.devices(&copy, true);
            }
            None => self.incomplete = true,
        }
    }

    /// Counts a reference and tells whether the block was met before.
    pub(super) fn visit(&mut self, place: &Place, scope: Scope) -> Visit {
        let block = place.block;
        if block >= self.blocks {
            let blocks = self.blocks;
            let what = format!("refers to block {block}, there are {blocks}");
            self.lost("F3", place, scope, &what);
            return Visit::Wrong;
        }
        let Some(known) = self.table.entry(block) else { return Visit::Wrong };
        match known.role {
            None => {
                known.role = Some(scope.role);
                known.references = 1;
                self.report.blocks += 1;
                Visit::First
            }
            Some(role) if role == scope.role => {
                known.references = known.references.saturating_add(1);
                Visit::Again
            }
            Some(role) => {
                let what = format!("refers to block {block}, which is a {role} as well");
                self.lost("F6", place, scope, &what);
                Visit::Wrong
            }
        }
    }

    /// A leaf that the scan found flawless and took up, if it fits here as well.
    pub(super) fn clean_leaf(&self, place: &Place, scope: Scope) -> Option<Known> {
        let known = self.table.get(place.block);
        let least = if place.is_root { 0 } else { max_entries(scope.role.value_size()) / 3 };
        let fits = known.scanned == Scanned::Clean
            && known.scanned_as == Some(scope.role)
            && usize::try_from(known.entries).is_ok_and(|entries| entries >= least)
            && (known.entries == 0 || known.first >= place.first && known.last <= place.last);
        fits.then_some(known)
    }

    fn node_block(&self, number: u64) -> Result<Arc<Block>, BlockFault> {
        match self.kept.get(&number) {
            Some(block) => Ok(Arc::clone(block)),
            None => read_block(self.device, number, Salt::Node).map(Arc::from),
        }
    }

    /// Reads a node; damage of it is reported.
    pub(super) fn node(&mut self, place: &Place, scope: Scope) -> Option<Node<Arc<Block>>> {
        let block = match self.node_block(place.block) {
            Ok(block) => block,
            Err(fault) => {
                self.lost("F3", place, scope, &format!("block {} is damaged: {fault}", place.block));
                return None;
            }
        };
        let node = match Node::decode(block, scope.role.value_size()) {
            Ok(node) => node,
            Err(fault) => {
                self.lost("F4", place, scope, &format!("block {} is not well formed: {fault}", place.block));
                return None;
            }
        };
        if let Some(key) = node.keys().find(|key| !(place.first..=place.last).contains(key)) {
            self.lost("F5", place, scope, &format!("block {} has key {key}", place.block));
            return None;
        }
        if !place.is_root && node.under_full() {
            // The kernel's tools take this of mapping leaves only.
            let fatal = node.internal || scope.role != Role::MappingTree;
            let (entries, max) = (node.len, node.max_entries);
            self.note(
                "F4",
                fatal,
                place,
                scope,
                &format!("block {} has {entries} of {max} entries", place.block),
            );
        }
        Some(node)
    }

    /// Reports damage that hides what is under a node.
    pub(super) fn lost(&mut self, invariant: &'static str, place: &Place, scope: Scope, what: &str) {
        self.incomplete = true;
        self.note(invariant, true, place, scope, what);
    }

    /// Reports damage of a node.
    pub(super) fn note(
        &mut self,
        invariant: &'static str,
        fatal: bool,
        place: &Place,
        scope: Scope,
        what: &str,
    ) {
        let range = match (scope.role, place.last) {
            (Role::SnapshotSuperblock | Role::MetadataIndex, _) => String::new(),
            (_, u64::MAX) => format!(" (keys {} and above)", place.first),
            (_, last) => format!(" (keys {} to {last})", place.first),
        };
        self.report.add(Damage {
            invariant,
            fatal,
            block: Some(MetadataBlock(place.block)),
            device: scope.device,
            keys: Some((place.first, place.last)),
            description: format!("{scope}: {what}{range}"),
        });
    }
}
