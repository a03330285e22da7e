//! Transactions by shadowing, space maps with reference counts, and B-trees.
//!
//! A block that the last commit can reach is never written over. To change it, it is *shadowed*: copied to a free block,
//! which then belongs to the open transaction, and the pointer in its parent is changed, which shadows the parent, up to
//! the superblock. A commit writes all of these blocks, flushes, and only then writes the superblock. Whatever happens
//! before that write, the device still holds the last commit, whole.
//!
//! For this to hold a block may be allocated only when its count is zero both now and in the last commit
//! ([`MetadataStore::allocate`], [`DataSpaceMap::find_free`]).
//!
//! | part | what it is |
//! |---|---|
//! | [`MetadataStore`] | cache of blocks, blocks of the open transaction, the metadata space map |
//! | [`DataSpaceMap`] | counts of data blocks |
//! | [`btree`] | trees of sorted keys, whose nodes several trees may share |

pub(crate) mod btree;
mod data_space_map;
mod metadata_space_map;
mod range_set;
mod store;

pub(crate) use self::data_space_map::DataSpaceMap;
pub(crate) use self::range_set::RangeSet;
pub(crate) use self::store::{MetadataStore, SealedTransaction, write_superblock};

use crate::format::MetadataError;

type Result<T> = std::result::Result<T, MetadataError>;

#[cfg(test)]
mod tests;
