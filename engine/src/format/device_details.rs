//! What the pool remembers about a thin device.

use super::node::NodeValue;
use super::units::{DeviceId, MetadataBlock};
use super::{get_u32, get_u64, put};

/// A value of the tree of device details.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceDetails {
    /// Entries in the device's mapping tree.
    pub mapped_blocks: u64,
    /// The pool's transaction id when the device was created.
    pub transaction_id: u64,
    /// The snapshot time when the device was created.
    pub creation_time: u32,
    /// The time of the last snapshot with this device as origin or as result.
    pub snapshotted_time: u32,
}

impl NodeValue for DeviceDetails {
    const SIZE: usize = 24;

    fn decode(bytes: &[u8]) -> Self {
        Self {
            mapped_blocks: get_u64(bytes, 0),
            transaction_id: get_u64(bytes, 8),
            creation_time: get_u32(bytes, 16),
            snapshotted_time: get_u32(bytes, 20),
        }
    }

    fn encode(&self, bytes: &mut [u8]) {
        put(bytes, 0, &self.mapped_blocks.to_le_bytes());
        put(bytes, 8, &self.transaction_id.to_le_bytes());
        put(bytes, 16, &self.creation_time.to_le_bytes());
        put(bytes, 20, &self.snapshotted_time.to_le_bytes());
    }
}

/// A thin device as the two trees of devices describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its id.
    pub id: DeviceId,
    /// Its details.
    pub details: DeviceDetails,
    /// Root of its mapping tree.
    pub root: MetadataBlock,
}
