//! Every name, suffix, magic, length and limit of the chunk storage. `FORMAT.md` is the page that
//! explains them; a test holds the two together.

use std::path::{Path, PathBuf};

/// Folder of the packs inside a repository.
pub(super) const PACKS_DIR: &str = "packs";
/// Folder of the chunk index inside a repository. Derived: may be deleted while nobody has the repository open.
pub(super) const INDEX_DIR: &str = "index";
/// A file of this name says that the index was seen to be damaged and is to be made anew at the next open.
pub(super) const INDEX_REBUILD_MARK: &str = "index.rebuild";
/// Ending of a pack's file name.
const PACK_SUFFIX: &str = ".pack";
/// Packs of one folder: 2 to this power.
const PACKS_PER_DIR_SHIFT: u32 = 12;

/// Version of the pack format that this program writes, and the newest that it reads.
pub(super) const PACK_VERSION: u16 = 1;
/// First bytes of a pack.
pub(super) const PACK_MAGIC: [u8; 8] = *b"tbakpack";
/// First bytes of a pack's footer.
pub(super) const FOOTER_MAGIC: [u8; 8] = *b"tbakfoot";
/// First bytes of a record.
pub(super) const RECORD_MAGIC: [u8; 4] = *b"tbrc";

/// Length of the pack header.
pub(super) const PACK_HEADER_LEN: usize = 64;
/// Length of the record header.
pub(super) const RECORD_HEADER_LEN: usize = 104;
/// Length of one entry of a pack's index.
pub(super) const PACK_ENTRY_LEN: usize = 56;
/// Length of the footer.
pub(super) const FOOTER_LEN: usize = 96;
/// Records begin at multiples of this.
pub(super) const RECORD_ALIGN: u64 = 8;

/// Longest plain content of a record.
pub const MAX_PLAIN_LEN: u32 = 16 * 1024 * 1024;
/// By so much the stored bytes may be longer than the plain ones (frame headers, authentication tags).
pub const MAX_STORED_GROWTH: u32 = 1024;

/// A pack is sealed when its records have reached this length.
pub(super) const PACK_TARGET_LEN: u64 = 64 * 1024 * 1024;
/// A pack is sealed when it has so many records: bounds the memory of the pack being written.
pub(super) const PACK_TARGET_RECORDS: usize = 65_536;
/// A file longer than this is no pack of ours; offsets have 32 bits.
pub(super) const MAX_PACK_LEN: u64 = 1024 * 1024 * 1024;

/// Version of the layout of index keys and values. Another one in the index means: make it anew.
pub(super) const INDEX_VERSION: u8 = 2;
/// Key of the entry that says whose index this is.
pub(super) const INDEX_OWNER_KEY: &[u8] = b"owner";
/// First bytes of the key of a pack's mark; the pack number follows, big-endian.
pub(super) const INDEX_MARK_PREFIX: [u8; 4] = *b"pack";
/// Length of the key of a pack's mark. No record's key has it: those have 32 bytes.
pub(super) const INDEX_MARK_KEY_LEN: usize = 8;
/// Length of a record's value in the index.
pub(super) const INDEX_VALUE_LEN: usize = 21;
/// Length of a pack's mark in the index.
pub(super) const INDEX_MARK_LEN: usize = 9 + 4 * 20;

/// Length that a record of so many stored bytes takes in a pack: header, bytes, zeros up to the alignment.
pub(super) fn record_len(stored_len: u32) -> u64 {
    (RECORD_HEADER_LEN as u64 + u64::from(stored_len)).next_multiple_of(RECORD_ALIGN)
}

/// Where the pack is, below the packs' folder.
pub(super) fn pack_path(number: u32) -> PathBuf {
    Path::new(&format!("{:05x}", number >> PACKS_PER_DIR_SHIFT)).join(format!("{number:08x}{PACK_SUFFIX}"))
}

/// The number in a pack's file name, if the file lies where that pack belongs.
pub(super) fn pack_number(dir_name: &str, file_name: &str) -> Option<u32> {
    let number = u32::from_str_radix(file_name.strip_suffix(PACK_SUFFIX)?, 16).ok()?;
    (pack_path(number) == Path::new(dir_name).join(file_name)).then_some(number)
}

/// Fills a fixed buffer from the front. Whatever does not fit is left out; the tests of each encoder
/// show that all fits.
pub(super) struct Put<'a>(pub(super) &'a mut [u8]);

impl Put<'_> {
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let room = std::mem::take(&mut self.0);
        if let Some((front, rest)) = room.split_at_mut_checked(bytes.len()) {
            front.copy_from_slice(bytes);
            self.0 = rest;
        }
        self
    }
}

/// Takes integers and arrays from the front of a buffer; past its end everything is zero, so a caller
/// checks the length first.
pub(super) struct Take<'a>(pub(super) &'a [u8]);

impl Take<'_> {
    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((front, rest)) => {
                self.0 = rest;
                *front
            }
            None => [0; N],
        }
    }

    pub(super) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_is_found_by_its_name_only_in_its_own_folder() {
        assert_eq!(pack_path(0x1234), Path::new("00001/00001234.pack"));
        assert_eq!(pack_number("00001", "00001234.pack"), Some(0x1234));
        assert_eq!(pack_number("fffff", "ffffffff.pack"), Some(u32::MAX));
        for (dir, file) in [
            ("00000", "00001234.pack"),
            ("00001", "1234.pack"),
            ("00001", "00001234.tmp"),
            ("00001", "+0001234.pack"),
        ] {
            assert_eq!(pack_number(dir, file), None, "{dir}/{file}");
        }
    }

    #[test]
    fn records_stay_aligned() {
        assert_eq!(record_len(0), 104);
        assert_eq!(record_len(1), 112);
        assert_eq!(record_len(8), 112);
        assert_eq!(record_len(MAX_PLAIN_LEN + MAX_STORED_GROWTH) % RECORD_ALIGN, 0);
    }
}
