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
//! 2. In the pool: the new devices are made, then the transaction id is set to T + 1, then what is to go is deleted.
//! 3. The pool commits.
//!
//! The commit decides. A pool found at T + 1 made the change, one found at T did not, any other was changed behind
//! the registry's back and is refused. The order of step 2 makes that right even if the pool commits in between for a
//! reason of its own: before the transaction id moves only fresh ids exist that nobody knows, after it only ids
//! remain that nobody wants. Both kinds are remembered as *doomed* and deleted by the next change or the next open.
//!
//! What a crash leaves, step by step: a torn intent is dropped; a whole one without the commit is undone; with the
//! commit it is done. What became of the intent is written with the next line (there is nothing to lose if it is
//! not).
//!
//! A change that does not touch the pool is a *record*: it holds as soon as it is durable.

#![cfg_attr(not(test), allow(dead_code, unused_imports, reason = "used by the embedded pool"))]

mod hex;
mod line;
mod log;
mod point;
mod state;

use std::io;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) use self::log::{FileLog, JOURNAL, JOURNAL_NEW, Log, sync_directory};
pub use self::point::{Base, Point};
pub(crate) use self::state::{Change, Entry, HeldSnapshot, Role, State};

use self::line::Next;
use self::log::ReplaceError;
use self::state::StoredState;
use crate::format::DeviceId;
use crate::pool::PoolError;

/// The version of the journal's format that is written, and the newest that is understood.
const FORMAT: u32 = 1;
/// A journal shorter than this is not compacted.
const COMPACT_BYTES: u64 = 64 << 10;
/// A journal is compacted when it is this many times as long as the state alone.
const COMPACT_FACTOR: u64 = 8;

/// Why the registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A finished line of the journal is not what was written.
    #[error("line {line} of the registry is damaged: {reason}")]
    Damaged {
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A line's checksum is right but its content makes no sense.
    #[error("line {line} of the registry cannot be understood: {source}")]
    Content {
        /// Counted from 1.
        line: u64,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// Written by a newer version.
    #[error("the registry has format {found}, newer than {FORMAT}")]
    NewerFormat {
        /// The version found.
        found: u32,
    },
    /// It belongs to another pool.
    #[error("the registry belongs to pool {found}, not to {expected}")]
    OtherPool {
        /// The pool it was opened for.
        expected: Uuid,
        /// The pool it names.
        found: Uuid,
    },
    /// The pool was changed by something else, or pool and registry are not of one time.
    #[error("the pool is at transaction {found}, its registry at {expected}{}", .intent.map_or("", |_| " (or the next)"))]
    Transaction {
        /// What the registry says.
        expected: u64,
        /// The transaction id that an unsettled change would have led to.
        intent: Option<u64>,
        /// What the pool says.
        found: u64,
    },
    /// An earlier failure left it open what is on the disk.
    #[error("an earlier write failed: the pool must be opened again")]
    Undecided,
    /// The journal could not be written or read.
    #[error("the registry could not be {attempt}: {source}")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a change that touches the pool was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransactError {
    /// The registry's doing.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The pool's doing. Nothing was changed.
    #[error("{attempt}: {source}")]
    Pool {
        /// What was attempted.
        attempt: &'static str,
        /// What the pool said.
        source: PoolError,
    },
}

/// What the registry asks of a pool.
pub(crate) trait Devices {
    fn transaction_id(&self) -> u64;
    fn set_transaction_id(&self, old: u64, new: u64) -> Result<(), PoolError>;
    fn create(&self, id: DeviceId, origin: Option<DeviceId>) -> Result<(), PoolError>;
    fn delete(&self, id: DeviceId) -> Result<(), PoolError>;
    fn exists(&self, id: DeviceId) -> Result<bool, PoolError>;
    fn commit(&self) -> Result<(), PoolError>;
}

/// A change that touches the pool.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Devices to make: empty, or a snapshot of another.
    pub(crate) create: Vec<(DeviceId, Option<DeviceId>)>,
    /// What the registry knows afterwards. Removed devices are deleted.
    pub(crate) changes: Vec<Change>,
}

/// A line of the journal without its number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    /// About to change the pool from `transaction_id` to the next.
    Intent { transaction_id: u64, create: Vec<DeviceId>, changes: Vec<Change> },
    /// The intent before was carried out; the devices are still to be deleted.
    Done { doomed: Vec<DeviceId> },
    /// The intent before was not carried out; the devices may have to be deleted.
    Undone { doomed: Vec<DeviceId> },
    /// Changes that do not touch the pool.
    Set { changes: Vec<Change> },
}

/// A numbered line.
#[derive(Debug, Serialize, Deserialize)]
struct Line<T> {
    sequence: u64,
    #[serde(flatten)]
    content: T,
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: u32,
    pool: Uuid,
}

/// The part of the first line that every version has.
#[derive(Debug, Deserialize)]
struct FormatOnly {
    format: u32,
}

/// The second line.
#[derive(Debug, Serialize, Deserialize)]
struct StateLine {
    state: StoredState,
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
            (Some(Record::Intent { changes, .. }), Record::Done { doomed }) => self.finish(&changes, doomed),
            (Some(Record::Intent { .. }), Record::Undone { doomed }) => {
                self.state.doomed = doomed.into_iter().collect();
            }
            _ => return Err(out_of_place),
        }
        Ok(())
    }

    /// Decides the last intent by the pool's transaction id. Nothing is written yet.
    pub(crate) fn settle(&mut self, pool: &impl Devices) -> Result<(), RegistryError> {
        let found = pool.transaction_id();
        let expected = self.state.transaction_id;
        match self.unsettled.take() {
            None if found == expected => {}
            Some(Record::Intent { create, .. }) if found == expected => {
                self.state.doomed.extend(create);
                self.forget_deleted(pool);
                self.owed = Some(Record::Undone { doomed: self.doomed() });
            }
            Some(Record::Intent { changes, .. }) if Some(found) == expected.checked_add(1) => {
                self.finish_keeping_doomed(&changes);
                self.forget_deleted(pool);
                self.owed = Some(Record::Done { doomed: self.doomed() });
            }
            unsettled => {
                let intent = unsettled.as_ref().and(expected.checked_add(1));
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

    /// Makes a change that touches the pool, as the module's text says. Nobody else may change devices or the
    /// transaction id of the pool meanwhile. After an error nothing is changed, unless it is undecided.
    pub(crate) fn transact(&mut self, pool: &impl Devices, plan: Plan) -> Result<(), TransactError> {
        let expected = self.state.transaction_id;
        let found = pool.transaction_id();
        if found != expected {
            return Err(RegistryError::Transaction { expected, intent: None, found }.into());
        }
        let create: Vec<DeviceId> = plan.create.iter().map(|&(id, _)| id).collect();
        self.append(Record::Intent { transaction_id: expected, create, changes: plan.changes.clone() })?;
        plan.create.iter().for_each(|&(id, _)| self.state.note_id(id));

        if let Err(error) = make(pool, &plan.create, expected) {
            self.undo(pool, &plan.create);
            return Err(error);
        }
        let removed = plan.changes.iter().filter_map(|change| match change {
            Change::Remove(device) => Some(*device),
            _ => None,
        });
        let unwanted: Vec<DeviceId> = self.state.doomed.iter().copied().chain(removed).collect();
        let doomed = delete_all(pool, unwanted);
        if let Err(source) = pool.commit() {
            self.undecided = true;
            return Err(TransactError::Pool { attempt: "the pool could not commit", source });
        }
        let found = pool.transaction_id();
        if Some(found) != expected.checked_add(1) {
            self.undecided = true;
            return Err(
                RegistryError::Transaction { expected, intent: expected.checked_add(1), found }.into()
            );
        }
        self.finish(&plan.changes, doomed.clone());
        self.owed = Some(Record::Done { doomed });
        self.compact_if_long();
        Ok(())
    }

    /// Takes back what was made before the transaction id moved.
    fn undo(&mut self, pool: &impl Devices, created: &[(DeviceId, Option<DeviceId>)]) {
        let left = delete_all(pool, created.iter().map(|&(id, _)| id).collect());
        self.state.doomed.extend(left);
        self.owed = Some(Record::Undone { doomed: self.doomed() });
    }

    /// Takes in the changes of an intent that was carried out.
    fn finish(&mut self, changes: &[Change], doomed: Vec<DeviceId>) {
        self.finish_keeping_doomed(changes);
        self.state.doomed = doomed.into_iter().collect();
    }

    fn finish_keeping_doomed(&mut self, changes: &[Change]) {
        self.state.apply(changes);
        self.state.transaction_id = self.state.transaction_id.saturating_add(1);
    }

    fn forget_deleted(&mut self, pool: &impl Devices) {
        self.state.doomed.retain(|&id| pool.exists(id).unwrap_or(true));
    }

    fn doomed(&self) -> Vec<DeviceId> {
        self.state.doomed.iter().copied().collect()
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

/// Makes the devices, then moves the transaction id on.
fn make(
    pool: &impl Devices,
    create: &[(DeviceId, Option<DeviceId>)],
    expected: u64,
) -> Result<(), TransactError> {
    for &(id, origin) in create {
        let attempt =
            if origin.is_some() { "a snapshot could not be made" } else { "a device could not be made" };
        pool.create(id, origin).map_err(|source| TransactError::Pool { attempt, source })?;
    }
    let next = expected.checked_add(1).ok_or(RegistryError::Transaction {
        expected,
        intent: None,
        found: expected,
    })?;
    pool.set_transaction_id(expected, next)
        .map_err(|source| TransactError::Pool { attempt: "the transaction id could not be moved", source })
}

/// Deletes devices and returns those that could not be deleted.
fn delete_all(pool: &impl Devices, devices: Vec<DeviceId>) -> Vec<DeviceId> {
    let mut left = devices;
    left.retain(|&id| {
        let gone = match pool.exists(id) {
            Ok(true) => pool.delete(id),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = &gone {
            tracing::warn!(device = id.get(), %error, "a device could not be deleted yet");
        }
        gone.is_err()
    });
    left
}

/// A journal that holds this state only, and the number of the next line.
fn serialise(pool: Uuid, state: &State) -> Result<(Vec<u8>, u64), RegistryError> {
    let mut bytes = Vec::new();
    push_line(0, &Header { format: FORMAT, pool }, &mut bytes)?;
    push_line(1, &StateLine { state: state.into() }, &mut bytes)?;
    Ok((bytes, 2))
}

fn push_line<T: Serialize>(sequence: u64, content: &T, out: &mut Vec<u8>) -> Result<(), RegistryError> {
    let json = serde_json::to_vec(&Line { sequence, content })
        .map_err(|source| RegistryError::Content { line: sequence.saturating_add(1), source })?;
    line::encode(&json, out);
    Ok(())
}

fn compact_at(state_length: u64) -> u64 {
    state_length.saturating_mul(COMPACT_FACTOR).max(COMPACT_BYTES)
}

/// Goes through the lines of a journal.
struct Reader<'a> {
    rest: &'a [u8],
    /// The last line taken, from 1.
    number: u64,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<&'a [u8]>, RegistryError> {
        match line::take(self.rest, self.number + 1)? {
            Next::Line { json, rest } => {
                self.rest = rest;
                self.number += 1;
                Ok(Some(json))
            }
            Next::Unfinished | Next::End => Ok(None),
        }
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self, json: &[u8]) -> Result<T, RegistryError> {
        serde_json::from_slice(json).map_err(|source| RegistryError::Content { line: self.number, source })
    }

    /// Parses a line that must carry this number.
    fn numbered<T: for<'de> Deserialize<'de>>(&self, json: &[u8], expected: u64) -> Result<T, RegistryError> {
        let Line { sequence, content } = self.parse(json)?;
        if sequence != expected {
            return Err(RegistryError::Damaged {
                line: self.number,
                reason: "not the line that belongs here",
            });
        }
        Ok(content)
    }
}

#[cfg(test)]
mod tests;
