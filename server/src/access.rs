//! Who may do what.
//!
//! Every service is behind a [`Guarded`], which knows its calls by the one table, [`RULES`]: whom a call is for, and
//! where it names its volume. A call that is not in the table is refused. What a token does not cover looks as if it
//! were not there (exit code 10) where it is read; what it may not do, and adding to what it does not cover, is refused
//! (exit code 12) whether or not such a volume is there.
//!
//! In the server's own process, as with an embedded repository, a caller is an admin. On the loopback in the clear it
//! is one as long as no token was ever made; over TLS and from the first token on each call needs a token.
//!
//! Content is asked for by ids, which are hashes of it and come from maps: who knows an id is taken to know the
//! content. Whether a chunk is there is told to every token; that is not kept from tenants yet.

mod caller;
mod content;
mod gate;
mod generations;
mod ingest;
mod narrow;
mod rules;
mod service;
#[cfg(test)]
mod tests;
mod tokens;
mod watched;

pub(crate) use caller::Caller;
pub(crate) use gate::{Door, Gate};
pub(crate) use service::AccessService;
pub(crate) use tokens::Tokens;

/// A service, and who may call it.
pub(crate) struct Guarded<S> {
    inner: S,
    gate: Gate,
}

impl<S> Guarded<S> {
    /// `inner`, for those whom `gate` lets in.
    pub(crate) fn new(inner: S, gate: Gate) -> Self {
        Self { inner, gate }
    }
}
