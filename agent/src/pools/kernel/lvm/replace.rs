//! In place: a private snapshot of a volume is written and takes its place by `lvconvert --merge`.
//!
//! LVM puts a merge off to the next activation when it finds one of the two open, and the volume would change its content
//! some day. So both are deactivated first, by us; should somebody activate and open one just then, the merge is put off
//! all the same: that is told, and LVM is left to do it. A tag says that the volume is to be activated again, also by the
//! next one who opens the pool if we die; it goes when the volume is seen to be active.

use thinbak_engine::{Role, Volume};
use thinbak_proto::{Failed, FailureKind};

use super::{
    super::volumes::stale,
    LvmPool, command,
    name::{self, ACTIVATE_TAG},
    report::{Group, Logical},
};

impl LvmPool {
    /// Makes a private snapshot of a volume that can be written.
    pub(super) fn make_like(&self, of: &Volume, size_bytes: u64) -> Result<Volume, Failed> {
        let refused = |why: String, hint: String| Err(Failed::new(FailureKind::Refused, why).with_hint(hint));
        let group = self.changeable()?;
        let (origin, volume) = self.find(&group, &of.name)?;
        let path = self.place.path(&origin.name);
        if volume.uuid != of.uuid {
            return Err(stale(&of.name));
        }
        refuse_in_use(origin, &path)?;
        if size_bytes != origin.size_bytes {
            let why =
                format!("replace {path}: it has {} bytes, what comes has {size_bytes}", origin.size_bytes);
            return refused(
                why,
                format!("give it that size with lvresize, or restore with --to lvm:{}/NEW", self.place),
            );
        }
        let inner = &self.kernel.inner;
        if inner.found.line.table.features.skip_block_zeroing {
            let why = format!(
                "replace {path}: its pool does not zero new blocks, so a part of one cannot be written"
            );
            return refused(why, format!("lvchange --zero y {}, or restore with --to", self.place));
        }
        let entry = inner.new_entry(size_bytes, Role::Head, inner.clock(1)?.saturating_add(1))?;
        self.wait_for_hands(&origin.name)?;
        let words = ["--type", "thin", "-kn", "-ay", &path];
        let made = self.make(entry, Some(origin.identity), &words, &name::tags(&Role::Head))?;
        self.seen(std::slice::from_ref(&made)).inspect_err(|_| self.give_up(std::slice::from_ref(&made)))?;
        Ok(made)
    }

    /// Lets a snapshot of a volume take its place.
    pub(super) fn replace(&self, wanted: &str, head: &Volume) -> Result<Volume, Failed> {
        let group = self.changeable()?;
        let (origin, volume) = self.find(&group, wanted)?;
        let new = by_identity(&group, head)?;
        let path = self.place.path(wanted);
        if new.origin != origin.name {
            let message = format!("replace {path}: what was written is no snapshot of it");
            return Err(Failed::new(FailureKind::Refused, message));
        }
        refuse_in_use(origin, &path)?;
        let was_active = origin.is_active;
        if was_active {
            command::change(&["lvchange", "--addtag", ACTIVATE_TAG, &path])?;
        }
        let merged = self.merge(&path, new);
        let active = if was_active { self.activate(wanted) } else { Ok(()) };
        match (merged, active) {
            (Ok(()), Ok(())) => {}
            (Err(failed), Ok(())) | (Ok(()), Err(failed)) => return Err(failed),
            (Err(failed), Err(also)) => {
                let message = format!("{}; and {}", failed.message, also.message);
                return Err(
                    Failed { message, ..failed }.with_hint(format!("activate it: lvchange -ay -K {path}"))
                );
            }
        }
        let group = self.refresh()?;
        let (now, _) = self.find(&group, wanted)?;
        refuse_put_off(now, &path)?;
        if now.device != Some(head.device) || by_identity(&group, head).is_ok() {
            let message = format!("replace {path}: lvconvert said nothing, but did not merge");
            return Err(Failed::new(FailureKind::Failed, message));
        }
        self.known(volume.uuid).ok_or_else(|| stale(wanted))
    }

    /// Activates a volume that was active before; its tag goes when LVM shows it so. One that waits for a merge keeps it.
    pub(super) fn activate(&self, wanted: &str) -> Result<(), Failed> {
        let path = self.place.path(wanted);
        command::change(&["lvchange", "-ay", "-K", &path])?;
        let group = self.refresh()?;
        let (now, _) = self.find(&group, wanted)?;
        refuse_put_off(now, &path)?;
        if !now.is_active {
            let message = format!("activate {path}: lvchange said nothing, but it is not active");
            return Err(Failed::new(FailureKind::Failed, message)
                .with_hint("see activation/volume_list of lvm.conf(5)"));
        }
        self.untag(wanted, &[ACTIVATE_TAG.to_owned()])
    }

    fn merge(&self, path: &str, new: &Logical) -> Result<(), Failed> {
        let new = self.place.path(&new.name);
        command::change(&["lvchange", "-an", path]).map_err(|error| {
            let failed = Failed::from(error);
            Failed {
                kind: FailureKind::Refused,
                message: format!("{path} is in use: {}", failed.message),
                ..failed
            }
        })?;
        command::change(&["lvchange", "-an", &new])?;
        Ok(command::change(&["lvconvert", "--merge", &new])?)
    }
}

fn by_identity<'a>(group: &'a Group, wanted: &Volume) -> Result<&'a Logical, Failed> {
    let mut volumes = group.volumes.iter();
    volumes.find(|logical| logical.identity == wanted.uuid).ok_or_else(|| stale(&wanted.name))
}

fn refuse_put_off(now: &Logical, path: &str) -> Result<(), Failed> {
    if !now.is_merging {
        return Ok(());
    }
    let message = format!("replace {path}: somebody opened it meanwhile, so LVM put it off");
    Err(Failed::new(FailureKind::Busy, message).with_hint(format!(
        "its content is replaced when it is activated next: lvchange -an, then -ay -K {path}"
    )))
}

pub(super) fn refuse_in_use(origin: &Logical, path: &str) -> Result<(), Failed> {
    let (why, hint) = match (origin.is_open, origin.is_merging) {
        (true, _) => ("it is open", "unmount it, or stop what has it open"),
        (_, true) => ("a merge with it is waiting", "let LVM finish that: lvchange -an, then -ay"),
        _ => return Ok(()),
    };
    Err(Failed::new(FailureKind::Refused, format!("replace {path}: {why}")).with_hint(hint))
}
