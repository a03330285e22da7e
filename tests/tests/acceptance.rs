//! What the thin suites of dmtest-python and of device-mapper-test-suite ask of a pool, asked of the engine.
//!
//! The table in `tests/README.md` says which of their tests is covered by which of ours. After each, as in those suites,
//! `thin_check` is asked about the metadata.

#[path = "acceptance/creation.rs"]
mod creation;
#[path = "acceptance/deletion.rs"]
mod deletion;
#[path = "acceptance/discard.rs"]
mod discard;
#[path = "acceptance/external_origin.rs"]
mod external_origin;
#[path = "acceptance/held_root.rs"]
mod held_root;
#[path = "acceptance/life.rs"]
mod life;
#[path = "acceptance/place.rs"]
mod place;
#[path = "acceptance/read_only.rs"]
mod read_only;
#[path = "acceptance/resize.rs"]
mod resize;
#[path = "acceptance/restore.rs"]
mod restore;
#[path = "acceptance/snapshot.rs"]
mod snapshot;
#[path = "acceptance/space.rs"]
mod space;
#[path = "acceptance/table.rs"]
mod table;
#[path = "acceptance/thin_delta.rs"]
mod thin_delta;
#[path = "acceptance/tools.rs"]
mod tools;
