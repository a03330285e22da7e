//! Where a pool is: `dir:/path`, `dm:NAME`, `lvm:VG/POOL`, or a name that stands for the first.

use std::path::{Path, PathBuf};

use thinbak_proto::{Failed, FailureKind};

use super::kernel::LvmPlace;

/// What a person may write for a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PoolSpec {
    /// A registered name.
    Name(String),
    /// An embedded pool in a directory.
    Dir(PathBuf),
    /// A thin pool of the device-mapper, by the name of its device.
    Mapper(String),
    /// A thin pool of LVM.
    Lvm(LvmPlace),
}

impl PoolSpec {
    /// Reads `NAME` or `KIND:PLACE`.
    pub(super) fn parse(text: &str) -> Result<Self, Failed> {
        match text.split_once(':') {
            None => {
                check_name(text)?;
                Ok(Self::Name(text.to_owned()))
            }
            Some(("dir", path)) if Path::new(path).is_absolute() => Ok(Self::Dir(PathBuf::from(path))),
            Some(("dir", _)) => {
                Err(usage(format!("{text}: the path of an embedded pool must be absolute, as in dir:/path")))
            }
            Some(("dm", name)) => {
                check_name(name)?;
                Ok(Self::Mapper(name.to_owned()))
            }
            Some(("lvm", place)) => Ok(Self::Lvm(LvmPlace::parse(place)?)),
            Some((kind, _)) => Err(usage(format!("{text}: there is no kind of pool called `{kind}`"))
                .with_hint("embedded pools are named as dir:/path")),
        }
    }
}

/// A pool's name has the same rules as a volume's.
pub(super) fn check_name(name: &str) -> Result<(), Failed> {
    thinbak_engine::embedded::check_volume_name(name)
        .map_err(|error| usage(format!("`{name}` cannot be the name of a pool: {error}")))
}

fn usage(message: String) -> Failed {
    Failed::new(FailureKind::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_directory_are_told_apart() {
        assert_eq!(PoolSpec::parse("fast").unwrap(), PoolSpec::Name("fast".to_owned()));
        assert_eq!(PoolSpec::parse("dir:/srv/p:1").unwrap(), PoolSpec::Dir(PathBuf::from("/srv/p:1")));
        assert_eq!(PoolSpec::parse("dm:pool").unwrap(), PoolSpec::Mapper("pool".to_owned()));
        let lvm = PoolSpec::Lvm(LvmPlace::parse("vg/pool").unwrap());
        assert_eq!(PoolSpec::parse("lvm:vg/pool").unwrap(), lvm);
    }

    #[test]
    fn what_is_not_served_is_a_usage_error_that_says_so() {
        for (spec, says) in [
            ("dm:", "cannot be the name"),
            ("dm:a/b", "cannot be the name"),
            ("lvm:vg", "names no pool"),
            ("lvm:vg/pool/volume", "no name of LVM's"),
            ("zfs:tank", "no kind of pool called `zfs`"),
            ("dir:relative", "must be absolute"),
            ("", "cannot be the name"),
            ("-x", "cannot be the name"),
            ("a/b", "cannot be the name"),
        ] {
            let failed = PoolSpec::parse(spec).unwrap_err();
            assert_eq!(failed.exit_code(), 2, "{spec}");
            assert!(failed.message.contains(says), "{spec}: {failed}");
        }
    }
}
