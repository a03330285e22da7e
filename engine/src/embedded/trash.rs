//! Deleting large devices without a long stop.
//!
//! | step | a crash after it leaves |
//! |---|---|
//! | the registry makes the device trash; its name is free, nobody can open it | trash, which the next open deletes |
//! | the pool gives its mappings up, a few thousand at a time ([`Pool::shed`](crate::Pool::shed)); others go on meanwhile | the same with less in it |
//! | the registry deletes what is left of it | nothing |

use uuid::Uuid;

use super::{EmbeddedError, Inner};
use crate::format::DeviceId;
use crate::registry::{Change, Entry, Plan, Role, State};

/// Devices with fewer mapped blocks are deleted at once.
#[cfg(not(test))]
const LARGE_DEVICE_BLOCKS: u64 = 1 << 15;
/// Low enough for tests to meet both kinds.
#[cfg(test)]
const LARGE_DEVICE_BLOCKS: u64 = 2;

impl Inner {
    /// Makes trash of the large ones among the devices that a plan removes; which.
    pub(super) fn trash_large(&self, state: &State, plan: &mut Plan) -> Result<Vec<DeviceId>, EmbeddedError> {
        let mut trash = Vec::new();
        for change in &mut plan.changes {
            let Change::Remove(id) = *change else { continue };
            let attempt = "a device could not be looked up";
            let device = self.pool.device(id).map_err(EmbeddedError::pool(attempt))?;
            let large = device.is_some_and(|device| device.details.mapped_blocks >= LARGE_DEVICE_BLOCKS);
            let entry = state.devices.get(&id).filter(|entry| large && entry.role != Role::Trash);
            if let Some(entry) = entry {
                // Its identity stays with whatever takes its place.
                let uuid = Uuid::new_v4();
                *change = Change::Put(Entry { uuid, role: Role::Trash, origin: None, ..entry.clone() });
                trash.push(id);
            }
        }
        Ok(trash)
    }

    /// Deletes trash. What fails of it is left for the next open: the device is gone in any case, only its space is not
    /// back yet.
    pub(super) fn empty_trash(&self, trash: &[DeviceId]) {
        for &device in trash {
            let emptied =
                self.pool.shed(device).map_err(EmbeddedError::pool("a device could not be given up"));
            let deleted = emptied.and_then(|()| {
                let plan = Plan { create: Vec::new(), changes: vec![Change::Remove(device)] };
                Ok(self.books.lock().registry.transact(&self.pool, plan)?)
            });
            if let Err(error) = deleted {
                tracing::warn!(%device, %error, "the space of a deleted device is given back when the pool is opened again");
            }
        }
    }
}
