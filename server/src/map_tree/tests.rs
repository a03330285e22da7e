use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use parking_lot::Mutex;
use proptest::prelude::*;
use thinbak_proto::ChunkId;

use super::*;

/// Nodes in memory; counts what is read.
#[derive(Clone, Default)]
struct Nodes(Arc<Mutex<Memory>>);

#[derive(Default)]
struct Memory {
    nodes: HashMap<NodeId, Vec<u8>>,
    reads: usize,
    /// What was said to be asked for soon, and was not yet.
    announced: HashSet<NodeId>,
    /// Reads that had been announced.
    expected_reads: usize,
}

impl NodeSource for Nodes {
    async fn load(&self, id: NodeId) -> Result<MapNode, NodeError> {
        let mut memory = self.0.lock();
        memory.reads += 1;
        memory.expected_reads += usize::from(memory.announced.remove(&id));
        let encoded = memory.nodes.get(&id).ok_or(NodeError::Missing(id))?;
        MapNode::decode(encoded).map_err(|source| NodeError::Invalid { id, source })
    }

    async fn will_load(&self, ids: Vec<NodeId>) {
        self.0.lock().announced.extend(ids);
    }
}

impl Nodes {
    fn keep(&self, fresh: Vec<FreshNode>) {
        self.0.lock().nodes.extend(fresh.into_iter().map(|node| (node.id, node.encoded)));
    }

    fn reads(&self) -> usize {
        std::mem::take(&mut self.0.lock().reads)
    }

    fn count(&self) -> usize {
        self.0.lock().nodes.len()
    }
}

/// Every future here is ready at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("a future over memory waits"),
    }
}

/// Nodes are kept at the end only: an editor does not ask for what it gave out.
fn edit(nodes: &Nodes, parent: Option<Tree>, chunks: u64, edits: &[(u64, Edit)]) -> Tree {
    let mut editor = now(Editor::new(nodes.clone(), parent, chunks)).unwrap();
    let mut given = Vec::new();
    now(editor.expect(edits));
    for (chunk, edit) in edits {
        now(editor.apply(*chunk, *edit)).unwrap();
        given.extend(editor.take_fresh());
    }
    let (root, fresh) = now(editor.finish()).unwrap();
    nodes.keep(given);
    nodes.keep(fresh);
    Tree { root, chunks }
}

fn read(nodes: &Nodes, tree: Tree) -> Vec<MapEntry> {
    (0..tree.chunks).map(|chunk| now(entry_at(nodes, tree, chunk)).unwrap()).collect()
}

/// The canonical tree by its definition, bottom-up from the whole list.
fn naive_root(entries: &[MapEntry]) -> NodeId {
    let levels = levels_for(entries.len() as u64);
    let mut row = entries.to_vec();
    let mut root = None;
    for level in 0..levels {
        let top = level + 1 == levels;
        row = row
            .chunks(FAN_OUT)
            .map(|slots| {
                let mut node = MapNode::new(level as u8);
                node.slots_mut()[..slots.len()].copy_from_slice(slots);
                root = Some(node.id());
                node.uniform().filter(|_| !top).unwrap_or_else(|| node.id().into())
            })
            .collect();
    }
    root.unwrap_or_else(|| MapNode::new(0).id())
}

/// Found by the simulation: the commit of a shrunken volume that now ends in a hole failed, because the leaf that was
/// cut by that hole was read back to be cut once more, before it was stored.
#[test]
fn a_volume_shrunk_to_end_in_a_hole_is_cut_once() {
    let nodes = Nodes::default();
    let full: Vec<(u64, Edit)> = (0..254).map(|at| (at, Edit::Chunk(chunk(at as u8)))).collect();
    let parent = edit(&nodes, None, 254, &full);
    let tree = edit(&nodes, Some(parent), 196, &[(195, Edit::Hole(1))]);
    let entries: Vec<MapEntry> = (0..195).map(|at| chunk(at).into()).chain([MapEntry::Hole]).collect();
    assert_eq!(tree.root, naive_root(&entries));
}

fn chunk(seed: u8) -> ChunkId {
    ChunkId::of(&[seed])
}

/// What a run of edits over `chunks` chunks is made of: (gap before it, what).
fn edits(chunks: u64) -> impl Strategy<Value = Vec<(u64, Edit)>> {
    let long = chunks.min(700);
    let one = prop_oneof![
        4 => any::<u8>().prop_map(|seed| Edit::Chunk(chunk(seed))),
        1 => (1..=long).prop_map(Edit::Zero),
        1 => (1..=long).prop_map(Edit::Hole),
        1 => Just(Edit::Zero(chunks)),
        1 => Just(Edit::Hole(chunks)),
    ];
    prop::collection::vec((prop_oneof![3 => 0..3u64, 1 => 0..=long], one), 0..40).prop_map(move |steps| {
        let mut next = 0;
        let mut edits = Vec::new();
        for (gap, what) in steps {
            let first = next + gap;
            let what = match what {
                Edit::Zero(count) => Edit::Zero(count.min(chunks.saturating_sub(first))),
                Edit::Hole(count) => Edit::Hole(count.min(chunks.saturating_sub(first))),
                one => one,
            };
            if first >= chunks || what.chunks() == 0 {
                break;
            }
            next = first + what.chunks();
            edits.push((first, what));
        }
        edits
    })
}

/// Sizes of one, two and three levels, and at the edges of nodes.
fn size() -> impl Strategy<Value = u64> {
    prop_oneof![
        1..=300u64,
        Just(128),
        Just(129),
        Just(128 * 128),
        Just(128 * 128 + 1),
        16_000..=17_000u64,
        Just(128 * 200),
    ]
}

fn generation() -> impl Strategy<Value = (u64, Vec<(u64, Edit)>)> {
    size().prop_flat_map(|chunks| (Just(chunks), edits(chunks)))
}

fn apply_naively(model: &mut Vec<MapEntry>, chunks: u64, edits: &[(u64, Edit)]) {
    model.resize(chunks as usize, MapEntry::Hole);
    for (first, edit) in edits {
        let entry = match edit {
            Edit::Chunk(id) => MapEntry::from(*id),
            Edit::Zero(_) => MapEntry::Zero,
            Edit::Hole(_) => MapEntry::Hole,
        };
        model[*first as usize..(*first + edit.chunks()) as usize].fill(entry);
    }
}

fn as_edits(model: &[MapEntry]) -> Vec<(u64, Edit)> {
    (0..)
        .zip(model)
        .map(|(at, entry)| {
            (
                at,
                entry.chunk().map_or_else(
                    || if *entry == MapEntry::Zero { Edit::Zero(1) } else { Edit::Hole(1) },
                    Edit::Chunk,
                ),
            )
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_says_what_a_list_would_and_is_the_one_canonical_tree(
        history in prop::collection::vec(generation(), 1..5),
    ) {
        let nodes = Nodes::default();
        let (mut model, mut parent) = (Vec::new(), None);
        for (chunks, edits) in history {
            let before = model.clone();
            apply_naively(&mut model, chunks, &edits);
            let tree = edit(&nodes, parent, chunks, &edits);
            prop_assert_eq!(tree.root, naive_root(&model));
            prop_assert_eq!(edit(&nodes, None, chunks, &as_edits(&model)).root, tree.root);
            prop_assert!(read(&nodes, tree) == model);
            check_difference(&nodes, parent, tree, &before, &model)?;
            parent = Some(tree);
        }
    }
}

/// The listed differences, put over the old list, give the new one, and name nothing that is the same.
fn check_difference(
    nodes: &Nodes,
    old: Option<Tree>,
    new: Tree,
    before: &[MapEntry],
    after: &[MapEntry],
) -> Result<(), TestCaseError> {
    let mut list = before.to_vec();
    list.resize(before.len().max(after.len()), MapEntry::Hole);
    let mut differences = TreeDiff::new(nodes.clone(), old, new);
    let mut next = 0;
    while let Some(difference) = now(differences.next()) {
        let Difference { first, chunks, old, new } = difference.unwrap();
        prop_assert!(first >= next, "not ascending");
        prop_assert_ne!(old, new);
        next = first + chunks;
        // A run that is hole in one tree may reach behind the end of that tree, never behind both.
        for entry in &mut list[first as usize..next as usize] {
            prop_assert_eq!(*entry, old);
            *entry = new;
        }
    }
    let tail = list.split_off(after.len());
    prop_assert!(list == after, "the differences do not lead to the new tree");
    prop_assert!(tail.iter().all(|entry| *entry == MapEntry::Hole), "something is left behind the end");
    Ok(())
}

#[test]
fn no_edit_gives_the_same_root_and_no_node_and_reads_the_root_only() {
    let nodes = Nodes::default();
    let content: Vec<_> = (0..40_000).step_by(3).map(|at| (at, Edit::Chunk(chunk(at as u8)))).collect();
    let tree = edit(&nodes, None, 40_000, &content);
    let (stored, _) = (nodes.count(), nodes.reads());
    assert_eq!(edit(&nodes, Some(tree), 40_000, &[]), tree);
    assert_eq!((nodes.count(), nodes.reads()), (stored, 1));
    // The same content once more is no change either.
    assert_eq!(edit(&nodes, Some(tree), 40_000, &content), tree);
    assert_eq!(nodes.count(), stored);
}

#[test]
fn one_chunk_changed_in_a_large_volume_reads_and_writes_one_path() {
    let nodes = Nodes::default();
    let content: Vec<_> = (0..40_000).map(|at| (at, Edit::Chunk(chunk(at as u8)))).collect();
    let tree = edit(&nodes, None, 40_000, &content);
    let (stored, _) = (nodes.count(), nodes.reads());
    edit(&nodes, Some(tree), 40_000, &[(20_000, Edit::Zero(1))]);
    assert_eq!((nodes.count() - stored, nodes.reads()), (3, 3));
}

#[test]
fn a_run_over_an_exbibyte_costs_a_path() {
    let nodes = Nodes::default();
    let chunks = 1 << 44;
    let tree = edit(&nodes, None, chunks, &[(1, Edit::Zero(chunks - 2))]);
    assert_eq!(tree.levels(), 7);
    assert!(nodes.count() <= 2 * 7, "{} nodes", nodes.count());
    let at = |chunk| now(entry_at(&nodes, tree, chunk)).unwrap();
    assert_eq!(
        (at(0), at(1), at(chunks - 2), at(chunks - 1)),
        (MapEntry::Hole, MapEntry::Zero, MapEntry::Zero, MapEntry::Hole)
    );
}

/// Two leaves below each of 20 nodes, in a tree of three levels: all but the root are announced, to who edits and to who
/// compares.
#[test]
fn what_scattered_edits_and_a_comparison_need_is_announced_before() {
    let nodes = Nodes::default();
    let span = span_of_level(2);
    let chunks = 20 * span;
    let places = || (0..20).flat_map(|node| [node * span + 3, node * span + span - 1]);
    let content = |seed: u8, at: u64| Edit::Chunk(ChunkId::of(&[&[seed], &at.to_le_bytes()[..]].concat()));
    let with = |seed: u8| places().map(|at| (at, content(seed, at))).collect::<Vec<_>>();
    let first = edit(&nodes, None, chunks, &with(1));
    assert_eq!((first.levels(), nodes.reads()), (3, 0));
    let second = edit(&nodes, Some(first), chunks, &with(2));
    assert_eq!((nodes.reads(), std::mem::take(&mut nodes.0.lock().expected_reads)), (1 + 20 + 40, 20 + 40));
    let mut differences = TreeDiff::new(nodes.clone(), Some(first), second);
    let found = std::iter::from_fn(|| now(differences.next())).map(|found| found.unwrap().first);
    assert!(found.eq(places()));
    assert_eq!((nodes.reads(), nodes.0.lock().expected_reads), (2 * 61, 2 * 60));
}

#[test]
fn edits_that_go_back_or_leave_the_volume_are_refused() {
    let mut editor = now(Editor::new(Nodes::default(), None, 10)).unwrap();
    now(editor.apply(4, Edit::Zero(2))).unwrap();
    assert!(matches!(now(editor.apply(5, Edit::Hole(1))), Err(EditError::Order { chunk: 5, next: 6 })));
    assert!(matches!(now(editor.apply(9, Edit::Hole(2))), Err(EditError::Bounds { .. })));
    assert!(matches!(now(editor.apply(9, Edit::Hole(u64::MAX))), Err(EditError::Bounds { .. })));
}

#[test]
fn a_missing_or_misplaced_node_is_an_error_and_the_walk_goes_on_behind_it() {
    let nodes = Nodes::default();
    let content: Vec<_> = (0..400).map(|at| (at, Edit::Chunk(chunk(at as u8)))).collect();
    let tree = edit(&nodes, None, 400, &content);
    let root = now(nodes.load(tree.root)).unwrap();
    let second = root.slots()[1].node().unwrap();
    let leaf = nodes.0.lock().nodes.remove(&second).unwrap();
    let mut walk = TreeDiff::new(nodes.clone(), None, tree);
    let mut seen = Vec::new();
    let mut broken = Vec::new();
    while let Some(difference) = now(walk.next()) {
        match difference {
            Ok(difference) => seen.push(difference.first),
            Err(unreadable) => broken.push((unreadable.first, unreadable.chunks)),
        }
    }
    assert_eq!(broken, [(128, 128)]);
    assert_eq!(seen, (0..128).chain(256..400).collect::<Vec<_>>());
    assert!(now(Editor::new(nodes.clone(), Some(Tree { chunks: 100, ..tree }), 400)).is_err());
    nodes.0.lock().nodes.insert(second, leaf);
    assert!(
        now(TreeDiff::new(nodes.clone(), None, Tree { root: second, chunks: 400 }).next()).unwrap().is_err()
    );
}
