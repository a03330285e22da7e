//! `[guard]`: how much of a pool is left alone.

use std::fmt;

use serde::Deserialize;

use super::parse_size;

/// What must stay free in a pool, and how many snapshots may be in it. Jobs are refused rather than go beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardLimits {
    /// Of the data device.
    pub min_free_data: Share,
    /// Of the metadata device.
    pub min_free_metadata: Share,
    /// Snapshots and bases together.
    pub max_snapshots: u64,
}

impl Default for GuardLimits {
    fn default() -> Self {
        Self { min_free_data: Share::Percent(5), min_free_metadata: Share::Percent(5), max_snapshots: 10_000 }
    }
}

/// A part of a device: `5%`, or a size, `10G`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Share {
    /// Of all of it.
    Percent(u8),
    /// So much, however large it is.
    Bytes(u64),
}

impl Share {
    /// In bytes, of a device of so many.
    #[must_use]
    pub fn of(self, total_bytes: u64) -> u64 {
        match self {
            Self::Percent(percent) => {
                u64::try_from(u128::from(total_bytes) * u128::from(percent) / 100).unwrap_or(u64::MAX)
            }
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl TryFrom<String> for Share {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let Some(number) = text.strip_suffix('%') else { return parse_size(&text).map(Self::Bytes) };
        match number.trim_end().parse() {
            Ok(percent) if percent <= 90 => Ok(Self::Percent(percent)),
            _ => Err(format!("`{text}` is no share: a whole number from 0% to 90%, or a size like 10G")),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => write!(f, "{bytes} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_percentage_or_a_size() {
        let parse = |text: &str| Share::try_from(text.to_owned());
        assert_eq!(parse("5%").unwrap().of(1000), 50);
        assert_eq!(parse("0%").unwrap().of(u64::MAX), 0);
        assert_eq!(parse("90 %").unwrap().of(u64::MAX), u64::MAX / 10 * 9 + 4);
        assert_eq!(parse("2M").unwrap().of(10), 2 << 20);
        for wrong in ["", "%", "91%", "-1%", "5.5%", "x", "5%%"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
