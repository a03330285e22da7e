//! What a leaf of a mapping tree holds, in little space: runs, packed into bytes.
//!
//! A leaf of 4 KiB holds up to 252 mappings, but few runs of them: data that was written in one go lies in one
//! piece. Walks keep hundreds of leaves at a time, so they keep them packed. A packed run is four LEB128 numbers,
//! each told by its distance from where the run before it ends: key, data block (zigzag), time (zigzag), length.

use std::{collections::VecDeque, sync::Arc};

use super::{error::ViewError, subtree::Subtree};
use crate::{
    DataBlock,
    format::{MappedBlock, Node},
};

/// Consecutive keys, mapped to consecutive data blocks at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MapRun {
    pub(super) key: u64,
    pub(super) data_block: DataBlock,
    pub(super) time: u32,
    /// At least 1.
    pub(super) length: u64,
}

impl MapRun {
    /// What is left of the run behind its first `blocks`.
    fn behind(self, blocks: u64) -> Option<Self> {
        let length = self.length.checked_sub(blocks).filter(|length| *length > 0)?;
        Some(Self {
            key: self.key.saturating_add(blocks),
            data_block: DataBlock(self.data_block.0.saturating_add(blocks)),
            length,
            ..self
        })
    }

    /// How much of the run lies below `bound`, which is above its first key.
    pub(super) fn until(self, bound: Option<u64>) -> u64 {
        bound.map_or(self.length, |bound| self.length.min(bound.saturating_sub(self.key)))
    }

    /// The run's last key.
    fn last_key(self) -> u64 {
        self.key.saturating_add(self.length - 1)
    }
}

/// Packs the entries of a verified leaf.
pub(super) fn pack(leaf: &Node, packed: &mut Vec<u8>) {
    let mut before = Before::default();
    let mut open: Option<MapRun> = None;
    for (key, word) in leaf.words() {
        let MappedBlock { data_block, time } = MappedBlock::unpack(word);
        match &mut open {
            // Keys ascend, so that none of these sums can be more than what follows.
            Some(run)
                if time == run.time
                    && key - run.key == run.length
                    && data_block.0.wrapping_sub(run.data_block.0) == run.length =>
            {
                run.length += 1;
            }
            open => {
                if let Some(run) = open.replace(MapRun { key, data_block, time, length: 1 }) {
                    before.pack(run, packed);
                }
            }
        }
    }
    if let Some(run) = open {
        before.pack(run, packed);
    }
}

/// Where the run before ends: its next key, its next data block, its time.
#[derive(Debug, Clone, Copy, Default)]
struct Before {
    key: u64,
    data: u64,
    time: u32,
}

impl Before {
    fn pack(&mut self, run: MapRun, packed: &mut Vec<u8>) {
        put(packed, run.key.wrapping_sub(self.key));
        put(packed, zigzag(run.data_block.0.wrapping_sub(self.data)));
        put(packed, zigzag(u64::from(run.time).wrapping_sub(u64::from(self.time))));
        put(packed, run.length);
        self.go_behind(run);
    }

    /// The run at the front of `packed`, which is taken off.
    fn unpack(&mut self, packed: &mut &[u8]) -> Option<MapRun> {
        let key = self.key.wrapping_add(take(packed)?);
        let data_block = DataBlock(self.data.wrapping_add(unzigzag(take(packed)?)));
        let time = u64::from(self.time).wrapping_add(unzigzag(take(packed)?)) as u32;
        let run = MapRun { key, data_block, time, length: take(packed)? };
        self.go_behind(run);
        Some(run)
    }

    fn go_behind(&mut self, run: MapRun) {
        self.key = run.key.wrapping_add(run.length);
        self.data = run.data_block.0.wrapping_add(run.length);
        self.time = run.time;
    }
}

/// Small numbers of either sign to small numbers.
fn zigzag(number: u64) -> u64 {
    (number << 1) ^ ((number as i64 >> 63) as u64)
}

fn unzigzag(number: u64) -> u64 {
    (number >> 1) ^ (number & 1).wrapping_neg()
}

fn put(packed: &mut Vec<u8>, number: u64) {
    let mut rest = number;
    while rest >= 0x80 {
        packed.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    packed.push(rest as u8);
}

fn take(packed: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = packed.split_off_first()?;
        number |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Packed leaves in key order, read run by run.
#[derive(Debug, Default)]
pub(super) struct Leaves {
    /// The run to be read next; it has been checked.
    front: Option<MapRun>,
    /// The rest of the leaf that `front` is of.
    open: Option<(Subtree, Arc<[u8]>, usize, Before)>,
    waiting: VecDeque<(Subtree, Arc<[u8]>)>,
    from: u64,
}

impl Leaves {
    /// Keys below `from` are left out.
    pub(super) fn new(from: u64) -> Self {
        Self { from, ..Self::default() }
    }

    /// Takes a leaf whose keys are above all that were taken before.
    pub(super) fn push(&mut self, subtree: Subtree, packed: Arc<[u8]>) {
        self.waiting.push_back((subtree, packed));
    }

    /// The next run, which stays.
    ///
    /// # Errors
    /// A key outside of the range that the tree keeps in the leaf.
    pub(super) fn front(&mut self) -> Result<Option<MapRun>, ViewError> {
        while self.front.is_none() {
            let Some(run) = self.unpack()? else { break };
            self.front = run.behind(self.from.saturating_sub(run.key));
        }
        Ok(self.front)
    }

    /// Drops the first `blocks` of the front run.
    pub(super) fn advance(&mut self, blocks: u64) {
        self.front = self.front.and_then(|run| run.behind(blocks));
    }

    fn unpack(&mut self) -> Result<Option<MapRun>, ViewError> {
        loop {
            if let Some((subtree, packed, at, before)) = &mut self.open {
                let mut rest = packed.get(*at..).unwrap_or_default();
                if let Some(run) = before.unpack(&mut rest) {
                    *at = packed.len() - rest.len();
                    subtree.holds(run.key)?;
                    subtree.holds(run.last_key())?;
                    return Ok(Some(run));
                }
            }
            let Some((subtree, packed)) = self.waiting.pop_front() else {
                self.open = None;
                return Ok(None);
            };
            self.open = Some((subtree, packed, 0, Before::default()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Before, DataBlock, MapRun, unzigzag, zigzag};

    #[test]
    fn packed_runs_come_back_whatever_lies_between_them() {
        let run = |key, data, time, length| MapRun { key, data_block: DataBlock(data), time, length };
        let runs = [
            run(0, 0, 0, 1),
            run(1, 77, 0, 252),
            run(253, 5, (1 << 24) - 1, 3),
            run(1 << 60, (1 << 40) - 1, 1, 1),
            run(u64::MAX - 1, 0, 0, 2),
        ];
        let (mut packed, mut before) = (Vec::new(), Before::default());
        runs.iter().for_each(|run| before.pack(*run, &mut packed));
        let (mut rest, mut before) = (packed.as_slice(), Before::default());
        for run in runs {
            assert_eq!(before.unpack(&mut rest), Some(run));
        }
        assert_eq!(before.unpack(&mut rest), None);
        assert!(packed.len() < 60, "{} bytes", packed.len());
    }

    #[test]
    fn numbers_near_zero_of_either_sign_stay_small() {
        for (number, small) in [(0, 0), (u64::MAX, 1), (1, 2), (2u64.wrapping_neg(), 3), (1 << 63, u64::MAX)]
        {
            assert_eq!(zigzag(number), small);
            assert_eq!(unzigzag(small), number);
        }
    }
}
