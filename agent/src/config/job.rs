//! A `[[job]]` of the configuration: what is backed up when, and what is done around it.

use std::{path::Path, time::Duration};

use serde::{Deserialize, Deserializer, de::Error as _};
use thinbak_engine::embedded::check_volume_name;
use thinbak_proto::{When, parse_duration, v1::RetentionPolicy, v1::repository_address::Address};

use super::{Selector, Trust, parse_size};

/// A job begins this often at most.
const LEAST_BETWEEN: Duration = Duration::from_secs(1);
/// Slower than this, a message would be under way for minutes.
const LEAST_RATE: u64 = 64 * 1024;
const DEFAULT_HOOK_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// A job. Invariants: at least one selector in `volumes`; jitter only with a schedule, and below the time between two
/// runs of one that has such; `retry.first <= retry.max`; each hook's first word is an absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobConfig {
    /// Unique in the configuration; keeps the rules of volume names.
    pub name: String,
    /// Which volumes.
    pub volumes: Vec<Selector>,
    /// Which of them not.
    pub exclude: Vec<Selector>,
    /// When; `None`: only by hand.
    pub schedule: Option<Schedule>,
    /// A run begins up to so much later, as the names of host and job have it.
    pub jitter: Duration,
    /// What follows a run that failed.
    pub retry: Retry,
    /// Whether the volumes of a pool are of one moment.
    pub group: bool,
    /// Where to, if not where all else goes.
    pub repository: Option<Address>,
    /// The first part of the names on the server, if it is not this host's.
    pub host: Option<String>,
    /// What of the volumes is kept after a run, if anything is deleted.
    pub keep: Option<RetentionPolicy>,
    /// Programs around a run.
    pub hooks: Hooks,
    /// Bytes sent in a second at most; 0: no limit.
    pub sent_bytes_per_second: u64,
    /// Bytes read in a second at most; 0: no limit.
    pub read_bytes_per_second: u64,
    /// A volume is overdue when its last success is longer ago; `None`: when it missed a run.
    pub overdue: Option<Duration>,
}

/// When a job is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// As it was written.
    pub text: String,
    /// What that means.
    pub when: When,
}

/// How often a run that failed is repeated, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Repetitions at most.
    pub count: u32,
    /// Before the first; each later one waits twice as long as the one before.
    pub first: Duration,
    /// No longer than this.
    pub max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { count: 0, first: Duration::from_secs(60), max: Duration::from_secs(3600) }
    }
}

/// Programs with their arguments; no shell is between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// Before the backup. If it fails, nothing is backed up.
    pub before: Option<Vec<String>>,
    /// After the backup, whenever `before` was begun.
    pub after: Option<Vec<String>>,
    /// After a run that failed, in whole or in part.
    pub on_failure: Option<Vec<String>>,
    /// How long each may take.
    pub timeout: Duration,
}

/// A job as it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JobEntry {
    name: String,
    #[serde(deserialize_with = "selectors")]
    volumes: Vec<Selector>,
    #[serde(default, deserialize_with = "selectors")]
    exclude: Vec<Selector>,
    #[serde(default, deserialize_with = "schedule")]
    schedule: Option<Schedule>,
    #[serde(default, deserialize_with = "duration")]
    jitter: Option<Duration>,
    retry: Option<RetryEntry>,
    #[serde(default)]
    group: bool,
    server: Option<String>,
    trust: Option<Trust>,
    repository: Option<String>,
    host: Option<String>,
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
    #[serde(default, deserialize_with = "hook")]
    before: Option<Vec<String>>,
    #[serde(default, deserialize_with = "hook")]
    after: Option<Vec<String>>,
    #[serde(default, deserialize_with = "hook")]
    on_failure: Option<Vec<String>>,
    #[serde(default, deserialize_with = "duration")]
    hook_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "rate")]
    bandwidth: Option<u64>,
    #[serde(default, deserialize_with = "rate")]
    read_rate: Option<u64>,
    #[serde(default, deserialize_with = "duration")]
    overdue: Option<Duration>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetryEntry {
    count: u32,
    #[serde(default, deserialize_with = "duration")]
    first: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    max: Option<Duration>,
}

impl JobEntry {
    /// Checks what no key can check alone; the error is a sentence that names the key.
    pub(super) fn check(self) -> Result<JobConfig, String> {
        let named = |what: String| format!("job `{}`: {what}", self.name);
        check_volume_name(&self.name).map_err(|error| named(format!("`name` cannot be this: {error}")))?;
        if self.volumes.is_empty() {
            return Err(named("`volumes` is empty, so nothing would be backed up".to_owned()));
        }
        if let Some(host) = &self.host {
            check_volume_name(host).map_err(|error| named(format!("`host` cannot be this: {error}")))?;
            if let Some(odd) = host.chars().find(|c| matches!(c, '*' | '?')) {
                return Err(named(format!("`host` cannot be this: {odd:?} is for patterns of names")));
            }
        }
        let repository = match (&self.server, &self.repository) {
            (Some(_), Some(_)) => return Err(named("both `server` and `repository` are given".to_owned())),
            (Some(url), None) => {
                let trust = self.trust.clone().unwrap_or_default();
                if let Some(path) = trust.paths().find(|path| path.is_relative()) {
                    return Err(named(format!("`trust` must have absolute paths, not {}", path.display())));
                }
                Some(trust.of(url, Path::new("/")).map_err(|failed| named(failed.message))?)
            }
            (None, _) if self.trust.is_some() => {
                return Err(named("`trust` means nothing without `server`".to_owned()));
            }
            (None, Some(dir)) if Path::new(dir).is_absolute() => Some(Address::Directory(dir.clone())),
            (None, Some(dir)) => {
                return Err(named(format!("`repository` must be an absolute path, not {dir}")));
            }
            (None, None) => None,
        };
        let jitter = self.jitter.unwrap_or_default();
        let every = self.schedule.as_ref().and_then(|schedule| schedule.when.every());
        if jitter > Duration::ZERO && self.schedule.is_none() {
            return Err(named("`jitter` means nothing without `schedule`".to_owned()));
        }
        if every.is_some_and(|every| jitter >= every) {
            return Err(named("`jitter` must be shorter than the time from run to run".to_owned()));
        }
        let retry = retry(self.retry.as_ref()).map_err(named)?;
        let keep = RetentionPolicy {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within_seconds: self.keep_within.map_or(0, |within| within.as_secs()),
        };
        let timeout = self.hook_timeout.unwrap_or(DEFAULT_HOOK_TIMEOUT);
        if timeout.is_zero() {
            return Err(named("`hook_timeout` must be longer than nothing".to_owned()));
        }
        let hooks = Hooks { before: self.before, after: self.after, on_failure: self.on_failure, timeout };
        Ok(JobConfig {
            name: self.name,
            volumes: self.volumes,
            exclude: self.exclude,
            schedule: self.schedule,
            jitter,
            retry,
            group: self.group,
            repository,
            host: self.host,
            keep: (keep != RetentionPolicy::default()).then_some(keep),
            hooks,
            sent_bytes_per_second: self.bandwidth.unwrap_or_default(),
            read_bytes_per_second: self.read_rate.unwrap_or_default(),
            overdue: self.overdue,
        })
    }
}

fn retry(entry: Option<&RetryEntry>) -> Result<Retry, String> {
    let Some(entry) = entry else { return Ok(Retry::default()) };
    let default = Retry::default();
    let first = entry.first.unwrap_or(default.first);
    let max = entry.max.unwrap_or(default.max.max(first));
    if first.is_zero() {
        return Err("`retry.first` must be at least 1s".to_owned());
    }
    if first > max {
        return Err("`retry.first` must not be longer than `retry.max`".to_owned());
    }
    Ok(Retry { count: entry.count, first, max })
}

pub(super) fn selectors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Selector>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| Selector::parse(text).map_err(D::Error::custom)).collect()
}

fn schedule<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Schedule>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let when = When::parse(&text, LEAST_BETWEEN).map_err(D::Error::custom)?;
    Ok(Some(Schedule { text, when }))
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match parse_size(&text).map_err(D::Error::custom)? {
        rate if rate < LEAST_RATE => {
            Err(D::Error::custom(format!("{text} bytes a second are too few: at least 64K are needed")))
        }
        rate => Ok(Some(rate)),
    }
}

fn hook<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    let words = Vec::<String>::deserialize(deserializer)?;
    match words.first() {
        None => Err(D::Error::custom("a hook without a program")),
        Some(program) if !Path::new(program).is_absolute() => Err(D::Error::custom(format!(
            "a hook's program must be an absolute path, not `{program}`: no shell and no PATH is asked"
        ))),
        Some(_) if words.iter().any(|word| word.contains('\0')) => {
            Err(D::Error::custom("a hook's word has a zero byte in it"))
        }
        Some(_) => Ok(Some(words)),
    }
}
