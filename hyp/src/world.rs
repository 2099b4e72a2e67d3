//! The one instance of the policy, its lock, and the arch layer's ways in.
//!
//! Lock order: the policy lock, then the console's. Neither is held while a partition runs.

use core::sync::atomic::{AtomicBool, Ordering};
use hyp_core::{Exit, HostAbort, Hypervisor, Next, Outcome};
use log::info;
use spin::Once;
use spin::mutex::{TicketMutex, TicketMutexGuard};
use stage2::{FlexMem, HOST_VMID, HostMemory, MAX_PARTITIONS, Machine, Pa, Slot};

use crate::arch::host::Abort;
use crate::arch::memory::{self, Hardware};
use crate::arch::mmio::Access;
use crate::arch::sysreg::mrs;
use crate::arch::{el2, gic, vcpu};
use crate::arena::SECURE_SIZE;
use crate::machine::{is_panicking, note_panic, park};
use crate::platform::{MAX_CPUS, Platform};
use crate::{Arena, SecureRam, devices, machine};

/// Made at compile time: it is too large to pass over a boot stack. Memory is empty until [`init`].
static POLICY: TicketMutex<Hypervisor> =
    TicketMutex::new(Hypervisor::new(FlexMem::new(Pa(0), [Pa(0); MAX_PARTITIONS], 0)));
static ARENA: Once<&'static Arena> = Once::new();
static SECURE_RAM: Once<&'static SecureRam> = Once::new();
static PLATFORM: Once<Platform> = Once::new();
/// Which CPUs are inside a partition.
static INSIDE: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
/// Which CPUs run the host.
static ONLINE: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];

const PSCI_CPU_OFF: u32 = 0x8400_0002;

/// Takes the arena into use and makes the ownership record, empty. `reserve` is what [`FlexMem::new`] wants.
pub fn new_memory(arena: &'static Arena, reserve: u64) -> FlexMem {
    ARENA.call_once(|| arena);
    FlexMem::new(Pa(host_root()), arena.partition_roots.each_ref().map(|root| Pa(root.address())), reserve)
}

/// Takes secure RAM into use for private memory.
pub fn take_secure_ram(ram: &'static SecureRam) -> Result<(), stage2::Error> {
    SECURE_RAM.call_once(|| ram);
    let roots = core::array::from_fn(|slot| Pa(ram.root(slot)));
    let mut memory = FlexMem::new(Pa(ram.root(SecureRam::FREE)), roots, 0);
    memory.boot_unwalked();
    for page in ram.tables.pages(1) {
        memory.boot_donate_table(&mut Hardware, Pa(page))?;
    }
    memory.boot_map_host(&mut Hardware, Pa(ram.pages.address()), SECURE_SIZE as u64, HostMemory::Ram)?;
    lock().install_secure_ram(memory);
    Ok(())
}

/// Root of a VMID's secure addresses.
pub fn secure_root(vmid: u16) -> u64 {
    let slot = vmid.checked_sub(HOST_VMID + 1).map_or(SecureRam::NOBODY, usize::from);
    SECURE_RAM.get().map_or(0, |ram| ram.root(slot.min(SecureRam::NOBODY)))
}

/// Installs what boot found and built. Called once.
pub fn init(platform: Platform, memory: FlexMem) {
    PLATFORM.call_once(|| platform);
    *lock().memory_mut() = memory;
}

/// Sets this CPU up to run partitions, and the host or what comes of it.
pub fn start_cpu(cpu: usize) {
    if let Some(region) = platform().redistributors {
        gic::find_redistributor(cpu, region);
    }
    el2::configure(machine::features(), host_root(), HOST_VMID);
    note_online(cpu, true);
}

/// Memory that others walk.
pub fn arena() -> &'static Arena {
    // Set before the first exception can come.
    ARENA.wait()
}

/// The platform.
pub fn platform() -> &'static Platform {
    PLATFORM.wait()
}

/// Locks the policy.
pub fn lock() -> TicketMutexGuard<'static, Hypervisor> {
    POLICY.lock()
}

/// Root of the host's stage 2.
pub fn host_root() -> u64 {
    arena().host_root.address()
}

/// Root of a partition's stage 2.
pub fn partition_root(slot: Slot) -> u64 {
    arena().partition_roots.get(slot.index()).map_or(0, |root| root.address())
}

/// Whether a fault knob ([`hyp_core::knob`]) leaves a defence out: never in a shipped image.
pub fn skips(knob: u64) -> bool {
    cfg!(feature = "fault-knobs") && arena().skips(knob)
}

/// Handles an SMC of the host.
pub fn host_call(cpu: usize, registers: &mut [u64; 18]) -> Outcome {
    let mut policy = lock();
    let function = registers[0] as u32;
    let outcome = policy.host_call(&mut Hardware, cpu, registers);
    // The CPU may be gone after the call.
    note_online(cpu, (function, outcome) != (PSCI_CPU_OFF, Outcome::Firmware));
    #[cfg(feature = "fault-knobs")]
    turn_knobs(&policy);
    // Under the lock: who cuts partitions off after it must see everybody who got in before.
    if let (Outcome::Enter { .. }, Some(inside)) = (outcome, INSIDE.get(cpu)) {
        inside.store(true, Ordering::Release);
    }
    outcome
}

/// Copies the fault knobs to where the arch layer, which may hold the policy's lock, and the guard ask for them.
#[cfg(feature = "fault-knobs")]
fn turn_knobs(policy: &Hypervisor) {
    let knobs = policy.knobs();
    if arena().knobs.swap(knobs, Ordering::Relaxed) != knobs {
        devices::turn_knobs(host_root());
    }
}

/// Handles an access of the host's that its stage 2 refused; a store stores `stored`. It is carried out where the hypervisor
/// stands between host and device.
pub fn host_abort(ipa: u64, syndrome: u64, stored: u64) -> Abort {
    let (access, fetch) = (Access::decode(syndrome), Access::is_fetch(syndrome));
    let mut policy = lock();
    if let Some(access) = access {
        let value = if gic::emulates(ipa) {
            Some(gic::access(ipa, &access, stored))
        } else if devices::emulates(ipa) {
            // Under the lock: whose the NPU is does not change meanwhile.
            Some(devices::access(ipa, &access, stored, policy.host_has_npu()))
        } else {
            None
        };
        if let Some(value) = value {
            policy.count_host_exits(1);
            return Abort::Value(value);
        }
    }
    match (policy.host_abort(&Hardware, ipa, fetch), access) {
        (HostAbort::Retry, _) => Abort::Retry,
        (HostAbort::NoDevice, Some(_)) => Abort::Value(u64::MAX),
        (HostAbort::NoDevice | HostAbort::Inject, _) => Abort::Inject,
    }
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
    if is_panicking() {
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

/// Ends all partitions at once, without the policy: their translation vanishes, so that whoever is inside comes out at
/// the next access, whatever it masked; then waits until nobody is.
fn cut_off_partitions() {
    devices::cut_off();
    let secure = SECURE_RAM.get().into_iter().flat_map(|ram| ram.roots.iter().take(MAX_PARTITIONS));
    for root in arena().partition_roots.iter().chain(secure) {
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

/// Ends and scrubs all partitions before the machine is switched off or reset by a call of firmware. Nobody gets past us any more: entries are
/// refused, and the lock is kept until the machine is gone.
pub fn end_partitions(function: u64) {
    cut_off_partitions();
    let policy = lock();
    policy.scrub_for_reset(&mut Hardware);
    vcpu::scrub_contexts();
    info!("partitions scrubbed for {function:#x}");
    core::mem::forget(policy);
}

/// What is left to do when the hypervisor itself failed: take every partition's memory away, zero it, stop.
pub fn panicked(reason: core::fmt::Arguments) -> ! {
    crate::console::emergency(reason);
    if !note_panic() {
        park(); // the panic of a panic, or a second CPU's
    }
    if PLATFORM.is_completed() {
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
