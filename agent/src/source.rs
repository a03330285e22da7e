//! Where change streams come from.

mod change_list;
#[cfg(test)]
mod forest;
mod generation;
mod geometry;
mod map_walk;
mod pool_snapshot;

pub use change_list::{Base, ChangeList, Run, RunKind, Target, list_changes};
pub use generation::{GenerationSource, SourceStats};
pub use map_walk::{MapRun, MapWalk};
pub use pool_snapshot::PoolSource;
