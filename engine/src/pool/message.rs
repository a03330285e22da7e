//! The kernel's messages to a thin pool.

use crate::format::DeviceId;

use super::traffic::{Claim, Purpose};
use super::{Pool, PoolError, Result};

/// A change of the set of devices or of the transaction id, for [`Pool::apply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// As [`Pool::create_thin`].
    CreateThin(DeviceId),
    /// As [`Pool::create_snap`].
    CreateSnap {
        /// The snapshot's id.
        new: DeviceId,
        /// Of which device.
        origin: DeviceId,
    },
    /// As [`Pool::delete`].
    Delete(DeviceId),
    /// As [`Pool::set_transaction_id`].
    SetTransactionId {
        /// The id that the pool must have.
        old: u64,
        /// The id that it gets.
        new: u64,
    },
}

impl Operation {
    /// Which use of a device must not go on meanwhile.
    pub(super) fn traffic(&self) -> Option<Claim> {
        let (device, purpose) = match *self {
            Self::CreateSnap { origin, .. } => (origin, Purpose::Snapshot),
            Self::Delete(id) => (id, Purpose::Exclusive),
            Self::CreateThin(_) | Self::SetTransactionId { .. } => return None,
        };
        Some(Claim { device, blocks: 0..=u64::MAX, purpose })
    }

    /// Whether it needs metadata blocks beyond those it frees.
    pub(super) fn takes_space(&self) -> bool {
        matches!(self, Self::CreateThin(_) | Self::CreateSnap { .. })
    }
}

impl Pool {
    /// Carries out a message as the kernel's thin-pool target takes it (`create_thin`, `create_snap`, `delete`,
    /// `set_transaction_id`, `reserve_metadata_snap`, `release_metadata_snap`), and commits. Verbs may be in capitals;
    /// numbers are decimal. A large device is deleted in steps, as [`Pool::shed`] says.
    ///
    /// # Errors
    /// [`PoolError::InvalidMessage`] and [`PoolError::InvalidDeviceId`] (both `EINVAL` with the kernel), and those of
    /// the methods of the same names. A pool that is read-only or out of metadata space takes no message.
    pub fn message(&self, words: &[&str]) -> Result<()> {
        self.check_messages()?;
        let invalid = || PoolError::InvalidMessage(words.join(" "));
        // As the kernel reads them: a plus sign may lead.
        let number = |word: &str| {
            let digits = word.strip_prefix('+').unwrap_or(word);
            let all = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            all.then(|| digits.parse::<u64>().ok()).flatten().ok_or_else(invalid)
        };
        let device = |word: &str| Ok::<_, PoolError>(DeviceId::new(number(word)?)?);
        let (verb, arguments) = words.split_first().ok_or_else(invalid)?;
        match (verb.to_ascii_lowercase().as_str(), arguments) {
            ("create_thin", [id]) => self.create_thin(device(id)?)?,
            ("create_snap", [id, origin]) => self.create_snap(device(id)?, device(origin)?)?,
            ("delete", [id]) => {
                let id = device(id)?;
                self.shed(id)?;
                self.delete(id)?;
            }
            ("set_transaction_id", [old, new]) => self.set_transaction_id(number(old)?, number(new)?)?,
            ("reserve_metadata_snap", []) => return self.reserve_metadata_snap(),
            ("release_metadata_snap", []) => return self.release_metadata_snap(),
            _ => return Err(invalid()),
        }
        self.commit()
    }
}
