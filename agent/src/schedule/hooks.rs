//! Programs of the configuration around a run: started without a shell, in a process group of their own, with a time limit.
//!
//! | variable | value |
//! |---|---|
//! | `THINBAK_JOB` | the job's name |
//! | `THINBAK_HOOK` | `before`, `after` or `on_failure` |
//! | `THINBAK_RUN` | `schedule`, `retry` or `manual` |
//! | `THINBAK_ATTEMPT` | 1, or more for a repetition; 0 by hand |
//! | `THINBAK_STARTED_MS` | when the run began, milliseconds since 1970 |
//! | `THINBAK_VOLUMES` | POOL/VOLUME of the run, a line each; as many as fit 96 KiB |
//! | `THINBAK_RESULT` | not for `before`: `ok`, `partial`, `failed` or `interrupted` |
//! | `THINBAK_FAILED_VOLUMES` | not for `before`: those of them that failed |
//! | `THINBAK_ERROR` | not for `before`: why; empty if all went well |
//! | `THINBAK_RETRY_SECONDS` | `on_failure` only: when the run is repeated; empty if it is not |
//!
//! A value other than the volumes is cut at 8 KiB. Control characters other than the end of a line are blanks in it.

use std::{
    fs,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use thinbak_proto::format_duration;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    task::JoinHandle,
};

/// How long a program has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// How long output is waited for that a left-over child may hold open.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Of what a program says, the end is kept.
const KEPT_BYTES: usize = 2048;
/// The kernel takes 128 KiB as one variable at most.
const MAX_VOLUMES_BYTES: usize = 96 * 1024;
/// Of any other value, so much is told at most.
const MAX_VALUE_BYTES: usize = 8 * 1024;

/// A program to run.
pub(super) struct Hook<'a> {
    /// `before`, `after` or `on_failure`.
    pub(super) name: &'static str,
    /// Program and arguments.
    pub(super) words: &'a [String],
    /// How long it may take.
    pub(super) limit: Duration,
    /// What it is told beside its name.
    pub(super) variables: Vec<(&'static str, String)>,
}

impl Hook<'_> {
    /// Runs it to its end, its time limit or `stopped`. The error is a sentence that begins with the program.
    pub(super) async fn run(&self, stopped: impl Future<Output = ()>) -> Result<(), String> {
        let (program, arguments) = self.words.split_first().ok_or("a hook without a program")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(self.variables.iter().map(|(name, value)| (name, value_of(name, value))))
            .env("THINBAK_HOOK", self.name)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("{program} cannot be started: {error}"))?;
        let said = Arc::<Mutex<Vec<u8>>>::default();
        let readers = [
            child.stdout.take().map(|out| listen(out, Arc::clone(&said))),
            child.stderr.take().map(|out| listen(out, Arc::clone(&said))),
        ];
        let ended = tokio::select! {
            ended = child.wait() => match ended {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(how_it_ended(status)),
                Err(error) => Err(format!("was lost: {error}")),
            },
            () = tokio::time::sleep(self.limit) => {
                end(&mut child).await;
                Err(format!("took longer than {} and was ended", format_duration(self.limit)))
            }
            () = stopped => {
                end(&mut child).await;
                Err("was ended, because the run was interrupted".to_owned())
            }
        };
        for mut reader in readers.into_iter().flatten() {
            if tokio::time::timeout(LAST_WORDS, &mut reader).await.is_err() {
                reader.abort();
            }
        }
        let said = clean(&String::from_utf8_lossy(&said.lock()), MAX_VALUE_BYTES).trim().to_owned();
        tracing::info!(hook = self.name, program, ok = ended.is_ok(), said, "a hook has ended");
        ended.map_err(|how| match said.lines().last() {
            Some(last) => format!("{program} {how}: {last}"),
            None => format!("{program} {how}"),
        })
    }
}

/// Volumes as a hook is told them.
pub(super) fn lines<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for name in names {
        if text.len() + name.len() >= MAX_VOLUMES_BYTES {
            break;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(name);
    }
    text
}

/// A value as it is put into the environment: a zero byte in it would keep the program from being started.
fn value_of(name: &str, value: &str) -> String {
    let most = match name {
        "THINBAK_VOLUMES" | "THINBAK_FAILED_VOLUMES" => MAX_VOLUMES_BYTES,
        _ => MAX_VALUE_BYTES,
    };
    clean(value, most)
}

/// The beginning of a text, no more bytes than `most`, with blanks for control characters other than the line's end.
fn clean(text: &str, most: usize) -> String {
    let mut cleaned = String::new();
    for c in text.chars() {
        if cleaned.len() + c.len_utf8() > most {
            break;
        }
        cleaned.push(if c.is_control() && c != '\n' { ' ' } else { c });
    }
    cleaned
}

/// Asks a program and all that it started to end, then ends them.
async fn end(child: &mut Child) {
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let Some(group) = group else { return };
    // One that has just ended needs no signal.
    let _ = kill_process_group(group, Signal::TERM);
    let waited = tokio::time::timeout(GRACE, child.wait()).await;
    let _ = kill_process_group(group, Signal::KILL);
    if waited.is_err() {
        let _ = child.wait().await;
    }
}

/// Ends the hooks of a run whose process was killed, with what they started. They are known by their environment; what a hook
/// left behind on purpose when it ended stays.
pub(super) async fn end_left(job: &str, started_ms: u64) {
    let marks =
        [format!("THINBAK_JOB={}", value_of("THINBAK_JOB", job)), format!("THINBAK_STARTED_MS={started_ms}")];
    for group in left(&marks) {
        tracing::warn!(job, pid = group.as_raw_pid(), "ending a hook of a run that did not end");
        let _ = kill_process_group(group, Signal::TERM);
        let gone = async {
            while test_kill_process_group(group).is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(GRACE, gone).await.is_err() {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// The leaders of process groups whose environment has these variables.
fn left(marks: &[String]) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter_map(Pid::from_raw)
        .filter(|pid| leads_its_group(*pid))
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_pid())).unwrap_or_default();
            let has = |mark: &String| environment.split(|byte| *byte == 0).any(|one| one == mark.as_bytes());
            marks.iter().all(has)
        })
        .collect()
}

/// By /proc/PID/stat, see proc_pid_stat(5): after the program's name in brackets come state, parent and group.
fn leads_its_group(pid: Pid) -> bool {
    let id = pid.as_raw_pid();
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let group = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(2));
    group.and_then(|group| group.parse().ok()) == Some(id)
}

fn how_it_ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

/// Keeps the end of what is said.
fn listen(mut out: impl AsyncRead + Unpin + Send + 'static, said: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut buffer = [0; 1024];
        while let Ok(len) = out.read(&mut buffer).await {
            if len == 0 {
                break;
            }
            let mut said = said.lock();
            said.extend_from_slice(buffer.get(..len).unwrap_or_default());
            let beyond = said.len().saturating_sub(KEPT_BYTES);
            said.drain(..beyond);
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;

    use super::*;

    async fn run(words: &[&str], limit: Duration) -> Result<(), String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let variables = vec![("THINBAK_JOB", "j".to_owned())];
        let hook = Hook { name: "before", words: &words, limit, variables };
        hook.run(std::future::pending()).await
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_hook_is_told_its_job_and_its_failure_says_why() {
        run(&["/bin/sh", "-c", "test $THINBAK_JOB-$THINBAK_HOOK = j-before"], LONG).await.unwrap();
        let failed = run(&["/bin/sh", "-c", "echo one; echo two >&2; exit 7"], LONG).await.unwrap_err();
        assert!(failed.starts_with("/bin/sh ended with exit code 7: "), "{failed}");
        let failed = run(&["/none/such"], LONG).await.unwrap_err();
        assert!(failed.starts_with("/none/such cannot be started"), "{failed}");
    }

    #[tokio::test]
    async fn a_hook_that_takes_too_long_is_ended_with_what_it_started() {
        let words = ["/bin/sh", "-c", "sleep 1000 & sleep 1000"];
        let failed = run(&words, Duration::from_millis(50)).await.unwrap_err();
        assert!(failed.contains("took longer than"), "{failed}");
    }

    #[tokio::test]
    async fn a_child_that_is_left_over_is_not_waited_for() {
        run(&["/bin/sh", "-c", "sleep 3 & exit 0"], LONG).await.unwrap();
    }

    #[tokio::test]
    async fn a_hook_that_outlived_its_agent_is_ended_and_no_other() {
        let start = |started: &str| {
            std::process::Command::new("/bin/sh")
                .args(["-c", "trap '' TERM; while :; do sleep 1000; done"])
                .envs([("THINBAK_JOB", "left over"), ("THINBAK_STARTED_MS", started)])
                .process_group(0)
                .spawn()
                .unwrap()
        };
        let (mut ours, mut others) = (start("170"), start("1700"));
        end_left("left over", 170).await;
        assert!(!ours.wait().unwrap().success());
        assert!(others.try_wait().unwrap().is_none());
        end_left("left over", 1700).await;
        others.wait().unwrap();
    }

    #[tokio::test]
    async fn what_a_hook_says_with_zero_bytes_keeps_no_other_from_being_started() {
        let failed = run(&["/bin/sh", "-c", "printf 'a\\000b\\033c'; exit 1"], LONG).await.unwrap_err();
        assert!(failed.ends_with(": a b c"), "{failed:?}");
        let words = ["/bin/sh", "-c", "test \"$THINBAK_ERROR\" = 'x y' && test ${#THINBAK_JOB} = 8192"];
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let variables = vec![("THINBAK_ERROR", "x\0y".to_owned()), ("THINBAK_JOB", "j".repeat(200_000))];
        let hook = Hook { name: "after", words: &words, limit: LONG, variables };
        hook.run(std::future::pending()).await.unwrap();
    }

    #[test]
    fn many_volumes_are_told_as_far_as_they_fit() {
        assert_eq!(lines(["a", "b"]), "a\nb");
        let name = "x".repeat(1000);
        let text = lines(std::iter::repeat_n(name.as_str(), 500));
        assert!(text.len() < 128 * 1024 && text.len() > 90_000);
    }
}
