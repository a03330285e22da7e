//! What is looked at before a command of LVM changes a pool: what LVM would do wrongly is not asked of it.

use std::{thread, time::Instant};

use thinbak_proto::{Failed, FailureKind};

use super::{
    BETWEEN_LOOKS, LvmPool, PATIENCE, pool_of,
    report::{Group, Logical},
};

impl LvmPool {
    /// What LVM says now, if the pool is at the transaction that LVM believes. Once they differ, LVM reports snapshots that
    /// are not there, and with every change it becomes harder to bring the pool up again.
    pub(super) fn changeable(&self) -> Result<Group, Failed> {
        let until = Instant::now() + PATIENCE;
        loop {
            let group = self.refresh()?;
            let said = pool_of(&group, &self.place)?.transaction;
            let is = self.kernel.inner.status()?.transaction_id;
            if said == Some(is) {
                return Ok(group);
            }
            if Instant::now() >= until {
                let said = said.map_or_else(|| "none".to_owned(), |said| said.to_string());
                let message =
                    format!("pool {}: it is at transaction {is}, LVM believes at {said}", self.place);
                return Err(Failed::new(FailureKind::Refused, message).with_hint(
                    "nothing is changed in it before that is repaired: see vgcfgrestore(8), and `thinbak pool status`",
                ));
            }
            // A command of somebody is in between.
            thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// Waits until nobody has a volume or its pool suspended, or a new table loaded for it: LVM says of a snapshot of a
    /// suspended volume that it was made, and there is none.
    pub(super) fn wait_for_hands(&self, volume: &str) -> Result<(), Failed> {
        let inner = &self.kernel.inner;
        let until = Instant::now() + PATIENCE;
        loop {
            let looked = inner
                .refuse_in_hand(&self.place.device(volume))
                .and_then(|()| inner.refuse_in_hand(&inner.target()?));
            match looked {
                Err(failed) if failed.kind == FailureKind::Busy && Instant::now() < until => {
                    thread::sleep(BETWEEN_LOOKS);
                }
                looked => return looked,
            }
        }
    }

    /// Refuses a volume that is read through to what is not of its pool. A snapshot inherits that of its origin.
    pub(super) fn refuse_outside(&self, group: &Group, logical: &Logical) -> Result<(), Failed> {
        let mut name = &logical.origin;
        for _ in &group.volumes {
            if name.is_empty() {
                return Ok(());
            }
            match group.volumes.iter().find(|other| other.name == *name) {
                Some(origin) if origin.pool_uuid == self.pool_uuid && origin.device.is_some() => {
                    name = &origin.origin;
                }
                _ => break,
            }
        }
        let path = self.place.path(&logical.name);
        let message =
            format!("{path} lies over an external origin ({name}), which this version does not read");
        Err(Failed::new(FailureKind::Refused, message)
            .with_hint("volumes over external origins are served in embedded pools only"))
    }

    /// Refuses to remove what volumes outside of the pool need: LVM would remove them too.
    pub(super) fn refuse_needed(&self, group: &Group, name: &str) -> Result<(), Failed> {
        let needs = |other: &&Logical| other.origin == name && other.pool_uuid != self.pool_uuid;
        let Some(other) = group.volumes.iter().find(needs) else { return Ok(()) };
        let (path, other) = (self.place.path(name), self.place.path(&other.name));
        let message = format!("remove {path}: {other} depends on it and would go with it");
        Err(Failed::new(FailureKind::Refused, message)
            .with_hint(format!("remove {other} first: lvremove {other}")))
    }
}
