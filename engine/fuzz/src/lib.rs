//! What the fuzz targets share: small valid images, and edits of them that keep every checksum right.
//!
//! A checksum stops a fuzzer at once. So an input is not an image but a list of edits of one; each block that was edited is
//! sealed again as the kind that it is.

pub mod edits;
pub mod exercise;
pub mod images;
