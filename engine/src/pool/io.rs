//! Reading, and listing mappings.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use crate::block_device::BlockDevice;
use crate::format::{DataBlock, DeviceId, DeviceInfo, MappedBlock, VirtualBlock};

use super::traffic::Purpose;
use super::{Pool, PoolError, Result};

/// Blocks looked up at a time.
const BATCH_BLOCKS: u64 = 256;

/// Neighbouring virtual blocks that are mapped to neighbouring data blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedRun {
    /// First virtual block.
    pub begin: VirtualBlock,
    /// Blocks.
    pub length: u64,
    /// First data block.
    pub data_begin: DataBlock,
}

/// A device, and what is read where it maps nothing.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) id: DeviceId,
    /// The external origin; zeroes without one.
    pub(super) origin: Option<&'a dyn BlockDevice>,
}

impl Target<'_> {
    /// Fills `buf` with what stands at `offset` where nothing is mapped; how much of it came from the external origin.
    pub(super) fn read_origin(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let size = self.origin.map_or(0, BlockDevice::size_bytes);
        let length = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let (present, beyond) = buf.split_at_mut(length);
        beyond.fill(0);
        if let Some(origin) = self.origin.filter(|_| !present.is_empty()) {
            let length = present.len() as u64;
            origin.read_at(offset, present).map_err(|source| PoolError::Origin { offset, length, source })?;
        }
        Ok(length)
    }
}

/// Part of a transfer that lies in one virtual block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) block: VirtualBlock,
    /// Byte in the block.
    pub(super) within: u64,
    pub(super) length: usize,
}

impl Pool {
    /// First and last virtual block of a transfer of at least one byte.
    pub(super) fn blocks_of(&self, offset: u64, length: usize) -> Result<(VirtualBlock, VirtualBlock)> {
        let out_of_range = PoolError::OutOfRange { offset, length: length as u64 };
        let last =
            offset.checked_add(length as u64).and_then(|end| end.checked_sub(1)).ok_or(out_of_range)?;
        let bytes = self.block_size.bytes();
        Ok((VirtualBlock(offset / bytes), VirtualBlock(last / bytes)))
    }

    /// The largest beginning of a transfer that touches no more than one batch of blocks.
    pub(super) fn batch_length(&self, offset: u64, length: usize) -> usize {
        let bytes = self.block_size.bytes();
        let blocks = (BATCH_BLOCKS * 65_536 / bytes).max(1);
        usize::try_from(blocks * bytes - offset % bytes).map_or(length, |most| most.min(length))
    }

    /// The pieces of a transfer, one for each block.
    pub(super) fn pieces(&self, offset: u64, length: usize) -> impl Iterator<Item = Piece> {
        let bytes = self.block_size.bytes();
        let (mut at, mut rest) = (offset, length);
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let within = at % bytes;
            let length = usize::try_from(bytes - within).map_or(rest, |most| most.min(rest));
            let piece = Piece { block: VirtualBlock(at / bytes), within, length };
            at += length as u64;
            rest -= length;
            Some(piece)
        })
    }

    /// A device and its mappings from `first` to `last`.
    pub(super) fn look_up(
        &self,
        id: DeviceId,
        first: VirtualBlock,
        last: VirtualBlock,
    ) -> Result<(DeviceInfo, Vec<Option<MappedBlock>>)> {
        let state = self.state.read();
        state.check_usable()?;
        let device = state.metadata.device(id)?.ok_or(PoolError::NoSuchDevice(id))?;
        let count = usize::try_from(last.0 - first.0 + 1).unwrap_or(usize::MAX);
        let mappings = state.metadata.mappings(&device, first, count)?;
        Ok((device, mappings))
    }

    /// Reads from a thin device. What is not mapped reads as zeroes.
    ///
    /// # Errors
    /// [`PoolError::NoSuchDevice`], [`PoolError::OutOfRange`], damaged metadata, a failed read of the data device.
    pub fn read(&self, id: DeviceId, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_target(Target { id, origin: None }, offset, buf)
    }

    pub(super) fn read_target(&self, target: Target<'_>, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let (batch, tail) = rest.split_at_mut(self.batch_length(at, rest.len()));
            let length = batch.len() as u64;
            self.read_batch(target, at, batch)?;
            rest = tail;
            at += length;
        }
        Ok(())
    }

    fn read_batch(&self, target: Target<'_>, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (first, last) = self.blocks_of(offset, buf.len())?;
        let _passage = self.traffic.enter(target.id, first.0..=last.0, Purpose::Read);
        let (_, mappings) = self.look_up(target.id, first, last)?;
        let bytes = self.block_size.bytes();
        let (mut at, mut rest) = (offset, buf);
        // The part that is being put together: where it is on the data device, `None` where nothing is mapped, and its
        // length.
        let mut run: (Option<u64>, usize) = (None, 0);
        for (piece, mapped) in self.pieces(offset, rest.len()).zip(mappings) {
            let place = mapped.map(|mapped| mapped.data_block.0 * bytes + piece.within);
            let next = run.0.map(|begin| begin + run.1 as u64);
            if run.1 > 0 && place != next {
                rest = self.read_run(target, at, rest, run)?;
                at += run.1 as u64;
                run = (place, 0);
            } else if run.1 == 0 {
                run.0 = place;
            }
            run.1 += piece.length;
        }
        self.read_run(target, at, rest, run)?;
        Ok(())
    }

    /// Reads the first part of `buf`, which stands at `offset` of the device, and returns the rest of it.
    fn read_run<'a>(
        &self,
        target: Target<'_>,
        offset: u64,
        buf: &'a mut [u8],
        (place, length): (Option<u64>, usize),
    ) -> Result<&'a mut [u8]> {
        let (run, rest) = buf.split_at_mut(length.min(buf.len()));
        match place {
            None => drop(target.read_origin(offset, run)?),
            Some(place) => self.read_data(place, run)?,
        }
        Ok(rest)
    }

    pub(super) fn read_data(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let length = buf.len() as u64;
        let read = self.data_device.read_at(offset, buf);
        read.map_err(|source| PoolError::Io { action: "read", offset, length, source })
    }

    pub(super) fn write_data(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let length = buf.len() as u64;
        self.data_device.write_at(offset, buf).map_err(|source| PoolError::Io {
            action: "write",
            offset,
            length,
            source,
        })?;
        // After the write: a flush that began before it must not count for it.
        self.written.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// The mapped blocks in `from..to` as runs, `max` of them at most; the last one may go on where the answer ends.
    ///
    /// # Errors
    /// [`PoolError::NoSuchDevice`], damaged metadata.
    pub fn mapped_runs(
        &self,
        id: DeviceId,
        from: VirtualBlock,
        to: VirtualBlock,
        max: usize,
    ) -> Result<Vec<MappedRun>> {
        let state = self.state.read();
        state.check_usable()?;
        let device = state.check_present(id)?;
        let mut runs: Vec<MappedRun> = Vec::new();
        let Some(last) = to.0.checked_sub(1).filter(|last| *last >= from.0 && max > 0) else {
            return Ok(runs);
        };
        state.metadata.walk_mappings(&device, from, VirtualBlock(last), |block, mapped| {
            if let Some(run) = runs.last_mut()
                && run.begin.0 + run.length == block.0
                && run.data_begin.0 + run.length == mapped.data_block.0
            {
                run.length += 1;
            } else if runs.len() == max {
                return ControlFlow::Break(());
            } else {
                runs.push(MappedRun { begin: block, length: 1, data_begin: mapped.data_block });
            }
            ControlFlow::Continue(())
        })?;
        Ok(runs)
    }
}
