//! Bringing packs and index together when a store is opened: unfinished packs are completed, packs that
//! the index does not cover are read into it, and what is wrong is noted without stopping the rest.

use std::{collections::HashSet, io::IoSlice};

use super::{
    error::{Problem, StoreError},
    format::{MAX_PACK_LEN, PACK_HEADER_LEN},
    index::{Location, Mark, PackState},
    layout::{PackEntry, encode_tail},
    medium::PackFile,
    pack::Pack,
    shared::Shared,
};

/// Makes the index cover every pack, `files` in ascending order. Returns the number of the next new pack.
pub(super) fn recover(shared: &Shared, files: &[PackFile]) -> Result<Option<u32>, StoreError> {
    let Comparison { todo, retired, highest_mark } = compare(shared, files)?;
    let highest = files.last().map(|file| file.number).max(highest_mark);
    for number in retired {
        // What fails here is tried again by the next collection.
        if let Err(error) = remove_retired(shared, number, highest) {
            tracing::warn!(pack = number, %error, "a pack that is not needed could not be removed");
        }
    }
    for (file, mark) in todo {
        match recover_pack(shared, file, mark) {
            Ok(()) => {}
            // The index, not the pack: the pack is as good as before.
            Err(
                error @ (StoreError::Index { .. }
                | StoreError::IndexEntry { .. }
                | StoreError::NoSpace { .. }),
            ) => {
                return Err(error);
            }
            Err(error) => {
                shared.forget(file.number);
                shared.report(Problem::Pack(error));
            }
        }
    }
    Ok(highest.map_or(Some(0), |number| number.checked_add(1)))
}

/// Removes a pack that no entry of the index points into any more. The mark of the highest number stays, so that
/// the number is not used again.
pub(super) fn remove_retired(shared: &Shared, number: u32, highest: Option<u32>) -> Result<(), StoreError> {
    shared
        .medium
        .remove(number)
        .map_err(|source| StoreError::io("removing a pack", shared.medium.path(), source))?;
    if highest == Some(number) { Ok(()) } else { shared.index.remove_mark(number) }
}

#[derive(Default)]
struct Comparison {
    /// To be looked into.
    todo: Vec<(PackFile, Option<Mark>)>,
    /// To be removed.
    retired: Vec<u32>,
    /// Highest number that the index knows.
    highest_mark: Option<u32>,
}

/// Sorts the packs into those that the index covers as they are, those to be looked into and those to be removed;
/// notes those that are missing.
fn compare(shared: &Shared, files: &[PackFile]) -> Result<Comparison, StoreError> {
    let mut comparison = Comparison::default();
    let Comparison { todo, retired, highest_mark } = &mut comparison;
    let mut files = files.iter().copied().peekable();
    shared.index.for_each_mark(|number, mark| {
        *highest_mark = Some(number);
        while let Some(file) = files.next_if(|file| file.number < number) {
            todo.push((file, None));
        }
        match files.next_if(|file| file.number == number) {
            _ if mark.state == PackState::Retired => retired.push(number),
            None => {
                shared.miss();
                shared.report(Problem::Pack(StoreError::PackMissing { pack: number }));
            }
            Some(file) => {
                shared.know(number);
                shared.add_pack(file.len, &mark);
                if file.len < mark.len {
                    let (expected, found) = (mark.len, file.len);
                    // Cut off, or the place of another one.
                    let (readable, error) = match Pack::open(&*shared.medium, shared.repository, number) {
                        Err(error) if error.is_damage() => (0, error),
                        _ => (found, StoreError::PackTruncated { pack: number, expected, found }),
                    };
                    shared.withdraw(number, readable);
                    shared.report(Problem::Pack(error));
                } else if !(mark.state == PackState::Sealed && file.len == mark.len) {
                    todo.push((file, Some(mark)));
                }
            }
        }
    })?;
    todo.extend(files.map(|file| (file, None)));
    Ok(comparison)
}

/// Reads one pack into the index, and completes it if it is unfinished.
fn recover_pack(shared: &Shared, file: PackFile, mark: Option<Mark>) -> Result<(), StoreError> {
    if file.len > MAX_PACK_LEN {
        return Err(StoreError::OversizedPack { pack: file.number, len: file.len });
    }
    if file.len <= PACK_HEADER_LEN as u64 && mark.is_none() {
        // Made by a put that was never acknowledged.
        return shared
            .medium
            .remove(file.number)
            .map_err(|source| StoreError::io("removing an empty pack", shared.medium.path(), source));
    }
    let pack = Pack::open(&*shared.medium, shared.repository, file.number)?;
    if !pack.header_valid() {
        shared.report(Problem::PackHeader { pack: file.number });
    }
    let (entries, len) = match pack.sealed_entries() {
        Ok(entries) => (entries, Ok(file.len)),
        Err(StoreError::Damaged { .. }) => {
            let scan = pack.scan(file.len)?;
            for (offset, len) in scan.gaps {
                shared.report(Problem::Skipped { pack: file.number, offset, len });
            }
            if scan.end < file.len {
                let cut = file.len - scan.end;
                tracing::warn!(
                    pack = file.number,
                    offset = scan.end,
                    cut,
                    "cutting the unfinished end off a pack"
                );
            }
            let completed = complete(shared, file.number, scan.end, &scan.entries);
            (scan.entries, completed.map_err(|source| (scan.end, source)))
        }
        Err(error) => return Err(error),
    };
    let new_mark = match len {
        Ok(len) => Mark::new(PackState::Sealed, len, &entries),
        Err((end, source)) => {
            shared.report(Problem::Unfinished { pack: file.number, source });
            Mark::new(PackState::Unfinished, end, &entries)
        }
    };
    let worse = worse_places(shared, file.number, &entries)?;
    shared.index.cover_all_but(file.number, 0, &entries, &new_mark, &worse)?;
    if let Some(mark) = mark {
        shared.remove_pack(file.len, &mark);
    }
    shared.know(file.number);
    shared.add_pack(new_mark.len, &new_mark);
    Ok(())
}

/// The offsets of those records of a pack that are in quarantine and that the index has elsewhere: they must not
/// take the place of what healed them.
fn worse_places(shared: &Shared, pack: u32, entries: &[PackEntry]) -> Result<HashSet<u32>, StoreError> {
    let known: HashSet<u32> = shared.quarantine.of_pack(pack).into_iter().map(|place| place.offset).collect();
    if known.is_empty() {
        return Ok(known);
    }
    let suspects: Vec<&PackEntry> = entries.iter().filter(|entry| known.contains(&entry.offset)).collect();
    let ids: Vec<[u8; 32]> = suspects.iter().map(|entry| entry.id).collect();
    let located = shared.index.locate(&ids)?;
    let elsewhere = |entry: &PackEntry, location: &Location| {
        (location.pack, location.offset) != (pack, entry.offset) && shared.reachable(location)
    };
    let worse = suspects.into_iter().zip(located);
    Ok(worse
        .filter(|(entry, found)| found.is_some_and(|location| elsewhere(entry, &location)))
        .map(|(entry, _)| entry.offset)
        .collect())
}

/// Cuts a pack behind its last whole record and seals it. Returns its length.
fn complete(shared: &Shared, number: u32, end: u64, entries: &[PackEntry]) -> Result<u64, StoreError> {
    let tail = encode_tail(shared.repository, number, end, entries);
    let write = || {
        let mut file = shared.medium.open_write(number)?;
        file.truncate(end)?;
        file.append(&mut [IoSlice::new(&tail)])?;
        file.sync()
    };
    write()
        .map_err(|source| StoreError::io("completing an unfinished pack", shared.medium.path(), source))?;
    Ok(end + tail.len() as u64)
}
