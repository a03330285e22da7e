//! The grammar.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

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
        #[command(flatten)]
        tls: TlsArguments,
        /// A name or address that the certificate is for, beside those of this host
        #[arg(long = "tls-name", value_name = "NAME", conflicts_with_all = ["tls_cert", "tls_key"])]
        tls_names: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Serve a repository until SIGTERM or SIGINT
    Run {
        /// Directory of the repository
        #[arg(long, env = "THINBAK_REPOSITORY", value_name = "DIR")]
        repo: Option<PathBuf>,
        /// Address to listen on, off the loopback over TLS only; port 0 takes a free one [default: 127.0.0.1:7440]
        #[arg(long, env = "THINBAK_LISTEN", value_name = "ADDR")]
        listen: Option<SocketAddr>,
        /// Address for `/metrics` (Prometheus) and `/health` over HTTP; they tell names and sizes of volumes
        #[arg(long, env = "THINBAK_METRICS", value_name = "ADDR")]
        metrics: Option<SocketAddr>,
        /// Serve over TLS on the loopback, too
        #[arg(long)]
        tls: bool,
        #[command(flatten)]
        certificate: TlsArguments,
    },
    /// Print the fingerprint of the server's certificate, for clients to pin
    Fingerprint {
        /// Directory of the repository
        #[arg(long, env = "THINBAK_REPOSITORY", value_name = "DIR")]
        repo: Option<PathBuf>,
        #[command(flatten)]
        tls: TlsArguments,
        /// Make a key and a certificate first, where there are none
        #[arg(long)]
        make: bool,
        /// A name or address that the certificate is for, beside those of this host
        #[arg(long = "tls-name", value_name = "NAME", requires = "make")]
        tls_names: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
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
    /// Make the catalogue and the chunk index anew from the packs
    ///
    /// The repository must not be open. Deleted generations stay deleted. The catalogue before is kept beside the new
    /// one. May be killed and run again. Exit code 4 if damage was found.
    RebuildCatalogue {
        /// Directory of the repository
        #[arg(long, env = "THINBAK_REPOSITORY", value_name = "DIR")]
        repo: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Copy the catalogue, also while a server uses it
    ///
    /// The copy goes into the folder catalogue-backups of the repository.
    BackupCatalogue {
        #[command(flatten)]
        at: At,
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
        repo: Option<PathBuf>,
        /// The copy, which is left as it is
        #[arg(value_name = "FILE")]
        copy: PathBuf,
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
        /// Only packs that were not read back whole for so long, like 30d or 12h; a run that is broken off goes on
        /// where it was
        #[arg(long, value_parser = parse_age, value_name = "AGE", conflicts_with = "volume")]
        older_than: Option<Duration>,
        /// Read no more bytes in a second than this, like 50M
        #[arg(long, value_parser = parse_rate, value_name = "SIZE")]
        rate: Option<u64>,
        /// Print a JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Free what no generation needs any more
    Collect(Collect),
    /// Who may do what
    #[command(subcommand)]
    Token(Token),
    /// Who did what, oldest first
    Audit {
        #[command(flatten)]
        at: At,
        /// Only of so long ago, like 7d or 12h
        #[arg(long, value_parser = parse_age, value_name = "AGE")]
        since: Option<Duration>,
        /// Print a JSON object a line
        #[arg(long)]
        json: bool,
    },
}

/// What may be done with tokens.
#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Make a token and print it, for the only time
    Create {
        #[command(flatten)]
        at: At,
        /// What it is called in lists and in the audit log
        #[arg(long)]
        name: String,
        /// What it is for
        #[arg(long, value_enum)]
        scope: ScopeName,
        /// Patterns of HOST/POOL/VOLUME: * is any text, also over /, and ? any one character
        #[arg(long, num_args = 1.., required = true, value_name = "PATTERN")]
        volumes: Vec<String>,
        /// How long it is good for, like 90d [default: until it is revoked]
        #[arg(long, value_parser = parse_age, value_name = "TIME")]
        expires: Option<Duration>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show all that were made, but not the tokens themselves
    List {
        #[command(flatten)]
        at: At,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a token for ever; what runs with it at a server that is named ends at once
    Revoke {
        #[command(flatten)]
        at: At,
        /// Its name or its id
        #[arg(value_name = "NAME|ID")]
        token: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ScopeName {
    /// Adds generations to its volumes, and reads what that needs
    Backup,
    /// Reads its volumes
    Restore,
    /// Reads its volumes and adds to them
    Replicate,
    /// Everything, of all volumes
    Admin,
}

impl From<ScopeName> for thinbak_proto::v1::Scope {
    fn from(name: ScopeName) -> Self {
        match name {
            ScopeName::Backup => Self::Backup,
            ScopeName::Restore => Self::Restore,
            ScopeName::Replicate => Self::Replicate,
            ScopeName::Admin => Self::Admin,
        }
    }
}

/// What a collection may do.
#[derive(Debug, clap::Args)]
pub(super) struct Collect {
    #[command(flatten)]
    pub(super) at: At,
    /// Say what would be freed, and free nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Rewrite packs of which at most this share is in use
    #[arg(long, default_value = "50%", value_parser = parse_share, value_name = "PERCENT")]
    pub(super) threshold: f64,
    /// Rewrite no pack of which more than this is in use: it is on the disk twice for a while
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    pub(super) max_extra_space: Option<u64>,
    /// Copy at most this much in all
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    pub(super) max_repack: Option<u64>,
    /// Copy at most this much in a second
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    pub(super) rate: Option<u64>,
    /// Keep deleted generations for this long, instead of the repository's grace period
    #[arg(long, value_parser = thinbak_proto::parse_duration, value_name = "TIME")]
    pub(super) grace: Option<Duration>,
    /// Print a JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

/// Which certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub(super) struct TlsArguments {
    /// The server's certificate (PEM) [default: tls/certificate.pem in the repository]
    #[arg(long, env = "THINBAK_TLS_CERT", value_name = "FILE")]
    pub(super) tls_cert: Option<PathBuf>,
    /// Its private key (PEM) [default: tls/key.pem in the repository]
    #[arg(long, env = "THINBAK_TLS_KEY", value_name = "FILE")]
    pub(super) tls_key: Option<PathBuf>,
    /// Certificates (PEM) of those who vouch for clients: one without is turned away
    #[arg(long, env = "THINBAK_CLIENT_CA", value_name = "FILE")]
    pub(super) client_ca: Option<PathBuf>,
}

/// A repository that a server has open, or that this command opens.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct At {
    /// Directory of the repository
    #[arg(long, env = "THINBAK_REPOSITORY", value_name = "DIR")]
    pub(super) repo: Option<PathBuf>,
    /// URL of the server that has it open; goes before --repo
    #[arg(long, env = "THINBAK_SERVER", value_name = "URL")]
    pub(super) server: Option<String>,
    /// The one certificate that the server must have
    #[arg(long, env = "THINBAK_FINGERPRINT", value_name = "sha256:HEX", conflicts_with = "ca")]
    pub(super) fingerprint: Option<String>,
    /// Certificates (PEM) of those who may vouch for the server's
    #[arg(long, env = "THINBAK_CA_FILE", value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// File with the token for the server
    #[arg(long, env = "THINBAK_TOKEN_FILE", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Certificate (PEM) of this client, where the server asks for one
    #[arg(long, env = "THINBAK_CLIENT_CERT", value_name = "FILE")]
    pub(super) client_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, env = "THINBAK_CLIENT_KEY", value_name = "FILE")]
    pub(super) client_key: Option<PathBuf>,
}

impl Command {
    /// Whether the output is for a program.
    pub(super) fn json(&self) -> bool {
        match self {
            Self::Init { json, .. }
            | Self::Fingerprint { json, .. }
            | Self::Stats { json, .. }
            | Self::Prune { json, .. }
            | Self::RebuildCatalogue { json, .. }
            | Self::BackupCatalogue { json, .. }
            | Self::RestoreCatalogue { json, .. }
            | Self::Verify { json, .. } => *json,
            Self::Token(
                Token::Create { json, .. } | Token::List { json, .. } | Token::Revoke { json, .. },
            )
            | Self::Audit { json, .. } => *json,
            Self::Collect(collect) => collect.json,
            Self::Run { .. } => false,
        }
    }
}

/// Bytes, or with K, M, G or T that many KiB and so on.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let units = [(['K', 'k'], 10), (['M', 'm'], 20), (['G', 'g'], 30), (['T', 't'], 40)];
    let found = units.into_iter().find_map(|(names, shift)| Some((text.strip_suffix(names)?, 1u64 << shift)));
    let (digits, unit) = found.unwrap_or((text, 1));
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no size like 64K or 1M"))?;
    number.checked_mul(unit).ok_or_else(|| format!("{text:?} is too large"))
}

/// A duration like `90m`, `12h`, `30d` or `4w`.
fn parse_age(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is no duration like 90m, 12h, 30d or 4w");
    let (digits, seconds) = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400), ('w', 604_800)]
        .into_iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))
        .ok_or_else(invalid)?;
    let number: u64 = digits.parse().map_err(|_| invalid())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| format!("{text:?} is too long"))
}

/// Bytes in a second, or with K, M or G that many KiB, MiB or GiB.
fn parse_rate(text: &str) -> Result<u64, String> {
    let invalid = || format!("{text:?} is no rate like 800K, 50M or 1G");
    let (digits, unit) = [('K', 10), ('M', 20), ('G', 30)]
        .into_iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, 1u64 << shift)))
        .unwrap_or((text, 1));
    let number: u64 = digits.parse().map_err(|_| invalid())?;
    number.checked_mul(unit).filter(|rate| *rate > 0).ok_or_else(invalid)
}

fn parse_size(text: &str) -> Result<u32, String> {
    parse_bytes(text).and_then(|size| u32::try_from(size).map_err(|_| format!("{text:?} is too large")))
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
        assert_eq!(parse_bytes("3G"), Ok(3 << 30));
        assert!(parse_bytes("99999999T").is_err());
        assert!(parse_size("4096M").is_err() && parse_size("K").is_err() && parse_size("-4K").is_err());
        assert_eq!(parse_share("5%"), Ok(0.05));
        assert_eq!(parse_share("1"), Ok(1.0));
        assert!(parse_share("0").is_err() && parse_share("101%").is_err() && parse_share("NaN").is_err());
    }

    #[test]
    fn ages_and_rates_are_read_as_people_write_them() {
        assert_eq!(parse_age("30d"), Ok(Duration::from_secs(30 * 86_400)));
        assert_eq!(parse_age("0s"), Ok(Duration::ZERO));
        assert!(parse_age("30").is_err() && parse_age("d").is_err() && parse_age("-1d").is_err());
        assert!(parse_age("99999999999999999w").is_err());
        assert_eq!(parse_rate("50M"), Ok(50 << 20));
        assert!(parse_rate("0").is_err() && parse_rate("fast").is_err());
    }

    #[test]
    fn the_grammar_is_sound() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }
}
