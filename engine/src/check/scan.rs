//! The scan: reads all nodes that can be reached, level by level, with several threads, and takes up what the leaves
//! add up to.
//!
//! It reports nothing, and gives up what it cannot follow. The checker then follows every reference in its order, from
//! the roots on, by what the scan noted of each leaf; whatever the scan did not find flawless is read again and
//! judged there. So the report does not depend on the order in which the threads came to the blocks.

use std::{
    collections::HashMap,
    mem,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use parking_lot::Mutex;

use super::{
    checker::{MAX_LEVELS, Role},
    raw::{Block, Node, Salt, verify},
    superblock::Superblock,
    sweep::sweep,
    table::{BlockSet, Known, Scanned, Table},
    tally::Tally,
};
use crate::BlockDevice;

/// Internal nodes, and leaves of the small trees, that are kept for the checker: at most 32 MiB. It reads the others
/// once more.
const MAX_KEPT: usize = 8_192;

/// Intact nodes, by block.
pub(super) type Kept = HashMap<u64, Arc<Block>>;

struct Scan<'a> {
    tally: &'a Tally,
    /// The role, if any, for which a block was claimed.
    claims: Vec<AtomicU8>,
    /// Claimed and not read yet.
    next: BlockSet,
    kept: Mutex<Kept>,
}

/// Reads the trees of the pool and of its metadata snapshot into the table; returns the nodes that were kept.
pub(super) fn scan(
    device: &dyn BlockDevice,
    superblock: &Superblock,
    snapshot: Option<&Superblock>,
    tally: &Tally,
    blocks: u64,
    table: &mut Table,
) -> Kept {
    let claims = usize::try_from(blocks).unwrap_or(usize::MAX);
    let mut scan = Scan {
        tally,
        claims: (0..claims).map(|_| AtomicU8::new(0)).collect(),
        next: BlockSet::new(blocks),
        kept: Mutex::default(),
    };
    for root in [Some(superblock), snapshot].into_iter().flatten() {
        scan.claim(root.mapping_root, Role::DeviceTree);
        scan.claim(root.details_root, Role::DetailsTree);
    }
    scan.claim(superblock.data_map.bitmap_root, Role::DataIndexTree);
    scan.claim(superblock.data_map.ref_count_root, Role::DataCountTree);
    scan.claim(superblock.metadata_map.ref_count_root, Role::MetadataCountTree);
    let mut wanted = BlockSet::new(blocks);
    // A mapping tree is under the device tree.
    for _ in 0..2 * MAX_LEVELS {
        mem::swap(&mut wanted, &mut scan.next);
        if wanted.len() == 0 {
            break;
        }
        sweep(device, table, &wanted, &|number, block, known| scan.examine(number, block, known));
        wanted.clear();
    }
    scan.kept.into_inner()
}

impl Scan<'_> {
    /// Wants a block, unless it was wanted before.
    fn claim(&self, block: u64, role: Role) {
        let claim = usize::try_from(block).ok().and_then(|block| self.claims.get(block));
        let Some(claim) = claim else { return };
        let free = claim.load(Ordering::Relaxed) == 0;
        if free && claim.compare_exchange(0, role.code(), Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.next.insert(block);
        }
    }

    fn claimed_as(&self, block: u64) -> Option<Role> {
        let claim = usize::try_from(block).ok().and_then(|block| self.claims.get(block));
        Role::from_code(claim?.load(Ordering::Relaxed))
    }

    fn examine(&self, number: u64, block: &Block, known: &mut Known) {
        let Some(role) = self.claimed_as(number) else { return };
        if verify(block, number, Salt::Node).is_err() {
            return;
        }
        let Ok(node) = Node::decode(block, role.value_size()) else { return };
        let under = match role {
            _ if node.internal => Some(role),
            Role::DeviceTree => Some(Role::MappingTree),
            _ => None,
        };
        if let Some(role) = under {
            node.pointers().for_each(|child| self.claim(child, role));
        }
        let clean = match role {
            Role::MappingTree if !node.internal => self.tally.mapping_leaf(&node, true) == Default::default(),
            Role::DataCountTree | Role::MetadataCountTree if !node.internal => {
                self.tally.count_leaf(&node, role)
            }
            _ => return self.keep(number, block),
        };
        let (first, last) = node.key_range().unwrap_or_default();
        *known = Known {
            first,
            last,
            entries: u32::try_from(node.len).unwrap_or(u32::MAX),
            scanned: if clean { Scanned::Clean } else { Scanned::Odd },
            scanned_as: Some(role),
            ..*known
        };
    }

    fn keep(&self, number: u64, block: &Block) {
        let mut kept = self.kept.lock();
        if kept.len() < MAX_KEPT {
            kept.insert(number, Arc::new(*block));
        }
    }
}
