//! Writing: in place where a device alone has a block, else to a new block.

use std::ops::Range;

use crate::format::{DataBlock, DeviceId, DeviceInfo, MappedBlock};

use super::io::{Piece, Target};
use super::traffic::Purpose;
use super::{Pool, PoolError, PoolMode, Result, State};

/// Bytes zeroed or copied at a time.
const FILL_BYTES: u64 = 1 << 20;

/// How one block of a write is written.
#[derive(Clone, Copy, Debug)]
struct Step {
    piece: Piece,
    /// The data block to write to.
    target: DataBlock,
    /// Set when the block is new: it is mapped after it was written.
    new: Option<Origin>,
}

/// Where the part of a new block comes from that is not written.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// Nothing was mapped: the external origin and zeroes.
    Unmapped,
    Copy(DataBlock),
}

impl Pool {
    /// Writes to a thin device. Blocks are provided as needed; a block that a snapshot shares is written to a new place. The
    /// write is durable after the next commit. Without a free data block it waits for one, unless the table says otherwise.
    ///
    /// # Errors
    /// [`PoolError::NoSpaceData`], [`PoolError::NoSpaceMetadata`], [`PoolError::NoSuchDevice`],
    /// [`PoolError::ReadOnlyMode`], [`PoolError::OutOfRange`], failures of the devices. A failed write may have
    /// written some of its blocks.
    pub fn write(&self, id: DeviceId, offset: u64, buf: &[u8]) -> Result<()> {
        self.write_target(Target { id, origin: None }, offset, buf)
    }

    pub(super) fn write_target(&self, target: Target<'_>, offset: u64, buf: &[u8]) -> Result<()> {
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let (batch, tail) = rest.split_at(self.batch_length(at, rest.len()));
            let seen = self.events.count();
            match self.write_batch(target, at, batch) {
                // Others may go on meanwhile, with the same blocks too.
                Err(error @ PoolError::NoSpaceData { .. }) => self.wait_for_space(seen, error)?,
                done => {
                    done?;
                    rest = tail;
                    at += batch.len() as u64;
                }
            }
        }
        Ok(())
    }

    /// Waits until there may be a free data block, when the pool queues writes; else fails with `error`.
    fn wait_for_space(&self, seen: u64, error: PoolError) -> Result<()> {
        let deadline = {
            let state = self.state.read();
            if state.errors_if_no_space() {
                return Err(error);
            }
            match state.mode {
                PoolMode::OutOfDataSpace => state.no_space_deadline(),
                // It has changed since.
                _ => return Ok(()),
            }
        };
        // An event between the failure and here is not missed: `seen` is from before.
        let mut seen = seen;
        while self.state.read().mode == PoolMode::OutOfDataSpace {
            seen = self.events.wait(seen, deadline);
            if self.state.read().errors_if_no_space() {
                self.changing().give_up_waiting();
                return Err(error);
            }
        }
        Ok(())
    }

    fn write_batch(&self, target: Target<'_>, offset: u64, buf: &[u8]) -> Result<()> {
        let id = target.id;
        let (first, last) = self.blocks_of(offset, buf.len())?;
        let blocks = first.0..=last.0;
        // Most writes are either all in place or all to new blocks: a look without claim tells which claim to make.
        let (device, mappings) = self.look_up(id, first, last)?;
        if in_place(&device, &mappings) {
            let _passage = self.traffic.enter(id, blocks.clone(), Purpose::Write);
            let (device, mappings) = self.look_up(id, first, last)?;
            if in_place(&device, &mappings) {
                let steps = self.pieces(offset, buf.len()).zip(mappings).filter_map(|(piece, mapped)| {
                    Some(Step { piece, target: mapped?.data_block, new: None })
                });
                return self.transfer(target, &steps.collect::<Vec<_>>(), buf);
            }
        }
        let passage = self.traffic.enter(id, blocks, Purpose::Exclusive);
        let (device, mappings) = self.look_up(id, first, last)?;
        let pieces: Vec<_> = self.pieces(offset, buf.len()).zip(mappings).collect();
        let steps = self.plan(&device, &pieces)?;
        let written = self.transfer(target, &steps, buf);
        let mapped = self.map_new(id, &steps, written);
        drop(passage);
        mapped?;
        self.commit_large()
    }

    /// Chooses and holds a data block for each piece that needs a new one.
    fn plan(&self, device: &DeviceInfo, pieces: &[(Piece, Option<MappedBlock>)]) -> Result<Vec<Step>> {
        let kept = |mapped: &Option<MappedBlock>| mapped.filter(|mapped| !is_shared(device, *mapped));
        let needed = pieces.iter().filter(|(_, mapped)| kept(mapped).is_none()).count();
        let mut new = self.allocate(needed)?.into_iter();
        let steps = pieces.iter().filter_map(|(piece, mapped)| {
            if let Some(mapped) = kept(mapped) {
                return Some(Step { piece: *piece, target: mapped.data_block, new: None });
            }
            let origin = mapped.map_or(Origin::Unmapped, |mapped| Origin::Copy(mapped.data_block));
            Some(Step { piece: *piece, target: new.next()?, new: Some(origin) })
        });
        Ok(steps.collect())
    }

    /// Finds and holds free data blocks, after a commit when there are not enough without it. All of them or none.
    fn allocate(&self, count: usize) -> Result<Vec<DataBlock>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        for _ in 0..2 {
            let found = self.changing().find_free(count);
            match found {
                // What the open transaction freed can be used after it, and what a commit is discarding after that.
                Err(PoolError::NoSpaceData { .. } | PoolError::NoSpaceMetadata { .. }) => self.commit()?,
                other => return other,
            }
        }
        let mut state = self.changing();
        let found = state.find_free(count);
        if matches!(found, Err(PoolError::NoSpaceData { .. })) && state.mode == PoolMode::Write {
            state.set_mode(PoolMode::OutOfDataSpace);
        }
        found
    }

    /// Writes the data, neighbouring targets together, and what new blocks have besides.
    fn transfer(&self, target: Target<'_>, steps: &[Step], buf: &[u8]) -> Result<()> {
        let bytes = self.block_size.bytes();
        let mut rest = buf;
        // What is being put together: where it goes, and how long it is.
        let mut run: (u64, usize) = (0, 0);
        for step in steps {
            let Piece { within, length, .. } = step.piece;
            let place = step.target.0 * bytes + within;
            let alone = self.needs_filling(target, step);
            if run.1 > 0 && (alone || run.0 + run.1 as u64 != place) {
                let (data, tail) = rest.split_at(run.1.min(rest.len()));
                self.write_data(run.0, data)?;
                rest = tail;
                run.1 = 0;
            }
            if let (true, Some(origin)) = (alone, step.new) {
                let (data, tail) = rest.split_at(length.min(rest.len()));
                self.write_filled(target, step, origin, data)?;
                rest = tail;
                continue;
            }
            if run.1 == 0 {
                run.0 = place;
            }
            run.1 += length;
        }
        if rest.is_empty() { Ok(()) } else { self.write_data(run.0, rest) }
    }

    /// Whether a new block needs more than what is written. A place on the data device that holds nothing is as good as
    /// one that was zeroed.
    fn needs_filling(&self, target: Target<'_>, step: &Step) -> bool {
        let bytes = self.block_size.bytes();
        match step.new {
            None => false,
            Some(_) if step.piece.length as u64 == bytes => false,
            Some(Origin::Unmapped) if target.origin.is_none() => {
                let zeroing = !self.table().features.skip_block_zeroing;
                zeroing && !self.data_device.is_hole(step.target.0 * bytes, bytes)
            }
            Some(_) => true,
        }
    }

    /// Writes a new block: `data`, and around it what it has from elsewhere.
    fn write_filled(&self, target: Target<'_>, step: &Step, origin: Origin, data: &[u8]) -> Result<()> {
        let bytes = self.block_size.bytes();
        let Piece { within, .. } = step.piece;
        let end = within + data.len() as u64;
        let place = step.target.0 * bytes;
        if bytes <= FILL_BYTES {
            let mut block = self.filling(target, step, origin, 0..within)?;
            if block.len() as u64 == within {
                // In one go.
                block.extend_from_slice(data);
                block.extend(self.filling(target, step, origin, end..bytes)?);
                return self.write_data(place, &block);
            }
        }
        self.fill(target, step, origin, 0..within)?;
        self.write_data(place + within, data)?;
        self.fill(target, step, origin, end..bytes)
    }

    /// Fills bytes of a new block that are not written.
    fn fill(&self, target: Target<'_>, step: &Step, origin: Origin, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let next = range.end.min(at + FILL_BYTES);
            let piece = self.filling(target, step, origin, at..next)?;
            if !piece.is_empty() {
                self.write_data(step.target.0 * self.block_size.bytes() + at, &piece)?;
            }
            at = next;
        }
        Ok(())
    }

    /// What bytes of a new block hold that are not written; less at the end, where the data device keeps what it has.
    fn filling(&self, target: Target<'_>, step: &Step, origin: Origin, range: Range<u64>) -> Result<Vec<u8>> {
        let bytes = self.block_size.bytes();
        let mut piece = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
        match origin {
            Origin::Copy(source) => self.read_data(source.0 * bytes + range.start, &mut piece)?,
            Origin::Unmapped => {
                let present = target.read_origin(step.piece.block.0 * bytes + range.start, &mut piece)?;
                if self.table().features.skip_block_zeroing {
                    piece.truncate(present);
                }
            }
        }
        Ok(piece)
    }

    /// Maps the new blocks, when they hold their data, and lets go of them: by then they are counted, or free again.
    fn map_new(&self, id: DeviceId, steps: &[Step], written: Result<()>) -> Result<()> {
        let new = || steps.iter().filter(|step| step.new.is_some());
        if new().next().is_none() {
            return written;
        }
        let mut state = self.changing();
        let mapped = written.and_then(|()| {
            state.check_writable()?;
            state.check_present(id)?;
            state.guarded(|metadata| {
                new().try_for_each(|step| metadata.insert_mapping(id, step.piece.block, step.target))
            })
        });
        let (_, data) = state.metadata.data_mut();
        new().for_each(|step| data.release(step.target.0, step.target.0 + 1));
        mapped
    }
}

impl State {
    fn find_free(&mut self, count: usize) -> Result<Vec<DataBlock>> {
        self.check_writable()?;
        self.check_room()?;
        self.check_low_water();
        let (store, data) = self.metadata.data_mut();
        let mut found = Vec::with_capacity(count);
        let error = loop {
            if found.len() == count {
                return Ok(found);
            }
            match data.find_free(store) {
                Ok(Some(block)) => found.push(block),
                Ok(None) => {
                    break PoolError::NoSpaceData { used: data.nr_allocated(), total: data.nr_blocks() };
                }
                Err(error) => break error.into(),
            }
        };
        found.iter().for_each(|block: &DataBlock| data.release(block.0, block.0 + 1));
        Err(error)
    }
}

/// Whether a device shares a mapped block with a snapshot: it was mapped before the device's last snapshot was taken. A block
/// may count as shared that no longer is; then it is copied once more, and its new mapping has the present time.
fn is_shared(device: &DeviceInfo, mapped: MappedBlock) -> bool {
    device.details.snapshotted_time > mapped.time
}

fn in_place(device: &DeviceInfo, mappings: &[Option<MappedBlock>]) -> bool {
    mappings.iter().all(|mapped| mapped.is_some_and(|mapped| !is_shared(device, mapped)))
}
