//! Transition matrix: every state of a page x every operation on it, the exact result, all views asserted afterwards; for
//! a single page and for a page in the midst of 2 MiB in the same state.

use super::*;

/// Where partition 0 sees the page in the states in which it has it.
const IPA: u64 = 0x1_0000_0000 + OFFSET;
/// Where partition 1 is given the page, and partition 0 once more.
const OTHER: u64 = 0x2_0000_0000;
const OFFSET: u64 = 7 * PAGE_SIZE;

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
}

const STATES: [State; 8] = [
    State::Host,
    State::Pinned,
    State::Device,
    State::Partition,
    State::Shared,
    State::Table,
    State::Hypervisor,
    State::Absent,
];

const OPS: [Op; 15] = [
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
];

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
        State::Partition | State::Shared => {
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
    w.check();
    (w, page)
}

/// What the specification says: the result (1: yes, or done) and the state afterwards.
fn expected(state: State, op: Op, page: u64) -> (Result<u64, Error>, State) {
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
        Op::Share(_) | Op::Unshare(_) | Op::Recall(_) => (Err(Error::NotGiven { ipa }), state),
        Op::Destroy(0) if mine => (Ok(0), State::Host),
        Op::Destroy(_) => (Ok(0), state),
        Op::Owns => (Ok(u64::from(matches!(state, State::Host | State::Pinned))), state),
    };
    let after = if result.is_ok() { after } else { state };
    (result, after)
}

fn run(w: &mut World, op: Op, page: u64) -> Result<u64, Error> {
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
        Op::Owns => Ok(u64::from(w.fm.host_owns(&w.m, Pa(page), PAGE_SIZE))),
    }
}

/// Who sees the page how: "rwx" for the host, and for partitions 0 and 1 at both IPAs.
fn views(w: &mut World, page: u64) -> Vec<String> {
    let places = [(HOST_VMID, page), (2, IPA), (2, OTHER), (3, IPA), (3, OTHER)];
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

fn expected_views(state: State) -> [&'static str; 5] {
    let mut views = ["---"; 5];
    match state {
        State::Host | State::Pinned => views[0] = "rwx",
        State::Device => views[0] = "rw-",
        State::Shared => (views[0], views[1]) = ("rw-", "rw-"),
        State::Partition => views[1] = "rw-",
        State::Given(s) => views[2 + 2 * s] = "rw-",
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
                let (result, after) = expected(state, op, page);
                assert_eq!(run(&mut w, op, page), result, "{state:?} {op:?}");
                w.check();
                assert_eq!(w.state(page), expected_state(after), "{state:?} {op:?}");
                assert_eq!(views(&mut w, page), expected_views(after), "{state:?} after {op:?}");
            }
        }
    }
}
