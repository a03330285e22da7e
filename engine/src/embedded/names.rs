//! What a volume and a snapshot may be called.

use uuid::Uuid;

/// Snapshots whose name begins so are thinbak's own.
pub const RESERVED_PREFIX: &str = "thinbak-";
/// The longest name in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// The rule that a name breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing.
    #[error("it is empty")]
    Empty,
    /// Too long.
    #[error("it has {bytes} bytes, at most {MAX_NAME_BYTES} are possible")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A character that separates names, or that no terminal should see.
    #[error("it contains {character:?}")]
    Character {
        /// The first of them.
        character: char,
    },
    /// A first character that would be taken for an option or a hidden file.
    #[error("it begins with {character:?}")]
    Start {
        /// The character.
        character: char,
    },
    /// A name that thinbak gives itself.
    #[error("names that begin with `{RESERVED_PREFIX}` are thinbak's own")]
    Reserved,
}

/// Checks the name of a volume.
///
/// # Errors
/// The rule that it breaks.
pub fn check_volume_name(name: &str) -> Result<(), NameError> {
    if name.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong { bytes: name.len() });
    }
    match name.chars().next() {
        None => return Err(NameError::Empty),
        Some(character @ ('-' | '.')) => return Err(NameError::Start { character }),
        Some(_) => {}
    }
    match name.chars().find(|&c| matches!(c, '/' | ':' | '@') || c.is_control()) {
        Some(character) => Err(NameError::Character { character }),
        None => Ok(()),
    }
}

/// Checks the name that a user gives to a snapshot.
///
/// # Errors
/// The rule that it breaks.
pub fn check_snapshot_name(name: &str) -> Result<(), NameError> {
    check_volume_name(name)?;
    if name.starts_with(RESERVED_PREFIX) { Err(NameError::Reserved) } else { Ok(()) }
}

/// The name under which a base is visible.
pub(super) fn base_name(repository: Uuid, generation: u64) -> String {
    let (first, ..) = repository.as_fields();
    format!("{RESERVED_PREFIX}base-{first:08x}-{generation}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_taken() {
        for name in ["a", "web-01", "db.main", "ä ö", "x".repeat(128).as_str(), "thinbak-data", "#1"] {
            assert_eq!(check_volume_name(name), Ok(()), "{name}");
        }
        assert_eq!(check_snapshot_name("before-upgrade"), Ok(()));
    }

    #[test]
    fn names_that_break_a_rule_are_refused_with_it() {
        let cases = [
            ("", NameError::Empty),
            ("-a", NameError::Start { character: '-' }),
            (".a", NameError::Start { character: '.' }),
            ("a/b", NameError::Character { character: '/' }),
            ("a:b", NameError::Character { character: ':' }),
            ("a@b", NameError::Character { character: '@' }),
            ("a\nb", NameError::Character { character: '\n' }),
            ("a\u{85}", NameError::Character { character: '\u{85}' }),
        ];
        for (name, error) in cases {
            assert_eq!(check_volume_name(name), Err(error), "{name:?}");
            assert_eq!(check_snapshot_name(name), Err(error), "{name:?}");
        }
        assert_eq!(check_volume_name(&"x".repeat(129)), Err(NameError::TooLong { bytes: 129 }));
        assert_eq!(check_snapshot_name("thinbak-base-1"), Err(NameError::Reserved));
    }

    #[test]
    fn a_base_is_named_after_its_repository_and_generation() {
        let repository = Uuid::parse_str("0123abcd-0000-4000-8000-000000000000").unwrap();
        assert_eq!(base_name(repository, 17), "thinbak-base-0123abcd-17");
    }
}
