//! A pool's metadata as text: the XML of `thin_dump`, and JSON with the same content.
//!
//! Both are written as they are read, so memory does not grow with the pool. A run of mappings is as
//! long as both block numbers ascend by one and the time stays.

use std::io::{self, Write};

use serde::Serialize;

use crate::{
    DeviceId, DeviceInfo,
    format::{Superblock, VERSION},
    metadata_view::{MappingRun, MetadataView, ViewError},
};

/// Why metadata could not be written out as text.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The metadata could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// No thin device has this id.
    #[error("there is no thin device {0}")]
    NoSuchDevice(DeviceId),
    /// The text could not be written.
    #[error("writing the text: {0}")]
    Write(#[from] io::Error),
}

/// A run of mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Run {
    origin_begin: u64,
    data_begin: u64,
    length: u64,
    time: u32,
}

fn runs(view: &MetadataView, device: &DeviceInfo) -> impl Iterator<Item = Result<Run, ViewError>> {
    let run = |MappingRun { first, length }| Run {
        origin_begin: first.virtual_block.0,
        data_begin: first.data_block.0,
        length,
        time: first.time,
    };
    view.mapping_runs(device.root).map(move |next| next.map(run))
}

fn flags(superblock: &Superblock) -> u32 {
    superblock.other_flags | u32::from(superblock.needs_check)
}

fn chosen(view: &MetadataView, device: Option<DeviceId>) -> Result<Vec<DeviceInfo>, TextError> {
    match device {
        None => Ok(view.devices()?),
        Some(id) => Ok(vec![view.device(id)?.ok_or(TextError::NoSuchDevice(id))?]),
    }
}

/// Writes what `thin_dump` (0.9, format xml) prints: the whole pool, or the one device.
///
/// # Errors
/// When the metadata is damaged or cannot be read, when there is no such device (then nothing is written),
/// when `out` fails.
pub fn dump_xml(view: &MetadataView, device: Option<DeviceId>, out: &mut dyn Write) -> Result<(), TextError> {
    let devices = chosen(view, device)?;
    let superblock = view.superblock();
    writeln!(
        out,
        r#"<superblock uuid="" time="{}" transaction="{}" flags="{}" version="{}" data_block_size="{}" nr_data_blocks="{}">"#,
        superblock.time,
        superblock.transaction_id,
        flags(superblock),
        VERSION,
        superblock.block_size.sectors(),
        superblock.data_space_map.nr_blocks,
    )?;
    for device in devices {
        let details = device.details;
        writeln!(
            out,
            r#"  <device dev_id="{}" mapped_blocks="{}" transaction="{}" creation_time="{}" snap_time="{}">"#,
            device.id.get(),
            details.mapped_blocks,
            details.transaction_id,
            details.creation_time,
            details.snapshotted_time,
        )?;
        for run in runs(view, &device) {
            let Run { origin_begin, data_begin, length, time } = run?;
            if length == 1 {
                writeln!(
                    out,
                    r#"    <single_mapping origin_block="{origin_begin}" data_block="{data_begin}" time="{time}"/>"#,
                )?;
            } else {
                writeln!(
                    out,
                    r#"    <range_mapping origin_begin="{origin_begin}" data_begin="{data_begin}" length="{length}" time="{time}"/>"#,
                )?;
            }
        }
        writeln!(out, "  </device>")?;
    }
    writeln!(out, "</superblock>")?;
    Ok(())
}

/// Writes the content of [`dump_xml`] as one JSON document:
/// `{"superblock": {..}, "devices": [{.., "mappings": [{origin_begin, data_begin, length, time}]}]}`.
///
/// # Errors
/// As [`dump_xml`].
pub fn dump_json(
    view: &MetadataView,
    device: Option<DeviceId>,
    out: &mut dyn Write,
) -> Result<(), TextError> {
    let devices = chosen(view, device)?;
    let superblock = view.superblock();
    write!(
        out,
        r#"{{"superblock":{{"uuid":"","time":{},"transaction":{},"flags":{},"version":{},"data_block_size":{},"nr_data_blocks":{}}},"devices":["#,
        superblock.time,
        superblock.transaction_id,
        flags(superblock),
        VERSION,
        superblock.block_size.sectors(),
        superblock.data_space_map.nr_blocks,
    )?;
    for (index, device) in devices.iter().enumerate() {
        let details = device.details;
        write!(
            out,
            r#"{}{{"dev_id":{},"mapped_blocks":{},"transaction":{},"creation_time":{},"snap_time":{},"mappings":["#,
            separator(index),
            device.id.get(),
            details.mapped_blocks,
            details.transaction_id,
            details.creation_time,
            details.snapshotted_time,
        )?;
        for (index, run) in runs(view, device).enumerate() {
            write!(out, "{}", separator(index))?;
            serde_json::to_writer(&mut *out, &run?).map_err(io::Error::from)?;
        }
        write!(out, "]}}")?;
    }
    writeln!(out, "]}}")?;
    Ok(())
}

/// What goes between the elements of a list.
pub(crate) fn separator(index: usize) -> &'static str {
    if index == 0 { "" } else { "," }
}
