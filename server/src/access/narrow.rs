//! Requests and lists, narrowed to what a token covers.

use thinbak_proto::{Failed, v1};

use super::Caller;
use crate::repository::{check_volume_name, unknown_volume};

impl Caller {
    /// The volume that is meant, of those that are covered. One that is not looks as if it were not there, whether it is
    /// or not.
    pub(super) fn narrow(&self, named: Option<v1::VolumeName>) -> Result<Option<v1::VolumeName>, Failed> {
        if self.is_admin() {
            return Ok(named);
        }
        let v1::VolumeName { name, host } = named.unwrap_or_default();
        check_volume_name(&name)?;
        let of_host = format!("{host}/{name}");
        let of_host_covered = !host.is_empty() && self.covers(&of_host);
        match (self.covers(&name), of_host_covered) {
            (true, true) => Ok(Some(v1::VolumeName { name, host })),
            (true, false) => Ok(Some(v1::VolumeName { name, host: String::new() })),
            (false, true) => Ok(Some(v1::VolumeName { name: of_host, host: String::new() })),
            (false, false) => Err(unknown_volume(&name)),
        }
    }
}
