//! The machine with the real kernel, as the tests use it.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context as _, Result, bail, ensure};

/// Longest time that one boot with its script may take, unless THINBAK_VM_SECONDS says. The guest is emulated, and the machine
/// may be busy.
const LIMIT_SECONDS: &str = "240";

/// A built guest.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    cache: PathBuf,
}

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vm")
}

impl Guest {
    /// The guest, if these tests are wanted: a cache that is built in THINBAK_VM_DIR, or THINBAK_VM=1, which builds
    /// one. Else the reason is printed, past the test harness that would swallow it.
    pub(crate) fn find() -> Result<Option<Self>> {
        let cache = std::env::var_os("THINBAK_VM_DIR").map(PathBuf::from);
        if std::env::var("THINBAK_VM").is_ok_and(|value| value == "1") {
            let cache = cache.unwrap_or_else(|| tools().join("../../target/vm"));
            built(&cache)?;
            return Ok(Some(Self { cache }));
        }
        if let Some(cache) = cache.filter(|cache| cache.join("stamp").is_file()) {
            return Ok(Some(Self { cache }));
        }
        let reason =
            "skipped: needs a guest with the real kernel; set THINBAK_VM=1 (tests/vm/build makes one)";
        writeln!(std::io::stderr(), "{reason}")?;
        Ok(None)
    }

    /// Boots, runs the shell script with the raw files as /dev/vda, /dev/vdb, ..., and gives what it reported.
    /// An exit status other than 0 is an error that carries all output and the kernel's console.
    pub(crate) fn run(&self, script: &str, disks: &[&Path]) -> Result<Report> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("script");
        let console = folder.path().join("console");
        std::fs::write(&file, format!("#!/bin/sh\nset -eu\n{PRELUDE}\n{script}\n"))?;
        let output = Command::new(tools().join("run"))
            .arg(&file)
            .args(disks)
            .env("THINBAK_VM_DIR", &self.cache)
            .env(
                "THINBAK_VM_SECONDS",
                std::env::var("THINBAK_VM_SECONDS").unwrap_or(LIMIT_SECONDS.to_owned()),
            )
            .env("THINBAK_VM_CONSOLE", &console)
            .output()
            .context("running tests/vm/run")?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let console = std::fs::read(&console).unwrap_or_default();
            bail!(
                "the guest's script: {}\nstdout: {stdout}\nstderr: {}\nconsole: {}\nscript: {script}",
                output.status,
                String::from_utf8_lossy(&output.stderr),
                String::from_utf8_lossy(&console),
            );
        }
        Ok(Report { stdout })
    }
}

/// Builds the cache, once in this process.
fn built(cache: &Path) -> Result<()> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    let result = BUILT.get_or_init(|| {
        let output =
            Command::new(tools().join("build")).arg(cache).output().map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    });
    result.as_ref().map_err(|error| anyhow::anyhow!("tests/vm/build: {error}"))?;
    Ok(())
}

/// What scripts are made of. The pool lies on vda (metadata) and vdb (data); vdc holds the bytes that are written.
const PRELUDE: &str = r#"
pool_up() { # BLOCK_SECTORS
  sectors=$(blockdev --getsz /dev/vdb)
  dmsetup create pool --table "0 $((sectors / $1 * $1)) thin-pool /dev/vda /dev/vdb $1 0 1 error_if_no_space"
}
thin_up() { dmsetup create "thin-$1" --table "0 $2 thin /dev/mapper/pool $1"; } # DEVICE SECTORS
down() {
  for device in $(dmsetup ls --target thin | cut -f 1); do dmsetup remove "$device"; done
  dmsetup remove pool
}
check() { thin_check -q /dev/vda || { thin_check /dev/vda >&2; exit 1; }; }
message() { dmsetup message pool 0 "$*"; }
snapshot() { # NEW ORIGIN
  dmsetup suspend "thin-$2"
  message create_snap "$1" "$2"
  dmsetup resume "thin-$2"
}
put() { # DEVICE OFFSET LENGTH SOURCE, in bytes: one write
  dd if=/dev/vdc of="/dev/mapper/thin-$1" bs="$3" count=1 skip="$4" iflag=skip_bytes,fullblock \
    seek="$2" oflag=seek_bytes,direct conv=notrunc status=none
}
discard() { blkdiscard -o "$2" -l "$3" "/dev/mapper/thin-$1"; } # DEVICE OFFSET LENGTH
# Lines `KEY VALUE` of the report. Starting a program costs most here, so words are cut by the shell.
say_pool() { # KEY
  set -- "$1" $(dmsetup status pool)
  key=$1
  shift 4
  echo "$key $*"
}
say_thin() { # KEY DEVICE
  set -- "$1" "$2" $(dmsetup status "thin-$2") $(sha256sum "/dev/mapper/thin-$2")
  echo "$1.mapped.$2 $6 $7"
  echo "$1.sha256.$2 $8"
}
"#;

/// Lines `KEY VALUE` that a script printed.
#[derive(Debug)]
pub(crate) struct Report {
    stdout: String,
}

impl Report {
    /// All that the script printed.
    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.stdout.lines()
    }

    /// The value of a key that must be there once.
    pub(crate) fn get(&self, key: &str) -> Result<&str> {
        let mut values = self.stdout.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        let value = values.next().with_context(|| format!("no {key} in the report:\n{}", self.stdout))?;
        ensure!(values.next().is_none(), "{key} twice in the report:\n{}", self.stdout);
        Ok(value.trim_end())
    }
}
