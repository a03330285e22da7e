//! The metadata snapshot of a pool, by hand.

use thinbak_engine::Roots;
use thinbak_proto::{
    Failed,
    v1::{MsnapInfo, ReleaseMsnapRequest},
};

use super::{
    PoolManager, ThinPool,
    failure::{during, of_view},
};

/// Holds one until it is released by hand.
pub(super) fn reserve(manager: &PoolManager, spec: &str) -> Result<MsnapInfo, Failed> {
    let pool = manager.open(spec)?;
    let attempt = || format!("reserve the metadata snapshot of pool {spec}");
    pool.hold_msnap().map_err(during(attempt))?;
    info(spec, pool.as_ref())
}

/// Tells what was released.
pub(super) fn release(manager: &PoolManager, request: &ReleaseMsnapRequest) -> Result<MsnapInfo, Failed> {
    let pool = manager.open(&request.pool)?;
    let released = info(&request.pool, pool.as_ref());
    let attempt = || format!("release the metadata snapshot of pool {}", request.pool);
    pool.release_msnap(request.force).map_err(during(attempt))?;
    // A damaged one can be released all the same.
    Ok(released.unwrap_or_else(|_| MsnapInfo { pool: request.pool.clone(), ..MsnapInfo::default() }))
}

pub(super) fn show(manager: &PoolManager, spec: &str) -> Result<MsnapInfo, Failed> {
    let pool = manager.open(spec)?;
    info(spec, pool.as_ref())
}

fn info(spec: &str, pool: &dyn ThinPool) -> Result<MsnapInfo, Failed> {
    let Some(held) = pool.msnap()? else {
        return Ok(MsnapInfo { pool: spec.to_owned(), ..MsnapInfo::default() });
    };
    let view = pool.view(Roots::MetadataSnap)?.view;
    Ok(MsnapInfo {
        pool: spec.to_owned(),
        held_root: held.root,
        transaction_id: view.superblock().transaction_id,
        time: view.superblock().time.into(),
        devices: view.devices().map_err(of_view)?.len() as u64,
        ours: held.ours,
    })
}
