//! The first volume of a pool.
//!
//! LVM takes a pool down for it, to give its device another name and uuid, and cannot while somebody has the devices of the
//! pool open: the command fails then and leaves the pool inactive (seen with LVM 2.03). So who is about to make a volume has
//! LVM make and remove one before the pool is opened. Its device keeps the name from then on.

use thinbak_engine::Role;
use thinbak_proto::{Failed, FailureKind};
use uuid::Uuid;

use super::{
    super::{look, mapper::Mapper},
    LvmPlace, command, find_target, lock, look_at, name, pool_of,
};

/// Sees to it that a volume can be made in the pool while it is open. Nobody in this process may have it open.
pub(in crate::pools) fn prepare(place: &LvmPlace) -> Result<(), Failed> {
    let mapper = Mapper::open()?;
    let group = look_at(place)?;
    let pool_uuid = pool_of(&group, place)?.uuid.clone();
    let (target, found) = find_target(&mapper, place, &group.uuid, &pool_uuid)?;
    if target != place.device(&place.pool) {
        return Ok(());
    }
    let _lock = lock(&found, &place.to_string())?;
    // LVM takes a device that has the id for its own, and what it removes then could be somebody's.
    if look::status(&mapper, &target)?.data_used > 0 {
        let message = format!("pool lvm:{place}: LVM has no volume in it, and it holds something");
        let first = format!("lvcreate -V 4M --thinpool {} -n first {}", place.pool, place.group);
        return Err(Failed::new(FailureKind::Refused, message)
            .with_hint(format!("if that is nobody's, make the first volume yourself: {first}")));
    }
    let own = name::own_name(Uuid::new_v4());
    let tags = name::tags(&Role::Head);
    let mut words = vec!["lvcreate", "-n", &own];
    words.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
    words.extend(["-V", "4m", "--thinpool", &place.pool, &place.group]);
    command::change(&words)?;
    Ok(command::change(&["lvremove", &place.path(&own)])?)
}
