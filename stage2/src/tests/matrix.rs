//! Transition matrix: every state of a page x every operation on it, the exact result, all views asserted afterwards; for
//! a single page and for a page in the midst of 2 MiB in the same state.

use super::*;

/// Where partition 0 sees the page in the states in which it has it.
const IPA: u64 = 0x1_0000_0000 + OFFSET;
/// Where partition 1 is given the page, and partition 0 once more.
const OTHER: u64 = 0x2_0000_0000;
const OFFSET: u64 = 7 * PAGE_SIZE;
/// Where partition 1 retrieves the page, in a loan of [`Of`].
const BORROWED: u64 = 0x3_0000_0000;

/// Whose loan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Host,
    Partition,
}

/// Who retrieved it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Nobody,
    Partition,
    Host,
    /// Only as a result.
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Host,
    Pinned,
    Device,
    /// Partition 0's at [`IPA`].
    Partition,
    /// Partition 0's at [`IPA`], shared.
    Shared,
    /// Partition 0's or 1's at [`OTHER`]. Only as a result.
    Given(usize),
    /// The first loan. Of partition 0, which has the page at [`IPA`], or of the host.
    Loan(Of, LoanKind, To),
    /// Partition 1's at [`BORROWED`]. Only as a result.
    Donated,
    Table,
    Hypervisor,
    Absent,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Give(usize),
    GiveTables,
    RecallTables,
    Pin,
    Unpin,
    Share(usize),
    Unshare(usize),
    Recall(usize),
    Destroy(usize),
    Owns,
    Send(Of, LoanKind),
    Retrieve,
    HostRetrieve,
    Relinquish,
    HostRelinquish,
    Reclaim,
}

use LoanKind::{Donate, Lend, Share};

const STATES: [State; 18] = [
    State::Host,
    State::Pinned,
    State::Device,
    State::Partition,
    State::Shared,
    State::Table,
    State::Hypervisor,
    State::Absent,
    State::Loan(Of::Host, Share, To::Nobody),
    State::Loan(Of::Host, Share, To::Partition),
    State::Loan(Of::Host, Lend, To::Nobody),
    State::Loan(Of::Host, Lend, To::Partition),
    State::Loan(Of::Host, Donate, To::Nobody),
    State::Loan(Of::Partition, Share, To::Nobody),
    State::Loan(Of::Partition, Share, To::Partition),
    State::Loan(Of::Partition, Share, To::Host),
    State::Loan(Of::Partition, Lend, To::Nobody),
    State::Loan(Of::Partition, Lend, To::Partition),
];

const OPS: [Op; 26] = [
    Op::Give(0),
    Op::Give(1),
    Op::GiveTables,
    Op::RecallTables,
    Op::Pin,
    Op::Unpin,
    Op::Share(0),
    Op::Share(1),
    Op::Unshare(0),
    Op::Unshare(1),
    Op::Recall(0),
    Op::Recall(1),
    Op::Destroy(0),
    Op::Destroy(1),
    Op::Owns,
    Op::Send(Of::Host, Share),
    Op::Send(Of::Host, Lend),
    Op::Send(Of::Host, Donate),
    Op::Send(Of::Partition, Share),
    Op::Send(Of::Partition, Lend),
    Op::Send(Of::Partition, Donate),
    Op::Retrieve,
    Op::HostRetrieve,
    Op::Relinquish,
    Op::HostRelinquish,
    Op::Reclaim,
];

/// The only loan.
fn the_loan() -> LoanId {
    LoanId::new(0).unwrap()
}

fn lender(of: Of) -> Party {
    if of == Of::Host { Party::Host } else { Party::Partition(slot(0)) }
}

/// A world with its page in a state.
fn world(state: State, whole: bool) -> (World, u64) {
    let mut w = World::booted(64);
    let base = match state {
        State::Device => DEVICE,
        State::Hypervisor => HYP,
        State::Absent => ABSENT,
        _ => RAM + 3 * MIB2,
    };
    let page = base + OFFSET;
    let (from, ipa, count) = if whole { (base, IPA - OFFSET, 512) } else { (page, IPA, 1) };
    match state {
        State::Pinned => w.fm.host_pin(&w.m, Pa(page)).unwrap(),
        State::Partition | State::Shared | State::Loan(Of::Partition, ..) => {
            w.give(0, &[range(from, count)], ipa).unwrap();
        }
        State::Table => {
            w.fm.host_give_tables(&mut w.m, &[range(from, count)]).unwrap();
        }
        _ => {}
    }
    if state == State::Shared {
        w.share(0, IPA).unwrap();
    }
    if let State::Loan(of, kind, to) = state {
        let at = if of == Of::Host { from } else { ipa };
        w.send(lender(of), &[range(at, count)], kind, false).unwrap();
        let place = if whole { BORROWED } else { BORROWED + OFFSET };
        match to {
            To::Partition => w.retrieve(the_loan(), 1, place).unwrap(),
            To::Host => w.fm.host_retrieve(&mut w.m, the_loan()).unwrap(),
            To::Nobody | To::Both => {}
        }
    }
    w.check();
    (w, page)
}

/// What the specification says: the result (1: yes, or done) and the state afterwards.
fn expected(state: State, op: Op, page: u64, whole: bool) -> (Result<u64, Error>, State) {
    let pa = Pa(page);
    let ipa = Ipa(IPA);
    let not_the_hosts = match state {
        State::Host => None,
        State::Pinned => Some(Error::Pinned { pa }),
        State::Device => Some(Error::NotRam { pa }),
        _ => Some(Error::NotHostOwned { pa }),
    };
    let mine = matches!(state, State::Partition | State::Shared);
    let (result, after) = match op {
        Op::Give(s) => (not_the_hosts.map_or(Ok(1), Err), State::Given(s)),
        Op::GiveTables => (not_the_hosts.map_or(Ok(1), Err), State::Table),
        Op::Pin => (not_the_hosts.map_or(Ok(1), Err), State::Pinned),
        Op::Unpin if state == State::Pinned => (Ok(1), State::Host),
        Op::Unpin => (Err(Error::NotPinned { pa }), state),
        Op::RecallTables if state == State::Table => (Ok(1), State::Host),
        Op::RecallTables => (Ok(0), state),
        Op::Share(0) if state == State::Partition => (Ok(1), State::Shared),
        Op::Share(0) if state == State::Shared => (Err(Error::AlreadyShared { ipa }), state),
        Op::Unshare(0) if state == State::Shared => (Ok(1), State::Partition),
        Op::Unshare(0) if state == State::Partition => (Err(Error::NotShared { ipa }), state),
        Op::Recall(0) if mine => (Ok(1), State::Host),
        Op::Share(0) | Op::Unshare(0) | Op::Recall(0) if matches!(state, State::Loan(Of::Partition, ..)) => {
            (Err(Error::Loaned { ipa }), state)
        }
        Op::Share(_) | Op::Unshare(_) | Op::Recall(_) => (Err(Error::NotGiven { ipa }), state),
        Op::Destroy(0) if mine => (Ok(0), State::Host),
        // A step that ends the loan, after which the partition's own pages remain.
        Op::Destroy(0) if matches!(state, State::Loan(Of::Partition, ..)) => {
            (Ok(if whole { 512 } else { 1 }), State::Partition)
        }
        Op::Destroy(1) => match state {
            State::Loan(of, kind, To::Partition) => (Ok(1), State::Loan(of, kind, To::Nobody)),
            state => (Ok(0), state),
        },
        Op::Destroy(_) => (Ok(0), state),
        Op::Send(Of::Host, kind) => {
            (not_the_hosts.map_or(Ok(1), Err), State::Loan(Of::Host, kind, To::Nobody))
        }
        Op::Send(Of::Partition, kind) => {
            let result = match state {
                State::Partition if kind == Donate => Err(Error::NoSuchLoan),
                State::Partition => Ok(1),
                State::Shared => Err(Error::AlreadyShared { ipa }),
                State::Loan(Of::Partition, ..) => Err(Error::Loaned { ipa }),
                _ => Err(Error::NotGiven { ipa }),
            };
            (result, State::Loan(Of::Partition, kind, To::Nobody))
        }
        Op::Retrieve | Op::HostRetrieve | Op::Relinquish | Op::HostRelinquish | Op::Reclaim => {
            let State::Loan(of, kind, to) = state else { return (Err(Error::NoSuchLoan), state) };
            match (op, of, to) {
                (Op::Retrieve, _, To::Nobody) if kind == Donate => (Ok(1), State::Donated),
                (Op::Retrieve, _, To::Nobody) => (Ok(1), State::Loan(of, kind, To::Partition)),
                (Op::Retrieve, _, To::Host) => (Ok(1), State::Loan(of, kind, To::Both)),
                (Op::HostRetrieve, Of::Partition, To::Nobody) if kind == Share => {
                    (Ok(1), State::Loan(of, kind, To::Host))
                }
                (Op::HostRetrieve, Of::Partition, To::Partition) if kind == Share => {
                    (Ok(1), State::Loan(of, kind, To::Both))
                }
                (Op::Retrieve | Op::HostRetrieve, ..) => (Err(Error::NotRetrievable), state),
                (Op::Relinquish, _, To::Partition) | (Op::HostRelinquish, _, To::Host) => {
                    (Ok(1), State::Loan(of, kind, To::Nobody))
                }
                (Op::Reclaim, Of::Host, To::Nobody) => (Ok(1), State::Host),
                (Op::Reclaim, Of::Partition, To::Nobody) => (Ok(1), State::Partition),
                (Op::Reclaim, ..) => (Err(Error::Borrowed), state),
                _ => (Err(Error::NotBorrowed), state),
            }
        }
        Op::Owns => (Ok(u64::from(matches!(state, State::Host | State::Pinned))), state),
    };
    let after = if result.is_ok() { after } else { state };
    (result, after)
}

fn run(w: &mut World, op: Op, page: u64, whole: bool) -> Result<u64, Error> {
    match op {
        Op::Give(s) => w.give(s, &[range(page, 1)], OTHER),
        Op::GiveTables => w.fm.host_give_tables(&mut w.m, &[range(page, 1)]),
        Op::RecallTables => {
            let mut out = [PageRange::EMPTY; 512];
            let (ranges, pages) = w.fm.host_recall_tables(&mut w.m, &mut out, 512)?;
            assert_eq!(out[..ranges].iter().map(PageRange::page_count).sum::<u64>(), pages);
            Ok(u64::from(pages > 0))
        }
        Op::Pin => w.fm.host_pin(&w.m, Pa(page)).map(|()| 1),
        Op::Unpin => w.fm.host_unpin(Pa(page)).map(|()| 1),
        Op::Share(s) => w.share(s, IPA).map(|()| 1),
        Op::Unshare(s) => w.unshare(s, IPA).map(|()| 1),
        Op::Recall(s) => w.recall(s, IPA, 1),
        Op::Destroy(s) => w.destroy(s, 512),
        Op::Send(of, kind) => {
            let at = if of == Of::Host { page } else { IPA };
            w.send(lender(of), &[range(at, 1)], kind, false).map(|_| 1)
        }
        Op::Retrieve => {
            let place = if whole { BORROWED } else { BORROWED + OFFSET };
            w.retrieve(the_loan(), 1, place).map(|()| 1)
        }
        Op::HostRetrieve => w.fm.host_retrieve(&mut w.m, the_loan()).map(|()| 1),
        Op::Relinquish => w.relinquish(the_loan(), 1).map(|()| 1),
        Op::HostRelinquish => w.fm.relinquish(&mut w.m, the_loan(), Party::Host, false).map(|()| 1),
        Op::Reclaim => w.reclaim(the_loan()).map(|()| 1),
        Op::Owns => Ok(u64::from(w.fm.host_owns(&w.m, Pa(page), PAGE_SIZE))),
    }
}

/// Who sees the page how: "rwx" for the host, and for partitions 0 and 1 at both IPAs.
fn views(w: &mut World, page: u64) -> Vec<String> {
    let borrowed = BORROWED + OFFSET;
    let places = [(HOST_VMID, page), (2, IPA), (2, OTHER), (3, IPA), (3, OTHER), (3, borrowed)];
    let view = |m: &mut fake::FakeMachine, core: usize, (vmid, ipa): (u16, u64)| {
        let word = m.read(core, vmid, Ipa(ipa), true);
        let read = if word.is_some() { "r" } else { "-" };
        let write = if word.is_some_and(|word| m.write(core, vmid, Ipa(ipa), word)) { "w" } else { "-" };
        let execute = if m.can_execute(core, vmid, Ipa(ipa)) { "x" } else { "-" };
        [read, write, execute].concat()
    };
    let both = [0, 1].map(|core| places.map(|place| view(&mut w.m, core, place)));
    assert_eq!(both[0], both[1]);
    both[0].to_vec()
}

fn expected_views(state: State) -> [&'static str; 6] {
    let mut views = ["---"; 6];
    match state {
        State::Host | State::Pinned => views[0] = "rwx",
        State::Device => views[0] = "rw-",
        State::Shared => (views[0], views[1]) = ("rw-", "rw-"),
        State::Partition => views[1] = "rw-",
        State::Given(s) => views[2 + 2 * s] = "rw-",
        State::Donated => views[5] = "rw-",
        State::Loan(of, kind, to) => {
            match of {
                Of::Host if kind == Share => views[0] = "rwx",
                Of::Partition if kind == Share => views[1] = "rw-",
                _ => {}
            }
            if matches!(to, To::Host | To::Both) {
                views[0] = "rw-";
            }
            if matches!(to, To::Partition | To::Both) {
                views[5] = "rw-";
            }
        }
        State::Table | State::Hypervisor | State::Absent => {}
    }
    views
}

fn expected_state(state: State) -> PageState {
    match state {
        State::Host => PageState::HostOwned,
        State::Pinned => PageState::HostPinned,
        State::Device => PageState::HostDevice,
        State::Partition => PageState::Partition { slot: slot(0), ipa: Ipa(IPA) },
        State::Shared => PageState::Shared,
        State::Given(s) => PageState::Partition { slot: slot(s), ipa: Ipa(OTHER) },
        State::Donated => PageState::Partition { slot: slot(1), ipa: Ipa(BORROWED + OFFSET) },
        State::Loan(Of::Host, Share, _) => PageState::HostShared,
        State::Loan(Of::Host, ..) => PageState::HostLent,
        State::Loan(Of::Partition, _, To::Host | To::Both) => PageState::Shared,
        State::Loan(Of::Partition, ..) => PageState::Partition { slot: slot(0), ipa: Ipa(IPA) },
        State::Table => PageState::Table,
        State::Hypervisor => PageState::Hypervisor,
        State::Absent => PageState::Absent,
    }
}

#[test]
fn every_state_and_operation() {
    for whole in [false, true] {
        for state in STATES {
            let (start, page) = world(state, whole);
            for op in OPS {
                let mut w = start.clone();
                assert_eq!(views(&mut w, page), expected_views(state), "{state:?} before {op:?}");
                let (result, after) = expected(state, op, page, whole);
                assert_eq!(run(&mut w, op, page, whole), result, "{state:?} {op:?}");
                w.check();
                assert_eq!(w.state(page), expected_state(after), "{state:?} {op:?}");
                assert_eq!(views(&mut w, page), expected_views(after), "{state:?} after {op:?}");
            }
        }
    }
}
