//! What the kernel's table line says of a pool beside its devices: low water mark and features.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{PoolError, Result};

/// The kernel's `no_space_timeout`.
const NO_SPACE_TIMEOUT: Duration = Duration::from_secs(60);

/// How a pool behaves, as the arguments of the kernel's `thin-pool` target and of its module say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolTable {
    /// Free data blocks at which an event is raised, once until the table is loaded again.
    pub low_water_blocks: u64,
    /// Table features.
    pub features: Features,
    /// How long writes wait in a pool without free data blocks that queues them; zero means for ever. Of the kernel's
    /// module, not of its table: 60 s.
    pub no_space_timeout: Duration,
}

impl Default for PoolTable {
    fn default() -> Self {
        Self { low_water_blocks: 0, features: Features::default(), no_space_timeout: NO_SPACE_TIMEOUT }
    }
}

impl PoolTable {
    /// Without low water mark and features, but that a write without a free data block fails at once: for pools whose
    /// writer is the one who would have to make room.
    #[must_use]
    pub fn without_waiting() -> Self {
        Self { features: Features { error_if_no_space: true, ..Features::default() }, ..Self::default() }
    }
}

/// The table features of a thin pool; none is set by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// The part of a new block that a write does not cover keeps what the data device has there.
    pub skip_block_zeroing: bool,
    /// Discards are refused. Not to be changed while the pool is open.
    pub ignore_discard: bool,
    /// Discards unmap blocks, but do not give their space back.
    pub no_discard_passdown: bool,
    /// The metadata are not changed.
    pub read_only: bool,
    /// A write that finds no free data block fails at once. Else it waits for one.
    pub error_if_no_space: bool,
}

impl Features {
    /// The names of those that are set, in the order in which the kernel prints them.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let named = [
            (self.skip_block_zeroing, "skip_block_zeroing"),
            (self.ignore_discard, "ignore_discard"),
            (self.no_discard_passdown, "no_discard_passdown"),
            (self.read_only, "read_only"),
            (self.error_if_no_space, "error_if_no_space"),
        ];
        named.into_iter().filter_map(|(set, name)| set.then_some(name))
    }

    /// Sets the features of these names, which may be in capitals.
    ///
    /// # Errors
    /// [`PoolError::UnknownFeature`]; `EINVAL` with the kernel.
    pub fn of_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut features = Self::default();
        for name in names {
            let feature = match name.to_ascii_lowercase().as_str() {
                "skip_block_zeroing" => &mut features.skip_block_zeroing,
                "ignore_discard" => &mut features.ignore_discard,
                "no_discard_passdown" => &mut features.no_discard_passdown,
                "read_only" => &mut features.read_only,
                "error_if_no_space" => &mut features.error_if_no_space,
                _ => return Err(PoolError::UnknownFeature(name.to_owned())),
            };
            *feature = true;
        }
        Ok(features)
    }
}

/// As the kernel's table line has it behind the block size: `<low water mark> <#features> <features> `, each followed by a
/// space.
impl fmt::Display for PoolTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.low_water_blocks, self.features.names().count())?;
        self.features.names().try_for_each(|name| write!(f, "{name} "))
    }
}

/// Reads what [`Display`](fmt::Display) writes; as with the kernel the features may be left out.
impl FromStr for PoolTable {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || PoolError::InvalidTable(text.to_owned());
        let mut words = text.split_ascii_whitespace();
        let number = |word: &str| word.parse::<u64>().map_err(|_| invalid());
        let low_water_blocks = words.next().map(number).transpose()?.ok_or_else(invalid)?;
        // Rust takes a plus sign everywhere, the kernel not here.
        let count = words
            .next()
            .map_or(Ok(0), |word| if word.starts_with('+') { Err(invalid()) } else { number(word) })?;
        // The kernel takes four at most, although there are five, and looks at no further words.
        let count = usize::try_from(count).ok().filter(|count| *count <= 4).ok_or_else(invalid)?;
        let names: Vec<&str> = words.take(count).collect();
        if names.len() < count {
            return Err(invalid());
        }
        Ok(Self { low_water_blocks, features: Features::of_names(names)?, ..Self::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_read_as_the_kernel_prints_them() {
        for text in ["32 0 ", "32 1 skip_block_zeroing ", "0 2 ignore_discard error_if_no_space "] {
            assert_eq!(text.parse::<PoolTable>().unwrap().to_string(), text);
        }
        let loud: PoolTable = "7 1 READ_ONLY".parse().unwrap();
        assert!(loud.features.read_only && loud.low_water_blocks == 7);
        assert_eq!("7".parse::<PoolTable>().unwrap().to_string(), "7 0 ");
        assert_eq!("7 0 read_only".parse::<PoolTable>().unwrap().to_string(), "7 0 ");
    }

    #[test]
    fn tables_that_the_kernel_refuses_are_refused() {
        for text in ["", "x", "32 1", "32 9 a", "32 1 bogus", "-1 0"] {
            assert!(text.parse::<PoolTable>().is_err(), "{text:?}");
        }
        let five = "0 5 skip_block_zeroing ignore_discard no_discard_passdown read_only error_if_no_space";
        assert!(five.parse::<PoolTable>().is_err());
    }
}
