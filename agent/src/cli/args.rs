//! What may be typed.

mod daemon;
mod pool;
mod trust;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub(super) use self::daemon::{Agent, Job};
pub(super) use self::pool::{Discards, Permission, Pool, PoolCreate, PoolFeatures, PoolRebuild, YesNo};
use self::trust::TrustArgs;
use super::collect::Collect;
use super::grammar::{self, GenerationArg, GenerationsArg, MetadataArg, VolumeArg, VolumeOrGeneration};
use crate::config::Level;

/// Incremental backup and restore of thin volumes.
#[derive(Debug, Parser)]
#[command(name = "thinbak", version, about, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  thinbak demo
  thinbak pool create fast --size 10G
  thinbak volume create fast/web --size 1G
  thinbak backup fast/web --repo /srv/backup
  thinbak generation list --repo /srv/backup
  thinbak restore fast/web:latest --to fast/web-restored --repo /srv/backup

A pool is `fast` or dir:/srv/pools/fast, of thinbak's own; dm:NAME of dmsetup's; lvm:VG/POOL of LVM's.

Exit codes: 0 done, 1 failed, 2 usage, 3 done in part, 4 damage found, 5 refused for safety,
10 not found, 11 busy, 12 not authorised, 130 interrupted.")]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// Backup server [env: THINBAK_SERVER]
    #[arg(long, global = true, value_name = "URL", conflicts_with = "repo")]
    server: Option<String>,
    /// Embedded repository, opened in this process [env: THINBAK_REPOSITORY]
    #[arg(long, global = true, value_name = "DIR")]
    repo: Option<PathBuf>,
    #[command(flatten)]
    trust: TrustArgs,
    /// Where the agent keeps what it knows [env: THINBAK_STATE_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Socket of the agent; by default in a state directory that is given [env: THINBAK_SOCKET]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Configuration file [env: THINBAK_CONFIG] [default: /etc/thinbak/agent.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Print JSON: queries one document, jobs an object a line
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// No progress, no notes
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
    /// Say more of what is done; twice for even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
}

impl Global {
    pub(super) fn level(&self) -> Level {
        Level {
            state_dir: self.state_dir.clone(),
            socket: self.socket.clone(),
            server: self.server.clone(),
            repository: self.repo.clone(),
            trust: self.trust.clone().into(),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Resumes devices when the process that suspended them has died; started by thinbak itself
    #[command(hide = true)]
    ResumeIfLeft {
        /// Names of device-mapper devices
        devices: Vec<String>,
    },
    /// The main job, start to end, in a temporary directory
    Demo(Demo),
    /// Thin pools
    #[command(subcommand)]
    Pool(Pool),
    /// Thin volumes and their snapshots
    #[command(subcommand)]
    Volume(Volume),
    /// The metadata snapshot of a pool
    #[command(subcommand)]
    Msnap(Msnap),
    /// A pool's metadata, as the XML that thin_dump prints
    Dump(Dump),
    /// The difference of two thin devices, as the XML that thin_delta prints
    #[command(after_help = "Examples:
  thinbak delta --from web@monday --to web fast
  thinbak delta --from 1 --to 2 --changes /dev/vg/pool_tmeta

With --changes the time that it takes depends on how much differs; without, on how much is mapped.")]
    Delta(Delta),
    /// Back up what changed since the last backup
    #[command(after_help = "Examples:
  thinbak backup fast/web --repo /srv/backup
  thinbak backup lvm:vg/thinpool/web --repo /srv/backup
  thinbak backup fast/db fast/log --group --server http://127.0.0.1:7070")]
    Backup(Backup),
    /// Backed-up moments of volumes
    #[command(subcommand)]
    Generation(Generation),
    /// Restore a generation to a new volume, to a file, or in place; several to a new volume
    #[command(after_help = "Examples:
  thinbak restore fast/web:latest --to fast/web-restored
  thinbak restore fast/web:2026-11-23T16:00 --to-file web.img
  thinbak restore host/fast/web:7 --in-place
  thinbak restore vg/thinpool/web:latest --to lvm:vg/thinpool/web-restored
  thinbak restore fast/web:3 fast/web:5 fast/web:latest --to fast/web-restored
  thinbak restore fast/web:3..7 --to fast/web-restored
  thinbak restore fast/web:all --to fast/web-restored

Several generations of one volume become the new volume, which is the newest of them, and its
snapshots gen-N, one for each other generation N. What they share is fetched and written once and
stays shared in the pool. All appear at one moment, or none. 3.. and ..7 are ranges too.

A restore in place writes a private copy, verifies it, and then lets it take the volume's place
in one step; what had an external origin has none afterwards. A file appears when it is whole; an existing one is never written over.")]
    Restore(Restore),
    /// Read stored generations back and recompute every id
    Verify(Verify),
    /// Delete the generations that no rule keeps
    #[command(after_help = "Examples:
  thinbak prune fast/web --keep-last 3 --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run
  thinbak prune 'host/fast/*' --keep-within 30d

Of each hour, day, week (from Monday), month and year the newest generation is kept, for so many of the newest
periods that have any. The time zone is the repository's server's. In a pattern * is any text, also over /,
and ? one character. Never deleted: the newest generation of a volume, protected ones, and
those dated in the future, which also take no place in any rule. Groups stay whole within a call.
`thinbak generation undelete` undoes a deletion within the grace period.")]
    Prune(Prune),
    /// Free what no generation needs any more
    #[command(
        after_help = "Runs beside backups and restores, and may be stopped at any moment: the next run goes on from
there. Packs with nothing in use are removed, then those mostly not in use are rewritten. Deleted generations count as
in use until their grace period is over."
    )]
    Collect(Collect),
    /// How every volume is backed up: last success, next run, the job that covers it
    #[command(after_help = "Of every volume of every known pool, and for each job that covers it:
  ok         the last backup went well, and is not long ago
  waiting    not backed up yet, and not late
  overdue    the last good backup is older than the job's `overdue`, or a whole run was missed
  failed     the last backup failed
  uncovered  no job covers the volume
  left out   no job covers it, and `not_backed_up` in agent.toml says that none shall

Exit codes: 0 all is well; 3 a volume is overdue, failed or uncovered, a job failed, a pool cannot be looked at, or no
agent runs the jobs; any other: it could not be found out.")]
    Status,
    /// Jobs of the configuration
    #[command(subcommand)]
    Job(Job),
    /// The daemon
    #[command(subcommand)]
    Agent(Agent),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Write the manual pages to a directory
    Man { dir: PathBuf },
}

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Virtual size of the volume
    #[arg(long, default_value = "256M", value_parser = grammar::size)]
    pub(super) size: u64,
    /// Work in this directory, which must be empty or absent, and keep everything
    #[arg(long, value_name = "PATH")]
    pub(super) dir: Option<PathBuf>,
    /// Keep the temporary directory
    #[arg(long)]
    pub(super) keep: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Volume {
    /// Make a volume
    #[command(after_help = "Examples:
  thinbak volume create fast/web --size 1G
  thinbak volume create fast/trial --size 10G --external-origin /srv/images/golden.img

A volume over an external origin reads it where nothing was written to the volume, and zeros beyond the
origin's end. The origin is never written; it must stay where it is, at least as long as it was.")]
    Create {
        #[arg(value_name = "POOL/VOLUME", value_parser = grammar::volume)]
        volume: VolumeArg,
        #[arg(long, value_parser = grammar::size)]
        size: u64,
        /// File or block device to read where nothing was written
        #[arg(long, value_parser = grammar::absolute_path, value_name = "PATH")]
        external_origin: Option<String>,
    },
    /// Take snapshots; several in one call are one moment
    Snapshot {
        #[arg(required = true, value_name = "POOL/VOLUME@SNAP", value_parser = grammar::snapshot)]
        snapshots: Vec<VolumeArg>,
    },
    /// The volumes and snapshots of a pool
    List {
        #[arg(value_parser = grammar::pool)]
        pool: String,
    },
    /// Change a volume's virtual size
    Resize {
        #[arg(value_name = "POOL/VOLUME", value_parser = grammar::volume)]
        volume: VolumeArg,
        #[arg(long, value_parser = grammar::size)]
        size: u64,
    },
    /// Remove a volume without snapshots, or a snapshot
    Remove {
        #[arg(value_name = "POOL/VOLUME[@SNAP]")]
        volume: VolumeArg,
    },
    /// Fill a new or empty volume from stdin; holes stay holes
    #[command(after_help = "Example:
  thinbak volume import fast/web < web.img")]
    Import {
        #[arg(value_name = "POOL/VOLUME", value_parser = grammar::volume)]
        volume: VolumeArg,
        /// Size of the new volume when stdin is a pipe
        #[arg(long, value_parser = grammar::size)]
        size: Option<u64>,
    },
    /// Write a volume or snapshot to stdout; holes stay holes in a file
    #[command(after_help = "Example:
  thinbak volume export fast/web@monday > web.img")]
    Export {
        #[arg(value_name = "POOL/VOLUME[@SNAP]")]
        volume: VolumeArg,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Msnap {
    /// Reserve it
    Reserve {
        #[arg(value_parser = grammar::pool)]
        pool: String,
    },
    /// Release it
    Release {
        #[arg(value_parser = grammar::pool)]
        pool: String,
        /// Also when thinbak did not reserve it
        #[arg(long)]
        force: bool,
    },
    /// What is held
    Show {
        #[arg(value_parser = grammar::pool)]
        pool: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Dump {
    /// Of the metadata snapshot, not of the last commit
    #[arg(long)]
    pub(super) metadata_snap: bool,
    /// Of this thin device only
    #[arg(long, value_name = "N")]
    pub(super) dev_id: Option<u64>,
    /// A pool, or the path (with a /) of a file or device that holds metadata
    #[arg(value_name = "POOL|METADATA")]
    pub(super) source: MetadataArg,
}

#[derive(Debug, Args)]
pub(super) struct Delta {
    /// Of the metadata snapshot, not of the last commit
    #[arg(long)]
    pub(super) metadata_snap: bool,
    /// Device id, VOLUME or VOLUME@SNAP
    #[arg(long, value_name = "A")]
    pub(super) from: String,
    /// Device id, VOLUME or VOLUME@SNAP
    #[arg(long, value_name = "B")]
    pub(super) to: String,
    /// Also the data blocks
    #[arg(long)]
    pub(super) blocks: bool,
    /// Leave out what is the same, and skip what both share
    #[arg(long)]
    pub(super) changes: bool,
    /// A pool, or the path (with a /) of a file or device that holds metadata
    #[arg(value_name = "POOL|METADATA")]
    pub(super) source: MetadataArg,
}

#[derive(Debug, Args)]
pub(super) struct Backup {
    #[arg(required = true, value_name = "POOL/VOLUME", value_parser = grammar::volume)]
    pub(super) volumes: Vec<VolumeArg>,
    /// All at one moment, restorable as a set
    #[arg(long)]
    pub(super) group: bool,
    /// Take over a name that belongs to another volume
    #[arg(long)]
    pub(super) adopt: bool,
    /// The first part of the name on the server [default: this host's name]
    #[arg(long, value_parser = grammar::host)]
    pub(super) host: Option<String>,
    /// Send no more bytes in a second than this
    #[arg(long, value_parser = grammar::size, value_name = "20M")]
    pub(super) bandwidth: Option<u64>,
    /// Read no more bytes of a volume in a second than this
    #[arg(long, value_parser = grammar::size, value_name = "100M")]
    pub(super) read_rate: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Generation {
    /// Generations of a volume, or of all, oldest first
    List {
        volume: Option<String>,
        /// Of each volume only the newest N
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
        /// Those that were deleted and can be undeleted
        #[arg(long)]
        deleted: bool,
    },
    /// All that is known of a generation
    Show {
        #[arg(value_name = "VOLUME:GEN")]
        generation: GenerationArg,
    },
    /// The ranges in which two generations differ
    Diff {
        #[arg(value_name = "VOLUME:A")]
        from: GenerationArg,
        #[arg(value_name = "VOLUME:B")]
        to: GenerationArg,
    },
    /// Delete generations
    Delete {
        #[arg(required = true, value_name = "VOLUME:GEN")]
        generations: Vec<GenerationArg>,
    },
    /// Bring deleted generations back, within the repository's grace period
    Undelete {
        #[arg(required = true, value_name = "VOLUME:GEN")]
        generations: Vec<GenerationArg>,
    },
    /// Keep a generation from being deleted
    Protect {
        #[arg(value_name = "VOLUME:GEN")]
        generation: GenerationArg,
        /// Take the protection off
        #[arg(long)]
        off: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// GEN is a number, `latest`, a time, a range of numbers or `all`
    #[arg(required = true, value_name = "VOLUME:GEN")]
    pub(super) generations: Vec<GenerationsArg>,
    #[command(flatten)]
    pub(super) target: RestoreTarget,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct RestoreTarget {
    /// To a new volume; several generations become the volume and its snapshots
    #[arg(long, value_name = "POOL/VOLUME", value_parser = grammar::volume)]
    pub(super) to: Option<VolumeArg>,
    /// To a file that does not exist yet; holes stay holes
    #[arg(long, value_name = "PATH", value_parser = grammar::absolute_path)]
    pub(super) to_file: Option<String>,
    /// To an existing volume, by default the one that was backed up
    #[arg(long, value_name = "POOL/VOLUME", value_parser = grammar::volume, num_args = 0..=1, require_equals = true)]
    pub(super) in_place: Option<Option<VolumeArg>>,
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    #[arg(value_name = "VOLUME[:GEN]")]
    pub(super) what: Option<VolumeOrGeneration>,
    /// Read back only this share of the chunks
    #[arg(long, value_parser = grammar::share, value_name = "5%")]
    pub(super) sample: Option<f64>,
    /// Only packs that were not read back whole for so long; a run that is broken off goes on where it was
    #[arg(long, value_parser = grammar::age, value_name = "30d", conflicts_with = "what")]
    pub(super) older_than: Option<u64>,
    /// Read no more bytes in a second than this
    #[arg(long, value_parser = grammar::size, value_name = "50M")]
    pub(super) rate: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct Prune {
    #[arg(value_name = "VOLUME|PATTERN")]
    pub(super) volume: String,
    #[command(flatten)]
    pub(super) policy: Policy,
    /// Print what would be deleted, and why not the rest
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What is kept")]
pub(super) struct Policy {
    /// The newest N
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(super) keep_last: u32,
    /// The newest of each of N hours
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(super) keep_hourly: u32,
    /// The newest of each of N days
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(super) keep_daily: u32,
    /// The newest of each of N weeks
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(super) keep_weekly: u32,
    /// The newest of each of N months
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(super) keep_monthly: u32,
    /// The newest of each of N years
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(super) keep_yearly: u32,
    /// All that are at most so much older than the newest: 36h, 2d, 1w2d
    #[arg(long, value_name = "TIME", value_parser = thinbak_proto::parse_duration)]
    pub(super) keep_within: Option<std::time::Duration>,
}
