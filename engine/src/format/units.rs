//! Numbers that must not be mixed up.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bytes of a sector, the unit of block sizes in the superblock.
pub const SECTOR_BYTES: u64 = 512;

macro_rules! block_number {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The block of this number.
            #[must_use]
            pub const fn new(number: u64) -> Self {
                Self(number)
            }

            /// The number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

block_number!(MetadataBlock, "A 4 KiB block of the metadata device, by its number.");
block_number!(DataBlock, "A block of the data device, by its number.");
block_number!(VirtualBlock, "A block of a thin device, by its number; it has the size of a data block.");

/// The id of a thin device: below 2^24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct DeviceId(u32);

/// A number that no thin device can have as its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0} is no device id: ids go up to {max}", max = DeviceId::MAX)]
pub struct InvalidDeviceId(pub u64);

impl DeviceId {
    /// The largest id.
    pub const MAX: u32 = (1 << 24) - 1;

    /// The device id `id`.
    ///
    /// # Errors
    /// When it is above [`DeviceId::MAX`].
    pub fn new(id: u64) -> Result<Self, InvalidDeviceId> {
        u32::try_from(id).ok().filter(|&id| id <= Self::MAX).map(Self).ok_or(InvalidDeviceId(id))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The key of the device in the trees of devices.
    #[must_use]
    pub const fn key(self) -> u64 {
        self.0 as u64
    }
}

impl TryFrom<u32> for DeviceId {
    type Error = InvalidDeviceId;

    fn try_from(id: u32) -> Result<Self, InvalidDeviceId> {
        Self::new(u64::from(id))
    }
}

impl From<DeviceId> for u32 {
    fn from(id: DeviceId) -> Self {
        id.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The size of data blocks: 64 KiB to 1 GiB, a multiple of 64 KiB, not necessarily a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct BlockSize {
    sectors: u32,
}

/// A number of bytes that is no data block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0} bytes is no block size: it must be a multiple of 65536 from 65536 to 1073741824")]
pub struct InvalidBlockSize(pub u64);

impl BlockSize {
    const STEP_SECTORS: u32 = 128;
    const MAX_SECTORS: u32 = 1 << 21;

    /// The block size of `bytes`.
    ///
    /// # Errors
    /// When the kernel would not take it.
    pub fn from_bytes(bytes: u64) -> Result<Self, InvalidBlockSize> {
        if !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(InvalidBlockSize(bytes));
        }
        let sectors = u32::try_from(bytes / SECTOR_BYTES).map_err(|_| InvalidBlockSize(bytes))?;
        Self::from_sectors(sectors)
    }

    /// The block size of `sectors` of 512 bytes.
    ///
    /// # Errors
    /// When the kernel would not take it.
    pub fn from_sectors(sectors: u32) -> Result<Self, InvalidBlockSize> {
        let legal = (Self::STEP_SECTORS..=Self::MAX_SECTORS).contains(&sectors);
        if !legal || !sectors.is_multiple_of(Self::STEP_SECTORS) {
            return Err(InvalidBlockSize(u64::from(sectors) * SECTOR_BYTES));
        }
        Ok(Self { sectors })
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.sectors as u64 * SECTOR_BYTES
    }

    /// In sectors of 512 bytes.
    #[must_use]
    pub const fn sectors(self) -> u32 {
        self.sectors
    }
}

impl TryFrom<u64> for BlockSize {
    type Error = InvalidBlockSize;

    fn try_from(bytes: u64) -> Result<Self, InvalidBlockSize> {
        Self::from_bytes(bytes)
    }
}

impl From<BlockSize> for u64 {
    fn from(size: BlockSize) -> Self {
        size.bytes()
    }
}
