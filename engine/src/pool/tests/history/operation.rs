//! What is done to a pool.

use std::ops::Range;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;

use super::super::{BLOCK, id};
use super::stamps::{self, GRANULE, GRANULES};
use super::state::State;
use crate::{Operation, Pool, PoolError};

#[derive(Clone, Debug)]
pub(crate) enum Op {
    CreateThin(u64),
    CreateSnap {
        new: u64,
        origin: u64,
    },
    Delete(u64),
    Write {
        device: u64,
        granules: Range<u64>,
    },
    Discard {
        device: u64,
        granules: Range<u64>,
    },
    Read {
        device: u64,
        block: u64,
    },
    SetTransactionId(u64),
    /// Those that concern devices and the transaction id, in one.
    Apply(Vec<Op>),
    Commit,
    Reserve,
    Release,
    /// To so many data blocks.
    Grow(u64),
}

impl Op {
    /// Whether its success acknowledges everything before it.
    pub(crate) fn acknowledges(&self) -> bool {
        matches!(self, Self::Apply(_) | Self::Commit | Self::Reserve | Self::Release | Self::Grow(_))
    }

    fn as_operation(&self, transaction_id: u64) -> Operation {
        match *self {
            Self::CreateThin(new) => Operation::CreateThin(id(new)),
            Self::CreateSnap { new, origin } => Operation::CreateSnap { new: id(new), origin: id(origin) },
            Self::Delete(old) => Operation::Delete(id(old)),
            Self::SetTransactionId(new) => Operation::SetTransactionId { old: transaction_id, new },
            _ => panic!("{self:?} cannot be applied"),
        }
    }

    /// Does it. What is read is held against the state before; a data device that grows has grown already.
    pub(crate) fn perform(&self, pool: &Pool, state: &State, stamp: u32) -> Result<(), PoolError> {
        let range =
            |granules: &Range<u64>| (granules.start * GRANULE, (granules.end - granules.start) * GRANULE);
        match self {
            Self::CreateThin(new) => pool.create_thin(id(*new)),
            Self::CreateSnap { new, origin } => pool.create_snap(id(*new), id(*origin)),
            Self::Delete(old) => pool.delete(id(*old)),
            Self::Write { device, granules } => {
                pool.write(id(*device), range(granules).0, &stamps::bytes(granules.clone(), stamp))
            }
            Self::Discard { device, granules } => {
                let (offset, len) = range(granules);
                pool.discard(id(*device), offset, len)
            }
            Self::Read { device, block } => {
                let mut bytes = vec![0xEE; BLOCK as usize];
                pool.read(id(*device), block * BLOCK, &mut bytes)?;
                let found = stamps::stamps(*block, &bytes).unwrap();
                let cell = state.devices[device].cells.get(block);
                let expected = cell.map_or([0; GRANULES as usize], |cell| *cell.stamps);
                assert_eq!(found, expected, "device {device}, block {block}");
                Ok(())
            }
            Self::SetTransactionId(new) => pool.set_transaction_id(state.transaction_id, *new),
            Self::Apply(ops) => {
                let ops: Vec<_> = ops.iter().map(|op| op.as_operation(state.transaction_id)).collect();
                pool.apply(&ops)
            }
            Self::Commit => pool.commit(),
            Self::Reserve => pool.reserve_metadata_snap(),
            Self::Release => pool.release_metadata_snap(),
            Self::Grow(blocks) => pool.grow_data(blocks * BLOCK),
        }
    }
}

/// What a random workload is made of.
#[derive(Clone, Debug)]
pub(crate) struct Mix {
    /// Devices at most.
    pub(crate) devices: u64,
    /// Virtual blocks of a device.
    pub(crate) blocks: u64,
    /// Data blocks that the pool may grow to.
    pub(crate) data_blocks: u64,
}

impl Mix {
    /// Trees of one node, all of whose data are looked at after each crash.
    pub(crate) const NARROW: Self = Self { devices: 10, blocks: 24, data_blocks: 240 };
    /// Trees that are split and merged.
    pub(crate) const WIDE: Self = Self { devices: 6, blocks: 900, data_blocks: 2500 };

    /// Something that the pool should be able to do.
    pub(crate) fn random_op(&self, state: &State, rng: &mut StdRng) -> Op {
        let new = rng.random_range(0..2 * self.devices);
        let is_new = !state.devices.contains_key(&new);
        let Some(&device) = state.devices.keys().choose(rng) else { return Op::CreateThin(new) };
        let room = is_new && (state.devices.len() as u64) < self.devices;
        match rng.random_range(0..100) {
            0..=3 if room => Op::CreateThin(new),
            4..=12 if room => Op::CreateSnap { new, origin: device },
            4..=12 if !is_new => Op::Delete(new),
            13..=22 => Op::Discard { device, granules: self.granules(rng, self.blocks.min(40)) },
            23..=36 => Op::Commit,
            37..=38 => Op::SetTransactionId(state.transaction_id + rng.random_range(1..1 << 33)),
            39..=41 if room => {
                let snapshot = Op::CreateSnap { new, origin: device };
                Op::Apply(vec![snapshot, Op::SetTransactionId(state.transaction_id + 1)])
            }
            39..=41 => Op::Apply(vec![Op::Delete(device), Op::SetTransactionId(state.transaction_id + 1)]),
            42..=44 if state.held.is_some() => Op::Release,
            42..=43 => Op::Reserve,
            45 if state.data_blocks < self.data_blocks => {
                Op::Grow(state.data_blocks + rng.random_range(1..20))
            }
            46..=50 => Op::Read { device, block: rng.random_range(0..self.blocks) },
            51..=70 => {
                // A part of a block.
                let first = rng.random_range(0..self.blocks * GRANULES - 64);
                Op::Write { device, granules: first..first + rng.random_range(1..64) }
            }
            71..=80 => {
                let first = rng.random_range(0..self.blocks - 3) * GRANULES;
                Op::Write { device, granules: first..first + rng.random_range(1..4) * GRANULES }
            }
            _ => Op::Write { device, granules: self.granules(rng, 4) },
        }
    }

    /// What makes room again.
    pub(crate) fn remedy(&self, state: &State, rng: &mut StdRng) -> Op {
        if state.data_blocks < self.data_blocks && rng.random_bool(0.5) {
            return Op::Grow(state.data_blocks + 10);
        }
        match state.devices.keys().choose(rng) {
            Some(&device) => Op::Delete(device),
            None => Op::Commit,
        }
    }

    /// A range of up to `most` blocks in length, of any parts.
    fn granules(&self, rng: &mut StdRng, most: u64) -> Range<u64> {
        let length = rng.random_range(1..most.min(self.blocks - 1) * GRANULES);
        let first = rng.random_range(0..self.blocks * GRANULES - length);
        first..first + length
    }
}

/// A device that was made for it, full of single granules: a tree of several nodes.
pub(crate) fn fill(device: u64, blocks: Range<u64>) -> impl Iterator<Item = Op> {
    let writes = blocks.map(move |block| {
        let first = block * GRANULES + block % GRANULES;
        Op::Write { device, granules: first..first + 1 }
    });
    std::iter::once(Op::CreateThin(device)).chain(writes)
}
