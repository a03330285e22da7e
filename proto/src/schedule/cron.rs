//! The five fields of cron: minute, hour, day of the month, month, day of the week (0 and 7 are Sunday). Each is
//! `*` or a list of numbers and ranges, `/N` takes every Nth of them. As in cron, when both days are restricted one of the two is
//! enough.
//!
//! Own code, for the library there is (croner 4) is no shorter way to the same: it works on another version of jiff, runs a
//! moment that clocks leave out when they are put forward rather than as much later, takes `*/2` for a day that is
//! restricted, and accepts lines that are never.
//!
//! When clocks are put forward, a moment that is left out comes as much later; when they are put back, one that comes
//! twice is taken the first time only.

use std::str::FromStr;

use jiff::{Timestamp, ToSpan as _, civil::Date, tz::TimeZone};

/// Fields of a line.
pub(super) const FIELDS: usize = 5;
/// 29 February may be eight years away.
const MAX_DAYS: usize = 8 * 366 + 1;

/// A line that is not one of cron.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCron {
    /// Neither `*` nor numbers.
    #[error("{part:?} is no {field}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What stands there.
        part: String,
    },
    /// Out of bounds.
    #[error("{field} {number} is not from {least} to {most}")]
    Bounds {
        /// Which field.
        field: &'static str,
        /// What stands there.
        number: u8,
        /// The first that there is.
        least: u8,
        /// The last.
        most: u8,
    },
    /// There is no such day.
    #[error("that is never")]
    Never,
}

/// A set of numbers below 64, and whether it is all that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field {
    numbers: u64,
    any: bool,
}

impl Field {
    fn parse(text: &str, field: &'static str, least: u8, most: u8) -> Result<Self, InvalidCron> {
        let mut numbers = 0;
        for part in text.split(',') {
            let wrong = || InvalidCron::Field { field, part: part.to_owned() };
            let number = |text: &str| {
                let number = text.parse::<u8>().map_err(|_| wrong())?;
                match (least..=most).contains(&number) {
                    true => Ok(number),
                    false => Err(InvalidCron::Bounds { field, number, least, most }),
                }
            };
            let (range, step) = match part.split_once('/') {
                Some((range, step)) => (range, step.parse::<u8>().map_err(|_| wrong())?),
                None => (part, 1),
            };
            let (first, last) = match range.split_once('-') {
                _ if range == "*" => (least, most),
                Some((first, last)) => (number(first)?, number(last)?),
                // `5/15` goes on to the end, as in cron.
                None if part.contains('/') => (number(range)?, most),
                None => (number(range)?, number(range)?),
            };
            if step == 0 || first > last {
                return Err(wrong());
            }
            for number in (first..=last).step_by(step.into()) {
                numbers |= 1 << number;
            }
        }
        Ok(Self { numbers, any: text.starts_with('*') })
    }

    fn has(self, number: i8) -> bool {
        u32::try_from(number)
            .ok()
            .and_then(|number| 1u64.checked_shl(number))
            .is_some_and(|bit| self.numbers & bit != 0)
    }
}

/// Moments of the calendar, to the minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cron {
    minute: Field,
    hour: Field,
    day: Field,
    month: Field,
    weekday: Field,
}

impl FromStr for Cron {
    type Err = InvalidCron;

    fn from_str(text: &str) -> Result<Self, InvalidCron> {
        let mut fields = text.split_whitespace();
        let mut field =
            |name, least, most| Field::parse(fields.next().unwrap_or_default(), name, least, most);
        let cron = Self {
            minute: field("minute", 0, 59)?,
            hour: field("hour", 0, 23)?,
            day: field("day of the month", 1, 31)?,
            month: field("month", 1, 12)?,
            weekday: field("day of the week", 0, 7)?,
        };
        match cron.next(Timestamp::UNIX_EPOCH, &TimeZone::UTC) {
            Some(_) => Ok(cron),
            None => Err(InvalidCron::Never),
        }
    }
}

impl Cron {
    /// The first moment after `after`, in the calendar of `zone`.
    #[must_use]
    pub(super) fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let today = after.to_zoned_datetime(zone.clone()).date();
        let mut days = std::iter::successors(Some(today), |day| day.checked_add(1.day()).ok()).take(MAX_DAYS);
        days.find_map(|day| self.moments(day, zone).filter(|moment| *moment > after).min())
    }

    fn moments(&self, day: Date, zone: &TimeZone) -> impl Iterator<Item = Timestamp> {
        let hours = (0..24).filter(move |_| self.has_day(day)).filter(|hour| self.hour.has(*hour));
        let minutes = hours.flat_map(|hour| {
            (0..60).filter(|minute| self.minute.has(*minute)).map(move |minute| (hour, minute))
        });
        minutes.filter_map(move |(hour, minute)| {
            Some(day.at(hour, minute, 0, 0).to_zoned_datetime(zone.clone()).ok()?.timestamp())
        })
    }

    fn has_day(&self, day: Date) -> bool {
        let weekday = day.weekday().to_sunday_zero_offset();
        let (of_month, of_week) =
            (self.day.has(day.day()), self.weekday.has(weekday) || (weekday == 0 && self.weekday.has(7)));
        let day_fits = match (self.day.any, self.weekday.any) {
            (false, false) => of_month || of_week,
            _ => of_month && of_week,
        };
        self.month.has(day.month()) && day_fits
    }
}
