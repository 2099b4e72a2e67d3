//! From reset to the worlds, and what an exception from a lower level leads to.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, Ordering};

use monitor::psci::{Cores, Outcome};
use monitor::spmd::{self, Core, Registers, Step, World};
use monitor::{fdt, fip};

use crate::arch::bank::Bank;
use crate::arch::el3::Features;
use crate::arch::sysreg::mrs;
use crate::arch::{Frame, device, el3, enter, gic, mmu};

/// Cores that are used; as in link.ld.
pub const MAX_CORES: usize = 8;
/// Bytes of each core's stack; as in link.ld.
pub const STACK_STRIDE: usize = 0x2000;

/// Flash, and what a bank of it holds.
const FLASH_SIZE: usize = 64 << 20;
/// Secure RAM of the SPMC.
const SPMC_BASE: usize = 0x0e10_0000;
const SPMC_END: usize = 0x0f00_0000;
/// Where QEMU leaves the device tree, how much room it has there, and the most that it may need.
const DEVICE_TREE: usize = 0x4000_0000;
const DEVICE_TREE_ROOM: usize = 1 << 20;
const DEVICE_TREE_SIZE: usize = 64 << 10;
/// The guard: the boot bundle, in normal RAM already.
const GUARD: u64 = 0x4020_0000;
/// Normal RAM starts here.
const RAM: u64 = 0x4000_0000;
/// EL2 with its own stack pointer, everything masked.
const EL2H_MASKED: u64 = 0x3c9;

static CORES: Cores<MAX_CORES> = Cores::new();
/// Where the SPMC is entered on further cores; 0: it did not say.
static SECONDARY_ENTRY: AtomicU64 = AtomicU64::new(0);

/// One core: both worlds as they were left, and the dispatcher.
struct Cpu {
    index: usize,
    has: Features,
    frames: [Frame; 2],
    banks: [Bank; 2],
    dispatcher: Core,
}

struct PerCore<T>(UnsafeCell<T>);
// SAFETY: each core takes its own element only, see `take`.
unsafe impl<T> Sync for PerCore<T> {}

/// Written by each core before it enters a lower level for the first time.
static CPUS: [PerCore<MaybeUninit<Cpu>>; MAX_CORES] =
    [const { PerCore(UnsafeCell::new(MaybeUninit::uninit())) }; MAX_CORES];
static TREE: PerCore<[u8; DEVICE_TREE_SIZE]> = PerCore(UnsafeCell::new([0; DEVICE_TREE_SIZE]));

/// This core's element.
///
/// # Safety
/// At most once between two entries of a lower level: EL3 is not interrupted, so this is the only borrow on this core.
unsafe fn take() -> Option<&'static mut MaybeUninit<Cpu>> {
    let index = (mrs!("mpidr_el1") & 0xff_ffff) as usize;
    // SAFETY: other cores take other elements; the caller's promise covers this one.
    CPUS.get(index).map(|cpu| unsafe { &mut *cpu.0.get() })
}

/// First Rust code of every core: MMU off, own stack. The first core comes alone.
#[unsafe(no_mangle)]
extern "C" fn core_main(index: usize) -> ! {
    let has = Features::probe();
    el3::configure(&has);
    if index == 0 {
        // SAFETY: the first core, alone, with the MMU off.
        unsafe { mmu::build() };
    }
    mmu::enable();
    gic::set_up_core(index);
    let (entry, argument) = if index == 0 {
        device::log(format_args!("EL3"));
        load_spmc();
        add_psci();
        CORES.boot(gic::core_count(MAX_CORES));
        gic::set_up_distributor();
        (GUARD, DEVICE_TREE as u64)
    } else {
        wait_for_start(index)
    };
    start(index, has, entry, argument)
}

/// Waits until the normal world turns this core on.
fn wait_for_start(index: usize) -> (u64, u64) {
    loop {
        if let Some(start) = CORES.take_start(index) {
            gic::drop_pending();
            return start;
        }
        el3::wait();
        gic::drop_pending();
    }
}

/// Enters the SPMC for the first time on this core; the normal world will follow at `entry`.
fn start(index: usize, has: Features, entry: u64, argument: u64) -> ! {
    let spmc = match SECONDARY_ENTRY.load(Ordering::Acquire) {
        registered if index != 0 && registered != 0 => registered,
        _ => SPMC_BASE as u64,
    };
    let mut frames =
        [spmc, entry].map(|elr| Frame { x: [0; 31], elr, spsr: EL2H_MASKED, stack: stack_top(index) });
    frames[World::Secure as usize].x[4] = index as u64;
    frames[World::Normal as usize].x[0] = argument;
    let banks = [Bank::new(), Bank::new()];
    banks[World::Secure as usize].restore(&has);
    // SAFETY: the only borrow on this core: what an exception borrowed is given up.
    let Some(slot) = (unsafe { take() }) else { fatal("no such core") };
    let cpu = slot.write(Cpu { index, has, frames, banks, dispatcher: Core::new() });
    // SAFETY: the frame is this core's and stays where it is.
    unsafe { enter(&cpu.frames[World::Secure as usize]) }
}

/// Turns this core off, until it is turned on again.
fn off(index: usize, has: Features) -> ! {
    el3::configure(&has);
    gic::set_up_core(index);
    CORES.set_off(index);
    let (entry, argument) = wait_for_start(index);
    start(index, has, entry, argument)
}

fn stack_top(index: usize) -> u64 {
    unsafe extern "C" {
        static stacks_start: u8;
    }
    &raw const stacks_start as u64 + ((index + 1) * STACK_STRIDE) as u64
}

/// Copies the SPMC from flash to secure RAM.
fn load_spmc() {
    // SAFETY: flash, which nobody writes.
    let package = unsafe { core::slice::from_raw_parts(fip::OFFSET as *const u8, FLASH_SIZE - fip::OFFSET) };
    let Some(image) = fip::find(package, &fip::BL32).filter(|image| image.len() <= SPMC_END - SPMC_BASE)
    else {
        fatal("no SPMC in flash");
    };
    // SAFETY: secure RAM that holds nothing yet, before anybody else runs.
    unsafe { core::slice::from_raw_parts_mut(SPMC_BASE as *mut u8, image.len()) }.copy_from_slice(image);
    mmu::clean(SPMC_BASE, image.len());
}

/// Adds PSCI to the device tree, where it lies.
fn add_psci() {
    // SAFETY: normal RAM, before anybody else runs; the buffer is used here only.
    let (tree, buffer) = unsafe {
        (core::slice::from_raw_parts_mut(DEVICE_TREE as *mut u8, DEVICE_TREE_ROOM), &mut *TREE.0.get())
    };
    let size = fdt::add_psci(tree, buffer);
    match size.and_then(|size| Some((tree.get_mut(..size)?, buffer.get(..size)?))) {
        Some((tree, edited)) => {
            tree.copy_from_slice(edited);
            mmu::clean(DEVICE_TREE, edited.len());
        }
        None => device::log(format_args!("no usable device tree at {DEVICE_TREE:#x}")),
    }
}

/// Every exception from a lower level. Returns the frame to go on with.
#[unsafe(no_mangle)]
extern "C" fn lower_exception(vector: u64) -> *const Frame {
    const SYNCHRONOUS: u64 = 8;
    const FIQ: u64 = 10;
    const SMC: u64 = 0x17;
    let world = el3::selected();
    // SAFETY: once for each exception; `start` wrote it before it entered the level that this one comes from.
    let Some(cpu) = (unsafe { take().map(|cpu| cpu.assume_init_mut()) }) else { fatal("no such core") };
    let next = match vector {
        SYNCHRONOUS if mrs!("esr_el3") >> 26 & 0x3f == SMC => match cpu.smc(world) {
            Some(next) => next,
            None => off(cpu.index, cpu.has),
        },
        SYNCHRONOUS => {
            let frame = &mut cpu.frames[world as usize];
            (frame.elr, frame.spsr) = el3::undefined(frame.elr, frame.spsr);
            world
        }
        FIQ if world == World::Normal => cpu.interrupt(),
        _ => fatal("an exception that is not routed here"),
    };
    if next != world {
        cpu.banks[world as usize].save(&cpu.has);
        el3::select(next, &cpu.has);
        cpu.banks[next as usize].restore(&cpu.has);
    }
    &cpu.frames[next as usize]
}

impl Cpu {
    fn registers(&self, world: World) -> Registers {
        core::array::from_fn(|index| self.frames[world as usize].x[index])
    }

    fn set_registers(&mut self, world: World, x: &Registers) -> World {
        self.frames[world as usize].x[..x.len()].copy_from_slice(x);
        world
    }

    /// A call; returns the world that goes on, none if this core goes off.
    fn smc(&mut self, caller: World) -> Option<World> {
        let mut x = self.registers(caller);
        let other = match caller {
            World::Secure => World::Normal,
            World::Normal => World::Secure,
        };
        Some(match self.dispatcher.call(caller, &mut x) {
            Step::Back => self.set_registers(caller, &x),
            Step::Cross => self.set_registers(other, &x),
            Step::Resume => World::Normal,
            Step::Started(up) => {
                if !up {
                    device::log(format_args!("the SPMC failed on core {}", self.index));
                }
                World::Normal
            }
            Step::SecondaryEntry => {
                let within = (SPMC_BASE as u64..SPMC_END as u64).contains(&x[1]) && x[1] & 3 == 0;
                let entry = &SECONDARY_ENTRY;
                let taken =
                    within && entry.compare_exchange(0, x[1], Ordering::Release, Ordering::Relaxed).is_ok();
                spmd::answer_secondary_entry(&mut x, taken);
                self.set_registers(caller, &x)
            }
            Step::Psci => return self.psci(&mut x),
            Step::Off => return None,
        })
    }

    /// A call of PSCI's, from the normal world.
    fn psci(&mut self, x: &mut Registers) -> Option<World> {
        let result = match CORES.call(x[0] as u32, [x[1], x[2], x[3]], |address| address >= RAM) {
            Outcome::Return(value) => value,
            Outcome::Wake(core) => {
                // The SGI is a secure one.
                el3::select(World::Secure, &self.has);
                gic::wake(core);
                el3::select(World::Normal, &self.has);
                0
            }
            Outcome::Suspend => {
                el3::wait();
                0
            }
            Outcome::Off => return self.dispatcher.off(x).then(|| self.set_registers(World::Secure, x)),
            Outcome::SystemOff => device::end(false),
            Outcome::SystemReset => device::end(true),
        };
        x[0] = result as u64;
        Some(self.set_registers(World::Normal, x))
    }

    /// An interrupt of the secure world's while the normal world runs.
    fn interrupt(&mut self) -> World {
        let mut x = self.registers(World::Secure);
        if self.dispatcher.interrupt(&mut x) {
            return self.set_registers(World::Secure, &x);
        }
        // Nobody is there to take it.
        el3::select(World::Secure, &self.has);
        gic::drop_pending();
        el3::select(World::Normal, &self.has);
        World::Normal
    }
}

/// A fault of our own: it is written down, and the core stays where it is.
#[unsafe(no_mangle)]
extern "C" fn own_exception(vector: u64) -> ! {
    device::log(format_args!(
        "exception {vector} at {:#x}: syndrome {:#x}, address {:#x}",
        mrs!("elr_el3"),
        mrs!("esr_el3"),
        mrs!("far_el3")
    ));
    fatal("stopped")
}

fn fatal(reason: &str) -> ! {
    device::log(format_args!("{reason}"));
    loop {
        el3::wait();
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    device::log(format_args!("{info}"));
    fatal("stopped")
}
