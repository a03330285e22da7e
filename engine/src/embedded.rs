//! A pool in a directory.
