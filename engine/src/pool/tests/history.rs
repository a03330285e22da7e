//! A naive model of a pool that remembers every state it was in, and what of it was promised.
//!
//! A [`Recorder`] carries out operations on a pool and on the model, on devices that record. After a crash the pool must be
//! in one of the states since the last one that was acknowledged. All bytes say who wrote them, so that a block that
//! reads as neither old nor new is found out.
//!
//! | part | what it is |
//! |---|---|
//! | [`stamps`] | the bytes of a write: operation and place, every 256 bytes |
//! | [`state`] | what a pool holds, and how operations change it |
//! | [`operation`] | operations, random ones, and how a pool carries them out |
//! | [`picture`] | what a real pool holds, held against a state |
//! | [`recording`] | all of this together |

pub(super) mod operation;
pub(super) mod picture;
pub(super) mod recording;
pub(super) mod stamps;
pub(super) mod state;
