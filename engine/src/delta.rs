//! The difference of two thin devices as text: the XML of `thin_delta`, and JSON with the same content.

use std::io::{self, Write};

use serde::Serialize;

use crate::{
    DeviceId, MetadataBlock,
    dump::{TextError, separator},
    metadata_view::{Delta, DeltaKind, DeltaRun, MetadataView, ViewError},
};

impl DeltaKind {
    /// The word that `thin_delta` uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Same { .. } => "same",
            Self::Different { .. } => "different",
            Self::LeftOnly { .. } => "left_only",
            Self::RightOnly { .. } => "right_only",
        }
    }
}

fn root(view: &MetadataView, device: DeviceId) -> Result<MetadataBlock, TextError> {
    Ok(view.device(device)?.ok_or(TextError::NoSuchDevice(device))?.root)
}

fn runs(view: &MetadataView, left: DeviceId, right: DeviceId) -> Result<Delta, TextError> {
    Ok(view.delta(root(view, left)?, root(view, right)?))
}

/// Joins neighbouring runs of the same class, wherever their data blocks lie.
struct Classes {
    delta: Delta,
    pending: Option<DeltaRun>,
}

impl Iterator for Classes {
    type Item = Result<DeltaRun, ViewError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let run = match self.delta.next() {
                Some(Ok(run)) => run,
                Some(Err(error)) => {
                    self.pending = None;
                    return Some(Err(error));
                }
                None => return self.pending.take().map(Ok),
            };
            match &mut self.pending {
                Some(pending)
                    if pending.kind.name() == run.kind.name()
                        && pending.begin.0.checked_add(pending.length) == Some(run.begin.0) =>
                {
                    pending.length = pending.length.saturating_add(run.length);
                }
                pending => {
                    if let Some(complete) = pending.replace(run) {
                        return Some(Ok(complete));
                    }
                }
            }
        }
    }
}

/// Writes what `thin_delta` (0.9) prints for two devices of one pool; with `verbose` also the data blocks.
///
/// # Errors
/// When the metadata is damaged or cannot be read, when a device does not exist (then nothing is written),
/// when `out` fails.
pub fn delta_xml(
    view: &MetadataView,
    left: DeviceId,
    right: DeviceId,
    verbose: bool,
    out: &mut dyn Write,
) -> Result<(), TextError> {
    let delta = runs(view, left, right)?;
    let superblock = view.superblock();
    write!(
        out,
        r#"<superblock uuid="" time="{}" transaction="{}" data_block_size="{}" nr_data_blocks="{}""#,
        superblock.time,
        superblock.transaction_id,
        superblock.block_size.sectors(),
        superblock.data_space_map.nr_blocks,
    )?;
    if let Some(held) = superblock.held_root {
        write!(out, r#" metadata_snap="{}""#, held.0)?;
    }
    writeln!(out, ">")?;
    writeln!(out, r#"  <diff left="{}" right="{}">"#, left.get(), right.get())?;
    if verbose {
        xml_ranges(delta, out)?;
    } else {
        for run in (Classes { delta, pending: None }) {
            let run = run?;
            let (name, begin, length) = (run.kind.name(), run.begin.0, run.length);
            writeln!(out, r#"    <{name} begin="{begin}" length="{length}"/>"#)?;
        }
    }
    writeln!(out, "  </diff>")?;
    writeln!(out, "</superblock>")?;
    Ok(())
}

fn xml_ranges(delta: Delta, out: &mut dyn Write) -> Result<(), TextError> {
    let mut open: Option<&'static str> = None;
    for run in delta {
        let run = run?;
        let name = run.kind.name();
        if open != Some(name) {
            if let Some(open) = open {
                writeln!(out, "    </{open}>")?;
            }
            writeln!(out, "    <{name}>")?;
            open = Some(name);
        }
        write!(out, r#"      <range begin="{}" "#, run.begin.0)?;
        match run.kind {
            DeltaKind::Same { data_begin }
            | DeltaKind::LeftOnly { data_begin }
            | DeltaKind::RightOnly { data_begin } => write!(out, r#"data_begin="{}""#, data_begin.0)?,
            DeltaKind::Different { left_data_begin, right_data_begin } => write!(
                out,
                r#"left_data_begin="{}" right_data_begin="{}""#,
                left_data_begin.0, right_data_begin.0
            )?,
        }
        writeln!(out, r#" length="{}"/>"#, run.length)?;
    }
    if let Some(open) = open {
        writeln!(out, "    </{open}>")?;
    }
    Ok(())
}

#[derive(Serialize)]
struct JsonRun {
    kind: &'static str,
    begin: u64,
    length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_begin: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    left_data_begin: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    right_data_begin: Option<u64>,
}

impl JsonRun {
    fn new(run: &DeltaRun, verbose: bool) -> Self {
        let mut json = Self {
            kind: run.kind.name(),
            begin: run.begin.0,
            length: run.length,
            data_begin: None,
            left_data_begin: None,
            right_data_begin: None,
        };
        if verbose {
            match run.kind {
                DeltaKind::Same { data_begin }
                | DeltaKind::LeftOnly { data_begin }
                | DeltaKind::RightOnly { data_begin } => json.data_begin = Some(data_begin.0),
                DeltaKind::Different { left_data_begin, right_data_begin } => {
                    json.left_data_begin = Some(left_data_begin.0);
                    json.right_data_begin = Some(right_data_begin.0);
                }
            }
        }
        json
    }
}

/// Writes the content of [`delta_xml`] as one JSON document:
/// `{"superblock": {..}, "left": id, "right": id, "runs": [{kind, begin, length, ..}]}`.
///
/// # Errors
/// As [`delta_xml`].
pub fn delta_json(
    view: &MetadataView,
    left: DeviceId,
    right: DeviceId,
    verbose: bool,
    out: &mut dyn Write,
) -> Result<(), TextError> {
    let delta = runs(view, left, right)?;
    let superblock = view.superblock();
    write!(
        out,
        r#"{{"superblock":{{"uuid":"","time":{},"transaction":{},"data_block_size":{},"nr_data_blocks":{},"metadata_snap":"#,
        superblock.time,
        superblock.transaction_id,
        superblock.block_size.sectors(),
        superblock.data_space_map.nr_blocks,
    )?;
    serde_json::to_writer(&mut *out, &superblock.held_root.map(|held| held.0)).map_err(io::Error::from)?;
    write!(out, r#"}},"left":{},"right":{},"runs":["#, left.get(), right.get())?;
    if verbose {
        json_runs(delta, verbose, out)?;
    } else {
        json_runs(Classes { delta, pending: None }, verbose, out)?;
    }
    writeln!(out, "]}}")?;
    Ok(())
}

fn json_runs(
    runs: impl Iterator<Item = Result<DeltaRun, ViewError>>,
    verbose: bool,
    out: &mut dyn Write,
) -> Result<(), TextError> {
    for (index, run) in runs.enumerate() {
        write!(out, "{}", separator(index))?;
        serde_json::to_writer(&mut *out, &JsonRun::new(&run?, verbose)).map_err(io::Error::from)?;
    }
    Ok(())
}
