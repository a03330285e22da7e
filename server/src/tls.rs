//! Serving over TLS: the certificate, connections that come in, and what keeps those from hurting that never say
//! anything.

mod certificates;
mod connection;
mod incoming;
mod places;
#[cfg(test)]
mod tests;

pub use certificates::{Certificates, TlsError, TlsFiles, make_certificate};
pub use connection::Peer;
pub(crate) use incoming::incoming;
