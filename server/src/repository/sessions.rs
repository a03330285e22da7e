//! Backups under way: one a volume, and a bounded number of all.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use thinbak_proto::{Failed, FailureKind};
use uuid::Uuid;

/// Each session holds some batches of a few MiB at most; together they stay within the server's memory.
const MAX_SESSIONS: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Sessions {
    last_id: AtomicU64,
    /// The volumes being backed up, and under which name.
    running: Mutex<HashMap<Uuid, String>>,
}

/// A place among the running sessions, given back when dropped.
#[derive(Debug)]
pub(crate) struct SessionGuard {
    sessions: Arc<Sessions>,
    volume: Uuid,
    /// Number of the session in this process.
    pub(crate) id: u64,
}

impl Sessions {
    /// Backups under way.
    pub(crate) fn count(&self) -> u64 {
        self.running.lock().len() as u64
    }

    /// Takes the volume and the name for one session.
    pub(crate) fn enter(self: &Arc<Self>, volume: Uuid, name: &str) -> Result<SessionGuard, Failed> {
        let mut running = self.running.lock();
        if running.contains_key(&volume) || running.values().any(|other| other == name) {
            return Err(Failed::new(FailureKind::Busy, format!("volume {name} is being backed up already")));
        }
        if running.len() >= MAX_SESSIONS {
            let message =
                format!("{MAX_SESSIONS} backups are running, which is as many as this server takes");
            return Err(Failed::new(FailureKind::Busy, message).with_hint("try again when one has ended"));
        }
        running.insert(volume, name.to_owned());
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(SessionGuard { sessions: Arc::clone(self), volume, id })
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.sessions.running.lock().remove(&self.volume);
    }
}
