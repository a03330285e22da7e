//! Reading many records at a time, and all records of a kind.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use super::{
    error::StoreError,
    format::RECORD_HEADER_LEN,
    index::Location,
    layout::PackEntry,
    pack::Pack,
    record::{Kind, StoredRecord},
    shared::Shared,
};

/// Records are read together if no more than this lies between them,
const MAX_GAP: u64 = 32 * 1024;
/// and as long as they are no longer than this together.
const MAX_RUN: u64 = 4 * 1024 * 1024;

/// A record is looked for in so many places at most: it moves once a collection.
const MAX_MOVES: usize = 4;

type Read = Option<Result<StoredRecord, StoreError>>;
/// A pack, and what is left of its records: where each is, and its id.
type Entries = (Arc<Pack>, std::vec::IntoIter<(Location, [u8; 32])>);

/// A record wanted: where it is, and which of the ids asked for it.
struct Wanted {
    location: Location,
    place: usize,
}

/// Reads the records of `ids`, in the order in which they lie on disk.
///
/// Between the look in the index and the reading a pack may be retired, its records moved. What was to be read from
/// a pack that is missing is looked up again, and read if it is elsewhere now.
pub(super) fn read_many(shared: &Shared, ids: &[[u8; 32]]) -> Result<Vec<Read>, StoreError> {
    let mut located = shared.index.locate(ids)?;
    let mut results = read_located(shared, ids, &located)?;
    for _ in 0..MAX_MOVES {
        let missing = results.iter().enumerate().filter_map(|(place, read)| {
            matches!(read, Some(Err(StoreError::PackMissing { .. }))).then_some((place, *ids.get(place)?))
        });
        let (places, missing): (Vec<usize>, Vec<[u8; 32]>) = missing.unzip();
        if missing.is_empty() {
            break;
        }
        let mut moved = Vec::new();
        for ((place, id), now) in places.into_iter().zip(&missing).zip(shared.index.locate(&missing)?) {
            if let Some(before) = located.get_mut(place)
                && std::mem::replace(before, now) != now
            {
                moved.push((place, *id, now));
            }
        }
        let ids: Vec<[u8; 32]> = moved.iter().map(|(_, id, _)| *id).collect();
        let now: Vec<Option<Location>> = moved.iter().map(|(_, _, now)| *now).collect();
        for ((place, ..), read) in moved.into_iter().zip(read_located(shared, &ids, &now)?) {
            if let Some(result) = results.get_mut(place) {
                *result = read;
            }
        }
    }
    Ok(results)
}

/// Reads the records of `ids` from where they were found.
fn read_located(
    shared: &Shared,
    ids: &[[u8; 32]],
    located: &[Option<Location>],
) -> Result<Vec<Read>, StoreError> {
    let mut wanted: Vec<Wanted> = located
        .iter()
        .enumerate()
        .filter_map(|(place, found)| found.map(|location| Wanted { location, place }))
        .collect();
    wanted.sort_unstable_by_key(|wanted| wanted.location);
    let mut results: Vec<Read> = Vec::new();
    results.resize_with(ids.len(), || None);
    for run in wanted.chunk_by(in_one_pack) {
        let Some(first) = run.first() else { continue };
        let pack = shared.pack(first.location.pack);
        for span in spans(run) {
            let group = run.get(span).unwrap_or_default();
            for (wanted, read) in group.iter().zip(read_group(&pack, group, ids)) {
                let read = again(shared, &pack, wanted, ids, read);
                if let Some(result) = results.get_mut(wanted.place) {
                    *result = Some(read);
                }
            }
        }
    }
    Ok(results)
}

fn in_one_pack(one: &Wanted, next: &Wanted) -> bool {
    one.location.pack == next.location.pack
}

/// Cuts what is wanted of one pack into groups that are read at once.
fn spans(run: &[Wanted]) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let (mut begin, mut first, mut end) = (0, 0, 0);
    for (place, wanted) in run.iter().enumerate() {
        let (offset, record_end) = (u64::from(wanted.location.offset), wanted.location.end());
        if place > begin && (offset > end + MAX_GAP || record_end.saturating_sub(first) > MAX_RUN) {
            spans.push(begin..place);
            begin = place;
        }
        if place == begin {
            (first, end) = (offset, record_end);
        }
        end = end.max(record_end);
    }
    spans.push(begin..run.len());
    spans
}

/// Reads one group. If reading it whole fails, each record is tried by itself, so that one bad spot or a
/// missing end costs only what lies there.
fn read_group(
    pack: &Result<Arc<Pack>, StoreError>,
    group: &[Wanted],
    ids: &[[u8; 32]],
) -> Vec<Result<StoredRecord, StoreError>> {
    let id_of = |wanted: &Wanted| ids.get(wanted.place).copied().unwrap_or_default();
    let pack = match pack {
        Ok(pack) => pack,
        Err(error) => return group.iter().map(|_| Err(error.clone())).collect(),
    };
    let begin = group.first().map_or(0, |wanted| u64::from(wanted.location.offset));
    let end = group.iter().map(|wanted| content_end(&wanted.location)).max().unwrap_or(begin);
    let whole = pack.read_bytes(begin, usize::try_from(end.saturating_sub(begin)).unwrap_or_default());
    let single = group.len() == 1;
    group
        .iter()
        .map(|wanted| {
            let location = &wanted.location;
            match &whole {
                Ok(bytes) => {
                    let from = usize::try_from(u64::from(location.offset) - begin).unwrap_or_default();
                    let to = usize::try_from(content_end(location) - begin).unwrap_or_default();
                    pack.parse_record(location, &id_of(wanted), &bytes.slice(from..to))
                }
                Err(error) if single => Err(error.clone()),
                Err(_) => pack.read_record(location, &id_of(wanted)),
            }
        })
        .collect()
}

/// Reads a damaged record once more; one that is damaged then too is put into quarantine.
fn again(
    shared: &Shared,
    pack: &Result<Arc<Pack>, StoreError>,
    wanted: &Wanted,
    ids: &[[u8; 32]],
    read: Result<StoredRecord, StoreError>,
) -> Result<StoredRecord, StoreError> {
    let (Ok(pack), Err(error), Some(id)) = (pack, &read, ids.get(wanted.place)) else { return read };
    if !error.is_damage() {
        return read;
    }
    pack.read_record(&wanted.location, id).inspect_err(|error| shared.stumbled(&wanted.location, id, error))
}

/// End of a record without its padding.
fn content_end(location: &Location) -> u64 {
    u64::from(location.offset) + RECORD_HEADER_LEN as u64 + u64::from(location.stored_len)
}

/// All records of one kind; made by [`Store::records`](super::Store::records).
pub struct Records {
    shared: Arc<Shared>,
    kind: Kind,
    packs: VecDeque<u32>,
    current: Option<Entries>,
}

impl Records {
    pub(super) fn new(shared: Arc<Shared>, kind: Kind) -> Result<Self, StoreError> {
        let files = shared
            .medium
            .list()
            .map_err(|source| StoreError::io("listing packs", shared.medium.path(), source))?;
        let packs = files.into_iter().map(|file| file.number).collect();
        Ok(Self { shared, kind, packs, current: None })
    }

    /// The entries of the wanted kind in a pack.
    fn open(&self, number: u32) -> Result<Option<Entries>, StoreError> {
        let Some(mark) = self.shared.index.mark(number)? else { return Ok(None) };
        if mark.count(self.kind).records == 0 {
            return Ok(None);
        }
        let pack = match self.shared.pack(number) {
            Err(StoreError::PackMissing { .. }) if !self.shared.is_known(number) => return Ok(None),
            pack => pack?,
        };
        let entries: Vec<PackEntry> = match pack.sealed_entries() {
            Ok(entries) => entries,
            // The pack being written, or one whose end is lost.
            Err(StoreError::Damaged { .. }) => pack.scan(mark.len.min(pack.len()?))?.entries,
            Err(error) => return Err(error),
        };
        let records: Vec<_> = (0..)
            .zip(entries)
            .filter(|(_, entry)| entry.kind == self.kind)
            .map(|(ordinal, entry)| (Location::of(number, ordinal, &entry), entry.id))
            .collect();
        Ok(Some((pack, records.into_iter())))
    }
}

impl Iterator for Records {
    type Item = Result<StoredRecord, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((pack, records)) = &mut self.current
                && let Some((location, id)) = records.next()
            {
                return Some(pack.read_record(&location, &id));
            }
            self.current = None;
            let number = self.packs.pop_front()?;
            match self.open(number) {
                Ok(current) => self.current = current,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
