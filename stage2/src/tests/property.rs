//! Random sequences of operations against a model that knows only who owns what, with another core reading all along.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Pages of RAM that the operations use: 3 blocks of the gigabyte, and the small RAM with its ragged end.
const PAGES: u64 = 3 * 512 + RAM_SMALL_SIZE / PAGE_SIZE;
/// Pages of a partition's space that they use, in two gigabytes.
const IPAS: u64 = 4 * 512;

fn pa(index: u64) -> u64 {
    if index < 3 * 512 { RAM + index * PAGE_SIZE } else { RAM_SMALL + (index - 3 * 512) * PAGE_SIZE }
}

fn ipa(index: u64) -> u64 {
    if index < 2 * 512 {
        (1 << 30) - MIB2 + index * PAGE_SIZE
    } else {
        (7 << 30) + (index - 2 * 512) * PAGE_SIZE
    }
}

#[derive(Clone, Debug)]
enum Op {
    Give {
        slot: usize,
        ranges: Vec<(u64, u64)>,
        ipa: u64,
        access: Access,
        fill: Fill,
    },
    /// The whole 2 MiB, so that blocks are made.
    GiveBlock {
        slot: usize,
        block: u64,
        at: u64,
    },
    Recall {
        slot: usize,
        ipa: u64,
        count: u64,
    },
    /// Of the page that the partition has at or above this place.
    Share {
        slot: usize,
        ipa: u64,
    },
    Unshare {
        slot: usize,
    },
    Destroy {
        slot: usize,
        step: u64,
    },
    Create {
        slot: usize,
    },
    GiveTables {
        from: u64,
        count: u64,
    },
    RecallTables {
        count: u64,
    },
    HostSend {
        kind: LoanKind,
        ranges: Vec<(u64, u64)>,
        zero: bool,
    },
    /// Of the page that the partition has at or above this place.
    Send {
        slot: usize,
        kind: LoanKind,
        ipa: u64,
        zero: bool,
    },
    /// Of the loan, counted round.
    Retrieve {
        loan: usize,
        ipa: u64,
    },
    HostRetrieve {
        loan: usize,
    },
    Relinquish {
        loan: usize,
        host: bool,
        zero: bool,
    },
    Reclaim {
        loan: usize,
        zero: bool,
    },
    Pin {
        page: u64,
    },
    Unpin,
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1..4u64, 2 => 1..64u64, 1 => 400..520u64]
}

fn op() -> impl Strategy<Value = Op> {
    let slot = 0..3usize;
    let access = prop_oneof![
        3 => Just(Access::ReadWrite),
        1 => Just(Access::Read),
        1 => Just(Access::ReadExecute)
    ];
    let fill = prop_oneof![Just(Fill::Zero), Just(Fill::Keep)];
    let ranges = || vec((0..PAGES, count()), 1..4);
    let kind = prop_oneof![Just(LoanKind::Share), Just(LoanKind::Lend), Just(LoanKind::Donate)];
    prop_oneof![
        6 => (slot.clone(), ranges(), 0..IPAS, access, fill)
            .prop_map(|(slot, ranges, ipa, access, fill)| Op::Give { slot, ranges, ipa, access, fill }),
        3 => (slot.clone(), 0..6u64, 0..4u64).prop_map(|(slot, block, at)| Op::GiveBlock { slot, block, at }),
        4 => (slot.clone(), 0..IPAS, count()).prop_map(|(slot, ipa, count)| Op::Recall { slot, ipa, count }),
        4 => (slot.clone(), 0..IPAS).prop_map(|(slot, ipa)| Op::Share { slot, ipa }),
        2 => slot.clone().prop_map(|slot| Op::Unshare { slot }),
        2 => (slot.clone(), count()).prop_map(|(slot, step)| Op::Destroy { slot, step }),
        4 => (kind.clone(), ranges(), any::<bool>())
            .prop_map(|(kind, ranges, zero)| Op::HostSend { kind, ranges, zero }),
        4 => (slot.clone(), kind, 0..IPAS, any::<bool>())
            .prop_map(|(slot, kind, ipa, zero)| Op::Send { slot, kind, ipa, zero }),
        6 => (0..4usize, 0..IPAS).prop_map(|(loan, ipa)| Op::Retrieve { loan, ipa }),
        3 => (0..4usize).prop_map(|loan| Op::HostRetrieve { loan }),
        3 => (0..4usize, any::<bool>(), any::<bool>())
            .prop_map(|(loan, host, zero)| Op::Relinquish { loan, host, zero }),
        3 => (0..4usize, any::<bool>()).prop_map(|(loan, zero)| Op::Reclaim { loan, zero }),
        1 => slot.prop_map(|slot| Op::Create { slot }),
        2 => (0..PAGES, 1..24u64).prop_map(|(from, count)| Op::GiveTables { from, count }),
        1 => (1..40u64).prop_map(|count| Op::RecallTables { count }),
        1 => (0..PAGES).prop_map(|page| Op::Pin { page }),
        1 => Just(Op::Unpin),
    ]
}

/// A loan: its lender (none: the host), its pages with the lender's addresses, and who has them where (none: the host).
#[derive(Clone, Debug)]
struct Lent {
    lender: Option<usize>,
    kind: LoanKind,
    pages: Vec<(u64, u64)>,
    borrowers: Vec<(Option<usize>, u64)>,
}

impl Lent {
    /// The partition that may have it: always the same, so that nobody inherits another's secret.
    fn receiver(&self, id: LoanId) -> usize {
        self.lender.map_or(id.index() % 3, |lender| (lender + 1) % 3)
    }
}

/// Who owns what, by page number of memory.
#[derive(Default)]
struct Model {
    pages: BTreeMap<u64, (usize, u64, Access, bool)>,
    tables: BTreeSet<u64>,
    pins: BTreeSet<u64>,
    loans: BTreeMap<usize, Lent>,
    live: BTreeSet<usize>,
    dying: BTreeSet<usize>,
}

impl Model {
    fn is_free(&self, page: u64) -> bool {
        let ram =
            (RAM..RAM + (1 << 30)).contains(&page) || (RAM_SMALL..RAM_SMALL + RAM_SMALL_SIZE).contains(&page);
        let lent = self.loans.values().any(|l| l.lender.is_none() && l.pages.iter().any(|p| p.0 == page));
        ram && !lent
            && !self.pages.contains_key(&page)
            && !self.tables.contains(&page)
            && !self.pins.contains(&page)
    }

    fn at(&self, slot: usize, ipa: u64) -> Option<u64> {
        self.pages.iter().find(|(_, page)| (page.0, page.1) == (slot, ipa)).map(|(&pa, _)| pa)
    }

    /// Whether a page is in a loan of its partition's.
    fn is_loaned(&self, pa: u64) -> bool {
        self.loans.values().any(|loan| loan.lender.is_some() && loan.pages.iter().any(|page| page.0 == pa))
    }

    /// Whether a partition has something at this place, its own or not.
    fn is_taken(&self, slot: usize, ipa: u64) -> bool {
        let borrowed = self.loans.values().any(|loan| {
            let places = loan.borrowers.iter().filter(|borrower| borrower.0 == Some(slot));
            places.into_iter().any(|b| (b.1..b.1 + loan.pages.len() as u64 * PAGE_SIZE).contains(&ipa))
        });
        borrowed || self.at(slot, ipa).is_some()
    }

    fn pick(&self, loan: usize) -> Option<(LoanId, Lent)> {
        let index = *self.loans.keys().nth(loan % self.loans.len().max(1))?;
        Some((LoanId::new(index).unwrap(), self.loans[&index].clone()))
    }

    fn count(&self, slot: usize) -> u64 {
        self.pages.values().filter(|page| page.0 == slot).count() as u64
    }

    fn first(&self, slot: usize, from: u64, shared: bool) -> Option<u64> {
        let mine = self.pages.values().filter(|page| page.0 == slot && page.1 >= from && page.3 == shared);
        mine.map(|page| page.1).min()
    }

    /// Whether the fields of all partitions agree with the machine's.
    fn agrees(&self, w: &World) -> bool {
        let all = (0..3).flat_map(|s| {
            w.pages_of(s)
                .into_iter()
                .filter(|p| !p.borrowed)
                .map(move |p| (p.pa.0, (s, p.ipa.0, p.access, p.shared)))
        });
        let lent = |pa: &u64| {
            let in_loan = |loan: &&Lent| loan.kind == LoanKind::Lend && loan.lender.is_some();
            self.loans.values().filter(in_loan).any(|loan| loan.pages.iter().any(|page| page.0 == *pa))
        };
        let reachable = self.pages.iter().filter(|(pa, _)| !lent(pa)).map(|(pa, page)| (*pa, *page));
        all.collect::<BTreeMap<_, _>>() == reachable.collect()
    }
}

struct Run {
    w: World,
    model: Model,
}

impl Run {
    /// A refusal must change nothing; a lack of tables excuses what the model would allow.
    fn settle<T>(&self, before: &World, allowed: bool, result: &Result<T, Error>) -> bool {
        match result {
            Ok(_) => assert!(allowed),
            Err(Error::NoTables { needed }) => assert!(allowed && *needed > 0),
            Err(error) => assert!(!allowed && *error != Error::Corrupted, "{error:?}"),
        }
        if result.is_err() {
            let mut now = self.w.clone();
            now.fm.meter = before.fm.meter;
            assert!(now == *before, "a refused call changed something");
        }
        result.is_ok()
    }

    fn give(&mut self, s: usize, ranges: Vec<PageRange>, to: u64, access: Access, fill: Fill) {
        let pages: Vec<u64> = ranges.iter().flat_map(PageRange::pages).map(|page| page.0).collect();
        let distinct = pages.iter().collect::<BTreeSet<_>>().len() == pages.len();
        let ipas = (0..).map(|i| to + i * PAGE_SIZE);
        let allowed = self.model.live.contains(&s)
            && pages.len() <= 512
            && distinct
            && pages.iter().all(|&page| self.model.is_free(page))
            && pages.iter().zip(ipas.clone()).all(|(_, ipa)| !self.model.is_taken(s, ipa));
        self.host_writes(&pages);
        let before = self.w.clone();
        let result = self.w.give_with(s, &ranges, to, access, fill);
        if self.settle(&before, allowed, &result) {
            assert_eq!(result, Ok(pages.len() as u64));
            for (page, ipa) in pages.into_iter().zip(ipas) {
                self.model.pages.insert(page, (s, ipa, access, false));
                if fill == Fill::Zero {
                    assert_eq!(
                        (self.w.m.memory_word(Pa(page)), self.w.m.read_page(Pa(page))),
                        (0, [0; 4096])
                    );
                }
            }
        }
    }

    /// The host fills pages that it can reach.
    fn host_writes(&mut self, pages: &[u64]) {
        for &page in pages {
            self.w.m.write(0, HOST_VMID, Ipa(page), 0xb05);
        }
    }

    fn taken_back(&mut self, pages: Vec<u64>) {
        for page in &pages {
            self.model.pages.remove(page);
            assert_eq!((self.w.m.memory_word(Pa(*page)), self.w.m.read_page(Pa(*page))), (0, [0; 4096]));
        }
        assert!(!self.w.host_reads_secret(pages));
    }

    fn apply(&mut self, op: Op) {
        self.w.write_secrets();
        match op {
            Op::Give { slot, ranges, ipa: at, access, fill } => {
                let ranges = ranges.into_iter().map(|(page, count)| range(pa(page), count)).collect();
                self.give(slot, ranges, ipa(at), access, fill);
            }
            Op::GiveBlock { slot, block, at } => {
                let ranges = vec![range(pa(block * 512), 512)];
                self.give(slot, ranges, ipa(at * 512), Access::ReadWrite, Fill::Zero);
            }
            Op::Recall { slot, ipa: at, count } => {
                let ipas = (0..count).map(|i| ipa(at) + i * PAGE_SIZE);
                let pages: Option<Vec<u64>> = ipas.map(|ipa| self.model.at(slot, ipa)).collect();
                let allowed = self.model.live.contains(&slot)
                    && count <= 512
                    && pages.as_ref().is_some_and(|pages| !pages.iter().any(|&p| self.model.is_loaned(p)));
                let before = self.w.clone();
                let result = self.w.recall(slot, ipa(at), count);
                assert!(!matches!(result, Err(Error::NoTables { .. })));
                if self.settle(&before, allowed, &result) {
                    assert_eq!(result, Ok(count));
                    self.taken_back(pages.unwrap_or_default());
                }
            }
            Op::Share { slot, ipa: at } => {
                let Some(at) = self.model.first(slot, ipa(at), false) else { return };
                let page = self.model.at(slot, at).unwrap();
                let allowed = self.model.live.contains(&slot)
                    && self.model.pages[&page].2 == Access::ReadWrite
                    && !self.model.is_loaned(page);
                if allowed {
                    // The sharer's duty.
                    self.w.m.write_back(0, super::slot(slot).vmid(), Ipa(at), 0);
                }
                let before = self.w.clone();
                let result = self.w.share(slot, at);
                assert!(!matches!(result, Err(Error::NoTables { .. })));
                if self.settle(&before, allowed, &result) {
                    self.model.pages.get_mut(&page).unwrap().3 = true;
                }
            }
            Op::Unshare { slot } => {
                let Some(at) = self.model.first(slot, 0, true) else { return };
                let page = self.model.at(slot, at).unwrap();
                self.host_writes(&[page]);
                let before = self.w.clone();
                let result = self.w.unshare(slot, at);
                let allowed = self.model.live.contains(&slot) && !self.model.is_loaned(page);
                if self.settle(&before, allowed, &result) {
                    self.model.pages.get_mut(&page).unwrap().3 = false;
                    assert_eq!(
                        (self.w.m.memory_word(Pa(page)), self.w.m.read_page(Pa(page))),
                        (0, [0; 4096])
                    );
                }
            }
            Op::Destroy { slot, step } => self.destroy(slot, step),
            Op::Create { slot } => {
                let allowed = !self.model.live.contains(&slot) && !self.model.dying.contains(&slot);
                let before = self.w.clone();
                let result = self.w.fm.partition_create(&mut self.w.m, super::slot(slot));
                if self.settle(&before, allowed, &result) {
                    self.model.live.insert(slot);
                }
            }
            Op::GiveTables { from, count } => {
                let ranges = [range(pa(from), count)];
                let pages: Vec<u64> = ranges[0].pages().map(|page| page.0).collect();
                let allowed = pages.iter().all(|&page| self.model.is_free(page));
                self.host_writes(&pages);
                let before = self.w.clone();
                let result = self.w.fm.host_give_tables(&mut self.w.m, &ranges);
                assert!(!matches!(result, Err(Error::NoTables { .. })), "the reserve did not do");
                if self.settle(&before, allowed, &result) {
                    self.model.tables.extend(pages);
                }
            }
            Op::RecallTables { count } => {
                self.recall_tables(count);
            }
            Op::HostSend { kind, ranges, zero } => self.host_send(kind, ranges, zero),
            Op::Send { slot, kind, ipa: at, zero } => self.partition_send(slot, kind, ipa(at), zero),
            Op::Retrieve { loan, ipa: at } => self.retrieve(loan, ipa(at)),
            Op::HostRetrieve { loan } => {
                let Some((id, lent)) = self.model.pick(loan) else { return };
                let allowed = lent.lender.is_some()
                    && lent.kind == LoanKind::Share
                    && lent.borrowers.iter().all(|borrower| borrower.0.is_some());
                let before = self.w.clone();
                let result = self.w.fm.host_retrieve(&mut self.w.m, id);
                if self.settle(&before, allowed, &result) {
                    self.model.loans.get_mut(&id.index()).unwrap().borrowers.push((None, 0));
                    self.mark_shared(&lent, true);
                }
            }
            Op::Relinquish { loan, host, zero } => {
                let Some((id, lent)) = self.model.pick(loan) else { return };
                let who = (!host).then(|| lent.receiver(id));
                let party = who.map_or(Party::Host, |s| Party::Partition(super::slot(s)));
                let allowed = lent.borrowers.iter().any(|borrower| borrower.0 == who);
                let zero = zero && lent.kind == LoanKind::Lend;
                let before = self.w.clone();
                let result = self.w.fm.relinquish(&mut self.w.m, id, party, zero);
                assert!(!matches!(result, Err(Error::NoTables { .. })));
                if self.settle(&before, allowed, &result) {
                    let borrowers = &mut self.model.loans.get_mut(&id.index()).unwrap().borrowers;
                    borrowers.retain(|borrower| borrower.0 != who);
                    if host {
                        self.mark_shared(&lent, false);
                    }
                }
            }
            Op::Reclaim { loan, zero } => {
                let Some((id, lent)) = self.model.pick(loan) else { return };
                let zero = zero && lent.kind != LoanKind::Share;
                let touched = self.w.fm.loan(id).unwrap().was_retrieved && lent.kind == LoanKind::Lend;
                let before = self.w.clone();
                let result = self.w.fm.reclaim(&mut self.w.m, id, zero);
                assert!(!matches!(result, Err(Error::NoTables { .. })));
                if self.settle(&before, lent.borrowers.is_empty(), &result) {
                    self.model.loans.remove(&id.index());
                    for (page, _) in lent.pages.iter().filter(|_| zero || touched) {
                        assert_eq!(self.w.m.memory_word(Pa(*page)), 0);
                    }
                }
            }
            Op::Pin { page } => {
                let page = pa(page);
                let allowed = self.model.is_free(page) && self.model.pins.len() < MAX_PINS;
                let before = self.w.clone();
                let result = self.w.fm.host_pin(&self.w.m, Pa(page));
                if self.settle(&before, allowed, &result) {
                    self.model.pins.insert(page);
                }
            }
            Op::Unpin => {
                if let Some(page) = self.model.pins.pop_first() {
                    assert_eq!(self.w.fm.host_unpin(Pa(page)), Ok(()));
                }
            }
        }
    }

    fn destroy(&mut self, s: usize, step: u64) {
        let known = self.model.live.contains(&s) || self.model.dying.contains(&s);
        if let Some((&index, lent)) = self.model.loans.iter().find(|(_, loan)| {
            loan.lender == Some(s) || loan.borrowers.iter().any(|borrower| borrower.0 == Some(s))
        }) {
            let lent = lent.clone();
            let result = self.w.destroy(s, step);
            assert_eq!(result, Ok(self.model.count(s).max(1)));
            self.model.live.remove(&s);
            self.model.dying.insert(s);
            if lent.lender == Some(s) {
                self.model.loans.remove(&index);
                self.mark_shared(&lent, false);
            } else {
                let borrowers = &mut self.model.loans.get_mut(&index).unwrap().borrowers;
                borrowers.retain(|borrower| borrower.0 != Some(s));
            }
            return;
        }
        let mut mine: Vec<_> =
            self.model.pages.iter().filter(|(_, page)| page.0 == s).map(|(&pa, p)| (p.1, pa)).collect();
        mine.sort_unstable();
        mine.truncate(step.min(512) as usize);
        let before = self.w.clone();
        let result = self.w.destroy(s, step);
        assert!(!matches!(result, Err(Error::NoTables { .. })));
        if self.settle(&before, known, &result) {
            self.model.live.remove(&s);
            self.model.dying.insert(s);
            self.taken_back(mine.into_iter().map(|(_, pa)| pa).collect());
            assert_eq!(result, Ok(self.model.count(s)));
            if result == Ok(0) {
                self.model.dying.remove(&s);
            }
        }
    }

    fn host_send(&mut self, kind: LoanKind, ranges: Vec<(u64, u64)>, zero: bool) {
        let ranges: Vec<_> = ranges.into_iter().map(|(from, count)| range(pa(from), count)).collect();
        let pages: Vec<u64> = ranges.iter().flat_map(PageRange::pages).map(|page| page.0).collect();
        let distinct = pages.iter().collect::<BTreeSet<_>>().len() == pages.len();
        let allowed = pages.len() <= 512 && distinct && pages.iter().all(|&page| self.model.is_free(page));
        self.host_writes(&pages);
        let zero = zero && kind != LoanKind::Share;
        let result = self.send(Party::Host, &ranges, kind, zero, allowed);
        if let Some(id) = result {
            let pages = pages.into_iter().map(|page| (page, page)).collect();
            self.model.loans.insert(id.index(), Lent { lender: None, kind, pages, borrowers: Vec::new() });
        }
    }

    /// A send that fails has made and ended a list, so that the pool's chain may be in another order.
    fn send(
        &mut self,
        lender: Party,
        ranges: &[PageRange],
        kind: LoanKind,
        zero: bool,
        allowed: bool,
    ) -> Option<LoanId> {
        let before = self.w.fm.census();
        let result = self.w.send(lender, ranges, kind, zero);
        match result {
            Ok(id) => {
                assert!(allowed);
                Some(id)
            }
            Err(error) => {
                assert!(matches!(error, Error::NoTables { .. }) || !allowed, "{error:?}");
                assert_eq!(self.w.fm.census(), before);
                None
            }
        }
    }

    fn partition_send(&mut self, s: usize, kind: LoanKind, from: u64, zero: bool) {
        let Some(at) = self.model.first(s, from, false) else { return };
        let page = self.model.at(s, at).unwrap();
        let allowed = self.model.live.contains(&s)
            && self.model.pages[&page].2 == Access::ReadWrite
            && kind != LoanKind::Donate
            && !self.model.is_loaned(page);
        let zero = zero && kind == LoanKind::Lend;
        if allowed {
            // The lender's duty.
            self.w.m.write_back(0, slot(s).vmid(), Ipa(at), 0);
        }
        let result = self.send(Party::Partition(slot(s)), &[range(at, 1)], kind, zero, allowed);
        if let Some(id) = result {
            let lent = Lent { lender: Some(s), kind, pages: vec![(page, at)], borrowers: Vec::new() };
            self.model.loans.insert(id.index(), lent);
        }
    }

    fn retrieve(&mut self, loan: usize, at: u64) {
        let Some((id, lent)) = self.model.pick(loan) else { return };
        let s = lent.receiver(id);
        let ipas = (0..lent.pages.len() as u64).map(|i| at + i * PAGE_SIZE);
        let allowed = self.model.live.contains(&s)
            && lent.borrowers.iter().all(|borrower| borrower.0 != Some(s))
            && ipas.clone().all(|ipa| !self.model.is_taken(s, ipa));
        let before = self.w.clone();
        let result = self.w.retrieve(id, s, at);
        if self.settle(&before, allowed, &result) {
            if lent.kind == LoanKind::Donate {
                self.model.loans.remove(&id.index());
                for ((page, _), ipa) in lent.pages.iter().zip(ipas) {
                    self.model.pages.insert(*page, (s, ipa, Access::ReadWrite, false));
                }
            } else {
                self.model.loans.get_mut(&id.index()).unwrap().borrowers.push((Some(s), at));
            }
        }
    }

    fn mark_shared(&mut self, lent: &Lent, shared: bool) {
        for (page, _) in &lent.pages {
            if let Some(page) = self.model.pages.get_mut(page) {
                page.3 = shared;
            }
        }
    }

    fn recall_tables(&mut self, count: u64) -> u64 {
        let mut out = [PageRange::EMPTY; 5];
        let (ranges, pages) = self.w.fm.host_recall_tables(&mut self.w.m, &mut out, count).unwrap();
        let back: Vec<u64> = out[..ranges].iter().flat_map(PageRange::pages).map(|page| page.0).collect();
        assert_eq!(back.len() as u64, pages);
        for page in back {
            assert!(self.model.tables.remove(&page));
            assert_eq!((self.w.m.memory_word(Pa(page)), self.w.m.read_page(Pa(page))), (0, [0; 4096]));
        }
        pages
    }

    fn check(&mut self) {
        self.w.check();
        assert!(self.model.agrees(&self.w));
        for &page in self.model.tables.iter().chain(&self.model.pins) {
            let state =
                if self.model.tables.contains(&page) { PageState::Table } else { PageState::HostPinned };
            assert_eq!(self.w.state(page), state);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_sequences(ops in vec(op(), 1..32), own_tables in 14..40u64) {
        let w = World::booted(own_tables);
        let boot = w.fm.census();
        let mut run = Run { w, model: Model { live: (0..2).collect(), ..Model::default() } };
        let watched = (0..PAGES).step_by(173).map(|i| (HOST_VMID, Ipa(pa(i))));
        let others = (0..IPAS).step_by(211).flat_map(|i| [(2, Ipa(ipa(i))), (3, Ipa(ipa(i)))]);
        run.w.m.race(watched.chain(others).collect());
        for op in ops {
            run.apply(op);
            run.check();
        }
        // Everything comes back, to the page and to the block.
        for slot in 0..3 {
            while run.model.live.contains(&slot) || run.model.dying.contains(&slot) {
                run.destroy(slot, 300);
            }
        }
        let left: Vec<_> = run.model.loans.keys().copied().collect();
        for index in left {
            run.w.reclaim(LoanId::new(index).unwrap()).unwrap();
        }
        while run.recall_tables(512) > 0 {}
        run.check();
        prop_assert_eq!(run.w.fm.census(), boot);
    }
}
