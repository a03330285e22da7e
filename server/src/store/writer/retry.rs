//! Writing after a write has failed: an index that gave up is opened again, and whether a put would be stored can be
//! tried without one.

use tokio::time::Instant;

use super::{OpenPack, StoreError, Writer, is_poisoned};
use crate::{store::shared::Shared, write_failure::Probe};

impl Writer {
    /// Takes the note of a failure back if a put could be stored now.
    pub(super) fn probe(&mut self, probe: Probe) {
        let tried = self.try_writing();
        if let Err(error) = &tried {
            tracing::debug!(%error, "nothing can be stored yet");
        }
        self.shared.write_failure.probed(probe, tried.is_ok(), Instant::now());
    }

    /// What a put does, but for its records: those that are not found yet are entered, and an index that gave up is
    /// opened again.
    fn try_writing(&mut self) -> Result<(), StoreError> {
        let (medium, index) = (&self.shared.medium, &self.shared.index);
        medium.probe().map_err(|source| StoreError::io("trying to write a pack", medium.path(), source))?;
        match &mut self.current {
            Some(pack) => cover(&self.shared, pack),
            None => match index.own() {
                Err(error) if is_poisoned(&error) => index.reopen().and_then(|()| index.own()),
                written => written,
            },
        }
    }
}

/// Enters the records that the index does not have yet. An index that gave up is opened again; it may then
/// have forgotten the last batches, so all records of the pack are entered.
pub(super) fn cover(shared: &Shared, pack: &mut OpenPack) -> Result<(), StoreError> {
    let rest = pack.entries.get(pack.indexed..).unwrap_or_default();
    let mut result = shared.index.cover(pack.number, pack.indexed, rest, &pack.mark);
    if result.as_ref().is_err_and(is_poisoned) {
        pack.indexed = 0;
        shared.index.reopen()?;
        result = shared.index.cover(pack.number, 0, &pack.entries, &pack.mark);
    }
    if result.is_ok() {
        pack.indexed = pack.entries.len();
        shared.touched.moved(&std::mem::take(&mut pack.moving));
    }
    result
}
