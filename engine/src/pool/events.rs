//! Events of a pool: what the kernel raises as device-mapper events.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Counts events, and lets threads wait for the next one. An event says only that the status should be looked at.
#[derive(Debug, Default)]
pub(super) struct Events {
    count: Mutex<u64>,
    raised: Condvar,
}

impl Events {
    pub(super) fn raise(&self) {
        *self.count.lock() += 1;
        self.raised.notify_all();
    }

    pub(super) fn count(&self) -> u64 {
        *self.count.lock()
    }

    /// Waits until there were more than `seen` events, or until `deadline`; how many there were then.
    pub(super) fn wait(&self, seen: u64, deadline: Option<Instant>) -> u64 {
        let mut count = self.count.lock();
        while *count <= seen {
            match deadline {
                None => self.raised.wait(&mut count),
                Some(deadline) if self.raised.wait_until(&mut count, deadline).timed_out() => break,
                Some(_) => {}
            }
        }
        *count
    }
}
