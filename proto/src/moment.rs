//! Moments as both programs write them.

use jiff::{Timestamp, tz::TimeZone};

/// RFC 3339 in UTC, to the millisecond; `ms` since 1970. Empty for a moment that no calendar has.
pub fn format_utc(ms: u64) -> String {
    at(ms, TimeZone::UTC, "%Y-%m-%dT%H:%M:%S%.3fZ")
}

/// RFC 3339 in local time, to the second: the calendar that retention goes by.
pub fn format_local(ms: u64) -> String {
    at(ms, TimeZone::system(), "%Y-%m-%dT%H:%M:%S%:z")
}

fn at(ms: u64, zone: TimeZone, format: &str) -> String {
    let moment = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    moment.map(|moment| moment.to_zoned_datetime(zone).strftime(format).to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_to_the_millisecond_and_those_beyond_the_calendar_not_at_all() {
        assert_eq!(format_utc(1_795_435_200_123), "2026-11-23T12:00:00.123Z");
        assert_eq!(format_local(1_795_435_200_123).len(), "2026-11-23T12:00:00+00:00".len());
        assert_eq!(format_utc(u64::MAX), "");
    }
}
