//! Table memory: free pages, chained through their first entry (which a late table walk reads as invalid).
//!
//! A free page is zero but for its link. Pages of the hypervisor's own budget are used first, so that the host's come
//! free again. A table that the host gave was free before the page it may now help to unmap was given: the table of a
//! block is older than each table page taken out of that block. So there are no cycles, and all of them come back.

use crate::{Error, Machine, Pa, STEP_PAGES};

/// A chain of free pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct List {
    head: u64,
    count: u64,
}

impl List {
    const EMPTY: Self = Self { head: 0, count: 0 };

    fn push<M: Machine>(&mut self, m: &mut M, page: Pa) {
        m.store(page, 0, self.head);
        *self = Self { head: page.0, count: self.count + 1 };
    }

    fn pop<M: Machine>(&mut self, m: &mut M) -> Option<Pa> {
        let count = self.count.checked_sub(1)?;
        let page = Pa(self.head);
        *self = Self { head: m.load(page, 0), count };
        m.store(page, 0, 0);
        Some(page)
    }
}

/// The pool of table pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pool {
    own: List,
    from_host: List,
    /// Pages in the pool or in use.
    pub total: u64,
    /// Of these, the ones that the host gave.
    pub total_from_host: u64,
    /// Free pages that recalls may need to split partitions' blocks.
    pub promised: u64,
    /// Free pages that only `host_give_tables` may use.
    reserve: u64,
}

impl Pool {
    pub const fn new(reserve: u64) -> Self {
        let (own, from_host) = (List::EMPTY, List::EMPTY);
        Self { own, from_host, total: 0, total_from_host: 0, promised: 0, reserve }
    }

    /// Free pages.
    pub fn free(&self) -> u64 {
        self.own.count + self.from_host.count
    }

    /// Free pages that are not promised.
    pub fn spare(&self) -> u64 {
        self.free().saturating_sub(self.promised)
    }

    /// Checks that a transition other than `host_give_tables` may use `count` pages. The pages asked for include what
    /// taking them out of the host's blocks can cost: 4 tables per run of 512 pages.
    pub fn check(&self, count: u64) -> Result<(), Error> {
        match (count + self.reserve).checked_sub(self.spare()) {
            None | Some(0) => Ok(()),
            Some(missing) => Err(Error::NoTables { needed: missing + 4 * (missing / (STEP_PAGES - 12) + 1) }),
        }
    }

    /// Adds a zeroed page.
    pub fn add<M: Machine>(&mut self, m: &mut M, page: Pa, from_host: bool) {
        self.total += 1;
        self.total_from_host += u64::from(from_host);
        self.put(m, page, from_host);
    }

    /// Puts a page back that [`Self::take`] gave out, zeroed.
    pub fn put<M: Machine>(&mut self, m: &mut M, page: Pa, from_host: bool) {
        if from_host { self.from_host.push(m, page) } else { self.own.push(m, page) }
    }

    /// Takes a page for use as a table; it is zero. `None` only if a check was forgotten.
    pub fn take<M: Machine>(&mut self, m: &mut M) -> Option<Pa> {
        self.own.pop(m).or_else(|| self.from_host.pop(m))
    }

    /// Takes a page out of the pool for good, to go back to the host; it is zero.
    pub fn remove<M: Machine>(&mut self, m: &mut M) -> Option<Pa> {
        if self.spare() <= self.reserve {
            return None;
        }
        let page = self.from_host.pop(m)?;
        self.total = self.total.saturating_sub(1);
        self.total_from_host = self.total_from_host.saturating_sub(1);
        Some(page)
    }
}

#[cfg(test)]
impl Pool {
    /// The free pages, and whether the host gave them.
    pub fn free_pages<M: Machine>(&self, m: &M) -> std::vec::Vec<(u64, bool)> {
        let chain = |list: List, from_host| {
            let next = |&page: &u64| Some(m.load(Pa(page), 0));
            std::iter::successors(Some(list.head), next)
                .take(list.count as usize)
                .map(move |page| (page, from_host))
        };
        chain(self.own, false).chain(chain(self.from_host, true)).collect()
    }
}
