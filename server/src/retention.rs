//! What becomes of generations that are not wanted any more.
//!
//! 1. **Deleted**: a tombstone is stored, then the catalogue hides the generation. Its content stays.
//! 2. **Undeleted**, within the repository's grace period: a manifest with a higher revision is stored, then
//!    the catalogue shows the generation again.
//! 3. **Forgotten**, after it: a last tombstone ends all that is in the packs, then the row goes. From now on
//!    nothing can bring the generation back, and its content may be collected.
//!
//! In each the record is on stable storage before the catalogue changes, so that a catalogue made from the packs
//! agrees. Between the two a crash leaves a record that the catalogue does not know; whatever is done to the
//! generation next has a higher revision ([`next_revision`](crate::manifest::next_revision)) and ends it.

mod delete;
mod hidden;
mod plan;
mod policy;
pub(crate) mod prune;
mod renew;
#[cfg(test)]
mod tests;

pub(crate) use delete::{Kept, delete, forget_expired, protect, undelete};
pub(crate) use hidden::prune_hidden;
pub(crate) use plan::Candidate;
pub use policy::{KeepsNothing, Policy, RetentionRule};
pub(crate) use renew::{renew_manifests, settle_manifests};
