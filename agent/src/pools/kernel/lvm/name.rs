//! Names: of pools and volumes as LVM allows them, of their devices, of what thinbak makes, and of its tags.

use thinbak_engine::Role;
use thinbak_proto::{Failed, FailureKind};
use uuid::Uuid;

/// What the names of thinbak's own volumes begin with.
pub(super) const OWN_PREFIX: &str = "thinbak_";
/// The tag that they all have.
pub(super) const OWN_TAG: &str = "thinbak";
/// On somebody's volume while its content is replaced: it was active before.
pub(super) const ACTIVATE_TAG: &str = "thinbak:activate";

/// A thin pool of LVM: `VG/POOL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::pools) struct LvmPlace {
    pub(super) group: String,
    pub(super) pool: String,
}

impl LvmPlace {
    /// Reads `VG/POOL`.
    pub(in crate::pools) fn parse(text: &str) -> Result<Self, Failed> {
        let usage = |why: String| {
            Failed::new(FailureKind::Usage, format!("lvm:{text}: {why}"))
                .with_hint("a thin pool of LVM is named as lvm:VG/POOL")
        };
        let (group, pool) =
            text.split_once('/').ok_or_else(|| usage("it names no pool of the volume group".to_owned()))?;
        for name in [group, pool] {
            check_lvm_name(name).map_err(|why| usage(format!("`{name}` is no name of LVM's: {why}")))?;
        }
        Ok(Self { group: group.to_owned(), pool: pool.to_owned() })
    }

    /// `VG/VOLUME` of a volume of the group.
    pub(super) fn path(&self, volume: &str) -> String {
        format!("{}/{volume}", self.group)
    }

    /// The name of the device of a volume.
    pub(super) fn device(&self, volume: &str) -> String {
        let escaped = |name: &str| name.replace('-', "--");
        format!("{}-{}", escaped(&self.group), escaped(volume))
    }
}

impl std::fmt::Display for LvmPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.group, self.pool)
    }
}

/// The rules of lvm(8), section "Valid names".
pub(super) fn check_lvm_name(name: &str) -> Result<(), &'static str> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
    match name {
        "" => Err("it is empty"),
        "." | ".." => Err("it means a directory"),
        _ if name.starts_with('-') => Err("it begins with `-`"),
        _ if !name.chars().all(is_allowed) => Err("it may have letters, digits and any of + _ . - only"),
        _ if name.len() > 127 => Err("it is longer than 127 bytes"),
        _ => Ok(()),
    }
}

/// What a volume of ours is called that has this identity while it is being made.
pub(super) fn own_name(intent: Uuid) -> String {
    format!("{OWN_PREFIX}{}", intent.simple())
}

/// The tags of a volume of ours, for people: what they say is not relied on.
pub(super) fn tags(role: &Role) -> Vec<String> {
    let own = |kind: &str| vec![OWN_TAG.to_owned(), format!("thinbak:{kind}")];
    match role {
        Role::Base { repository, of } => {
            let mut tags = own("base");
            tags.extend([format!("thinbak:repository={repository}"), format!("thinbak:volume={of}")]);
            tags
        }
        Role::Candidate { of } => {
            let mut tags = own("candidate");
            tags.push(format!("thinbak:volume={of}"));
            tags
        }
        Role::Snapshot { name, .. } => {
            let mut tags = own("snapshot");
            // A tag may have fewer characters than a name.
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_+.-".contains(c);
            if name.chars().all(is_allowed) {
                tags.push(format!("thinbak:snapshot={name}"));
            }
            tags
        }
        Role::Head => own("head"),
        Role::Trash => own("trash"),
        Role::Volume { .. } => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_their_devices_named_as_lvm_names_them() {
        let place = LvmPlace::parse("my-vg/thin-pool").unwrap();
        assert_eq!(place.to_string(), "my-vg/thin-pool");
        assert_eq!(place.device("a-b"), "my--vg-a--b");
        assert_eq!(place.path("v"), "my-vg/v");
    }

    #[test]
    fn what_cannot_be_a_pool_of_lvm_is_a_usage_error() {
        for text in ["", "vg", "vg/", "/pool", "vg/po ol", "vg/a/b", "-vg/pool", "vg/..", "vg/\u{e4}"] {
            assert_eq!(LvmPlace::parse(text).unwrap_err().exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn own_names_are_valid_for_lvm_and_tags_too() {
        assert_eq!(check_lvm_name(&own_name(Uuid::new_v4())), Ok(()));
        let role = Role::Base { repository: Uuid::new_v4(), of: Uuid::new_v4() };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+.-/=!:&#".contains(c);
        assert!(tags(&role).iter().all(|tag| tag.len() < 128 && tag.chars().all(allowed)));
        assert_eq!(tags(&Role::Snapshot { of: Uuid::nil(), name: "a b".to_owned() }).len(), 2);
    }
}
