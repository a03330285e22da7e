//! Rebuilt catalogues against those that were there.

mod equality;
mod losses;
mod world;
