//! Memory of large transfers: at addresses to which any device can transfer, so that they can go around the page cache,
//! and used again and again, because memory fresh from the system costs more than what is read into it.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;

/// What transfers around the page cache start at and are multiples of, in a file and in memory: as much as any device
/// and file system asks for.
pub const TRANSFER_ALIGNMENT: usize = 4096;

/// Buffers that wait for their next use. Clones are the same pool.
#[derive(Debug, Clone)]
pub struct BufferPool(Arc<Idle>);

#[derive(Debug)]
struct Idle {
    usual: usize,
    keep: usize,
    memory: Mutex<Vec<Vec<u8>>>,
}

impl BufferPool {
    /// For buffers of mostly `usual` bytes or less, of which `keep` at most wait for their next use.
    #[must_use]
    pub fn new(usual: usize, keep: usize) -> Self {
        Self(Arc::new(Idle { usual, keep, memory: Mutex::default() }))
    }

    /// A buffer of `len` bytes. What is in it is left from the use before.
    #[must_use]
    pub fn take(&self, len: usize) -> Buffer {
        let needed = len.max(self.0.usual) + TRANSFER_ALIGNMENT;
        let idle = self.0.memory.lock().pop();
        let memory = idle.filter(|memory| memory.len() >= needed).unwrap_or_else(|| vec![0; needed]);
        // The offset is below the alignment for bytes, so that there are always enough.
        let start = memory.as_ptr().align_offset(TRANSFER_ALIGNMENT);
        Buffer { memory, start, len, pool: self.clone() }
    }
}

/// Memory of a pool, to which it goes back.
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
    pool: BufferPool,
}

impl Buffer {
    /// The buffer, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.start..self.start.saturating_add(self.len)).unwrap_or_default()
    }

    /// The buffer, filled, to be shared in pieces. It goes back to its pool when nobody holds one any more.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.memory.get(self.start..self.start.saturating_add(self.len)).unwrap_or_default()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut idle = self.pool.0.memory.lock();
        // One that was made larger than usual is not kept: what is kept is bounded.
        if idle.len() < self.pool.0.keep && self.memory.len() == self.pool.0.usual + TRANSFER_ALIGNMENT {
            idle.push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_when_nobody_holds_a_piece_of_it_and_not_before() {
        let pool = BufferPool::new(8192, 2);
        let mut first = pool.take(5000);
        first.bytes_mut().fill(1);
        let place = first.as_ref().as_ptr();
        assert_eq!((first.as_ref().len(), place.align_offset(TRANSFER_ALIGNMENT)), (5000, 0));
        let piece = first.freeze().slice(1000..2000);
        let mut second = pool.take(8192);
        second.bytes_mut().fill(2);
        assert_ne!(second.as_ref().as_ptr(), place);
        assert!(piece.iter().all(|byte| *byte == 1));
        drop(piece);
        assert_eq!(pool.take(100).as_ref().as_ptr(), place);
    }

    #[test]
    fn no_more_is_kept_than_was_said() {
        let pool = BufferPool::new(4096, 2);
        let buffers: Vec<Buffer> = (0..5).map(|number| pool.take(number * 4096)).collect();
        drop(buffers);
        let kept: Vec<usize> = pool.0.memory.lock().iter().map(Vec::len).collect();
        assert_eq!(kept, [4096 + TRANSFER_ALIGNMENT; 2]);
    }
}
