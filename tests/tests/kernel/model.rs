//! A pool as a naive model: what each thin device reads and which of its blocks are mapped, changed by the same
//! operations that the engine or the kernel is given.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use rand::{Rng as _, rngs::StdRng, seq::IteratorRandom as _};

/// Bytes in a sector.
pub(crate) const SECTOR: u64 = 512;

/// Something that can be done to a pool, by the engine as by the kernel. Bytes throughout.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Operation {
    /// A new empty thin device.
    Create { device: u32 },
    /// A snapshot of a device that may be a snapshot itself.
    Snapshot { device: u32, origin: u32 },
    /// Removes a device.
    Delete { device: u32 },
    /// One write of bytes that stand at `source` of the bytes to write.
    Write { device: u32, offset: u64, length: u64, source: u64 },
    /// A discard; only whole blocks in it count.
    Discard { device: u32, offset: u64, length: u64 },
}

/// One device.
#[derive(Debug, Clone, Default)]
pub(crate) struct Device {
    /// What it reads.
    pub(crate) bytes: Vec<u8>,
    /// Its mapped blocks.
    pub(crate) mapped: BTreeSet<u64>,
}

/// Sizes that stay the same through a test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Data block size.
    pub(crate) block_bytes: u64,
    /// Size of every device; not always a multiple of the block size.
    pub(crate) device_bytes: u64,
    /// Size of the disk with the bytes to write.
    pub(crate) source_bytes: u64,
}

/// All devices of a pool.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    shape: Shape,
    /// By device id.
    pub(crate) devices: BTreeMap<u32, Device>,
    next: u32,
}

impl Model {
    /// An empty pool.
    pub(crate) fn new(shape: Shape) -> Self {
        Self { shape, devices: BTreeMap::new(), next: 0 }
    }

    /// Changes the model. `source`: the bytes to write.
    pub(crate) fn apply(&mut self, operation: Operation, source: &[u8]) -> Result<()> {
        match operation {
            Operation::Create { device } => {
                let bytes = vec![0; usize::try_from(self.shape.device_bytes)?];
                self.devices.insert(device, Device { bytes, mapped: BTreeSet::new() });
            }
            Operation::Snapshot { device, origin } => {
                let copy = self.device(origin)?.clone();
                self.devices.insert(device, copy);
            }
            Operation::Delete { device } => {
                self.devices.remove(&device).context("deleting a device that the model lacks")?;
            }
            Operation::Write { device, offset, length, source: from } => {
                let block = self.shape.block_bytes;
                let new = slice(source, from, length)?;
                let device = self.device(device)?;
                slice_mut(&mut device.bytes, offset, length)?.copy_from_slice(new);
                device.mapped.extend(offset / block..(offset + length).div_ceil(block));
            }
            Operation::Discard { device, offset, length } => {
                let block = self.shape.block_bytes;
                let device = self.device(device)?;
                for number in offset.div_ceil(block)..(offset + length) / block {
                    device.mapped.remove(&number);
                    slice_mut(&mut device.bytes, number * block, block)?.fill(0);
                }
            }
        }
        Ok(())
    }

    fn device(&mut self, device: u32) -> Result<&mut Device> {
        self.devices.get_mut(&device).with_context(|| format!("the model has no device {device}"))
    }

    /// Draws `count` operations that are possible one after the other, and applies each.
    pub(crate) fn draw(
        &mut self,
        count: usize,
        source: &[u8],
        random: &mut StdRng,
    ) -> Result<Vec<Operation>> {
        let mut drawn = Vec::new();
        for step in 0..count {
            let operation = match random.random_range(0..100) {
                _ if self.devices.is_empty() => Operation::Create { device: self.new_id() },
                0..10 if self.devices.len() < 7 => {
                    let origin = self.pick(random)?;
                    Operation::Snapshot { device: self.new_id(), origin }
                }
                _ if step == count / 2 && self.devices.len() > 4 => {
                    Operation::Delete { device: self.pick(random)? }
                }
                10..14 if self.devices.len() < 4 => Operation::Create { device: self.new_id() },
                14..34 => self.discard(random)?,
                _ => self.write(random)?,
            };
            self.apply(operation, source)?;
            drawn.push(operation);
        }
        Ok(drawn)
    }

    /// Ids go up and are far apart now and then, up to the greatest that the format has.
    fn new_id(&mut self) -> u32 {
        let id = self.next;
        self.next = if id == 5 { (1 << 24) - 20 } else { id + 1 };
        id
    }

    fn pick(&self, random: &mut StdRng) -> Result<u32> {
        self.devices.keys().copied().choose(random).context("no device to choose from")
    }

    fn write(&self, random: &mut StdRng) -> Result<Operation> {
        let Shape { block_bytes, device_bytes, source_bytes } = self.shape;
        let length = match random.random_range(0..4) {
            0 => random.random_range(1..=16) * SECTOR,
            1 => block_bytes,
            2 => random.random_range(1..=block_bytes / SECTOR) * SECTOR,
            _ => random.random_range(1..=16) * block_bytes,
        };
        let length = length.min(source_bytes);
        // Every third write begins with a block: whole blocks are provisioned without being zeroed.
        let unit = if random.random_range(0..3) == 0 { block_bytes } else { SECTOR };
        let offset = random.random_range(0..device_bytes / unit) * unit;
        let length = length.min(device_bytes - offset);
        let source = random.random_range(0..=(source_bytes - length) / SECTOR) * SECTOR;
        Ok(Operation::Write { device: self.pick(random)?, offset, length, source })
    }

    /// The kernel cuts a discard where its begin, rounded up with a mask that is right for powers of two only, says;
    /// with other block sizes that may be inside a block, which then stays. Those begins are not drawn.
    fn discard(&self, random: &mut StdRng) -> Result<Operation> {
        let Shape { block_bytes, device_bytes, .. } = self.shape;
        let block = block_bytes / SECTOR;
        let begin = loop {
            let begin = random.random_range(0..device_bytes / SECTOR);
            let begin = if block.is_power_of_two() { begin } else { begin / block * block };
            let cut = begin.checked_sub(1).map_or(0, |last| (last | (block - 1)) + 1);
            if block.is_power_of_two() || cut == begin {
                break begin;
            }
        };
        let offset = begin * SECTOR;
        let length = (random.random_range(1..=24 * block) * SECTOR).min(device_bytes - offset);
        Ok(Operation::Discard { device: self.pick(random)?, offset, length })
    }
}

/// A part of `bytes`, or an error.
pub(crate) fn slice(bytes: &[u8], offset: u64, length: u64) -> Result<&[u8]> {
    let (begin, length) = (usize::try_from(offset)?, usize::try_from(length)?);
    bytes.get(begin..begin + length).context("beyond the end")
}

fn slice_mut(bytes: &mut [u8], offset: u64, length: u64) -> Result<&mut [u8]> {
    let (begin, length) = (usize::try_from(offset)?, usize::try_from(length)?);
    bytes.get_mut(begin..begin + length).context("beyond the end")
}
