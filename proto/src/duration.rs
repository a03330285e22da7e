//! Lengths of time as people write them: `90s`, `15min`, `36h`, `2d`, `1w2d`, `1y`.

use std::time::Duration;

/// A text that is no length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDuration {
    /// Not number and unit in turn.
    #[error("{0:?} is no length of time like 12h, 7d or 1w2d")]
    Form(String),
    /// Neither minutes nor months are called so here.
    #[error("the unit `m` may be minutes or months: write `min`, or so many days")]
    Ambiguous,
    /// More than 2^64 seconds.
    #[error("{0:?} is too long")]
    TooLong(String),
}

/// The units, longest first. A day has 24 hours and a year 365 days.
const UNITS: [(&str, u64); 6] =
    [("y", 365 * 86_400), ("w", 7 * 86_400), ("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];

/// Reads a length of time: numbers, each with its unit, which are added up.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let form = || InvalidDuration::Form(text.to_owned());
    let too_long = || InvalidDuration::TooLong(text.to_owned());
    let (mut rest, mut seconds) = (text, 0u64);
    if rest.is_empty() {
        return Err(form());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(form)?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        if number.is_empty() {
            return Err(form());
        }
        if unit == "m" {
            return Err(InvalidDuration::Ambiguous);
        }
        let (_, unit_seconds) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(form)?;
        let number: u64 = number.parse().map_err(|_| too_long())?;
        let part = number.checked_mul(unit_seconds).ok_or_else(too_long)?;
        seconds = seconds.checked_add(part).ok_or_else(too_long)?;
        rest = after;
    }
    Ok(Duration::from_secs(seconds))
}

/// Writes a length of time so that [`parse_duration`] reads it: in days and less, whole seconds.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut seconds = duration.as_secs();
    let mut text = String::new();
    for (unit, unit_seconds) in UNITS.into_iter().skip(2) {
        if seconds >= unit_seconds {
            text.push_str(&format!("{}{unit}", seconds / unit_seconds));
            seconds %= unit_seconds;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read() {
        for (text, seconds) in [
            ("90s", 90),
            ("15min", 900),
            ("36h", 129_600),
            ("2d", 172_800),
            ("1w2d", 777_600),
            ("1y", 31_536_000),
            ("1d1d", 172_800),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_length_of_time_is_refused() {
        for text in ["", "d", "2", "2 d", "-2d", "2D", "2dd", "1.5h", "2d3", "é"] {
            assert_eq!(parse_duration(text), Err(InvalidDuration::Form(text.into())), "{text:?}");
        }
        assert_eq!(parse_duration("3m"), Err(InvalidDuration::Ambiguous));
        for text in ["99999999999999999999s", "9999999999999999999y", "18446744073709551615s1s"] {
            assert!(matches!(parse_duration(text), Err(InvalidDuration::TooLong(_))), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for seconds in [0, 1, 59, 60, 3_600, 86_399, 86_400, 604_800, 90_061, u64::MAX] {
            let duration = Duration::from_secs(seconds);
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
        assert_eq!(format_duration(Duration::from_secs(2 * 86_400 + 3_600)), "2d1h");
    }
}
