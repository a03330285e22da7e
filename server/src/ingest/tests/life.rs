//! Generations of a volume, from the first to a deleted one.

use thinbak_proto::{Failed, v1};
use uuid::Uuid;

use super::client::{
    CHUNK, Place, after, content, full, full_chunk, hole, id, latest, named, new, number, packed, present,
    zero,
};

#[tokio::test]
async fn generations_restore_to_what_each_of_them_was() {
    let place = Place::new().await;
    let begin = full(Uuid::new_v4(), "h/p/v", 300 * CHUNK);
    let first = place.back_up(begin, vec![new(0, 1), new(1, 2), zero(130, 2), new(299, 3)]).await.unwrap();
    assert_eq!((first.number, first.levels, first.parent), (1, 2, 0));
    assert_eq!((first.mapped_bytes, first.changed_bytes, first.new_bytes), (5 * CHUNK, 5 * CHUNK, 3 * CHUNK));
    assert!(first.stored_bytes > 0 && first.created_at_ms > 0);
    assert_eq!(first.point.as_ref().unwrap().device_id, 5);

    let items = vec![hole(0, 1), new(5, 4), present(131, 3), zero(299, 1)];
    let second = place.back_up(after(&first, 300 * CHUNK), items).await.unwrap();
    assert_eq!((second.number, second.parent, second.mapped_bytes), (2, 1, 5 * CHUNK));
    assert_eq!(second.new_bytes, CHUNK);
    assert!(second.created_at_ms > first.created_at_ms);

    let mut model = vec![None; 300];
    (model[0], model[1], model[299]) = (full_chunk(1), full_chunk(2), full_chunk(3));
    (model[130], model[131]) = (Some(vec![0; CHUNK as usize]), Some(vec![0; CHUNK as usize]));
    assert!(place.restore(&first).await.unwrap() == model);
    (model[0], model[5], model[131]) = (None, full_chunk(4), full_chunk(3));
    model[299] = Some(vec![0; CHUNK as usize]);
    assert!(place.restore(&second).await.unwrap() == model);

    let (damage, summary) = place.verify(0.0).await;
    assert_eq!((damage, summary.generations, summary.damaged), (vec![], 2, 0));
    assert_eq!((summary.chunks_checked, summary.bytes_checked), (4, 4 * CHUNK), "each record once");
}

#[tokio::test]
async fn an_unchanged_volume_is_a_new_generation_with_the_same_root() {
    let place = Place::new().await;
    let begin = full(Uuid::new_v4(), "h/p/v", 200 * CHUNK);
    let first = place.back_up(begin, vec![new(7, 1)]).await.unwrap();
    let second = place.begin(after(&first, 200 * CHUNK)).await.unwrap().commit().await.unwrap();
    assert_eq!((second.number, &second.root), (2, &first.root));
    assert_eq!((second.new_bytes, second.stored_bytes, second.mapped_bytes), (0, 0, CHUNK));
}

#[tokio::test]
async fn a_volume_shrinks_and_grows_again_without_its_old_end() {
    let place = Place::new().await;
    let begin = full(Uuid::new_v4(), "h/p/v", 20_000 * CHUNK);
    let items = vec![new(0, 1), new(150, 2), zero(151, 10_000), new(19_999, 3)];
    let large = place.back_up(begin, items).await.unwrap();
    assert_eq!((large.levels, large.mapped_bytes), (3, 10_003 * CHUNK));

    let small = place.begin(after(&large, 160 * CHUNK)).await.unwrap().commit().await.unwrap();
    assert_eq!((small.levels, small.mapped_bytes), (2, 11 * CHUNK));
    let restored = place.restore(&small).await.unwrap();
    assert_eq!((restored.len(), &restored[150]), (160, &full_chunk(2)));

    let grown = place.begin(after(&small, 20_000 * CHUNK)).await.unwrap().commit().await.unwrap();
    assert_eq!((grown.levels, grown.mapped_bytes), (3, 11 * CHUNK));
    let restored = place.restore(&grown).await.unwrap();
    assert_eq!(restored.iter().filter(|chunk| chunk.is_some()).count(), 11);
    assert_eq!((&restored[0], &restored[150], &restored[19_999]), (&full_chunk(1), &full_chunk(2), &None));
    assert_eq!(place.verify(0.0).await.1.damaged, 0);
}

#[tokio::test]
async fn the_last_chunk_may_be_short_and_must_be_sent_again_when_its_length_changes() {
    let place = Place::new().await;
    let size = 3 * CHUNK + 512;
    let begin = full(Uuid::new_v4(), "h/p/v", size);
    let first = place.back_up(begin, vec![new(0, 1), packed(3, &content(9, 512), 0)]).await.unwrap();
    assert_eq!(first.mapped_bytes, CHUNK + 512);
    assert_eq!(place.restore(&first).await.unwrap()[3], Some(content(9, 512)));

    let kept = place.begin(after(&first, 5 * CHUNK)).await.unwrap().commit().await;
    assert_eq!(kept.unwrap_err().exit_code(), 2);
    let grown = place.back_up(after(&first, 5 * CHUNK), vec![new(3, 2)]).await.unwrap();
    assert_eq!((grown.number, grown.mapped_bytes), (2, 2 * CHUNK));
    let kept = place.begin(after(&grown, 3 * CHUNK + 1024)).await.unwrap().commit().await;
    assert_eq!(kept.unwrap_err().exit_code(), 2);
    assert_eq!(place.verify(0.0).await.1.damaged, 0);
}

#[tokio::test]
async fn zeros_sent_as_data_take_no_space() {
    let place = Place::new().await;
    let zeros = vec![0; CHUNK as usize];
    let items = vec![packed(0, &zeros, 1), packed(1, &zeros, 0)];
    let generation = place.back_up(full(Uuid::new_v4(), "h/p/v", 4 * CHUNK), items).await.unwrap();
    assert_eq!((generation.mapped_bytes, generation.new_bytes), (2 * CHUNK, 0));
    assert_eq!(place.restore(&generation).await.unwrap()[..2], [Some(zeros.clone()), Some(zeros)]);
    assert_eq!(place.generations().stats(v1::StatsRequest {}).await.unwrap().into_inner().chunks, 0);
}

#[tokio::test]
async fn a_renamed_volume_keeps_its_generations() {
    let place = Place::new().await;
    let first = place.back_up(full(Uuid::new_v4(), "h/p/old", CHUNK), vec![new(0, 1)]).await.unwrap();
    let begin = v1::BackupBegin { volume_name: "h/p/new".into(), ..after(&first, CHUNK) };
    place.begin(begin).await.unwrap().commit().await.unwrap();
    let request = v1::ListGenerationsRequest { volume: named("p/new"), ..Default::default() };
    let listed = place.generations().list_generations(request).await.unwrap().into_inner().generations;
    assert_eq!(
        listed.iter().map(|one| (one.number, one.volume_name.as_str())).collect::<Vec<_>>(),
        [(1, "h/p/new"), (2, "h/p/new")]
    );
    let request = v1::ListGenerationsRequest { volume: named("p/old"), ..Default::default() };
    let gone = Failed::from(place.generations().list_generations(request).await.unwrap_err());
    assert_eq!(gone.exit_code(), 10);
}

#[tokio::test]
async fn another_volume_under_a_known_name_is_refused_until_adopted() {
    let place = Place::new().await;
    let old = Uuid::new_v4();
    place.back_up(full(old, "h/p/v", CHUNK), vec![new(0, 1)]).await.unwrap();
    let begin = full(Uuid::new_v4(), "h/p/v", CHUNK);
    let refused = place.begin(begin.clone()).await.err().unwrap();
    assert_eq!(refused.exit_code(), 5);
    assert!(refused.hint.unwrap().contains("--adopt"));
    let begin = v1::BackupBegin { adopt: true, ..begin };
    let adopted = place.back_up(begin, vec![new(0, 2)]).await.unwrap();
    assert_eq!(adopted.number, 1);
    let volumes = place.volumes().await;
    let names: Vec<_> = volumes.iter().map(|volume| volume.name.clone()).collect();
    assert_eq!(names, ["h/p/v".to_owned(), format!("h/p/v.{old}")]);
}

#[tokio::test]
async fn a_generation_is_deleted_unless_it_is_protected_or_the_newest() {
    let place = Place::new().await;
    let mut last = place.back_up(full(Uuid::new_v4(), "h/p/v", CHUNK), vec![new(0, 1)]).await.unwrap();
    for seed in 2..5 {
        last = place.back_up(after(&last, CHUNK), vec![new(0, seed)]).await.unwrap();
    }
    let mut client = place.generations();
    let protect =
        |protected| v1::ProtectGenerationRequest { volume: named("p/v"), selector: number(2), protected };
    let delete = |selector| v1::DeleteGenerationRequest { volume: named("p/v"), selector };
    assert!(client.protect_generation(protect(true)).await.unwrap().into_inner().protected);
    for refused in [number(2), number(4), latest()] {
        let failed = Failed::from(client.delete_generation(delete(refused)).await.unwrap_err());
        assert_eq!(failed.exit_code(), 5, "{failed}");
    }
    client.protect_generation(protect(false)).await.unwrap();
    assert_eq!(client.delete_generation(delete(number(2))).await.unwrap().into_inner().number, 2);
    let again = Failed::from(client.delete_generation(delete(number(2))).await.unwrap_err());
    assert_eq!(again.exit_code(), 10);

    let kinds = [crate::store::Kind::Manifest, crate::store::Kind::Tombstone];
    let counts = kinds.map(|kind| place.repository.store.records(kind).unwrap().count());
    assert_eq!(counts, [4 + 2, 1], "manifests with their revisions, and tombstones");
    let kept =
        client.get_generation(v1::GetGenerationRequest { volume: named("p/v"), selector: number(1) }).await;
    assert_eq!(place.restore(&kept.unwrap().into_inner()).await.unwrap(), [full_chunk(1)]);
    let unknown = place.begin(v1::BackupBegin { parent: 2, ..after(&last, CHUNK) }).await.err().unwrap();
    assert_eq!(unknown.exit_code(), 5, "a deleted generation is nobody's parent");
}

#[tokio::test]
async fn chunks_are_answered_once_and_nodes_in_the_order_asked_for() {
    use v1::content_client::ContentClient;
    let place = Place::new().await;
    let generation =
        place.back_up(full(Uuid::new_v4(), "h/p/v", 2 * CHUNK), vec![new(0, 1), new(1, 2)]).await.unwrap();
    let mut content = ContentClient::new(place.routes());
    let ids = [1, 2, 1, 2, 1].map(|seed| id(seed).to_bytes()).to_vec();
    let mut chunks = content.get_chunks(v1::GetChunksRequest { ids }).await.unwrap().into_inner();
    let mut answered = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        answered.push(chunk.id);
    }
    answered.sort_unstable();
    let mut expected = [1, 2].map(|seed| id(seed).to_bytes());
    expected.sort_unstable();
    assert_eq!(answered, expected);
    let ids = vec![generation.root.clone(); 3];
    let mut nodes = content.get_nodes(v1::GetNodesRequest { ids }).await.unwrap().into_inner();
    for _ in 0..3 {
        assert_eq!(nodes.message().await.unwrap().unwrap().id, generation.root);
    }
    // A chunk is no node.
    let ids = vec![id(1).to_bytes()];
    let mut nodes = content.get_nodes(v1::GetNodesRequest { ids }).await.unwrap().into_inner();
    assert_eq!(Failed::from(nodes.message().await.unwrap_err()).exit_code(), 4);
}
