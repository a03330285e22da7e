//! The grammar.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, Subcommand};

/// The thinbak backup server: keeps generations of thin volumes, each chunk of content once.
#[derive(Debug, Parser)]
#[command(name = "thinbak-server", version)]
pub(super) struct Arguments {
    /// Log more (-vv: still more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
    /// Log errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(super) quiet: bool,
    /// How log lines on stderr look
    #[arg(
        long,
        global = true,
        env = "THINBAK_LOG_FORMAT",
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub(super) log_format: LogFormat,
    /// Configuration file [default: /etc/thinbak/server.toml]
    #[arg(long, global = true, env = "THINBAK_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// A JSON object a line
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a repository in a new or empty directory
    Init {
        /// Directory of the repository
        #[arg(long, env = "THINBAK_REPOSITORY", value_name = "DIR")]
        repo: PathBuf,
        /// Bytes of a chunk: a power of two from 4K to 1M, fixed for ever
        #[arg(long, default_value = "64K", value_parser = parse_size, value_name = "SIZE")]
        chunk_size: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Serve a repository until SIGTERM or SIGINT
    Run {
        /// Directory of the repository
        #[arg(long, env = "THINBAK_REPOSITORY", value_name = "DIR")]
        repo: Option<PathBuf>,
        /// Address of the loopback to listen on; port 0 takes a free one [default: 127.0.0.1:7440]
        #[arg(long, env = "THINBAK_LISTEN", value_name = "ADDR")]
        listen: Option<SocketAddr>,
        /// Address for `/metrics` (Prometheus) and `/health` over HTTP; they tell names and sizes of volumes
        #[arg(long, env = "THINBAK_METRICS", value_name = "ADDR")]
        metrics: Option<SocketAddr>,
    },
    /// Show what a repository holds
    Stats {
        /// Directory of the repository
        #[arg(long, env = "THINBAK_REPOSITORY", value_name = "DIR")]
        repo: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete the generations that no policy of the configuration keeps
    Prune {
        /// Directory of the repository
        #[arg(long, env = "THINBAK_REPOSITORY", value_name = "DIR")]
        repo: Option<PathBuf>,
        /// Print what would be deleted, and why not the rest
        #[arg(long)]
        dry_run: bool,
        /// Print a JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Make the catalogue and the chunk index anew from the packs
    ///
    /// The repository must not be open. Deleted generations stay deleted. The catalogue before is kept beside the new
    /// one. May be killed and run again. Exit code 4 if damage was found.
    RebuildCatalogue {
        /// Directory of the repository
        #[arg(long, env = "THINBAK_REPOSITORY", value_name = "DIR")]
        repo: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Copy the catalogue, also while a server uses it
    ///
    /// The copy goes into the folder catalogue-backups of the repository.
    BackupCatalogue {
        #[command(flatten)]
        place: Place,
        /// Copies to keep, the new one included
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
        keep: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a copy the catalogue, and add what is later in the packs
    ///
    /// The repository must not be open. The catalogue before is kept. Exit code 4 if damage was found.
    RestoreCatalogue {
        /// Directory of the repository
        #[arg(long, env = "THINBAK_REPOSITORY", value_name = "DIR")]
        repo: PathBuf,
        /// The copy, which is left as it is
        #[arg(value_name = "FILE")]
        copy: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Read back everything, or a volume or generation, and recompute every id
    Verify {
        /// Directory of the repository
        #[arg(long, env = "THINBAK_REPOSITORY", value_name = "DIR")]
        repo: Option<PathBuf>,
        /// HOST/POOL/VOLUME, or with :NUMBER or :latest one generation of it
        #[arg(value_name = "VOLUME[:GEN]")]
        volume: Option<String>,
        /// Share of the chunks to read back, chosen at random
        #[arg(long, default_value = "100%", value_parser = parse_share, value_name = "PERCENT")]
        sample: f64,
        /// Print a JSON object a line
        #[arg(long)]
        json: bool,
    },
}

/// A repository that a server has open, or that this command opens.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub(super) struct Place {
    /// Directory of the repository
    #[arg(long, env = "THINBAK_REPOSITORY", value_name = "DIR")]
    pub(super) repo: Option<PathBuf>,
    /// URL of the server that has it open; goes before --repo
    #[arg(long, env = "THINBAK_SERVER", value_name = "URL")]
    pub(super) server: Option<String>,
}

impl Command {
    /// Whether the output is for a program.
    pub(super) fn json(&self) -> bool {
        match self {
            Self::Init { json, .. }
            | Self::Stats { json, .. }
            | Self::Prune { json, .. }
            | Self::Verify { json, .. }
            | Self::RebuildCatalogue { json, .. }
            | Self::BackupCatalogue { json, .. }
            | Self::RestoreCatalogue { json, .. } => *json,
            Self::Run { .. } => false,
        }
    }
}

/// Bytes, or with K or M that many KiB or MiB.
fn parse_size(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => text.strip_suffix(['M', 'm']).map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    let number: u32 = digits.parse().map_err(|_| format!("{text:?} is no size like 64K or 1M"))?;
    number.checked_mul(unit).ok_or_else(|| format!("{text:?} is too large"))
}

/// A share from `5%` or `0.05`.
fn parse_share(text: &str) -> Result<f64, String> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse(),
    };
    share.ok().filter(|share| *share > 0.0 && *share <= 1.0).ok_or_else(|| {
        format!("{text:?} is no share like 5% or 0.05: more than nothing and at most 100% is needed")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_shares_are_read_as_people_write_them() {
        assert_eq!(parse_size("64K"), Ok(65536));
        assert_eq!(parse_size("1M"), Ok(1 << 20));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert!(parse_size("4096M").is_err() && parse_size("K").is_err() && parse_size("-4K").is_err());
        assert_eq!(parse_share("5%"), Ok(0.05));
        assert_eq!(parse_share("1"), Ok(1.0));
        assert!(parse_share("0").is_err() && parse_share("101%").is_err() && parse_share("NaN").is_err());
    }

    #[test]
    fn the_grammar_is_sound() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }
}
