//! Transactions by shadowing, space maps with reference counts, and B-trees.
