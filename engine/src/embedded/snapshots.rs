//! Snapshots: taken several at one moment, removed one by one.

use uuid::Uuid;

use super::names::check_snapshot_name;
use super::volume::Volume;
use super::volumes::{find_snapshot, find_volume};
use super::{EmbeddedError, EmbeddedPool, now_ms};
use crate::format::DeviceId;
use crate::registry::{Change, Entry, Plan, Role, State};

impl EmbeddedPool {
    /// Takes read-only snapshots, (volume, snapshot) each, all at one moment and in one commit.
    ///
    /// # Errors
    /// [`EmbeddedError::NoSuchVolume`], [`EmbeddedError::Name`], [`EmbeddedError::Exists`],
    /// [`EmbeddedError::ClockExhausted`]; what pool and registry say. Then none was taken.
    pub fn take_snapshots(&self, snapshots: &[(&str, &str)]) -> Result<Vec<Volume>, EmbeddedError> {
        for (_, name) in snapshots {
            check_snapshot_name(name)
                .map_err(|source| EmbeddedError::Name { name: (*name).to_owned(), source })?;
        }
        self.take(|state| {
            let mut wanted = Vec::with_capacity(snapshots.len());
            for (index, &(volume, name)) in snapshots.iter().enumerate() {
                let origin = find_volume(state, volume)?;
                let twice = snapshots.iter().take(index).any(|earlier| *earlier == (volume, name));
                if twice || find_snapshot(state, volume, name).is_ok() {
                    return Err(EmbeddedError::Exists { name: format!("{volume}@{name}") });
                }
                wanted.push((origin, Role::Snapshot { of: origin.uuid, name: name.to_owned() }));
            }
            Ok(wanted)
        })
    }

    /// Takes private read-only snapshots of volumes, all at one moment and in one commit. They go at the next
    /// [`open`](Self::open) unless [`keep_base`](Self::keep_base) keeps them.
    ///
    /// # Errors
    /// [`EmbeddedError::NoSuchVolume`], [`EmbeddedError::ClockExhausted`]; what pool and registry say. Then none was
    /// taken.
    pub fn take_candidates(&self, volumes: &[&str]) -> Result<Vec<Volume>, EmbeddedError> {
        self.take(|state| {
            let origins = volumes.iter().map(|volume| find_volume(state, volume));
            origins.map(|origin| origin.map(|origin| (origin, Role::Candidate { of: origin.uuid }))).collect()
        })
    }

    /// Takes a snapshot of each origin for its role.
    pub(super) fn take(
        &self,
        wanted: impl for<'a> FnOnce(&'a State) -> Result<Vec<(&'a Entry, Role)>, EmbeddedError>,
    ) -> Result<Vec<Volume>, EmbeddedError> {
        let taken = self.inner.transact(|state| {
            let wanted = wanted(state)?;
            self.inner.check_clock(wanted.len())?;
            let ids = self.inner.fresh_ids(state, wanted.len())?;
            let created_at_ms = now_ms();
            let mut plan = Plan::default();
            for ((origin, role), &device) in wanted.into_iter().zip(&ids) {
                plan.create.push((device, Some(origin.device)));
                let uuid = Uuid::new_v4();
                // Size and external origin are those of the volume now.
                let entry = Entry { device, uuid, created_at_ms, role, ..origin.clone() };
                plan.changes.push(Change::Put(entry));
            }
            Ok((plan, ids))
        })?;
        Ok(self.known(&taken))
    }

    /// Those of the devices that the registry knows.
    pub(super) fn known(&self, devices: &[DeviceId]) -> Vec<Volume> {
        let books = self.inner.books.lock();
        let state = books.registry.state();
        let entries = devices.iter().filter_map(|device| state.devices.get(device));
        entries.map(|entry| Volume::of(state, entry)).collect()
    }

    /// Removes a snapshot and returns what it was. A base goes together with its record.
    ///
    /// # Errors
    /// [`EmbeddedError::NoSuchVolume`], [`EmbeddedError::NoSuchSnapshot`]; what pool and registry say.
    pub fn remove_snapshot(&self, volume: &str, snapshot: &str) -> Result<Volume, EmbeddedError> {
        self.inner.transact(|state| {
            let entry = find_snapshot(state, volume, snapshot)?;
            let mut changes = vec![Change::Remove(entry.device)];
            if let Role::Base { of, repository } = entry.role {
                changes.push(Change::RemoveBase { repository, volume: of });
            }
            Ok((Plan { create: Vec::new(), changes }, Volume::of(state, entry)))
        })
    }
}
