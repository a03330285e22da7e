//! The agent's configuration file. What is not known, or makes no sense, is refused with its line.

use std::{
    collections::HashSet,
    fs, io,
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use thinbak_proto::{Failed, FailureKind};
use toml::Spanned;

use super::{
    DEFAULT_FILE, GuardLimits, JobConfig, Level, Selector, Trust,
    job::{JobEntry, selectors},
};

/// Of a file that people write; a longer one is none.
const MAX_FILE_BYTES: u64 = 1 << 20;
const HINT: &str =
    "every key is explained in the example, deploy/agent.toml or /usr/share/doc/thinbak/agent.toml";

/// What the agent does by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobsConfig {
    /// In the order of the file; names are unique.
    pub jobs: Vec<JobConfig>,
    /// Jobs that run at one time at most, by their schedules.
    pub max_running: usize,
    /// Volumes that no job need cover.
    pub not_backed_up: Vec<Selector>,
    /// Whether jobs also store the metadata of pools, once a day.
    pub metadata_dumps: bool,
}

impl Default for JobsConfig {
    fn default() -> Self {
        Self { jobs: Vec::new(), max_running: 1, not_backed_up: Vec::new(), metadata_dumps: true }
    }
}

/// What the file says.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) level: Level,
    pub(super) metrics: Option<SocketAddr>,
    pub(super) jobs: JobsConfig,
    pub(super) guard: GuardLimits,
}

/// The file as it stands.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entries {
    state_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    server: Option<String>,
    repository: Option<PathBuf>,
    fingerprint: Option<String>,
    ca: Option<PathBuf>,
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_key: Option<PathBuf>,
    metrics: Option<Spanned<SocketAddr>>,
    #[serde(default)]
    metrics_public: bool,
    max_running: Option<Spanned<usize>>,
    #[serde(default, deserialize_with = "selectors")]
    not_backed_up: Vec<Selector>,
    #[serde(default)]
    guard: GuardLimits,
    #[serde(default)]
    shape: ShapeEntry,
    #[serde(default)]
    job: Vec<Spanned<JobEntry>>,
}

/// `[shape]`: what is stored of pools beside their volumes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ShapeEntry {
    metadata_dump: MetadataDump,
}

/// How often a pool's metadata are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MetadataDump {
    #[default]
    Daily,
    Never,
}

impl File {
    /// Reads the file that is named, else the default one if it exists.
    pub(super) fn read(named: Option<&Path>) -> Result<Self, Failed> {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        let usage = |why: String| {
            Failed::new(FailureKind::Usage, format!("read configuration {}: {why}", path.display()))
        };
        let text = match fs::metadata(path).and_then(|found| Ok((found.len(), fs::read_to_string(path)?))) {
            Ok((len, _)) if len > MAX_FILE_BYTES => {
                return Err(usage(format!("it has {len} bytes, where at most {MAX_FILE_BYTES} are read")));
            }
            Ok((_, text)) => text,
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(usage(error.to_string())),
        };
        Self::parse(&text).map_err(|Invalid { line, reason }| {
            let message = format!("read configuration {}, line {line}: {reason}", path.display());
            Failed::new(FailureKind::Usage, message).with_hint(HINT)
        })
    }

    /// Understands a file's text.
    fn parse(text: &str) -> Result<Self, Invalid> {
        let entries: Entries = toml::from_str(text).map_err(|error: toml::de::Error| {
            let reason = error.message().replace('\n', " ");
            Invalid::at(text, &error.span().unwrap_or_default(), reason)
        })?;
        let Entries { state_dir, socket, server, repository, .. } = entries;
        let trust = Trust {
            fingerprint: entries.fingerprint,
            ca: entries.ca,
            token_file: entries.token_file,
            client_certificate: entries.client_certificate,
            client_key: entries.client_key,
        };
        let metrics = match entries.metrics {
            Some(address) if !address.get_ref().ip().is_loopback() && !entries.metrics_public => {
                let reason = "`metrics` is no address of the loopback: whoever reaches it reads the names and sizes \
                              of volumes; `metrics_public = true` allows it";
                return Err(Invalid::at(text, &address.span(), reason.to_owned()));
            }
            address => address.map(Spanned::into_inner),
        };
        let max_running = match entries.max_running {
            Some(number) if *number.get_ref() == 0 => {
                return Err(Invalid::at(text, &number.span(), "`max_running` must be at least 1".to_owned()));
            }
            number => number.map_or(1, Spanned::into_inner),
        };
        let (mut jobs, mut names) = (Vec::new(), HashSet::new());
        for entry in entries.job {
            let span = entry.span();
            let job = entry.into_inner().check().map_err(|reason| Invalid::at(text, &span, reason))?;
            if !names.insert(job.name.clone()) {
                let reason = format!("job `{}`: another job has this `name`", job.name);
                return Err(Invalid::at(text, &span, reason));
            }
            jobs.push(job);
        }
        let not_backed_up = entries.not_backed_up;
        let metadata_dumps = entries.shape.metadata_dump == MetadataDump::Daily;
        let jobs = JobsConfig { jobs, max_running, not_backed_up, metadata_dumps };
        Ok(Self {
            level: Level { state_dir, socket, server, repository, trust },
            metrics,
            jobs,
            guard: entries.guard,
        })
    }
}

/// What is wrong where.
#[derive(Debug, PartialEq, Eq)]
struct Invalid {
    /// Counted from 1.
    line: usize,
    reason: String,
}

impl Invalid {
    fn at(text: &str, span: &Range<usize>, reason: String) -> Self {
        let before = text.get(..span.start).unwrap_or_default();
        Self { line: before.matches('\n').count() + 1, reason }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::Retry, *};

    fn refused(text: &str) -> (usize, String) {
        let Invalid { line, reason } = File::parse(text).err().unwrap_or_else(|| panic!("{text:?}"));
        (line, reason)
    }

    #[test]
    fn the_example_is_understood_with_its_comments_and_without() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/agent.toml");
        let text = fs::read_to_string(path).unwrap();
        let file = File::parse(&text).unwrap();
        assert!(file.level.server.is_some() && file.level.state_dir.is_some());
        // What is commented out is told by its look: a key, a table or the end of a list.
        let is_toml = |line: &str| {
            line.starts_with('[')
                || line
                    .split_once(" = ")
                    .is_some_and(|(key, _)| key.bytes().all(|b| b == b'_' || b.is_ascii_lowercase()))
        };
        let whole: String = text
            .lines()
            .filter(|line| *line != "# repository = \"/srv/backup\"")
            .map(|line| line.strip_prefix("# ").filter(|line| is_toml(line)).unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let file = File::parse(&whole).unwrap();
        assert_eq!(
            file.jobs.jobs.iter().map(|job| job.name.as_str()).collect::<Vec<_>>(),
            ["nightly", "databases"]
        );
        assert_eq!(file.guard, GuardLimits::default(), "the example says what holds without it");
        assert!(file.metrics.is_some() && !file.jobs.not_backed_up.is_empty());
        let databases = &file.jobs.jobs[1];
        assert!(databases.group && databases.keep.is_some() && databases.retry.count > 0);
        assert!(databases.hooks.before.is_some() && databases.hooks.after.is_some());
        assert!(databases.hooks.on_failure.is_some() && databases.sent_bytes_per_second > 0);
    }

    #[test]
    fn a_job_says_what_it_says_and_the_rest_is_usual() {
        let text = "[[job]]\nname = \"j\"\nvolumes = [\"tank/*\"]\n";
        let file = File::parse(text).unwrap();
        let job = &file.jobs.jobs[0];
        assert_eq!((job.schedule.as_ref(), job.retry, job.keep), (None, Retry::default(), None));
        assert_eq!((job.hooks.timeout, file.jobs.max_running), (Duration::from_secs(600), 1));
        let text = format!(
            "{text}schedule = \"02:30\"\njitter = \"20min\"\nretry = {{ count = 2, first = \"2h\" }}\n"
        );
        let job = File::parse(&text).unwrap().jobs.jobs.remove(0);
        assert_eq!(job.schedule.unwrap().text, "02:30");
        assert_eq!(job.retry.max, Duration::from_secs(7200), "at least as long as the first");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_its_key() {
        let job = |rest: &str| format!("\n[[job]]\nname = \"j\"\nvolumes = [\"p/*\"]\n{rest}\n");
        for (text, line, reason) in [
            ("sokcet = \"/x\"\n".to_owned(), 1, "unknown field `sokcet`"),
            ("metrics = \"0.0.0.0:1\"\n".to_owned(), 1, "`metrics` is no address of the loopback"),
            ("\nmax_running = 0\n".to_owned(), 2, "`max_running`"),
            ("[guard]\nmin_free_data = \"5\"\nmin_fre = 1\n".to_owned(), 3, "unknown field `min_fre`"),
            ("[guard]\nmin_free_metadata = \"95%\"\n".to_owned(), 2, "`95%` is no share"),
            ("[[job]]\nvolumes = [\"p/*\"]\n".to_owned(), 1, "missing field `name`"),
            ("[[job]]\nname = \"a\"\n".to_owned(), 1, "missing field `volumes`"),
            ("[[job]]\nname = \"a\"\nvolumes = []\n".to_owned(), 1, "`volumes` is empty"),
            ("[[job]]\nname = \"a/b\"\nvolumes = [\"p/*\"]\n".to_owned(), 1, "`name` cannot be"),
            ("[[job]]\nname = \"a\"\nvolumes = [\"p\"]\n".to_owned(), 3, "no POOL/PATTERN"),
            (job("tags = [\"x\"]"), 5, "unknown field `tags`"),
            (job("schedule = \"daily\""), 5, "neither a length of time"),
            (job("schedule = \"0s\""), 5, "at least 1s"),
            (job("schedule = \"0 0 31 2 *\""), 5, "never"),
            (job("jitter = \"5min\""), 2, "`jitter` means nothing"),
            (job("schedule = \"5min\"\njitter = \"5min\""), 2, "`jitter` must be shorter"),
            (job("retry = { count = 1, first = \"2h\", max = \"1h\" }"), 2, "`retry.first`"),
            (job("retry = { first = \"2h\" }"), 5, "missing field `count`"),
            (job("before = \"/bin/true\""), 5, "invalid type"),
            (job("before = []"), 5, "without a program"),
            (job("after = [\"true\"]"), 5, "absolute path, not `true`"),
            (job("bandwidth = \"1K\""), 5, "too few"),
            (job("bandwidth = 5"), 5, "invalid type"),
            (job("keep_lasst = 3"), 5, "unknown field `keep_lasst`"),
            (job("server = \"http://x\"\nrepository = \"/r\""), 2, "both `server` and `repository`"),
            (job("repository = \"r\""), 2, "`repository` must be an absolute path"),
            (job("host = \"a/b\""), 2, "`host` cannot be"),
            (job("host = \"pro?\""), 2, "`host` cannot be"),
            (job("host = \"*\""), 2, "`host` cannot be"),
            (job(&job("")), 6, "another job has this `name`"),
        ] {
            let (found_line, found) = refused(&text);
            assert!(found.contains(reason), "{text:?}: {found}");
            assert_eq!(found_line, line, "{text:?}: {found}");
        }
    }
}
