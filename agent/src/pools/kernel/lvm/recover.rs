//! What a dead process left.

use std::collections::HashMap;

use thinbak_engine::{DeviceId, DeviceInfo, Role};
use thinbak_proto::Failed;

use super::{
    super::survey::is_that_of,
    LvmPool,
    name::{ACTIVATE_TAG, OWN_TAG},
    report::Logical,
    sync::thin_volumes,
};

type Looked = Result<HashMap<DeviceId, DeviceInfo>, Failed>;

impl LvmPool {
    /// Releases its metadata snapshot, removes its private volumes and finishes what it had begun. What cannot be done is
    /// left to the next time; it is no reason not to work.
    pub(super) fn recover(&self) -> Result<(), Failed> {
        self.kernel.inner.recover_msnap()?;
        let group = self.refresh()?;
        let mut looked = None;
        for logical in thin_volumes(&group, &self.pool_uuid) {
            if let Err(error) = self.settle(logical, &mut looked) {
                tracing::warn!(pool = %self.place, volume = logical.name, %error, "what a dead process left is still there");
            }
        }
        Ok(())
    }

    /// `looked`: what the pool holds, or why nothing is removed from it; found out once, for the first that needs it.
    fn settle(&self, logical: &Logical, looked: &mut Option<Looked>) -> Result<(), Failed> {
        let entry = self.kernel.inner.book.lock().contents().by_identity(logical.identity).cloned();
        let Some(entry) = entry else { return Ok(()) };
        if logical.is_own() {
            let of = match entry.role {
                Role::Base { of, .. } => Some(of),
                _ => None,
            };
            let is_orphan = of.is_some_and(|of| self.known(of).is_none());
            if entry.role.is_transient() || is_orphan {
                let look = || self.changeable().and_then(|_| self.kernel.survey());
                let found = looked.get_or_insert_with(look).as_ref().map_err(Clone::clone)?;
                if !found.get(&entry.device).is_some_and(|info| is_that_of(&entry, info)) {
                    tracing::warn!(pool = %self.place, volume = logical.name, "a volume named as thinbak's shows a device that is not: it is left alone");
                    return Ok(());
                }
                tracing::info!(pool = %self.place, volume = logical.name, is_orphan, "removing a volume of thinbak's that nobody needs");
                return self.remove_own(logical.identity);
            }
            return Ok(());
        }
        if entry.role.is_transient() {
            // Somebody took our tag or name off it: it is theirs.
            return self.forget(logical.identity);
        }
        if logical.has_tag(ACTIVATE_TAG) {
            self.activate(&logical.name)?;
        }
        if logical.has_tag(OWN_TAG) {
            let ours = |tag: &&String| *tag == OWN_TAG || tag.starts_with("thinbak:");
            let tags: Vec<String> = logical.tags.iter().filter(ours).cloned().collect();
            self.untag(&logical.name, &tags)?;
        }
        Ok(())
    }
}
