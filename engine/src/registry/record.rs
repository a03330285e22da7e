//! What the lines of the journal say.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::RegistryError;
use super::line::{self, Next};
use super::state::{Change, State, StoredState};
use crate::format::DeviceId;

/// The version of the journal's format that is written, and the newest that is understood.
pub(super) const FORMAT: u32 = 1;
/// A line of the journal without its number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    /// About to change the pool from `transaction_id` to the next.
    Intent { transaction_id: u64, create: Vec<DeviceId>, changes: Vec<Change> },
    /// The intent before was carried out.
    Done,
    /// The intent before was not carried out.
    Undone,
    /// Changes that do not touch the pool.
    Set { changes: Vec<Change> },
}

/// A numbered line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Line<T> {
    pub(super) sequence: u64,
    #[serde(flatten)]
    pub(super) content: T,
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) format: u32,
    pub(super) pool: Uuid,
}

/// The part of the first line that every version has.
#[derive(Debug, Deserialize)]
pub(super) struct FormatOnly {
    pub(super) format: u32,
}

/// The second line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StateLine {
    pub(super) state: StoredState,
}

/// A journal that holds this state only, and the number of the next line.
pub(super) fn serialise(pool: Uuid, state: &State) -> Result<(Vec<u8>, u64), RegistryError> {
    let mut bytes = Vec::new();
    push_line(0, &Header { format: FORMAT, pool }, &mut bytes)?;
    push_line(1, &StateLine { state: state.into() }, &mut bytes)?;
    Ok((bytes, 2))
}

pub(super) fn push_line<T: Serialize>(
    sequence: u64,
    content: &T,
    out: &mut Vec<u8>,
) -> Result<(), RegistryError> {
    let json = serde_json::to_vec(&Line { sequence, content })
        .map_err(|source| RegistryError::Content { line: sequence.saturating_add(1), source })?;
    line::encode(&json, out);
    Ok(())
}

/// Goes through the lines of a journal.
pub(super) struct Reader<'a> {
    pub(super) rest: &'a [u8],
    /// The last line taken, from 1.
    pub(super) number: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn next(&mut self) -> Result<Option<&'a [u8]>, RegistryError> {
        match line::take(self.rest, self.number + 1)? {
            Next::Line { json, rest } => {
                self.rest = rest;
                self.number += 1;
                Ok(Some(json))
            }
            Next::Unfinished | Next::End => Ok(None),
        }
    }

    pub(super) fn parse<T: for<'de> Deserialize<'de>>(&self, json: &[u8]) -> Result<T, RegistryError> {
        serde_json::from_slice(json).map_err(|source| RegistryError::Content { line: self.number, source })
    }

    /// Parses a line that must carry this number.
    pub(super) fn numbered<T: for<'de> Deserialize<'de>>(
        &self,
        json: &[u8],
        expected: u64,
    ) -> Result<T, RegistryError> {
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
