//! The metadata snapshot of a pool, by hand.

use std::sync::Arc;

use thinbak_engine::{
    embedded::EmbeddedPool,
    metadata_view::{MetadataView, Roots},
};
use thinbak_proto::{
    Failed,
    v1::{MsnapInfo, ReleaseMsnapRequest},
};

use super::{
    PoolManager,
    failure::{failed, of_view, while_doing},
};

/// Holds one until it is released by hand.
pub(super) fn reserve(manager: &PoolManager, spec: &str) -> Result<MsnapInfo, Failed> {
    let pool = manager.open(spec)?;
    let attempt = || format!("reserve the metadata snapshot of pool {spec}");
    pool.hold_msnap().map_err(while_doing(attempt))?;
    info(spec, &pool)
}

/// Tells what was released.
pub(super) fn release(manager: &PoolManager, request: &ReleaseMsnapRequest) -> Result<MsnapInfo, Failed> {
    let pool = manager.open(&request.pool)?;
    let released = info(&request.pool, &pool);
    let attempt = || format!("release the metadata snapshot of pool {}", request.pool);
    pool.release_msnap(request.force).map_err(while_doing(attempt))?;
    // A damaged one can be released all the same.
    Ok(released.unwrap_or_else(|_| MsnapInfo { pool: request.pool.clone(), ..MsnapInfo::default() }))
}

pub(super) fn show(manager: &PoolManager, spec: &str) -> Result<MsnapInfo, Failed> {
    let pool = manager.open(spec)?;
    info(spec, &pool)
}

fn info(spec: &str, pool: &EmbeddedPool) -> Result<MsnapInfo, Failed> {
    let Some(root) = pool.pool().status().held_root else {
        return Ok(MsnapInfo { pool: spec.to_owned(), ..MsnapInfo::default() });
    };
    let view = MetadataView::open(Arc::clone(pool.pool().metadata_device()), Roots::MetadataSnap)
        .map_err(of_view)?;
    Ok(MsnapInfo {
        pool: spec.to_owned(),
        held_root: root.0,
        transaction_id: view.superblock().transaction_id,
        time: view.superblock().time.into(),
        devices: view.devices().map_err(of_view)?.len() as u64,
        ours: pool.msnap_is_ours().map_err(failed)?,
    })
}
