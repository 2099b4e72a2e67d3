//! From reset to the worlds, and what an exception from a lower level leads to.

use core::sync::atomic::{AtomicU64, Ordering};

use monitor::psci::{Cores, Outcome};
use monitor::spmd::{self, Core, Step, World};
use monitor::{fdt, fip};
use spin::mutex::SpinMutex;

use crate::arch::bank::Bank;
use crate::arch::el3::Features;
use crate::arch::sysreg::mrs;
use crate::arch::{Frame, device, el3, gic, mmu};

/// Cores that are used; as in link.ld.
pub const MAX_CORES: usize = 8;
/// Bytes of each core's stack; as in link.ld.
pub const STACK_STRIDE: usize = 0x2000;

/// Secure RAM of the SPMC.
const SPMC_BASE: usize = 0x0e10_0000;
const SPMC_END: usize = 0x0f00_0000;
/// Normal RAM starts here, with the device tree in its first MiB.
const RAM: usize = 0x4000_0000;
const TREE_ROOM: usize = 1 << 20;
/// The guard: the boot bundle, in normal RAM already.
const GUARD: u64 = 0x4020_0000;
/// EL2 with its own stack pointer, everything masked.
const EL2H_MASKED: u64 = 0x3c9;

static CORES: SpinMutex<Cores<MAX_CORES>> = SpinMutex::new(Cores::new());
/// Where the SPMC is entered on further cores; 0: it did not say.
static SECONDARY_ENTRY: AtomicU64 = AtomicU64::new(0);

/// One core: both worlds as they were left, and the dispatcher. Lies at the bottom of the core's stack.
#[repr(C)]
struct Cpu {
    /// The world that is entered next; boot.s reads it.
    current: *mut Frame,
    frames: [Frame; 2],
    banks: [Bank; 2],
    has: Features,
    dispatcher: Core,
}

unsafe extern "C" {
    /// Enters the world that is next of the [`Cpu`] at an address.
    fn enter(cpu: usize) -> !;
    /// Starts this core over, with its stack empty.
    safe fn core_entry() -> !;
}

/// First Rust code of a core, with its stack empty. The core that boots the machine comes alone, MMU off.
#[unsafe(no_mangle)]
extern "C" fn core_main(index: usize) -> ! {
    let has = Features::probe();
    if mrs!("id_aa64pfr0_el1") >> 36 & 0xf == 0 {
        fatal(format_args!("this CPU has no secure EL2: use another, for example cortex-a710"));
    }
    el3::configure(&has);
    let is_first = !CORES.lock().is_booted();
    if is_first {
        // SAFETY: alone, with the MMU off.
        unsafe { mmu::build() };
    }
    mmu::enable();
    gic::set_up_core(index);
    if is_first {
        device::log(format_args!("EL3"));
        load_spmc();
        let tree = add_psci();
        CORES.lock().boot(gic::core_count(MAX_CORES), index);
        gic::set_up_distributor();
        start(index, has, SPMC_BASE as u64, (GUARD, tree as u64));
    }
    CORES.lock().stop(index);
    loop {
        let start_at = CORES.lock().take_start(index);
        gic::drop_pending();
        if let Some(normal) = start_at {
            let entry = SECONDARY_ENTRY.load(Ordering::Acquire);
            start(index, has, if entry == 0 { SPMC_BASE as u64 } else { entry }, normal);
        }
        el3::wait();
    }
}

/// Enters the SPMC for the first time on this core; the normal world will follow.
fn start(index: usize, has: Features, spmc: u64, (entry, argument): (u64, u64)) -> ! {
    let frames = [spmc, entry].map(|elr| Frame { x: [0; 31], elr, spsr: EL2H_MASKED });
    let banks = [Bank::new(), Bank::new()];
    let mut cpu = Cpu { current: core::ptr::null_mut(), frames, banks, has, dispatcher: Core::default() };
    cpu.frames[World::Secure as usize].x[4] = index as u64;
    cpu.frames[World::Normal as usize].x[0] = argument;
    cpu.banks[World::Secure as usize].restore(&cpu.has);
    cpu.current = &raw mut cpu.frames[World::Secure as usize];
    // SAFETY: never returns, so the state stays where it is until the stack is emptied.
    unsafe { enter(&raw mut cpu as usize) }
}

/// Copies the SPMC from flash to secure RAM.
fn load_spmc() {
    // SAFETY: the first bank of flash, 64 MiB, which nobody writes.
    let package = unsafe { core::slice::from_raw_parts(fip::OFFSET as *const u8, (64 << 20) - fip::OFFSET) };
    let Some(image) = fip::find(package, &fip::BL32).filter(|image| image.len() <= SPMC_END - SPMC_BASE)
    else {
        fatal(format_args!("no SPMC in flash"));
    };
    // SAFETY: secure RAM that holds nothing yet, before anybody else runs.
    unsafe { core::slice::from_raw_parts_mut(SPMC_BASE as *mut u8, image.len()) }.copy_from_slice(image);
    mmu::clean(SPMC_BASE, image.len());
}

/// Copies the device tree to the next MiB of RAM, with PSCI added. Returns where it lies now.
fn add_psci() -> usize {
    // SAFETY: normal RAM below the bundle, before anybody else runs.
    let ram = unsafe { core::slice::from_raw_parts_mut(RAM as *mut u8, 2 * TREE_ROOM) };
    let (tree, edited) = ram.split_at_mut(TREE_ROOM);
    if fdt::add_psci(tree, edited).is_none() {
        fatal(format_args!("no device tree at {RAM:#x}"));
    }
    mmu::clean(RAM + TREE_ROOM, TREE_ROOM);
    RAM + TREE_ROOM
}

/// Every exception from a lower level.
#[unsafe(no_mangle)]
extern "C" fn lower_exception(cpu: &mut Cpu, vector: u64) {
    const SYNCHRONOUS: u64 = 8;
    const FIQ: u64 = 10;
    let world = el3::selected();
    let frame = &mut cpu.frames[world as usize];
    let next = match vector {
        SYNCHRONOUS if mrs!("esr_el3") >> 26 & 0x3f == 0x17 => cpu.smc(world), // EC: SMC
        SYNCHRONOUS => {
            (frame.elr, frame.spsr) = el3::undefined(frame.elr, frame.spsr);
            world
        }
        FIQ if world == World::Normal => {
            if let Some(x) = cpu.frames[World::Secure as usize].x.first_chunk_mut() {
                cpu.dispatcher.interrupt(x);
            }
            World::Secure
        }
        _ => own_exception(),
    };
    if next != world {
        cpu.banks[world as usize].save(&cpu.has);
        el3::select(next, &cpu.has);
        cpu.banks[next as usize].restore(&cpu.has);
        cpu.current = &raw mut cpu.frames[next as usize];
    }
}

impl Cpu {
    /// A call; returns the world that goes on.
    fn smc(&mut self, caller: World) -> World {
        let mut x = *self.frames[caller as usize].x.first_chunk().unwrap_or(&[0; 18]);
        let next = match self.dispatcher.call(caller, &mut x) {
            Step::Back => caller,
            Step::Cross if caller == World::Normal => World::Secure,
            Step::Cross => World::Normal,
            Step::Resume => return World::Normal,
            Step::SecondaryEntry => {
                let is_within = (SPMC_BASE as u64..SPMC_END as u64).contains(&x[1]) && x[1] & 3 == 0;
                let swap =
                    |new| SECONDARY_ENTRY.compare_exchange(0, new, Ordering::Release, Ordering::Relaxed);
                let is_taken = is_within && swap(x[1]).is_ok();
                spmd::answer_secondary_entry(&mut x, is_taken);
                caller
            }
            Step::Psci => self.psci(&mut x),
            Step::Off => core_entry(),
        };
        self.frames[next as usize].x[..x.len()].copy_from_slice(&x);
        next
    }

    /// A call of PSCI's, from the normal world; returns the world that goes on with the registers.
    fn psci(&mut self, x: &mut spmd::Registers) -> World {
        let outcome = CORES.lock().call(x[0] as u32, [x[1], x[2], x[3]], |address| address >= RAM as u64);
        let mut result = 0;
        match outcome {
            Outcome::Return(value) => result = value,
            Outcome::Wake(core) => {
                // As the secure world: the SGI is of its group.
                el3::select(World::Secure, &self.has);
                gic::wake(core);
                el3::select(World::Normal, &self.has);
            }
            Outcome::Suspend => el3::wait(),
            Outcome::Off => {
                self.dispatcher.off(x);
                return World::Secure;
            }
            Outcome::End(reset) => device::end(reset),
        }
        x[0] = i64::from(result) as u64;
        World::Normal
    }
}

/// A fault of our own.
#[unsafe(no_mangle)]
extern "C" fn own_exception() -> ! {
    let (at, syndrome, fault) = (mrs!("elr_el3"), mrs!("esr_el3"), mrs!("far_el3"));
    fatal(format_args!("exception at {at:#x}, syndrome {syndrome:#x}, fault address {fault:#x}"))
}

/// Writes a fault of our own down; the core stays where it is.
fn fatal(what: core::fmt::Arguments<'_>) -> ! {
    device::log(what);
    loop {
        el3::wait();
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    fatal(format_args!("{info}"))
}
