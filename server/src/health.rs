//! How a repository is: ok, degraded (it works, but not all of it, or not for long), or down.
//!
//! Nothing is remembered here. Whoever meets a failure notes it where it happens; this page asks all of them. Who is
//! asked with such a note tries again, with a write that changes nothing, and takes the note back when that succeeds.
//! So recovery needs no hand, nor a client that tries.

use std::fmt;

use crate::{repository::Repository, store::StoreError};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// The file system is full.
    NoSpace,
    /// Packs or the chunk index cannot be written.
    Writing,
    /// The catalogue cannot be written.
    Catalogue,
    /// The catalogue cannot be read.
    CatalogueUnreadable,
    /// Packs are missing or damaged, or were when the repository was opened.
    Packs,
    /// Records are damaged that generations may need, and that no backup has replaced yet.
    Damage,
    /// The repository is being closed.
    Stopping,
}

impl Cause {
    /// In metrics and JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoSpace => "no_space",
            Self::Writing => "writing",
            Self::Catalogue => "catalogue",
            Self::CatalogueUnreadable => "catalogue_unreadable",
            Self::Packs => "packs",
            Self::Damage => "damage",
            Self::Stopping => "stopping",
        }
    }

    /// Whether new backups must fail.
    fn stops_writing(self) -> bool {
        !matches!(self, Self::Packs | Self::Damage)
    }

    /// Whether nothing works.
    fn stops_reading(self) -> bool {
        matches!(self, Self::CatalogueUnreadable | Self::Stopping)
    }
}

/// The worst that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Ok,
    Degraded,
    Down,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Down => "down",
        })
    }
}

/// Everything that is wrong, with a line for people each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) causes: Vec<(Cause, String)>,
}

impl Health {
    pub(crate) fn state(&self) -> State {
        match &self.causes[..] {
            [] => State::Ok,
            causes if causes.iter().any(|(cause, _)| cause.stops_reading()) => State::Down,
            _ => State::Degraded,
        }
    }

    /// Whether a backup can succeed.
    pub(crate) fn takes_backups(&self) -> bool {
        !self.causes.iter().any(|(cause, _)| cause.stops_writing())
    }

    /// Whether a restore can succeed.
    pub(crate) fn serves_reads(&self) -> bool {
        !self.causes.iter().any(|(cause, _)| cause.stops_reading())
    }
}

impl Repository {
    /// How the repository is now.
    pub(crate) async fn health(&self) -> Health {
        let mut causes = Vec::new();
        if *self.stopping().borrow() {
            causes.push((Cause::Stopping, "the server is stopping".to_owned()));
        }
        match self.store.write_failure().await {
            Some(error @ StoreError::NoSpace { .. }) => causes.push((Cause::NoSpace, error.to_string())),
            Some(error) => causes.push((Cause::Writing, error.to_string())),
            None => {}
        }
        match self.catalogue.probe().await {
            Err(error) => causes.push((Cause::CatalogueUnreadable, error.to_string())),
            Ok(()) => {
                let failure = self.catalogue.write_failure().await;
                causes.extend(failure.map(|failure| (Cause::Catalogue, failure)));
            }
        }
        let problems = self.store.problems();
        if let Some(first) = problems.first() {
            let others = problems.len() - 1;
            let more = if others == 0 { String::new() } else { format!(", and {others} more") };
            causes.push((Cause::Packs, format!("{first}{more}")));
        }
        match self.store.unhealed() {
            0 => {}
            count => causes.push((Cause::Damage, format!("{count} damaged records are in quarantine"))),
        }
        Health { causes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(causes: &[Cause]) -> Health {
        Health { causes: causes.iter().map(|cause| (*cause, String::new())).collect() }
    }

    #[test]
    fn a_full_disk_degrades_and_an_unreadable_catalogue_is_down() {
        assert_eq!(with(&[]).state(), State::Ok);
        for cause in [Cause::NoSpace, Cause::Writing, Cause::Catalogue] {
            let health = with(&[cause]);
            assert_eq!(
                (health.state(), health.takes_backups(), health.serves_reads()),
                (State::Degraded, false, true)
            );
        }
        for cause in [Cause::Packs, Cause::Damage] {
            let health = with(&[cause]);
            assert_eq!(
                (health.state(), health.takes_backups(), health.serves_reads()),
                (State::Degraded, true, true)
            );
        }
        let down = with(&[Cause::Damage, Cause::CatalogueUnreadable]);
        assert_eq!((down.state(), down.takes_backups(), down.serves_reads()), (State::Down, false, false));
    }
}
