//! When something is to be done again and again: `6h`, `02:30` or a line of cron.

mod cron;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};

use crate::{format_duration, parse_duration};
use cron::Cron;
pub use cron::InvalidCron;

/// A text that is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSchedule {
    /// Too often.
    #[error("a job cannot run every {text:?}: at least {} must lie between", format_duration(*least))]
    TooOften {
        /// What was written.
        text: String,
        /// The least that is allowed.
        least: Duration,
    },
    /// Not five fields, no time of day and no length of time.
    #[error(
        "{0:?} is neither a length of time like \"6h\", nor a time of day like \"02:30\", nor a line of cron like \"30 3 * * *\""
    )]
    Form(String),
    /// Five fields, but not those of cron.
    #[error("{text:?}: {reason}")]
    Cron {
        /// What was written.
        text: String,
        /// What is wrong with it.
        reason: InvalidCron,
    },
}

/// When a job is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct When(Rhythm);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rhythm {
    Every(Duration),
    At(Cron),
}

impl When {
    /// Reads a length of time from run to run of at least `least`, a time of day `HH:MM`, or the five fields of cron.
    pub fn parse(text: &str, least: Duration) -> Result<Self, InvalidSchedule> {
        if let Ok(every) = parse_duration(text) {
            return match every >= least && every > Duration::ZERO {
                true => Ok(Self(Rhythm::Every(every))),
                false => Err(InvalidSchedule::TooOften { text: text.to_owned(), least }),
            };
        }
        let line = time_of_day(text).unwrap_or_else(|| text.to_owned());
        if line.split_whitespace().count() != cron::FIELDS {
            return Err(InvalidSchedule::Form(text.to_owned()));
        }
        let cron = line.parse().map_err(|reason| InvalidSchedule::Cron { text: text.to_owned(), reason })?;
        Ok(Self(Rhythm::At(cron)))
    }

    /// The first moment after `after_ms` that the schedule names, in the calendar of `zone`; milliseconds since 1970.
    #[must_use]
    pub fn next(&self, after_ms: u64, zone: &TimeZone) -> Option<u64> {
        match &self.0 {
            Rhythm::Every(every) => after_ms.checked_add(u64::try_from(every.as_millis()).ok()?),
            Rhythm::At(cron) => {
                let after = Timestamp::from_millisecond(i64::try_from(after_ms).ok()?).ok()?;
                u64::try_from(cron.next(after, zone)?.as_millisecond()).ok()
            }
        }
    }

    /// The length of time from run to run; `None` for moments of the calendar.
    #[must_use]
    pub fn every(&self) -> Option<Duration> {
        match &self.0 {
            Rhythm::Every(every) => Some(*every),
            Rhythm::At(_) => None,
        }
    }
}

/// `HH:MM` as a line of cron.
fn time_of_day(text: &str) -> Option<String> {
    let (hour, minute) = text.split_once(':')?;
    let two_digits = |text: &str| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    (two_digits(hour) && two_digits(minute)).then(|| format!("{minute} {hour} * * *"))
}
