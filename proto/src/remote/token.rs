//! Who asks.

use std::{fmt, fs::File, io::Read as _, path::Path};

use tonic::codegen::http::HeaderValue;
use zeroize::Zeroizing;

use crate::{Failed, FailureKind};

const PREFIX: &str = "tbk_";
/// Hexadecimal digits of the id of a token: 64 bits.
pub const ID_DIGITS: usize = 16;
/// Hexadecimal digits of 256 bits.
const SECRET_DIGITS: usize = 64;
const TOKEN_LEN: usize = PREFIX.len() + ID_DIGITS + 1 + SECRET_DIGITS;

/// A text that is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no token, which is tbk_ID_SECRET")]
pub struct InvalidToken;

/// `tbk_ID_SECRET`: 64 random bits that name it, and 256 that are the secret, in lower-case hexadecimal digits. Wiped
/// from memory when dropped, and never shown: [`Token::text`] is for the one who made it.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Token").field(&self.id()).finish()
    }
}

impl Token {
    /// A new one, of the system's secure randomness.
    ///
    /// # Panics
    /// Never: aws-lc ends the process where the system has no randomness.
    #[must_use]
    pub fn draw() -> Self {
        let mut random = Zeroizing::new([0; 40]);
        // It cannot fail once it is seeded; a token of zeros would be refused by `parse`.
        let drawn = aws_lc_rs::rand::fill(random.as_mut_slice());
        let mut text = Zeroizing::new(String::with_capacity(TOKEN_LEN));
        text.push_str(PREFIX);
        for (place, byte) in random.iter().enumerate().filter(|_| drawn.is_ok()) {
            if place * 2 == ID_DIGITS {
                text.push('_');
            }
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(digit), 16).unwrap_or_default());
            }
        }
        Self(text)
    }

    /// Understands a token.
    pub fn parse(text: &str) -> Result<Self, InvalidToken> {
        let is_hex =
            |part: &str| part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        let (id, secret) =
            text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).ok_or(InvalidToken)?;
        if id.len() == ID_DIGITS && secret.len() == SECRET_DIGITS && is_hex(id) && is_hex(secret) {
            Ok(Self(Zeroizing::new(text.to_owned())))
        } else {
            Err(InvalidToken)
        }
    }

    /// Reads the file that a token is kept in. Space around it does not count.
    pub fn read(path: &Path) -> Result<Self, Failed> {
        let failed = |why: String| {
            Failed::new(FailureKind::Usage, format!("read token file {}: {why}", path.display()))
        };
        let mut text = Zeroizing::new(String::with_capacity(4096));
        let read = File::open(path).and_then(|file| file.take(4096).read_to_string(&mut text));
        read.map_err(|error| failed(error.to_string()))?;
        Self::parse(text.trim()).map_err(|error| {
            failed(error.to_string()).with_hint("`thinbak-server token create` on the server prints one")
        })
    }

    /// What names it; not secret.
    #[must_use]
    pub fn id(&self) -> &str {
        self.0.get(PREFIX.len()..PREFIX.len() + ID_DIGITS).unwrap_or_default()
    }

    /// The secret part, as it is written.
    #[must_use]
    pub fn secret(&self) -> &str {
        self.0.get(PREFIX.len() + ID_DIGITS + 1..).unwrap_or_default()
    }

    /// All of it, to be shown once.
    #[must_use]
    pub fn text(&self) -> &Zeroizing<String> {
        &self.0
    }

    /// As the value of the header `authorization`.
    pub(super) fn header(&self) -> HeaderValue {
        let text = Zeroizing::new(format!("Bearer {}", self.0.as_str()));
        // Of printable characters, as `parse` made sure.
        let mut value = HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""));
        value.set_sensitive(true);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_shown_and_hides_its_secret() {
        let token = Token::draw();
        let read = Token::parse(token.text()).unwrap();
        assert_eq!((read.id(), read.secret()), (token.id(), token.secret()));
        assert_eq!((token.id().len(), token.secret().len()), (16, 64));
        assert_ne!(Token::draw().secret(), token.secret());
        let shown = format!("{token:?} {:?}", token.header());
        assert!(shown.contains(token.id()) && !shown.contains(token.secret()), "{shown}");
    }

    #[test]
    fn what_is_cut_or_longer_or_no_token_is_refused() {
        let token = Token::draw();
        let text = token.text().as_str();
        let bad =
            ["", "tbk_", &text[..text.len() - 1], &format!("{text}0"), &text[1..], &text.to_uppercase()];
        for bad in bad {
            assert!(Token::parse(bad).is_err(), "{bad}");
        }
    }
}
