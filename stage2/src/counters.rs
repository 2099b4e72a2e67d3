//! What is counted, and what it cost.

/// Costs of one kind of transition in ticks of [`crate::Machine::ticks`], by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cost {
    /// Calls that succeeded.
    pub calls: u64,
    /// Pages moved.
    pub pages: u64,
    /// Validation and planning.
    pub validate: u64,
    /// Ownership records and table writes, splits and merges included.
    pub tables: u64,
    /// TLB invalidation.
    pub tlbi: u64,
    /// Zeroing and cleaning.
    pub scrub: u64,
}

/// Counters since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counters {
    /// Gives to partitions; `pages` counts what they moved.
    pub give: Cost,
    /// Recalls and destroys; `pages` counts what came back.
    pub recall: Cost,
    /// The last give.
    pub last_give: Cost,
    /// The last recall or destroy step.
    pub last_recall: Cost,
    /// Pages that partitions share with the host now.
    pub pages_shared: u64,
    /// Blocks split.
    pub splits: u64,
    /// Blocks made whole again.
    pub coalesces: u64,
    /// TLB invalidations asked for.
    pub tlbi_count: u64,
}

/// How memory is mapped now. Kept up to date by every transition: reading it walks nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Census {
    /// Valid 1 GiB entries of the host's tree.
    pub leaves_1g: u64,
    /// Valid 2 MiB entries of the host's tree.
    pub leaves_2m: u64,
    /// Valid 4 KiB entries of the host's tree.
    pub leaves_4k: u64,
    /// Table pages in use, roots excluded.
    pub tables_used: u64,
    /// Table pages free, the promised and the reserved ones included.
    pub tables_free: u64,
    /// Of the free ones, those promised to split partitions' blocks on recall.
    pub tables_promised: u64,
    /// Table pages that came from the host, used or free.
    pub tables_from_host: u64,
}
