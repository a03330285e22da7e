//! What one host knows of the generations of its volume.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Result, ensure};
use blake3::Hash;

/// What was said of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Visible,
    /// It may be given up by a collection at any moment.
    Deleted,
    /// It was given up, and must never come back.
    Gone,
    /// Something was begun and its end was not heard of, in this epoch of the server's life.
    Doubtful(u64),
}

/// The generations of a volume.
#[derive(Debug, Default)]
pub(crate) struct History {
    known: BTreeMap<u64, (Hash, State)>,
    /// What backups held whose answer was not heard: any of them may be a generation of an unknown number.
    unheard: HashSet<Hash>,
}

impl History {
    /// A backup was answered.
    pub(crate) fn committed(&mut self, number: u64, content: Hash) -> Result<()> {
        let before = self.known.insert(number, (content, State::Visible));
        ensure!(before.is_none_or(|(hash, _)| hash == content), "number {number} was given twice");
        Ok(())
    }

    /// A backup was not answered.
    pub(crate) fn unheard(&mut self, content: Hash) {
        self.unheard.insert(content);
    }

    /// Whether no backup was answered.
    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The generations in a state, all but the newest that is known.
    pub(crate) fn in_state(&self, is: impl Fn(State) -> bool) -> Vec<u64> {
        let newest = self.known.keys().next_back().copied();
        let old = self.known.iter().filter(|(number, _)| Some(**number) != newest);
        old.filter(|(_, (_, state))| is(*state)).map(|(number, _)| *number).collect()
    }

    pub(crate) fn state(&self, number: u64) -> Option<State> {
        self.known.get(&number).map(|(_, state)| *state)
    }

    pub(crate) fn content(&self, number: u64) -> Option<Hash> {
        self.known.get(&number).map(|(hash, _)| *hash)
    }

    pub(crate) fn set(&mut self, number: u64, to: State) {
        if let Some((_, state)) = self.known.get_mut(&number) {
            *state = to;
        }
    }

    /// A prune was begun, and its end was not heard of.
    pub(crate) fn doubt_visible(&mut self, epoch: u64) {
        for (_, state) in self.known.values_mut() {
            if matches!(state, State::Visible | State::Doubtful(_)) {
                *state = State::Doubtful(epoch);
            }
        }
    }

    /// What was restored as generation `number` must be what the volume was.
    pub(crate) fn check(&self, number: u64, found: Hash) -> Result<()> {
        match self.content(number) {
            Some(content) => ensure!(found == content, "generation {number} is not what was backed up"),
            None => ensure!(self.unheard.contains(&found), "generation {number} is what no backup sent"),
        }
        Ok(())
    }

    /// The server, in `epoch`, lists what is visible and what is deleted. Doubts of an earlier life of the server are
    /// settled by that.
    pub(crate) fn listed(&mut self, visible: &[u64], deleted: &[u64], epoch: u64) -> Result<()> {
        for (number, (_, state)) in &mut self.known {
            let (visible, deleted) = (visible.contains(number), deleted.contains(number));
            let told = format!("generation {number} is {state:?}; listed: {visible}, as deleted: {deleted}");
            match *state {
                State::Visible => ensure!(visible && !deleted, "{told}"),
                State::Deleted => ensure!(!visible, "{told}"),
                State::Gone => ensure!(!visible && !deleted, "{told}"),
                State::Doubtful(since) if since < epoch => {
                    *state = match (visible, deleted) {
                        (true, _) => State::Visible,
                        (_, true) => State::Deleted,
                        _ => State::Gone,
                    };
                }
                State::Doubtful(_) => {}
            }
        }
        Ok(())
    }
}
