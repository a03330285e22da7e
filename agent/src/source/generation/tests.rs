//! Chunks of a server of the test's own, honest or not.

use thinbak_proto::v1::ChunkData;

use super::{
    super::forest::{CHUNK, Forest},
    *,
};

const LEN: usize = CHUNK as usize;

/// Honest answers to what is answered.
type Lie = fn(Vec<ChunkData>) -> Vec<ChunkData>;

/// A chunk of this content that the forest serves.
fn leaf(forest: &mut Forest, seed: u8) -> MapEntry {
    let plain = vec![seed; LEN];
    let id = ChunkId::of(&plain);
    forest.chunks.insert(id, plain);
    id.into()
}

async fn all(
    forest: &Forest,
    base: Option<&Generation>,
    generation: &Generation,
) -> Result<(Batch, SourceStats), Failed> {
    let mut source = GenerationSource::new(forest.client(), base, generation, None)?;
    let mut extents = Vec::new();
    while let Some(batch) = source.next().await? {
        extents.extend(batch);
    }
    Ok((extents, source.stats()))
}

/// Chunks of these contents beside each other.
fn data<const N: usize>(chunk: u64, seeds: [u8; N]) -> Extent {
    let bytes = seeds.map(|seed| vec![seed; LEN]).concat();
    Extent { offset: chunk * u64::from(CHUNK), content: Content::Data(bytes.into()) }
}

#[tokio::test]
async fn a_generation_is_told_without_its_holes_and_each_chunk_is_fetched_once() {
    let mut forest = Forest::default();
    let (one, two) = (leaf(&mut forest, 1), leaf(&mut forest, 2));
    let generation = forest.plant(1000, &[(3, one), (4, MapEntry::Zero), (900, one), (901, two)]);
    let (extents, stats) = all(&forest, None, &generation).await.unwrap();
    let zero = Extent { offset: 4 * u64::from(CHUNK), content: Content::Zero(CHUNK.into()) };
    assert_eq!(extents, [data(3, [1]), zero, data(900, [1, 2])]);
    assert_eq!((stats.mapped_bytes, stats.received_bytes), (4 * u64::from(CHUNK), 2 * u64::from(CHUNK)));
}

#[tokio::test]
async fn a_difference_is_told_with_its_holes_up_to_the_end_of_the_newer_generation() {
    let mut forest = Forest::default();
    let (one, two) = (leaf(&mut forest, 1), leaf(&mut forest, 2));
    let base = forest.plant(1000, &[(3, one), (4, one), (700, one), (900, one), (901, two)]);
    let generation = forest.plant(901, &[(3, two), (700, one), (800, two)]);
    let (extents, _) = all(&forest, Some(&base), &generation).await.unwrap();
    let hole = |chunk: u64| Extent {
        offset: chunk * u64::from(CHUNK),
        content: Content::Unmapped(u64::from(CHUNK)),
    };
    assert_eq!(extents, [data(3, [2]), hole(4), data(800, [2]), hole(900)]);
    let (extents, _) = all(&forest, Some(&generation), &base).await.unwrap();
    assert_eq!(extents, [data(3, [1, 1]), hole(800), data(900, [1, 2])]);
}

#[tokio::test]
async fn what_a_lying_server_sends_as_chunks_is_damage() {
    let mut forest = Forest::default();
    let entries = [(3, leaf(&mut forest, 1)), (4, leaf(&mut forest, 2))];
    let generation = forest.plant(10, &entries);
    let lies: [(&str, Lie); 12] = [
        ("nothing", |_| Vec::new()),
        ("too few", |mut chunks| chunks.split_off(1)),
        ("one twice", |chunks| vec![chunks[0].clone(), chunks[0].clone()]),
        ("too many", |chunks| [chunks.clone(), chunks].concat()),
        ("without end", |chunks| vec![chunks[0].clone(); 5000]),
        ("swapped", |mut chunks| {
            let (id, other) = (chunks[0].id.clone(), chunks[1].id.clone());
            (chunks[0].id, chunks[1].id) = (other, id);
            chunks
        }),
        ("a bit flipped", |mut chunks| {
            let mut bytes = chunks[0].stored.to_vec();
            bytes[77] ^= 1;
            chunks[0].stored = bytes.into();
            chunks
        }),
        ("another id", |mut chunks| {
            chunks[0].id = ChunkId::of(b"another").to_bytes();
            chunks
        }),
        ("a short id", |mut chunks| {
            chunks[0].id = bytes::Bytes::from_static(b"short");
            chunks
        }),
        ("an unknown codec", |mut chunks| {
            chunks[0].codec = 7;
            chunks
        }),
        ("much more than a chunk", |mut chunks| {
            chunks[0].stored = vec![1; LEN + 5000].into();
            chunks
        }),
        ("a bomb", |mut chunks| {
            let bomb = zstd::bulk::compress(&vec![1; 64 << 20], 1).unwrap();
            (chunks[0].codec, chunks[0].stored) = (CODEC_ZSTD, bomb.into());
            chunks
        }),
    ];
    for (lie, chunk_lie) in lies {
        forest.chunk_lie = Some(chunk_lie);
        let failed = all(&forest, None, &generation).await.unwrap_err();
        assert_eq!(failed.exit_code(), 4, "{lie}: {failed}");
    }
    // The announced length is not needed: the map says how long a chunk is.
    forest.chunk_lie = Some(|mut chunks| {
        chunks[0].plain_len = u32::MAX;
        chunks
    });
    assert_eq!(all(&forest, None, &generation).await.unwrap().0, [data(3, [1, 2])]);
}

#[tokio::test]
async fn a_chunk_of_the_right_id_and_the_wrong_length_is_damage() {
    let mut forest = Forest::default();
    let long = vec![5; 2 * LEN];
    let id = ChunkId::of(&long);
    forest.chunks.insert(id, long);
    let generation = forest.plant(10, &[(3, id.into())]);
    assert_eq!(all(&forest, None, &generation).await.unwrap_err().exit_code(), 4);
}
