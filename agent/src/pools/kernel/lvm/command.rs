//! LVM's commands: started by name, without a shell, one at a time.
//!
//! A command is in a process group of its own and is not ended with us: what it has begun in a volume group it ends (as a
//! service that needs `KillMode=process`: systemd would end it too). Of the
//! files that LVM keeps beside a change, the *backup* of the present state is written as ever, so that `vgcfgrestore` finds
//! it; an *archive* of the state before, which is kept for 30 days, is not: a job changes tags and snapshots several times, and
//! thousands of files would bury those of what people changed. (`--autobackup n` would be the other way round.)

use std::{
    io,
    os::unix::process::CommandExt as _,
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use thinbak_proto::{Failed, FailureKind};

/// The program; the commands are its first argument.
const PROGRAM: &str = "lvm";
const NO_ARCHIVE: &str = "backup { archive = 0 }";
/// How values are written, whatever lvm.conf(5) of this host says, section "report". Times are seconds since 1970.
const REPORT_FORMAT: &str = "report { time_format = \"%s\" binary_values_as_numeric = 0 list_item_separator = \",\" \
                             compact_output = 0 compact_output_cols = \"\" }";
/// How long a command may take: it waits for whoever has the volume group locked.
const REPORT_LIMIT: Duration = Duration::from_secs(60);
const CHANGE_LIMIT: Duration = Duration::from_secs(300);
/// How long one has to end after it was asked to.
const GRACE: Duration = Duration::from_secs(10);
/// Of what a command says, so much is told.
const MOST_SAID: usize = 400;

/// What the reports say of volumes; [`Group`](super::report::Group) reads it.
pub(super) const COLUMNS: &str = "vg_name,vg_uuid,vg_extent_size,lv_name,lv_uuid,lv_size,lv_time,lv_layout,lv_active,\
                                  lv_permissions,lv_merging,lv_device_open,lv_tags,origin,pool_lv,pool_lv_uuid,thin_id,\
                                  transaction_id";

/// Whether a command failed because of what is asked, or could not be run.
#[derive(Debug)]
pub(super) enum CommandError {
    /// It ended with an error, and said this.
    Said { command: String, said: String },
    /// It could not be run, or did not end.
    Failed(Failed),
}

impl From<CommandError> for Failed {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Failed(failed) => failed,
            CommandError::Said { command, said } => {
                let verb = command.split(' ').nth(1).unwrap_or(PROGRAM);
                Self::new(FailureKind::Failed, format!("{verb}: {said}"))
                    .with_hint(format!("the command was: {command}"))
            }
        }
    }
}

/// Volumes of a volume group, or of all, as JSON.
pub(super) fn report(group: Option<&str>) -> Result<Vec<u8>, CommandError> {
    let words = ["lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "--config"];
    let words = words.into_iter().chain([REPORT_FORMAT, "-o", COLUMNS]).chain(group);
    run(&words.collect::<Vec<_>>(), REPORT_LIMIT, true)
}

/// Whether there is a volume group of this name.
pub(super) fn has_group(name: &str) -> Result<bool, CommandError> {
    let said = run(&["vgs", "--noheadings", "-o", "vg_name"], REPORT_LIMIT, true)?;
    Ok(String::from_utf8_lossy(&said).lines().any(|line| line.trim() == name))
}

/// A volume group in the words of `vgcfgbackup`, which `vgcfgrestore` reads.
pub(super) fn describe(group: &str) -> Result<String, Failed> {
    let failed = |error: io::Error| Failed::new(FailureKind::Failed, format!("vgcfgbackup: {error}"));
    let place = tempfile::tempdir().map_err(failed)?;
    let path = place.path().join("group");
    let words = ["vgcfgbackup", "-qq", "-f", &path.to_string_lossy(), group];
    run(&words, REPORT_LIMIT, true)?;
    std::fs::read_to_string(&path).map_err(failed)
}

/// Runs a command that changes something: its name and its arguments.
pub(super) fn change(words: &[&str]) -> Result<(), CommandError> {
    let Some((name, arguments)) = words.split_first() else { return Ok(()) };
    let mut all = vec![*name, "-qq", "-y", "--config", NO_ARCHIVE];
    all.extend(arguments);
    run(&all, CHANGE_LIMIT, false).map(|_| ())
}

fn run(words: &[&str], limit: Duration, may_be_killed: bool) -> Result<Vec<u8>, CommandError> {
    let line = || shown(words);
    let failed = |failed: Failed| CommandError::Failed(failed);
    let child = Command::new(PROGRAM)
        .args(words)
        .env("LC_ALL", "C")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let child = child.map_err(|error| {
        let message = format!("run {PROGRAM} {}: {error}", words.first().unwrap_or(&""));
        let told = Failed::new(FailureKind::Failed, message);
        failed(match error.kind() {
            io::ErrorKind::NotFound => told.with_hint("pools of LVM need its commands: install lvm2"),
            _ => told,
        })
    })?;
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (told, ended) = mpsc::channel();
    let waiter = thread::Builder::new().name("lvm".to_owned());
    waiter
        .spawn(move || told.send(child.wait_with_output()))
        .map_err(|error| failed(Failed::new(FailureKind::Failed, format!("run {}: {error}", line()))))?;
    if let Ok(output) = ended.recv_timeout(limit) {
        return judge(output, &line());
    }
    let signal = |signal| group.map(|group| kill_process_group(group, signal));
    let _ = signal(Signal::INT);
    if ended.recv_timeout(GRACE).is_err() && may_be_killed {
        let _ = signal(Signal::KILL);
    }
    let message = format!("`{}` took longer than {} s", line(), limit.as_secs());
    Err(failed(
        Failed::new(FailureKind::Busy, message).with_hint(
            "somebody may have the volume group locked: see what other commands of LVM are running",
        ),
    ))
}

fn judge(output: io::Result<Output>, line: &str) -> Result<Vec<u8>, CommandError> {
    let output = output.map_err(|error| {
        CommandError::Failed(Failed::new(FailureKind::Failed, format!("run {line}: {error}")))
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = match one_line(&String::from_utf8_lossy(&output.stderr)) {
        said if said.is_empty() => output.status.to_string(),
        said => said,
    };
    Err(CommandError::Said { command: line.to_owned(), said })
}

/// What a command said, without its warnings if it said anything else.
fn one_line(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let errors: Vec<&str> = lines.iter().copied().filter(|line| !line.starts_with("WARNING")).collect();
    let all = if errors.is_empty() { lines } else { errors }.join("; ");
    let mut told: String =
        all.chars().take(MOST_SAID).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if told.len() < all.len() {
        told.push_str("...");
    }
    told
}

/// As one would type it.
fn shown(words: &[&str]) -> String {
    let is_plain = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-+_./=:,".contains(c))
    };
    let quoted = words.iter().map(|word| {
        if is_plain(word) { (*word).to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
    });
    [PROGRAM.to_owned()].into_iter().chain(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_says_becomes_one_line_without_its_warnings() {
        let said = "  WARNING: something\n  Volume group \"x\" not found\n  Cannot process volume group x\n";
        assert_eq!(one_line(said), "Volume group \"x\" not found; Cannot process volume group x");
        assert_eq!(one_line("  WARNING: alone\n"), "WARNING: alone");
        assert!(one_line(&"y".repeat(1000)).len() < 500);
    }

    #[test]
    fn a_command_is_shown_as_it_can_be_typed() {
        assert_eq!(shown(&["lvs", "--config", "a { b = 0 }", "vg/x"]), "lvm lvs --config 'a { b = 0 }' vg/x");
    }
}
