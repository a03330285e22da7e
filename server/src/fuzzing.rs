//! What the fuzzers in `server/fuzz` call: each function takes any bytes and holds the code to what its
//! documents promise of them. Compiled for fuzzing and for tests only.

mod maps;
mod packs;
#[cfg(test)]
mod tests;
mod values;

pub use maps::maps;
pub use packs::{packs, recovery};
pub use values::values;

/// Takes an input apart. What is missing at its end reads as zero.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of `data`.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes, at most `len`.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(len.min(self.0.len()));
        self.0 = tail;
        head
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let head = self.bytes(N);
        array[..head.len()].copy_from_slice(head);
        array
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number of any size in few bytes: a byte, and how far it is shifted.
    pub fn magnitude(&mut self) -> u64 {
        let (value, shift) = (u64::from(self.byte()), u32::from(self.byte()) % 64);
        (value << shift).wrapping_add(u64::from(shift & 1)).wrapping_sub(u64::from(shift >> 1 & 1))
    }

    /// Everything left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }
}
