//! Private heads of restores: named, given up.

use std::sync::Arc;

use thinbak_engine::{Volume, embedded::check_volume_name};
use thinbak_proto::{Failed, FailureKind};

use super::super::events::blocking;
use crate::pools::{PoolManager, ThinPool};

pub(super) async fn open(manager: &Arc<PoolManager>, spec: &str) -> Result<Arc<dyn ThinPool>, Failed> {
    let (manager, spec) = (Arc::clone(manager), spec.to_owned());
    blocking(move || manager.open(&spec)).await
}

/// The same, to make a volume in it.
pub(super) async fn open_for_volume(
    manager: &Arc<PoolManager>,
    spec: &str,
) -> Result<Arc<dyn ThinPool>, Failed> {
    let (manager, spec) = (Arc::clone(manager), spec.to_owned());
    blocking(move || manager.open_for_volume(&spec)).await
}

/// Refuses a name that cannot be given, before anything is written.
pub(super) fn check_new_name(pool: &dyn ThinPool, name: &str) -> Result<(), Failed> {
    check_volume_name(name).map_err(|error| Failed::new(FailureKind::Usage, format!("{name}: {error}")))?;
    match pool.volume(name) {
        Err(failed) if failed.kind == FailureKind::NotFound => Ok(()),
        Err(failed) => Err(failed),
        Ok(_) => {
            let failed = Failed::new(FailureKind::Refused, format!("{}/{name} already exists", pool.name()));
            Err(failed.with_hint("restore to another name, or in place with --in-place"))
        }
    }
}

/// Removes a private device that is of no use any more. A failure is only logged: the next open of the pool removes it.
pub(super) fn give_up(pool: &dyn ThinPool, private: &Volume) {
    if let Err(error) = pool.drop_transient(private) {
        let device = private.device;
        tracing::warn!(%device, %error, "a private device is left until the pool is opened again");
    }
}
