//! Journals that are not as they were written.

use super::doubles::{Fuse, MemoryLog};
use super::{Change, Plan, Registry, RegistryError, create, fresh, id, names, volume};

/// A journal of several lines, and the names after each number of lines.
fn journal() -> (Vec<u8>, Vec<Vec<(u32, String)>>) {
    let fuse = Fuse::whole();
    let (mut registry, pool, log) = fresh(&fuse);
    let mut history = vec![names(&registry)];
    for number in 0..3 {
        registry.transact(&pool, create(volume(number, &format!("v{number}")))).unwrap();
        history.push(names(&registry));
    }
    registry.transact(&pool, Plan { create: vec![], changes: vec![Change::Remove(id(1))] }).unwrap();
    history.push(names(&registry));
    (log.content(), history)
}

fn load(journal: &[u8]) -> Result<Registry, RegistryError> {
    let fuse = Fuse::whole();
    Registry::load(Box::new(MemoryLog::new(&fuse, journal)), journal, super::POOL)
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let (journal, _) = journal();
    for bit in 0..journal.len() * 8 {
        let mut flipped = journal.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let found = load(&flipped);
        assert!(
            matches!(found, Err(RegistryError::Damaged { .. } | RegistryError::Content { .. })),
            "bit {bit} of {}",
            journal.len() * 8
        );
    }
}

#[test]
fn a_journal_cut_anywhere_is_an_earlier_moment_or_an_error() {
    let (journal, history) = journal();
    let mut loaded = 0;
    for length in 0..journal.len() {
        match load(&journal[..length]) {
            Ok(registry) => {
                loaded += 1;
                assert!(history.contains(&names(&registry)), "cut at {length}");
            }
            Err(RegistryError::Damaged { line: 1 | 2, .. }) => {}
            Err(error) => panic!("cut at {length}: {error}"),
        }
    }
    assert!(loaded > 100);
}

#[test]
fn a_missing_or_repeated_or_exchanged_line_is_found() {
    let (journal, _) = journal();
    let lines: Vec<&[u8]> = journal.split_inclusive(|&byte| byte == b'\n').collect();
    assert!(lines.len() >= 6);
    for index in 0..lines.len() - 1 {
        let mut without = lines.clone();
        without.remove(index);
        assert!(load(&without.concat()).is_err(), "without line {index}");
        let mut twice = lines.clone();
        twice.insert(index, lines[index]);
        assert!(load(&twice.concat()).is_err(), "line {index} twice");
        let mut exchanged = lines.clone();
        exchanged.swap(index, index + 1);
        assert!(load(&exchanged.concat()).is_err(), "lines {index} and {} exchanged", index + 1);
    }
}

#[test]
fn zeroes_behind_the_last_line_are_an_unfinished_line() {
    let (mut journal, _) = journal();
    let expected = names(&load(&journal).unwrap());
    journal.extend([0; 100]);
    assert_eq!(names(&load(&journal).unwrap()), expected);
}

#[test]
fn a_torn_tail_is_cut_before_the_next_line_is_written() {
    let (mut journal, _) = journal();
    journal.extend(b"1234");
    let fuse = Fuse::whole();
    let log = MemoryLog::new(&fuse, &journal);
    let mut registry = Registry::load(Box::new(log.clone()), &journal, super::POOL).unwrap();
    registry.settle(4).unwrap();
    assert_eq!(log.content(), journal, "nothing is written by opening");
    registry.record(vec![Change::Msnap(None)]).unwrap();
    let found = load(&log.content()).unwrap();
    assert_eq!(names(&found), names(&registry));
}

#[test]
fn a_newer_format_is_refused_by_its_number() {
    let mut journal = Vec::new();
    super::super::line::encode(br#"{"sequence":0,"format":2,"what":"unknown"}"#, &mut journal);
    assert!(matches!(load(&journal), Err(RegistryError::NewerFormat { found: 2 })));
}

#[test]
fn the_registry_of_another_pool_is_refused() {
    let (journal, _) = journal();
    let fuse = Fuse::whole();
    let other = uuid::Uuid::from_u128(1);
    let found = Registry::load(Box::new(MemoryLog::new(&fuse, &journal)), &journal, other);
    assert!(matches!(found, Err(RegistryError::OtherPool { expected, .. }) if expected == other));
}

#[test]
fn a_transaction_id_that_fits_nothing_is_refused() {
    let (journal, _) = journal();
    for found in [0, 2, 5, u64::MAX] {
        let mut registry = load(&journal).unwrap();
        assert!(matches!(
            registry.settle(found),
            Err(RegistryError::Transaction { expected: 3, intent: Some(4), .. })
        ));
        assert!(matches!(registry.record(vec![Change::Msnap(None)]), Err(RegistryError::Undecided)));
    }
    for found in [3, 4] {
        load(&journal).unwrap().settle(found).unwrap();
    }
}

#[test]
fn a_device_id_beyond_the_format_is_refused() {
    let (journal, _) = journal();
    let text = String::from_utf8(journal).unwrap();
    let first = text.lines().next().unwrap();
    let mut journal = format!("{first}\n").into_bytes();
    let state = r#"{"sequence":1,"state":{"transaction_id":0,"next_device":0,"devices":[{"device":16777216,"uuid":"00000000-0000-0000-0000-000000000001","size_bytes":1,"created_at_ms":1,"role":"head"}],"bases":[],"msnap":null}}"#;
    super::super::line::encode(state.as_bytes(), &mut journal);
    assert!(matches!(load(&journal), Err(RegistryError::Content { line: 2, .. })));
}
