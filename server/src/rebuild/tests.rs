//! Rebuilt catalogues against those that were there.

mod equality;
mod incomplete;
mod losses;
mod world;
