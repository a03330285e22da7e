//! Messages of the thin-pool target, as somebody would send them to the kernel.

use super::{EmbeddedError, EmbeddedPool};
use crate::format::DeviceId;
use crate::registry::Change;

impl EmbeddedPool {
    /// Sends a message of the thin-pool target. A device that is made so is unknown to the registry and shown by its id.
    ///
    /// # Errors
    /// [`EmbeddedError::MessageRefused`] for one that takes a device from the registry or moves the transaction id, by
    /// which pool and registry are kept in step; [`EmbeddedError::MsnapInUse`]; [`EmbeddedError::Message`] with what the
    /// pool says.
    pub fn message(&self, words: &[&str]) -> Result<(), EmbeddedError> {
        let verb = words.first().map(|verb| verb.to_ascii_lowercase()).unwrap_or_default();
        let deleted = match (verb.as_str(), words) {
            ("delete", [_, id]) => id.parse().ok().and_then(|id| DeviceId::new(id).ok()),
            _ => None,
        };
        if let Some(device) = deleted.filter(|&device| !self.is_registered(device)) {
            // Only a message that the pool would take: a device that stays must keep its content.
            self.inner.pool.check_messages().map_err(|source| EmbeddedError::Message { source })?;
            // The long part of deleting a large one, before the lock is taken that everybody needs. Whatever it cannot do
            // the message cannot either.
            let _ = self.inner.pool.shed(device);
        }
        let mut books = self.inner.books.lock();
        let state = books.registry.state();
        let moves_transaction = verb == "set_transaction_id"
            && words.len() == 3
            && words.iter().skip(1).all(|word| word.parse::<u64>().is_ok());
        if moves_transaction || deleted.is_some_and(|device| state.devices.contains_key(&device)) {
            return Err(EmbeddedError::MessageRefused { message: words.join(" ") });
        }
        let releases = verb == "release_metadata_snap" && words.len() == 1;
        if releases && books.lease.is_some() {
            let root = self.inner.held_root().unwrap_or_default();
            return Err(EmbeddedError::MsnapInUse { root });
        }
        self.inner.pool.message(words).map_err(|source| EmbeddedError::Message { source })?;
        if releases && books.registry.state().msnap.is_some() {
            books.registry.record(vec![Change::Msnap(None)])?;
        }
        Ok(())
    }

    fn is_registered(&self, device: DeviceId) -> bool {
        self.inner.books.lock().registry.state().devices.contains_key(&device)
    }
}
