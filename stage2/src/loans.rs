//! Loans: what FF-A calls share, lend, donate, retrieve, relinquish and reclaim.
//!
//! A loan begins as a list (in a page of the table pool), is sent, borrowed and given back, and ends by its lender's reclaim,
//! by the retrieval of a donation, or with its lender. As everywhere: check, then a commit that cannot fail. Only list, send
//! (of the host's pages) and retrieve can lack table memory.

use crate::counters::{Meter, Part};
use crate::desc::Desc;
use crate::transitions::{Flush, partition_range};
use crate::walk::{self, LAST_LEVEL, Tree};
use crate::{
    Access, Error, FlexMem, Ipa, LoanId, LoanKind, MAX_BORROWERS, Machine, PAGE_SIZE, Pa, PageRange, Party,
    STEP_PAGES, Slot,
};

/// A loan. Guarded by the lock around [`FlexMem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Loan {
    /// Whose pages they are.
    pub lender: Party,
    /// What the lender keeps; `None` until it is sent.
    pub kind: Option<LoanKind>,
    /// Pages in the list.
    pub page_count: u64,
    /// Ranges in the list.
    pub range_count: u16,
    /// One word a range: its address, and the pages in the low 12 bits. Addresses are the lender's.
    pub(crate) list: Pa,
    /// Whether anybody but its lender has ever had it.
    pub(crate) was_retrieved: bool,
    /// Who has it now, and a partition where. A partition has it contiguously, in the list's order.
    pub(crate) borrowers: [Option<(Party, Ipa)>; MAX_BORROWERS],
}

impl Loan {
    /// Range `index` of the list.
    fn range<M: Machine>(&self, m: &M, index: u16) -> PageRange {
        let word = m.load(self.list, usize::from(index) & (STEP_PAGES as usize - 1));
        PageRange::new(Pa(word & !(PAGE_SIZE - 1)), word & (PAGE_SIZE - 1)).unwrap_or(PageRange::EMPTY)
    }

    /// Whether anybody has it.
    pub fn is_borrowed(&self) -> bool {
        self.borrowers.iter().any(Option::is_some)
    }

    /// Where this borrower has it.
    pub(crate) fn place_of(&self, party: Party) -> Option<Ipa> {
        self.borrowers.iter().flatten().find(|borrower| borrower.0 == party).map(|borrower| borrower.1)
    }
}

/// A page of a loan.
pub(crate) struct LoanPage {
    /// Position in the list.
    pub index: u64,
    /// Address for the lender.
    pub at: u64,
    /// Address in memory.
    pub pa: u64,
}

/// Lists.
impl FlexMem {
    /// A loan that exists.
    pub fn loan(&self, id: LoanId) -> Option<&Loan> {
        self.loans.get(id.index())?.as_ref()
    }

    /// Begins an empty list.
    pub fn list_begin<M: Machine>(&mut self, m: &mut M, lender: Party) -> Result<LoanId, Error> {
        let free = self.loans.iter().position(Option::is_none).and_then(LoanId::new);
        let id = free.ok_or(Error::TooManyLoans)?;
        self.pool.check(1)?;
        let list = self.pool.take(m).ok_or(Error::Corrupted)?;
        let loan = Loan {
            lender,
            kind: None,
            page_count: 0,
            range_count: 0,
            list,
            was_retrieved: false,
            borrowers: [None; _],
        };
        self.put_loan(id, Some(loan));
        Ok(id)
    }

    /// Adds a range: the lender's addresses. At most 512 pages in all.
    pub fn list_push<M: Machine>(&mut self, m: &mut M, id: LoanId, range: PageRange) -> Result<(), Error> {
        let loan = self.loans.get_mut(id.index()).and_then(Option::as_mut);
        let loan = loan.filter(|loan| loan.kind.is_none()).ok_or(Error::NoSuchLoan)?;
        if range.page_count() == 0 {
            return Err(Error::InvalidRange);
        }
        let page_count = loan.page_count.saturating_add(range.page_count());
        // Each range has a page, so the list's page holds them all.
        if page_count > STEP_PAGES {
            return Err(Error::TooMany);
        }
        m.store(loan.list, usize::from(loan.range_count), range.base().0 | range.page_count());
        loan.range_count += 1;
        loan.page_count = page_count;
        Ok(())
    }

    /// Forgets a list that was not sent.
    pub fn list_abort<M: Machine>(&mut self, m: &mut M, id: LoanId) -> Result<(), Error> {
        let loan = *self.loan(id).filter(|loan| loan.kind.is_none()).ok_or(Error::NoSuchLoan)?;
        self.free_loan(m, id, &loan);
        Ok(())
    }

    /// The longest run of physically contiguous pages that begins with page `from` of a sent loan.
    pub fn loan_run<M: Machine>(&self, m: &M, id: LoanId, from: u64) -> Option<PageRange> {
        let loan = self.loan(id)?;
        let (mut run, mut index): (Option<PageRange>, u64) = (None, 0);
        for range in (0..loan.range_count).map(|i| loan.range(m, i)) {
            for at in range.pages() {
                index += 1;
                if index <= from {
                    continue;
                }
                let pa = Pa(self.loan_pa(m, loan, at.0));
                match &mut run {
                    None => run = PageRange::new(pa, 1).ok(),
                    Some(run) if run.end() == pa => {
                        run.extend(pa);
                    }
                    Some(_) => return run,
                }
            }
        }
        run
    }

    pub(crate) fn put_loan(&mut self, id: LoanId, loan: Option<Loan>) {
        if let Some(place) = self.loans.get_mut(id.index()) {
            *place = loan;
        }
    }

    pub(crate) fn free_loan<M: Machine>(&mut self, m: &mut M, id: LoanId, loan: &Loan) {
        m.zero(loan.list);
        self.free_table(m, loan.list);
        self.put_loan(id, None);
    }

    /// The tree of a partition, also of one that is being destroyed.
    pub(crate) fn tree(&self, slot: Slot) -> Result<Tree, Error> {
        Ok(self.partition(slot)?.tree)
    }

    /// Where a lender's page lies.
    fn loan_pa<M: Machine>(&self, m: &M, loan: &Loan, at: u64) -> u64 {
        let Party::Partition(slot) = loan.lender else { return at };
        let Ok(tree) = self.tree(slot) else { return at };
        let place = walk::find(m, tree.root, at);
        place.desc.address() + (at - walk::align(at, place.level))
    }

    /// Does something with each page, in the list's order.
    pub(crate) fn each_page<M: Machine>(
        &mut self,
        m: &mut M,
        loan: &Loan,
        mut act: impl FnMut(&mut Self, &mut M, LoanPage) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut index = 0;
        for i in 0..loan.range_count {
            for at in loan.range(m, i).pages() {
                let pa = self.loan_pa(m, loan, at.0);
                act(self, m, LoanPage { index, at: at.0, pa })?;
                index += 1;
            }
        }
        Ok(())
    }
}

/// Send.
impl FlexMem {
    /// A list that this lender may send now, and the order of its ranges by address; no page is in it twice.
    fn listed<M: Machine>(&self, m: &M, id: LoanId, lender: Party) -> Result<(Loan, [u16; 512]), Error> {
        let loan = *self.loan(id).filter(|loan| loan.kind.is_none()).ok_or(Error::NoSuchLoan)?;
        if loan.lender != lender {
            return Err(Error::NoSuchLoan);
        }
        if loan.page_count == 0 {
            return Err(Error::InvalidRange);
        }
        let mut order: [u16; 512] = core::array::from_fn(|i| i as u16);
        if let Some(order) = order.get_mut(..usize::from(loan.range_count)) {
            order.sort_unstable_by_key(|&i| loan.range(m, i).base());
        }
        let mut end = Pa(0);
        for range in order.iter().take(usize::from(loan.range_count)).map(|&i| loan.range(m, i)) {
            if range.base() < end && !skips!(self, SkipSendOverlapCheck) {
                return Err(Error::Overlap { pa: range.base() });
            }
            end = range.end();
        }
        Ok((loan, order))
    }

    /// Host: shares, lends or donates the pages of its list, with `zero` (not for a share) zeroed first. All or nothing.
    pub fn host_send<M: Machine>(
        &mut self,
        m: &mut M,
        id: LoanId,
        kind: LoanKind,
        zero: bool,
    ) -> Result<(), Error> {
        self.meter = Meter::start(m.ticks());
        let (loan, order) = self.listed(m, id, Party::Host)?;
        let (mut tables, mut last) = (0, None);
        for range in order.iter().take(usize::from(loan.range_count)).map(|&i| loan.range(m, i)) {
            if !skips!(self, SkipSendOwnershipCheck) {
                self.check_ram(m, range)?;
            }
            if !skips!(self, SkipSendPinCheck) {
                self.check_pins(range)?;
            }
            for (base, _) in walk::chunks(range) {
                tables += walk::tables_missing(m, self.host.root, base, last);
                last = Some(base);
            }
        }
        self.pool.check(tables)?;

        self.phase(m, Part::Tables);
        let mut flush = Flush::NONE;
        let kept = kind == LoanKind::Share || skips!(self, SkipLendUnmap);
        self.each_page(m, &loan, |this, m, page| {
            let mut place = this.split_to(m, this.host, page.pa, LAST_LEVEL)?;
            let record = if kept { Desc::host_loaned(page.pa) } else { Desc::LENT };
            this.set(m, this.host, &mut place, record);
            if kind != LoanKind::Share {
                flush.add(page.pa);
            }
            Ok(())
        })?;
        if kind != LoanKind::Share {
            flush.run(self, m, self.host);
        }
        self.scrub_pages(m, &loan, zero)?;
        self.put_loan(id, Some(Loan { kind: Some(kind), ..loan }));
        Ok(())
    }

    /// Partition: shares or lends pages of its own, private and read-write. All or nothing. Never needs table memory.
    /// The bytes in them become readable for those who retrieve them, the host too if it may retrieve.
    pub fn partition_send<M: Machine>(
        &mut self,
        m: &mut M,
        id: LoanId,
        slot: Slot,
        kind: LoanKind,
        zero: bool,
    ) -> Result<(), Error> {
        self.meter = Meter::start(m.ticks());
        let tree = self.live(slot)?;
        let (loan, _) = self.listed(m, id, Party::Partition(slot))?;
        self.each_page(m, &loan, |this, m, page| {
            let ipa = Ipa(page.at);
            let desc = walk::find(m, this.tree(slot)?.root, page.at).desc;
            match desc {
                _ if desc.is_loaned() || desc.is_borrowed() => Err(Error::Loaned { ipa }),
                _ if !desc.is_valid() => Err(Error::NotGiven { ipa }),
                _ if desc.access() != Access::ReadWrite => Err(Error::NotShareable { ipa }),
                _ if desc.is_shared() => Err(Error::AlreadyShared { ipa }),
                _ => Ok(()),
            }
        })?;
        if kind == LoanKind::Donate {
            return Err(Error::NoSuchLoan);
        }

        let mut flush = Flush::NONE;
        self.each_page(m, &loan, |this, m, page| {
            this.record(m, slot, page.at, page.pa)?.ok_or(Error::Corrupted)?;
            let mut place = this.split_to(m, tree, page.at, LAST_LEVEL)?;
            let loaned = place.desc.with_loaned(true);
            let lent = kind == LoanKind::Lend;
            this.set(m, tree, &mut place, if lent { loaned.detached() } else { loaned });
            if lent {
                flush.add(page.at);
            }
            Ok(())
        })?;
        if kind == LoanKind::Lend {
            flush.run(self, m, tree);
        }
        // Also what is shared: no attribute shows the borrower bytes from before.
        self.scrub_pages(m, &loan, zero)?;
        self.put_loan(id, Some(Loan { kind: Some(kind), ..loan }));
        Ok(())
    }

    /// Cleans every page, zeroed first if asked for.
    pub(crate) fn scrub_pages<M: Machine>(
        &mut self,
        m: &mut M,
        loan: &Loan,
        zero: bool,
    ) -> Result<(), Error> {
        self.phase(m, Part::Scrub);
        self.each_page(m, loan, |_, m, page| {
            if zero {
                m.zero(Pa(page.pa));
            }
            m.clean(Pa(page.pa));
            Ok(())
        })
    }
}

/// Retrieve.
impl FlexMem {
    /// Partition: maps a loan of somebody else's, from `ipa` on and contiguously; read-write or read-only. A donation becomes
    /// its own and ends the loan. All or nothing.
    pub fn partition_retrieve<M: Machine>(
        &mut self,
        m: &mut M,
        id: LoanId,
        slot: Slot,
        ipa: Ipa,
        access: Access,
    ) -> Result<(), Error> {
        self.meter = Meter::start(m.ticks());
        let tree = self.live(slot)?;
        let mut loan = self.retrievable(id, Party::Partition(slot))?;
        if !ipa.0.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Unaligned);
        }
        let target = partition_range(ipa, loan.page_count)?;
        let end = target.end().0;
        if let Some((at, _)) = walk::next(m, tree.root, ipa.0, end, |desc| desc != Desc::ABSENT) {
            return Err(Error::IpaTaken { ipa: Ipa(at) });
        }
        let (mut tables, mut last) = (0, None);
        for (base, _) in walk::chunks(target) {
            tables += walk::tables_missing(m, tree.root, base, last);
            last = Some(base);
        }
        self.pool.check(tables)?;

        self.phase(m, Part::Tables);
        let donated = loan.kind == Some(LoanKind::Donate);
        self.each_page(m, &loan, |this, m, page| {
            let at = ipa.0 + page.index * PAGE_SIZE;
            let mut leaf = Desc::borrowed(page.pa, access);
            if donated {
                let mut record = walk::find(m, this.host.root, page.pa);
                this.set(m, this.host, &mut record, Desc::owner(slot, at));
                leaf = Desc::partition(page.pa, access);
            }
            let mut place = this.split_to(m, tree, at, LAST_LEVEL)?;
            this.set(m, tree, &mut place, leaf);
            Ok(())
        })?;
        if !donated {
            loan.was_retrieved = true;
            self.add_borrower(id, loan, Party::Partition(slot), ipa);
            return Ok(());
        }
        for (base, _) in walk::chunks(target) {
            self.make_block(m, tree, base);
        }
        self.partition_mut(slot)?.page_count += loan.page_count;
        self.free_loan(m, id, &loan);
        let cost = self.meter.end(m.ticks(), loan.page_count);
        self.counters.give.add(cost);
        Ok(())
    }

    /// Host: maps a partition's share where it lies; read and write, never execute. Never needs table memory.
    pub fn host_retrieve<M: Machine>(&mut self, m: &mut M, id: LoanId) -> Result<(), Error> {
        let mut loan = self.retrievable(id, Party::Host)?;
        let (Party::Partition(lender), Some(LoanKind::Share)) = (loan.lender, loan.kind) else {
            return Err(Error::NotRetrievable);
        };
        let tree = self.tree(lender)?;
        self.each_page(m, &loan, |this, m, page| {
            let mut record = this.record(m, lender, page.at, page.pa)?.ok_or(Error::Corrupted)?;
            m.clean(Pa(page.pa));
            let mut place = walk::find(m, tree.root, page.at);
            let shared = place.desc.with_shared(true);
            this.set(m, tree, &mut place, shared);
            this.set(m, this.host, &mut record, Desc::host_shared(page.pa));
            this.partition_mut(lender)?.shared_count += 1;
            this.counters.pages_shared += 1;
            Ok(())
        })?;
        loan.was_retrieved = true;
        self.add_borrower(id, loan, Party::Host, Ipa(0));
        Ok(())
    }

    /// A loan that a borrower may map now.
    fn retrievable(&self, id: LoanId, borrower: Party) -> Result<Loan, Error> {
        let loan = *self.loan(id).filter(|loan| loan.kind.is_some()).ok_or(Error::NoSuchLoan)?;
        let has_room = loan.borrowers.iter().any(Option::is_none);
        if loan.lender == borrower || loan.place_of(borrower).is_some() || !has_room {
            return Err(Error::NotRetrievable);
        }
        Ok(loan)
    }

    fn add_borrower(&mut self, id: LoanId, mut loan: Loan, party: Party, ipa: Ipa) {
        if let Some(free) = loan.borrowers.iter_mut().find(|borrower| borrower.is_none()) {
            *free = Some((party, ipa));
        }
        self.put_loan(id, Some(loan));
    }
}
