//! Making and removing volumes by LVM's commands.

use thinbak_engine::{
    DeviceInfo, Kind, MetadataView, PoolMode, Role, ViewError, Volume, embedded::check_snapshot_name,
    format::SECTOR_BYTES,
};
use thinbak_proto::{Failed, FailureKind};
use uuid::Uuid;

use super::{
    super::{book::Entry, content::HeadContent, lease, survey::is_that_of, volumes::stale},
    LvmPool, command,
    command::CommandError,
    name::{self, OWN_PREFIX, check_lvm_name, own_name},
    report::{Group, Logical},
};
use crate::{
    pools::{failure::of_view, pool::Content as _},
    volume::write_zeros,
};

impl LvmPool {
    /// A volume of this pool, as LVM and as we see it.
    pub(super) fn find<'a>(&self, group: &'a Group, wanted: &str) -> Result<(&'a Logical, Volume), Failed> {
        let missing =
            |what: String, hint: String| Err(Failed::new(FailureKind::NotFound, what).with_hint(hint));
        let usage = |what: String, hint: String| Err(Failed::new(FailureKind::Usage, what).with_hint(hint));
        let place = &self.place;
        if let Err(why) = check_lvm_name(wanted) {
            return usage(
                format!("`{wanted}` is no name of a volume of LVM: {why}"),
                "as in lvm:VG/POOL/VOLUME".to_owned(),
            );
        }
        let list = format!("thinbak volume list lvm:{place} shows what is there");
        let Some(logical) = group.volumes.iter().find(|logical| logical.name == wanted) else {
            return missing(format!("there is no volume `{wanted}` in pool {place}"), list);
        };
        if logical.pool_uuid != self.pool_uuid || logical.device.is_none() {
            let path = place.path(wanted);
            return match logical.pool.as_str() {
                "" => usage(format!("{path} is no thin volume"), list),
                pool => usage(
                    format!("{path} is a volume of pool {pool}, not of {}", place.pool),
                    format!("it is named as lvm:{}/{wanted}", place.path(pool)),
                ),
            };
        }
        if wanted.starts_with(OWN_PREFIX) {
            let what = format!("{} is thinbak's own, no volume to work with", place.path(wanted));
            return Err(Failed::new(FailureKind::Refused, what).with_hint(list));
        }
        self.refuse_outside(group, logical)?;
        let volume = self.known(logical.identity).ok_or_else(|| stale(wanted))?;
        Ok((logical, volume))
    }

    /// What the registry has under an identity.
    pub(super) fn known(&self, identity: Uuid) -> Option<Volume> {
        let book = self.kernel.inner.book.lock();
        book.contents().by_identity(identity).map(|entry| book.contents().to_volume(entry))
    }

    /// Takes private snapshots, one after the other; all or none.
    pub(super) fn take(&self, group: &Group, volumes: &[&str]) -> Result<Vec<Volume>, Failed> {
        let mut taken: Vec<Volume> = Vec::with_capacity(volumes.len());
        self.refuse_full()?;
        for wanted in volumes {
            let one = self.find(group, wanted).and_then(|(origin, volume)| {
                let role = Role::Candidate { of: volume.uuid };
                let tags = name::tags(&role);
                self.take_one(origin, role, &tags)
            });
            match one {
                Ok(one) => taken.push(one),
                Err(failed) => {
                    self.give_up(&taken);
                    return Err(failed);
                }
            }
        }
        self.seen(&taken).inspect_err(|_| self.give_up(&taken))?;
        Ok(taken)
    }

    fn take_one(&self, origin: &Logical, role: Role, tags: &[String]) -> Result<Volume, Failed> {
        let inner = &self.kernel.inner;
        // A snapshot advances the clock, and is as young as that.
        let entry = inner.new_entry(origin.size_bytes, role, inner.clock(1)?.saturating_add(1))?;
        let path = self.place.path(&origin.name);
        self.wait_for_hands(&origin.name)?;
        // Read-only, and not activated unless somebody insists.
        self.make(entry, Some(origin.identity), &["--type", "thin", "-pr", "-ky", &path], tags)
    }

    pub(super) fn give_up(&self, taken: &[Volume]) {
        for one in taken {
            if let Err(error) = self.remove_own(one.uuid) {
                let device = one.device;
                tracing::warn!(%device, %error, "a private snapshot is left until the pool is opened again");
            }
        }
    }

    fn refuse_full(&self) -> Result<(), Failed> {
        if self.kernel.inner.writable_status()?.mode == PoolMode::Write {
            return Ok(());
        }
        let message = format!("pool {} has no free data blocks: writes may be waiting in it", self.place);
        Err(Failed::new(FailureKind::Failed, message).with_hint("make room in the pool first: lvextend"))
    }

    /// Takes a snapshot that a user asked for, and sees that it is in the pool.
    pub(super) fn take_named(&self, volume: &str, snapshot: &str) -> Result<Volume, Failed> {
        check_snapshot_name(snapshot)
            .map_err(|error| Failed::new(FailureKind::Usage, format!("`{snapshot}` is no name: {error}")))?;
        self.refuse_full()?;
        let group = self.changeable()?;
        let (origin, of) = self.find(&group, volume)?;
        let role = Role::Snapshot { of: of.uuid, name: snapshot.to_owned() };
        let is_taken = |entry: &Entry| entry.role == role;
        if self.kernel.inner.book.lock().contents().devices.iter().any(is_taken) {
            return Err(Failed::new(FailureKind::Refused, format!("`{volume}@{snapshot}` exists already")));
        }
        let made = self.take_one(origin, Role::Candidate { of: of.uuid }, &name::tags(&role))?;
        let named = self.seen(std::slice::from_ref(&made)).and_then(|_| {
            self.kernel.inner.book.lock().change(|book| {
                let entry = book.by_identity(made.uuid).cloned().ok_or_else(|| stale(&made.name))?;
                let entry = Entry { role, ..entry };
                book.put(entry.clone());
                Ok(book.to_volume(&entry))
            })
        });
        named.inspect_err(|_| self.give_up(&[made]))
    }

    /// What the pool has of devices that LVM says it just made: they must be there, and no older than that. Those that are
    /// not are somebody else's from now on.
    pub(super) fn seen(&self, made: &[Volume]) -> Result<Vec<DeviceInfo>, Failed> {
        let look = |view: &MetadataView| made.iter().map(|one| view.device(one.device)).collect();
        let found: Result<Vec<Option<DeviceInfo>>, ViewError> = lease::look_once(&self.kernel.inner, look)?;
        let (mut seen, mut refused) = (Vec::with_capacity(made.len()), None);
        for (one, info) in made.iter().zip(found.map_err(of_view)?) {
            match self.prove_made(one, info)? {
                Some(info) => seen.push(info),
                None => refused = refused.or(Some(self.not_made(one))),
            }
        }
        refused.map_or(Ok(seen), Err)
    }

    /// Notes what a device is known by from now on; `None` if it is not the one that was made.
    fn prove_made(&self, made: &Volume, found: Option<DeviceInfo>) -> Result<Option<DeviceInfo>, Failed> {
        self.kernel.inner.book.lock().change(|book| {
            let entry = book.by_identity(made.uuid).cloned().ok_or_else(|| stale(&made.name))?;
            let Some(info) = found.filter(|info| is_that_of(&entry, info)) else { return Ok(None) };
            let born = Some((info.details.transaction_id, info.details.creation_time));
            book.put(Entry { born, ..entry });
            Ok(Some(info))
        })
    }

    /// What LVM calls ours is none of ours: it is not removed by us any more, as somebody's device would go with it.
    pub(super) fn not_made(&self, made: &Volume) -> Failed {
        let device = made.device;
        let name = self.own.lock().get(&made.uuid).map_or_else(|| made.name.clone(), |own| own.name.clone());
        let disowned = self.kernel.inner.book.lock().change(|book| {
            let entry = book.by_identity(made.uuid).cloned();
            if let Some(entry) = entry {
                book.put(Entry {
                    role: Role::Volume { name: name.clone() },
                    not_before: 0,
                    born: None,
                    ..entry
                });
            }
            Ok(())
        });
        if let Err(error) = disowned {
            tracing::warn!(pool = %self.place, volume = name, %error, "a volume cannot be marked as somebody else's");
        }
        let path = self.place.path(&name);
        let message = format!(
            "LVM says that it made device {device} in pool {}, but there is none, or an older one",
            self.place
        );
        Failed::new(FailureKind::Failed, message).with_hint(format!(
            "was a volume suspended meanwhile, or a device made with dmsetup? {path} shows that device now and was left alone"
        ))
    }

    /// Makes an empty private volume that can be written. LVM rounds its size up to whole extents.
    pub(super) fn make_empty(&self, size_bytes: u64) -> Result<Volume, Failed> {
        if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) {
            let message = format!("{size_bytes} bytes is no size of a volume");
            return Err(Failed::new(FailureKind::Usage, message));
        }
        self.changeable()?;
        let inner = &self.kernel.inner;
        let entry = inner.new_entry(size_bytes, Role::Head, inner.clock(0)?)?;
        let size = format!("{size_bytes}b");
        let words = ["-V", &size, "--thinpool", &self.place.pool, &self.place.group];
        let made = self.make(entry, None, &words, &name::tags(&Role::Head))?;
        let skips_zeroing = inner.found.line.table.features.skip_block_zeroing;
        let mapped = self
            .seen(std::slice::from_ref(&made))
            .map(|seen| seen.iter().map(|info| info.details.mapped_blocks).sum::<u64>());
        let checked = mapped.and_then(|mapped| match (mapped, skips_zeroing) {
            (0, false) => Ok(()),
            // LVM zeroes the first bytes where the pool zeroes nothing; what else is in their block may be anybody's.
            (0 | 1, true) => self.zero_first_block(&made),
            _ => Err(self.not_made(&made)),
        });
        checked.inspect_err(|_| self.give_up(std::slice::from_ref(&made)))?;
        Ok(made)
    }

    fn zero_first_block(&self, head: &Volume) -> Result<(), Failed> {
        let content = self.open_head(head)?;
        write_zeros(0, self.kernel.inner.block_bytes().min(head.size_bytes), |at, zeros| {
            content.write(at, zeros)
        })?;
        content.flush()
    }

    /// A private volume through the device that LVM activated for it.
    pub(super) fn open_head(&self, head: &Volume) -> Result<HeadContent, Failed> {
        let own = self.own.lock().get(&head.uuid).cloned().ok_or_else(|| stale(&head.name))?;
        HeadContent::of_active(&self.kernel.inner, &self.place.device(&own.name))
    }

    /// Makes a volume of ours, a snapshot of the volume with the identity `of` if that is given. What a crash leaves of it
    /// goes when the pool is opened the next time.
    pub(super) fn make(
        &self,
        entry: Entry,
        of: Option<Uuid>,
        words: &[&str],
        tags: &[String],
    ) -> Result<Volume, Failed> {
        let intent = entry.uuid;
        self.kernel.inner.book.lock().change(|book| {
            book.put(entry);
            Ok(())
        })?;
        let name = own_name(intent);
        let mut all = vec!["lvcreate", "-n", &name];
        all.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
        all.extend(words);
        let made = command::change(&all);
        let group = self.refresh()?;
        let named = |name: &str| group.volumes.iter().find(|logical| logical.name == name);
        let found = named(&name).map(|logical| logical.identity);
        // Somebody may have given the name of the origin to another volume meanwhile.
        let is_of = |of| {
            let origin = named(&name).and_then(|logical| named(&logical.origin));
            origin.is_some_and(|origin| origin.identity == of)
        };
        match (made, found) {
            (Ok(()), Some(identity)) if of.is_none_or(is_of) => {
                self.known(identity).ok_or_else(|| stale(&name))
            }
            (Ok(()), Some(identity)) => {
                self.remove_seen(identity);
                let message =
                    format!("{}: what it is a snapshot of was renamed meanwhile", self.place.path(&name));
                Err(Failed::new(FailureKind::Busy, message).with_hint("run it again"))
            }
            (Ok(()), None) => {
                let message = format!("lvcreate said nothing, but made no {}", self.place.path(&name));
                Err(Failed::new(FailureKind::Failed, message))
            }
            (Err(error), Some(identity)) => {
                self.remove_seen(identity);
                Err(error.into())
            }
            (Err(error), None) => {
                // One that did not end may make it yet.
                if matches!(error, CommandError::Said { .. }) {
                    self.forget(intent)?;
                }
                Err(error.into())
            }
        }
    }

    /// Removes a volume of ours that was just made, if it is in the pool.
    fn remove_seen(&self, identity: Uuid) {
        if let Err(error) = self.remove_own(identity) {
            tracing::warn!(%identity, %error, "a private volume is left");
        }
    }

    /// Removes a volume of ours; one that is not there is no error. One that was not seen in the pool yet is looked at
    /// first: LVM may show somebody's device under its name.
    pub(super) fn remove_own(&self, identity: Uuid) -> Result<(), Failed> {
        let group = self.changeable()?;
        let own = self.own.lock().get(&identity).cloned();
        if let Some(own) = own {
            let entry = self.kernel.inner.book.lock().contents().by_identity(identity).cloned();
            if entry.as_ref().is_some_and(|entry| entry.role.is_transient() && entry.born.is_none())
                && let Some(made) = self.known(identity)
            {
                self.seen(&[made])?;
            }
            if self.known(identity).is_none_or(|known| known.kind == Kind::Volume) {
                let message = format!("{} shows a device that is not thinbak's", self.place.path(&own.name));
                return Err(Failed::new(FailureKind::Refused, message).with_hint("it was left alone"));
            }
            self.refuse_needed(&group, &own.name)?;
            self.remove_by_uuid(&own.uuid)?;
        }
        self.forget(identity)
    }

    /// Never another volume that got the name meanwhile.
    pub(super) fn remove_by_uuid(&self, uuid: &str) -> Result<(), Failed> {
        let select = format!("lv_uuid={uuid}");
        Ok(command::change(&["lvremove", "--select", &select, &self.place.group])?)
    }

    pub(super) fn forget(&self, identity: Uuid) -> Result<(), Failed> {
        self.own.lock().remove(&identity);
        let inner = &self.kernel.inner;
        let device = inner.book.lock().contents().by_identity(identity).map(|entry| entry.device);
        if let Some(device) = device {
            inner.roots.lock().remove(&device);
        }
        inner.book.lock().change(|book| {
            book.devices.retain(|entry| entry.uuid != identity);
            book.bases.retain(|base| base.point.identity != identity);
            Ok(())
        })
    }

    /// Gives a private volume its name: what reads it finds all of it or none.
    pub(super) fn publish(&self, head: &Volume, wanted: &str) -> Result<Volume, Failed> {
        let group = self.changeable()?;
        match self.find(&group, wanted) {
            Err(failed) if failed.kind == FailureKind::NotFound => {}
            Err(failed) => return Err(failed),
            Ok(_) => {
                let message = format!("{} exists already", self.place.path(wanted));
                return Err(Failed::new(FailureKind::Refused, message));
            }
        }
        let own = self.own.lock().get(&head.uuid).cloned().ok_or_else(|| stale(&head.name))?;
        command::change(&["lvrename", &self.place.group, &own.name, wanted])?;
        if let Err(error) = self.untag(wanted, &name::tags(&Role::Head)) {
            tracing::warn!(volume = wanted, %error, "thinbak's tags are left until the pool is opened again");
        }
        self.refresh()?;
        self.known(head.uuid).ok_or_else(|| stale(wanted))
    }

    pub(super) fn untag(&self, volume: &str, tags: &[String]) -> Result<(), Failed> {
        let path = self.place.path(volume);
        let mut words = vec!["lvchange"];
        words.extend(tags.iter().flat_map(|tag| ["--deltag", tag]));
        words.push(&path);
        Ok(command::change(&words)?)
    }
}
