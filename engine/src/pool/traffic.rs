//! Which blocks are in use by whom.

use std::ops::RangeInclusive;

use parking_lot::{Condvar, Mutex};

use crate::format::DeviceId;

/// What a range of a device is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Reading through the mappings.
    Read,
    /// Writing to data blocks that are mapped already.
    Write,
    /// Making a snapshot: no write may be under way.
    Snapshot,
    /// Changing mappings.
    Exclusive,
}

impl Purpose {
    fn conflicts_with(self, other: Self) -> bool {
        match (self, other) {
            (Self::Exclusive, _) | (_, Self::Exclusive) => true,
            (Self::Snapshot, Self::Write | Self::Snapshot) | (Self::Write, Self::Snapshot) => true,
            (Self::Read, _) | (_, Self::Read) | (Self::Write, Self::Write) => false,
        }
    }
}

/// A wish to use a range of blocks of a device.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) device: DeviceId,
    pub(super) blocks: RangeInclusive<u64>,
    pub(super) purpose: Purpose,
}

impl Claim {
    fn conflicts_with(&self, other: &Self) -> bool {
        self.device == other.device
            && self.blocks.start() <= other.blocks.end()
            && other.blocks.start() <= self.blocks.end()
            && self.purpose.conflicts_with(other.purpose)
    }
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    /// In the order of arrival. One that has no conflict with an earlier one may go.
    entries: Vec<(u64, Vec<Claim>)>,
}

impl Queue {
    fn may_go(&self, ticket: u64) -> bool {
        let earlier = self.entries.iter().take_while(|(other, _)| *other != ticket);
        let Some((_, mine)) = self.entries.iter().find(|(other, _)| *other == ticket) else { return true };
        let conflict = |other: &Claim| mine.iter().any(|claim| claim.conflicts_with(other));
        !earlier.flat_map(|(_, claims)| claims).any(conflict)
    }
}

/// The table of all uses under way and waiting. First come, first served: nobody starves, and since one thread waits with all
/// its claims at once, no two wait for each other.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    queue: Mutex<Queue>,
    left: Condvar,
}

/// A use under way; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Passage<'a> {
    traffic: &'a Traffic,
    ticket: u64,
}

impl Traffic {
    /// Waits until a range may be used.
    pub(super) fn enter(
        &self,
        device: DeviceId,
        blocks: RangeInclusive<u64>,
        purpose: Purpose,
    ) -> Passage<'_> {
        self.enter_all([Claim { device, blocks, purpose }])
    }

    /// Waits until several ranges may be used. They do not conflict with each other.
    pub(super) fn enter_all(&self, claims: impl IntoIterator<Item = Claim>) -> Passage<'_> {
        let mut queue = self.queue.lock();
        let ticket = queue.next;
        queue.next += 1;
        queue.entries.push((ticket, claims.into_iter().collect()));
        while !queue.may_go(ticket) {
            self.left.wait(&mut queue);
        }
        Passage { traffic: self, ticket }
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        let mut queue = self.traffic.queue.lock();
        queue.entries.retain(|(ticket, _)| *ticket != self.ticket);
        let waiting = !queue.entries.is_empty();
        drop(queue);
        if waiting {
            self.traffic.left.notify_all();
        }
    }
}
