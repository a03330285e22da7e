//! Which generations of one volume a policy keeps, and why. Pure: no clock, no catalogue.
//!
//! Generations are looked at from the newest to the oldest. Each rule keeps the newest of each of its periods until
//! it has as many as it wants; a generation can serve several rules. Periods without a generation do not count.
//! Hours, days, weeks, months and years are those of the zone that is given, which is the server's own.
//!
//! Kept whatever the policy says: the newest generation, protected ones, and those dated after `now`. A
//! generation dated in the future (a clock was wrong) takes no place in any rule, so it cannot push out others,
//! nor can it make all others look old.
//!
//! `within` counts from the newest generation that is not dated in the future, and not from now: when backups
//! stop, what there is does not melt away.

use std::{fmt, time::Duration};

use jiff::{Timestamp, tz::TimeZone};
use thinbak_proto::format_duration;
use uuid::Uuid;

use super::policy::{Period, Policy};

/// A visible generation, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) number: u64,
    pub(crate) created_at_ms: u64,
    pub(crate) protected: bool,
    /// What it shares with the generations of other volumes that are of one moment.
    pub(crate) group: Option<Uuid>,
}

/// Why a generation is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reason {
    Newest,
    Protected,
    Future,
    /// Its place among the newest, from 1.
    Last(u32),
    Within(Duration),
    /// The newest of this period, as it is written.
    Period(Period, String),
    /// Another of its group is kept.
    Group,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("newest"),
            Self::Protected => f.write_str("protected"),
            Self::Future => f.write_str("dated in the future"),
            Self::Last(place) => write!(f, "last {place}"),
            Self::Within(within) => write!(f, "within {}", format_duration(*within)),
            Self::Period(period, written) => write!(f, "{} {written}", period.name()),
            Self::Group => f.write_str("its group is kept"),
        }
    }
}

/// What becomes of a generation: it is kept for these reasons, or there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) candidate: Candidate,
    pub(crate) reasons: Vec<Reason>,
}

impl Decision {
    /// Whether nothing keeps the generation.
    pub(crate) fn removes(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// Decides about all visible generations of one volume; in ascending order of numbers.
pub(crate) fn plan(
    policy: &Policy,
    candidates: Vec<Candidate>,
    now_ms: u64,
    zone: &TimeZone,
) -> Vec<Decision> {
    let newest = candidates.iter().map(|candidate| candidate.number).max();
    let decide = |candidate: Candidate| {
        let always = [
            (Some(candidate.number) == newest, Reason::Newest),
            (candidate.protected, Reason::Protected),
            (candidate.created_at_ms > now_ms, Reason::Future),
        ];
        let reasons = always.into_iter().filter(|(holds, _)| *holds).map(|(_, reason)| reason).collect();
        Decision { candidate, reasons }
    };
    let mut decisions: Vec<_> = candidates.into_iter().map(decide).collect();
    // From the newest on. Of one moment the one committed later is the newer.
    decisions.sort_unstable_by_key(|decision| {
        std::cmp::Reverse((decision.candidate.created_at_ms, decision.candidate.number))
    });
    let future = decisions.partition_point(|decision| decision.candidate.created_at_ms > now_ms);
    if let Some(past) = decisions.get_mut(future..) {
        apply(policy, past, zone);
    }
    decisions.sort_unstable_by_key(|decision| decision.candidate.number);
    decisions
}

/// Keeps by the rules what is not dated in the future, from the newest to the oldest.
fn apply(policy: &Policy, past: &mut [Decision], zone: &TimeZone) {
    for (decision, place) in past.iter_mut().zip(1..=policy.last()) {
        decision.reasons.push(Reason::Last(place));
    }
    let within = policy.within();
    if let Some(newest) = past.first().map(|newest| newest.candidate.created_at_ms)
        && !within.is_zero()
    {
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let since = newest.saturating_sub(within_ms);
        for decision in past.iter_mut().take_while(|decision| decision.candidate.created_at_ms >= since) {
            decision.reasons.push(Reason::Within(within));
        }
    }
    for (period, count) in policy.periods() {
        let (mut left, mut seen) = (count, None);
        for decision in past.iter_mut() {
            if left == 0 {
                break;
            }
            let written = written(decision.candidate.created_at_ms, period, zone);
            if seen.as_ref() != Some(&written) {
                decision.reasons.push(Reason::Period(period, written.clone()));
                seen = Some(written);
                left -= 1;
            }
        }
    }
}

/// The period that a moment is in.
fn written(ms: u64, period: Period, zone: &TimeZone) -> String {
    let moment = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    // What the calendar has no date for is later than all that it has one for.
    moment.unwrap_or(Timestamp::MAX).to_zoned_datetime(zone.clone()).strftime(period.format()).to_string()
}
