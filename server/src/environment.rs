//! What a repository takes from outside: the time, randomness, and the place of its packs. Passed in, so that
//! a test or a simulation decides all three, and nothing asks the system in the middle.

use std::{
    fmt, io,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::store::{DirectoryMedium, Medium};

/// A wall clock. Clones show the same time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::new(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
    }

    /// A clock that shows what `now_ms` returns: unix time in milliseconds.
    #[must_use]
    pub fn new(now_ms: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_ms))
    }

    /// Unix time in milliseconds.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        (self.0)()
    }
}

/// A source of randomness. Clones draw from the same source.
#[derive(Clone)]
pub struct Random(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Random {
    /// The system's.
    #[must_use]
    pub fn system() -> Self {
        Self::new(rand::random)
    }

    /// A source that draws what `draw` returns.
    #[must_use]
    pub fn new(draw: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(draw))
    }

    /// 64 random bits.
    #[must_use]
    pub fn draw(&self) -> u64 {
        (self.0)()
    }
}

/// Asked before each change of the catalogue: a transaction's end, and each step of putting another file in its place. So
/// a test can refuse any of them, as a disk would, and stop a history there.
#[derive(Clone, Default)]
pub(crate) struct ChangeGate(Option<Arc<dyn Fn() -> io::Result<()> + Send + Sync>>);

impl ChangeGate {
    /// A gate that `ask` opens.
    #[cfg(any(test, fuzzing, feature = "testing"))]
    pub(crate) fn new(ask: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(ask)))
    }

    /// Whether anybody is asked at all.
    pub(crate) fn is_guarded(&self) -> bool {
        self.0.is_some()
    }

    /// An error means that the change must not be made.
    pub(crate) fn pass(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |ask| ask())
    }
}

/// What a repository takes from outside.
#[derive(Clone)]
pub struct Environment {
    /// The time by which generations are dated and policies judge.
    pub clock: Clock,
    /// What samples are drawn from.
    pub random: Random,
    /// Where packs are; `None`: in the repository's directory.
    pub(crate) packs: Option<Arc<dyn Medium>>,
    pub(crate) changes: ChangeGate,
}

impl Environment {
    /// The system's clock and randomness, and packs in the repository's directory.
    #[must_use]
    pub fn system() -> Self {
        Self::new(Clock::system(), Random::system())
    }

    /// The same with another clock and other randomness.
    #[must_use]
    pub fn new(clock: Clock, random: Random) -> Self {
        Self { clock, random, packs: None, changes: ChangeGate::default() }
    }

    /// The same with packs in memory. Changes of the catalogue count among the operations of that disk, and fail with them.
    #[cfg(any(test, fuzzing, feature = "testing"))]
    #[must_use]
    pub fn with_packs_in(self, medium: Arc<crate::store::memory_medium::MemoryMedium>) -> Self {
        let disk = Arc::clone(&medium);
        Self { packs: Some(medium), changes: ChangeGate::new(move || disk.step()), ..self }
    }

    /// Where the packs of the store in `packs_dir` are.
    pub(crate) fn medium(&self, packs_dir: &Path) -> Arc<dyn Medium> {
        match &self.packs {
            Some(medium) => Arc::clone(medium),
            None => Arc::new(DirectoryMedium::new(packs_dir.to_owned())),
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").field("now_ms", &self.clock.now_ms()).finish_non_exhaustive()
    }
}
