//! Single decoders: whatever one accepts, its encoder writes again, byte for byte.

use thinbak_proto::{FAN_OUT, MapNode};

use super::Input;
use crate::{
    manifest::{Manifest, Tombstone},
    store,
};

/// `[which] [bytes]`.
pub fn values(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => {
            if let Ok(node) = MapNode::decode(input.rest()) {
                assert_eq!(node.encode(), &data[1..], "a map node has one encoding");
                assert_eq!(node.slots().len(), FAN_OUT);
            }
        }
        1 => again::<Manifest>(input.rest()),
        2 => again::<Tombstone>(input.rest()),
        _ => store::fuzzing::values(&mut input),
    }
}

/// Protocol buffers have many encodings of one message, but what was written again reads the same.
fn again<M: prost::Message + Default + PartialEq>(bytes: &[u8]) {
    let Ok(message) = M::decode(bytes) else { return };
    let encoded = message.encode_to_vec();
    // Compared by their encodings: not a number is not equal to itself.
    let again = M::decode(&*encoded).map(|message| message.encode_to_vec());
    assert_eq!(again.ok(), Some(encoded));
}
