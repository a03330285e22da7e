//! The difference of two thin devices as text: the XML of `thin_delta`, and JSON with the same content.

use std::io::Write;

use crate::{
    DeviceId, MetadataBlock,
    dump::TextError,
    format::Superblock,
    metadata_view::{DeltaKind, DeltaRun, MetadataView, ViewError},
    text::TextWriter,
};

/// What is told of the difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeltaOptions {
    /// Also where the data blocks lie; a run then ends where they do not ascend, as with `thin_delta --verbose`.
    pub data_blocks: bool,
    /// Leave out what is the same. Then nodes that both devices share are not even read: all that is written is what
    /// the whole difference has too, but in time that depends on what differs rather than on what is mapped.
    pub changes_only: bool,
}

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

    /// Names and first data blocks of the sides that map the run.
    fn data_begins(self) -> impl Iterator<Item = (&'static str, u64)> {
        let (one, other) = match self {
            Self::Same { data_begin } | Self::LeftOnly { data_begin } | Self::RightOnly { data_begin } => {
                (("data_begin", data_begin.0), None)
            }
            Self::Different { left_data_begin, right_data_begin } => {
                (("left_data_begin", left_data_begin.0), Some(("right_data_begin", right_data_begin.0)))
            }
        };
        std::iter::once(one).chain(other)
    }
}

fn root(view: &MetadataView, device: DeviceId) -> Result<MetadataBlock, TextError> {
    Ok(view.device(device)?.ok_or(TextError::NoSuchDevice(device))?.root)
}

/// The runs of two devices, as the options want them.
type Runs = Box<dyn Iterator<Item = Result<DeltaRun, ViewError>>>;

fn runs(
    view: &MetadataView,
    left: DeviceId,
    right: DeviceId,
    options: DeltaOptions,
) -> Result<Runs, TextError> {
    let (left, right) = (root(view, left)?, root(view, right)?);
    let runs: Runs = if options.changes_only {
        Box::new(view.differences(left, right))
    } else {
        Box::new(view.delta(left, right))
    };
    Ok(if options.data_blocks { runs } else { Box::new(Classes { runs, pending: None }) })
}

fn superblock_fields(superblock: &Superblock) -> [(&'static str, u64); 4] {
    [
        ("time", superblock.time.into()),
        ("transaction", superblock.transaction_id),
        ("data_block_size", superblock.block_size.sectors().into()),
        ("nr_data_blocks", superblock.data_space_map.nr_blocks),
    ]
}

/// Joins neighbouring runs of the same class, wherever their data blocks lie.
struct Classes<R> {
    runs: R,
    pending: Option<DeltaRun>,
}

impl<R: Iterator<Item = Result<DeltaRun, ViewError>>> Iterator for Classes<R> {
    type Item = Result<DeltaRun, ViewError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let run = match self.runs.next() {
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

/// Writes what `thin_delta` (0.9) prints for two devices of one pool.
///
/// # Errors
/// When the metadata is damaged or cannot be read, when a device does not exist (then nothing is written),
/// when `out` fails.
pub fn delta_xml(
    view: &MetadataView,
    left: DeviceId,
    right: DeviceId,
    options: DeltaOptions,
    out: &mut dyn Write,
) -> Result<(), TextError> {
    let runs = runs(view, left, right, options)?;
    let mut out = TextWriter::new(out);
    out.text(r#"<superblock uuid="""#).xml_attributes(&superblock_fields(view.superblock()));
    if let Some(held) = view.superblock().held_root {
        out.xml_attributes(&[("metadata_snap", held.0)]);
    }
    out.text(">\n  <diff").xml_attributes(&[("left", left.key()), ("right", right.key())]).text(">\n");
    if options.data_blocks {
        xml_ranges(runs, &mut out)?;
    } else {
        for run in runs {
            let run = run?;
            out.text("    <").text(run.kind.name()).text(r#" begin=""#).number(run.begin.0);
            out.text(r#"" length=""#).number(run.length).text("\"/>\n").pause()?;
        }
    }
    Ok(out.text("  </diff>\n</superblock>\n").end()?)
}

/// Neighbours of one class are in one element, whatever lies between them.
fn xml_ranges(runs: Runs, out: &mut TextWriter<'_>) -> Result<(), TextError> {
    let mut open: Option<&'static str> = None;
    for run in runs {
        let run = run?;
        let name = run.kind.name();
        if open != Some(name) {
            if let Some(open) = open {
                out.text("    </").text(open).text(">\n");
            }
            out.text("    <").text(name).text(">\n");
            open = Some(name);
        }
        out.text(r#"      <range begin=""#).number(run.begin.0).text("\"");
        for (side, begin) in run.kind.data_begins() {
            out.text(" ").text(side).text("=\"").number(begin).text("\"");
        }
        out.text(r#" length=""#).number(run.length).text("\"/>\n").pause()?;
    }
    if let Some(open) = open {
        out.text("    </").text(open).text(">\n");
    }
    Ok(())
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
    options: DeltaOptions,
    out: &mut dyn Write,
) -> Result<(), TextError> {
    let runs = runs(view, left, right, options)?;
    let mut out = TextWriter::new(out);
    out.text(r#"{"superblock":{"uuid":"","#).json_members(&superblock_fields(view.superblock()));
    out.text(r#","metadata_snap":"#);
    match view.superblock().held_root {
        Some(held) => out.number(held.0),
        None => out.text("null"),
    };
    out.text("},").json_members(&[("left", left.key()), ("right", right.key())]).text(r#","runs":["#);
    for (index, run) in runs.enumerate() {
        let run = run?;
        out.separator(index).text(r#"{"kind":""#).text(run.kind.name()).text(r#"","#);
        out.json_members(&[("begin", run.begin.0), ("length", run.length)]);
        for (side, begin) in run.kind.data_begins().filter(|_| options.data_blocks) {
            out.text(",\"").text(side).text("\":").number(begin);
        }
        out.text("}").pause()?;
    }
    Ok(out.text("]}\n").end()?)
}
