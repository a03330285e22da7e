//! The same steps for the kernel and for the engine, each on a pool of its own; then the pools are exchanged.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Result, ensure};
use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use thinbak_engine::{
    Access, BlockDevice, BlockSize, FileDevice, Pool, PoolError,
    check::check,
    delta::{DeltaOptions, delta_xml},
    dump::dump_xml,
    metadata_view::{MetadataView, Roots},
};
use thinbak_tests::{Scratch, seed, thin_check};

use crate::{
    breakable::Breakable,
    engine_side::EngineSide,
    guest::Guest,
    kernel_side,
    model::SECTOR,
    steps::{Answer, Step, differences},
};

/// Bytes that can be written.
pub(crate) const SOURCE_BYTES: u64 = 1 << 20;

/// Two pools.
pub(crate) struct Twin {
    guest: Guest,
    scratch: Scratch,
    metadata_sectors: u64,
    source: Vec<u8>,
    origin: bool,
    /// Whose files the kernel has: its own, or after an exchange the engine's.
    exchanged: bool,
}

impl Twin {
    /// Blank pools. The metadata device is a part of a file that is larger.
    pub(crate) fn new(
        guest: Guest,
        metadata_sectors: u64,
        data_sectors: u64,
        origin_sectors: Option<u64>,
    ) -> Result<Self> {
        let scratch = Scratch::new()?;
        let mut random = StdRng::seed_from_u64(seed()?);
        let mut source = vec![0; usize::try_from(SOURCE_BYTES)?];
        random.fill_bytes(&mut source);
        std::fs::write(scratch.join("source"), &source)?;
        for side in ["first", "second"] {
            FileDevice::create(&scratch.join(&format!("{side}-metadata")), metadata_sectors * 4 * SECTOR)?;
            FileDevice::create(&scratch.join(&format!("{side}-data")), data_sectors * SECTOR)?;
        }
        if let Some(sectors) = origin_sectors {
            let mut bytes = vec![0; usize::try_from(sectors * SECTOR)?];
            random.fill_bytes(&mut bytes);
            std::fs::write(scratch.join("origin"), bytes)?;
        }
        let origin = origin_sectors.is_some();
        Ok(Self { guest, scratch, metadata_sectors, source, origin, exchanged: false })
    }

    /// The files of one side: metadata and data.
    pub(crate) fn files(&self, kernel: bool) -> [PathBuf; 2] {
        let side = if kernel == self.exchanged { "second" } else { "first" };
        ["metadata", "data"].map(|name| self.scratch.join(&format!("{side}-{name}")))
    }

    /// Gives both sides a pool that the engine makes in a data device of so many sectors.
    pub(crate) fn prepare(
        &self,
        data_sectors: u64,
        make: impl FnOnce(&Pool) -> Result<(), PoolError>,
    ) -> Result<()> {
        let [metadata, data] = self.files(true);
        let open = |path: &Path, sectors: u64| -> Result<_> {
            let file = FileDevice::open(path, Access::ReadWrite)?;
            Ok(Arc::new(Breakable::new(file, sectors * SECTOR)))
        };
        let (metadata, data) = (open(&metadata, self.metadata_sectors)?, open(&data, data_sectors)?);
        make(&Pool::format(metadata, data, BlockSize::from_sectors(128)?)?)?;
        for (from, to) in self.files(true).iter().zip(self.files(false)) {
            std::fs::copy(from, to)?;
        }
        Ok(())
    }

    /// From now on each side has the other's pool.
    pub(crate) fn exchange(&mut self) {
        self.exchanged = !self.exchanged;
    }

    /// Both take the steps, and say the same of each. Afterwards the metadata are sound and the same.
    pub(crate) fn same(&mut self, steps: &[Step]) -> Result<()> {
        let (kernel, engine) = self.run(steps)?;
        let differ = differences(steps, &kernel, &engine);
        ensure!(differ.is_empty(), "{differ}");
        let [mut first, mut second] = [String::new(), String::new()];
        for (kernel, dump) in [(true, &mut first), (false, &mut second)] {
            *dump = self.dump(kernel)?;
        }
        ensure!(first == second, "dumps differ\nkernel: {first}\nengine: {second}");
        Ok(())
    }

    /// What both say; both pools are checked afterwards, and the kernel's dump is held against the engine's of the same pool.
    pub(crate) fn run(&self, steps: &[Step]) -> Result<(Vec<Answer>, Vec<Answer>)> {
        let [metadata, data] = self.files(true);
        let (source, origin) = (self.scratch.join("source"), self.scratch.join("origin"));
        let mut disks: Vec<&Path> = vec![&metadata, &data, &source];
        disks.extend(self.origin.then_some(origin.as_path()));
        let kernel = kernel_side::run(&self.guest, &disks, self.metadata_sectors, steps)?;

        let [metadata, data] = self.files(false);
        let origin = self.origin.then_some(origin.as_path());
        let files = [metadata.as_path(), data.as_path()];
        let engine = EngineSide::new(files, self.metadata_sectors, &self.source, origin)?.run(steps)?;
        Ok((kernel, engine))
    }

    /// Checks one pool with Debian's checker and with ours, and dumps it with both: the same text.
    fn dump(&self, kernel: bool) -> Result<String> {
        let [metadata, data] = self.files(kernel);
        thin_check(&metadata)?;
        let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::open(&metadata, Access::ReadOnly)?);
        let data_bytes = std::fs::metadata(&data)?.len();
        let report = check(Arc::clone(&device), Some(data_bytes))?;
        ensure!(report.damage.is_empty(), "of the kernel: {kernel}, {:?}", report.damage);
        let mut ours = Vec::new();
        dump_xml(&MetadataView::open(device, Roots::Live)?, None, &mut ours)?;
        let theirs = Command::new("thin_dump").arg(&metadata).output()?;
        ensure!(theirs.status.success() && theirs.stdout == ours, "thin_dump says something else");
        self.deltas(&metadata)?;
        Ok(String::from_utf8(ours)?)
    }

    /// The engine's differences of neighbouring devices are those of `thin_delta`.
    fn deltas(&self, metadata: &Path) -> Result<()> {
        let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::open(metadata, Access::ReadOnly)?);
        let view = MetadataView::open(device, Roots::Live)?;
        let devices = view.devices()?;
        for (left, right) in devices.iter().zip(devices.iter().skip(1)).take(5) {
            let mut ours = Vec::new();
            delta_xml(&view, left.id, right.id, DeltaOptions::default(), &mut ours)?;
            let ids = [left.id, right.id].map(|id| id.get().to_string());
            let arguments = ids.iter().zip(["--thin1", "--thin2"]).flat_map(|(id, name)| [name, id]);
            let theirs = Command::new("thin_delta").args(arguments).arg(metadata).output()?;
            ensure!(theirs.status.success() && theirs.stdout == ours, "thin_delta says something else");
        }
        Ok(())
    }
}
