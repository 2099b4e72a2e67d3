//! The NPU: one owner, who is asked before it is forced, and a switch with nothing left behind.

use super::*;
use hyp_abi::ffa::error::{ABORTED, BUSY, DENIED, NOT_SUPPORTED};
use hyp_abi::service::{crash, npu, run_exit};
use stage2::Party;
use stage2::fake::STREAM;

/// Registers of the NPU: four pages, with a GiB of their own.
pub const WINDOW: u64 = 200 << 30;
const INSIDE: u64 = 1 << 39;
const LAYOUT: NpuLayout = NpuLayout { offsets: 0x3000_2000_1000_0000, notify_multiplier: 4 };
/// In the fake's ticks: how long a holder is left alone, and how long it has in all once another asks.
const SLICE: u64 = 50_000;
const GRACE: u64 = SLICE + 200_000;
const RESERVE: u64 = 20_000;
const HOST: u16 = stage2::HOST_VMID;

/// An NPU that looks around at every step: nobody may reach its registers, and its stream has one owner at most.
#[derive(Default)]
pub struct FakeNpu {
    pub steps: Vec<NpuStep>,
    pub stream: Option<(u16, u64)>,
    pub interrupt: bool,
    pub broken: bool,
    pub jobs: u64,
    pub blocked: u64,
}

impl FakeNpu {
    pub fn step(&mut self, step: NpuStep, machine: &mut FakeMachine) -> Result<(), NpuFault> {
        assert_eq!(reachers(machine), [], "{step:?} while somebody reaches the registers");
        self.steps.push(step);
        machine.now += 3;
        match step {
            NpuStep::Reset if self.broken => return Err(NpuFault),
            NpuStep::Reset => self.jobs = 0,
            NpuStep::Detach { vmid } => {
                assert_eq!(self.stream.take().map(|(owner, _)| owner), Some(vmid));
                machine.tlbi_vmid(vmid);
            }
            NpuStep::Attach { vmid, root } => assert_eq!(self.stream.replace((vmid, root.0)), None),
            NpuStep::Interrupt { enabled } => self.interrupt = enabled,
        }
        Ok(())
    }
}

/// VMIDs that reach the registers.
fn reachers(machine: &mut FakeMachine) -> Vec<u16> {
    let partitions = Slot::all().map(|slot| (slot.vmid(), INSIDE));
    let all = partitions.chain([(HOST, WINDOW)]).collect::<Vec<_>>();
    let mut reached = all.clone();
    reached.retain(|&(vmid, ipa)| machine.read(0, vmid, stage2::Ipa(ipa), true).is_some());
    for (vmid, ipa) in all {
        assert!(machine.read(0, vmid | STREAM, stage2::Ipa(ipa), true).is_none(), "by DMA");
    }
    reached.into_iter().map(|(vmid, _)| vmid).collect()
}

fn world() -> World {
    let mut world = World::new();
    let World { platform, hyp } = &mut world;
    let window = PageRange::new(Pa(WINDOW), 4).unwrap();
    let tables = [Pa(HYPERVISOR + 0xf_0000), Pa(HYPERVISOR + 0xf_1000)];
    hyp.memory_mut().boot_window(platform, window, tables).unwrap();
    hyp.install_npu(platform, LAYOUT);
    world
}

impl World {
    /// The only owner by every measure.
    fn assert_owner(&mut self, party: Party) {
        let vmid = match party {
            Party::Host => HOST,
            Party::Partition(slot) => slot.vmid(),
        };
        assert_eq!(reachers(&mut self.platform.machine), [vmid]);
        let expected = self.hyp.memory().stream_root(party).unwrap();
        assert_eq!(self.platform.npu.stream, Some((expected.0, expected.1.0)));
        assert_eq!(self.platform.npu.interrupt, party == Party::Host);
        assert_eq!(self.hyp.host_has_npu(), party == Party::Host);
        assert_eq!(self.platform.machine.stale(), None);
    }

    fn inside(&mut self) -> (u64, Party) {
        let id = self.inside_at(PAGES, 1);
        (id, Party::Partition(slot(id)))
    }
}

#[test]
fn without_an_npu_there_is_none() {
    let mut world = World::new();
    for operation in [op::NPU_STATE, op::NPU_ACQUIRE, op::NPU_RELEASE] {
        assert_eq!(world.request(operation, &[]).0, NOT_SUPPORTED);
    }
    assert_eq!(world.system_stats().npu, hyp_abi::stats::NpuStats::NONE);
}

#[test]
fn it_starts_with_the_host_and_goes_round() {
    let mut world = world();
    world.assert_owner(Party::Host);
    let [flags, ipa, offsets, shape] = world.ok(op::NPU_STATE, &[]);
    assert_eq!((flags, ipa), (1 << npu::GENERATION_SHIFT, WINDOW), "free, first owner");
    assert_eq!((offsets, shape), (LAYOUT.offsets, 4 << 32 | 4));

    let (id, party) = world.inside();
    let (status, [flags, ipa, ..]) = world.guest_request(id, op::NPU_ACQUIRE, &[]);
    assert_eq!((status, flags, ipa), (0, npu::HELD | 2 << npu::GENERATION_SHIFT, INSIDE));
    world.assert_owner(party);
    assert_eq!(
        world.platform.npu.steps.split_off(3),
        [
            NpuStep::Reset,
            NpuStep::Detach { vmid: HOST },
            NpuStep::Attach { vmid: slot(id).vmid(), root: world.hyp.memory().stream_root(party).unwrap().1 },
            NpuStep::Interrupt { enabled: false },
        ]
    );
    // Again: nothing changes.
    let again = world.guest_request(id, op::NPU_ACQUIRE, &[]);
    assert_eq!((again.0, again.1[0]), (0, flags));
    world.platform.npu.jobs = 7;
    assert_eq!(world.guest_request(id, op::NPU_RELEASE, &[]).0, 0);
    world.assert_owner(party);
    assert_eq!(world.ok(op::NPU_ACQUIRE, &[])[0], npu::HELD | 3 << npu::GENERATION_SHIFT);
    world.assert_owner(Party::Host);
    let stats = world.system_stats().npu;
    assert_eq!((stats.jobs, stats.switches, stats.forced), (7, 3, 0));
    let SwitchParts(parts) = SwitchParts::of(&stats.last);
    assert!(parts.iter().all(|ticks| *ticks > 0), "{parts:?}");
}

struct SwitchParts([u64; 5]);

impl SwitchParts {
    fn of(cost: &hyp_abi::stats::SwitchCost) -> Self {
        Self([cost.close, cost.reset, cost.detach, cost.attach, cost.open])
    }
}

#[test]
fn a_switch_costs_the_same_whatever_a_partition_holds() {
    let costs = [1, 200, 512].map(|pages| {
        let mut world = world();
        let id = world.running();
        assert_eq!(world.give(id, HEAP + 16 * PAGE, PAGES + 0x40_0000, pages).0, 0);
        world.enter(id, 0, 1);
        assert_eq!(world.guest_request(id, op::NPU_ACQUIRE, &[]).0, 0);
        assert_eq!(world.guest_request(id, op::NPU_RELEASE, &[]).0, 0);
        let there = world.system_stats().npu.last;
        world.ok(op::NPU_ACQUIRE, &[]);
        (SwitchParts::of(&there).0, SwitchParts::of(&world.system_stats().npu.last).0)
    });
    assert_eq!(costs[0], costs[1]);
    assert_eq!(costs[0], costs[2]);
}

#[test]
fn who_holds_it_is_asked_and_then_forced() {
    let mut world = world();
    world.ok(op::NPU_ACQUIRE, &[]);
    let (id, party) = world.inside();
    let (status, [left, ..]) = world.guest_request(id, op::NPU_ACQUIRE, &[]);
    assert_eq!(status, BUSY);
    assert!((1..=GRACE).contains(&left), "{left}");
    assert_eq!(world.ok(op::NPU_STATE, &[])[0] & npu::WANTED, 0, "it may work for a while");
    world.platform.machine.now += SLICE;
    assert_ne!(world.ok(op::NPU_STATE, &[])[0] & npu::WANTED, 0, "the host is told");
    assert_eq!(world.guest_request(id, op::NPU_STATE, &[]).1[0] & (npu::HELD | npu::WANTED), 0);
    world.assert_owner(Party::Host);
    // In time; and not snatched away again.
    world.ok(op::NPU_RELEASE, &[]);
    let (status, [left, ..]) = world.request(op::NPU_ACQUIRE, &[]);
    assert_eq!((status, (1..=RESERVE).contains(&left)), (BUSY, true), "{left}");
    assert_eq!(world.guest_request(id, op::NPU_ACQUIRE, &[]).0, 0);
    world.assert_owner(party);
    assert_eq!(world.system_stats().npu.forced, 0);
    // Not in time.
    assert_eq!(world.request(op::NPU_ACQUIRE, &[]).0, BUSY);
    world.platform.machine.now += GRACE / 2;
    assert_eq!(world.request(op::NPU_ACQUIRE, &[]).0, BUSY);
    world.assert_owner(party);
    assert_ne!(world.guest_request(id, op::NPU_STATE, &[]).1[0] & npu::WANTED, 0);
    world.platform.machine.now += GRACE;
    world.ok(op::NPU_ACQUIRE, &[]);
    world.assert_owner(Party::Host);
    assert_eq!(world.system_stats().npu.forced, 1);
    assert_eq!(world.guest_request(id, op::NPU_RELEASE, &[]).0, DENIED, "it is not its any more");
}

#[test]
fn the_first_who_asks_is_served_first() {
    let mut world = world();
    world.ok(op::NPU_ACQUIRE, &[]);
    let (first, _) = world.inside();
    let second = world.inside_at(PAGES + 0x100_0000, 0);
    assert_eq!(world.guest_request(first, op::NPU_ACQUIRE, &[]).0, BUSY);
    world.platform.machine.now += GRACE;
    assert_eq!(world.guest_request(second, op::NPU_ACQUIRE, &[]).0, BUSY, "not its turn");
    world.assert_owner(Party::Host);
    assert_eq!(world.guest_request(first, op::NPU_ACQUIRE, &[]).0, 0);
    assert_eq!(world.guest_request(second, op::NPU_ACQUIRE, &[]).0, BUSY);
    // One that ends while it waits holds nobody up.
    assert_eq!(world.request(op::STOP, &[first]).0, BUSY);
    assert_eq!(world.guest_request(second, op::NPU_ACQUIRE, &[]).0, 0);
}

#[test]
fn who_asks_and_does_not_come_back_keeps_nobody_waiting() {
    let mut world = world();
    let (holder, _) = world.inside();
    let absent = world.inside_at(PAGES + 0x100_0000, 0);
    assert_eq!(world.guest_request(holder, op::NPU_ACQUIRE, &[]).0, 0);
    assert_eq!(world.guest_request(absent, op::NPU_ACQUIRE, &[]).0, BUSY);
    // The two of them could keep it from the host for ever.
    assert_eq!(world.request(op::NPU_ACQUIRE, &[]).0, BUSY);
    world.platform.machine.now += 2 * GRACE;
    assert_eq!(world.request(op::NPU_ACQUIRE, &[]).0, BUSY, "the holder is asked anew");
    world.platform.machine.now += GRACE;
    world.ok(op::NPU_ACQUIRE, &[]);
    world.assert_owner(Party::Host);
}

#[test]
fn what_is_kept_for_one_who_does_not_come_is_anothers() {
    let mut world = world();
    world.ok(op::NPU_ACQUIRE, &[]);
    let (first, _) = world.inside();
    let second = world.inside_at(PAGES + 0x100_0000, 0);
    assert_eq!(world.guest_request(first, op::NPU_ACQUIRE, &[]).0, BUSY);
    world.ok(op::NPU_RELEASE, &[]);
    assert_eq!(world.guest_request(second, op::NPU_ACQUIRE, &[]).0, BUSY);
    world.platform.machine.now += RESERVE;
    assert_eq!(world.guest_request(second, op::NPU_ACQUIRE, &[]).0, 0);
    assert_eq!(world.guest_request(first, op::NPU_ACQUIRE, &[]).0, BUSY, "and may ask anew");
}

#[test]
fn only_who_holds_it_releases_it() {
    let mut world = world();
    assert_eq!(world.request(op::NPU_RELEASE, &[]).0, DENIED);
    let (id, _) = world.inside();
    assert_eq!(world.guest_request(id, op::NPU_RELEASE, &[]).0, DENIED);
    world.ok(op::NPU_ACQUIRE, &[]);
    assert_eq!(world.guest_request(id, op::NPU_RELEASE, &[]).0, DENIED);
    world.ok(op::NPU_RELEASE, &[]);
    assert_eq!(world.request(op::NPU_RELEASE, &[]).0, DENIED);
}

#[test]
fn a_partition_that_ends_loses_it_first() {
    for how in 0..4 {
        let mut world = world();
        let (id, party) = world.inside();
        assert_eq!(world.guest_request(id, op::NPU_ACQUIRE, &[]).0, 0);
        world.assert_owner(party);
        let service = id << 16 | u64::from(abi::SERVICE_ID);
        match how {
            0 => {
                let call = [abi::MSG_SEND_DIRECT_REQ_64.into(), service, 0, op::EXIT, 0];
                assert_eq!(world.exit(id, 0, Exit::Call, &call).0, Next::Host);
            }
            1 => assert_eq!(world.exit(id, 0, Exit::SError, &[]).0, Next::Host),
            // A vCPU is still inside: the NPU is gone all the same.
            2 => assert_eq!(world.request(op::STOP, &[id]).0, BUSY),
            _ => assert_eq!(world.request(op::DESTROY, &[id]).0, BUSY),
        }
        world.assert_owner(Party::Host);
        if how > 1 {
            assert_eq!(world.exit(id, 0, Exit::Kick, &[]).0, Next::Host);
        }
        world.destroy(id);
        world.assert_owner(Party::Host);
    }
}

#[test]
fn an_npu_that_does_not_come_back_is_nobodys() {
    let mut world = world();
    let (id, _) = world.inside();
    assert_eq!(world.guest_request(id, op::NPU_ACQUIRE, &[]).0, 0);
    world.platform.npu.broken = true;
    world.platform.machine.now += 2 * GRACE;
    assert_eq!(world.request(op::NPU_ACQUIRE, &[]).0, BUSY);
    world.platform.machine.now += 2 * GRACE;
    assert_eq!(world.request(op::NPU_ACQUIRE, &[]).0, ABORTED);
    assert_eq!(reachers(&mut world.platform.machine), []);
    for _ in 0..2 {
        assert_eq!(world.guest_request(id, op::NPU_ACQUIRE, &[]).0, ABORTED);
        assert_eq!(world.request(op::NPU_RELEASE, &[]).0, DENIED);
    }
    assert!(!world.hyp.host_has_npu());
    assert_eq!(world.platform.npu.stream, None, "it reaches nothing");
    world.platform.npu.broken = false;
    world.ok(op::NPU_ACQUIRE, &[]);
    world.assert_owner(Party::Host);
}

#[test]
fn registers_of_an_npu_that_is_anothers_are_no_device() {
    let mut world = world();
    let (id, _) = world.inside();
    let abort = |ipa, fetch| Exit::Abort { ipa, write: false, fetch };
    assert_eq!(world.hyp.host_abort(&world.platform, WINDOW, false), HostAbort::Retry);
    assert_eq!(world.exit(id, 0, abort(INSIDE + 0x3fff, false), &[]).0, Next::NoDevice);
    assert_eq!(world.guest_request(id, op::NPU_ACQUIRE, &[]).0, 0);
    for (ipa, fetch, expected) in [
        (WINDOW, false, HostAbort::NoDevice),
        (WINDOW + 0x3fff, false, HostAbort::NoDevice),
        (WINDOW, true, HostAbort::Inject),
        (WINDOW + 0x4000, false, HostAbort::Inject),
        (WINDOW - 1, false, HostAbort::Inject),
    ] {
        assert_eq!(world.hyp.host_abort(&world.platform, ipa, fetch), expected, "{ipa:x}");
    }
    assert_eq!(world.system_stats().blocked_accesses, 3, "to find no device is no offence");
    for (ipa, fetch) in [(INSIDE, true), (INSIDE + 0x4000, false), (INSIDE - 1, false)] {
        let (next, _, host) = world.exit(id, 0, abort(ipa, fetch), &[]);
        assert_eq!((next, host[4], host[5]), (Next::Host, run_exit::CRASHED, crash::ABORT), "{ipa:x}");
        world.destroy(id);
        assert_eq!(world.inside().0, id);
    }
}

#[cfg(feature = "fault-knobs")]
#[test]
fn knobs_leave_the_reset_and_the_interrupt() {
    let mut world = world();
    let (id, _) = world.inside();
    for (knob, step) in [
        (crate::knob::NPU_RESET, NpuStep::Reset),
        (crate::knob::NPU_INTERRUPT, NpuStep::Interrupt { enabled: false }),
    ] {
        world.ok(op::NPU_ACQUIRE, &[]);
        world.ok(op::NPU_RELEASE, &[]);
        world.platform.npu.steps.clear();
        world.ok(op::KNOB, &[knob, 1]);
        assert_eq!(world.guest_request(id, op::NPU_ACQUIRE, &[]).0, 0);
        assert_eq!(world.guest_request(id, op::NPU_RELEASE, &[]).0, 0);
        assert!(!world.platform.npu.steps.contains(&step));
        world.ok(op::KNOB, &[knob, 0]);
    }
}
