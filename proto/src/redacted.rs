//! Messages that carry a secret, as they are shown in logs and errors.

use std::fmt;

use crate::v1::CreateTokenResponse;

impl fmt::Debug for CreateTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateTokenResponse").field("info", &self.info).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_was_made_is_not_shown() {
        let made = CreateTokenResponse { info: None, token: "tbk_secret".to_owned() };
        assert!(!format!("{made:?}").contains("secret"));
    }
}
