//! A set of numbers, kept as ranges.

use std::collections::BTreeMap;

/// Numbers, kept as disjoint ranges that do not touch.
#[derive(Debug, Default)]
pub(crate) struct RangeSet {
    /// Begin to end (exclusive).
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds `begin..end`.
    pub(crate) fn insert(&mut self, begin: u64, end: u64) {
        if begin >= end {
            return;
        }
        let (mut begin, mut end) = (begin, end);
        while let Some((&at, &until)) = self.ranges.range(..=end).next_back() {
            if until < begin {
                break;
            }
            self.ranges.remove(&at);
            begin = begin.min(at);
            end = end.max(until);
        }
        self.ranges.insert(begin, end);
    }

    /// Takes `begin..end` out.
    pub(crate) fn remove(&mut self, begin: u64, end: u64) {
        while let Some((&at, &until)) = self.ranges.range(..end).next_back() {
            if until <= begin {
                break;
            }
            self.ranges.remove(&at);
            if at < begin {
                self.ranges.insert(at, begin);
            }
            if until > end {
                self.ranges.insert(end, until);
            }
        }
    }

    /// The end of the range that holds `number`.
    pub(crate) fn end_of(&self, number: u64) -> Option<u64> {
        let (_, &end) = self.ranges.range(..=number).next_back()?;
        (number < end).then_some(end)
    }

    /// The ranges, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(&begin, &end)| (begin, end))
    }
}
