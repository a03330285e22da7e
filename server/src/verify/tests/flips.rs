//! Bytes flipped, packs cut, swapped, gone: the verdict of a run against reading everything chunk by chunk.

use super::*;

/// Verifies a damaged copy twice (the second time with what is known by then) and holds it against single reads.
async fn judge(sample: &Sample, what: &str) {
    let repository = sample.open().await;
    let mut found = verify(&repository, everything()).await;
    assert!(!found.is_clean(), "{what}: not detected");
    // Where only the manifest is damaged, all content can be read.
    found.places.retain(|_, chunks| !chunks.is_empty());
    assert_eq!(found.places, sample.unreadable(&repository).await, "{what}: {found:?}");
    let mut again = verify(&repository, everything()).await;
    again.places.retain(|_, chunks| !chunks.is_empty());
    assert_eq!((found.places, found.summary.damaged), (again.places, again.summary.damaged), "{what}");
    repository.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_flipped_byte_is_detected_and_exactly_what_needs_it_is_named() {
    let mut random = seeded();
    let sample = Sample::new(&mut random, 3, 40, 4).await;
    let packs = sample.packs();
    let pack = packs.first().unwrap().strip_prefix(sample.dir.path()).unwrap();
    let bytes = fs::read(&packs[0]).unwrap();
    // Every byte would take minutes: a different share in each run, and the whole frame around the records.
    let mut places: Vec<usize> = (0..60).map(|_| random.random_range(0..bytes.len())).collect();
    places.extend([0, 9, 13, 40, 63, bytes.len() - 1, bytes.len() - 96, bytes.len() - 97]);
    for at in places {
        let damaged = sample.copy();
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << random.random_range(0..8);
        fs::write(damaged.dir.path().join(pack), bytes).unwrap();
        judge(&damaged, &format!("byte {at}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_cut_at_any_length_is_detected_and_exactly_what_needs_it_is_named() {
    let mut random = seeded();
    let sample = Sample::new(&mut random, 3, 300, 30).await;
    let packs = sample.packs();
    let pack = packs[0].strip_prefix(sample.dir.path()).unwrap();
    let len = fs::metadata(&packs[0]).unwrap().len();
    let mut lengths = vec![0, 1, 63, 64, len - 1, len - 96];
    lengths.extend((0..10).map(|_| random.random_range(0..len)));
    for cut in lengths {
        let damaged = sample.copy();
        let file = fs::OpenOptions::new().write(true).open(damaged.dir.path().join(pack)).unwrap();
        file.set_len(cut).unwrap();
        judge(&damaged, &format!("cut at {cut}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_that_are_gone_swapped_or_of_another_repository_are_named_and_the_rest_is_good() {
    let mut random = seeded();
    let sample = Sample::new(&mut random, 2, 60, 20).await;
    // Opened again, the repository goes on in another pack.
    let repository = sample.open().await;
    let (parent, mut model) = sample.generations.last().unwrap().clone();
    let size = parent.size_bytes;
    let third = back_up(&repository, Some(&parent), sample.volume, size, &[(3, 77), (50, 78)]).await;
    model.extend([(3, 77), (50, 78)]);
    repository.close().await;
    drop(repository);
    let mut sample = sample;
    sample.generations.push((third, model));
    let other = Sample::new(&mut random, 1, 60, 20).await;
    let foreign = other.packs().remove(0);

    let gone = sample.copy();
    fs::remove_file(&gone.packs()[0]).unwrap();
    judge(&gone, "gone").await;
    let gone = sample.copy();
    fs::remove_file(&gone.packs()[1]).unwrap();
    judge(&gone, "the second is gone").await;
    let replaced = sample.copy();
    fs::copy(&foreign, &replaced.packs()[0]).unwrap();
    judge(&replaced, "of another repository").await;
    let swapped = sample.copy();
    let packs = swapped.packs();
    let (one, two) = (fs::read(&packs[0]).unwrap(), fs::read(&packs[1]).unwrap());
    fs::write(&packs[0], two).unwrap();
    fs::write(&packs[1], one).unwrap();
    judge(&swapped, "swapped").await;
}

/// While the repository is open: nothing was noticed when it was opened.
#[tokio::test(flavor = "multi_thread")]
async fn damage_that_comes_while_the_repository_is_open_is_found() {
    let mut random = seeded();
    let sample = Sample::new(&mut random, 3, 200, 30).await;
    let repository = sample.open().await;
    assert!(verify(&repository, everything()).await.is_clean());
    let pack = sample.packs().remove(0);
    let bytes = fs::read(&pack).unwrap();
    let mut damaged = bytes.clone();
    for _ in 0..6 {
        let at = random.random_range(0..bytes.len());
        damaged[at] ^= 0x40;
    }
    fs::write(&pack, &damaged).unwrap();
    let found = verify(&repository, everything()).await;
    assert!(!found.is_clean());
    assert_eq!(found.places, sample.unreadable(&repository).await);
    // And it was a false alarm: the disk reads well again.
    fs::write(&pack, &bytes).unwrap();
    let after = verify(&repository, everything()).await;
    assert!(after.is_clean(), "{after:?}");
    assert!(!repository.store.any_damage());
    assert!(repository.catalogue.quarantined().await.unwrap().is_empty());
    repository.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_generation_is_read_alone_and_a_sample_leaves_out_the_rest() {
    let mut random = seeded();
    let sample = Sample::new(&mut random, 3, 400, 100).await;
    let repository = sample.open().await;
    let name = v1::VolumeName { name: format!("h/p/{}", sample.volume), host: String::new() };
    let which = Some(v1::generation_selector::Which::Number(2));
    let request = v1::VerifyRequest {
        volume: Some(name),
        selector: Some(v1::GenerationSelector { which }),
        ..Default::default()
    };
    let one = verify(&repository, request.clone()).await;
    assert_eq!(one.summary.chunks_checked, sample.generations[1].1.len() as u64);
    let all = verify(&repository, everything()).await;
    assert!(one.is_clean() && all.is_clean());
    assert!(all.summary.chunks_checked > one.summary.chunks_checked);
    let part = verify(&repository, v1::VerifyRequest { sample: 0.3, ..everything() }).await.summary;
    assert!(part.chunks_checked < all.summary.chunks_checked && part.chunks_skipped > 0);
    let aged = v1::VerifyRequest { older_than_ms: 1000, ..request };
    let mut client = RepositoryClient::new(routes(Arc::clone(&repository)));
    assert_eq!(thinbak_proto::Failed::from(client.verify(aged).await.err().unwrap()).exit_code(), 2);
    repository.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_that_were_verified_lately_are_left_out_and_a_damaged_one_never_counts_as_verified() {
    let mut random = seeded();
    let sample = Sample::new(&mut random, 2, 60, 20).await;
    let repository = sample.open().await;
    let (parent, _) = sample.generations.last().unwrap().clone();
    back_up(&repository, Some(&parent), sample.volume, parent.size_bytes, &[(3, 77)]).await;
    repository.close().await;
    drop(repository);
    let pack = sample.packs().remove(1);
    let mut bytes = fs::read(&pack).unwrap();
    bytes[64 + 104] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let repository = sample.open().await;
    let monthly = v1::VerifyRequest { older_than_ms: 30 * 86_400_000, ..everything() };
    let first = verify(&repository, monthly.clone()).await;
    assert_eq!((first.summary.packs_checked, first.summary.packs_skipped), (2, 0));
    assert_eq!(repository.catalogue.verifications().await.unwrap().into_keys().collect::<Vec<_>>(), [0]);
    let second = verify(&repository, monthly).await;
    assert_eq!((second.summary.packs_checked, second.summary.packs_skipped), (1, 1));
    assert_eq!(first.places, second.places);
    repository.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_is_named_with_its_generation() {
    let mut random = seeded();
    let sample = Sample::new(&mut random, 2, 60, 20).await;
    let (_, record) = crate::manifest::Manifest::new(&sample.generations[1].0, 1).record();
    let pack = sample.packs().remove(0);
    let mut bytes = fs::read(&pack).unwrap();
    let at = bytes.windows(record.stored.len()).position(|window| window == record.stored).unwrap();
    bytes[at + 7] ^= 4;
    fs::write(&pack, bytes).unwrap();
    let repository = sample.open().await;
    let found = verify(&repository, everything()).await;
    assert_eq!((found.places, found.summary.damaged_records), (BTreeMap::from([(2, vec![])]), 1));
    assert!(found.reasons[0].starts_with("its manifest"), "{:?}", found.reasons);
    repository.close().await;
}
