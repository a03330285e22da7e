//! Debian's tools, run on the engine's metadata, and the engine's answers beside theirs.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use thinbak_engine::{
    Access, FileDevice,
    delta::{DeltaOptions, delta_xml},
    dump::dump_xml,
    metadata_view::{MetadataView, Roots},
};
use thinbak_tests::spawn;

use crate::place::id;

/// What a tool prints; it must succeed.
pub(crate) fn tool(arguments: &[&str], metadata: &Path) -> Result<String> {
    let (name, rest) = arguments.split_first().context("no tool")?;
    let mut command = Command::new(name);
    command.args(rest).arg(metadata).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = spawn(&mut command)?.wait_with_output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The engine's view of the metadata.
pub(crate) fn view(metadata: &Path, roots: Roots) -> Result<MetadataView> {
    let device = Arc::new(FileDevice::open(metadata, Access::ReadOnly)?);
    Ok(MetadataView::open(device, roots)?)
}

/// The engine's dump, which is that of `thin_dump`.
pub(crate) fn dump(metadata: &Path, roots: Roots) -> Result<String> {
    let mut ours = Vec::new();
    dump_xml(&view(metadata, roots)?, None, &mut ours)?;
    let arguments: &[&str] = if roots == Roots::MetadataSnap { &["thin_dump", "-m"] } else { &["thin_dump"] };
    let theirs = tool(arguments, metadata)?;
    ensure!(theirs.as_bytes() == ours, "thin_dump prints\n{theirs}");
    Ok(theirs)
}

/// The engine's delta of two devices, which is that of `thin_delta`; with data blocks too.
pub(crate) fn delta(metadata: &Path, roots: Roots, left: u64, right: u64) -> Result<String> {
    let view = view(metadata, roots)?;
    let (from, to) = (left.to_string(), right.to_string());
    let mut plain = String::new();
    for data_blocks in [true, false] {
        let mut arguments = vec!["thin_delta", "--thin1", &from, "--thin2", &to];
        arguments.extend((roots == Roots::MetadataSnap).then_some("-m"));
        arguments.extend(data_blocks.then_some("--verbose"));
        let theirs = tool(&arguments, metadata)?;
        let mut ours = Vec::new();
        let options = DeltaOptions { data_blocks, ..DeltaOptions::default() };
        delta_xml(&view, id(left), id(right), options, &mut ours)?;
        ensure!(theirs.as_bytes() == ours, "thin_delta prints\n{theirs}");
        plain = theirs;
    }
    Ok(plain)
}
