//! The one instance of the policy, its lock, and the arch layer's ways in.
//!
//! Lock order: the policy lock, then the console's. Neither is held while a partition runs.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use hyp_core::{Exit, HostAbort, Hypervisor, Next, Outcome};
use log::info;
use smccc::smc64;
use spin::Once;
use spin::mutex::{TicketMutex, TicketMutexGuard};
use stage2::{FlexMem, HOST_VMID, MAX_PARTITIONS, Machine, Pa, Slot};

use crate::arch::features::Features;
use crate::arch::memory::{self, Hardware};
use crate::arch::mmio::Access;
use crate::arch::sysreg::mrs;
use crate::arch::{el2, gic, host, vcpu};
use crate::devices;
use crate::platform::{MAX_CPUS, Platform};

/// Roots of a stage-2 tree, for CPUs and for streams: each two concatenated level-1 tables.
#[repr(C, align(8192))]
struct Root([AtomicU64; 2048]);

static HOST_ROOT: Root = Root([const { AtomicU64::new(0) }; 2048]);
static PARTITION_ROOTS: [Root; MAX_PARTITIONS] =
    [const { Root([const { AtomicU64::new(0) }; 2048]) }; MAX_PARTITIONS];

/// Made at compile time: it is too large to pass over a boot stack. Memory is empty until [`init`].
static POLICY: TicketMutex<Hypervisor> =
    TicketMutex::new(Hypervisor::new(FlexMem::new(Pa(0), [Pa(0); MAX_PARTITIONS], 0)));
static MACHINE: Once<(Features, Platform)> = Once::new();
static PANICKING: AtomicBool = AtomicBool::new(false);
/// Which CPUs are inside a partition.
static INSIDE: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
/// Which CPUs run the host.
static ONLINE: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
/// Where a CPU that is being turned on enters the host, and x0 there.
static STARTS: [(AtomicU64, AtomicU64); MAX_CPUS] =
    [const { (AtomicU64::new(0), AtomicU64::new(0)) }; MAX_CPUS];

const PSCI_CPU_ON: u32 = 0xC400_0003;
const PSCI_SYSTEM_RESET: u32 = 0x8400_0009;
const PSCI_INVALID_PARAMETERS: u64 = -2i64 as u64;

/// Makes the ownership record, empty. `reserve` is what [`FlexMem::new`] wants.
pub fn new_memory(reserve: u64) -> FlexMem {
    let pa = |root: &Root| Pa(root as *const Root as u64);
    FlexMem::new(pa(&HOST_ROOT), PARTITION_ROOTS.each_ref().map(pa), reserve)
}

/// Installs what boot found and built. Called once.
pub fn init(features: Features, platform: Platform, memory: FlexMem) {
    MACHINE.call_once(|| (features, platform));
    *lock().memory_mut() = memory;
}

fn machine() -> &'static (Features, Platform) {
    // Set before the first exception can come.
    MACHINE.wait()
}

/// The CPUs' features.
pub fn features() -> &'static Features {
    &machine().0
}

/// The platform.
pub fn platform() -> &'static Platform {
    &machine().1
}

/// Locks the policy.
pub fn lock() -> TicketMutexGuard<'static, Hypervisor> {
    POLICY.lock()
}

/// Root of the host's stage 2.
pub fn host_root() -> u64 {
    &raw const HOST_ROOT as u64
}

/// Root of a partition's stage 2.
pub fn partition_root(slot: Slot) -> u64 {
    PARTITION_ROOTS.get(slot.index()).map_or(0, |root| root as *const Root as u64)
}

/// Whether a fault knob ([`hyp_core::knob`]) leaves a defence out: never in a shipped image.
pub fn skips(knob: u64) -> bool {
    #[cfg(feature = "fault-knobs")]
    return KNOBS.load(Ordering::Relaxed) & hyp_core::knob::bit(knob) != 0;
    #[cfg(not(feature = "fault-knobs"))]
    {
        let _ = knob;
        false
    }
}

/// Handles an SMC of the host.
pub fn host_call(cpu: usize, registers: &mut [u64; 18]) -> Outcome {
    let mut policy = lock();
    let outcome = policy.host_call(&mut Hardware, cpu, registers);
    #[cfg(feature = "fault-knobs")]
    turn_knobs(&policy);
    // Under the lock: who cuts partitions off after it must see everybody who got in before.
    if let (Outcome::Enter { .. }, Some(inside)) = (outcome, INSIDE.get(cpu)) {
        inside.store(true, Ordering::Release);
    }
    outcome
}

/// Copies of the fault knobs, which the arch layer asks for where the policy's lock may be held.
#[cfg(feature = "fault-knobs")]
static KNOBS: AtomicU64 = AtomicU64::new(0);

#[cfg(feature = "fault-knobs")]
fn turn_knobs(policy: &Hypervisor) {
    let knobs = policy.knobs();
    if KNOBS.swap(knobs, Ordering::Relaxed) != knobs {
        devices::turn_knobs(host_root());
    }
}

/// Handles a stage-2 abort of the host.
pub fn host_abort(ipa: u64, fetch: bool) -> HostAbort {
    lock().host_abort(&Hardware, ipa, fetch)
}

/// Carries out an access of the host's to what is guarded: configuration space, redistributors. False: it is neither.
pub fn host_access(ipa: u64, access: &Access, registers: &mut [u64; 31]) -> bool {
    if gic::emulates(ipa) {
        gic::access(ipa, access, registers);
    } else if devices::emulates(ipa) {
        // Under the lock: whose the NPU is does not change meanwhile.
        let policy = lock();
        devices::access(ipa, access, registers, policy.host_has_npu());
    } else {
        return false;
    }
    count_host_exit();
    true
}

/// Counts an exit that policy does not see.
pub fn count_host_exit() {
    lock().count_host_exit();
}

/// The virtual interrupts that a vCPU is owed, for its first entry.
pub fn take_pending(slot: Slot, vcpu: usize) -> u32 {
    lock().take_pending(slot, vcpu)
}

/// Handles a vCPU that came out without having taken the interrupts `unseen`; `write_back` stores its registers while it
/// still is this CPU's, or, told so, completes an access to a device that is not there, if it can. Returns the interrupts that it goes on with, or none if the host is next.
#[allow(clippy::too_many_arguments, reason = "an exit is that much")]
pub fn vcpu_exit(
    cpu: usize,
    slot: Slot,
    vcpu: usize,
    exit: Exit,
    unseen: u32,
    registers: &mut [u64; 18],
    host: &mut [u64; 18],
    mut write_back: impl FnMut(&[u64; 18], bool) -> bool,
) -> Option<u32> {
    if PANICKING.load(Ordering::Acquire) {
        leave(cpu);
        park();
    }
    let mut policy = lock();
    policy.return_pending(slot, vcpu, unseen);
    let mut next = policy.vcpu_exit(&mut Hardware, slot, vcpu, exit, registers, host);
    // An access of which the syndrome does not say enough is none that a driver makes: the partition crashes of it.
    if next == Next::NoDevice && !write_back(registers, true) {
        next = policy.vcpu_exit(&mut Hardware, slot, vcpu, Exit::Undefined { class: 0x24 }, registers, host);
    }
    if next == Next::Host {
        write_back(registers, false);
        drop(policy);
        leave(cpu);
        return None;
    }
    if next == Next::Resume {
        write_back(registers, false);
    }
    Some(policy.take_pending(slot, vcpu))
}

/// Notes whether a CPU runs the host.
pub fn note_online(cpu: usize, online: bool) {
    if let Some(flag) = ONLINE.get(cpu) {
        flag.store(online, Ordering::Release);
    }
}

/// Sends the schedule receiver interrupt to a CPU of the host: one that runs no partition if there is one, else another
/// than this, which may be about to go on with its own.
pub fn signal_host() {
    let me = mrs!("tpidr_el2") as usize;
    let cost = |cpu: usize| (is_set(&INSIDE, cpu), cpu == me);
    let online = (0..MAX_CPUS).filter(|cpu| is_set(&ONLINE, *cpu));
    let target = online.min_by_key(|cpu| cost(*cpu)).unwrap_or(me);
    if let Some(mpidr) = platform().cpus.get(target) {
        gic::signal_host(*mpidr);
    }
}

fn is_set(flags: &[AtomicBool; MAX_CPUS], cpu: usize) -> bool {
    flags.get(cpu).is_some_and(|flag| flag.load(Ordering::Acquire))
}

fn leave(cpu: usize) {
    if let Some(inside) = INSIDE.get(cpu) {
        inside.store(false, Ordering::Release);
    }
}

/// Turns a CPU on for the host, with our own entry. Returns PSCI's answer.
pub fn cpu_on(target: u64, entry: u64, context: u64) -> u64 {
    unsafe extern "C" {
        fn secondary_entry();
    }
    let Some((index, start)) = platform().cpu_index(target).and_then(|i| Some((i, STARTS.get(i)?))) else {
        return PSCI_INVALID_PARAMETERS;
    };
    start.0.store(entry, Ordering::Relaxed);
    start.1.store(context, Ordering::Release);
    let mut arguments = [0; 17];
    arguments[0] = target;
    arguments[1] = secondary_entry as *const () as u64;
    arguments[2] = index as u64;
    smc64(PSCI_CPU_ON, arguments)[0]
}

/// Takes what [`cpu_on`] left for this CPU: the host's entry and x0 there.
pub fn take_start(cpu: usize) -> (u64, u64) {
    STARTS.get(cpu).map_or((0, 0), |s| (s.0.load(Ordering::Acquire), s.1.load(Ordering::Relaxed)))
}

/// Ends all partitions at once, without the policy: their translation vanishes, so that whoever is inside comes out at
/// the next access, whatever it masked; then waits until nobody is.
fn cut_off_partitions() {
    devices::cut_off();
    for root in &PARTITION_ROOTS {
        root.0.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
    }
    for slot in Slot::all() {
        Hardware.tlbi_vmid(slot.vmid());
    }
    for mpidr in &platform().cpus {
        gic::kick(*mpidr);
    }
    let me = mrs!("tpidr_el2") as usize;
    // A CPU that is inside leaves within an instruction; the bound is for a broken machine only.
    let deadline = memory::ticks().saturating_add(10 * mrs!("cntfrq_el0"));
    let others = || INSIDE.iter().enumerate().any(|(cpu, i)| cpu != me && i.load(Ordering::Acquire));
    while others() && memory::ticks() < deadline {
        core::hint::spin_loop();
    }
}

/// Switches the machine off or resets it, as the host's registers say, once nothing of any partition is left.
pub fn shut_down(registers: &mut [u64; 18]) {
    cut_off_partitions();
    let policy = lock();
    policy.scrub_for_reset(&mut Hardware);
    vcpu::scrub_contexts();
    info!("partitions scrubbed for {:#x}", registers[0]);
    // Nobody gets past us any more: entries are refused, and the lock is kept until the machine is gone.
    let result = host::firmware(registers);
    info!("firmware refused: {:#x}; resetting", result[0]);
    let mut reset = [0; 18];
    reset[0] = u64::from(PSCI_SYSTEM_RESET);
    host::firmware(&reset);
    park();
}

/// Stops this CPU for good if another panicked.
pub fn park_if_panicking() {
    if PANICKING.load(Ordering::Acquire) {
        park();
    }
}

/// Stops this CPU for good.
pub fn park() -> ! {
    loop {
        aarch64_cpu::asm::wfe();
    }
}

/// What is left to do when the hypervisor itself failed: take every partition's memory away, zero it, stop.
pub fn panicked() -> ! {
    if PANICKING.swap(true, Ordering::AcqRel) {
        park(); // the panic of a panic, or a second CPU's
    }
    if MACHINE.is_completed() {
        cut_off_partitions();
        // SAFETY: the lock may be held by this CPU, which never returns to what it did, or by another, which waits or
        // parks at its next entry; scrubbing reads the host's tree, which is consistent at any instant, and writes
        // pages of partitions, which nobody can reach any more.
        let policy = unsafe { &*POLICY.as_mut_ptr() };
        policy.scrub_for_reset(&mut Hardware);
        vcpu::scrub_contexts();
        crate::console::emergency(format_args!("partitions scrubbed; stopped"));
    }
    park()
}

/// Enters the host on this CPU for the first time.
pub fn enter_host(cpu: usize, entry: u64, argument: u64) -> ! {
    unsafe extern "C" {
        fn enter_host(argument: u64, entry: u64) -> !;
    }
    let (features, platform) = machine();
    if let Some(region) = platform.redistributors {
        gic::find_redistributor(cpu, region);
    }
    el2::configure(features, host_root(), HOST_VMID);
    note_online(cpu, true);
    // SAFETY: drops to EL1 behind the host's stage 2; the EL2 stack of this CPU starts anew.
    unsafe { enter_host(argument, entry) }
}
