//! A pool and a log in memory, which stop working together when a common fuse has burnt down.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::pool::{Operation, PoolError};
use crate::registry::log::ReplaceError;
use crate::registry::{Devices, Log};

/// Counts steps. When none is left, everything that shares it fails.
#[derive(Clone)]
pub(super) struct Fuse(Arc<Mutex<Option<u64>>>);

impl Fuse {
    /// One that never burns down.
    pub(super) fn whole() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }

    pub(super) fn set(&self, steps: Option<u64>) {
        *self.0.lock() = steps;
    }

    pub(super) fn is_burnt(&self) -> bool {
        *self.0.lock() == Some(0)
    }

    /// Whether the step may be taken, and whether it is the one at which the process dies.
    fn step(&self) -> Step {
        let mut left = self.0.lock();
        match *left {
            None => Step::Taken,
            Some(0) => Step::Dead,
            Some(1) => {
                *left = Some(0);
                Step::Dying
            }
            Some(steps) => {
                *left = Some(steps - 1);
                Step::Taken
            }
        }
    }
}

#[derive(PartialEq, Eq)]
enum Step {
    Taken,
    /// Happens, or not, and the caller does not learn which.
    Dying,
    Dead,
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Metadata {
    transaction_id: u64,
    devices: BTreeSet<u32>,
}

struct PoolInside {
    metadata: Metadata,
    /// The commit at which the process dies reaches the disk.
    last_commit_lands: bool,
    /// Ids that cannot be made.
    refused: BTreeSet<u32>,
    read_only: bool,
}

/// A pool without content.
#[derive(Clone)]
pub(super) struct MemoryPool {
    fuse: Fuse,
    inside: Arc<Mutex<PoolInside>>,
}

impl MemoryPool {
    pub(super) fn new(fuse: &Fuse) -> Self {
        let inside = PoolInside {
            metadata: Metadata { transaction_id: 0, devices: BTreeSet::new() },
            last_commit_lands: false,
            refused: BTreeSet::new(),
            read_only: false,
        };
        Self { fuse: fuse.clone(), inside: Arc::new(Mutex::new(inside)) }
    }

    pub(super) fn devices(&self) -> Vec<u32> {
        self.inside.lock().metadata.devices.iter().copied().collect()
    }

    pub(super) fn let_last_commit_land(&self, lands: bool) {
        self.inside.lock().last_commit_lands = lands;
    }

    pub(super) fn refuse(&self, id: u32) {
        self.inside.lock().refused.insert(id);
    }

    pub(super) fn move_transaction_id(&self, to: u64) {
        self.inside.lock().metadata.transaction_id = to;
    }

    pub(super) fn make_read_only(&self) {
        self.inside.lock().read_only = true;
    }

    /// What a new process finds.
    pub(super) fn after_crash(&self, fuse: &Fuse) -> Self {
        let found = Self::new(fuse);
        found.inside.lock().metadata = self.inside.lock().metadata.clone();
        found
    }
}

impl PoolInside {
    fn changed(&self, operations: &[Operation]) -> Result<Metadata, PoolError> {
        let mut metadata = self.metadata.clone();
        let devices = &mut metadata.devices;
        for operation in operations {
            match *operation {
                Operation::CreateThin(new) | Operation::CreateSnap { new, .. }
                    if self.refused.contains(&new.get()) =>
                {
                    return Err(PoolError::TimeExhausted);
                }
                Operation::CreateThin(new) => assert!(devices.insert(new.get()), "{new} exists"),
                Operation::CreateSnap { new, origin } => {
                    assert!(devices.contains(&origin.get()), "{origin} does not exist");
                    assert!(devices.insert(new.get()), "{new} exists");
                }
                Operation::Delete(id) => assert!(devices.remove(&id.get()), "{id} does not exist"),
                Operation::SetTransactionId { old, new } => {
                    assert_eq!(metadata.transaction_id, old);
                    metadata.transaction_id = new;
                }
            }
        }
        Ok(metadata)
    }
}

impl Devices for MemoryPool {
    fn transaction_id(&self) -> u64 {
        self.inside.lock().metadata.transaction_id
    }

    fn check_writable(&self) -> Result<(), PoolError> {
        let read_only = self.inside.lock().read_only;
        if read_only { Err(PoolError::ReadOnlyMode { needs_check: false }) } else { Ok(()) }
    }

    fn apply(&self, operations: &[Operation]) -> Result<(), PoolError> {
        let mut inside = self.inside.lock();
        let changed = inside.changed(operations)?;
        let step = self.fuse.step();
        if step == Step::Taken || (step == Step::Dying && inside.last_commit_lands) {
            inside.metadata = changed;
        }
        inside.read_only |= step != Step::Taken;
        if step == Step::Taken { Ok(()) } else { Err(PoolError::Failed) }
    }
}

#[derive(Default)]
struct LogInside {
    durable: Vec<u8>,
    /// Appended since the last sync.
    pending: Vec<u8>,
    /// What a replacement was putting in place when the process died.
    replacing: Option<Vec<u8>>,
    /// The next appends fail after this many bytes each.
    full_after: Option<usize>,
}

/// A log in memory.
#[derive(Clone)]
pub(super) struct MemoryLog {
    fuse: Fuse,
    inside: Arc<Mutex<LogInside>>,
}

impl MemoryLog {
    pub(super) fn new(fuse: &Fuse, content: &[u8]) -> Self {
        let inside = LogInside { durable: content.to_vec(), ..LogInside::default() };
        Self { fuse: fuse.clone(), inside: Arc::new(Mutex::new(inside)) }
    }

    pub(super) fn content(&self) -> Vec<u8> {
        let inside = self.inside.lock();
        [inside.durable.as_slice(), &inside.pending].concat()
    }

    pub(super) fn set_content(&self, content: &[u8]) {
        *self.inside.lock() = LogInside { durable: content.to_vec(), ..LogInside::default() };
    }

    pub(super) fn fill(&self, after: Option<usize>) {
        self.inside.lock().full_after = after;
    }

    /// All that a crash now may leave: every part of what was not made durable, both sides of a replacement.
    pub(super) fn crash_images(&self) -> Vec<Vec<u8>> {
        let inside = self.inside.lock();
        let parts = (0..=inside.pending.len()).map(|end| [&inside.durable, &inside.pending[..end]].concat());
        parts.chain(inside.replacing.clone()).collect()
    }
}

impl Log for MemoryLog {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let step = self.fuse.step();
        if step == Step::Dead {
            return Err(dead());
        }
        let mut inside = self.inside.lock();
        if let Some(room) = inside.full_after {
            inside.pending.extend_from_slice(&bytes[..room.min(bytes.len())]);
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        inside.pending.extend_from_slice(bytes);
        if step == Step::Taken { Ok(()) } else { Err(dead()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.fuse.step() != Step::Taken {
            return Err(dead());
        }
        let mut inside = self.inside.lock();
        let pending = std::mem::take(&mut inside.pending);
        inside.durable.extend(pending);
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        if self.fuse.step() != Step::Taken {
            return Err(dead());
        }
        let mut inside = self.inside.lock();
        let mut content = [inside.durable.as_slice(), &inside.pending].concat();
        content.truncate(length as usize);
        inside.pending = content.split_off(inside.durable.len().min(content.len()));
        inside.durable = content;
        Ok(())
    }

    fn replace(&mut self, content: &[u8]) -> Result<(), ReplaceError> {
        match self.fuse.step() {
            Step::Taken => {
                self.set_content(content);
                Ok(())
            }
            Step::Dying => {
                self.inside.lock().replacing = Some(content.to_vec());
                Err(ReplaceError::Unknown(dead()))
            }
            Step::Dead => Err(ReplaceError::Unchanged(dead())),
        }
    }
}
