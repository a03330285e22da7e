//! Settings: flags over environment over file.
//!
//! | setting | flag | environment | file |
//! |---|---|---|---|
//! | state directory | `--state-dir` | `THINBAK_STATE_DIR` | `state_dir` |
//! | the agent's socket | `--socket` | `THINBAK_SOCKET` | `socket` |
//! | backup server | `--server` | `THINBAK_SERVER` | `server` |
//! | embedded repository | `--repo` | `THINBAK_REPOSITORY` | `repository` |
//! | the server's certificate | `--fingerprint` | `THINBAK_FINGERPRINT` | `fingerprint` |
//! | who vouches for it | `--ca` | `THINBAK_CA_FILE` | `ca` |
//! | the token | `--token-file` | `THINBAK_TOKEN_FILE` | `token_file` |
//! | this client's certificate | `--client-cert` | `THINBAK_CLIENT_CERT` | `client_certificate` |
//! | its key | `--client-key` | `THINBAK_CLIENT_KEY` | `client_key` |
//! | the file itself | `--config` | `THINBAK_CONFIG` | |
//!
//! The rest of the file, jobs and metrics, has no flags.
//!
//! Server and repository are one choice: whichever stands at the higher level counts; both at one level are
//! an error. What the file says of the trust in its server holds for that server only: another one, named by flag or
//! environment, is not shown the token. A state directory that is not the default one has its agent's socket in it.

mod file;
mod guard;
mod job;
mod selector;
mod size;
mod trust;

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use thinbak_proto::{
    Failed, FailureKind,
    v1::{RepositoryAddress, repository_address::Address},
};

use file::File;

pub use file::JobsConfig;
pub use guard::{GuardLimits, Share};
pub use job::{Hooks, JobConfig, Retry, Schedule};
pub use selector::Selector;
pub(crate) use size::parse_size;
pub use trust::Trust;

/// Read when it exists and no other is named.
pub const DEFAULT_FILE: &str = "/etc/thinbak/agent.toml";
/// What the kernel takes as the path of a unix socket at most.
const MAX_SOCKET_BYTES: usize = 107;

/// What one level says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Level {
    /// Where the agent keeps what it knows.
    pub state_dir: Option<PathBuf>,
    /// Where the agent listens.
    pub socket: Option<PathBuf>,
    /// URL of a backup server.
    pub server: Option<String>,
    /// Directory of an embedded repository.
    pub repository: Option<PathBuf>,
    /// What the server is trusted by.
    pub trust: Trust,
}

/// What the process was started in.
pub struct Surroundings<'a> {
    /// An environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// Whether the process runs as root.
    pub root: bool,
    /// The current directory, which relative paths are relative to.
    pub directory: PathBuf,
}

/// What holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the agent keeps what it knows. Absolute.
    pub state_dir: PathBuf,
    /// Where the agent listens. Absolute.
    pub socket: PathBuf,
    /// Where the agent tells its metrics.
    pub metrics: Option<SocketAddr>,
    /// What the agent does by itself.
    pub jobs: JobsConfig,
    /// How much of pools is left alone.
    pub guard: GuardLimits,
    repository: Option<Address>,
}

impl Settings {
    /// Joins the levels. `file` is the file that a flag names.
    pub fn resolve(flags: Level, file: Option<&Path>, around: &Surroundings<'_>) -> Result<Self, Failed> {
        let variable = |name: &str| (around.variable)(name).filter(|value| !value.is_empty());
        let environment = Level {
            state_dir: variable("THINBAK_STATE_DIR").map(PathBuf::from),
            socket: variable("THINBAK_SOCKET").map(PathBuf::from),
            server: variable("THINBAK_SERVER").map(|url| text("THINBAK_SERVER", url)).transpose()?,
            repository: variable("THINBAK_REPOSITORY").map(PathBuf::from),
            trust: Trust {
                fingerprint: variable("THINBAK_FINGERPRINT")
                    .map(|value| text("THINBAK_FINGERPRINT", value))
                    .transpose()?,
                ca: variable("THINBAK_CA_FILE").map(PathBuf::from),
                token_file: variable("THINBAK_TOKEN_FILE").map(PathBuf::from),
                client_certificate: variable("THINBAK_CLIENT_CERT").map(PathBuf::from),
                client_key: variable("THINBAK_CLIENT_KEY").map(PathBuf::from),
            },
        };
        let named = file.map(Path::to_owned).or_else(|| variable("THINBAK_CONFIG").map(PathBuf::from));
        let File { level: file, metrics, jobs, guard } = File::read(named.as_deref())?;
        let repository = [(&flags, "flags"), (&environment, "environment"), (&file, "configuration file")]
            .into_iter()
            .find_map(|(level, name)| address(level, name, &around.directory).transpose())
            .transpose()?;
        let repository = match repository {
            Some(Address::Url(url)) => {
                let typed = flags.trust.over(environment.trust);
                let trust = if file.server.as_ref() == Some(&url) { typed.over(file.trust) } else { typed };
                Some(trust.of(&url, &around.directory)?)
            }
            other => other,
        };
        let given_state = flags.state_dir.or(environment.state_dir).or(file.state_dir);
        let given_socket = flags.socket.or(environment.socket).or(file.socket);
        let own_state = given_state.is_some();
        let state_dir = match given_state {
            Some(dir) => around.directory.join(dir),
            None => default_state_dir(around.root, &variable)?,
        };
        let socket = match given_socket {
            Some(socket) => around.directory.join(socket),
            None if own_state => state_dir.join("agent.sock"),
            None => default_socket(around.root, &state_dir, &variable),
        };
        if socket.as_os_str().len() > MAX_SOCKET_BYTES {
            return Err(Failed::new(
                FailureKind::Usage,
                format!(
                    "the path of the agent's socket is longer than {MAX_SOCKET_BYTES} bytes: {}",
                    socket.display()
                ),
            )
            .with_hint("give a shorter one with --socket"));
        }
        Ok(Self { state_dir, socket, metrics, jobs, guard, repository })
    }

    /// The repository of a job: its own, else the one of all.
    pub fn repository_of(&self, job: &JobConfig) -> Result<RepositoryAddress, Failed> {
        match &job.repository {
            Some(address) => Ok(RepositoryAddress { address: Some(address.clone()) }),
            None => self.repository().map_err(|failed| Failed {
                message: format!("job `{}`: {}", job.name, failed.message),
                hint: Some("name one with `server` or `repository` in agent.toml".to_owned()),
                ..failed
            }),
        }
    }

    /// The repository that generations go to or come from.
    pub fn repository(&self) -> Result<RepositoryAddress, Failed> {
        match &self.repository {
            Some(address) => Ok(RepositoryAddress { address: Some(address.clone()) }),
            None => Err(Failed::new(FailureKind::Usage, "no repository is named").with_hint(
                "name one with --repo DIR or --server URL (or THINBAK_REPOSITORY, THINBAK_SERVER)",
            )),
        }
    }
}

fn address(level: &Level, name: &str, directory: &Path) -> Result<Option<Address>, Failed> {
    match (&level.server, &level.repository) {
        (Some(_), Some(_)) => {
            Err(Failed::new(FailureKind::Usage, format!("both a server and a repository are named ({name})"))
                .with_hint("choose one with --server URL or --repo DIR"))
        }
        (Some(url), None) => Ok(Some(Address::Url(url.clone()))),
        (None, Some(dir)) => {
            Ok(Some(Address::Directory(text("the repository's path", directory.join(dir).into_os_string())?)))
        }
        (None, None) => Ok(None),
    }
}

fn text(what: &str, value: OsString) -> Result<String, Failed> {
    value.into_string().map_err(|value| {
        Failed::new(FailureKind::Usage, format!("{what} is not valid UTF-8: {}", value.display()))
    })
}

/// This host's name, the first part of its volumes' names on a server.
#[must_use]
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn default_state_dir(root: bool, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf, Failed> {
    if root {
        return Ok(PathBuf::from("/var/lib/thinbak"));
    }
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("thinbak"))
        .ok_or_else(|| {
            Failed::new(FailureKind::Usage, "no place for the agent's state: HOME is not set")
                .with_hint("give one with --state-dir")
        })
}

fn default_socket(root: bool, state_dir: &Path, variable: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
    if root {
        return PathBuf::from("/run/thinbak/agent.sock");
    }
    match variable("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(dir) => dir.join("thinbak/agent.sock"),
        None => state_dir.join("agent.sock"),
    }
}

#[cfg(test)]
mod tests;
