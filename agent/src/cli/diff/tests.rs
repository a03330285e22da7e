use super::*;

/// Trees of maps from chunk number to content, all else holes.
#[derive(Default)]
struct Forest {
    nodes: HashMap<NodeId, MapNode>,
    fetched: usize,
}

impl Nodes for Forest {
    async fn fetch(&mut self, ids: Vec<NodeId>) -> Result<HashMap<NodeId, MapNode>, Failed> {
        self.fetched += ids.len();
        Ok(ids.into_iter().filter_map(|id| self.nodes.get(&id).map(|node| (id, node.clone()))).collect())
    }
}

impl Forest {
    /// The canonical tree of `levels`.
    fn plant(&mut self, levels: u32, entries: &[(u64, MapEntry)]) -> (NodeId, u32) {
        let root = self.grow(levels - 1, 0, entries);
        let id = root.id();
        self.nodes.insert(id, root);
        (id, levels)
    }

    fn grow(&mut self, level: u32, begin: u64, entries: &[(u64, MapEntry)]) -> MapNode {
        let mut node = MapNode::new(u8::try_from(level).unwrap());
        let span = span_of_level(level);
        for slot in 0..FAN_OUT {
            let first = begin + slot as u64 * span;
            let inside: Vec<_> =
                entries.iter().copied().filter(|(chunk, _)| (first..first + span).contains(chunk)).collect();
            node.slots_mut()[slot] = match (level, inside.first()) {
                (_, None) => MapEntry::Hole,
                (0, Some((_, entry))) => *entry,
                _ => {
                    let child = self.grow(level - 1, first, &inside);
                    let id = child.id();
                    let entry = child.uniform().unwrap_or(MapEntry::from(id));
                    self.nodes.insert(id, child);
                    entry
                }
            };
        }
        node
    }

    async fn differences(&mut self, left: (NodeId, u32), right: (NodeId, u32)) -> Vec<(u64, u64, Kind)> {
        let mut ranges = Vec::new();
        compare(self, left, right, &mut |range| {
            ranges.push((range.begin, range.end, range.kind));
            Ok(())
        })
        .await
        .unwrap();
        ranges
    }
}

fn data(seed: u8) -> MapEntry {
    MapEntry::Id([seed; 32])
}

#[tokio::test]
async fn equal_trees_are_not_read() {
    let mut forest = Forest::default();
    let tree = forest.plant(3, &[(5, data(1)), (20_000, data(2))]);
    assert_eq!(forest.differences(tree, tree).await, []);
    assert_eq!(forest.fetched, 0);
}

#[tokio::test]
async fn changed_chunks_are_found_joined_and_in_order() {
    let mut forest = Forest::default();
    let left = forest.plant(3, &[(5, data(1)), (7, data(3)), (300, data(2)), (20_000, data(9))]);
    let right = forest
        .plant(3, &[(5, data(4)), (6, data(5)), (7, MapEntry::Zero), (301, data(2)), (20_000, data(9))]);
    let found = forest.differences(left, right).await;
    assert_eq!(
        found,
        [(5, 7, Kind::Data), (7, 8, Kind::Zero), (300, 301, Kind::Unmapped), (301, 302, Kind::Data)]
    );
}

#[tokio::test]
async fn trees_of_different_height_are_compared() {
    let mut forest = Forest::default();
    let small = forest.plant(1, &[(5, data(1)), (6, data(2))]);
    let large = forest.plant(3, &[(5, data(1)), (6, data(3)), (9_000, data(4))]);
    let found = forest.differences(small, large).await;
    assert_eq!(found, [(6, 7, Kind::Data), (9_000, 9_001, Kind::Data)]);
    let back = forest.differences(large, small).await;
    assert_eq!(back, [(6, 7, Kind::Data), (9_000, 9_001, Kind::Unmapped)]);
}

#[tokio::test]
async fn whole_ranges_of_zero_and_hole_are_told_apart_without_reading() {
    let mut forest = Forest::default();
    let zeros: Vec<_> = (128..256).map(|chunk| (chunk, MapEntry::Zero)).collect();
    let left = forest.plant(2, &[]);
    let right = forest.plant(2, &zeros);
    assert_eq!(forest.differences(left, right).await, [(128, 256, Kind::Zero)]);
    assert_eq!(forest.fetched, 2, "only the roots");
}

#[tokio::test]
async fn a_missing_node_is_damage() {
    let mut forest = Forest::default();
    let left = forest.plant(2, &[(1, data(1))]);
    let right = forest.plant(2, &[(1, data(2))]);
    let right_root = forest.nodes.get(&right.0).cloned().unwrap();
    forest.nodes.clear();
    forest.nodes.insert(right.0, right_root);
    let failed = compare(&mut forest, left, right, &mut |_| Ok(())).await.unwrap_err();
    assert_eq!(failed.exit_code(), 4);
}
