//! What a backup begins with.

use thinbak_proto::{Failed, FailureKind, v1};
use uuid::Uuid;

use super::batch::usage;
use crate::{
    catalogue::Selector,
    content::parse_id,
    repository::{Repository, check_volume_name},
};

/// 1 EiB; a volume of dm-thin is smaller.
const MAX_VOLUME_BYTES: u64 = 1 << 60;
const SECTOR_BYTES: u64 = 512;
/// Of a point's texts, which are uuids.
const MAX_IDENTITY_LEN: usize = 128;

/// Checks what can be checked without asking anybody, and returns the volume's uuid.
pub(super) fn check_begin(begin: &v1::BackupBegin) -> Result<Uuid, Failed> {
    let volume = Uuid::parse_str(&begin.volume_uuid)
        .ok()
        .filter(|uuid| !uuid.is_nil())
        .ok_or_else(|| usage("the volume's uuid is not one"))?;
    check_volume_name(&begin.volume_name)?;
    let size = begin.size_bytes;
    if size == 0 || !size.is_multiple_of(SECTOR_BYTES) || size > MAX_VOLUME_BYTES {
        return Err(usage(format!(
            "a volume cannot have {size} bytes: a multiple of {SECTOR_BYTES} is needed"
        )));
    }
    if !begin.group.is_empty() && Uuid::parse_str(&begin.group).is_err() {
        return Err(usage("the group is no uuid"));
    }
    if let Some(point) = &begin.point
        && point.identity.len().max(point.pool_uuid.len()) > MAX_IDENTITY_LEN
    {
        return Err(usage("the point's identity is too long"));
    }
    if begin.parent != 0 {
        parse_id(&begin.parent_root)?;
    }
    Ok(volume)
}

/// The generation that the batches are relative to, if it is what the client thinks.
pub(super) async fn parent_of(
    repository: &Repository,
    volume: Uuid,
    begin: &v1::BackupBegin,
) -> Result<Option<v1::Generation>, Failed> {
    if begin.parent == 0 {
        return Ok(None);
    }
    let unknown = |why: &str| {
        let message =
            format!("cannot add to generation {} of volume {}: {why}", begin.parent, begin.volume_name);
        Failed::new(FailureKind::BaseUnknown, message).with_hint("a full backup needs no parent")
    };
    let found = match i64::try_from(begin.parent) {
        Ok(_) => repository.catalogue.generation(volume, Selector::Number(begin.parent)).await?,
        Err(_) => None,
    };
    let generation = found.ok_or_else(|| unknown("the repository does not have it"))?.generation;
    if generation.root != begin.parent_root {
        return Err(unknown("its content is not what the client has kept as base"));
    }
    Ok(Some(generation))
}
