//! Putting another catalogue in the place of the one that is there, so that whoever opens the repository finds
//! the old one or the new one, whole, wherever the process died.
//!
//! | name | what |
//! |---|---|
//! | `catalogue.sqlite.draft` | being made; of no value, removed at the next open |
//! | `catalogue.sqlite.new-TIME` | complete and on stable storage: from now on this is the catalogue |
//! | `catalogue.sqlite.old-TIME` | what it took the place of, with its `-wal`; the newest three are kept |
//!
//! The rename of the draft decides. All that follows is also done by whoever opens the repository next. It cannot
//! be one rename, for the old catalogue's write-ahead log must be out of the way first: SQLite would replay it
//! into the new file.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::environment::ChangeGate;

pub(crate) const CATALOGUE_NAME: &str = "catalogue.sqlite";
pub(crate) const DRAFT_NAME: &str = "catalogue.sqlite.draft";
const NEW_PREFIX: &str = "catalogue.sqlite.new-";
const OLD_PREFIX: &str = "catalogue.sqlite.old-";
/// Replaced catalogues that are kept, the last one included.
const KEPT_OLD: usize = 3;
/// What SQLite keeps beside a file.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// One step. Steps that were done already have no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Rename { from: PathBuf, to: PathBuf },
    Remove(PathBuf),
    SyncDir(PathBuf),
}

impl Step {
    fn run(&self, changes: &ChangeGate) -> io::Result<()> {
        changes.pass()?;
        let done = match self {
            Self::Rename { from, to } => fs::rename(from, to),
            Self::Remove(path) => fs::remove_file(path),
            Self::SyncDir(dir) => return File::open(dir)?.sync_all(),
        };
        match done {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

/// Makes the closed draft, which no one has open, the catalogue. Returns where the one before is now. `time` is
/// for the name of that file and must be new.
pub(crate) fn swap_in(dir: &Path, time: &str, changes: &ChangeGate) -> io::Result<PathBuf> {
    let draft = dir.join(DRAFT_NAME);
    let wal = dir.join(format!("{DRAFT_NAME}-wal"));
    if wal.metadata().is_ok_and(|wal| wal.len() > 0) {
        return Err(io::Error::other("the draft was not closed: a part of it is in its write-ahead log"));
    }
    File::open(&draft)?.sync_all()?;
    for step in decision(dir, time).iter().chain(&completion(dir, time)) {
        step.run(changes)?;
    }
    if let Err(error) = remove_old(dir, time, changes) {
        tracing::warn!(dir = %dir.display(), %error, "replaced catalogues cannot be removed");
    }
    Ok(dir.join(format!("{OLD_PREFIX}{time}")))
}

/// Removes replaced catalogues but for the newest ones. The one of `now` is new, whatever the clock said before.
fn remove_old(dir: &Path, now: &str, changes: &ChangeGate) -> io::Result<()> {
    let mut old = BTreeMap::<String, Vec<PathBuf>>::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        let Some(rest) = name.strip_prefix(OLD_PREFIX) else { continue };
        let companion = COMPANIONS.iter().find_map(|companion| rest.strip_suffix(companion));
        let time = companion.unwrap_or(rest);
        if is_time(time) && time != now {
            old.entry(time.to_owned()).or_default().push(dir.join(name));
        }
    }
    let surplus = old.len().saturating_sub(KEPT_OLD - 1);
    old.into_values().take(surplus).flatten().try_for_each(|path| Step::Remove(path).run(changes))
}

/// Completes a swap that was decided, and removes a draft that was not. The repository is locked.
pub(crate) fn finish_swap(dir: &Path, changes: &ChangeGate) -> io::Result<()> {
    let mut decided = Vec::new();
    let mut draft = false;
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        draft |= name == DRAFT_NAME;
        decided.extend(name.strip_prefix(NEW_PREFIX).filter(|time| is_time(time)).map(str::to_owned));
    }
    // Of two the later one was made by somebody who knew of the earlier one.
    decided.sort_unstable();
    for time in decided {
        tracing::warn!(dir = %dir.display(), time, "completing the replacement of the catalogue");
        for step in completion(dir, &time) {
            step.run(changes)?;
        }
    }
    if draft {
        remove_draft(dir, changes)?;
    }
    Ok(())
}

/// Removes what an earlier attempt left.
pub(crate) fn remove_draft(dir: &Path, changes: &ChangeGate) -> io::Result<()> {
    let companions = COMPANIONS.iter().map(|companion| format!("{DRAFT_NAME}{companion}"));
    companions.chain([DRAFT_NAME.to_owned()]).try_for_each(|name| Step::Remove(dir.join(name)).run(changes))
}

/// `20261124T181003.123Z` and the like: never a companion of such a file.
fn is_time(text: &str) -> bool {
    text.ends_with('Z') && !text.contains('-')
}

fn decision(dir: &Path, time: &str) -> Vec<Step> {
    let new = dir.join(format!("{NEW_PREFIX}{time}"));
    vec![Step::Rename { from: dir.join(DRAFT_NAME), to: new }, Step::SyncDir(dir.into())]
}

fn completion(dir: &Path, time: &str) -> Vec<Step> {
    let at = |name: String| dir.join(name);
    // The log first: while the new catalogue is not in its place nobody opens what is there.
    let mut steps: Vec<Step> = COMPANIONS
        .iter()
        .map(|companion| Step::Rename {
            from: at(format!("{CATALOGUE_NAME}{companion}")),
            to: at(format!("{OLD_PREFIX}{time}{companion}")),
        })
        .collect();
    let new = at(format!("{NEW_PREFIX}{time}"));
    steps.push(Step::SyncDir(dir.into()));
    steps.push(Step::Rename { from: at(CATALOGUE_NAME.into()), to: at(format!("{OLD_PREFIX}{time}")) });
    steps.push(Step::Rename { from: new, to: at(CATALOGUE_NAME.into()) });
    steps.push(Step::SyncDir(dir.into()));
    steps
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tempfile::TempDir;

    use super::*;

    const TIME: &str = "20261124T181003.123Z";

    fn place(names: &[&str]) -> TempDir {
        let dir = TempDir::new().unwrap();
        for name in names {
            fs::write(dir.path().join(name), name).unwrap();
        }
        dir
    }

    fn content(dir: &TempDir) -> BTreeMap<String, String> {
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names
            .map(|name| name.into_string().unwrap())
            .map(|name| (name.clone(), fs::read_to_string(dir.path().join(name)).unwrap()))
            .collect()
    }

    #[test]
    fn wherever_it_stops_the_next_one_finds_the_old_or_the_new_with_nothing_of_the_other() {
        let names = [CATALOGUE_NAME, "catalogue.sqlite-wal", "catalogue.sqlite-shm", DRAFT_NAME];
        let steps = |dir: &Path| [decision(dir, TIME), completion(dir, TIME)].concat();
        let all = steps(Path::new("")).len();
        for stop in 0..=all {
            let dir = place(&names);
            for step in steps(dir.path()).iter().take(stop) {
                step.run(&ChangeGate::default()).unwrap();
            }
            // The next one dies as well, at every place, before the one that comes through.
            for again in 0..all {
                for step in completion(dir.path(), TIME).iter().take(again) {
                    if dir.path().join(format!("{NEW_PREFIX}{TIME}")).exists() {
                        step.run(&ChangeGate::default()).unwrap();
                    }
                }
            }
            finish_swap(dir.path(), &ChangeGate::default()).unwrap();
            let found = content(&dir);
            let here = |name: &str| found.get(name).map(String::as_str);
            if stop == 0 {
                assert_eq!(here(CATALOGUE_NAME), Some(CATALOGUE_NAME));
                assert_eq!(here("catalogue.sqlite-wal"), Some("catalogue.sqlite-wal"));
                assert_eq!(found.len(), 3, "{found:?}");
            } else {
                assert_eq!(here(CATALOGUE_NAME), Some(DRAFT_NAME), "{stop}");
                assert_eq!(here(&format!("{OLD_PREFIX}{TIME}")), Some(CATALOGUE_NAME));
                assert_eq!(here(&format!("{OLD_PREFIX}{TIME}-wal")), Some("catalogue.sqlite-wal"));
                assert_eq!(found.len(), 4, "{found:?}");
            }
        }
    }

    #[test]
    fn of_the_replaced_ones_the_newest_are_kept_and_nothing_of_others_is_touched() {
        let old = |time: &str| format!("{OLD_PREFIX}{time}");
        let times = ["20261120T000000.000Z", "20261121T000000.000Z", "20261122T000000.000Z"];
        let mut names: Vec<String> = times.iter().map(|time| old(time)).collect();
        names.extend([old(&format!("{}-wal", times[0])), old(&format!("{}-wal", times[2]))]);
        names.extend([CATALOGUE_NAME, "catalogue.sqlite-wal", DRAFT_NAME].map(str::to_owned));
        names.extend([old("before-the-move"), "catalogue.sqlite.bak".to_owned()]);
        // By a clock that was set back it is not the newest.
        for now in ["20261123T000000.000Z", "20261101T000000.000Z"] {
            let dir = place(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let replaced = swap_in(dir.path(), now, &ChangeGate::default()).unwrap();
            assert!(replaced.exists());
            let found = content(&dir);
            let gone: Vec<_> = names.iter().filter(|name| !found.contains_key(*name)).cloned().collect();
            let moved = ["catalogue.sqlite-wal".to_owned(), DRAFT_NAME.to_owned()];
            let removed = [old(times[0]), old(&format!("{}-wal", times[0]))];
            assert_eq!(gone, [&removed[..], &moved[..]].concat(), "{now}");
        }
    }

    #[test]
    fn a_missing_catalogue_is_replaced_as_well() {
        let dir = place(&[DRAFT_NAME]);
        swap_in(dir.path(), TIME, &ChangeGate::default()).unwrap();
        assert_eq!(content(&dir), BTreeMap::from([(CATALOGUE_NAME.to_owned(), DRAFT_NAME.to_owned())]));
    }

    #[test]
    fn a_draft_that_is_still_open_is_not_taken() {
        let dir = place(&[CATALOGUE_NAME, DRAFT_NAME, "catalogue.sqlite.draft-wal"]);
        swap_in(dir.path(), TIME, &ChangeGate::default()).unwrap_err();
        assert_eq!(content(&dir).len(), 3);
    }
}
