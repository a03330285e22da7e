//! The metadata snapshot of a kernel pool, of which there is one for the whole host: ours, or somebody else's.
//!
//! 1. An intent is made durable while the pool holds none.
//! 2. The pool reserves.
//! 3. Root and checksum of the copied superblock are made durable.
//! 4. That it is being released is made durable, the pool releases, nothing is recorded any more.
//!
//! What is held is ours when root and checksum are those that were recorded. It goes when the pool is opened the next time.
//! A stranger's is waited for, never released. After a crash between 1 and 3 or within 4 nobody can tell whose it is: that is
//! reported, and `thinbak msnap release --force` decides.
//!
//! Whether a snapshot is still what it was is looked up without one: see [`look_once`].

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use thinbak_engine::{
    MetadataBlock, MetadataView, PoolMode, PoolStatus, Roots,
    format::{BLOCK_BYTES, Superblock},
};
use thinbak_proto::{Failed, FailureKind};

use super::{Inner, book::Msnap};
use crate::pools::{
    failure::of_view,
    pool::{Frozen, HeldMsnap},
};

/// How long a metadata snapshot of somebody else, or of another job of this process, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
/// How often it is tried to look at the metadata between two commits.
const LOOKS: u32 = 3;

/// Whose turn it is, among the threads of this process.
#[derive(Default)]
pub(super) struct Turn {
    taken: Mutex<bool>,
    given_back: Condvar,
}

impl Turn {
    fn take(&self, until: Instant) -> bool {
        let mut taken = self.taken.lock();
        while *taken {
            if self.given_back.wait_until(&mut taken, until).timed_out() && *taken {
                return false;
            }
        }
        *taken = true;
        true
    }

    fn give_back(&self) {
        *self.taken.lock() = false;
        self.given_back.notify_one();
    }

    fn is_taken(&self) -> bool {
        *self.taken.lock()
    }
}

/// A metadata snapshot that a job uses; released when this is dropped.
struct Lease {
    inner: Arc<Inner>,
    open: bool,
    since: Instant,
}

impl Lease {
    fn release(mut self) -> Result<(), Failed> {
        self.open = false;
        let released = self.inner.give_up();
        let held_us = self.since.elapsed().as_micros();
        tracing::debug!(pool = self.inner.name, held_us, "the metadata snapshot was held");
        self.inner.turn.give_back();
        released
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        if let Err(error) = self.inner.give_up() {
            tracing::error!(pool = self.inner.name, %error, "the metadata snapshot could not be released: the next open will");
        }
        self.inner.turn.give_back();
    }
}

/// Reserves for a job.
pub(super) fn reserve(inner: &Arc<Inner>) -> Result<Frozen, Failed> {
    let until = Instant::now() + PATIENCE;
    if !inner.turn.take(until) {
        let message = format!("the metadata snapshot of pool {} is in use by another job", inner.name);
        return Err(Failed::new(FailureKind::Busy, message));
    }
    let since = inner.take_msnap(false, until).inspect_err(|_| inner.turn.give_back())?;
    let lease = Lease { inner: Arc::clone(inner), open: true, since };
    let view = inner.open_view(Roots::MetadataSnap)?;
    Ok(Frozen::held(view, Box::new(move || lease.release())))
}

/// Looks at the metadata as they are at one moment: without a metadata snapshot where that is possible.
pub(super) fn look_once<T>(inner: &Arc<Inner>, look: impl Fn(&MetadataView) -> T) -> Result<T, Failed> {
    if let Some(found) = inner.look(&look)? {
        return Ok(found);
    }
    let frozen = reserve(inner)?;
    let found = look(&frozen.view);
    frozen.release()?;
    Ok(found)
}

impl Inner {
    /// The metadata beside the live pool.
    pub(super) fn open_view(&self, roots: Roots) -> Result<MetadataView, Failed> {
        MetadataView::open(Arc::clone(&self.metadata), roots).map_err(of_view)
    }

    /// Looks at what the pool commits now, without a metadata snapshot: `None` if it committed again meanwhile, each time that
    /// it was tried.
    ///
    /// A transaction writes to no block of the metadata as they were last committed (they are replaced by copies, and what
    /// becomes free is given again after the next commit); only the superblock is written in place, last. So what is read
    /// between two reads of the same superblock is of one moment.
    fn look<T>(&self, look: impl Fn(&MetadataView) -> T) -> Result<Option<T>, Failed> {
        let superblock = MetadataBlock::new(0);
        self.mapper.commit(&self.target()?)?;
        self.writable_status()?;
        let _ = self.metadata.resize(0);
        for _ in 0..LOOKS {
            let before = self.checksum(superblock)?;
            let found = self.open_view(Roots::Live).map(|view| look(&view));
            if self.checksum(superblock)? == before {
                return found.map(Some);
            }
        }
        Ok(None)
    }

    /// Reserves, waiting for a stranger until then. Returns when it was asked for.
    fn take_msnap(&self, keep: bool, until: Instant) -> Result<Instant, Failed> {
        loop {
            match self.writable_status()?.held_root {
                Some(root) => self.refuse_held(root, until)?,
                None => {
                    let target = self.target()?;
                    // The device may have grown since it was looked at.
                    let _ = self.metadata.resize(0);
                    self.record(Some(Msnap::Intended))?;
                    let since = Instant::now();
                    match self.mapper.message(&target, "reserve_metadata_snap") {
                        Ok(()) => return self.note_reserved(keep).map(|()| since),
                        // Somebody was faster.
                        Err(error) if error.is(Errno::BUSY) => self.record(None)?,
                        Err(error) => {
                            self.record(None)?;
                            return Err(error.into());
                        }
                    }
                }
            }
            thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// Why one cannot be reserved while this is held; `Ok` when it is worth waiting.
    fn refuse_held(&self, root: MetadataBlock, until: Instant) -> Result<(), Failed> {
        let busy = |whose: &str, hint: String| {
            let message = format!("a metadata snapshot of pool {} is held {whose} (root {root})", self.name);
            Err(Failed::new(FailureKind::Busy, message).with_hint(hint))
        };
        let by_force = format!("if its owner is gone: thinbak msnap release --force {}", self.spec);
        let (ours, recorded) = (self.holds(root)?, self.book.lock().contents().msnap);
        match recorded {
            // No job has it, as this one's turn it is: it could not be released.
            Some(Msnap::Held { keep: false, .. }) if ours => self.release_now(),
            Some(Msnap::Held { .. }) if ours => {
                busy("by thinbak", format!("let go of it with: thinbak msnap release {}", self.spec))
            }
            Some(Msnap::Intended | Msnap::Releasing) => {
                busy("by thinbak, which was killed while it reserved one, or by somebody else", by_force)
            }
            _ if Instant::now() < until => Ok(()),
            _ => busy("by somebody else", by_force),
        }
    }

    /// Finds what was just reserved and records it. Nobody may be left with one that nobody knows of.
    fn note_reserved(&self, keep: bool) -> Result<(), Failed> {
        let noted = self.status().and_then(|status| {
            let root = status.held_root.ok_or_else(|| self.vanished())?;
            let checksum = self.checksum(root)?;
            self.record(Some(Msnap::Held { keep, root: root.0, checksum }))
        });
        noted.inspect_err(|_| {
            let target = self.target();
            let released =
                target.and_then(|target| Ok(self.mapper.message(&target, "release_metadata_snap")?));
            if let Err(error) = released {
                tracing::error!(pool = self.name, %error, "the metadata snapshot could not be released");
            } else if let Err(error) = self.record(None) {
                tracing::error!(pool = self.name, %error, "it is not recorded that nothing is held");
            }
        })
    }

    /// Releases what a job held, if it is still that, and says if the pool failed meanwhile.
    fn give_up(&self) -> Result<(), Failed> {
        let status = self.status()?;
        // A failed pool tells of none, and holds it still.
        if status.mode == PoolMode::Fail {
            return self.check_alive(&status);
        }
        let still = match status.held_root {
            Some(root) => self.holds(root)?,
            None => false,
        };
        if !still {
            self.record(None)?;
            return Err(self.vanished());
        }
        self.release_now()?;
        self.check_alive(&status)
    }

    fn check_alive(&self, status: &PoolStatus) -> Result<(), Failed> {
        if status.mode == PoolMode::Fail || status.needs_check {
            let message = format!("pool {} failed while its metadata were read", self.name);
            return Err(Failed::new(FailureKind::Failed, message));
        }
        Ok(())
    }

    fn release_now(&self) -> Result<(), Failed> {
        let (held, target) = (self.book.lock().contents().msnap, self.target()?);
        // Where it cannot be noted it is released all the same: held, it keeps everybody else from working.
        if let Err(error) = self.record(Some(Msnap::Releasing)) {
            tracing::warn!(pool = self.name, %error, "it is not recorded that the metadata snapshot is being released");
        }
        if let Err(error) = self.mapper.message(&target, "release_metadata_snap") {
            if error.is(Errno::OPNOTSUPP) {
                // The pool is read-only or has failed: it is still held, and still ours.
                self.record(held)?;
            }
            return Err(error.into());
        }
        self.record(None)
    }

    fn vanished(&self) -> Failed {
        let message = format!("the metadata snapshot of pool {} was released by somebody else", self.name);
        Failed::new(FailureKind::Failed, message).with_hint("run it again when nobody else uses the pool")
    }

    fn record(&self, msnap: Option<Msnap>) -> Result<(), Failed> {
        self.book.lock().change(|book| {
            book.msnap = msnap;
            Ok(())
        })
    }

    /// Whether what the pool holds is what we recorded.
    fn holds(&self, held: MetadataBlock) -> Result<bool, Failed> {
        let recorded = self.book.lock().contents().msnap;
        match recorded {
            Some(Msnap::Held { root, checksum, .. }) if root == held.0 => {
                Ok(self.checksum(held)? == checksum)
            }
            _ => Ok(false),
        }
    }

    /// The stored checksum of the copied superblock, after it was verified.
    fn checksum(&self, root: MetadataBlock) -> Result<u32, Failed> {
        Superblock::read(self.metadata.as_ref(), root).map_err(|error| of_view(error.into()))?;
        let mut stored = [0; 4];
        let offset = root.0.saturating_mul(BLOCK_BYTES as u64);
        self.metadata.read_at(offset, &mut stored).map_err(|error| {
            let message = format!("read the metadata snapshot of pool {}: {error}", self.name);
            Failed::new(FailureKind::Failed, message)
        })?;
        Ok(u32::from_le_bytes(stored))
    }

    /// Decides about what a process recorded that is gone.
    pub(super) fn recover_msnap(&self) -> Result<(), Failed> {
        let recorded = self.book.lock().contents().msnap;
        let Some(recorded) = recorded else { return Ok(()) };
        let status = self.status()?;
        // A failed pool tells of none, and holds it still.
        if status.mode == PoolMode::Fail {
            return Ok(());
        }
        let Some(root) = status.held_root else { return self.record(None) };
        match recorded {
            Msnap::Held { keep, .. } => match (self.holds(root)?, keep) {
                (true, true) => Ok(()),
                (true, false) => {
                    let root = root.0;
                    tracing::info!(
                        pool = self.name,
                        root,
                        "releasing the metadata snapshot of a dead process"
                    );
                    self.release_now()
                }
                (false, _) => {
                    tracing::warn!(
                        pool = self.name,
                        root = root.0,
                        "the pool holds somebody else's metadata snapshot"
                    );
                    self.record(None)
                }
            },
            // Not to be told from a stranger's: whoever wants to reserve is told.
            Msnap::Intended | Msnap::Releasing => Ok(()),
        }
    }

    pub(super) fn msnap(&self) -> Result<Option<HeldMsnap>, Failed> {
        let Some(root) = self.status()?.held_root else { return Ok(None) };
        Ok(Some(HeldMsnap { root: root.0, ours: self.holds(root)? }))
    }

    /// Reserves for a user.
    pub(super) fn hold_msnap(&self) -> Result<(), Failed> {
        let until = Instant::now() + PATIENCE;
        if !self.turn.take(until) {
            let message = format!("the metadata snapshot of pool {} is in use by a job", self.name);
            return Err(Failed::new(FailureKind::Busy, message));
        }
        let taken = self.take_msnap(true, until);
        self.turn.give_back();
        taken.map(|_| ())
    }

    pub(super) fn release_msnap(&self, force: bool) -> Result<(), Failed> {
        let Some(root) = self.writable_status()?.held_root else {
            let message = format!("pool {} holds no metadata snapshot", self.name);
            return Err(Failed::new(FailureKind::NotFound, message));
        };
        let busy = |what: &str| {
            let message = format!("the metadata snapshot of pool {} is {what} (root {root})", self.name);
            Err(Failed::new(FailureKind::Busy, message)
                .with_hint("if its owner is gone: thinbak msnap release --force"))
        };
        if !force && self.turn.is_taken() {
            return busy("in use by a running job");
        }
        if !force && !self.holds(root)? {
            return busy("not known to be thinbak's");
        }
        self.release_now()
    }
}
