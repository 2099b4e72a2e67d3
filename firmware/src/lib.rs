//! Boot bundle packing.
