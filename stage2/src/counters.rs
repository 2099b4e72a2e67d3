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

impl Counters {
    pub(crate) const NONE: Self = Self {
        give: Cost::NONE,
        recall: Cost::NONE,
        last_give: Cost::NONE,
        last_recall: Cost::NONE,
        pages_shared: 0,
        splits: 0,
        coalesces: 0,
        tlbi_count: 0,
    };
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

/// Parts of a transition's cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    #[default]
    Validate,
    Tables,
    Tlbi,
    Scrub,
}

/// Splits the ticks of a transition into parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Meter {
    cost: Cost,
    part: Part,
    since: u64,
}

impl Meter {
    /// Between transitions.
    pub const IDLE: Self = Self { cost: Cost::NONE, part: Part::Validate, since: 0 };

    /// Starts in [`Part::Validate`].
    pub fn start(now: u64) -> Self {
        Self { since: now, ..Self::default() }
    }

    /// Goes on with another part; returns the one that ended.
    pub fn switch(&mut self, now: u64, part: Part) -> Part {
        let ticks = now.saturating_sub(self.since);
        let sum = match self.part {
            Part::Validate => &mut self.cost.validate,
            Part::Tables => &mut self.cost.tables,
            Part::Tlbi => &mut self.cost.tlbi,
            Part::Scrub => &mut self.cost.scrub,
        };
        *sum = sum.saturating_add(ticks);
        self.since = now;
        core::mem::replace(&mut self.part, part)
    }

    /// Ends a successful transition.
    pub fn end(&mut self, now: u64, pages: u64) -> Cost {
        self.switch(now, Part::Validate);
        Cost { calls: 1, pages, ..self.cost }
    }
}

impl Cost {
    const NONE: Self = Self { calls: 0, pages: 0, validate: 0, tables: 0, tlbi: 0, scrub: 0 };

    /// Adds another cost.
    pub(crate) fn add(&mut self, other: Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.pages = self.pages.saturating_add(other.pages);
        self.validate = self.validate.saturating_add(other.validate);
        self.tables = self.tables.saturating_add(other.tables);
        self.tlbi = self.tlbi.saturating_add(other.tlbi);
        self.scrub = self.scrub.saturating_add(other.scrub);
    }
}
