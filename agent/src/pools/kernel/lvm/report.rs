//! What LVM says of the volumes of a group.

use serde::Deserialize;
use thinbak_engine::DeviceId;
use thinbak_proto::{Failed, FailureKind};
use uuid::Uuid;

use super::name::{OWN_PREFIX, OWN_TAG};

/// A volume group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) name: String,
    /// LVM's uuid of it.
    pub(super) uuid: String,
    pub(super) extent_bytes: u64,
    pub(super) volumes: Vec<Logical>,
}

/// A logical volume, of any type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Logical {
    pub(super) name: String,
    /// LVM's uuid of it.
    pub(super) uuid: String,
    /// The same as ours: the group's and the volume's.
    pub(super) identity: Uuid,
    pub(super) size_bytes: u64,
    pub(super) created_at_ms: u64,
    pub(super) is_thin_pool: bool,
    pub(super) is_active: bool,
    /// Whether somebody has it open: mounted, say.
    pub(super) is_open: bool,
    pub(super) is_read_only: bool,
    /// Whether a snapshot is about to take its place, or it another's.
    pub(super) is_merging: bool,
    pub(super) tags: Vec<String>,
    /// Name of the volume that it is a snapshot of, or is read where it maps nothing.
    pub(super) origin: String,
    /// Name of its thin pool.
    pub(super) pool: String,
    pub(super) pool_uuid: String,
    /// Its id in the pool; `None` of what is not thin.
    pub(super) device: Option<DeviceId>,
    /// The transaction that LVM believes the pool to be at; `None` of what is no thin pool.
    pub(super) transaction: Option<u64>,
}

impl Logical {
    /// Whether thinbak made it for itself.
    pub(super) fn is_own(&self) -> bool {
        self.name.starts_with(OWN_PREFIX) && self.has_tag(OWN_TAG)
    }

    pub(super) fn has_tag(&self, wanted: &str) -> bool {
        self.tags.iter().any(|tag| tag == wanted)
    }
}

#[derive(Deserialize)]
struct Document {
    report: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    lv: Vec<Row>,
}

/// A line of the report: all columns are text.
#[derive(Deserialize)]
struct Row {
    vg_name: String,
    vg_uuid: String,
    vg_extent_size: String,
    lv_name: String,
    lv_uuid: String,
    lv_size: String,
    lv_time: String,
    lv_layout: String,
    lv_active: String,
    lv_permissions: String,
    lv_merging: String,
    lv_device_open: String,
    lv_tags: String,
    origin: String,
    pool_lv: String,
    pool_lv_uuid: String,
    thin_id: String,
    transaction_id: String,
}

impl Row {
    /// `None` where a value is not as the LVM that is known writes it.
    fn logical(self) -> Option<Logical> {
        let is_active = self.lv_active.starts_with("active");
        let is_open = match (self.lv_device_open.as_str(), is_active) {
            ("open", _) => true,
            ("", _) | ("unknown", false) => false,
            _ => return None,
        };
        let is_merging = match self.lv_merging.as_str() {
            "merging" => true,
            "" => false,
            _ => return None,
        };
        let transaction = match self.transaction_id.as_str() {
            "" => None,
            id => Some(id.parse().ok()?),
        };
        let device = match self.thin_id.as_str() {
            "" => None,
            id => Some(DeviceId::new(id.parse().ok()?).ok()?),
        };
        let layout: Vec<&str> = self.lv_layout.split(',').collect();
        let seconds: u64 = self.lv_time.parse().unwrap_or_default();
        Some(Logical {
            identity: identity(&self.vg_uuid, &self.lv_uuid),
            size_bytes: self.lv_size.parse().ok()?,
            created_at_ms: seconds.saturating_mul(1000),
            is_thin_pool: layout.contains(&"thin") && layout.contains(&"pool"),
            is_active,
            is_open,
            is_read_only: self.lv_permissions.starts_with("read-only"),
            is_merging,
            tags: self.lv_tags.split(',').filter(|tag| !tag.is_empty()).map(ToOwned::to_owned).collect(),
            name: self.lv_name,
            uuid: self.lv_uuid,
            origin: self.origin,
            pool: self.pool_lv,
            pool_uuid: self.pool_lv_uuid,
            device,
            transaction,
        })
    }
}

/// The groups of a report; one without volumes is not among them.
pub(super) fn parse(json: &[u8]) -> Result<Vec<Group>, Failed> {
    let misread = |why: String| {
        Failed::new(FailureKind::Failed, format!("what lvs says cannot be understood: {why}"))
            .with_hint("LVM 2.02.158 and newer are understood")
    };
    let document: Document = serde_json::from_slice(json).map_err(|error| misread(error.to_string()))?;
    let mut groups: Vec<Group> = Vec::new();
    for row in document.report.into_iter().flat_map(|part| part.lv) {
        let (name, uuid, label) = (row.vg_name.clone(), row.vg_uuid.clone(), row.lv_name.clone());
        let extent_bytes =
            row.vg_extent_size.parse().map_err(|_| misread(format!("extent size of {name}")))?;
        let logical = row.logical().ok_or_else(|| misread(format!("the values of {name}/{label}")))?;
        match groups.iter_mut().find(|group| group.uuid == uuid) {
            Some(group) => group.volumes.push(logical),
            None => groups.push(Group { name, uuid, extent_bytes, volumes: vec![logical] }),
        }
    }
    Ok(groups)
}

/// A volume's identity, from LVM's: it outlives the registry, and stays with the volume when that is renamed or its content
/// replaced.
pub(super) fn identity(group: &str, volume: &str) -> Uuid {
    let hash = blake3::hash(format!("lvm {group} {volume}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(hash.as_bytes().first_chunk::<16>().unwrap_or(&[0; 16]));
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As LVM 2.03.16 prints it.
    pub(crate) const REPORT: &str = r#"
  {
      "report": [
          {
              "lv": [
                  {"vg_name":"vg", "vg_uuid":"G", "vg_extent_size":"4194304", "lv_name":"web", "lv_uuid":"W", "lv_size":"67108864", "lv_time":"1795453129", "lv_layout":"thin,sparse", "lv_active":"active", "lv_permissions":"writeable", "lv_merging":"", "lv_device_open":"open", "lv_tags":"a,b", "origin":"", "pool_lv":"tp", "pool_lv_uuid":"P", "thin_id":"1", "transaction_id":""},
                  {"vg_name":"vg", "vg_uuid":"G", "vg_extent_size":"4194304", "lv_name":"tp", "lv_uuid":"P", "lv_size":"268435456", "lv_time":"1795453127", "lv_layout":"thin,pool", "lv_active":"active", "lv_permissions":"writeable", "lv_merging":"", "lv_device_open":"open", "lv_tags":"", "origin":"", "pool_lv":"", "pool_lv_uuid":"", "thin_id":"", "transaction_id":"7"}
              ]
          }
      ]
  }
"#;

    #[test]
    fn a_report_is_read_with_its_types() {
        let groups = parse(REPORT.as_bytes()).unwrap();
        assert_eq!((groups.len(), groups[0].extent_bytes), (1, 4 << 20));
        let [web, pool] = groups[0].volumes.as_slice() else { panic!("two volumes") };
        assert_eq!(
            (web.device.unwrap().get(), web.size_bytes, web.created_at_ms),
            (1, 64 << 20, 1_795_453_129_000)
        );
        assert!(web.is_open && web.is_active && !web.is_read_only && !web.is_own());
        assert_eq!(web.tags, ["a", "b"]);
        assert!(pool.is_thin_pool && pool.device.is_none());
        assert_eq!((web.transaction, pool.transaction), (None, Some(7)));
        assert_ne!(web.identity, pool.identity);
    }

    #[test]
    fn what_is_no_report_is_an_error() {
        assert!(parse(b"nothing").is_err());
        let without_size = REPORT.replace("\"67108864\"", "\"64m\"");
        assert!(parse(without_size.as_bytes()).unwrap_err().message.contains("vg/web"));
        // As `binary_values_as_numeric = 1` would have it.
        for (word, number) in [("\"lv_merging\":\"\"", "\"lv_merging\":\"0\""), ("\"open\"", "\"1\"")] {
            assert!(parse(REPORT.replace(word, number).as_bytes()).is_err());
        }
    }
}
