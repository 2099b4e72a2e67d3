//! Exhaustive exploration (stateright) of the shipped functions: 3 pages, 3 owners (the host and two partitions), 2 cores.
//!
//! Core 1 reads everything it can reach under every VMID at every single step of every operation, and so holds every
//! translation that it could ever hold; core 0 does so when it chooses to. Partitions write their secrets wherever they
//! can, and the host writes what it can.

use std::hash::{Hash, Hasher};

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::*;

const PAGES: u64 = 3;
const BASE: u64 = 0x4000_0000;
/// Where partitions retrieve: beside their pages, in the same table.
const BORROWED: u64 = 8 * PAGE_SIZE;

fn pa(page: u64) -> u64 {
    BASE + page * PAGE_SIZE
}

fn ipa(page: u64) -> u64 {
    page * PAGE_SIZE
}

/// A world between two operations. Table pages are interchangeable, so that states that differ only in which of them
/// serves where are one; so are counts of what happened.
#[derive(Clone, Debug)]
struct State {
    w: World,
    key: Key,
}

/// Of each page: owner, memory, cache. The loan: lender, kind, its page, borrowers, whether it was retrieved. What cores have cached (always fresh, [`audit`] says). Of each slot: state, pages.
/// Free tables. Whether all is well.
type Key = (
    Vec<(PageState, u64, u64)>,
    Option<(Party, Option<LoanKind>, u64, [Option<(Party, Ipa)>; MAX_BORROWERS], bool)>,
    Vec<(usize, u16, u64, u8)>,
    [(flexmem::State, Vec<PartitionPage>); 2],
    u64,
    bool,
);

/// There is at most one loan at a time, of one page, for one borrower.
fn the_loan() -> LoanId {
    LoanId::new(0).unwrap()
}

impl State {
    fn new(w: World) -> Self {
        let page = |page| (w.state(pa(page)), w.m.memory_word(Pa(pa(page))), w.m.words(Pa(pa(page)))[0]);
        let slots = [0, 1].map(|s| (w.fm.partitions[s].state, w.pages_of(s)));
        let key = (
            (0..PAGES).map(page).collect(),
            w.fm.loan(the_loan()).map(|loan| {
                let page = w.m.words(loan.list)[0];
                (loan.lender, loan.kind, page, loan.borrowers, loan.was_retrieved)
            }),
            w.m.cached(),
            slots,
            w.fm.census().tables_free,
            w.m.violations.is_empty(),
        );
        Self { w, key }
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

struct Isolation {
    knob: Option<Knob>,
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Give(usize, u64),
    Recall(usize, u64),
    Share(usize, u64),
    Unshare(usize, u64),
    HostSend(LoanKind, u64),
    /// Of a partition, to the other.
    Send(usize, LoanKind, u64),
    /// By the borrower: the other partition, or partition 1 of the host's. At the same page of its second half.
    Retrieve(u64),
    Relinquish,
    HostRetrieve,
    HostRelinquish,
    Reclaim,
    DestroyStep(usize),
    Create(usize),
    /// Core 0 runs everybody; the host writes.
    Touch,
}

impl Isolation {
    /// All translations that anybody could ask for.
    fn places() -> impl Iterator<Item = (u16, Ipa)> {
        let each = |page| [(HOST_VMID, Ipa(pa(page))), (2, Ipa(ipa(page))), (3, Ipa(ipa(page)))];
        (0..PAGES).flat_map(each).chain([(2, Ipa(BORROWED)), (3, Ipa(BORROWED))])
    }

    /// Who may retrieve the loan.
    fn borrower(w: &World) -> usize {
        match w.fm.loan(the_loan()).map(|loan| loan.lender) {
            Some(Party::Partition(lender)) => 1 - lender.index(),
            _ => 1,
        }
    }
}

impl Model for Isolation {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut w = World::bare(12);
        w.fm.boot_map_host(&mut w.m, Pa(BASE), PAGES * PAGE_SIZE, HostMemory::Ram).unwrap();
        w.fm.partition_create(&mut w.m, slot(0)).unwrap();
        w.fm.partition_create(&mut w.m, slot(1)).unwrap();
        w.m.race(Self::places().collect());
        if let Some(knob) = self.knob {
            w.fm.set_knob(knob, true);
        }
        vec![State::new(w)]
    }

    fn actions(&self, State { w, .. }: &State, actions: &mut Vec<Action>) {
        if !w.m.violations.is_empty() {
            return;
        }
        for s in 0..2 {
            for page in 0..PAGES {
                let each = [Action::Give, Action::Recall, Action::Share, Action::Unshare];
                actions.extend(each.map(|action| action(s, page)));
            }
            actions.extend([Action::DestroyStep(s), Action::Create(s)]);
        }
        match w.fm.loan(the_loan()) {
            // Pages are interchangeable: one will do.
            None => {
                let kinds = [LoanKind::Share, LoanKind::Lend, LoanKind::Donate];
                actions.extend(kinds.map(|kind| Action::HostSend(kind, 0)));
                actions.extend([LoanKind::Share, LoanKind::Lend].map(|kind| Action::Send(0, kind, 0)));
            }
            Some(_) => {
                actions.extend([Action::Retrieve(BORROWED), Action::Relinquish, Action::HostRetrieve]);
                actions.extend([Action::HostRelinquish, Action::Reclaim]);
            }
        }
        actions.push(Action::Touch);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut w = last.w.clone();
        let done = match action {
            Action::Give(s, page) => w.give(s, &[range(pa(page), 1)], ipa(page)).map(|_| ()),
            Action::Recall(s, page) => w.recall(s, ipa(page), 1).map(|_| ()),
            Action::Share(s, page) => {
                // The sharer's duty: nothing secret is in it.
                let target = w.fm.partition_page(&w.m, slot(s), Ipa(ipa(page)))?;
                if !target.shared {
                    w.m.write_back(0, slot(s).vmid(), Ipa(ipa(page)), 0);
                }
                w.share(s, ipa(page))
            }
            Action::Unshare(s, page) => w.unshare(s, ipa(page)),
            Action::HostSend(kind, page) => w.host_send(&[range(pa(page), 1)], kind).map(drop),
            Action::Send(s, kind, page) => {
                // The lender's duty: nothing secret is in it. A lend is zeroed for it.
                let target = w.fm.partition_page(&w.m, slot(s), Ipa(ipa(page)))?;
                let can_send = !target.shared && !target.loaned && !target.borrowed;
                if kind == LoanKind::Share && can_send {
                    w.m.write_back(0, slot(s).vmid(), Ipa(ipa(page)), 0);
                }
                let lender = Party::Partition(slot(s));
                w.send(lender, &[range(ipa(page), 1)], kind, kind == LoanKind::Lend).map(drop)
            }
            Action::Retrieve(at) => {
                let borrower = Self::borrower(&w);
                w.retrieve(the_loan(), borrower, at)
            }
            Action::Relinquish => {
                let borrower = Self::borrower(&w);
                w.relinquish(the_loan(), borrower)
            }
            Action::HostRetrieve => w.fm.host_retrieve(&mut w.m, the_loan()),
            Action::HostRelinquish => w.fm.relinquish(&mut w.m, the_loan(), Party::Host, false),
            Action::Reclaim => w.reclaim(the_loan()),
            Action::DestroyStep(s) => w.destroy(s, 1).map(|_| ()),
            Action::Create(s) => w.fm.partition_create(&mut w.m, slot(s)),
            Action::Touch => {
                for (vmid, ipa) in Self::places() {
                    w.m.read(0, vmid, ipa, true);
                    if vmid == HOST_VMID {
                        w.m.write(0, vmid, ipa, 0xb05);
                    }
                }
                Ok(())
            }
        };
        if let Err(error) = done {
            // What is refused changes nothing: no new state.
            if matches!(error, Error::Corrupted | Error::NoTables { .. }) {
                w.m.violations.push(format!("{error:?}"));
                return Some(State::new(w));
            }
            return None;
        }
        w.m.quiesce();
        w.write_secrets();
        if let Err(error) = audit(&w.fm, &w.m) {
            w.m.violations.push(error);
        }
        let mut reader = w.clone();
        if reader.host_reads_secret((0..PAGES).map(pa)) {
            w.m.violations.push("the host reads a secret".into());
        }
        Some(State::new(w))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("isolated", |_, s: &State| s.w.m.violations.is_empty()),
            Property::sometimes("all given", |_, s: &State| s.w.fm.partition_page_count(slot(0)) == PAGES),
            Property::sometimes("all shared", |_, s: &State| s.w.fm.partition_shared_count(slot(1)) == PAGES),
            Property::sometimes("lent to a partition", |_, s: &State| {
                s.w.fm
                    .loan(the_loan())
                    .is_some_and(|loan| loan.kind == Some(LoanKind::Lend) && loan.is_borrowed())
            }),
            Property::sometimes("shared with both", |_, s: &State| {
                s.w.fm.loan(the_loan()).is_some_and(|loan| loan.borrowers.iter().flatten().count() == 2)
            }),
            Property::sometimes("divided", |_, s: &State| {
                (0..2).all(|index| s.w.fm.partition_page_count(slot(index)) == 1)
            }),
        ]
    }
}

#[test]
fn all_interleavings_are_isolated() {
    let checker = Isolation { knob: None }.checker().threads(2).spawn_bfs().join();
    if let Some(path) = checker.discovery("isolated") {
        let found = path.last_state().w.m.violations.clone();
        panic!("{found:?}: {:?}", path.into_actions());
    }
    checker.assert_properties();
    println!("{} states, depth {}", checker.unique_state_count(), checker.max_depth());
    assert!(checker.unique_state_count() > 1000);
}

#[test]
fn the_checker_finds_what_is_left_out() {
    for knob in [
        Knob::SkipHostUnmap,
        Knob::SkipTlbi,
        Knob::SkipScrubOnRecall,
        Knob::SkipClean,
        Knob::SkipOwnershipCheck,
        Knob::SkipUnshareUnmap,
        Knob::SkipSendOwnershipCheck,
        Knob::SkipLendUnmap,
        Knob::SkipRelinquishUnmap,
        Knob::SkipBorrowedCheck,
        Knob::SkipScrubOnReclaim,
    ] {
        let builder = Isolation { knob: Some(knob) }.checker();
        let checker = builder.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        println!("{knob:?}: {} states", checker.unique_state_count());
        assert!(checker.discovery("isolated").is_some(), "{knob:?} was not found");
    }
}
