//! The window: registers of the one device that changes hands, the NPU.
//!
//! Its two tables are made at boot and hang below one root entry of the owner's tree, so that a change of owner is two stores
//! and two invalidations, whatever the size of either side's memory, and cannot fail for lack of tables. No stream walks it
//! (`Tree::stream_root`). The owner of the window is policy's to remember.

use crate::desc::Desc;
use crate::walk::{self, LAST_LEVEL, PARTITION_END, Tree};
use crate::{Error, FlexMem, HostMemory, Ipa, Machine, PAGE_SIZE, Pa, PageRange, Party};

/// Where the window lies, the same for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    range: PageRange,
    table: Pa,
}

impl Window {
    /// The registers.
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// Where a party sees them: the host where they are, a partition at the same offset in its first GiB of devices.
    pub fn ipa(&self, party: Party) -> Ipa {
        let base = self.range.base().0;
        match party {
            Party::Host => Ipa(base),
            Party::Partition(_) => Ipa(PARTITION_END + (base - walk::align(base, 1))),
        }
    }
}

impl Window {
    /// Whether a party sees a register at `ipa` while the window is open to it.
    pub fn holds(&self, party: Party, ipa: u64) -> bool {
        ipa.wrapping_sub(self.ipa(party).0) < self.range.page_count() * PAGE_SIZE
    }
}

impl FlexMem {
    /// Boot: makes the window, closed to everybody. Its GiB must hold nothing else of the host's, its pages lie in one
    /// 2 MiB, and `tables` are two pages of the hypervisor's.
    pub fn boot_window<M: Machine>(
        &mut self,
        m: &mut M,
        range: PageRange,
        tables: [Pa; 2],
    ) -> Result<Window, Error> {
        let base = range.base().0;
        let (start, last) = (walk::align(base, 1), range.end().0 - PAGE_SIZE);
        let root = self.host.root;
        if walk::align(base, 2) != walk::align(last, 2) {
            return Err(Error::InvalidRange);
        }
        if Desc(m.load(root, walk::index(base, 1))) != Desc::ABSENT || self.window.is_some() {
            return Err(Error::Overlap { pa: Pa(start) });
        }
        self.boot_hide_from_streams(m, range.base(), range.page_count() * PAGE_SIZE)?;
        let [upper, lower] = tables;
        tables.iter().for_each(|table| m.zero(*table));
        for page in range.pages() {
            let leaf = Desc::host(page.0, LAST_LEVEL, HostMemory::Device);
            m.store(lower, walk::index(page.0, LAST_LEVEL), leaf.0);
        }
        m.store(upper, walk::index(base, 2), Desc::table(lower).0);
        let window = Window { range, table: upper };
        self.window = Some(window);
        Ok(window)
    }

    /// The window, if there is one.
    pub fn window(&self) -> Option<Window> {
        self.window
    }

    /// Lets a party reach the window; the caller has closed it to everybody else.
    pub fn window_open<M: Machine>(&mut self, m: &mut M, party: Party) -> Result<(), Error> {
        let (window, tree, index) = self.window_entry(party)?;
        m.store(tree.root, index, Desc::table(window.table).0);
        Ok(())
    }

    /// Takes the window away; complete on return. Does nothing for who does not have it.
    pub fn window_close<M: Machine>(&mut self, m: &mut M, party: Party) -> Result<(), Error> {
        let (_, tree, index) = self.window_entry(party)?;
        if !skips!(self, SkipWindowUnmap) {
            m.store(tree.root, index, Desc::ABSENT.0);
        }
        self.tlbi(m, tree, None);
        Ok(())
    }

    fn window_entry(&self, party: Party) -> Result<(Window, Tree, usize), Error> {
        let window = self.window.ok_or(Error::NoSuchPartition)?;
        let tree = self.tree_of(party)?;
        Ok((window, tree, walk::index(window.ipa(party).0, 1)))
    }
}
