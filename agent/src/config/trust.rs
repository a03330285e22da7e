//! What a server is trusted by, and who asks there.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use thinbak_proto::{
    Failed, FailureKind,
    v1::{ServerAddress, repository_address::Address},
};

use super::text;

/// What one place says of the trust in a server. Secrets are in files only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// `sha256:HEX` of the one certificate that is accepted.
    pub fingerprint: Option<String>,
    /// Certificates of those who may vouch for the server's.
    pub ca: Option<PathBuf>,
    /// The file with the token.
    pub token_file: Option<PathBuf>,
    /// A certificate of this host's own, where the server asks for one.
    pub client_certificate: Option<PathBuf>,
    /// Its private key.
    pub client_key: Option<PathBuf>,
}

impl Trust {
    /// This, and what it does not say from `lower`. Fingerprint and CA are one choice.
    #[must_use]
    pub(super) fn over(self, lower: Self) -> Self {
        let chosen = self.fingerprint.is_some() || self.ca.is_some();
        let (fingerprint, ca) =
            if chosen { (self.fingerprint, self.ca) } else { (lower.fingerprint, lower.ca) };
        Self {
            fingerprint,
            ca,
            token_file: self.token_file.or(lower.token_file),
            client_certificate: self.client_certificate.or(lower.client_certificate),
            client_key: self.client_key.or(lower.client_key),
        }
    }

    /// The files that are named.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        let paths = [&self.ca, &self.token_file, &self.client_certificate, &self.client_key];
        paths.into_iter().filter_map(Option::as_deref)
    }

    /// The server at `url`, trusted by this. Relative paths are relative to `directory`.
    pub(super) fn of(self, url: &str, directory: &Path) -> Result<Address, Failed> {
        if self == Self::default() {
            return Ok(Address::Url(url.to_owned()));
        }
        if self.fingerprint.as_deref() == Some("") {
            let message = format!("trust the server {url}: the fingerprint that is named is empty");
            return Err(Failed::new(FailureKind::Usage, message)
                .with_hint("`thinbak-server fingerprint` on the server prints it"));
        }
        let path = |what: &str, path: Option<PathBuf>| match path {
            Some(path) => text(what, directory.join(path).into_os_string()),
            None => Ok(String::new()),
        };
        Ok(Address::Server(ServerAddress {
            url: url.to_owned(),
            fingerprint: self.fingerprint.unwrap_or_default(),
            ca_file: path("the path of the CA file", self.ca)?,
            token_file: path("the path of the token file", self.token_file)?,
            certificate_file: path("the path of the client's certificate", self.client_certificate)?,
            key_file: path("the path of the client's key", self.client_key)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_comes_from_below_but_fingerprint_and_ca_are_one_choice() {
        let low = Trust {
            fingerprint: Some("sha256:1".to_owned()),
            token_file: Some("/low".into()),
            ..Trust::default()
        };
        let high = Trust { ca: Some("ca.pem".into()), ..Trust::default() };
        let Address::Server(server) = high.over(low).of("https://s:1", Path::new("/here")).unwrap() else {
            panic!()
        };
        assert_eq!((server.fingerprint.as_str(), server.ca_file.as_str()), ("", "/here/ca.pem"));
        assert_eq!(server.token_file, "/low");
    }

    #[test]
    fn an_empty_fingerprint_is_none_that_a_server_could_have() {
        let low = Trust { fingerprint: Some("sha256:1".to_owned()), ..Trust::default() };
        let high = Trust { fingerprint: Some(String::new()), ..Trust::default() };
        assert_eq!(high.over(low).of("https://s:1", Path::new("/")).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_server_of_which_nothing_is_said_is_a_url() {
        assert_eq!(
            Trust::default().of("http://s", Path::new("/")).unwrap(),
            Address::Url("http://s".to_owned())
        );
    }
}
