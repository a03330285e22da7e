//! Points between the engine's form and the wire's.

use thinbak_engine::Point;
use thinbak_proto::{
    Failed, FailureKind,
    v1::{self, Generation},
};

/// The engine's point as it travels and is recorded with a generation.
pub(super) fn to_wire(point: &Point) -> v1::Point {
    v1::Point {
        identity: point.identity.to_string(),
        pool_uuid: point.pool_uuid.to_string(),
        device_id: u64::from(point.device_id.get()),
        transaction_id: point.transaction_id,
        created_at_ms: point.created_at_ms,
        size_bytes: point.size_bytes,
        block_bytes: point.block_bytes,
        mapped_blocks: point.mapped_blocks,
        root_block: point.root_block.0,
        root_checksum: point.root_checksum,
    }
}

/// The root of a generation's map, as a base has it.
pub(super) fn root_of(generation: &Generation) -> Result<[u8; 32], Failed> {
    <[u8; 32]>::try_from(&*generation.root).map_err(|_| {
        let len = generation.root.len();
        Failed::new(FailureKind::Failed, format!("the server answered with a root of {len} bytes"))
    })
}
