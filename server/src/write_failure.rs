//! The note that something cannot be written, and how it is taken back.
//!
//! A failed write leaves the note, one that succeeds takes it back. Who asks how things are has a *probe* made, a
//! write that changes nothing: so a disk that is well again is seen although nobody writes. A sick disk is not asked
//! more often for that: one probe at a time, and a pause after each.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// From the end of a probe that failed to the next one.
const PAUSE: Duration = Duration::from_secs(5);

/// Why something could not be written the last time, as `E`.
#[derive(Debug)]
pub(crate) struct WriteFailure<E>(Mutex<State<E>>);

#[derive(Debug)]
struct State<E> {
    failure: Option<E>,
    /// Failures so far: a probe that began before the last one says nothing of it.
    failures: u64,
    probing: bool,
    next_probe: Option<Instant>,
}

impl<E> Default for WriteFailure<E> {
    fn default() -> Self {
        Self(Mutex::new(State { failure: None, failures: 0, probing: false, next_probe: None }))
    }
}

/// A probe that is to be made now, by whoever has this.
#[derive(Debug)]
#[must_use]
pub(crate) struct Probe {
    failures: u64,
}

impl<E: Clone> WriteFailure<E> {
    /// What is known: nothing, if the last write succeeded.
    pub(crate) fn get(&self) -> Option<E> {
        self.0.lock().failure.clone()
    }

    /// A write failed.
    pub(crate) fn note(&self, failure: E) {
        let mut state = self.0.lock();
        state.failure = Some(failure);
        state.failures += 1;
    }

    /// A write succeeded.
    pub(crate) fn clear(&self) {
        self.0.lock().failure = None;
    }

    /// A probe, if there is a failure to look after and none is being made, nor was a moment ago.
    pub(crate) fn probe(&self, now: Instant) -> Option<Probe> {
        let mut state = self.0.lock();
        let due = state.next_probe.is_none_or(|next| next <= now);
        if state.failure.is_none() || state.probing || !due {
            return None;
        }
        state.probing = true;
        Some(Probe { failures: state.failures })
    }

    /// Notes how a probe ended. Every probe must end, or no other is made.
    pub(crate) fn probed(&self, probe: Probe, succeeded: bool, now: Instant) {
        let mut state = self.0.lock();
        state.probing = false;
        state.next_probe = (!succeeded).then(|| now + PAUSE);
        if succeeded && probe.failures == state.failures {
            state.failure = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_probed_once_at_a_time_with_pauses_until_a_probe_succeeds() {
        let failure = WriteFailure::default();
        let now = Instant::now();
        assert!(failure.probe(now).is_none(), "nothing failed");
        failure.note("full");
        let first = failure.probe(now).unwrap();
        assert!(failure.probe(now + 10 * PAUSE).is_none(), "the first one has no answer yet");
        failure.probed(first, false, now);
        assert_eq!(failure.get(), Some("full"));
        assert!(failure.probe(now + PAUSE / 2).is_none(), "too soon");
        let second = failure.probe(now + PAUSE).unwrap();
        failure.probed(second, true, now + PAUSE);
        assert_eq!(failure.get(), None);
        assert!(failure.probe(now + 10 * PAUSE).is_none(), "nothing is wrong");
    }

    #[test]
    fn a_write_that_fails_during_a_probe_is_not_forgotten_by_it() {
        let failure = WriteFailure::default();
        let now = Instant::now();
        failure.note(1);
        let probe = failure.probe(now).unwrap();
        failure.note(2);
        failure.probed(probe, true, now);
        assert_eq!(failure.get(), Some(2));
        let probe = failure.probe(now).unwrap();
        failure.probed(probe, true, now);
        assert_eq!(failure.get(), None);
        failure.note(3);
        failure.clear();
        assert_eq!(failure.get(), None);
    }
}
