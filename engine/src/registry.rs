//! The registry: names, sizes and identities of the thin devices of a pool, whose metadata knows only ids.
//!
//! It is a journal beside the pool. Each line is checksummed and numbered ([`line`]); the first says the format and
//! whose registry it is, the second the whole state, the others changes. The journal is replaced by its present
//! state when it has grown enough, so that a change costs O(1).
//!
//! # How registry and pool stay in step
//!
//! A change that touches the pool is made so:
//!
//! 1. *Intent*: the changes, the ids about to be made and the pool's present transaction id T are appended and made
//!    durable.
//! 2. In one commit of the pool the new devices are made, what is to go is deleted, and the transaction id becomes T + 1.
//!
//! The commit decides. A pool found at T + 1 made the change, one found at T did not, any other was changed behind
//! the registry's back and is refused. What became of an intent is written together with the next line: when that is
//! lost, the pool still knows.
//!
//! | the process dies | the next open finds | and takes the change as |
//! |---|---|---|
//! | while the intent is written | an unfinished last line, or the whole line and T | not made |
//! | before the pool has committed | the intent and T | not made |
//! | after the pool has committed | the intent and T + 1 | made |
//!
//! A change that does not touch the pool is a *record*: it holds as soon as it is durable.

mod error;
mod hex;
mod line;
mod log;
mod point;
mod record;
mod state;

use uuid::Uuid;

pub use self::error::RegistryError;
pub(crate) use self::error::TransactError;
pub(crate) use self::log::{FileLog, JOURNAL, JOURNAL_NEW, Log, ReplaceError, sync_directory};
pub use self::point::{Base, Point};
pub(crate) use self::state::{Change, Entry, HeldSnapshot, State};
pub use self::state::{ExternalOrigin, Role};

use self::record::{FORMAT, FormatOnly, Header, Reader, Record, StateLine, push_line, serialise};
use crate::format::DeviceId;
use crate::pool::{Operation, PoolError};

/// A journal shorter than this is not compacted.
const COMPACT_BYTES: u64 = 64 << 10;
/// A journal is compacted when it is this many times as long as the state alone.
const COMPACT_FACTOR: u64 = 8;

/// What the registry asks of a pool.
pub(crate) trait Devices {
    fn transaction_id(&self) -> u64;
    /// Why nothing can be changed, if so.
    fn check_writable(&self) -> Result<(), PoolError>;
    /// All in one commit, or nothing.
    fn apply(&self, operations: &[Operation]) -> Result<(), PoolError>;
}

/// A change that touches the pool.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Devices to make: empty, or a snapshot of another.
    pub(crate) create: Vec<(DeviceId, Option<DeviceId>)>,
    /// What the registry knows afterwards. Removed devices are deleted.
    pub(crate) changes: Vec<Change>,
}

impl Plan {
    /// What the pool has to do.
    fn operations(&self, old: u64, new: u64) -> Vec<Operation> {
        let create = self.create.iter().map(|&(new, origin)| match origin {
            Some(origin) => Operation::CreateSnap { new, origin },
            None => Operation::CreateThin(new),
        });
        let delete = self.changes.iter().filter_map(|change| match change {
            Change::Remove(device) => Some(Operation::Delete(*device)),
            _ => None,
        });
        create.chain(delete).chain([Operation::SetTransactionId { old, new }]).collect()
    }
}

/// The registry of one pool. See the module's text for how it is kept.
pub(crate) struct Registry {
    log: Box<dyn Log>,
    pool: Uuid,
    state: State,
    /// The number of the next line.
    sequence: u64,
    /// Length of the journal in bytes; nothing valid is beyond.
    length: u64,
    /// Whether an unfinished line lies behind that.
    torn: bool,
    /// Length of the journal from which on it is compacted.
    compact_at: u64,
    /// What became of the last intent, while no line says so yet.
    owed: Option<Record>,
    /// An intent found when the journal was read, whose outcome only the pool knows.
    unsettled: Option<Record>,
    /// A write failed so that the journal's or the pool's state on disk is unknown.
    undecided: bool,
}

impl Registry {
    /// The content of a new journal for a pool without devices.
    pub(crate) fn initial(pool: Uuid, transaction_id: u64) -> Result<Vec<u8>, RegistryError> {
        Ok(serialise(pool, &State::new(transaction_id))?.0)
    }

    /// Reads a journal. Nothing is written, not even to drop an unfinished last line.
    pub(crate) fn load(log: Box<dyn Log>, journal: &[u8], pool: Uuid) -> Result<Self, RegistryError> {
        let mut reader = Reader { rest: journal, number: 0 };
        let missing = |line| RegistryError::Damaged { line, reason: "missing" };
        let first = reader.next()?.ok_or(missing(1))?;
        let FormatOnly { format: found } = reader.parse(first)?;
        if found > FORMAT {
            return Err(RegistryError::NewerFormat { found });
        }
        let Header { pool: found, .. } = reader.numbered(first, 0)?;
        if found != pool {
            return Err(RegistryError::OtherPool { expected: pool, found });
        }
        let second = reader.next()?.ok_or(missing(2))?;
        let StateLine { state } = reader.numbered(second, 1)?;
        let state_length = (journal.len() - reader.rest.len()) as u64;
        let mut registry = Self {
            log,
            pool,
            state: state.into(),
            sequence: 2,
            length: state_length,
            torn: false,
            compact_at: compact_at(state_length),
            owed: None,
            unsettled: None,
            undecided: false,
        };
        while let Some(json) = reader.next()? {
            let record = reader.numbered(json, registry.sequence)?;
            registry.replay(record, reader.number)?;
            registry.length = (journal.len() - reader.rest.len()) as u64;
        }
        registry.torn = !reader.rest.is_empty();
        Ok(registry)
    }

    /// Takes in one record of the journal.
    fn replay(&mut self, record: Record, line: u64) -> Result<(), RegistryError> {
        let out_of_place = RegistryError::Damaged { line, reason: "out of place" };
        self.sequence += 1;
        match (self.unsettled.take(), record) {
            (None, Record::Set { changes }) => self.state.apply(&changes),
            (None, Record::Intent { transaction_id, create, changes }) => {
                if transaction_id != self.state.transaction_id {
                    return Err(out_of_place);
                }
                create.iter().for_each(|&id| self.state.note_id(id));
                self.unsettled = Some(Record::Intent { transaction_id, create, changes });
            }
            (Some(Record::Intent { changes, .. }), Record::Done) => self.finish(&changes),
            (Some(Record::Intent { .. }), Record::Undone) => {}
            _ => return Err(out_of_place),
        }
        Ok(())
    }

    /// Decides the last intent by the pool's transaction id. Nothing is written yet.
    pub(crate) fn settle(&mut self, found: u64) -> Result<(), RegistryError> {
        let expected = self.state.transaction_id;
        let next = expected.checked_add(1);
        match self.unsettled.take() {
            None if found == expected => {}
            Some(Record::Intent { .. }) if found == expected => self.owed = Some(Record::Undone),
            Some(Record::Intent { changes, .. }) if Some(found) == next => {
                self.finish(&changes);
                self.owed = Some(Record::Done);
            }
            unsettled => {
                let intent = unsettled.as_ref().and(next);
                self.unsettled = unsettled;
                return Err(RegistryError::Transaction { expected, intent, found });
            }
        }
        Ok(())
    }

    /// What the registry knows.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Whether an earlier failure left it open what is on the disk.
    #[cfg(test)]
    pub(crate) fn is_undecided(&self) -> bool {
        self.undecided
    }

    /// Makes changes that do not touch the pool. After an error nothing is changed, unless it is undecided.
    pub(crate) fn record(&mut self, changes: Vec<Change>) -> Result<(), RegistryError> {
        self.append(Record::Set { changes: changes.clone() })?;
        self.state.apply(&changes);
        self.compact_if_long();
        Ok(())
    }

    /// Makes a change that touches the pool, as the module's text says. Nobody else may change the transaction id of
    /// the pool meanwhile. After an error nothing is changed, unless it is undecided.
    pub(crate) fn transact(&mut self, pool: &impl Devices, plan: Plan) -> Result<(), TransactError> {
        let refused =
            |source| TransactError::Pool { attempt: "the pool's devices could not be changed", source };
        let expected = self.state.transaction_id;
        let found = pool.transaction_id();
        let next = expected.checked_add(1).filter(|_| found == expected);
        let next = next.ok_or(RegistryError::Transaction { expected, intent: None, found })?;
        pool.check_writable().map_err(refused)?;

        let operations = plan.operations(expected, next);
        let create: Vec<DeviceId> = plan.create.iter().map(|&(id, _)| id).collect();
        let intent = Record::Intent { transaction_id: expected, create, changes: plan.changes.clone() };
        self.append(intent)?;
        plan.create.iter().for_each(|&(id, _)| self.state.note_id(id));

        if let Err(error) = pool.apply(&operations) {
            // A pool that still writes at the old transaction id has taken everything back. One that does not may have
            // committed before it failed.
            self.undecided = pool.check_writable().is_err() || pool.transaction_id() != expected;
            self.owed = Some(Record::Undone);
            return Err(refused(error));
        }
        self.finish(&plan.changes);
        self.owed = Some(Record::Done);
        self.compact_if_long();
        Ok(())
    }

    /// Takes in the changes of an intent that was carried out.
    fn finish(&mut self, changes: &[Change]) {
        self.state.apply(changes);
        self.state.transaction_id = self.state.transaction_id.saturating_add(1);
    }

    /// Appends a record, and before it what is owed, and makes both durable.
    fn append(&mut self, record: Record) -> Result<(), RegistryError> {
        if self.undecided || self.unsettled.is_some() {
            return Err(RegistryError::Undecided);
        }
        let mut bytes = Vec::new();
        let mut sequence = self.sequence;
        for record in self.owed.iter().chain(Some(&record)) {
            push_line(sequence, record, &mut bytes)?;
            sequence += 1;
        }
        if self.torn {
            let cut = |source| RegistryError::Io { attempt: "cut back to its last finished line", source };
            self.log.truncate(self.length).map_err(cut)?;
            self.torn = false;
        }
        if let Err(source) = self.log.append(&bytes) {
            self.torn = true;
            return Err(RegistryError::Io { attempt: "written", source });
        }
        if let Err(source) = self.log.sync() {
            // After a failed sync nothing is known of what later ones will do.
            self.undecided = true;
            return Err(RegistryError::Io { attempt: "made durable", source });
        }
        self.sequence = sequence;
        self.length += bytes.len() as u64;
        self.owed = None;
        Ok(())
    }

    /// Compacts a journal that has grown long. A failure is no failure of what was just done.
    fn compact_if_long(&mut self) {
        if self.length >= self.compact_at
            && let Err(error) = self.compact()
        {
            self.compact_at = self.length.saturating_mul(2);
            tracing::warn!(pool = %self.pool, %error, "the registry could not be compacted");
        }
    }

    /// Replaces the journal by its present state. Also drops an unfinished last line.
    pub(crate) fn compact(&mut self) -> Result<(), RegistryError> {
        if self.undecided || self.unsettled.is_some() {
            return Err(RegistryError::Undecided);
        }
        let (bytes, sequence) = serialise(self.pool, &self.state)?;
        match self.log.replace(&bytes) {
            Ok(()) => {
                self.sequence = sequence;
                self.length = bytes.len() as u64;
                self.compact_at = compact_at(self.length);
                self.owed = None;
                self.torn = false;
                Ok(())
            }
            Err(ReplaceError::Unchanged(source)) => {
                Err(RegistryError::Io { attempt: "written anew", source })
            }
            Err(ReplaceError::Unknown(source)) => {
                self.undecided = true;
                Err(RegistryError::Io { attempt: "replaced", source })
            }
        }
    }
}

fn compact_at(state_length: u64) -> u64 {
    state_length.saturating_mul(COMPACT_FACTOR).max(COMPACT_BYTES)
}

#[cfg(test)]
mod tests;
