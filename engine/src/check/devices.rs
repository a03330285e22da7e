//! F7: the two trees of devices. What they say of a device takes 56 bytes while they are compared.

use super::{
    MAX_LISTED,
    checker::{Checker, Place, Role, Scope},
    raw::{u32_at, u64_at},
    superblock::Superblock,
};
use crate::DeviceId;

struct Details {
    device: u64,
    mapped_blocks: u64,
    creation_time: u32,
    snapshotted_time: u32,
}

struct Root {
    device: u64,
    block: u64,
    counted: bool,
}

/// Keys that are no device ids: more of them than can be listed are only counted, so that they take no memory.
#[derive(Default)]
struct Surplus {
    taken: usize,
    omitted: u64,
}

impl Surplus {
    fn takes(&mut self, device: u64) -> bool {
        if DeviceId::new(device).is_ok() {
            return true;
        }
        let takes = self.taken < MAX_LISTED;
        if takes {
            self.taken += 1
        } else {
            self.omitted += 1
        }
        takes
    }
}

impl Checker<'_> {
    /// Checks the devices of a superblock, or of a metadata snapshot; returns how many there are and their mappings.
    pub(super) fn devices(&mut self, superblock: &Superblock, held: bool) -> (u64, u64) {
        let (roots, roots_complete) = self.roots(superblock.mapping_root, held);
        let (details, details_complete) = self.all_details(superblock.details_root, held);
        let mut details = details.into_iter().peekable();
        let compare = roots_complete && details_complete;
        let mut mappings = 0_u64;
        for root in &roots {
            let scope =
                Scope { device: DeviceId::new(root.device).ok(), ..Scope::new(Role::MappingTree, held) };
            let place =
                Place { first: root.device, last: root.device, ..Place::root(superblock.mapping_root) };
            if scope.device.is_none() {
                self.note("F7", true, &place, scope, &format!("{} is no device id", root.device));
            }
            while let Some(alone) = details.next_if(|details| details.device < root.device) {
                self.details_alone(superblock, held, &alone, compare);
            }
            let entries = self.mapping_tree(root.block, scope, root.counted);
            mappings = mappings.saturating_add(entries.unwrap_or(0));
            match details.next_if(|details| details.device == root.device) {
                Some(details) => self.details(superblock, scope, &details, entries),
                None if compare => {
                    self.note("F7", true, &place, scope, &format!("device {} has no details", root.device));
                }
                None => {}
            }
        }
        for alone in details {
            self.details_alone(superblock, held, &alone, compare);
        }
        (roots.len() as u64, mappings)
    }

    /// The mapping trees by device, and whether all could be read.
    fn roots(&mut self, root: u64, held: bool) -> (Vec<Root>, bool) {
        let scope = Scope::new(Role::DeviceTree, held);
        let (mut roots, mut surplus) = (Vec::new(), Surplus::default());
        let complete = self.small_tree(root, scope, &mut |device, value, counted| {
            if surplus.takes(device) {
                roots.push(Root { device, block: u64_at(value, 0), counted });
            }
        });
        self.surplus(&surplus, root, scope);
        (roots, complete)
    }

    /// What is said of the devices, and whether all could be read.
    fn all_details(&mut self, root: u64, held: bool) -> (Vec<Details>, bool) {
        let scope = Scope::new(Role::DetailsTree, held);
        let (mut details, mut surplus) = (Vec::new(), Surplus::default());
        let complete = self.small_tree(root, scope, &mut |device, value, _| {
            if surplus.takes(device) {
                details.push(Details {
                    device,
                    mapped_blocks: u64_at(value, 0),
                    creation_time: u32_at(value, 16),
                    snapshotted_time: u32_at(value, 20),
                });
            }
        });
        self.surplus(&surplus, root, scope);
        (details, complete)
    }

    fn surplus(&mut self, surplus: &Surplus, root: u64, scope: Scope) {
        if surplus.omitted > 0 {
            let what = format!("{} more keys are no device ids", surplus.omitted);
            self.lost("F7", &Place::root(root), scope, &what);
        }
    }

    fn details_alone(&mut self, superblock: &Superblock, held: bool, details: &Details, compare: bool) {
        if compare {
            let device = details.device;
            let scope = Scope { device: DeviceId::new(device).ok(), ..Scope::new(Role::DetailsTree, held) };
            let place = Place { first: device, last: device, ..Place::root(superblock.details_root) };
            self.note("F7", true, &place, scope, &format!("device {device} has details and no mapping tree"));
        }
    }

    fn details(&mut self, superblock: &Superblock, scope: Scope, details: &Details, entries: Option<u64>) {
        let scope = Scope { role: Role::DetailsTree, ..scope };
        let place =
            Place { first: details.device, last: details.device, ..Place::root(superblock.details_root) };
        if let Some(entries) = entries.filter(|entries| *entries != details.mapped_blocks) {
            let what =
                format!("{} mapped blocks are recorded, the tree has {entries}", details.mapped_blocks);
            self.note("F7", true, &place, scope, &what);
        }
        let Details { creation_time, snapshotted_time, .. } = *details;
        if snapshotted_time > superblock.time || creation_time > snapshotted_time {
            let what = format!(
                "created at time {creation_time}, last snapshot at {snapshotted_time}, the pool is at {}",
                superblock.time
            );
            self.note("F7", true, &place, scope, &what);
        }
    }
}
