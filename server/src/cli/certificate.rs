//! The server's certificate, as commands make and show it.

use std::path::Path;

use thinbak_proto::{Failed, FailureKind, remote::Fingerprint};
use thinbak_server::{TlsFiles, config::Config, make_certificate};

use super::{arguments::TlsArguments, output::Output};

/// The files that are named, on the command line or else in the configuration, else those of the repository. The second
/// value: whether TLS is asked for at all.
pub(super) fn files(
    typed: TlsArguments,
    config: &Config,
    repository: &Path,
) -> Result<(TlsFiles, bool), Failed> {
    let said = config.tls.clone().unwrap_or_default();
    let asked = typed != TlsArguments::default() || config.tls.is_some();
    let usual = TlsFiles::of_repository(repository);
    let (certificate, key) = match (typed.tls_cert, typed.tls_key) {
        (None, None) => (said.certificate, said.key),
        named => named,
    };
    let client_ca = typed.client_ca.or(said.client_ca);
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok((TlsFiles { certificate, key, client_ca }, asked)),
        (None, None) => Ok((TlsFiles { client_ca, ..usual }, asked)),
        _ => Err(Failed::new(FailureKind::Usage, "a certificate needs its key, and a key its certificate")
            .with_hint("name both, --tls-cert FILE and --tls-key FILE, or neither")),
    }
}

/// The fingerprint of a new repository's certificate, which is made unless one is named.
pub(super) fn of_new(typed: TlsArguments, names: &[String], dir: &Path) -> Result<Fingerprint, Failed> {
    let made = typed == TlsArguments::default();
    let (files, _) = files(typed, &Config::default(), dir)?;
    Ok(if made { make_certificate(&files, names)? } else { files.fingerprint()? })
}

/// Prints the fingerprint; makes a certificate before, where that is asked for.
pub(super) fn fingerprint(
    files: &TlsFiles,
    make: bool,
    names: &[String],
    output: &Output,
) -> Result<u8, Failed> {
    let fingerprint = if make { make_certificate(files, names)? } else { files.fingerprint()? };
    output.fingerprint(&fingerprint);
    Ok(0)
}
