//! Names of several volumes at once.

use std::fmt;

/// Longer than any volume's name.
const MAX_LEN: usize = 1024;

/// A text that is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// It would match nothing.
    #[error("the pattern is empty")]
    Empty,
    /// It is longer than any name.
    #[error("the pattern is longer than {MAX_LEN} bytes")]
    TooLong,
}

/// A pattern of volume names: `*` is any text, also across `/`, and `?` any one character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// The pattern that is written so.
    pub fn new(text: &str) -> Result<Self, InvalidPattern> {
        match text.len() {
            0 => Err(InvalidPattern::Empty),
            1..=MAX_LEN => Ok(Self(text.to_owned())),
            _ => Err(InvalidPattern::TooLong),
        }
    }

    /// Whether a text is more than a plain name.
    #[must_use]
    pub fn is_pattern(text: &str) -> bool {
        text.contains(['*', '?'])
    }

    /// Whether the whole name matches. Takes time in the product of both lengths at most: after a mismatch only
    /// the last `*` is tried further on, for what an earlier one could take instead, that one can take too.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (mut pattern, mut rest) = (self.0.chars(), name.chars());
        let mut retry = None;
        loop {
            let at = rest.clone();
            match (pattern.next(), rest.next()) {
                (Some('*'), _) => {
                    // Takes nothing first.
                    rest = at.clone();
                    retry = Some((pattern.clone(), at));
                }
                (Some('?'), Some(_)) => {}
                (Some(wanted), Some(found)) if wanted == found => {}
                (None, None) => return true,
                _ => {
                    let Some((after_star, mut taken)) = retry.take() else { return false };
                    if taken.next().is_none() {
                        return false;
                    }
                    (pattern, rest) = (after_star.clone(), taken.clone());
                    retry = Some((after_star, taken));
                }
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_take_any_text_and_question_marks_one_character() {
        for (pattern, name, matches) in [
            ("*", "host/pool/v", true),
            ("host/*", "host/vg/pool/v", true),
            ("host/pool/*", "host/pool2/v", false),
            ("*/web", "host/pool/web", true),
            ("*/web", "host/pool/web2", false),
            ("h?st/*/v", "hést/p/v", true),
            ("h?st/*/v", "hst/p/v", false),
            ("a*b*c", "a-b-b-c-c", true),
            ("a*b*c", "a-c-b", false),
            ("a**", "a", true),
            ("?", "", false),
            ("plain", "plain", true),
            ("plain", "plainer", false),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn many_stars_do_not_take_for_ever() {
        let pattern = Pattern::new(&"*a".repeat(500)).unwrap();
        assert!(!pattern.matches(&format!("{}b", "a".repeat(500))));
    }

    #[test]
    fn what_matches_nothing_or_is_endless_is_no_pattern() {
        assert_eq!(Pattern::new(""), Err(InvalidPattern::Empty));
        assert_eq!(Pattern::new(&"x".repeat(1025)), Err(InvalidPattern::TooLong));
    }
}
