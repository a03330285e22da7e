//! The programs themselves in the guest, on a pool of two real block devices.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use thinbak_tests::{Program, Scratch, program, seed, spawn};

use crate::guest::{Guest, Report};

/// Runs the programs with their own libraries, whatever the guest has.
const PROGRAMS: &str = r#"
mkdir -p /tmp/tools
mount -t ext4 -o ro /dev/vdc /tmp/tools
export THINBAK_STATE_DIR=/tmp/state NO_COLOR=1
alone() { program=$1; shift; /tmp/tools/ld-linux-x86-64.so.2 --library-path /tmp/tools "/tmp/tools/$program" "$@"; }
thinbak() { alone thinbak "$@"; }
refused() { code=$1; shift; if "$@" >/dev/null 2>&1; then return 1; else test $? = "$code"; fi; }
"#;

const SCRIPT: &str = r#"
cp /tmp/tools/content /tmp/content
truncate -s 40M /tmp/content
alone thinbak-server init --repo /tmp/repo >/dev/null 2>&1
thinbak -q pool create p --data /dev/vdb --metadata /dev/vda --size 256M --dir /tmp/p >/dev/null
thinbak -q volume import p/v </tmp/content
thinbak -q backup p/v --repo /tmp/repo >/dev/null
thinbak -q restore p/v:1 --to p/copy --repo /tmp/repo >/dev/null
thinbak volume export p/copy | cmp - /tmp/content
thinbak -q pool check p >/dev/null
check
# The kernel takes the very same devices, and while it has them thinbak keeps off.
pool_up 128
refused 11 thinbak pool status p
thin_up 0 81920
cmp -n 41943040 /dev/mapper/thin-0 /tmp/content
down
# Metadata that are there already are not written over.
refused 5 thinbak pool create q --data /dev/vdb --metadata /dev/vda --size 256M --dir /tmp/q
thinbak -q volume list p >/dev/null
echo "done yes"
"#;

/// A disk with the programs, stripped, the libraries that they need, and the content to back up.
fn tools_disk(scratch: &Scratch, programs: &[Program], content: &[u8]) -> Result<PathBuf> {
    let folder = scratch.join("tools");
    fs::create_dir(&folder)?;
    for program in programs {
        let name = program.path().file_name().context("a program has a name")?;
        run(Command::new("strip").arg("-o").arg(folder.join(name)).arg(program.path()))?;
        let needed = Command::new("ldd").arg(program.path()).output()?;
        for word in
            String::from_utf8_lossy(&needed.stdout).split_whitespace().filter(|word| word.starts_with('/'))
        {
            let library = Path::new(word);
            fs::copy(library, folder.join(library.file_name().context("a library has a name")?))?;
        }
    }
    fs::write(folder.join("content"), content)?;
    let disk = scratch.join("tools.img");
    run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&folder).arg(&disk).arg("192M"))?;
    Ok(disk)
}

fn run(command: &mut Command) -> Result<()> {
    ensure!(spawn(command)?.wait()?.success(), "{command:?} failed");
    Ok(())
}

/// Runs a script in the guest, with an empty disk for metadata, one for data, and one with the programs and 12 MiB of
/// content. `None` without a guest.
pub(crate) fn in_guest(script: &str) -> Result<Option<Report>> {
    let Some(guest) = Guest::find()? else { return Ok(None) };
    let scratch = Scratch::new()?;
    let state = scratch.join("state");
    let programs = [program("thinbak", &state)?, program("thinbak-server", &state)?];
    let mut content = vec![0; 12 << 20];
    StdRng::seed_from_u64(seed()?).fill_bytes(&mut content);
    let tools = tools_disk(&scratch, &programs, &content)?;
    let disks = [scratch.join("metadata"), scratch.join("data")];
    for (disk, bytes) in disks.iter().zip([16 << 20, 256 << 20]) {
        fs::File::create(disk)?.set_len(bytes)?;
    }
    let [metadata, data] = &disks;
    guest.run(script, &[metadata, data, &tools]).map(Some)
}

#[test]
fn a_pool_of_two_block_devices_is_kept_from_others_and_taken_by_the_kernel() -> Result<()> {
    let Some(report) = in_guest(&format!("{PROGRAMS}{SCRIPT}"))? else { return Ok(()) };
    ensure!(report.get("done")? == "yes");
    Ok(())
}
