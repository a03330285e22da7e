//! The socket of a daemon, and being the only one at it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use thinbak_proto::{Failed, FailureKind};
use tokio::net::UnixListener;

/// A socket that is listened at.
pub(super) struct Listening {
    pub(super) listener: UnixListener,
    pub(super) guard: SocketGuard,
}

/// Takes the socket file away when the daemon ends; the lock goes with it.
pub(super) struct SocketGuard {
    socket: PathBuf,
    _lock: File,
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        // A file that stays is replaced by the next daemon.
        let _ = fs::remove_file(&self.socket);
    }
}

/// Becomes the one daemon of `socket`. The directory is made with mode 0700 if it is missing, the socket has
/// mode 0600.
pub(super) fn listen(socket: &Path) -> Result<Listening, Failed> {
    let failed = |attempt: &str, error: io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::PermissionDenied => FailureKind::Denied,
            _ => FailureKind::Failed,
        };
        Failed::new(kind, format!("{attempt} {}: {error}", socket.display()))
    };
    if let Some(dir) = socket.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| failed("make the directory of", error))?;
    }
    let lock = lock_file(socket).map_err(|error| failed("lock", error))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            return Err(Failed::new(
                FailureKind::Busy,
                format!("another agent is running at {}", socket.display()),
            )
            .with_hint("thinbak agent status asks it; --socket gives this one another place"));
        }
        Err(error) => return Err(failed("lock", error.into())),
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace", error)),
        _ => {}
    }
    // Bound under a name of its own and renamed when its mode is right: never open to others for a moment.
    let unfinished = with_suffix(socket, ".new");
    let _ = fs::remove_file(&unfinished);
    let listener = UnixListener::bind(&unfinished).map_err(|error| failed("listen at", error))?;
    fs::set_permissions(&unfinished, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&unfinished, socket))
        .map_err(|error| failed("listen at", error))?;
    Ok(Listening { listener, guard: SocketGuard { socket: socket.to_owned(), _lock: lock } })
}

fn lock_file(socket: &Path) -> io::Result<File> {
    let path = with_suffix(socket, ".lock");
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn with_suffix(socket: &Path, suffix: &str) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
