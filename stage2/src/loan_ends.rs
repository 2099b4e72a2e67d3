//! Relinquish, reclaim, and what becomes of loans when a partition ends. None of it needs table memory.

use crate::counters::{Meter, Part};
use crate::desc::Desc;
use crate::flexmem::State;
use crate::loans::Loan;
use crate::transitions::Flush;
use crate::walk::{self, LAST_LEVEL};
use crate::{Error, FlexMem, HostMemory, LoanId, LoanKind, Machine, PAGE_SIZE, Party, Slot};

impl FlexMem {
    /// Ends a borrower's access; with `zero` (not for a share) the pages are zeroed, for other borrowers too.
    pub fn relinquish<M: Machine>(
        &mut self,
        m: &mut M,
        id: LoanId,
        borrower: Party,
        zero: bool,
    ) -> Result<(), Error> {
        self.meter = Meter::start(m.ticks());
        let mut loan = *self.loan(id).ok_or(Error::NoSuchLoan)?;
        let ipa = loan.place_of(borrower).ok_or(Error::NotBorrowed)?;
        let mut flush = Flush::NONE;
        match (borrower, loan.lender) {
            (Party::Partition(slot), _) => {
                let (tree, stays) = (self.tree(slot)?, skips!(self, SkipRelinquishUnmap));
                self.each_page(m, &loan, |this, m, page| {
                    let at = ipa.0 + page.index * PAGE_SIZE;
                    let mut place = walk::find(m, tree.root, at);
                    if place.desc.is_borrowed() && !stays {
                        this.set(m, tree, &mut place, Desc::ABSENT);
                    }
                    flush.add(at);
                    Ok(())
                })?;
                flush.run(self, m, tree);
                if zero {
                    self.scrub_pages(m, &loan, true)?;
                }
                self.each_page(m, &loan, |this, m, page| {
                    this.coalesce(m, tree, ipa.0 + page.index * PAGE_SIZE);
                    Ok(())
                })?;
            }
            (Party::Host, Party::Partition(lender)) => {
                let tree = self.tree(lender)?;
                self.each_page(m, &loan, |this, m, page| {
                    let mut record = walk::find(m, this.host.root, page.pa);
                    this.set(m, this.host, &mut record, Desc::owner(lender, page.at));
                    flush.add(page.pa);
                    let mut place = walk::find(m, tree.root, page.at);
                    let private = place.desc.with_shared(false);
                    this.set(m, tree, &mut place, private);
                    this.count_unshared(lender)
                })?;
                flush.run(self, m, self.host);
            }
            (Party::Host, Party::Host) => return Err(Error::Corrupted),
        }
        for place in &mut loan.borrowers {
            if place.is_some_and(|(party, _)| party == borrower) {
                *place = None;
            }
        }
        self.put_loan(id, Some(loan));
        Ok(())
    }

    /// Lender: takes everything back and ends the loan. What was lent and ever retrieved is zeroed, and what `zero` asks
    /// for. Refused while anybody has it.
    pub fn reclaim<M: Machine>(&mut self, m: &mut M, id: LoanId, zero: bool) -> Result<(), Error> {
        self.meter = Meter::start(m.ticks());
        let loan = *self.loan(id).ok_or(Error::NoSuchLoan)?;
        let Some(kind) = loan.kind else { return Err(Error::NoSuchLoan) };
        if loan.is_borrowed() && !skips!(self, SkipBorrowedCheck) {
            return Err(Error::Borrowed);
        }
        let lender = match loan.lender {
            Party::Host => None,
            Party::Partition(slot) => Some(self.tree(slot)?),
        };
        if kind != LoanKind::Share && (zero || loan.was_retrieved) && !skips!(self, SkipScrubOnReclaim) {
            self.scrub_pages(m, &loan, true)?;
        }
        self.phase(m, Part::Tables);
        self.each_page(m, &loan, |this, m, page| {
            match lender {
                None => {
                    let mut place = walk::find(m, this.host.root, page.pa);
                    this.set(m, this.host, &mut place, Desc::host(page.pa, LAST_LEVEL, HostMemory::Ram));
                    this.coalesce(m, this.host, page.pa);
                }
                Some(tree) => {
                    let mut place = walk::find(m, tree.root, page.at);
                    let own = place.desc.with_loaned(false).attached();
                    this.set(m, tree, &mut place, own);
                    this.make_block(m, tree, page.at);
                }
            }
            Ok(())
        })?;
        self.free_loan(m, id, &loan);
        Ok(())
    }

    /// Ends one loan that a dying partition is part of; false if there is none.
    pub(crate) fn end_loan_of<M: Machine>(&mut self, m: &mut M, slot: Slot) -> Result<bool, Error> {
        let party = Party::Partition(slot);
        let concerns = |loan: &Loan| loan.lender == party || loan.place_of(party).is_some();
        let found = self.loans.iter().position(|loan| loan.as_ref().is_some_and(concerns));
        let Some(id) = found.and_then(LoanId::new) else { return Ok(false) };
        let loan = *self.loan(id).ok_or(Error::NoSuchLoan)?;
        debug_assert!(self.partition(slot).is_ok_and(|partition| partition.state == State::Dying));
        if loan.kind.is_none() {
            self.list_abort(m, id)?;
        } else if loan.lender == party {
            for (borrower, _) in loan.borrowers.iter().flatten() {
                self.relinquish(m, id, *borrower, false)?;
            }
            self.reclaim(m, id, false)?;
        } else {
            self.relinquish(m, id, party, false)?;
        }
        Ok(true)
    }
}
