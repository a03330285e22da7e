//! What is kept: how many of which, and for which volumes.

use std::time::Duration;

use thinbak_proto::{Pattern, v1};

/// A policy that would delete all that may be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the policy keeps nothing: at least one of its rules must")]
pub struct KeepsNothing;

/// Which generations of a volume are kept. A generation that any rule keeps is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    last: u32,
    /// Of the [periods](Period::ALL), in their order.
    periods: [u32; 5],
    within: Duration,
}

/// A span of the calendar, of which the newest generation is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Period {
    Hour,
    Day,
    /// From Monday on, as ISO 8601 counts them.
    Week,
    Month,
    Year,
}

impl Period {
    pub(crate) const ALL: [Self; 5] = [Self::Hour, Self::Day, Self::Week, Self::Month, Self::Year];

    /// The rule's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hour => "hourly",
            Self::Day => "daily",
            Self::Week => "weekly",
            Self::Month => "monthly",
            Self::Year => "yearly",
        }
    }

    /// How the period is written, for `strftime`. Different periods are written differently: an hour with its
    /// offset, for when clocks are put back one comes twice.
    pub(crate) fn format(self) -> &'static str {
        match self {
            Self::Hour => "%Y-%m-%dT%H%:z",
            Self::Day => "%Y-%m-%d",
            Self::Week => "%G-W%V",
            Self::Month => "%Y-%m",
            Self::Year => "%Y",
        }
    }
}

impl Policy {
    /// The policy of these numbers, unless they keep nothing.
    pub fn new(policy: &v1::RetentionPolicy) -> Result<Self, KeepsNothing> {
        let v1::RetentionPolicy { last, hourly, daily, weekly, monthly, yearly, within_seconds } = *policy;
        let periods = [hourly, daily, weekly, monthly, yearly];
        if last == 0 && within_seconds == 0 && periods == [0; 5] {
            return Err(KeepsNothing);
        }
        Ok(Self { last, periods, within: Duration::from_secs(within_seconds) })
    }

    /// So many of the newest.
    pub(crate) fn last(&self) -> u32 {
        self.last
    }

    /// Of so many periods the newest.
    pub(crate) fn periods(&self) -> impl Iterator<Item = (Period, u32)> {
        Period::ALL.into_iter().zip(self.periods).filter(|(_, count)| *count > 0)
    }

    /// All that are at most so much older than the newest; zero: not a rule.
    pub(crate) fn within(&self) -> Duration {
        self.within
    }
}

/// A policy and the volumes that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionRule {
    /// Names of volumes.
    pub volumes: Pattern,
    /// What of them is kept.
    pub policy: Policy,
}
