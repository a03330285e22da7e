//! What may be typed of the daemon and of its jobs.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Agent {
    /// Serve the pools of this host on a unix socket until SIGTERM
    Run,
    /// What the running agent does
    Status,
    /// Have the running agent read its configuration again; a bad one is refused, and the old one stays
    Reload,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Job {
    /// The jobs, when they ran and when they will
    List,
    /// Run a job now, with its hooks and rules; its schedule stays as it is
    Run { name: String },
}
