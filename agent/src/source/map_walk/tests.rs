//! Walks over trees that a server of the test's own serves, honest or not.

use thinbak_proto::v1::NodeData;

use super::{
    super::forest::{CHUNK, Forest},
    *,
};

impl Forest {
    /// What a walk tells, neighbours joined.
    async fn walk(
        &self,
        base: Option<&Generation>,
        generation: &Generation,
    ) -> Result<Vec<(u64, u64, MapEntry)>, Failed> {
        let mut walk = MapWalk::over(self.client(), base, generation)?;
        let mut told = Vec::new();
        while let Some(runs) = walk.next().await? {
            assert!(!runs.is_empty());
            runs.into_iter().for_each(|run| join(&mut told, run));
        }
        Ok(told.into_iter().map(|run| (run.chunk, run.count, run.entry)).collect())
    }
}

fn data(seed: u8) -> MapEntry {
    MapEntry::Id([seed; 32])
}

const HOLE: MapEntry = MapEntry::Hole;
const ZERO: MapEntry = MapEntry::Zero;

#[tokio::test]
async fn a_walk_over_all_tells_everything_without_gaps() {
    let mut forest = Forest::default();
    let zeros = (1000..1300).map(|chunk| (chunk, ZERO));
    let entries: Vec<_> = [(5, data(1)), (6, data(1))].into_iter().chain(zeros).collect();
    let tree = forest.plant(20_001, &entries);
    let told = forest.walk(None, &tree).await.unwrap();
    let expected = [
        (0, 5, HOLE),
        (5, 1, data(1)),
        (6, 1, data(1)),
        (7, 993, HOLE),
        (1000, 300, ZERO),
        (1300, 18_701, HOLE),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn equal_trees_are_not_read() {
    let mut forest = Forest::default();
    let tree = forest.plant(20_001, &[(5, data(1)), (20_000, data(2))]);
    assert_eq!(forest.walk(Some(&tree), &tree).await.unwrap(), []);
    assert_eq!(forest.fetched(), 0);
}

#[tokio::test]
async fn changed_chunks_are_found_and_what_is_shared_is_not_read() {
    let mut forest = Forest::default();
    let old = [(5, data(1)), (7, data(3)), (300, data(2)), (19_000, data(7)), (20_000, data(9))];
    let old = forest.plant(20_001, &old);
    let new = [(5, data(4)), (6, data(5)), (7, ZERO), (301, data(2)), (19_000, data(7)), (20_000, data(9))];
    let new = forest.plant(20_001, &new);
    let told = forest.walk(Some(&old), &new).await.unwrap();
    let expected = [(5, 1, data(4)), (6, 1, data(5)), (7, 1, ZERO), (300, 1, HOLE), (301, 1, data(2))];
    assert_eq!(told, expected);
    assert_eq!(forest.fetched(), 8, "both roots, and of the first quarter both nodes and two leaves each");
}

#[tokio::test]
async fn trees_of_different_height_are_compared_and_the_shorter_one_is_hole_behind_its_end() {
    let mut forest = Forest::default();
    let small = forest.plant(100, &[(5, data(1)), (6, data(2))]);
    let large = forest.plant(20_001, &[(5, data(1)), (6, data(3)), (9_000, data(4))]);
    let told = forest.walk(Some(&small), &large).await.unwrap();
    assert_eq!(told, [(6, 1, data(3)), (9_000, 1, data(4))]);
    let back = forest.walk(Some(&large), &small).await.unwrap();
    assert_eq!(back, [(6, 1, data(2)), (9_000, 1, HOLE)]);
}

#[tokio::test]
async fn whole_ranges_of_zero_and_hole_are_told_apart_without_reading() {
    let mut forest = Forest::default();
    let zeros: Vec<_> = (128..256).map(|chunk| (chunk, ZERO)).collect();
    let old = forest.plant(16_000, &[]);
    let new = forest.plant(16_000, &zeros);
    assert_eq!(forest.walk(Some(&old), &new).await.unwrap(), [(128, 128, ZERO)]);
    assert_eq!(forest.fetched(), 2, "only the roots");
}

#[tokio::test]
async fn random_differences_are_those_of_a_naive_model() {
    let seed = std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random::<u64>);
    println!("THINBAK_SEED={seed}");
    let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
    for _ in 0..30 {
        let mut forest = Forest::default();
        let mut sides = Vec::new();
        for _ in 0..2 {
            let chunks = rand::Rng::random_range(&mut random, 1..40_000u64);
            let mut model = vec![HOLE; usize::try_from(chunks).unwrap()];
            for _ in 0..rand::Rng::random_range(&mut random, 0..6) {
                let begin = rand::Rng::random_range(&mut random, 0..model.len());
                let len = rand::Rng::random_range(&mut random, 1..2_000).min(model.len() - begin);
                let entry = [HOLE, ZERO, data(1), data(2)][rand::Rng::random_range(&mut random, 0..4)];
                model[begin..begin + len].fill(entry);
            }
            let entries: Vec<_> =
                (0..).zip(model.iter().copied()).filter(|(_, entry)| *entry != HOLE).collect();
            sides.push((forest.plant(chunks, &entries), model));
        }
        let ((old, old_model), (new, new_model)) = (&sides[0], &sides[1]);
        let at = |model: &[MapEntry], chunk: usize| model.get(chunk).copied().unwrap_or_default();
        let expected: Vec<_> = (0..old_model.len().max(new_model.len()))
            .filter(|chunk| at(old_model, *chunk) != at(new_model, *chunk))
            .map(|chunk| (chunk as u64, at(new_model, chunk)))
            .collect();
        let chunk_by_chunk = |told: Vec<(u64, u64, MapEntry)>| -> Vec<_> {
            told.into_iter()
                .flat_map(|(chunk, count, entry)| (chunk..chunk + count).map(move |chunk| (chunk, entry)))
                .collect()
        };
        assert!(chunk_by_chunk(forest.walk(Some(old), new).await.unwrap()) == expected);
        let all: Vec<_> = (0..).zip(new_model.iter().copied()).collect();
        assert!(chunk_by_chunk(forest.walk(None, new).await.unwrap()) == all);
    }
}

#[tokio::test]
async fn what_a_lying_server_sends_is_damage() {
    let mut forest = Forest::default();
    let old = forest.plant(300, &[(1, data(1)), (299, data(1))]);
    let new = forest.plant(300, &[(1, data(2)), (299, data(2))]);
    let lies: [fn(Vec<NodeData>) -> Vec<NodeData>; 6] = [
        |_| Vec::new(),
        |mut nodes| nodes.split_off(1),
        |mut nodes| {
            nodes.reverse();
            nodes
        },
        |mut nodes| {
            nodes[0].node = vec![0; 5000].into();
            nodes
        },
        |mut nodes| {
            nodes[0].node = bytes::Bytes::new();
            nodes
        },
        |mut nodes| {
            nodes[1] = nodes[0].clone();
            nodes
        },
    ];
    for lie in lies {
        forest.lie = Some(lie);
        let failed = forest.walk(Some(&old), &new).await.unwrap_err();
        assert_eq!(failed.exit_code(), 4, "{failed}");
    }
    // More than was asked for is not even listened to.
    forest.lie = Some(|mut nodes| {
        nodes.extend(vec![nodes[0].clone(); 1000]);
        nodes
    });
    assert_eq!(forest.walk(Some(&old), &new).await.unwrap(), [(1, 1, data(2)), (299, 1, data(2))]);
}

#[tokio::test]
async fn maps_that_cannot_be_are_damage() {
    let mut forest = Forest::default();
    let good = forest.plant(300, &[(1, data(1))]);
    let code = async |forest: &Forest, bad: &Generation| {
        let both = [forest.walk(None, bad).await, forest.walk(Some(&good), bad).await];
        both.map(|failed| failed.unwrap_err().exit_code())
    };
    let described = [
        Generation { levels: 1, ..good.clone() },
        Generation { levels: 9, ..good.clone() },
        Generation { levels: u32::MAX, ..good.clone() },
        Generation { chunk_bytes: 0, ..good.clone() },
        Generation { chunk_bytes: 5000, ..good.clone() },
        Generation { chunk_bytes: 1 << 31, ..good.clone() },
        Generation { size_bytes: 0, ..good.clone() },
        Generation { size_bytes: 100 * 4096 + 1, ..good.clone() },
        Generation { size_bytes: u64::MAX - 511, ..good.clone() },
        Generation { root: bytes::Bytes::from_static(b"short"), ..good.clone() },
    ];
    for bad in described {
        assert_eq!(code(&forest, &bad).await, [4, 4], "{bad:?}");
    }
    // A map of one level under a root that says two: a node that names itself would be found the same way.
    let leaf = forest.plant(100, &[(1, data(9))]);
    let leaf = NodeId::try_from(&*leaf.root).unwrap();
    let mut upper = MapNode::new(1);
    upper.slots_mut()[0] = leaf.into();
    let id = upper.id();
    forest.nodes.insert(id, upper);
    let mut top = MapNode::new(1);
    top.slots_mut()[0] = id.into();
    let id = top.id();
    forest.nodes.insert(id, top);
    assert_eq!(code(&forest, &Generation { root: id.to_bytes(), ..good.clone() }).await, [4, 4]);
    // Content behind the end.
    let long = forest.plant(300, &[(1, data(1)), (250, data(2))]);
    let cut = Generation { size_bytes: 200 * u64::from(CHUNK), ..long };
    assert_eq!(code(&forest, &cut).await, [4, 4]);
}
