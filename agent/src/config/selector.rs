//! Volumes by pattern: `POOL/PATTERN`.

use std::fmt;

use thinbak_proto::Pattern;

/// Names pools and their volumes. The last `/` splits. A pool with a kind (`dir:/path`) stands for itself, any other is a
/// pattern of the names of known pools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    text: String,
    pool: PoolPart,
    volume: Pattern,
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
        if let Some(odd) = volume.chars().find(|c| matches!(c, ':' | '@') || c.is_control()) {
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
        Ok(Self { text: text.to_owned(), pool, volume: pattern(volume)? })
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

    /// Whether a volume of such a pool matches.
    #[must_use]
    pub fn has_volume(&self, volume: &str) -> bool {
        self.volume.matches(volume)
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
        assert!(all.has_volume("db-1") && !all.has_volume("db-12"));
        let place = Selector::parse("dir:/srv/tank/*").unwrap();
        assert_eq!(place.place(), Some("dir:/srv/tank"));
        assert!(place.has_pool("dir:/srv/tank", Some("t")) && !place.has_pool("dir:/srv", Some("tank")));
        assert_eq!(place.to_string(), "dir:/srv/tank/*");
    }

    #[test]
    fn what_names_no_volume_is_refused() {
        for text in ["", "tank", "/v", "tank/", "tank/v@snap", "tank/v:3", "dir:srv/v", "dir:/v"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }
}
