//! A pool's metadata as text: the XML of `thin_dump`, and JSON with the same content.
//!
//! Both are written as they are read, so memory does not grow with the pool. A run of mappings is as
//! long as both block numbers ascend by one and the time stays.

use std::io::{self, Write};

use crate::{
    DeviceId, DeviceInfo,
    format::{Superblock, VERSION},
    metadata_view::{LeafCache, MappingRun, MetadataView, ViewError},
    text::TextWriter,
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

fn chosen(view: &MetadataView, device: Option<DeviceId>) -> Result<Vec<DeviceInfo>, TextError> {
    match device {
        None => Ok(view.devices()?),
        Some(id) => Ok(vec![view.device(id)?.ok_or(TextError::NoSuchDevice(id))?]),
    }
}

/// Names and values of numbers, in the order in which both forms give them.
type Fields<const N: usize> = [(&'static str, u64); N];

fn superblock_fields(superblock: &Superblock, data_blocks: u64) -> Fields<6> {
    [
        ("time", superblock.time.into()),
        ("transaction", superblock.transaction_id),
        ("flags", (superblock.other_flags | u32::from(superblock.needs_check)).into()),
        ("version", VERSION.into()),
        ("data_block_size", superblock.block_size.sectors().into()),
        ("nr_data_blocks", data_blocks),
    ]
}

fn device_fields(device: &DeviceInfo) -> Fields<5> {
    [
        ("dev_id", device.id.key()),
        ("mapped_blocks", device.details.mapped_blocks),
        ("transaction", device.details.transaction_id),
        ("creation_time", device.details.creation_time.into()),
        ("snap_time", device.details.snapshotted_time.into()),
    ]
}

/// Writes what `thin_dump` (0.9, format xml) prints: the whole pool, or the one device.
///
/// # Errors
/// When the metadata is damaged or cannot be read, when there is no such device (then nothing is written),
/// when `out` fails.
pub fn dump_xml(view: &MetadataView, device: Option<DeviceId>, out: &mut dyn Write) -> Result<(), TextError> {
    write_xml(view, device, view.superblock().data_space_map.nr_blocks, out)
}

/// Writes the whole of a pool whose data device has so many blocks, as `thin_restore` reads it. A metadata snapshot does not say how
/// many: the copied superblock has no space maps (`dm-thin-metadata.c`, `__reserve_metadata_snap`).
///
/// # Errors
/// As of [`dump_xml`].
pub fn dump_restorable(view: &MetadataView, data_blocks: u64, out: &mut dyn Write) -> Result<(), TextError> {
    write_xml(view, None, data_blocks, out)
}

fn write_xml(
    view: &MetadataView,
    device: Option<DeviceId>,
    data_blocks: u64,
    out: &mut dyn Write,
) -> Result<(), TextError> {
    let devices = chosen(view, device)?;
    let mut out = TextWriter::new(out);
    let superblock = superblock_fields(view.superblock(), data_blocks);
    out.text(r#"<superblock uuid="""#).xml_attributes(&superblock).text(">\n");
    let cache = LeafCache::default();
    for device in devices {
        out.text("  <device").xml_attributes(&device_fields(&device)).text(">\n");
        for run in view.mapping_runs(device.root, &cache) {
            let MappingRun { first, length } = run?;
            let (origin, data) = (first.virtual_block.0, first.data_block.0);
            if length == 1 {
                out.text(r#"    <single_mapping origin_block=""#).number(origin);
                out.text(r#"" data_block=""#).number(data);
            } else {
                out.text(r#"    <range_mapping origin_begin=""#).number(origin);
                out.text(r#"" data_begin=""#).number(data).text(r#"" length=""#).number(length);
            }
            out.text(r#"" time=""#).number(first.time.into()).text("\"/>\n").pause()?;
        }
        out.text("  </device>\n");
    }
    Ok(out.text("</superblock>\n").end()?)
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
    let mut out = TextWriter::new(out);
    out.text(r#"{"superblock":{"uuid":"","#)
        .json_members(&superblock_fields(view.superblock(), view.superblock().data_space_map.nr_blocks));
    out.text(r#"},"devices":["#);
    let cache = LeafCache::default();
    for (index, device) in devices.iter().enumerate() {
        out.separator(index).text("{").json_members(&device_fields(device)).text(r#","mappings":["#);
        for (index, run) in view.mapping_runs(device.root, &cache).enumerate() {
            let MappingRun { first, length } = run?;
            out.separator(index).text(r#"{"origin_begin":"#).number(first.virtual_block.0);
            out.text(r#","data_begin":"#).number(first.data_block.0).text(r#","length":"#).number(length);
            out.text(r#","time":"#).number(first.time.into()).text("}").pause()?;
        }
        out.text("]}");
    }
    Ok(out.text("]}\n").end()?)
}
