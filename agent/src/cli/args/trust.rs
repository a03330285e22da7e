//! What may be typed of the trust in a server.

use std::path::PathBuf;

use clap::Args;

use crate::config::Trust;

#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct TrustArgs {
    /// The one certificate that the server must have, as `thinbak-server fingerprint` prints it [env: THINBAK_FINGERPRINT]
    #[arg(long, global = true, value_name = "sha256:HEX", conflicts_with = "ca")]
    fingerprint: Option<String>,
    /// Certificates (PEM) of those who may vouch for the server's [env: THINBAK_CA_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// File with the token for the server [env: THINBAK_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificate (PEM) of this client, where the server asks for one [env: THINBAK_CLIENT_CERT]
    #[arg(long, global = true, value_name = "FILE")]
    client_cert: Option<PathBuf>,
    /// Its private key (PEM) [env: THINBAK_CLIENT_KEY]
    #[arg(long, global = true, value_name = "FILE")]
    client_key: Option<PathBuf>,
}

impl From<TrustArgs> for Trust {
    fn from(typed: TrustArgs) -> Self {
        Self {
            fingerprint: typed.fingerprint,
            ca: typed.ca,
            token_file: typed.token_file,
            client_certificate: typed.client_cert,
            client_key: typed.client_key,
        }
    }
}
