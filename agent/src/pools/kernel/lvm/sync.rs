//! The registry beside LVM's own: LVM says which volumes there are, the registry what those of ours are for.

use thinbak_engine::{Role, Volume};
use uuid::Uuid;

use super::{
    super::{
        book::{Contents, Entry},
        snapshots::is_drawn,
    },
    name::{OWN_PREFIX, own_name},
    report::{Group, Logical},
};

/// How long what was about to be made is remembered when LVM shows nothing of it: a command may go on after we are gone.
const INTENT_MS: u64 = 3_600_000;

/// The thin volumes of a pool.
pub(super) fn thin_volumes<'a>(group: &'a Group, pool_uuid: &'a str) -> impl Iterator<Item = &'a Logical> {
    group.volumes.iter().filter(move |logical| logical.pool_uuid == pool_uuid && logical.device.is_some())
}

/// Brings the registry to what LVM says: volumes by its names, sizes and ids, and what is being made by what became of it.
/// What LVM does not have any more is forgotten.
pub(super) fn sync(book: &mut Contents, group: &Group, pool_uuid: &str, now_ms: u64) {
    let mut entries = Vec::new();
    for logical in thin_volumes(group, pool_uuid) {
        let Some(device) = logical.device else { continue };
        let known = book.by_identity(logical.identity).cloned();
        let intent = || {
            let mut intents = book.devices.iter().filter(|entry| is_intent(entry));
            intents.find(|entry| own_name(entry.uuid) == logical.name && logical.is_own()).cloned()
        };
        let entry = match known.or_else(intent) {
            Some(entry) => entry,
            None if logical.is_own() => continue,
            None => Entry {
                device,
                uuid: logical.identity,
                size_bytes: logical.size_bytes,
                created_at_ms: logical.created_at_ms,
                role: Role::Volume { name: logical.name.clone() },
                not_before: 0,
                born: None,
            },
        };
        let is_same_device = entry.device == device;
        let role = match entry.role {
            Role::Volume { .. } => Role::Volume { name: logical.name.clone() },
            // It was given its name.
            Role::Head if !logical.name.starts_with(OWN_PREFIX) => {
                Role::Volume { name: logical.name.clone() }
            }
            role => role,
        };
        // A head has the size that was asked for until it is a volume: LVM rounds up.
        let size_bytes = if role == Role::Head { entry.size_bytes } else { logical.size_bytes };
        let born = entry.born.filter(|_| is_same_device);
        entries.push(Entry { device, uuid: logical.identity, size_bytes, role, born, ..entry });
    }
    let is_young = |entry: &Entry| entry.created_at_ms.saturating_add(INTENT_MS) > now_ms;
    let made = |entry: &Entry| group.volumes.iter().any(|logical| logical.name == own_name(entry.uuid));
    let waiting = book.devices.iter().filter(|entry| is_intent(entry) && is_young(entry) && !made(entry));
    entries.extend(waiting.cloned());
    book.devices = entries;
    book.devices.sort_by_key(|entry| entry.device.get());
    let bases: Vec<Uuid> = book.devices.iter().map(|entry| entry.uuid).collect();
    book.bases.retain(|base| bases.contains(&base.point.identity));
}

/// Whether an entry is of what is not known to be made: LVM gives ids from 1 upwards.
pub(super) fn is_intent(entry: &Entry) -> bool {
    is_drawn(entry.device)
}

/// A volume of the pool that the registry has nothing of.
pub(super) fn unknown(logical: &Logical, shown: Volume) -> Volume {
    Volume {
        name: logical.name.clone(),
        uuid: logical.identity,
        size_bytes: logical.size_bytes,
        created_at_ms: logical.created_at_ms,
        read_only: logical.is_read_only,
        ..shown
    }
}

#[cfg(test)]
mod tests {
    use thinbak_engine::DeviceId;

    use super::{
        super::{super::book::Book, report::identity},
        *,
    };

    fn logical(name: &str, uuid: &str, device: u64, tags: &[&str]) -> Logical {
        Logical {
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            identity: identity("G", uuid),
            size_bytes: 4 << 20,
            created_at_ms: 1,
            is_thin_pool: false,
            is_active: true,
            is_open: false,
            is_read_only: false,
            is_merging: false,
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            origin: String::new(),
            pool: "tp".to_owned(),
            pool_uuid: "P".to_owned(),
            device: Some(DeviceId::new(device).unwrap()),
            transaction: None,
        }
    }

    fn group(volumes: Vec<Logical>) -> Group {
        Group { name: "vg".to_owned(), uuid: "G".to_owned(), extent_bytes: 4 << 20, volumes }
    }

    fn contents() -> Contents {
        Book::open(std::env::temp_dir().join("thinbak-never-there.json")).unwrap().contents().clone()
    }

    fn intent(uuid: Uuid, created_at_ms: u64) -> Entry {
        let device = DeviceId::new((1 << 23) + 5).unwrap();
        let role = Role::Candidate { of: identity("G", "W") };
        Entry { device, uuid, size_bytes: 4 << 20, created_at_ms, role, not_before: 3, born: None }
    }

    #[test]
    fn a_volume_keeps_its_identity_when_it_is_renamed_or_merged_and_loses_it_when_made_anew() {
        let mut book = contents();
        sync(&mut book, &group(vec![logical("web", "W", 1, &[])]), "P", 0);
        let first = book.volume("web").cloned().unwrap();
        book.devices[0].born = Some((1, 1));
        let renamed = Logical { name: "www".to_owned(), ..logical("web", "W", 7, &[]) };
        sync(&mut book, &group(vec![renamed]), "P", 0);
        let merged = book.volume("www").cloned().unwrap();
        assert_eq!((merged.uuid, merged.device.get(), merged.born), (first.uuid, 7, None));
        assert!(book.volume("web").is_none());
        sync(&mut book, &group(vec![logical("www", "X", 7, &[])]), "P", 0);
        assert_ne!(book.volume("www").unwrap().uuid, first.uuid);
        assert_eq!(book.devices.len(), 1);
    }

    #[test]
    fn what_was_about_to_be_made_becomes_what_lvm_made_of_it() {
        let mut book = contents();
        let uuid = Uuid::new_v4();
        book.put(intent(uuid, 0));
        let name = own_name(uuid);
        // Another's under the same name is not ours.
        sync(&mut book, &group(vec![logical(&name, "C", 2, &[])]), "P", 1);
        assert!(
            book.by_identity(identity("G", "C"))
                .is_some_and(|entry| matches!(entry.role, Role::Volume { .. }))
        );
        let mut book = contents();
        book.put(intent(uuid, 0));
        sync(&mut book, &group(vec![logical(&name, "C", 2, &["thinbak"])]), "P", 1);
        let made = book.by_identity(identity("G", "C")).unwrap();
        assert_eq!((made.device.get(), made.not_before, book.devices.len()), (2, 3, 1));
        assert!(matches!(made.role, Role::Candidate { .. }));
    }

    #[test]
    fn a_head_is_a_volume_when_it_has_a_name() {
        let mut book = contents();
        let uuid = Uuid::new_v4();
        book.put(Entry { role: Role::Head, size_bytes: 100, ..intent(uuid, 0) });
        sync(&mut book, &group(vec![logical(&own_name(uuid), "C", 2, &["thinbak"])]), "P", 1);
        assert_eq!((book.devices[0].role.clone(), book.devices[0].size_bytes), (Role::Head, 100));
        sync(&mut book, &group(vec![logical("new", "C", 2, &["thinbak"])]), "P", 1);
        assert_eq!(book.volume("new").map(|entry| entry.size_bytes), Some(4 << 20));
    }

    #[test]
    fn what_lvm_does_not_show_is_waited_for_and_then_forgotten() {
        let mut book = contents();
        book.put(intent(Uuid::new_v4(), 1000));
        sync(&mut book, &group(Vec::new()), "P", 2000);
        assert_eq!(book.devices.len(), 1);
        sync(&mut book, &group(Vec::new()), "P", 1000 + INTENT_MS);
        assert!(book.devices.is_empty());
    }

    #[test]
    fn volumes_of_other_pools_and_those_of_a_lost_registry_are_nobodys_to_back_up() {
        let mut book = contents();
        let elsewhere = Logical { pool_uuid: "Q".to_owned(), ..logical("other", "O", 1, &[]) };
        let lost = logical(&own_name(Uuid::new_v4()), "L", 2, &["thinbak"]);
        sync(&mut book, &group(vec![elsewhere, lost]), "P", 0);
        assert!(book.devices.is_empty());
    }
}
