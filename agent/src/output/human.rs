//! Numbers and times for a person.

use indicatif::BinaryBytes;
use jiff::{Timestamp, tz::TimeZone};
use thinbak_proto::v1::{RecordKind, VerifyRecord};

/// `1.50 GiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}

/// RFC 3339 in local time, to the second.
pub(crate) fn time(ms: u64) -> String {
    at(ms, TimeZone::system(), "%Y-%m-%dT%H:%M:%S%:z")
}

/// RFC 3339 in UTC, to the millisecond.
pub(crate) fn utc(ms: u64) -> String {
    at(ms, TimeZone::UTC, "%Y-%m-%dT%H:%M:%S%.3fZ")
}

fn at(ms: u64, zone: TimeZone, format: &str) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .map(|timestamp| timestamp.to_zoned_datetime(zone).strftime(format).to_string())
        .unwrap_or_default()
}

/// `0.3 s`, `2 min 5 s`, `1 h 2 min`.
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    // Whole seconds of a duration that a clock measured are far below 2^53.
    let whole = seconds.round() as u64;
    match (whole / 3600, whole % 3600 / 60, whole % 60) {
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// `3 of 7 (42.9 %)`.
pub(crate) fn used(used: u64, total: u64) -> String {
    let percent = if total == 0 { 0.0 } else { used as f64 * 100.0 / total as f64 };
    format!("{used} of {total} ({percent:.1} %)")
}

/// What a record holds.
pub(crate) fn record_kind(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Chunk => "chunk",
        RecordKind::MapNode => "map node",
        RecordKind::Manifest => "manifest",
        RecordKind::Tombstone => "tombstone",
        RecordKind::Unspecified => "record",
    }
}

/// A damaged record, and where it lies.
pub(crate) fn damaged_record(record: &VerifyRecord) -> String {
    let (kind, id) = (record_kind(record.kind()), super::json::hex(&record.id));
    match record.pack {
        Some(pack) => {
            format!("damaged {kind} {id} in pack {pack:08x} at {}: {}", record.offset_bytes, record.reason)
        }
        None => format!("lost {kind} {id}: {}", record.reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(bytes(3 << 19), "1.50 MiB");
        assert_eq!(seconds(0.26), "0.3 s");
        assert_eq!(seconds(125.0), "2 min 5 s");
        assert_eq!(seconds(3725.0), "1 h 2 min");
        assert_eq!(used(3, 7), "3 of 7 (42.9 %)");
        assert_eq!(used(0, 0), "0 of 0 (0.0 %)");
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(utc(1_795_435_200_123), "2026-11-23T12:00:00.123Z");
        assert!(time(1_795_435_200_123).parse::<Timestamp>().is_ok());
    }
}
