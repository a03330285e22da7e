//! A rebuilt catalogue says what the one before said.

use std::fs;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use thinbak_proto::v1;
use uuid::Uuid;

use super::{
    super::{ONLY_IN_THE_CATALOGUE, rebuild_catalogue, restore_catalogue},
    world::{CHUNKS, open_raw, rows},
};
use crate::{
    catalogue::CATALOGUE_NAME,
    ingest::tests::client::{Place, copy_of},
};

/// Tables that are made from the packs, but for the columns that [`ONLY_IN_THE_CATALOGUE`] names.
const MADE_FROM_PACKS: &[(&str, &[&str])] = &[
    ("repository", &["one", "uuid"]),
    ("volumes", &["uuid", "name", "next_number"]),
    (
        "generations",
        &[
            "volume_uuid",
            "number",
            "created_at_ms",
            "size_bytes",
            "chunk_bytes",
            "levels",
            "root",
            "parent",
            "point",
            "protected",
            "group_uuid",
            "mapped_bytes",
            "changed_bytes",
            "new_bytes",
            "stored_bytes",
            "revision",
            "manifest",
            "deleted_at_ms",
            "tombstone",
        ],
    ),
    ("_sqlx_migrations", &[]),
];

fn seed() -> u64 {
    let seed = std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("THINBAK_SEED={seed}");
    seed
}

/// Somebody who backs up, deletes, undeletes, protects, renames and adopts as it comes.
struct User {
    random: StdRng,
    volumes: Vec<Uuid>,
    generations: Vec<v1::Generation>,
}

impl User {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let volumes = (0..4).map(|_| uuid::Builder::from_random_bytes(random.random()).into_uuid()).collect();
        Self { random, volumes, generations: Vec::new() }
    }

    async fn act(&mut self, world: &Place) {
        let choice = self.random.random_range(0..10);
        if choice < 5 || self.generations.is_empty() {
            let volume = *self.volumes.choose(&mut self.random).unwrap();
            // Mostly each its own name, now and then another's.
            let own = self.volumes.iter().position(|other| *other == volume).unwrap();
            let name = if self.random.random_bool(0.7) { own } else { self.random.random_range(0..5) };
            let what = (self.random.random_range(0..CHUNKS), self.random.random_range(1..20));
            let of_volume = |generation: &&v1::Generation| generation.volume_uuid == volume.to_string();
            let parent = self.generations.iter().rfind(of_volume).cloned();
            let parent = parent.filter(|_| self.random.random_bool(0.8));
            let made =
                world.back_up_chunk((volume, &format!("h/p/{name}")), what, parent.as_ref()).await.unwrap();
            self.generations.push(made);
            return;
        }
        let generation = self.generations.choose(&mut self.random).unwrap().clone();
        // Some of it is refused: the newest, the protected, the deleted. That is a part of the game.
        if choice < 8 {
            let _ = world.delete(&generation).await.is_ok();
        } else if self.random.random_bool(0.1) {
            world.forget().await;
        } else if self.random.random_bool(0.5) {
            let _ = world.undelete(&generation).await.is_ok();
        } else {
            let protected = self.random.random_bool(0.6);
            let _ = world.protect(&generation, protected).await.is_ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuilt_catalogue_says_what_the_one_before_said() {
    let seed = seed();
    for round in 0..4 {
        let mut user = User::new(seed.wrapping_add(round));
        let mut world = Place::new().await;
        for part in 0..4 {
            for _ in 0..10 {
                user.act(&world).await;
            }
            // Killed while it was open, or closed in an orderly way.
            let dir =
                if user.random.random_bool(0.5) { copy_of(world.dir.path()) } else { world.close().await };
            let before = rows(dir.path()).await;
            match part {
                0 => fs::remove_dir_all(dir.path().join("index")).unwrap(),
                1 => fs::write(dir.path().join(CATALOGUE_NAME), vec![0x5a; 5000]).unwrap(),
                2 => fs::remove_file(dir.path().join(CATALOGUE_NAME)).unwrap(),
                _ => {}
            }
            if matches!(part, 1 | 2) {
                let _ = fs::remove_file(dir.path().join("catalogue.sqlite-wal")).is_ok();
            }
            let rebuilt = rebuild_catalogue(dir.path()).await.unwrap();
            assert!(rebuilt.damage.is_empty(), "{rebuilt:?}");
            assert_eq!(rows(dir.path()).await, before, "seed {seed}, round {round}, part {part}");
            assert_eq!(rebuilt.old.is_some(), part != 2, "{rebuilt:?}");
            assert_eq!(rebuilt.added, rebuilt.generations + rebuilt.deleted);
            // And it can be used on.
            world = Place::open(dir).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_brought_back_says_what_the_packs_know_later() {
    let seed = seed();
    for round in 0..6 {
        let mut user = User::new(seed.wrapping_add(round));
        let world = Place::new().await;
        for _ in 0..15 {
            user.act(&world).await;
        }
        let copy = world.repository.back_up_catalogue(3).await.unwrap();
        for _ in 0..user.random.random_range(0..20) {
            user.act(&world).await;
        }
        let dir = world.close().await;
        let before = rows(dir.path()).await;
        fs::write(dir.path().join(CATALOGUE_NAME), b"gone").unwrap();
        let rebuilt = restore_catalogue(dir.path(), &copy.path).await.unwrap();
        assert!(rebuilt.damage.is_empty(), "{rebuilt:?}");
        assert_eq!(rows(dir.path()).await, before, "seed {seed}, round {round}");
        Place::open(dir).await;
    }
}

#[tokio::test]
async fn everything_in_the_schema_is_made_from_packs_or_said_to_be_lost() {
    let dir = Place::new().await.close().await;
    let mut catalogue = open_raw(dir.path()).await;
    let columns: Vec<(String, String)> = sqlx::query_as(
        "SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c
         WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'",
    )
    .fetch_all(&mut catalogue)
    .await
    .unwrap();
    let is_lost = |place: &str| ONLY_IN_THE_CATALOGUE.iter().any(|only| only.place == place);
    for (table, column) in &columns {
        let made = MADE_FROM_PACKS.iter().find(|(made, _)| made == table);
        let is_made =
            made.is_some_and(|(_, columns)| columns.is_empty() || columns.contains(&column.as_str()));
        assert!(
            is_made || is_lost(table) || is_lost(&format!("{table}.{column}")),
            "{table}.{column}: who makes it again? See ONLY_IN_THE_CATALOGUE"
        );
    }
    for only in ONLY_IN_THE_CATALOGUE {
        let there = |(table, column): &(String, String)| {
            only.place == table || only.place == format!("{table}.{column}")
        };
        assert!(columns.iter().any(there), "{} is not in the schema", only.place);
    }
}
