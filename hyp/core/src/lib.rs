//! Hypervisor policy: what the host and the partitions may ask for, and what they get.
//!
//! FF-A dispatcher for both sides ([`ffa`](https://developer.arm.com/documentation/den0077) 1.2), the vendor service
//! ([`hyp_abi::service`]), the life of partitions, measuring, PSCI mediation and the SMC allow-list. Pure policy:
//! `no_std`, no unsafe code, no allocation, tested on the development machine. It depends on [`stage2`] for memory and
//! ownership and is called by the arch layer of the `hyp` binary, which implements [`Platform`].
//!
//! # Properties
//! - One lock: the caller holds it for each call; `&mut Hypervisor` is its witness.
//! - Total: every call, with any register values, returns; none panics (fault knob `PANIC` excepted).
//! - Bounded: a call moves at most [`stage2::STEP_PAGES`] pages or hashes [`hyp_abi::service::MEASURE_STEP_PAGES`].
//! - Single fetch: a list or a manifest is copied once from the TX buffer, then validated, then used.
//! - No call of a partition blocks the hypervisor. One that names another partition leaves it a message, where it made
//!   room for one, a notification that it asked for, or an offer of memory, which it may retrieve; nothing else.
//!
//! # Life of a partition
//! ```text
//! CREATE      MEASURE        last MEASURE     START
//! -----> Created ----> Measuring ----> Measured ----> Running --> Ended (finished, crashed)
//!            |             |               |             |          |
//!            +-------------+---- STOP -----+-------------+-> Ended (stopped)
//!            +--------- DESTROY, from every state ------------> Dying --> gone
//! ```
//!
//! # Duties of the arch layer
//! - [`Outcome::Enter`]: the vCPU is marked as inside on that CPU until [`Hypervisor::vcpu_exit`] returns
//!   [`Next::Host`]. From that return on another CPU may enter it and its memory may go: its context is saved and its
//!   stage 2 no longer in use on this CPU *before* `vcpu_exit` is called, and put back for [`Next::Resume`].
//! - Every entry is preceded by a look at [`Platform::kick`]'s flag, or the kick is an interrupt that stays pending. It is
//!   preceded by [`Hypervisor::take_pending`] too, and what the vCPU did not take before it comes out is given back by
//!   [`Hypervisor::return_pending`] if it could have taken it.
//! - A vCPU that enters a CPU where another vCPU of its partition ran last finds none of that one's stage-1 translations.
//! - [`Outcome::Shutdown`]: release the lock, wait (bounded) until [`Hypervisor::vcpus_inside`] is false, then call
//!   [`Hypervisor::scrub_for_reset`] and forward the call.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod discovery;
mod ffa;
mod guest;
pub mod interrupt;
pub mod knob;
mod logs;
mod manifest;
mod memory;
mod message;
mod notification;
mod npu;
mod partition;
mod private;
mod psci;
mod service;
#[cfg(test)]
mod tests;

pub use ffa::is_ffa;
pub use npu::{NpuFault, NpuLayout, NpuStep};

use hyp_abi::service::{MAX_PARTITIONS, MAX_RANGES};
use partition::Partition;
use stage2::{FlexMem, Pa, PageRange, PageState, Party, Slot};

const _: () = assert!(MAX_PARTITIONS == stage2::MAX_PARTITIONS);
const _: () = assert!(hyp_abi::service::STEP_PAGES == stage2::STEP_PAGES);

/// What the arch layer does for this crate, beyond [`stage2::Machine`].
pub trait Platform: stage2::Machine {
    /// Copies a page out, once. The page is the host's mailbox or a partition's; ownership is checked by the caller.
    fn read_page(&self, page: Pa, buffer: &mut [u8; 4096]);

    /// Copies `bytes` into an RX buffer, the host's or a partition's, at `offset`; `offset + bytes.len()` is at most 4096.
    fn write_page(&mut self, page: Pa, offset: usize, bytes: &[u8]);

    /// Ticks of [`stage2::Machine::ticks`] per second; not 0.
    fn ticks_per_second(&self) -> u64;

    /// Makes a vCPU's context fresh: EL1, MMU off, all registers zero, PC at `entry` (an IPA), x0 = `argument`.
    fn reset_vcpu(&mut self, slot: Slot, vcpu: usize, entry: u64, argument: u64);

    /// Sets x0-x17 of a vCPU that is not inside: a message that it waited for.
    fn set_registers(&mut self, slot: Slot, vcpu: usize, registers: &[u64; 18]);

    /// Makes a CPU leave the partition that it runs soon (an SGI); returns at once. Lost kicks are repeated by the host,
    /// which sees BUSY.
    fn kick(&mut self, cpu: usize);

    /// Asks the host to run the vCPUs that wait (the schedule receiver interrupt, an SGI to one of its CPUs); returns at
    /// once. A hint: a lost one costs the partition time only.
    fn signal_host(&mut self);

    /// When the virtual timer of a vCPU that just came out fires, in ticks of the virtual counter; none: it is off.
    fn timer_deadline(&self, slot: Slot, vcpu: usize) -> Option<u64>;

    /// Does a step of a change of the NPU's owner.
    fn npu(&mut self, step: NpuStep) -> Result<(), NpuFault>;

    /// Jobs that the NPU has ended since its last reset, as it says.
    fn npu_jobs(&self) -> u64;

    /// Accesses of devices that the SMMU has refused since boot, as far as it reported them.
    fn dma_blocked(&self) -> u64;
}

/// What the arch layer does next for the host's CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The registers are set: return to the host.
    Return,
    /// FFA_RUN or a direct request is accepted; the vCPU counts as inside on this CPU. Run it.
    Enter {
        /// The partition.
        slot: Slot,
        /// Its vCPU.
        vcpu: usize,
    },
    /// Forward x0-x3 as they are to EL3 and give the host x0-x3 of the result.
    Firmware,
    /// PSCI CPU_ON, checked: turn on the CPU with the arch layer's own entry; it then enters the host at `entry`, EL1, MMU off, with
    /// x0 = `context`. x0 of the host's registers gets firmware's result.
    CpuOn {
        /// MPIDR of the CPU.
        target: u64,
        /// Physical address where the host starts.
        entry: u64,
        /// x0 there.
        context: u64,
    },
    /// SYSTEM_OFF, SYSTEM_RESET or SYSTEM_RESET2: no vCPU enters any more, those inside are kicked. See the crate's
    /// documentation for what follows. x0-x3 hold the call. Should firmware refuse RESET2, use SYSTEM_RESET.
    Shutdown,
}

/// What to do about an access of the host that its stage 2 refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAbort {
    /// The page is the host's (by now): the access met a break-before-make window. Return and let it repeat.
    Retry,
    /// Not the host's: inject a synchronous external abort.
    Inject,
    /// Registers of the NPU, which another owns: there is no device for now. A read gives ones, a write is ignored; an access
    /// without a valid syndrome is as [`Self::Inject`].
    NoDevice,
}

/// Why a vCPU came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// SMC; ELR is past it.
    Call,
    /// An interrupt of the host (or a kick) is pending.
    Interrupt,
    /// A kick and nothing else: the host is not wanted, unless the partition ended.
    Kick,
    /// A write of ICC_SGI1R_EL1: an interrupt to vCPUs of the same partition; ELR is past it.
    Sgi {
        /// What was written.
        value: u64,
    },
    /// WFI with nothing pending.
    WaitForInterrupt {
        /// Value of the virtual counter at which the virtual timer fires; none when it is off or masked.
        deadline: Option<u64>,
    },
    /// Stage-2 abort.
    Abort {
        /// Faulting IPA.
        ipa: u64,
        /// Whether it was a write (a stage-1 walk that updates descriptors included).
        write: bool,
        /// Whether it was an instruction fetch.
        fetch: bool,
    },
    /// An instruction, register or access that is not the partition's to use.
    Undefined {
        /// Exception class, ESR_EL2.EC.
        class: u64,
    },
    /// SError taken while the vCPU ran.
    SError,
}

/// What happens to the vCPU next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on with the vCPU; its registers are up to date.
    Resume,
    /// Go on with the vCPU: its data abort was an access to a device that is not there for it. A read gave ones, a write
    /// nothing. It crashes if the access has no valid syndrome.
    NoDevice,
    /// Return to the host; its registers hold the result of FFA_RUN, the guest's what it sees when it is run again.
    Host,
}

/// What the hypervisor counts itself; the rest is in [`stage2::Counters`].
#[derive(Debug, Default)]
struct Counters {
    blocked_accesses: u64,
    refused_calls: u64,
    host_exits: u64,
    world_switches: u64,
}

/// The host's buffers.
#[derive(Clone, Copy, Debug)]
struct Mailbox {
    tx: Pa,
    rx: Pa,
    /// Whether the host still reads RX.
    rx_full: bool,
}

/// All of the hypervisor's policy state; fixed size, no allocation.
pub struct Hypervisor {
    memory: FlexMem,
    /// Pages of secure RAM that partitions have, where there is such RAM.
    secure: Option<FlexMem>,
    partitions: [Option<Partition>; MAX_PARTITIONS],
    version: ffa::Negotiation,
    mailbox: Option<Mailbox>,
    /// Between the host's BITMAP_CREATE and BITMAP_DESTROY.
    host_notifications: Option<notification::HostNotifications>,
    /// By slot; kept from creation to destruction.
    logs: [logs::Log; MAX_PARTITIONS],
    /// Lines of all partitions in the trusted log.
    mirrored: logs::Rate,
    /// Changes with the set of partitions; never 0.
    generation: u16,
    transactions: memory::Transactions,
    counters: Counters,
    npu: npu::Npu,
    knobs: knob::Knobs,
    shutting_down: bool,
    /// Copies of what the host or a page says. Never holds anything between calls that matters later.
    buffer: [u8; 4096],
    ranges: [PageRange; MAX_RANGES],
}

impl Hypervisor {
    /// Starts with the memory as it is at boot and without partitions.
    pub const fn new(memory: FlexMem) -> Self {
        Self {
            memory,
            secure: None,
            partitions: [const { None }; MAX_PARTITIONS],
            version: ffa::Negotiation::new(),
            mailbox: None,
            host_notifications: None,
            logs: [const { logs::Log::EMPTY }; MAX_PARTITIONS],
            mirrored: logs::Rate::new(),
            generation: 1,
            transactions: memory::Transactions::NONE,
            counters: Counters { blocked_accesses: 0, refused_calls: 0, host_exits: 0, world_switches: 0 },
            npu: npu::Npu::NONE,
            knobs: knob::Knobs::new(),
            shutting_down: false,
            buffer: [0; 4096],
            ranges: [PageRange::EMPTY; MAX_RANGES],
        }
    }

    /// The ownership record: for look-ups, and for [`Platform`]'s needs such as [`FlexMem::stream_root`].
    pub fn memory(&self) -> &FlexMem {
        &self.memory
    }

    /// The ownership record, for the boot calls only.
    pub fn memory_mut(&mut self) -> &mut FlexMem {
        &mut self.memory
    }

    /// Handles an SMC #0 of the host. `regs` are x0-x17; results are in x0-x7 for FF-A, in x0 otherwise, and the
    /// others are kept. Counts one exit of the host.
    pub fn host_call(&mut self, platform: &mut impl Platform, cpu: usize, regs: &mut [u64; 18]) -> Outcome {
        self.counters.host_exits += 1;
        let function = regs[0] as u32;
        if ffa::is_ffa(function) {
            self.host_ffa(platform, cpu, function, regs)
        } else {
            self.host_firmware_call(platform, function, regs)
        }
    }

    /// Answers what is never allowed (HVC, SMC with another immediate): NOT_SUPPORTED. Counts one exit of the host.
    pub fn host_refuse(&mut self, regs: &mut [u64; 18]) {
        self.counters.host_exits += 1;
        self.counters.refused_calls += 1;
        regs[0] = psci::code::NOT_SUPPORTED;
    }

    /// Counts exits of the host that needed no policy (a trapped register).
    pub fn count_host_exits(&mut self, count: u64) {
        self.counters.host_exits += count;
    }

    /// Decides about a stage-2 abort of the host at `ipa`. Counts one exit of the host, and an
    /// access that is blocked.
    pub fn host_abort(&mut self, platform: &impl Platform, ipa: u64, fetch: bool) -> HostAbort {
        self.counters.host_exits += 1;
        let retry = match self.memory.host_state(platform, Pa(ipa)) {
            PageState::HostOwned | PageState::HostPinned | PageState::HostShared => true,
            // Never executable for the host, so a fetch would repeat for ever.
            PageState::HostDevice | PageState::Shared => !fetch,
            PageState::Partition { .. }
            | PageState::HostLent
            | PageState::Table
            | PageState::Hypervisor
            | PageState::Absent => false,
        };
        if retry {
            return HostAbort::Retry;
        }
        if !fetch && self.memory.window().is_some_and(|window| window.holds(Party::Host, ipa)) {
            return HostAbort::NoDevice;
        }
        self.counters.blocked_accesses += 1;
        HostAbort::Inject
    }

    /// Boot: there is an NPU. Its window is made, its stream aborts; it becomes the host's.
    pub fn install_npu(&mut self, platform: &mut impl Platform, layout: NpuLayout) {
        let Self { npu, memory, knobs, .. } = self;
        npu.install(npu::Context { platform, memory, knobs }, layout);
    }

    /// Whether the host finds the NPU on its bus: not while another owns it.
    pub fn host_has_npu(&self) -> bool {
        !self.npu.is_partitions()
    }

    /// A partition has ended, or is about to lose its pages: the NPU is not its any more.
    fn take_npu_from(&mut self, platform: &mut impl Platform, slot: Slot) {
        let Self { npu, memory, knobs, .. } = self;
        npu.leave(npu::Context { platform, memory, knobs }, Party::Partition(slot));
    }

    /// Whether any vCPU is inside on any CPU.
    pub fn vcpus_inside(&self) -> bool {
        self.partitions.iter().flatten().any(Partition::is_inside)
    }

    /// Takes the virtual interrupts that a vCPU is owed, a bit each; called before each entry, on the CPU that enters.
    pub fn take_pending(&mut self, slot: Slot, vcpu: usize) -> u32 {
        let partition = self.partitions.get_mut(slot.index()).and_then(Option::as_mut);
        partition.and_then(|partition| partition.pending.get_mut(vcpu)).map_or(0, core::mem::take)
    }

    /// Gives back what [`Self::take_pending`] gave, the vCPU could have taken and did not; called before
    /// [`Self::vcpu_exit`], so that a vCPU does not wait for what is there.
    pub fn return_pending(&mut self, slot: Slot, vcpu: usize, interrupts: u32) {
        let partition = self.partitions.get_mut(slot.index()).and_then(Option::as_mut);
        if let Some(pending) = partition.and_then(|partition| partition.pending.get_mut(vcpu)) {
            *pending |= interrupts & interrupt::ALL;
        }
    }

    /// The fault knobs that leave a defence out, by [`knob::bit`]: for those of the arch layer.
    #[cfg(feature = "fault-knobs")]
    pub fn knobs(&self) -> u64 {
        self.knobs.bits()
    }

    /// Zeroes every page of every partition, before a reset or by the panic handler. Walks at most all partition pages.
    pub fn scrub_for_reset(&self, platform: &mut impl Platform) {
        self.memory.scrub_all(platform);
        self.secure.iter().for_each(|secure| secure.scrub_all(platform));
    }

    /// Forbids every further entry and kicks out who is inside.
    fn begin_shutdown(&mut self, platform: &mut impl Platform) {
        self.shutting_down = true;
        for partition in self.partitions.iter_mut().flatten() {
            partition.stop();
            partition.kick(platform);
        }
    }

    /// The set of partitions changed.
    fn next_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1).max(1);
    }

    /// Whether the page that holds `pa` is RAM of the host's alone.
    fn host_owns_page(&self, platform: &impl Platform, pa: u64) -> bool {
        matches!(self.memory.host_state(platform, Pa(pa)), PageState::HostOwned | PageState::HostPinned)
    }
}
