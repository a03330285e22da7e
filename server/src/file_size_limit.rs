//! A limit of file sizes (`ulimit -f`, `LimitFSIZE=`): without this the kernel ends the process that meets it.

use thinbak_proto::{Failed, FailureKind};
use tokio::signal::unix::{SignalKind, signal};

/// From now on a file that may not grow is a write that fails like others. Called once in a program, on its runtime.
pub fn survive_file_size_limit() -> Result<(), Failed> {
    let kind = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    // The handler stays when this is dropped: that there is one is all that counts.
    signal(kind)
        .map(drop)
        .map_err(|error| Failed::new(FailureKind::Failed, format!("cannot handle signals: {error}")))
}
