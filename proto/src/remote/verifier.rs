//! A certificate that is accepted because it is known.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, PeerMisbehaved, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::Fingerprint;

/// Another certificate than the pinned one.
#[derive(Debug, thiserror::Error)]
#[error("its certificate is {found}, not the pinned {pinned}")]
pub(super) struct WrongCertificate {
    found: Fingerprint,
    pinned: Fingerprint,
}

/// Accepts exactly one certificate, whatever names and times are in it; that its key is there, the handshake proves.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) pinned: Fingerprint,
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match Fingerprint::of(end_entity) {
            found if found == self.pinned => Ok(ServerCertVerified::assertion()),
            found => Err(Error::Other(OtherError(Arc::new(WrongCertificate { found, pinned: self.pinned })))),
        }
    }

    /// Never called: version 1.3 only is spoken.
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedCipherSuite))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadSignature))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
