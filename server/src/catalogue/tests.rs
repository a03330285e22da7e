mod pages;

use tempfile::TempDir;
use thinbak_proto::NodeId;

use super::*;

async fn catalogue() -> (TempDir, Catalogue) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("catalogue.sqlite");
    Catalogue::create(&path, &ChangeGate::default()).await.unwrap();
    let catalogue = Catalogue::open(&path, &ChangeGate::default()).await.unwrap();
    (dir, catalogue)
}

fn generation(volume: Uuid, name: &str, number: u64) -> v1::Generation {
    v1::Generation {
        volume_uuid: volume.to_string(),
        volume_name: name.into(),
        number,
        created_at_ms: number * 1000,
        size_bytes: 1 << 40,
        chunk_bytes: 65536,
        levels: 4,
        root: vec![7; 32].into(),
        parent: number - 1,
        // A pool's numbers are unsigned and may be anything.
        point: Some(v1::Point { transaction_id: u64::MAX, root_checksum: u32::MAX, ..Default::default() }),
        protected: false,
        group: String::new(),
        mapped_bytes: 1 << 39,
        changed_bytes: 4096,
        new_bytes: 3,
        stored_bytes: 2,
    }
}

const MANIFEST: ManifestId = ManifestId::from_bytes([1; 32]);
const TOMBSTONE: ManifestId = ManifestId::from_bytes([2; 32]);

/// Deletes generations; the numbers of those that were.
async fn delete(catalogue: &Catalogue, volume: Uuid, numbers: &[u64], at_ms: u64) -> Vec<u64> {
    let deletion = |number: &u64| Deletion {
        key: GenerationKey { volume, number: *number },
        revision: 2,
        tombstone: TOMBSTONE,
    };
    let deletions: Vec<_> = numbers.iter().map(deletion).collect();
    let marked = catalogue.mark_deleted(&deletions, at_ms).await.unwrap();
    marked.into_iter().map(|key| key.number).collect()
}

#[tokio::test]
async fn a_generation_comes_back_as_it_was_given() {
    let (_dir, catalogue) = catalogue().await;
    let volume = Uuid::new_v4();
    let given = generation(volume, "h/p/v", 1);
    assert_eq!(catalogue.next(volume).await.unwrap(), Next { number: 1, last_created_at_ms: 0 });
    catalogue.add_generation(&given, MANIFEST, false).await.unwrap();
    let found = catalogue.generation(volume, Selector::Latest).await.unwrap().unwrap();
    assert_eq!((found.generation, found.revision), (given, 1));
    assert_eq!(catalogue.next(volume).await.unwrap(), Next { number: 2, last_created_at_ms: 1000 });
    assert_eq!(
        catalogue.totals().await.unwrap(),
        Totals { volumes: 1, generations: 1, mapped_bytes: 1 << 39 }
    );
}

#[tokio::test]
async fn a_number_is_given_once_even_after_deletion() {
    let (_dir, catalogue) = catalogue().await;
    let volume = Uuid::new_v4();
    for number in 1..=3 {
        catalogue.add_generation(&generation(volume, "h/p/v", number), MANIFEST, false).await.unwrap();
    }
    let again = catalogue.add_generation(&generation(volume, "h/p/v", 3), MANIFEST, false).await;
    assert!(matches!(again, Err(CatalogueError::NumberTaken(3))));
    assert_eq!(delete(&catalogue, volume, &[2], 9).await, [2]);
    assert!(delete(&catalogue, volume, &[2], 9).await.is_empty(), "twice");
    assert!(delete(&catalogue, volume, &[3], 9).await.is_empty(), "newest");
    assert_eq!(catalogue.next(volume).await.unwrap().number, 4);
    assert_eq!(catalogue.generation(volume, Selector::Number(2)).await.unwrap(), None);
}

#[tokio::test]
async fn a_time_names_the_newest_generation_not_after_it() {
    let (_dir, catalogue) = catalogue().await;
    let volume = Uuid::new_v4();
    for number in 1..=3 {
        catalogue.add_generation(&generation(volume, "h/p/v", number), MANIFEST, false).await.unwrap();
    }
    for (time, expected) in [(999, None), (1000, Some(1)), (2999, Some(2)), (u64::MAX, Some(3))] {
        let found = catalogue.generation(volume, Selector::AtOrBefore(time)).await.unwrap();
        assert_eq!(found.map(|found| found.generation.number), expected, "{time}");
    }
}

#[tokio::test]
async fn a_name_has_one_owner_until_it_is_adopted() {
    let (_dir, catalogue) = catalogue().await;
    let (old, new) = (Uuid::new_v4(), Uuid::new_v4());
    catalogue.add_generation(&generation(old, "h/p/v", 1), MANIFEST, false).await.unwrap();
    assert!(matches!(
        catalogue.check_name(new, "h/p/v", false).await,
        Err(CatalogueError::NameTaken { owner, .. }) if owner == old
    ));
    let refused = catalogue.add_generation(&generation(new, "h/p/v", 1), MANIFEST, false).await;
    assert!(matches!(refused, Err(CatalogueError::NameTaken { .. })));
    assert_eq!(catalogue.volumes("", 9).await.unwrap().len(), 1, "a refused volume left a trace");
    catalogue.add_generation(&generation(new, "h/p/v", 1), MANIFEST, true).await.unwrap();
    assert_eq!(catalogue.volume("h/p/v").await.unwrap(), Some(new));
    assert_eq!(catalogue.volume(&format!("h/p/v.{old}")).await.unwrap(), Some(old));
    // And back again, while the new one keeps what it has.
    catalogue.add_generation(&generation(old, "h/p/v", 2), MANIFEST, true).await.unwrap();
    assert_eq!(catalogue.volume("h/p/v").await.unwrap(), Some(old));
    assert_eq!(catalogue.volume(&format!("h/p/v.{new}")).await.unwrap(), Some(new));
}

#[tokio::test]
async fn a_schema_of_the_future_is_refused() {
    let (dir, catalogue) = catalogue().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99990101000000, 'from the future', 1, x'00', 1)",
    )
    .execute(&catalogue.pool)
    .await
    .unwrap();
    catalogue.close().await;
    let error = Catalogue::open(&dir.path().join("catalogue.sqlite"), &ChangeGate::default()).await.err();
    assert!(matches!(error, Some(CatalogueError::Newer { version: 99990101000000, .. })), "{error:?}");
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_not_cut() {
    let (_dir, catalogue) = catalogue().await;
    let volume = Uuid::new_v4();
    let huge = v1::Generation { size_bytes: u64::MAX, ..generation(volume, "h/p/v", 1) };
    let refused = catalogue.add_generation(&huge, MANIFEST, false).await;
    assert!(matches!(refused, Err(CatalogueError::TooLarge(u64::MAX))));
    assert!(catalogue.generation(volume, Selector::Number(u64::MAX)).await.is_err());
    assert_eq!(catalogue.volumes("", 9).await.unwrap(), []);
}

/// All pages of `roots` or of `expired`, as volume and number, from pages of two.
async fn walk(catalogue: &Catalogue, cutoff_ms: u64, expired: bool) -> Vec<(Uuid, u64)> {
    let (mut after, mut found) = (None, Vec::new());
    loop {
        let page = match expired {
            false => catalogue.roots(cutoff_ms, after, 2).await.unwrap(),
            true => catalogue.expired(cutoff_ms, after, 2).await.unwrap(),
        };
        let Some(last) = page.last() else { return found };
        after = Some(last.key);
        assert!(page.len() <= 2);
        assert!(
            page.iter().all(|root| root.root == NodeId::from_bytes([7; 32]) && root.manifest == MANIFEST)
        );
        assert!(page.iter().all(|root| (root.size_bytes, root.chunk_bytes) == (1 << 40, 65536)));
        found.extend(page.iter().map(|root| (root.key.volume, root.key.number)));
    }
}

#[tokio::test]
async fn deleted_generations_are_roots_until_their_grace_is_over() {
    let (_dir, catalogue) = catalogue().await;
    let (mut one, mut two) = (Uuid::new_v4(), Uuid::new_v4());
    if one > two {
        std::mem::swap(&mut one, &mut two);
    }
    for number in 1..=5 {
        catalogue.add_generation(&generation(one, "h/p/one", number), MANIFEST, false).await.unwrap();
    }
    for number in 1..=2 {
        catalogue.add_generation(&generation(two, "h/p/two", number), MANIFEST, false).await.unwrap();
    }
    assert_eq!(delete(&catalogue, one, &[1, 3], 100).await, [1, 3]);
    assert_eq!(delete(&catalogue, two, &[1], 200).await, [1]);
    let all: Vec<_> = (1..=5).map(|number| (one, number)).chain([(two, 1), (two, 2)]).collect();
    let without = |gone: &[(Uuid, u64)]| -> Vec<_> {
        all.iter().copied().filter(|root| !gone.contains(root)).collect()
    };
    for (cutoff, expired) in [
        (0, vec![]),
        (99, vec![]),
        (100, vec![(one, 1), (one, 3)]),
        (199, vec![(one, 1), (one, 3)]),
        (u64::MAX, vec![(one, 1), (one, 3), (two, 1)]),
    ] {
        assert_eq!(walk(&catalogue, cutoff, false).await, without(&expired), "{cutoff}");
        assert_eq!(walk(&catalogue, cutoff, true).await, expired, "{cutoff}");
    }
}

#[tokio::test]
async fn only_what_was_deleted_long_enough_ago_is_forgotten_and_its_number_stays_taken() {
    let (_dir, catalogue) = catalogue().await;
    let volume = Uuid::new_v4();
    for number in 1..=4 {
        catalogue.add_generation(&generation(volume, "h/p/v", number), MANIFEST, false).await.unwrap();
    }
    assert_eq!(delete(&catalogue, volume, &[1], 100).await, [1]);
    assert_eq!(delete(&catalogue, volume, &[2], 101).await, [2]);
    let keys: Vec<_> = (1..=4).map(|number| GenerationKey { volume, number }).collect();
    assert_eq!(catalogue.forget(&keys, 99).await.unwrap(), 0);
    assert_eq!(catalogue.forget(&keys, 100).await.unwrap(), 1);
    assert_eq!(catalogue.forget(&keys, 100).await.unwrap(), 0, "twice");
    assert_eq!(walk(&catalogue, 0, false).await, [(volume, 2), (volume, 3), (volume, 4)]);
    let forgotten = generation(volume, "h/p/v", 1);
    assert!(!catalogue.undelete(&forgotten, 3, MANIFEST).await.unwrap());
    let (undeleted, next) = (generation(volume, "h/p/v", 2), catalogue.next(volume).await.unwrap());
    assert!(catalogue.undelete(&undeleted, 3, MANIFEST).await.unwrap());
    assert!(!catalogue.undelete(&undeleted, 3, MANIFEST).await.unwrap(), "twice");
    let found = catalogue.generation(volume, Selector::Number(2)).await.unwrap().unwrap();
    assert_eq!((found.generation, found.revision), (undeleted, 3));
    assert_eq!((catalogue.next(volume).await.unwrap(), next.number), (next, 5));
}

#[tokio::test]
async fn the_grace_period_is_seven_days_until_it_is_set() {
    let (_dir, catalogue) = catalogue().await;
    assert_eq!(catalogue.grace_ms().await.unwrap(), 7 * 24 * 3600 * 1000);
    catalogue.set_grace_ms(0).await.unwrap();
    assert_eq!(catalogue.grace_ms().await.unwrap(), 0);
    assert!(matches!(catalogue.set_grace_ms(u64::MAX).await, Err(CatalogueError::TooLarge(u64::MAX))));
}

#[tokio::test]
async fn transactions_begin_again_after_one_could_not_end() {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };
    let (dir, before) = catalogue().await;
    before.close().await;
    let full = Arc::new(AtomicBool::new(true));
    let disk = Arc::clone(&full);
    let changes = ChangeGate::new(move || match disk.load(Ordering::Relaxed) {
        true => Err(std::io::ErrorKind::StorageFull.into()),
        false => Ok(()),
    });
    let catalogue = Catalogue::open(&dir.path().join("catalogue.sqlite"), &changes).await.unwrap();
    let volume = Uuid::new_v4();
    let add = |number| {
        let (catalogue, generation) = (&catalogue, generation(volume, "h/p/v", number));
        async move { catalogue.add_generation(&generation, MANIFEST, false).await }
    };
    for _ in 0..10 {
        add(1).await.unwrap_err();
    }
    full.store(false, Ordering::Relaxed);
    for number in 1..=10 {
        add(number).await.unwrap();
    }
}
