//! Scenarios over the real pool.
