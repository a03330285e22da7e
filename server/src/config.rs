//! The server's configuration file. Flags go over the environment, and that over the file.
//!
//! An example is `deploy/server.toml`. What is not known, or makes no sense, is refused with its line: a typing
//! error in a retention policy must not become another policy.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, de::Error as _};
use thinbak_proto::{Failed, FailureKind, Pattern, When, parse_duration, v1::RetentionPolicy};

use crate::{
    retention::{Policy, RetentionRule},
    schedule::Job,
};

/// Read when it exists and no other is named.
pub const DEFAULT_FILE: &str = "/etc/thinbak/server.toml";
/// Of a file that people write; a longer one is none.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no file that people write.
    #[error("configuration {} has {bytes} bytes, where at most {MAX_FILE_BYTES} are read", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// It says something that is not understood.
    #[error("configuration {}, line {line}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where, counted from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
}

impl From<ConfigError> for Failed {
    fn from(error: ConfigError) -> Self {
        Self::new(FailureKind::Usage, error.to_string())
    }
}

/// What the file says.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Directory of the repository.
    pub repo: Option<PathBuf>,
    /// Address to listen on.
    pub listen: Option<SocketAddr>,
    /// Address for metrics and health over HTTP.
    pub metrics: Option<SocketAddr>,
    /// Whether that may be another address than one of the loopback.
    #[serde(default)]
    pub metrics_public: bool,
    /// Which certificate; present: TLS is served on the loopback, too.
    pub tls: Option<TlsSection>,
    /// How long deletions can be undone.
    #[serde(default, deserialize_with = "duration")]
    pub grace: Option<Duration>,
    /// The policies of volumes; the first that matches a volume counts.
    #[serde(default)]
    pub retention: Vec<RetentionRule>,
    /// What is done when.
    #[serde(default)]
    pub schedule: Timetable,
}

/// Where the server's certificate is, if not in the repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    /// The certificate, PEM.
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
    /// Certificates of those who vouch for clients, PEM: one without is turned away.
    pub client_ca: Option<PathBuf>,
}

/// When the server does what by itself; what is not named is left to commands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timetable {
    #[serde(default, deserialize_with = "when")]
    prune: Option<When>,
    #[serde(default, deserialize_with = "when")]
    collect: Option<When>,
    #[serde(default, deserialize_with = "when")]
    verify: Option<When>,
    #[serde(default, deserialize_with = "when")]
    catalogue_backup: Option<When>,
}

impl Timetable {
    /// The jobs that are named, in the order in which they run when several are due.
    pub fn entries(&self) -> impl Iterator<Item = (Job, When)> {
        let Self { prune, collect, verify, catalogue_backup } = self.clone();
        let all = [
            (Job::CatalogueBackup, catalogue_backup),
            (Job::Prune, prune),
            (Job::Collect, collect),
            (Job::Verify, verify),
        ];
        all.into_iter().filter_map(|(job, when)| Some((job, when?)))
    }
}

/// A `[[retention]]` entry.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleEntry {
    volumes: String,
    #[serde(default)]
    keep_last: u32,
    #[serde(default)]
    keep_hourly: u32,
    #[serde(default)]
    keep_daily: u32,
    #[serde(default)]
    keep_weekly: u32,
    #[serde(default)]
    keep_monthly: u32,
    #[serde(default)]
    keep_yearly: u32,
    #[serde(default, deserialize_with = "duration")]
    keep_within: Option<Duration>,
}

impl<'de> Deserialize<'de> for RetentionRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entry = RuleEntry::deserialize(deserializer)?;
        let policy = Policy::new(&RetentionPolicy {
            last: entry.keep_last,
            hourly: entry.keep_hourly,
            daily: entry.keep_daily,
            weekly: entry.keep_weekly,
            monthly: entry.keep_monthly,
            yearly: entry.keep_yearly,
            within_seconds: entry.keep_within.map_or(0, |within| within.as_secs()),
        });
        let volumes = Pattern::new(&entry.volumes).map_err(D::Error::custom)?;
        Ok(Self { volumes, policy: policy.map_err(D::Error::custom)? })
    }
}

/// What the server does by itself begins once a minute at most.
const LEAST_BETWEEN: Duration = Duration::from_secs(60);

fn when<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<When>, D::Error> {
    let text = String::deserialize(deserializer)?;
    When::parse(&text, LEAST_BETWEEN).map(Some).map_err(D::Error::custom)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map(Some).map_err(D::Error::custom)
}

impl Config {
    /// Reads the file that is named, else the default one if it exists.
    pub fn read(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        let io = |source| ConfigError::Io { path: path.to_owned(), source };
        let bytes = match path.metadata() {
            Ok(metadata) => metadata.len(),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(io(error)),
        };
        if bytes > MAX_FILE_BYTES {
            return Err(ConfigError::TooLong { path: path.to_owned(), bytes });
        }
        Self::parse(&std::fs::read_to_string(path).map_err(io)?, path)
    }

    /// Understands a file's text.
    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let reason = error.message().replace('\n', " ");
            ConfigError::Invalid { path: path.to_owned(), line, reason }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> (usize, String) {
        match Config::parse(text, Path::new("server.toml")) {
            Err(ConfigError::Invalid { line, reason, .. }) => (line, reason),
            other => panic!("{text:?} gave {other:?}"),
        }
    }

    #[test]
    fn the_example_is_understood() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/server.toml");
        let config = Config::read(Some(&path)).unwrap();
        assert_eq!(config.grace, Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(config.retention.len(), 2);
        assert!(config.retention[0].volumes.matches("db1/fast/log"));
        assert!(config.repo.is_some() && config.listen.is_some());
        let jobs: Vec<_> = config.schedule.entries().map(|(job, _)| job).collect();
        assert_eq!(jobs, [Job::CatalogueBackup, Job::Prune, Job::Collect, Job::Verify]);
    }

    #[test]
    fn an_empty_file_says_nothing() {
        let config = Config::parse("", Path::new("server.toml")).unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.schedule.entries().count(), 0);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, line, reason) in [
            ("repo = \"/r\"\nlisen = \"127.0.0.1:1\"\n", 2, "unknown field `lisen`"),
            ("listen = \"here\"\n", 1, "socket address"),
            ("\n\ngrace = \"7\"\n", 3, "no length of time"),
            ("grace = \"3m\"\n", 1, "minutes or months"),
            ("[[retention]]\nvolumes = \"*\"\n", 1, "keeps nothing"),
            ("[[retention]]\nvolumes = \"\"\nkeep_last = 1\n", 1, "pattern is empty"),
            ("[[retention]]\nkeep_last = 1\n", 1, "missing field `volumes`"),
            ("[[retention]]\nvolumes = \"*\"\nkeep_lasst = 1\n", 3, "unknown field `keep_lasst`"),
            ("[[retention]]\nvolumes = \"*\"\nkeep_last = -1\n", 3, "invalid value"),
            ("[schedule]\nprune = \"daily\"\n", 2, "neither a length of time"),
            ("[schedule]\nprune = \"1s\"\n", 2, "at least 1min"),
            ("[schedule]\nprune = \"0 0 30 2 *\"\n", 2, "never"),
            ("repo = \n", 1, ""),
        ] {
            let (found_line, found) = refused(text);
            assert!(found.contains(reason), "{text:?}: {found}");
            assert_eq!(found_line, line, "{text:?}: {found}");
        }
    }

    #[test]
    fn a_file_that_is_named_must_be_there_and_the_error_is_one_of_usage() {
        let missing = Config::read(Some(Path::new("/none/such.toml"))).unwrap_err();
        assert!(matches!(missing, ConfigError::Io { .. }));
        assert_eq!(Failed::from(missing).exit_code(), 2);
    }
}
