//! A sparse device in memory.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::RwLock;

use super::{BlockDevice, checked_end};

const PAGE_BYTES: u64 = 4096;

type Page = [u8; PAGE_BYTES as usize];

#[derive(Clone, Debug, Default)]
struct Pages {
    size: u64,
    /// Duplicates share a page until one of them changes it.
    pages: HashMap<u64, Arc<Page>>,
}

/// A device in memory, sparse in pages of 4 KiB. For tests and for short-lived pools.
#[derive(Debug, Default)]
pub struct MemoryDevice {
    pages: RwLock<Pages>,
}

impl MemoryDevice {
    /// A device of `size` bytes that reads as zeroes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { pages: RwLock::new(Pages { size, pages: HashMap::new() }) }
    }

    /// A device that holds `bytes`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let pages = (0..).zip(bytes.chunks(4096)).filter(|(_, page)| page.iter().any(|&byte| byte != 0));
        let pages = pages.map(|(index, page)| (index, padded(page))).collect();
        Self { pages: RwLock::new(Pages { size, pages }) }
    }

    /// A second device with the same contents, which changes on its own from here on. No bytes are copied before that.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self { pages: RwLock::new(self.pages.read().clone()) }
    }
}

fn padded(page: &[u8]) -> Arc<Page> {
    let mut bytes = [0; PAGE_BYTES as usize];
    bytes.iter_mut().zip(page).for_each(|(byte, from)| *byte = *from);
    Arc::new(bytes)
}

/// The pieces of a transfer, one for each page: (page, offset in the page, bytes).
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let page = at / PAGE_BYTES;
        let within = at % PAGE_BYTES;
        let take = (PAGE_BYTES - within).min(end - at);
        at += take;
        Some((page, usize::try_from(within).ok()?, usize::try_from(take).ok()?))
    })
}

impl BlockDevice for MemoryDevice {
    /// Whether nothing has been written in any page of the range, or all of it was discarded.
    fn is_hole(&self, offset: u64, len: u64) -> bool {
        let pages = self.pages.read();
        (offset / PAGE_BYTES..(offset.saturating_add(len)).div_ceil(PAGE_BYTES))
            .all(|page| !pages.pages.contains_key(&page))
    }

    fn size_bytes(&self) -> u64 {
        self.pages.read().size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let pages = self.pages.read();
        checked_end(offset, buf.len() as u64, pages.size)?;
        let mut rest = buf;
        for (page, within, take) in pieces(offset, rest.len() as u64) {
            let (piece, tail) = rest.split_at_mut(take.min(rest.len()));
            rest = tail;
            match pages.pages.get(&page).and_then(|bytes| bytes.get(within..within + take)) {
                Some(bytes) => piece.copy_from_slice(bytes),
                None => piece.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut pages = self.pages.write();
        checked_end(offset, buf.len() as u64, pages.size)?;
        let mut rest = buf;
        for (page, within, take) in pieces(offset, buf.len() as u64) {
            let (piece, tail) = rest.split_at(take.min(rest.len()));
            rest = tail;
            // Zeroes need no page of their own.
            if !pages.pages.contains_key(&page) && piece.iter().all(|&byte| byte == 0) {
                continue;
            }
            let bytes = pages.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_BYTES as usize]));
            if let Some(target) = Arc::make_mut(bytes).get_mut(within..within + take) {
                target.copy_from_slice(piece);
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut pages = self.pages.write();
        checked_end(offset, len, pages.size)?;
        for (page, within, take) in pieces(offset, len) {
            if take == 4096 {
                pages.pages.remove(&page);
            } else if let Some(target) = pages
                .pages
                .get_mut(&page)
                .and_then(|bytes| Arc::make_mut(bytes).get_mut(within..within + take))
            {
                target.fill(0);
            }
        }
        Ok(())
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        let mut pages = self.pages.write();
        pages.size = size;
        pages.pages.retain(|&page, _| page < size.div_ceil(PAGE_BYTES));
        let within = usize::try_from(size % PAGE_BYTES).unwrap_or(0);
        if let Some(tail) =
            pages.pages.get_mut(&(size / PAGE_BYTES)).and_then(|bytes| Arc::make_mut(bytes).get_mut(within..))
        {
            tail.fill(0);
        }
        Ok(())
    }
}
