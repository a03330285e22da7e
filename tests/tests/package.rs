//! The Debian package, of the programs that these tests run: what is in it works from where it is unpacked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use thinbak_tests::{Scratch, program, spawn};

fn said(command: &mut Command) -> Result<String> {
    let output = spawn(command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()))?;
    let output = output.wait_with_output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    Ok(format!("{out}{err}"))
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Makes the package, unpacked in the scratch folder.
fn unpacked(scratch: &Scratch) -> Result<PathBuf> {
    let thinbak = program("thinbak", &scratch.join("state"))?;
    let programs = thinbak.path().parent().context("a program without a folder")?;
    let mut make = Command::new(deploy().join("deb"));
    said(make.arg(programs).arg(scratch.join("out")).env("THINBAK_DEB_FAST", "1"))?;
    let mut made = fs::read_dir(scratch.join("out"))?;
    let package = made.next().context("no package")??.path();
    ensure!(made.next().is_none());
    let root = scratch.join("root");
    said(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root))?;
    let control = said(Command::new("dpkg-deb").arg("-f").arg(&package))?;
    for line in ["Package: thinbak", concat!("Version: ", env!("CARGO_PKG_VERSION")), "Depends: libc6 (>= 2."]
    {
        ensure!(control.contains(line), "{line} is not in {control}");
    }
    Ok(root)
}

#[test]
fn what_is_installed_runs_with_the_configuration_that_is_installed() -> Result<()> {
    let scratch = Scratch::new()?;
    let root = unpacked(&scratch)?;
    for file in [
        "lib/systemd/system/thinbak-agent.service",
        "lib/systemd/system/thinbak-server.service",
        "etc/thinbak/server.toml",
        "usr/share/doc/thinbak/copyright",
        "usr/share/man/man1/thinbak.1.gz",
        "usr/share/man/man1/thinbak-status.1.gz",
        "usr/share/bash-completion/completions/thinbak",
        "usr/share/zsh/vendor-completions/_thinbak",
    ] {
        let len = fs::metadata(root.join(file)).with_context(|| file.to_owned())?.len();
        ensure!(len > 0, "{file} is empty");
    }
    let version = said(Command::new(root.join("usr/bin/thinbak-server")).arg("--version"))?;
    ensure!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    let mut list = Command::new(root.join("usr/bin/thinbak"));
    list.args(["job", "list", "--config"]).arg(root.join("etc/thinbak/agent.toml"));
    let listed = said(list.arg("--state-dir").arg(scratch.join("state")))?;
    ensure!(listed.contains("no [[job]]"), "{listed}");
    Ok(())
}

/// Needs systemd-analyze, which not every machine has; the rest of the test does not.
#[test]
fn the_units_are_sound_and_name_programs_of_the_package() -> Result<()> {
    let scratch = Scratch::new()?;
    let thinbak = program("thinbak", &scratch.join("state"))?;
    let programs = thinbak.path().parent().context("a program without a folder")?;
    let mut units = Vec::new();
    for name in ["thinbak-agent.service", "thinbak-server.service"] {
        let text = fs::read_to_string(deploy().join(name))?;
        ensure!(text.contains("ExecStart=/usr/bin/thinbak"), "{text}");
        let unit = scratch.join(name);
        // The manual pages are not installed here either.
        let here = text.replace("/usr/bin/", &format!("{}/", programs.display()));
        let lines = here.lines().filter(|line| !line.starts_with("Documentation="));
        fs::write(&unit, lines.map(|line| format!("{line}\n")).collect::<String>())?;
        units.push(unit);
    }
    if !Command::new("systemd-analyze").arg("--version").output().is_ok_and(|output| output.status.success())
    {
        return Ok(());
    }
    let verified = said(Command::new("systemd-analyze").arg("verify").args(&units))?;
    let ours: Vec<&str> = verified.lines().filter(|line| line.contains("thinbak")).collect();
    ensure!(ours.is_empty(), "{ours:#?}");
    Ok(())
}
