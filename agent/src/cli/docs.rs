//! Completions and manual pages, made of the grammar itself.

use std::{fs, io, path::Path};

use clap::CommandFactory as _;
use clap_complete::Shell;
use thinbak_proto::{Failed, FailureKind};

use super::{args::Cli, stop::Stop};

pub(super) fn completions(shell: Shell) -> Result<(), Stop> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "thinbak", &mut script);
    io::Write::write_all(&mut io::stdout().lock(), &script)?;
    Ok(())
}

/// `thinbak.1`, `thinbak-pool.1` and so on.
pub(super) fn man(dir: &Path) -> Result<(), Stop> {
    let write = || -> io::Result<()> {
        fs::create_dir_all(dir)?;
        clap_mangen::generate_to(Cli::command(), dir)
    };
    write().map_err(|error| {
        Failed::new(FailureKind::Failed, format!("write manual pages to {}: {error}", dir.display())).into()
    })
}
