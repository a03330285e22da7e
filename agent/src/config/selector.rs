//! Volumes by pattern: `POOL/PATTERN`.

use std::fmt;

use thinbak_proto::Pattern;

/// Names pools and their volumes. The last `/` splits. A pool with a kind (`dir:/path`) stands for itself, any other is a
/// pattern of the names of thinbak's own pools. Volumes of LVM can be named by a tag: `lvm:VG/POOL/@TAG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    text: String,
    pool: PoolPart,
    volume: VolumePart,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum VolumePart {
    Names(Pattern),
    Tag(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PoolPart {
    Place(String),
    Names(Pattern),
}

impl Selector {
    /// Reads `POOL/PATTERN`; the error is a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "`{text}` is no POOL/PATTERN of volumes, like \"tank/*\", \"*/db-?\" or \"dir:/srv/pool/*\""
            )
        };
        let (pool, volume) = text.rsplit_once('/').ok_or_else(form)?;
        if pool.is_empty() || volume.is_empty() {
            return Err(form());
        }
        let tag = volume.strip_prefix('@');
        if let Some(tag) = tag {
            // What lvm(8), section "Tags", allows.
            let is_tag = |c: char| c.is_ascii_alphanumeric() || "_+.-=!:&#".contains(c);
            if tag.is_empty() || tag.starts_with('-') || !tag.chars().all(is_tag) {
                return Err(format!("`{text}`: `{tag}` is no tag of LVM's"));
            }
            if !pool.starts_with("lvm:") {
                return Err(format!("`{text}`: only volumes of LVM have tags, as in lvm:VG/POOL/@TAG"));
            }
        } else if let Some(odd) = volume.chars().find(|c| matches!(c, ':' | '@') || c.is_control()) {
            return Err(format!("`{text}`: no volume has {odd:?} in its name"));
        }
        let pattern = |text: &str| Pattern::new(text).map_err(|error| format!("`{text}`: {error}"));
        let pool = match pool.split_once(':') {
            Some(("dir", path)) if !path.starts_with('/') => {
                return Err(format!(
                    "`{text}`: the path of an embedded pool must be absolute, as in dir:/path"
                ));
            }
            Some(_) => PoolPart::Place(pool.to_owned()),
            None => PoolPart::Names(pattern(pool)?),
        };
        let volume = match tag {
            Some(tag) => VolumePart::Tag(tag.to_owned()),
            None => VolumePart::Names(pattern(volume)?),
        };
        Ok(Self { text: text.to_owned(), pool, volume })
    }

    /// The one pool that it names by its place, if it does.
    #[must_use]
    pub fn place(&self) -> Option<&str> {
        match &self.pool {
            PoolPart::Place(place) => Some(place),
            PoolPart::Names(_) => None,
        }
    }

    /// Whether volumes of a pool can match, by the ways to name it: its place with its kind, and its name if it is known.
    #[must_use]
    pub fn has_pool(&self, place: &str, name: Option<&str>) -> bool {
        match &self.pool {
            PoolPart::Place(own) => own == place,
            PoolPart::Names(names) => name.is_some_and(|name| names.matches(name)),
        }
    }

    /// Whether a volume of such a pool matches, by its name or one of its tags.
    #[must_use]
    pub fn has_volume(&self, name: &str, tags: &[String]) -> bool {
        match &self.volume {
            VolumePart::Names(names) => names.matches(name),
            VolumePart::Tag(tag) => tags.contains(tag),
        }
    }
}

impl fmt::Display for Selector {
    /// As it was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_slash_splits_and_a_kind_names_one_pool() {
        let all = Selector::parse("ta*/db-?").unwrap();
        assert!(all.has_pool("dir:/x", Some("tank")) && !all.has_pool("dir:/x", Some("fast")));
        assert!(!all.has_pool("dir:/tank", None), "a pool without a known name");
        assert!(all.has_volume("db-1", &[]) && !all.has_volume("db-12", &[]));
        let place = Selector::parse("dir:/srv/tank/*").unwrap();
        assert_eq!(place.place(), Some("dir:/srv/tank"));
        assert!(place.has_pool("dir:/srv/tank", Some("t")) && !place.has_pool("dir:/srv", Some("tank")));
        assert_eq!(place.to_string(), "dir:/srv/tank/*");
    }

    #[test]
    fn volumes_of_lvm_are_named_by_a_tag_as_well() {
        let tagged = Selector::parse("lvm:vg/tp/@backup").unwrap();
        assert_eq!(tagged.place(), Some("lvm:vg/tp"));
        let tags = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
        assert!(tagged.has_volume("web", &tags(&["x", "backup"])));
        assert!(!tagged.has_volume("backup", &tags(&["backup2"])) && !tagged.has_volume("web", &[]));
        for text in ["lvm:vg/tp/@", "lvm:vg/tp/@-a", "lvm:vg/tp/@a b", "lvm:vg/tp/@a*", "dm:p/@a", "tank/@a"]
        {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_names_no_volume_is_refused() {
        for text in ["", "tank", "/v", "tank/", "tank/v@snap", "tank/v:3", "dir:srv/v", "dir:/v"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }
}
