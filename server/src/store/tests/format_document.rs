//! The tables of `FORMAT.md` against what the code writes.
