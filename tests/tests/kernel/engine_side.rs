//! Steps as calls of the engine, and its answers as the kernel's tools would print them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread::{self, Scope, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::io::Errno;
use thinbak_engine::{
    Access, BlockDevice, BlockSize, DeviceId, FileDevice, Pool, PoolError, PoolMode, PoolTable, Thin,
};
use thinbak_tests::spawn;

use crate::{
    breakable::{Breakable, Broken},
    lab::sha256,
    model::{SECTOR, slice},
    steps::{Answer, Step, Table},
};

/// The devices of a pool, and what the steps have done to them.
pub(crate) struct EngineSide<'a> {
    path: PathBuf,
    metadata: Arc<Breakable>,
    data: Arc<Breakable>,
    source: &'a [u8],
    origin: Option<Arc<dyn BlockDevice>>,
    timeout: Duration,
}

/// What is open while a pool is up.
struct Session<'scope, 'pool> {
    pool: &'pool Pool,
    /// Length of the pool.
    sectors: u64,
    thins: BTreeMap<u32, Thin<'pool>>,
    later: Option<ScopedJoinHandle<'scope, Result<(), PoolError>>>,
}

impl<'a> EngineSide<'a> {
    /// Opens the files.
    pub(crate) fn new(
        [metadata, data]: [&Path; 2],
        metadata_sectors: u64,
        source: &'a [u8],
        origin: Option<&Path>,
    ) -> Result<Self> {
        let open = |path: &Path, size| -> Result<_> {
            Ok(Arc::new(Breakable::new(FileDevice::open(path, Access::ReadWrite)?, size)))
        };
        let origin = match origin {
            Some(path) => Some(Arc::new(FileDevice::open(path, Access::ReadOnly)?) as Arc<dyn BlockDevice>),
            None => None,
        };
        Ok(Self {
            path: metadata.to_owned(),
            metadata: open(metadata, metadata_sectors * SECTOR)?,
            data: open(data, 0)?,
            source,
            origin,
            timeout: Duration::from_secs(60),
        })
    }

    /// Takes the steps.
    pub(crate) fn run(&mut self, steps: &[Step]) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        while let Some(step) = steps.get(answers.len()) {
            let Step::Up(table) = step else {
                answers.push(Answer { result: self.beneath(step)?, status: Vec::new() });
                continue;
            };
            match self.up(table) {
                Ok(pool) => {
                    let rest = steps.get(answers.len()..).unwrap_or_default();
                    thread::scope(|scope| self.session(scope, &pool, rest, &mut answers))?;
                }
                Err(error) => answers.push(Answer { result: reason(&error)?, status: Vec::new() }),
            }
        }
        Ok(answers)
    }

    fn table(&self, table: &Table) -> Result<PoolTable, PoolError> {
        Ok(PoolTable { no_space_timeout: self.timeout, ..table.arguments.parse()? })
    }

    /// As loading and resuming a table does: blank metadata are formatted, larger devices taken into use.
    fn up(&self, table: &Table) -> Result<Pool, PoolError> {
        self.data.set_size(table.sectors * SECTOR);
        let loaded = self.table(table)?;
        let (metadata, data) = (Arc::clone(&self.metadata), Arc::clone(&self.data));
        let mut first = [1; 4096];
        let readable = self.metadata.read_at(0, &mut first).is_ok();
        if readable && first.iter().all(|byte| *byte == 0) {
            let block = BlockSize::from_sectors(table.block)
                .map_err(|error| PoolError::InvalidTable(error.to_string()))?;
            return Pool::format_with(metadata, data, block, loaded);
        }
        let pool = Pool::open_with(metadata, data, loaded)?;
        if pool.status().mode < PoolMode::ReadOnly {
            grow_data(&pool, table)?;
            pool.grow_metadata()?;
        }
        Ok(pool)
    }

    /// As suspending, loading and resuming does. A pool that does not write does not grow, and that is no error.
    fn reload(&self, pool: &Pool, table: &Table) -> Result<(), PoolError> {
        self.data.set_size(table.sectors * SECTOR);
        pool.reload(self.table(table)?)?;
        if pool.status().mode < PoolMode::ReadOnly { grow_data(pool, table) } else { Ok(()) }
    }

    /// The steps from bringing a pool up to taking it down.
    fn session<'scope, 'pool: 'scope>(
        &mut self,
        scope: &'scope Scope<'scope, '_>,
        pool: &'pool Pool,
        steps: &[Step],
        answers: &mut Vec<Answer>,
    ) -> Result<()>
    where
        'a: 'scope,
    {
        let mut session = Session { pool, sectors: 0, thins: BTreeMap::new(), later: None };
        for (number, step) in steps.iter().enumerate() {
            if matches!(step, Step::Down) {
                answers.push(Answer { result: "ok".to_owned(), status: Vec::new() });
                return Ok(());
            }
            let result = match step {
                Step::Up(table) if number == 0 => {
                    session.sectors = table.sectors;
                    format!("ok {} {}", pool.block_size().sectors(), pool.table())
                }
                Step::Begin(device, offset, length, source) => {
                    let (device, offset) = (id(*device)?, *offset);
                    let bytes = slice(self.source, *source, *length)?;
                    session.later = Some(scope.spawn(move || pool.write(device, offset, bytes)));
                    "ok".to_owned()
                }
                Step::Reload(table) => match self.reload(pool, table) {
                    Ok(()) => {
                        session.sectors = table.sectors;
                        format!("ok {} {}", pool.block_size().sectors(), pool.table())
                    }
                    Err(error) => reason(&error)?,
                },
                Step::ResizeMetadata(_) | Step::Break(_) => self.beneath(step)?,
                other => session.take(other, self)?,
            };
            let status = if step.is_silent() { Vec::new() } else { session.status()? };
            answers.push(Answer { result, status });
        }
        bail!("a pool is not taken down")
    }

    /// What is done to the devices.
    fn beneath(&mut self, step: &Step) -> Result<String> {
        match *step {
            // A table was refused; what `dmsetup` says of a device that is not there.
            Step::Message(_) | Step::Down => return Ok(text(Errno::NXIO)),
            Step::Events => return Ok("ok Device does not exist.".to_owned()),
            Step::ResizeMetadata(sectors) => self.metadata.set_size(sectors * SECTOR),
            Step::Break(broken) => self.metadata.set_broken(broken),
            Step::Timeout(seconds) => self.timeout = Duration::from_secs(seconds),
            Step::ClearNeedsCheck => {
                let mut command = Command::new("thin_check");
                command.args(["-q", "--clear-needs-check-flag"]).arg(&self.path);
                ensure!(spawn(&mut command)?.wait()?.success(), "thin_check failed");
            }
            other => bail!("{other:?} without a pool, or with one"),
        }
        if matches!(step, Step::Break(Broken::Nothing)) {
            self.metadata.set_broken(Broken::Nothing);
        }
        Ok("ok".to_owned())
    }
}

impl<'pool> Session<'_, 'pool> {
    fn take(&mut self, step: &Step, side: &EngineSide<'_>) -> Result<String> {
        match *step {
            Step::Message(message) => said(self.message(message)),
            Step::Unsaid(message) => {
                let error = self.message(message).err().context("a failed commit was not told")?;
                ensure!(matches!(error, PoolError::Metadata(_)), "told as {error}");
                Ok("ok".to_owned())
            }
            Step::Thin(device, sectors) => self.activate(device, sectors, None),
            Step::Over(device, sectors) => self.activate(device, sectors, side.origin.clone()),
            Step::Remove(device) => {
                self.thins.remove(&device).context("no such thin")?;
                Ok("ok".to_owned())
            }
            Step::Write(device, offset, length, source) => {
                moved(self.thin(device)?.write(offset, slice(side.source, source, length)?))
            }
            Step::Discard(device, offset, length) => match self.thin(device)?.discard(offset, length) {
                // The kernel lets it succeed and do nothing.
                Err(PoolError::ReadOnlyMode { .. }) => Ok("ok".to_owned()),
                other => moved(other),
            },
            Step::Read(device) => {
                let thin = self.thin(device)?;
                let mut bytes = vec![0; usize::try_from(thin.size_bytes())?];
                thin.read(0, &mut bytes)?;
                Ok(format!("ok {}", sha256(&bytes)?))
            }
            Step::Events => Ok(format!("ok {}", self.pool.events())),
            Step::Await(word) => {
                let mut seen = 0;
                while !self.pool.status().to_string().split(' ').any(|found| found == word) {
                    seen = self.pool.wait_event(seen, Some(Instant::now() + Duration::from_millis(50)));
                }
                Ok("ok".to_owned())
            }
            Step::End => {
                let later = self.later.take().context("nothing in the background")?;
                moved(later.join().map_err(|_| anyhow::anyhow!("a write panicked"))?)
            }
            other => bail!("{other:?} within a session"),
        }
    }

    fn message(&self, message: &str) -> Result<(), PoolError> {
        self.pool.message(&message.split_ascii_whitespace().collect::<Vec<_>>())
    }

    fn thin(&self, device: u32) -> Result<&Thin<'pool>> {
        self.thins.get(&device).with_context(|| format!("thin {device} is not active"))
    }

    fn activate(
        &mut self,
        device: u32,
        sectors: u64,
        origin: Option<Arc<dyn BlockDevice>>,
    ) -> Result<String> {
        Ok(match self.pool.open_thin(id(device)?, sectors * SECTOR, origin) {
            Ok(thin) => {
                self.thins.insert(device, thin);
                "ok".to_owned()
            }
            Err(error) => reason(&error)?,
        })
    }

    /// As `dmsetup status` prints it, which commits first.
    fn status(&self) -> Result<Vec<String>> {
        drop(self.pool.commit());
        let mut lines = vec![format!("pool: 0 {} thin-pool {}", self.sectors, self.pool.status())];
        for (device, thin) in &self.thins {
            lines.push(format!("thin-{device}: 0 {} thin {}", thin.size_bytes() / SECTOR, thin.status()?));
        }
        lines.sort();
        Ok(lines)
    }
}

fn grow_data(pool: &Pool, table: &Table) -> Result<(), PoolError> {
    let bytes = table.sectors * SECTOR;
    if bytes / pool.block_size().bytes() == pool.status().data_total {
        return Ok(());
    }
    pool.grow_data(bytes)
}

fn id(device: u32) -> Result<DeviceId> {
    Ok(DeviceId::new(device.into())?)
}

fn said(result: Result<(), PoolError>) -> Result<String> {
    result.map_or_else(|error| reason(&error), |()| Ok("ok".to_owned()))
}

/// The text of the error number that the engine names.
fn reason(error: &PoolError) -> Result<String> {
    error.errno().map(text).with_context(|| format!("no error number: {error}"))
}

fn text(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// How a transfer ended. Whatever the reason, the block layer says EIO, but for want of space and of support.
fn moved(result: Result<(), PoolError>) -> Result<String> {
    Ok(match result {
        Ok(()) => "ok".to_owned(),
        Err(PoolError::NoSpaceData { .. }) => text(Errno::NOSPC),
        Err(PoolError::DiscardsIgnored) => text(Errno::OPNOTSUPP),
        Err(_) => text(Errno::IO),
    })
}
