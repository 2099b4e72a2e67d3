//! Tests on the fake machine. [`audit`] compares all trees, records, counts and TLBs with each other after every step.

mod audit;
mod boot;
mod explore;
mod knobs;
mod matrix;
mod property;
mod streams;
mod transitions;

use crate::fake::{FakeMachine, secret, secret_owner};
use crate::*;

pub use audit::audit;

/// 1 GiB of RAM, one block.
pub const RAM: u64 = 0x4000_0000;
/// 6 MiB and 3 pages of RAM.
pub const RAM_SMALL: u64 = 0x8200_0000;
pub const RAM_SMALL_SIZE: u64 = 0x60_3000;
/// 2 MiB and a page of device registers.
pub const DEVICE: u64 = 0x0900_0000;
/// The hypervisor: roots, then table pages.
pub const HYP: u64 = 0x8000_0000;
pub const HYP_SIZE: u64 = 0x20_0000;
const TABLES: u64 = HYP + 0x10_0000;
/// Nobody's.
pub const ABSENT: u64 = 0x1000_0000;

pub const RESERVE: u64 = 4;
pub const MIB2: u64 = 0x20_0000;

/// A machine and its owner.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World {
    pub fm: FlexMem,
    pub m: FakeMachine,
}

pub fn slot(index: usize) -> Slot {
    Slot::new(index).unwrap()
}

pub fn range(base: u64, page_count: u64) -> PageRange {
    PageRange::new(Pa(base), page_count).unwrap()
}

impl World {
    /// Nothing mapped, `own_tables` table pages.
    pub fn bare(own_tables: u64) -> Self {
        let roots = std::array::from_fn(|i| Pa(HYP + 0x4000 + 0x4000 * i as u64));
        let mut w =
            Self { fm: FlexMem::new(Pa(HYP), roots, RESERVE), m: FakeMachine::new(2, Pa(HYP), roots) };
        // Whatever was in memory before: only the host's root has to be zero.
        for garbage in roots.iter().flat_map(|root| (0..4).map(|page| root.0 + page * PAGE_SIZE)) {
            w.m.write_page(Pa(garbage), &[0xff; 4096]);
        }
        for i in 0..own_tables {
            w.m.write_page(Pa(TABLES + i * PAGE_SIZE), &[0xff; 4096]);
            w.fm.boot_donate_table(&mut w.m, Pa(TABLES + i * PAGE_SIZE)).unwrap();
        }
        w
    }

    /// RAM, devices and the hypervisor's record in place, partitions 0 and 1 created.
    pub fn booted(own_tables: u64) -> Self {
        let mut w = Self::bare(own_tables);
        w.fm.boot_map_host(&mut w.m, Pa(RAM), 1 << 30, HostMemory::Ram).unwrap();
        w.fm.boot_map_host(&mut w.m, Pa(RAM_SMALL), RAM_SMALL_SIZE, HostMemory::Ram).unwrap();
        w.fm.boot_map_host(&mut w.m, Pa(DEVICE), MIB2 + PAGE_SIZE, HostMemory::Device).unwrap();
        w.fm.boot_reserve(&mut w.m, Pa(HYP), HYP_SIZE).unwrap();
        for index in 0..2 {
            w.fm.partition_create(&mut w.m, slot(index)).unwrap();
        }
        w.check();
        w
    }

    /// Nothing broken, all records agree.
    pub fn check(&mut self) {
        self.m.quiesce();
        assert_eq!(self.m.violations, Vec::<String>::new());
        audit(&self.fm, &self.m).unwrap();
    }

    pub fn give(&mut self, s: usize, ranges: &[PageRange], ipa: u64) -> Result<u64, Error> {
        self.give_with(s, ranges, ipa, Access::ReadWrite, Fill::Zero)
    }

    pub fn give_with(
        &mut self,
        s: usize,
        ranges: &[PageRange],
        ipa: u64,
        access: Access,
        fill: Fill,
    ) -> Result<u64, Error> {
        self.fm.host_give_partition(&mut self.m, slot(s), ranges, Ipa(ipa), access, fill)
    }

    pub fn recall(&mut self, s: usize, ipa: u64, page_count: u64) -> Result<u64, Error> {
        self.fm.host_recall_partition(&mut self.m, slot(s), Ipa(ipa), page_count)
    }

    pub fn destroy(&mut self, s: usize, max_pages: u64) -> Result<u64, Error> {
        self.fm.partition_destroy(&mut self.m, slot(s), max_pages)
    }

    pub fn share(&mut self, s: usize, ipa: u64) -> Result<(), Error> {
        self.fm.partition_share_host(&mut self.m, slot(s), Ipa(ipa))
    }

    pub fn unshare(&mut self, s: usize, ipa: u64) -> Result<(), Error> {
        self.fm.partition_unshare_host(&mut self.m, slot(s), Ipa(ipa))
    }

    pub fn state(&self, pa: u64) -> PageState {
        self.fm.host_state(&self.m, Pa(pa))
    }

    pub fn pages_of(&self, s: usize) -> Vec<PartitionPage> {
        let (mut pages, mut from) = (Vec::new(), Ipa(0));
        while let Some(page) = self.fm.next_partition_page(&self.m, slot(s), from) {
            pages.push(page);
            from = Ipa(page.ipa.0 + PAGE_SIZE);
        }
        pages
    }

    /// Every partition writes its secret wherever it can write alone, through the cache.
    pub fn write_secrets(&mut self) {
        for s in 0..MAX_PARTITIONS {
            for page in self.pages_of(s) {
                // What is borrowed by one alone is as secret as what is owned.
                let alone = !page.loaned && (!page.borrowed || self.is_lent_to_one(page.pa));
                if page.access == Access::ReadWrite && !page.shared && alone {
                    assert!(self.m.write(0, slot(s).vmid(), page.ipa, secret(slot(s))));
                }
            }
        }
    }

    /// Whether a page is lent, to one borrower.
    fn is_lent_to_one(&self, pa: Pa) -> bool {
        let loans = (0..MAX_LOANS).filter_map(LoanId::new).filter_map(|id| self.fm.loan(id));
        loans.into_iter().any(|loan| {
            let mut found = false;
            let find = |_: &mut FlexMem, _: &mut FakeMachine, page: loans::LoanPage| {
                found |= page.pa == pa.0;
                Ok(())
            };
            self.fm.clone().each_page(&mut self.m.clone(), loan, find).unwrap();
            found && loan.kind == Some(LoanKind::Lend) && loan.borrowers.iter().flatten().count() == 1
        })
    }

    /// A loan of the host's.
    pub fn host_send(&mut self, ranges: &[PageRange], kind: LoanKind) -> Result<LoanId, Error> {
        self.send(Party::Host, ranges, kind, false)
    }

    /// A loan: listed, sent, and forgotten if that fails.
    pub fn send(
        &mut self,
        lender: Party,
        ranges: &[PageRange],
        kind: LoanKind,
        zero: bool,
    ) -> Result<LoanId, Error> {
        let id = self.fm.list_begin(&mut self.m, lender)?;
        let listed = ranges.iter().try_for_each(|range| self.fm.list_push(&mut self.m, id, *range));
        let sent = listed.and_then(|()| match lender {
            Party::Host => self.fm.host_send(&mut self.m, id, kind, zero),
            Party::Partition(slot) => self.fm.partition_send(&mut self.m, id, slot, kind, zero),
        });
        if let Err(error) = sent {
            self.fm.list_abort(&mut self.m, id).unwrap();
            return Err(error);
        }
        Ok(id)
    }

    pub fn retrieve(&mut self, id: LoanId, s: usize, ipa: u64) -> Result<(), Error> {
        self.fm.partition_retrieve(&mut self.m, id, slot(s), Ipa(ipa), Access::ReadWrite)
    }

    pub fn relinquish(&mut self, id: LoanId, s: usize) -> Result<(), Error> {
        self.fm.relinquish(&mut self.m, id, Party::Partition(slot(s)), false)
    }

    pub fn reclaim(&mut self, id: LoanId) -> Result<(), Error> {
        self.fm.reclaim(&mut self.m, id, false)
    }

    /// Whether the host can read a partition's secret in one of these pages, on any core, with any attribute.
    pub fn host_reads_secret(&mut self, pages: impl IntoIterator<Item = u64>) -> bool {
        pages.into_iter().any(|page| {
            [(0, true), (0, false), (1, true), (1, false)].into_iter().any(|(core, cacheable)| {
                self.m.read(core, HOST_VMID, Ipa(page), cacheable).and_then(secret_owner).is_some()
            })
        })
    }

    /// Runs what must be refused, and asserts that nothing has changed.
    pub fn refused<T: std::fmt::Debug>(
        &mut self,
        error: Error,
        call: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) {
        let mut before = self.clone();
        let result = call(self);
        assert_eq!(result.err(), Some(error));
        for w in [&mut before, self] {
            w.fm.meter = counters::Meter::IDLE;
        }
        assert!(before == *self, "a refused call changed something");
    }
}
