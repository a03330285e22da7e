//! What a client may not do.

use bytes::Bytes;
use thinbak_proto::{ChunkId, Failed, v1};
use uuid::Uuid;
use v1::{backup_request::Message as Asked, content_client::ContentClient, map_item::Entry};

use super::client::{self, Backup, CHUNK, Place, after, content, full, hole, new, packed, present, zero};

#[tokio::test]
async fn impossible_beginnings_are_refused() {
    let place = Place::new().await;
    let good = full(Uuid::new_v4(), "h/p/v", CHUNK);
    let first = place.back_up(good.clone(), vec![new(0, 1)]).await.unwrap();
    let cases = [
        ("no uuid", v1::BackupBegin { volume_uuid: "v".into(), ..good.clone() }, 2),
        ("nil uuid", v1::BackupBegin { volume_uuid: Uuid::nil().to_string(), ..good.clone() }, 2),
        ("no name", v1::BackupBegin { volume_name: String::new(), ..good.clone() }, 2),
        ("long name", v1::BackupBegin { volume_name: "v".repeat(1000), ..good.clone() }, 2),
        ("no size", v1::BackupBegin { size_bytes: 0, ..good.clone() }, 2),
        ("odd size", v1::BackupBegin { size_bytes: 1000, ..good.clone() }, 2),
        ("huge size", v1::BackupBegin { size_bytes: u64::MAX - 511, ..good.clone() }, 2),
        ("group", v1::BackupBegin { group: "x".into(), ..good.clone() }, 2),
        ("short root", v1::BackupBegin { parent_root: Bytes::from_static(b"x"), ..after(&first, CHUNK) }, 2),
        ("other root", v1::BackupBegin { parent_root: vec![0; 32].into(), ..after(&first, CHUNK) }, 5),
        ("no such parent", v1::BackupBegin { parent: 2, ..after(&first, CHUNK) }, 5),
        ("parent beyond SQL", v1::BackupBegin { parent: u64::MAX, ..after(&first, CHUNK) }, 5),
        (
            "parent of another",
            v1::BackupBegin {
                volume_uuid: Uuid::new_v4().to_string(),
                volume_name: "h/p/w".into(),
                ..after(&first, CHUNK)
            },
            5,
        ),
    ];
    for (what, begin, code) in cases {
        let failed = place.begin(begin).await.err().unwrap();
        assert_eq!(failed.exit_code(), code, "{what}: {failed}");
    }
    place.begin(after(&first, CHUNK)).await.unwrap().commit().await.unwrap();
}

#[tokio::test]
async fn impossible_batches_are_refused_and_leave_nothing_visible() {
    let place = Place::new().await;
    let (size, plain) = (4 * CHUNK + 512, content(1, CHUNK as usize));
    let stored = vec![packed(0, &plain, 0), packed(4, &plain[..512], 0)];
    let before = place.back_up(full(Uuid::new_v4(), "h/p/before", size), stored).await.unwrap();
    let named = |chunk, id: Bytes| vec![v1::MapItem { chunk, entry: Some(Entry::Present(id)) }];
    let short = ChunkId::of(&plain[..512]).to_bytes();
    let changed = |change: fn(&mut v1::NewChunk)| {
        let mut item = packed(0, &content(1, CHUNK as usize), 1);
        if let Some(Entry::New(new)) = &mut item.entry {
            change(new);
        }
        vec![item]
    };
    let bomb = zstd::bulk::compress(&vec![1; 64 << 20], 19).unwrap();
    let bomb =
        v1::NewChunk { id: vec![0; 32].into(), codec: 1, plain_len: CHUNK as u32, stored: bomb.into() };
    let cases: Vec<(&str, Vec<v1::MapItem>, u8)> = vec![
        ("nothing", vec![v1::MapItem { chunk: 0, entry: None }], 2),
        ("no chunks", vec![zero(0, 0)], 2),
        ("backwards", vec![zero(1, 1), zero(0, 1)], 2),
        ("overlapping", vec![zero(0, 2), hole(1, 1)], 2),
        ("behind the end", vec![hole(3, 3)], 2),
        ("overflowing", vec![hole(3, u64::MAX)], 2),
        ("short chunk inside", vec![packed(0, &plain[..512], 0)], 2),
        ("long chunk at the end", vec![packed(4, &plain, 0)], 2),
        ("empty chunk", vec![packed(0, &[], 0)], 2),
        ("unknown codec", changed(|new| new.codec = 7), 2),
        ("short id", changed(|new| new.id = Bytes::from_static(b"id")), 2),
        ("other id", changed(|new| new.id = vec![9; 32].into()), 4),
        ("cut", changed(|new| new.stored = new.stored.slice(..new.stored.len() - 1)), 4),
        ("not compressed", changed(|new| new.stored = vec![7; 100].into()), 4),
        (
            "two frames",
            changed(|new| new.stored = [new.stored.as_ref(), new.stored.as_ref()].concat().into()),
            4,
        ),
        ("a bomb", vec![v1::MapItem { chunk: 0, entry: Some(Entry::New(bomb)) }], 4),
        ("absent", vec![present(0, 77)], 2),
        ("short present inside", named(0, short.clone()), 2),
        ("long present at the end", named(4, ChunkId::of(&plain).to_bytes()), 2),
        ("present, but no chunk", named(0, before.root.clone()), 2),
        ("odd present", named(0, Bytes::from_static(b"id")), 2),
        ("too many", vec![zero(0, 1); 65_537], 2),
    ];
    for (what, items, code) in cases {
        let mut backup = place.begin(full(Uuid::new_v4(), "h/p/v", size)).await.unwrap();
        let failed = backup.batch(items).await.unwrap_err();
        assert_eq!(failed.exit_code(), code, "{what}: {failed}");
        assert_eq!(backup.answer().await.unwrap(), None, "{what}: the stream has ended");
    }
    let volumes = place.volumes().await;
    let names: Vec<_> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names, ["h/p/before"]);
    let mut backup = place.begin(full(Uuid::new_v4(), "h/p/v", size)).await.unwrap();
    backup.batch([named(1, ChunkId::of(&plain).to_bytes()), named(4, short)].concat()).await.unwrap();
    let generation = backup.commit().await.unwrap();
    assert_eq!(place.restore(&generation).await.unwrap()[4], Some(plain[..512].to_vec()));
}

#[tokio::test]
async fn messages_out_of_turn_are_refused() {
    let place = Place::new().await;
    let begin = full(Uuid::new_v4(), "h/p/v", CHUNK);
    for first in [
        Asked::Commit(v1::BackupCommit {}),
        Asked::Batch(v1::BackupBatch::default()),
        Asked::Query(v1::BackupQuery::default()),
    ] {
        let mut backup = Backup::open(&place.repository).await.unwrap();
        backup.ask(first).await;
        assert_eq!(backup.answer().await.unwrap_err().exit_code(), 2);
    }
    let mut backup = place.begin(begin.clone()).await.unwrap();
    backup.ask(Asked::Begin(begin.clone())).await;
    assert_eq!(backup.answer().await.unwrap_err().exit_code(), 2);
    let mut backup = place.begin(begin).await.unwrap();
    let ids = vec![Bytes::from(vec![0; 32]); 4097];
    backup.ask(Asked::Query(v1::BackupQuery { ids })).await;
    assert_eq!(backup.answer().await.unwrap_err().exit_code(), 2);
}

#[tokio::test]
async fn a_volume_and_a_name_are_backed_up_by_one_at_a_time() {
    let place = Place::new().await;
    let begin = full(Uuid::new_v4(), "h/p/v", CHUNK);
    let running = place.begin(begin.clone()).await.unwrap();
    for busy in [
        begin.clone(),
        v1::BackupBegin { volume_name: "h/p/w".into(), ..begin.clone() },
        full(Uuid::new_v4(), "h/p/v", CHUNK),
    ] {
        assert_eq!(place.begin(busy).await.err().unwrap().exit_code(), 11);
    }
    place.begin(full(Uuid::new_v4(), "h/p/other", CHUNK)).await.unwrap();
    drop(running);
    place.begin(begin).await.unwrap();
}

#[tokio::test]
async fn senseless_questions_are_refused() {
    let place = Place::new().await;
    let mut client = place.generations();
    let get = v1::GetGenerationRequest { volume: client::named("p/v"), selector: None };
    assert_eq!(Failed::from(client.get_generation(get).await.unwrap_err()).exit_code(), 2);
    let nameless =
        v1::ListGenerationsRequest { volume: Some(v1::VolumeName::default()), ..Default::default() };
    assert_eq!(Failed::from(client.list_generations(nameless).await.unwrap_err()).exit_code(), 2);
    for sample in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        let verify = v1::VerifyRequest { sample, ..Default::default() };
        assert_eq!(Failed::from(client.verify(verify).await.err().unwrap()).exit_code(), 2, "{sample}");
    }
    let mut content = ContentClient::new(place.routes());
    for ids in [vec![Bytes::from(vec![0; 32]); 1025], vec![Bytes::from_static(b"id")]] {
        let failed = content.get_chunks(v1::GetChunksRequest { ids: ids.clone() }).await.err().unwrap();
        assert_eq!(Failed::from(failed).exit_code(), 2);
        let failed = content.get_nodes(v1::GetNodesRequest { ids }).await.err().unwrap();
        assert_eq!(Failed::from(failed).exit_code(), 2);
    }
}
