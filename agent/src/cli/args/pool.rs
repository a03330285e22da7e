//! What may be typed after `thinbak pool`.

use clap::{Args, Subcommand, ValueEnum};

use crate::cli::grammar::{self, MetadataArg, VolumeOrGeneration};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Pool {
    /// Make a pool
    #[command(after_help = "Examples:
  thinbak pool create fast --size 10G
  thinbak pool create dir:/srv/pools/fast --size 1T --block-size 128K
  thinbak pool create fast --data /dev/vg/data --metadata /dev/vg/meta
  thinbak pool create fast --size 10G --zero n --errorwhenfull n --low-water 1G")]
    Create(PoolCreate),
    /// The pools that are known
    List,
    /// How full a pool is, and how it behaves
    Status {
        #[arg(value_parser = grammar::pool)]
        pool: String,
    },
    /// Check a pool's metadata
    Check {
        /// A pool, or the path (with a /) of a file or device that holds metadata
        #[arg(value_name = "POOL|METADATA")]
        source: MetadataArg,
    },
    /// Make a pool's data or metadata device larger
    #[command(after_help = "Examples:
  thinbak pool resize fast --size 20G
  thinbak pool resize fast --metadata-size 256M

Block devices have their size already: all of it is taken into use.")]
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["size", "metadata_size"]))]
    Resize {
        #[arg(value_parser = grammar::pool)]
        pool: String,
        /// Size of the data device
        #[arg(long, value_parser = grammar::size)]
        size: Option<u64>,
        /// Size of the metadata device
        #[arg(long, value_parser = grammar::size)]
        metadata_size: Option<u64>,
    },
    /// Change how a pool behaves, at once and for good
    #[command(after_help = "Examples:
  thinbak pool set fast --errorwhenfull n --no-space-timeout 300
  thinbak pool set fast --discards nopassdown --low-water 10G
  thinbak pool set fast --permission r

Whether discards are ignored can be changed only while no job is running on the pool.")]
    Set(PoolSet),
    /// What a pool looked like when it was backed up last
    #[command(after_help = "Examples:
  thinbak pool shape fast
  thinbak pool shape db1/vg/tp:2026-11-23 --volume-group > vg.txt")]
    Shape {
        /// Also of another host, and as it was earlier
        #[arg(value_name = "[HOST/]POOL[:GEN]")]
        pool: VolumeOrGeneration,
        /// Print only LVM's description of the volume group, as vgcfgrestore reads it
        #[arg(long, conflicts_with = "json")]
        volume_group: bool,
    },
    /// Make a pool that is gone anew, and restore its volumes
    #[command(after_help = "Examples:
  thinbak pool rebuild fast --to fast --dry-run
  thinbak pool rebuild db1/vg/tp --to lvm:vg0/tp
  thinbak pool rebuild fast:2026-11-23T16:00 --to old --generations all

A pool of thinbak's own is made where there is none; one of the kernel or LVM must be there and empty. Exit code 3: not all
volumes could be restored.")]
    Rebuild(PoolRebuild),
    /// Remove a pool with all its volumes
    Remove {
        #[arg(value_parser = grammar::pool)]
        pool: String,
    },
    /// Send a thin-pool target message, as dmsetup would
    #[command(
        after_help = "Messages: create_thin ID, create_snap ID ORIGIN, delete ID, set_transaction_id OLD NEW,
reserve_metadata_snap, release_metadata_snap.

Devices made so have no name; `thinbak volume list` shows them as #ID. What would take a device from the
registry or move the transaction id is refused (exit code 5). Other answers: 2 not a message, 5 the device
exists, 10 no such device or metadata snapshot, 11 the device is in use or a metadata snapshot is held."
    )]
    Message {
        #[arg(value_parser = grammar::pool)]
        pool: String,
        #[arg(required = true, allow_negative_numbers = true)]
        words: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(in crate::cli) struct PoolCreate {
    /// A name, or dir:PATH
    #[arg(value_parser = grammar::pool)]
    pub(in crate::cli) pool: String,
    /// Size of the data device; of a block device, all of it by default
    #[arg(long, value_parser = grammar::size, required_unless_present = "data")]
    pub(in crate::cli) size: Option<u64>,
    /// Data block size, a multiple of 64K
    #[arg(long, default_value = "64K", value_parser = grammar::size)]
    pub(in crate::cli) block_size: u64,
    /// Size of the metadata [default: by the kernel's rule of thumb]
    #[arg(long, value_parser = grammar::size)]
    pub(in crate::cli) metadata_size: Option<u64>,
    /// Directory of the pool [default: one in the state directory]
    #[arg(long, value_parser = grammar::absolute_path, value_name = "PATH")]
    pub(in crate::cli) dir: Option<String>,
    /// Data device
    #[arg(long, value_parser = grammar::absolute_path, value_name = "DEV", requires = "metadata")]
    pub(in crate::cli) data: Option<String>,
    /// Metadata device
    #[arg(long, value_parser = grammar::absolute_path, value_name = "DEV", requires = "data")]
    pub(in crate::cli) metadata: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) features: PoolFeatures,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct PoolRebuild {
    /// The pool as the repository knows it; with a time: as it was then
    #[arg(value_name = "[HOST/]POOL[:GEN]")]
    pub(in crate::cli) from: VolumeOrGeneration,
    /// The pool to restore to
    #[arg(long, value_name = "POOL", value_parser = grammar::pool)]
    pub(in crate::cli) to: String,
    /// How many generations of each volume: the newest becomes the volume, the others its snapshots
    #[arg(long, value_name = "N|all", default_value = "1", value_parser = grammar::count_or_all)]
    pub(in crate::cli) generations: u32,
    /// Go on with a rebuild that ended in the middle: volumes that are there are left as they are
    #[arg(long)]
    pub(in crate::cli) resume: bool,
    /// Print what would be restored, and what cannot be
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true)
    .args(["zero", "discards", "errorwhenfull", "low_water", "no_space_timeout", "permission"]))]
pub(in crate::cli) struct PoolSet {
    #[arg(value_parser = grammar::pool)]
    pub(in crate::cli) pool: String,
    #[command(flatten)]
    pub(in crate::cli) features: PoolFeatures,
    /// Whether the pool may be changed: r refuses all that needs other metadata
    #[arg(long)]
    pub(in crate::cli) permission: Option<Permission>,
}

/// How a pool behaves, in LVM's words.
#[derive(Debug, Args)]
pub(in crate::cli) struct PoolFeatures {
    /// Zero new blocks where a write does not cover them [y by default]
    #[arg(short = 'Z', long, value_name = "y|n", hide_possible_values = true)]
    pub(in crate::cli) zero: Option<YesNo>,
    /// What becomes of discards: blocks are unmapped and their space given back, or only unmapped, or discards are refused
    /// [passdown by default]
    #[arg(long)]
    pub(in crate::cli) discards: Option<Discards>,
    /// Fail a write at once when no block is free; n queues it until there is room or the timeout ends [y by default]
    #[arg(long, value_name = "y|n", hide_possible_values = true)]
    pub(in crate::cli) errorwhenfull: Option<YesNo>,
    /// Raise an event when no more than this is free [0 by default: never before it is full]
    #[arg(long, value_parser = grammar::size_or_zero, value_name = "SIZE")]
    pub(in crate::cli) low_water: Option<u64>,
    /// How long a queued write waits for room; 0 for ever [60 by default]
    #[arg(long, value_name = "SECONDS")]
    pub(in crate::cli) no_space_timeout: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum YesNo {
    Y,
    N,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Discards {
    Passdown,
    Nopassdown,
    Ignore,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Permission {
    R,
    Rw,
}
