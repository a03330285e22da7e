//! Which volumes there are, and which of them a job means.

use std::collections::BTreeSet;

use thinbak_proto::{
    Failed,
    v1::{ListPoolsRequest, PoolInfo, PoolRequest, VolumeInfo, VolumeKind, pools_client::PoolsClient},
};

use crate::{
    channel::BoxedChannel,
    config::{JobConfig, Selector},
};

/// A pool and its volumes, snapshots and what is private left out.
#[derive(Debug, Clone, Default)]
pub(crate) struct PoolVolumes {
    /// As commands name it.
    pub(crate) spec: String,
    /// What stands for it in the names on a server.
    pub(crate) name: String,
    /// Whether it is known by its name.
    listed: bool,
    /// With its kind, each way that it was named by.
    places: Vec<String>,
    uuid: String,
    /// Why it cannot be looked at.
    pub(crate) error: Option<Failed>,
    pub(crate) volumes: Vec<VolumeInfo>,
}

impl PoolVolumes {
    fn of(info: PoolInfo, listed: bool) -> Self {
        // Only those have a name of their own.
        let listed = listed && info.kind == "dir";
        let place = format!("{}:{}", info.kind, info.place);
        let error = Some(info.error).filter(|error| !error.is_empty());
        Self {
            spec: if listed { info.name.clone() } else { place.clone() },
            name: info.name,
            listed,
            places: vec![place],
            uuid: info.uuid,
            error: error.map(|error| Failed::new(thinbak_proto::FailureKind::Failed, error)),
            volumes: Vec::new(),
        }
    }

    fn is_in(&self, selector: &Selector) -> bool {
        let name = self.listed.then_some(self.name.as_str());
        self.places.iter().any(|place| selector.has_pool(place, name))
    }

    /// Whether any of the selectors is about this pool.
    pub(crate) fn is_in_any(&self, selectors: &[Selector]) -> bool {
        selectors.iter().any(|selector| self.is_in(selector))
    }

    /// Whether any of the selectors names a volume of this pool.
    pub(crate) fn is_named(&self, volume: &VolumeInfo, selectors: &[Selector]) -> bool {
        selectors
            .iter()
            .any(|selector| self.is_in(selector) && selector.has_volume(&volume.name, &volume.tags))
    }

    /// Whether a job covers a volume of this pool.
    pub(crate) fn is_covered(&self, volume: &VolumeInfo, job: &JobConfig) -> bool {
        self.is_named(volume, &job.volumes) && !self.is_named(volume, &job.exclude)
    }
}

/// The known pools and those that are named by their places; with the volumes of those that `wanted` are about, or of
/// all. A pool that cannot be looked at has the reason in it.
pub(crate) async fn survey(
    mut client: PoolsClient<BoxedChannel>,
    places: BTreeSet<&str>,
    wanted: Option<&[Selector]>,
) -> Result<Vec<PoolVolumes>, Failed> {
    let listed = client.list_pools(ListPoolsRequest {}).await?.into_inner().pools;
    let mut pools: Vec<_> = listed.into_iter().map(|info| PoolVolumes::of(info, true)).collect();
    for place in places {
        if pools.iter().any(|pool| pool.places.iter().any(|known| known == place)) {
            continue;
        }
        match client.pool_status(PoolRequest { pool: place.to_owned() }).await {
            Ok(info) => {
                let found = PoolVolumes::of(info.into_inner(), false);
                match pools.iter_mut().find(|pool| pool.uuid == found.uuid && !found.uuid.is_empty()) {
                    Some(same) => same.places.push(place.to_owned()),
                    None => {
                        let places = vec![place.to_owned()];
                        pools.push(PoolVolumes { spec: place.to_owned(), places, ..found });
                    }
                }
            }
            Err(status) => pools.push(PoolVolumes {
                spec: place.to_owned(),
                places: vec![place.to_owned()],
                error: Some(status.into()),
                ..PoolVolumes::default()
            }),
        }
    }
    for pool in &mut pools {
        if pool.error.is_some() || wanted.is_some_and(|wanted| !pool.is_in_any(wanted)) {
            continue;
        }
        match client.list_pool_volumes(PoolRequest { pool: pool.spec.clone() }).await {
            Ok(found) => {
                pool.volumes = found.into_inner().volumes;
                pool.volumes.retain(|volume| volume.kind() == VolumeKind::Volume);
                for volume in pool.volumes.iter_mut().filter(|volume| volume.uuid.is_empty()) {
                    volume.uuid = format!("{}/{}", pool.spec, volume.name);
                }
            }
            Err(status) => pool.error = Some(status.into()),
        }
    }
    pools.sort_by(|left, right| left.spec.cmp(&right.spec));
    Ok(pools)
}
