//! One pool that goes back and forth between the engine and the kernel, and the model that both are held against.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use thinbak_engine::{
    Access, BlockDevice, BlockSize, DeviceId, FileDevice, Pool, VirtualBlock,
    check::check,
    metadata_view::{MetadataView, Roots},
};
use thinbak_tests::{Scratch, seed, thin_check};

use crate::{
    guest::Guest,
    model::{Device, Model, Operation, SECTOR, Shape, slice},
};

/// Size of the metadata device: small, so that its space maps are used again and again.
const METADATA_BYTES: u64 = 4 << 20;
/// Size of the data device: all devices fit, each fully mapped and nothing shared.
const DATA_BYTES: u64 = 320 << 20;
/// Operations before and after the middle of a turn.
const HALF: usize = 40;

/// The mapped blocks of every device.
type Mapped = BTreeMap<u32, BTreeSet<u64>>;

/// The pool, its files and its model.
pub(crate) struct Lab {
    guest: Guest,
    scratch: Scratch,
    shape: Shape,
    source: Vec<u8>,
    random: StdRng,
    model: Model,
    /// What the held metadata snapshot must show.
    held: Option<Mapped>,
    /// The status line of the pool as whoever had it last opened it afresh.
    status: Option<String>,
}

/// What one side does in its turn: operations, then the metadata snapshot is taken or given back, then more.
struct Turn {
    first: Vec<Operation>,
    reserve: bool,
    second: Vec<Operation>,
    /// The model in the middle.
    middle: Mapped,
}

impl Lab {
    /// Two disks of zeros and one of random bytes.
    pub(crate) fn new(guest: Guest, block_bytes: u64, device_bytes: u64) -> Result<Self> {
        let mut random = StdRng::seed_from_u64(seed()?);
        let scratch = Scratch::new()?;
        let shape = Shape { block_bytes, device_bytes, source_bytes: 4 << 20 };
        let mut source = vec![0; usize::try_from(shape.source_bytes)?];
        random.fill_bytes(&mut source);
        std::fs::write(scratch.join("source"), &source)?;
        FileDevice::create(&scratch.join("metadata"), METADATA_BYTES)?;
        FileDevice::create(&scratch.join("data"), DATA_BYTES)?;
        Ok(Self { guest, scratch, shape, source, random, model: Model::new(shape), held: None, status: None })
    }

    fn metadata(&self) -> PathBuf {
        self.scratch.join("metadata")
    }

    fn devices(&self) -> Result<(Arc<dyn BlockDevice>, Arc<dyn BlockDevice>)> {
        let metadata = FileDevice::open(&self.metadata(), Access::ReadWrite)?;
        let data = FileDevice::open(&self.scratch.join("data"), Access::ReadWrite)?;
        Ok((Arc::new(metadata), Arc::new(data)))
    }

    fn draw(&mut self) -> Result<Turn> {
        let first = self.model.draw(HALF, &self.source, &mut self.random)?;
        let middle: Mapped =
            self.model.devices.iter().map(|(id, device)| (*id, device.mapped.clone())).collect();
        let second = self.model.draw(HALF, &self.source, &mut self.random)?;
        let reserve = self.held.is_none();
        self.held = reserve.then(|| middle.clone());
        Ok(Turn { first, reserve, second, middle })
    }

    // ---- the engine's side

    /// The engine makes the pool.
    pub(crate) fn engine_formats(&self) -> Result<()> {
        let (metadata, data) = self.devices()?;
        let pool = Pool::format(metadata, data, BlockSize::from_bytes(self.shape.block_bytes)?)?;
        pool.commit()?;
        Ok(())
    }

    /// The engine opens the pool, finds all as it should be, and changes it.
    pub(crate) fn engine_turn(&mut self) -> Result<()> {
        let (metadata, data) = self.devices()?;
        let pool = Pool::open(metadata, data)?;
        if let Some(status) = &self.status {
            ensure!(status_of(&pool) == *status, "engine: {}, kernel: {status}", pool.status());
        }
        self.compare(&pool).context("the engine on what it opened")?;
        self.check().context("before the engine's turn")?;

        let turn = self.draw()?;
        self.engine_applies(&pool, &turn.first)?;
        if turn.reserve {
            pool.reserve_metadata_snap()?;
        } else {
            pool.release_metadata_snap()?;
        }
        self.engine_applies(&pool, &turn.second)?;
        pool.commit()?;
        self.compare(&pool).context("the engine on what it changed")?;
        drop(pool);

        self.check().context("after the engine's turn")?;
        let (metadata, data) = self.devices()?;
        self.status = Some(status_of(&Pool::open(metadata, data)?));
        Ok(())
    }

    fn engine_applies(&self, pool: &Pool, operations: &[Operation]) -> Result<()> {
        for operation in operations {
            match *operation {
                Operation::Create { device } => pool.create_thin(id(device)?)?,
                Operation::Snapshot { device, origin } => pool.create_snap(id(device)?, id(origin)?)?,
                Operation::Delete { device } => pool.delete(id(device)?)?,
                Operation::Write { device, offset, length, source } => {
                    pool.write(id(device)?, offset, slice(&self.source, source, length)?)?;
                }
                Operation::Discard { device, offset, length } => pool.discard(id(device)?, offset, length)?,
            }
        }
        Ok(())
    }

    /// The pool as the engine reads it, against the model.
    fn compare(&self, pool: &Pool) -> Result<()> {
        let found: Vec<u32> = pool.devices()?.iter().map(|device| device.id.get()).collect();
        let expected: Vec<u32> = self.model.devices.keys().copied().collect();
        ensure!(found == expected, "devices {found:?}, not {expected:?}");
        let mut bytes = vec![0; usize::try_from(self.shape.device_bytes)?];
        for (number, device) in &self.model.devices {
            let id = id(*number)?;
            let info = pool.device(id)?.context("device is gone")?;
            ensure!(
                info.details.mapped_blocks == device.mapped.len() as u64,
                "device {number}: {} blocks mapped, not {}",
                info.details.mapped_blocks,
                device.mapped.len()
            );
            let end = VirtualBlock::new(self.shape.device_bytes.div_ceil(self.shape.block_bytes));
            let runs = pool.mapped_runs(id, VirtualBlock::new(0), end, usize::MAX)?;
            let blocks = runs.iter().flat_map(|run| run.begin.get()..run.begin.get() + run.length);
            ensure!(blocks.eq(device.mapped.iter().copied()), "device {number}: other blocks are mapped");
            pool.read(id, 0, &mut bytes)?;
            let differ = bytes.iter().zip(&device.bytes).position(|(found, expected)| found != expected);
            ensure!(differ.is_none(), "device {number}: reads otherwise at byte {differ:?}");
        }
        Ok(())
    }

    /// The judges' word on the metadata, ours and Debian's; and the held metadata snapshot shows what it must.
    fn check(&self) -> Result<()> {
        thin_check(&self.metadata())?;
        let metadata: Arc<dyn BlockDevice> = Arc::new(FileDevice::open(&self.metadata(), Access::ReadOnly)?);
        let report = check(Arc::clone(&metadata), Some(DATA_BYTES))?;
        ensure!(report.damage.is_empty(), "{:?}", report.damage);
        let Some(held) = &self.held else { return Ok(()) };
        let view = MetadataView::open(metadata, Roots::MetadataSnap)?;
        let mut found = Mapped::new();
        for device in view.devices()? {
            let mappings = view.mappings(device.root, VirtualBlock::new(0));
            let blocks: Result<BTreeSet<u64>, _> =
                mappings.map(|mapping| Ok::<_, anyhow::Error>(mapping?.virtual_block.get())).collect();
            found.insert(device.id.get(), blocks?);
        }
        ensure!(found == *held, "the metadata snapshot shows other mappings");
        Ok(())
    }

    // ---- the kernel's side

    /// The kernel activates the pool (makes it, if there is none yet), finds all as it should be, and changes it.
    pub(crate) fn kernel_turn(&mut self) -> Result<()> {
        let block = self.shape.block_bytes / SECTOR;
        let size = self.shape.device_bytes / SECTOR;
        let before = self.model.clone();
        let turn = self.draw()?;
        let (mut script, fresh) = (String::new(), self.status.clone());
        writeln!(script, "pool_up {block}; say_pool before")?;
        for device in before.devices.keys() {
            writeln!(script, "thin_up {device} {size}; say_thin before {device}")?;
        }
        self.kernel_applies(&mut script, &turn.first)?;
        writeln!(script, "message {}_metadata_snap", if turn.reserve { "reserve" } else { "release" })?;
        if turn.reserve {
            // Given back and taken again, with the same mappings.
            script.push_str("message release_metadata_snap\nmessage reserve_metadata_snap\n");
        }
        self.kernel_applies(&mut script, &turn.second)?;
        for device in self.model.devices.keys() {
            writeln!(script, "say_thin after {device}")?;
        }
        writeln!(script, "down; check; pool_up {block}; say_pool fresh; down; check")?;

        let disks = ["metadata", "data", "source"].map(|name| self.scratch.join(name));
        let report = self.guest.run(&script, &disks.each_ref().map(PathBuf::as_path))?;
        if let Some(fresh) = fresh {
            let found = report.get("before")?;
            ensure!(found == fresh, "kernel: {found}, engine: {fresh}");
        }
        for (key, model) in [("before", &before), ("after", &self.model)] {
            for (number, device) in &model.devices {
                let mapped = report.get(&format!("{key}.mapped.{number}"))?;
                let expected = thin_status(device, block);
                ensure!(mapped == expected, "{key}, device {number}: status {mapped}, not {expected}");
                let hash = report.get(&format!("{key}.sha256.{number}"))?;
                ensure!(hash == sha256(&device.bytes)?, "{key}, device {number}: the kernel reads otherwise");
            }
        }
        self.status = Some(report.get("fresh")?.to_owned());
        ensure!(turn.reserve == self.held.is_some(), "the model lost the metadata snapshot");
        drop(turn.middle);
        Ok(())
    }

    fn kernel_applies(&self, script: &mut String, operations: &[Operation]) -> Result<()> {
        let size = self.shape.device_bytes / SECTOR;
        for operation in operations {
            match operation {
                Operation::Create { device } => {
                    writeln!(script, "message create_thin {device}; thin_up {device} {size}")?;
                }
                Operation::Snapshot { device, origin } => {
                    writeln!(script, "snapshot {device} {origin}; thin_up {device} {size}")?;
                }
                Operation::Delete { device } => {
                    writeln!(script, "dmsetup remove thin-{device}; message delete {device}")?;
                }
                Operation::Write { device, offset, length, source } => {
                    writeln!(script, "put {device} {offset} {length} {source}")?;
                }
                Operation::Discard { device, offset, length } => {
                    writeln!(script, "discard {device} {offset} {length}")?;
                }
            }
        }
        Ok(())
    }
}

fn id(device: u32) -> Result<DeviceId> {
    Ok(DeviceId::new(device.into())?)
}

/// The status line, as a script's words are reported.
fn status_of(pool: &Pool) -> String {
    pool.status().to_string().trim_end().to_owned()
}

/// A thin device's status as the kernel prints it: mapped sectors, highest mapped sector.
fn thin_status(device: &Device, block_sectors: u64) -> String {
    let highest =
        device.mapped.last().map_or("-".to_owned(), |last| ((last + 1) * block_sectors - 1).to_string());
    format!("{} {highest}", device.mapped.len() as u64 * block_sectors)
}

/// As the guest computes it, by the same program.
pub(crate) fn sha256(bytes: &[u8]) -> Result<String> {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("sha256sum has no input")?.write_all(bytes)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "sha256sum failed");
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().next().context("sha256sum said nothing")?.to_owned())
}
