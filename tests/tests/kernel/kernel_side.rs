//! Steps as a script of the guest, and its output as answers.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::{
    breakable::Broken,
    guest::Guest,
    steps::{Answer, Step, Table},
};

/// The metadata device is a linear device over vda, so that it can be resized and broken; vdb is the data device, vdc
/// has the bytes to write, vdd is the external origin.
const TWIN: &str = r#"
number=0
newline='
'
step() { # COMMAND...: its first line of output, and what the status is then
  if answer=$("$@" 2>&1); then answer="ok: $answer"; fi
  echo "= $number ${answer%%"$newline"*}"
  number=$((number + 1))
  if [ -n "$silent" ]; then silent=; else dmsetup status; fi
}
silent=
failed() { cat /tmp/end; return 1; }
meta_table() { # TABLE
  dmsetup suspend --noflush --nolockfs meta; echo "$1" | dmsetup load meta; dmsetup resume meta
}
meta_size() { meta_table "0 $1 linear /dev/vda 0"; }
break_meta() {
  case $1 in
    nothing) meta_size "$2" ;;
    all) meta_table "0 $2 error" ;;
    *) meta_table "0 8 linear /dev/vda 0
8 $(($2 - 8)) flakey /dev/vda 8 0 1000 1 error_writes" ;;
  esac
}
up() { dmsetup create pool --table "$1" && dmsetup table pool; }
reload() { dmsetup suspend pool; dmsetup load pool --table "$1" && dmsetup resume pool && dmsetup table pool; }
close() {
  for device in $(dmsetup ls --target thin | cut -f 1); do dmsetup remove "$device"; done
  dmsetup remove pool
}
over() { dmsetup create "thin-$1" --table "0 $2 thin /dev/mapper/pool $1 /dev/vdd"; }
reads() { set -- $(sha256sum "/dev/mapper/thin-$1"); echo "$1"; }
events() { dmsetup info -c --noheadings -o events pool; }
wait_for() { while :; do case " $(dmsetup status --noflush pool) " in *" $1 "*) return ;; esac; done; }
begin() { put "$@" >/tmp/later 2>&1 & later=$!; }
end() { if wait "$later"; then cat /tmp/later; else cat /tmp/later; return 1; fi; }
"#;

/// The lines of a script that takes the steps.
fn script(steps: &[Step], metadata_sectors: u64) -> Result<String> {
    let mut text = format!("{TWIN}\ndmsetup create meta --table '0 {metadata_sectors} linear /dev/vda 0'\n");
    let mut size = metadata_sectors;
    for step in steps {
        if step.is_silent() {
            text.push_str("silent=yes\n");
        }
        match step {
            Step::Up(table) => writeln!(text, "step up '{}'", line(table))?,
            Step::Reload(table) => writeln!(text, "step reload '{}'", line(table))?,
            Step::Down => writeln!(text, "step close")?,
            Step::Message(message) | Step::Unsaid(message) => writeln!(text, "step message '{message}'")?,
            Step::Thin(device, sectors) => writeln!(text, "step thin_up {device} {sectors}")?,
            Step::Over(device, sectors) => writeln!(text, "step over {device} {sectors}")?,
            Step::Remove(device) => writeln!(text, "step dmsetup remove thin-{device}")?,
            Step::Write(device, offset, length, source) => {
                writeln!(text, "step put {device} {offset} {length} {source}")?;
            }
            Step::Discard(device, offset, length) => {
                writeln!(text, "step discard {device} {offset} {length}")?;
            }
            Step::Read(device) => writeln!(text, "step reads {device}")?,
            Step::Events => writeln!(text, "step events")?,
            Step::ResizeMetadata(sectors) => {
                size = *sectors;
                writeln!(text, "step meta_size {sectors}")?;
            }
            Step::Break(broken) => {
                let what = match broken {
                    Broken::Nothing => "nothing",
                    Broken::Writes => "writes",
                    Broken::All => "all",
                };
                writeln!(text, "modprobe dm-flakey; step break_meta {what} {size}")?;
            }
            // Not in the subshell of a step: the shell must know its child.
            Step::Begin(device, offset, length, source) => {
                writeln!(text, "begin {device} {offset} {length} {source}; step true")?;
            }
            Step::Await(word) => writeln!(text, "wait_for {word}; step true")?,
            Step::End => writeln!(text, "if end >/tmp/end; then step cat /tmp/end; else step failed; fi")?,
            Step::Timeout(seconds) => writeln!(
                text,
                "echo {seconds} >/sys/module/dm_thin_pool/parameters/no_space_timeout; step true"
            )?,
            Step::ClearNeedsCheck => {
                writeln!(text, "step thin_check -q --clear-needs-check-flag /dev/mapper/meta")?;
            }
        }
    }
    text.push_str("dmsetup remove meta\ncheck\n");
    Ok(text)
}

fn line(table: &Table) -> String {
    let Table { sectors, block, arguments } = table;
    format!("0 {sectors} thin-pool /dev/mapper/meta /dev/vdb {block} {arguments}")
}

/// Has the kernel take the steps; all is down and checked afterwards.
pub(crate) fn run(
    guest: &Guest,
    disks: &[&Path],
    metadata_sectors: u64,
    steps: &[Step],
) -> Result<Vec<Answer>> {
    let report = guest.run(&script(steps, metadata_sectors)?, disks)?;
    let mut answers: Vec<Answer> = Vec::new();
    for line in report.lines() {
        if let Some((number, text)) = head(line) {
            ensure!(number == answers.len(), "answer {number} is not next: {line}");
            answers.push(Answer { result: result(text), status: Vec::new() });
        } else if line.starts_with("pool:") || line.starts_with("thin-") {
            let answer = answers.last_mut().with_context(|| format!("a status before an answer: {line}"))?;
            answer.status.push(line.to_owned());
            answer.status.sort();
        }
    }
    Ok(answers)
}

/// The number and the text of a line that begins an answer.
fn head(line: &str) -> Option<(usize, &str)> {
    let (number, text) = line.strip_prefix("= ")?.split_once(' ')?;
    Some((number.parse().ok()?, text))
}

/// What a step said, without what only a guest has: names of programs and numbers of devices.
fn result(text: &str) -> String {
    let Some(value) = text.strip_prefix("ok: ") else {
        return text.rsplit(": ").next().unwrap_or(text).to_owned();
    };
    let words: Vec<&str> = value.splitn(6, ' ').collect();
    match words.as_slice() {
        [_, _, "thin-pool", _, _, rest] => format!("ok {rest}"),
        _ if value.is_empty() => "ok".to_owned(),
        _ => format!("ok {value}"),
    }
}
