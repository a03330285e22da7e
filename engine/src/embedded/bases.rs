//! Bases: for each repository and volume the snapshot that the repository's last generation was made from.

use uuid::Uuid;

use super::heads::{find_current, wrong_kind};
use super::volume::Volume;
use super::{EmbeddedError, EmbeddedPool};
use crate::registry::{Base, Change, Entry, Plan, Role};

impl EmbeddedPool {
    /// The base of a volume for a repository.
    #[must_use]
    pub fn base(&self, repository: Uuid, volume: Uuid) -> Option<Base> {
        self.inner.books.lock().registry.state().bases.get(&(repository, volume)).cloned()
    }

    /// All bases.
    #[must_use]
    pub fn bases(&self) -> Vec<Base> {
        self.inner.books.lock().registry.state().bases.values().cloned().collect()
    }

    /// Makes a candidate the base of its volume and repository in place of the former one, whose snapshot is deleted:
    /// one change, of which a crash leaves all or nothing.
    ///
    /// # Errors
    /// [`EmbeddedError::WrongKind`] when it is no candidate, [`EmbeddedError::OtherBase`] when the base does not
    /// describe it, [`EmbeddedError::Stale`] when it or its volume is gone; what pool and registry say.
    pub fn keep_base(&self, candidate: &Volume, base: Base) -> Result<(), EmbeddedError> {
        self.inner.transact(|state| {
            let entry = find_current(state, candidate)?;
            let Role::Candidate { of } = entry.role else {
                return Err(wrong_kind(candidate, "a candidate"));
            };
            let point = &base.point;
            let describes = point.identity == entry.uuid
                && point.device_id == entry.device
                && point.pool_uuid == self.uuid()
                && base.volume == of;
            if !describes {
                return Err(EmbeddedError::OtherBase { name: candidate.name.clone() });
            }
            if state.volume_by_uuid(of).is_none() {
                return Err(EmbeddedError::Stale { name: candidate.name.clone(), device: entry.device });
            }
            let repository = base.repository;
            let former = state.base_snapshot(of, repository);
            let mut changes: Vec<Change> =
                former.map(|entry| Change::Remove(entry.device)).into_iter().collect();
            changes.push(Change::Put(Entry { role: Role::Base { of, repository }, ..entry.clone() }));
            changes.push(Change::PutBase(base));
            Ok((Plan { create: Vec::new(), changes }, ()))
        })
    }

    /// Records a newer generation of a volume that did not change: the snapshot stays.
    ///
    /// # Errors
    /// [`EmbeddedError::NoSuchBase`]; [`EmbeddedError::OtherBase`] when its point is another; what the registry says.
    pub fn update_base(&self, base: Base) -> Result<(), EmbeddedError> {
        let mut books = self.inner.books.lock();
        let present = books.registry.state().bases.get(&(base.repository, base.volume));
        let Some(present) = present else {
            return Err(EmbeddedError::NoSuchBase { repository: base.repository, volume: base.volume });
        };
        if present.point != base.point {
            return Err(EmbeddedError::OtherBase { name: format!("#{}", present.point.device_id) });
        }
        Ok(books.registry.record(vec![Change::PutBase(base)])?)
    }

    /// Forgets a base and deletes its snapshot. A base that is not there is no error.
    ///
    /// # Errors
    /// What pool and registry say.
    pub fn forget_base(&self, repository: Uuid, volume: Uuid) -> Result<(), EmbeddedError> {
        self.inner.transact(|state| {
            let former = state.base_snapshot(volume, repository);
            let mut changes: Vec<Change> =
                former.map(|entry| Change::Remove(entry.device)).into_iter().collect();
            if state.bases.contains_key(&(repository, volume)) {
                changes.push(Change::RemoveBase { repository, volume });
            }
            Ok((Plan { create: Vec::new(), changes }, ()))
        })
    }
}
