//! A medium in memory that keeps apart what was synced and what was only written, and that can be told
//! to fail at its Nth operation.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    path::Path,
    sync::Arc,
};

use parking_lot::Mutex;
use rand::Rng;

use super::medium::{Medium, PackFile, PackRead, PackWrite};

#[derive(Default)]
struct MemoryFile {
    data: Vec<u8>,
    synced: Vec<u8>,
}

type File = Arc<Mutex<MemoryFile>>;

#[derive(Default)]
struct State {
    files: BTreeMap<u32, File>,
    /// Removed, but a power failure may bring them back.
    limbo: BTreeMap<u32, File>,
    operations: u64,
    /// The operations with these numbers fail.
    failing: std::ops::Range<u64>,
    available: Option<u64>,
    /// Called just before the operation of that number.
    witness: Option<(u64, Box<dyn FnOnce() + Send>)>,
}

impl State {
    /// Counts an operation that changes something; fails if it is one of those.
    fn step(&mut self) -> io::Result<()> {
        self.witness();
        self.operations += 1;
        if self.failing.contains(&self.operations) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Whoever waits for an operation sees what the ones before it have left.
    fn witness(&mut self) {
        if self.witness.as_ref().is_some_and(|(operation, _)| *operation <= self.operations + 1)
            && let Some((_, call)) = self.witness.take()
        {
            call();
        }
    }
}

/// Packs in memory. Clones of a pointer to it are the same medium.
#[derive(Default)]
pub struct MemoryMedium {
    state: Arc<Mutex<State>>,
}

impl MemoryMedium {
    /// Makes the operations with these numbers fail.
    pub fn fail(&self, operations: std::ops::Range<u64>) {
        self.state.lock().failing = operations;
    }

    /// Calls `witness` just before operation number `operation`, or the next one if that is past.
    pub fn before(&self, operation: u64, witness: impl FnOnce() + Send + 'static) {
        self.state.lock().witness = Some((operation, Box::new(witness)));
    }

    /// How many operations there were that change something.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Counts an operation that something else on the same disk does; fails if it is one of those that fail.
    pub fn step(&self) -> io::Result<()> {
        self.state.lock().step()
    }

    /// Turns a bit of what a pack holds, on the disk itself.
    pub(crate) fn flip(&self, number: u32, offset: usize) {
        let file = Arc::clone(&self.state.lock().files[&number]);
        let mut file = file.lock();
        file.data[offset] ^= 1;
        if let Some(byte) = file.synced.get_mut(offset) {
            *byte ^= 1;
        }
    }

    pub(crate) fn set_available(&self, bytes: Option<u64>) {
        self.state.lock().available = bytes;
    }

    pub(crate) fn contents(&self, number: u32) -> Vec<u8> {
        self.state.lock().files.get(&number).unwrap().lock().data.clone()
    }

    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.state.lock().files.keys().copied().collect()
    }

    pub(crate) fn with_pack(number: u32, data: Vec<u8>) -> Arc<Self> {
        let medium = Self::default();
        medium.add_pack(number, data);
        Arc::new(medium)
    }

    /// Puts a pack there, whole and synced.
    pub(crate) fn add_pack(&self, number: u32, data: Vec<u8>) {
        self.state.lock().files.insert(number, file(data));
    }

    /// All packs, in ascending order of their numbers.
    pub(crate) fn files(&self) -> Vec<PackFile> {
        let state = self.state.lock();
        let files = state.files.iter();
        files.map(|(number, file)| PackFile { number: *number, len: file.lock().data.len() as u64 }).collect()
    }

    fn handle(&self, number: u32) -> io::Result<Handle> {
        let file = self.state.lock().files.get(&number).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Handle { state: self.state.clone(), file })
    }

    /// What a power failure leaves: everything synced, and of the rest any part, with holes.
    pub fn crash(&self, random: &mut impl Rng) -> Arc<Self> {
        let crashed = Self::default();
        let state = self.state.lock();
        let back: Vec<_> = state.limbo.iter().filter(|_| random.random_bool(0.5)).collect();
        for (number, memory) in state.files.iter().chain(back) {
            let file = memory.lock();
            let mut data = file.synced.clone();
            if file.data.starts_with(&file.synced) {
                let rest = &file.data[file.synced.len()..];
                let mut rest = rest[..random.random_range(0..=rest.len())].to_vec();
                for sector in rest.chunks_mut(512) {
                    if random.random_bool(0.2) {
                        sector.fill(0);
                    }
                }
                data.extend_from_slice(&rest);
            } else if random.random_bool(0.5) {
                // Cut and written again, for the tail of a pack: the cut part may be gone or not.
                let same = file.data.iter().zip(&file.synced).take_while(|(new, old)| new == old).count();
                data = file.data[..random.random_range(same..=file.data.len())].to_vec();
            }
            crashed.state.lock().files.insert(*number, self::file(data));
        }
        Arc::new(crashed)
    }
}

fn file(data: Vec<u8>) -> File {
    Arc::new(Mutex::new(MemoryFile { synced: data.clone(), data }))
}

struct Handle {
    state: Arc<Mutex<State>>,
    file: File,
}

impl Medium for MemoryMedium {
    fn path(&self) -> &Path {
        Path::new("/memory")
    }

    fn list(&self) -> io::Result<Vec<PackFile>> {
        Ok(self.files())
    }

    fn create(&self, number: u32) -> io::Result<Box<dyn PackWrite>> {
        let mut state = self.state.lock();
        state.step()?;
        let file = File::default();
        assert!(state.files.insert(number, file.clone()).is_none(), "pack {number} is made twice");
        Ok(Box::new(Handle { state: self.state.clone(), file }))
    }

    fn open_write(&self, number: u32) -> io::Result<Box<dyn PackWrite>> {
        self.state.lock().step()?;
        Ok(Box::new(self.handle(number)?))
    }

    fn open_read(&self, number: u32) -> io::Result<Box<dyn PackRead>> {
        Ok(Box::new(self.handle(number)?))
    }

    fn remove(&self, number: u32) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        if let Some(file) = state.files.remove(&number) {
            state.limbo.insert(number, file);
        }
        state.step()?;
        state.limbo.remove(&number);
        Ok(())
    }

    fn available_bytes(&self) -> io::Result<u64> {
        Ok(self.state.lock().available.unwrap_or(u64::MAX))
    }

    fn probe(&self) -> io::Result<()> {
        self.state.lock().step()
    }
}

impl PackWrite for Handle {
    fn append(&mut self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut state = self.state.lock();
        let result = state.step();
        let mut bytes = slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>();
        if result.is_err() {
            // A disk that fills up takes a part.
            bytes.truncate(bytes.len() * 2 / 3);
        }
        self.file.lock().data.extend_from_slice(&bytes);
        result
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        let mut file = self.file.lock();
        file.synced = file.data.clone();
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        self.file.lock().data.truncate(usize::try_from(len).unwrap());
        Ok(())
    }
}

impl PackRead for Handle {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        let file = self.file.lock();
        let bytes = file.data.get(from..from + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.lock().data.len() as u64)
    }
}
