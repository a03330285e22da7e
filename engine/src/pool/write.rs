//! Writing: in place where a device alone has a block, else to a new block.

use crate::format::{DataBlock, DeviceId, DeviceInfo, MappedBlock};

use super::io::Piece;
use super::traffic::Purpose;
use super::{Pool, PoolError, Result, State};

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
    Zeroes,
    Copy(DataBlock),
}

impl Pool {
    /// Writes to a thin device. Blocks are provided as needed; a block that a snapshot shares is written to a new place. The
    /// write is durable after the next commit.
    ///
    /// # Errors
    /// [`PoolError::NoSpaceData`], [`PoolError::NoSpaceMetadata`], [`PoolError::NoSuchDevice`],
    /// [`PoolError::ReadOnlyMode`], [`PoolError::OutOfRange`], failures of the devices. A failed write may have
    /// written some of its blocks.
    pub fn write(&self, id: DeviceId, offset: u64, buf: &[u8]) -> Result<()> {
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let (batch, tail) = rest.split_at(self.batch_length(at, rest.len()));
            self.write_batch(id, at, batch)?;
            rest = tail;
            at += batch.len() as u64;
        }
        Ok(())
    }

    fn write_batch(&self, id: DeviceId, offset: u64, buf: &[u8]) -> Result<()> {
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
                return self.transfer(&steps.collect::<Vec<_>>(), buf);
            }
        }
        let passage = self.traffic.enter(id, blocks, Purpose::Exclusive);
        let (device, mappings) = self.look_up(id, first, last)?;
        let pieces: Vec<_> = self.pieces(offset, buf.len()).zip(mappings).collect();
        let steps = self.plan(&device, &pieces)?;
        let written = self.transfer(&steps, buf).and_then(|()| self.map_new(id, &steps));
        self.release_new(&steps);
        drop(passage);
        written?;
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
            let origin = mapped.map_or(Origin::Zeroes, |mapped| Origin::Copy(mapped.data_block));
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
            let found = self.state.write().find_free(count);
            match found {
                // What the open transaction freed can be used after it, and what a commit is discarding after that.
                Err(PoolError::NoSpaceData { .. } | PoolError::NoSpaceMetadata { .. }) => self.commit()?,
                other => return other,
            }
        }
        let mut state = self.state.write();
        let found = state.find_free(count);
        state.out_of_data |= matches!(found, Err(PoolError::NoSpaceData { .. }));
        found
    }

    /// Writes the data: new blocks as wholes, neighbouring targets together.
    fn transfer(&self, steps: &[Step], buf: &[u8]) -> Result<()> {
        let bytes = self.block_size.bytes();
        let mut rest = buf;
        let mut run: (u64, usize) = (0, 0);
        for step in steps {
            let Piece { within, length, .. } = step.piece;
            let place = step.target.0 * bytes + within;
            if let Some(origin) = step.new {
                self.fill(origin, step.target, 0, within)?;
                self.fill(origin, step.target, within + length as u64, bytes)?;
            }
            if run.1 > 0 && run.0 + run.1 as u64 != place {
                let (data, tail) = rest.split_at(run.1.min(rest.len()));
                self.write_data(run.0, data)?;
                rest = tail;
                run.1 = 0;
            }
            if run.1 == 0 {
                run.0 = place;
            }
            run.1 += length;
        }
        self.write_data(run.0, rest)
    }

    /// Fills bytes `begin..end` of a new block that are not written.
    fn fill(&self, origin: Origin, target: DataBlock, begin: u64, end: u64) -> Result<()> {
        let bytes = self.block_size.bytes();
        let mut at = begin;
        while at < end {
            let length = FILL_BYTES.min(end - at);
            let mut piece = vec![0; usize::try_from(length).unwrap_or(0)];
            if let Origin::Copy(source) = origin {
                self.read_data(source.0 * bytes + at, &mut piece)?;
            }
            self.write_data(target.0 * bytes + at, &piece)?;
            at += length;
        }
        Ok(())
    }

    /// Maps the new blocks, which hold their data by now.
    fn map_new(&self, id: DeviceId, steps: &[Step]) -> Result<()> {
        let mut state = self.state.write();
        state.check_writable()?;
        state.check_present(id)?;
        state.guarded(|metadata| {
            let new = steps.iter().filter(|step| step.new.is_some());
            new.into_iter().try_for_each(|step| metadata.insert_mapping(id, step.piece.block, step.target))
        })
    }

    /// Lets go of the new blocks: by now they are mapped and counted, or free again.
    fn release_new(&self, steps: &[Step]) {
        if steps.iter().all(|step| step.new.is_none()) {
            return;
        }
        let mut state = self.state.write();
        let (_, data) = state.metadata.data_mut();
        let new = steps.iter().filter(|step| step.new.is_some());
        new.for_each(|step| data.release(step.target.0, step.target.0 + 1));
    }
}

impl State {
    fn find_free(&mut self, count: usize) -> Result<Vec<DataBlock>> {
        self.check_writable()?;
        self.check_room()?;
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
