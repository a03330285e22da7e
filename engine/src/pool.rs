//! The thin pool.

mod error;

pub use self::error::PoolError;
