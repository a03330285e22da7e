//! What changed between two snapshots, as found in a metadata snapshot.
//!
//! The list is made while the metadata snapshot is held and read after it was released, so it is kept in
//! a temporary file once it is longer than a MiB: memory does not grow with the volume.

use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use tempfile::SpooledTempFile;
use thinbak_engine::{ChangeKind, MetadataBlock, MetadataView, ViewError, VirtualBlock};

/// What is known of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    /// Every block of it is mapped, or reads an external origin.
    Data,
    /// No block of it is mapped.
    Unmapped,
    /// Chunks and blocks do not fit: which chunks hold data must be asked of the pool.
    Mixed,
}

/// A piece of the volume that a change stream must name. Bytes, aligned to the chunk size except at the
/// end of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
    /// What it holds.
    pub kind: RunKind,
}

/// The older side of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Base {
    /// Root of its mapping tree.
    pub root: MetadataBlock,
    /// Its virtual size in bytes.
    pub size_bytes: u64,
}

/// The newer side of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Root of its mapping tree.
    pub root: MetadataBlock,
    /// Its virtual size in bytes.
    pub size_bytes: u64,
    /// Up to where it reads an external origin where nothing is mapped; 0 without one.
    pub origin_bytes: u64,
}

/// The runs of a comparison in ascending order.
pub struct ChangeList {
    file: SpooledTempFile,
    runs: u64,
    bytes: u64,
}

/// Bytes kept in memory before the list goes to a temporary file.
const IN_MEMORY: usize = 1024 * 1024;
const RUN_LEN: usize = 17;

impl ChangeList {
    /// Bytes that the runs cover.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of runs.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// The same with further ranges named, those of `ranges` that are not named already: ascending, in bytes.
    /// They are widened to whole chunks of `chunk_bytes` and cut at the end of a volume of `size_bytes`.
    pub fn with_ranges(
        self,
        ranges: &[Range<u64>],
        chunk_bytes: u64,
        size_bytes: u64,
    ) -> io::Result<ChangeList> {
        if ranges.is_empty() {
            return Ok(self);
        }
        let mut writer = Writer::new(size_bytes, chunk_bytes, chunk_bytes);
        let mut ranges = ranges.iter().map(|range| {
            let begin = range.start / chunk_bytes * chunk_bytes;
            begin..range.end.next_multiple_of(chunk_bytes).min(size_bytes)
        });
        let mut range = ranges.next();
        // Everything before is named, or needs not be.
        let mut at = 0;
        for run in self.into_runs()? {
            let run = run?;
            while let Some(here) = range.as_ref().filter(|range| range.start < run.offset) {
                writer.push(here.start.max(at), here.end.min(run.offset), RunKind::Mixed)?;
                if here.end > run.offset {
                    // It goes on under the run, and perhaps behind it.
                    range = Some(run.offset..here.end);
                    break;
                }
                range = ranges.next();
            }
            writer.push(run.offset, run.offset + run.len, run.kind)?;
            at = run.offset + run.len;
            while range.as_ref().is_some_and(|range| range.end <= at) {
                range = ranges.next();
            }
        }
        while let Some(here) = range {
            writer.push(here.start.max(at), here.end, RunKind::Mixed)?;
            range = ranges.next();
        }
        writer.finish()
    }

    /// Reads the runs back, from the first.
    pub fn into_runs(mut self) -> io::Result<impl Iterator<Item = io::Result<Run>> + Send> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::new(self.file);
        let mut left = self.runs;
        Ok(std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let mut bytes = [0; RUN_LEN];
            Some(reader.read_exact(&mut bytes).map(|()| decode(&bytes)))
        }))
    }
}

fn encode(run: Run) -> [u8; RUN_LEN] {
    let [a, b, c, d, e, f, g, h] = run.offset.to_le_bytes();
    let [i, j, k, l, m, n, o, p] = run.len.to_le_bytes();
    let kind = match run.kind {
        RunKind::Data => 0,
        RunKind::Unmapped => 1,
        RunKind::Mixed => 2,
    };
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, kind]
}

fn decode(bytes: &[u8; RUN_LEN]) -> Run {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, kind] = *bytes;
    Run {
        offset: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        len: u64::from_le_bytes([i, j, k, l, m, n, o, p]),
        kind: match kind {
            0 => RunKind::Data,
            1 => RunKind::Unmapped,
            _ => RunKind::Mixed,
        },
    }
}

/// Takes ascending block runs, merges them, and widens them to whole chunks where chunks and blocks do
/// not fit each other.
struct Writer {
    file: BufWriter<SpooledTempFile>,
    pending: Option<Run>,
    runs: u64,
    bytes: u64,
    align: u64,
    fits: bool,
    size: u64,
}

impl Writer {
    fn new(size: u64, block: u64, align: u64) -> Self {
        Self {
            file: BufWriter::new(SpooledTempFile::new(IN_MEMORY)),
            pending: None,
            runs: 0,
            bytes: 0,
            align,
            fits: block.is_multiple_of(align),
            size,
        }
    }

    /// `begin .. end` in bytes; nothing before `begin` follows.
    fn push(&mut self, begin: u64, end: u64, kind: RunKind) -> io::Result<()> {
        if begin >= end {
            return Ok(());
        }
        let (begin, end, kind) = if self.fits {
            (begin, end.min(self.size), kind)
        } else {
            let wide = end.next_multiple_of(self.align);
            (begin / self.align * self.align, wide.min(self.size), RunKind::Mixed)
        };
        if begin >= end {
            return Ok(());
        }
        match &mut self.pending {
            Some(run) if run.kind == kind && begin <= run.offset + run.len => {
                run.len = run.len.max(end - run.offset);
            }
            _ => {
                self.write_pending()?;
                self.pending = Some(Run { offset: begin, len: end - begin, kind });
            }
        }
        Ok(())
    }

    /// What is not mapped: data as far as an external origin reaches.
    fn push_unmapped(&mut self, begin: u64, end: u64, origin_end: u64) -> io::Result<()> {
        self.push(begin, end.min(origin_end), RunKind::Data)?;
        self.push(begin.max(origin_end), end, RunKind::Unmapped)
    }

    fn write_pending(&mut self) -> io::Result<()> {
        if let Some(run) = self.pending.take() {
            self.file.write_all(&encode(run))?;
            self.runs += 1;
            self.bytes += run.len;
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<ChangeList> {
        self.write_pending()?;
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(ChangeList { file, runs: self.runs, bytes: self.bytes })
    }
}

/// Why a list could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeListError {
    /// The metadata could not be read.
    #[error(transparent)]
    Metadata(#[from] ViewError),
    /// The list could not be stored.
    #[error("writing the list of changes to a temporary file: {0}")]
    Spool(#[from] io::Error),
}

/// Lists what a stream from `base` to `target` must name, in units of `chunk_bytes`. The comparison holds up to
/// the smaller of both sizes; everything beyond counts as changed, mapped or not, because mappings past a
/// shrunken end come back on growth. What reads an external origin is named in any case, as data: that
/// neither mapping names it does not say that it has not changed. A base must have the same origin.
pub fn list_changes(
    view: &MetadataView,
    base: Option<Base>,
    target: Target,
    chunk_bytes: u64,
) -> Result<ChangeList, ChangeListError> {
    let Target { root, size_bytes, origin_bytes } = target;
    let block = view.superblock().block_size.bytes();
    let origin_end = origin_bytes.min(size_bytes).next_multiple_of(chunk_bytes);
    let mut writer = Writer::new(size_bytes, block, chunk_bytes);
    let clip = match base {
        None => size_bytes,
        Some(base) if base.size_bytes == size_bytes => size_bytes,
        Some(base) => {
            let smaller = base.size_bytes.min(size_bytes);
            (smaller / block * block) / chunk_bytes * chunk_bytes
        }
    };
    let mut gaps = gaps(view, root, origin_end.min(clip));
    let mut gap = gaps.next().transpose()?;
    for change in view.changes(base.map(|base| base.root), root) {
        let change = change?;
        let (begin, end) = (change.begin.0 * block, (change.begin.0 + change.length) * block);
        if begin >= clip {
            break;
        }
        let (begin, kind) = match change.kind {
            ChangeKind::Changed => (begin, RunKind::Data),
            // Before that end the gaps have it.
            ChangeKind::Unmapped => (begin.max(origin_end), RunKind::Unmapped),
        };
        if begin >= end.min(clip) {
            // All of it is in gaps, whose turn comes: further changes may lie before the origin's end.
            continue;
        }
        while let Some(here) = gap.as_ref().filter(|gap| gap.start < begin) {
            writer.push(here.start, here.end, RunKind::Data)?;
            gap = gaps.next().transpose()?;
        }
        writer.push(begin, end.min(clip), kind)?;
    }
    while let Some(here) = gap {
        writer.push(here.start, here.end, RunKind::Data)?;
        gap = gaps.next().transpose()?;
    }
    if clip < size_bytes {
        list_everything(view, target, clip, origin_end, &mut writer)?;
    }
    Ok(writer.finish()?)
}

/// The ranges before `end` that a device does not map, ascending. Bytes.
fn gaps(
    view: &MetadataView,
    root: MetadataBlock,
    end: u64,
) -> impl Iterator<Item = Result<Range<u64>, ViewError>> {
    let block = view.superblock().block_size.bytes();
    let mut mappings = (end > 0).then(|| view.mappings(root, VirtualBlock(0)));
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < end {
            let mapped = match mappings.as_mut()?.next() {
                Some(Ok(mapping)) => mapping.virtual_block.0 * block,
                Some(Err(error)) => {
                    at = end;
                    return Some(Err(error));
                }
                None => end,
            };
            let gap = at..mapped.min(end);
            at = mapped.saturating_add(block);
            if !gap.is_empty() {
                return Some(Ok(gap));
            }
        }
        None
    })
}

/// Names everything from `from` on, mapped or not.
fn list_everything(
    view: &MetadataView,
    target: Target,
    from: u64,
    origin_end: u64,
    writer: &mut Writer,
) -> Result<(), ChangeListError> {
    let (root, size) = (target.root, target.size_bytes);
    let block = view.superblock().block_size.bytes();
    let mut at = from;
    for mapping in view.mappings(root, VirtualBlock(from / block)) {
        let begin = mapping?.virtual_block.0 * block;
        if begin >= size {
            break;
        }
        let end = (begin + block).min(size);
        writer.push_unmapped(at, begin.max(at), origin_end)?;
        writer.push(begin.max(at), end, RunKind::Data)?;
        at = end;
    }
    writer.push_unmapped(at, size, origin_end)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(size: u64, block: u64, align: u64, pieces: &[(u64, u64, RunKind)]) -> Vec<Run> {
        let mut writer = Writer::new(size, block, align);
        for &(begin, end, kind) in pieces {
            writer.push(begin, end, kind).unwrap();
        }
        let list = writer.finish().unwrap();
        let (runs, bytes) = (list.runs(), list.bytes());
        let read: Vec<Run> = list.into_runs().unwrap().map(Result::unwrap).collect();
        assert_eq!(runs, read.len() as u64);
        assert_eq!(bytes, read.iter().map(|run| run.len).sum::<u64>());
        read
    }

    const K: u64 = 1024;

    #[test]
    fn neighbours_of_one_kind_become_one_run() {
        let runs = written(
            1024 * K,
            64 * K,
            64 * K,
            &[
                (0, 64 * K, RunKind::Data),
                (64 * K, 128 * K, RunKind::Data),
                (128 * K, 192 * K, RunKind::Unmapped),
            ],
        );
        assert_eq!(
            runs,
            [
                Run { offset: 0, len: 128 * K, kind: RunKind::Data },
                Run { offset: 128 * K, len: 64 * K, kind: RunKind::Unmapped },
            ]
        );
    }

    #[test]
    fn further_ranges_are_named_where_no_run_names_them() {
        use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
        let seed = std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| rand::rng().random());
        println!("THINBAK_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let kinds = [RunKind::Data, RunKind::Unmapped, RunKind::Mixed];
        for _ in 0..500 {
            let size = random.random_range(1..40 * 64) * K;
            let chunks = usize::try_from(size.div_ceil(64 * K)).unwrap();
            let mut writer = Writer::new(size, 64 * K, 64 * K);
            let (mut model, mut at) = (vec![None; chunks], 0);
            while at < chunks as u64 {
                let end = (at + random.random_range(1..6)).min(chunks as u64);
                if random.random_bool(0.4) {
                    let kind = kinds[random.random_range(0..3)];
                    writer.push(at * 64 * K, end * 64 * K, kind).unwrap();
                    (at..end).for_each(|chunk| model[chunk as usize] = Some(kind));
                }
                at = end;
            }
            let (mut ranges, mut from) = (Vec::new(), 0);
            while from < size + 300 * K {
                let end = from + random.random_range(1..400) * K;
                if random.random_bool(0.4) {
                    let range = from..end;
                    ranges.push(range.clone());
                    for (chunk, entry) in (0u64..).zip(&mut model) {
                        if range.start < (chunk + 1) * 64 * K && chunk * 64 * K < range.end && entry.is_none()
                        {
                            *entry = Some(RunKind::Mixed);
                        }
                    }
                }
                from = end + random.random_range(0..100) * K;
            }
            let list = writer.finish().unwrap().with_ranges(&ranges, 64 * K, size).unwrap();
            let (mut found, mut next) = (vec![None; chunks], 0);
            for run in list.into_runs().unwrap() {
                let run = run.unwrap();
                let end = run.offset + run.len;
                assert!(run.offset >= next && run.offset.is_multiple_of(64 * K), "{run:?}");
                assert!(end.is_multiple_of(64 * K) || end == size, "{run:?}");
                next = end;
                (run.offset / (64 * K)..end.div_ceil(64 * K))
                    .for_each(|at| found[at as usize] = Some(run.kind));
            }
            assert_eq!(found, model);
        }
    }

    #[test]
    fn runs_are_widened_to_chunks_larger_than_blocks_and_clipped_to_the_volume() {
        let runs = written(
            960 * K,
            64 * K,
            256 * K,
            &[
                (64 * K, 128 * K, RunKind::Data),
                (192 * K, 320 * K, RunKind::Unmapped),
                (896 * K, 960 * K, RunKind::Data),
            ],
        );
        assert_eq!(
            runs,
            [
                Run { offset: 0, len: 512 * K, kind: RunKind::Mixed },
                Run { offset: 768 * K, len: 192 * K, kind: RunKind::Mixed },
            ]
        );
    }

    #[test]
    fn a_list_longer_than_its_memory_is_read_back_whole() {
        let pieces: Vec<_> =
            (0..200_000u64).map(|n| (n * 128 * K, n * 128 * K + 64 * K, RunKind::Data)).collect();
        let runs = written(u64::MAX / 2, 64 * K, 64 * K, &pieces);
        assert_eq!(runs.len(), 200_000);
        assert!(runs.iter().zip(&pieces).all(|(run, piece)| run.offset == piece.0 && run.len == 64 * K));
    }
}
