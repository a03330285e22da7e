//! The dm-thin on-disk format, and a thin pool in user space.
