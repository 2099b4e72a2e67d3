//! The hypervisor image: boot, exceptions, vCPUs, the machine. What it decides is `hyp-core`'s, what it does to memory
//! `stage2`'s; this binary connects them to the hardware. `docs/architecture.md` has the picture.
#![no_std]
#![no_main]

mod arch;
mod console;
mod devices;
mod platform;
mod world;

use arch::features::Features;
use arch::stage1::{CODE, CONSTANTS, DATA, DEVICE};
use arch::{STACK_STRIDE, memory};
use arrayvec::ArrayVec;
use dtoolkit::fdt::Fdt;
use hyp_abi::PAGE_SIZE;
use hyp_abi::bundle::{BundleHeader, MAGIC, OFFSET, VERSION};
use log::{error, info};
use platform::{MAX_CPUS, Platform, Range};
use stage2::{HostMemory, Pa};
use zerocopy::FromBytes;

/// Stacks of the CPUs, each above a page that is not mapped.
#[unsafe(link_section = ".stacks")]
#[used]
static STACKS: Pages<{ STACK_STRIDE * MAX_CPUS }> =
    Pages(core::cell::UnsafeCell::new([0; STACK_STRIDE * MAX_CPUS]));
/// Stacks for faults of our own.
#[unsafe(no_mangle)]
static EMERGENCY_STACKS: Pages<{ 4096 * MAX_CPUS }> =
    Pages(core::cell::UnsafeCell::new([0; 4096 * MAX_CPUS]));
/// Table pages of our own, for the host's stage 2 at boot and for the first split.
const TABLES: usize = 128;
static TABLE_PAGES: Pages<{ 4096 * TABLES }> = Pages::zeroed();

/// Tables of the window of the NPU's registers.
static WINDOW_TABLES: Pages<8192> = Pages::zeroed();

#[repr(C, align(4096))]
struct Pages<const N: usize>(core::cell::UnsafeCell<[u8; N]>);

impl<const N: usize> Pages<N> {
    const fn zeroed() -> Self {
        Self(core::cell::UnsafeCell::new([0; N]))
    }

    fn address(&self) -> u64 {
        self.0.get() as u64
    }

    /// Addresses of runs of `page_count` pages.
    fn pages(&self, page_count: usize) -> impl Iterator<Item = u64> + use<N> {
        let base = self.address();
        (0..N / (4096 * page_count)).map(move |run| base + (run * 4096 * page_count) as u64)
    }
}

// SAFETY: used by address only: stacks by their own CPU, table pages by `stage2` under the global lock.
unsafe impl<const N: usize> Sync for Pages<N> {}

macro_rules! symbol {
    ($name:ident) => {{
        unsafe extern "C" {
            static $name: u8;
        }
        &raw const $name as u64 // an address set by the linker; nothing is read
    }};
}

/// First Rust code of the boot CPU: MMU off, stack and relocations in place.
#[unsafe(no_mangle)]
extern "C" fn primary_main(device_tree: u64, load_base: u64) -> ! {
    // SAFETY: firmware passes a device tree in x0 (booting.rst); its header says how large it is. Nothing else runs.
    let fdt = match unsafe { device_tree_at(device_tree) } {
        Some(fdt) => fdt,
        None => world::park(), // no console yet: nothing to say it with
    };
    let mut platform = match Platform::new(fdt) {
        Ok(platform) => platform,
        Err(error) => panic!("platform: {error:?}"),
    };
    if let Some(uart) = platform.trusted_uart {
        console::init(uart.base as usize);
    }
    info!("flexserve hypervisor at {load_base:#x}, {} CPUs", platform.cpus.len());
    // Nothing may master the bus around us from the first moment on.
    for smmu in &platform.smmus {
        // SAFETY: the register page of an SMMUv3 of the device tree, MMU off.
        let mut registers = unsafe { arch::mmio::Device::new(smmu.base) };
        match npu_passthrough::smmu::abort_all(&mut registers) {
            Ok(()) => info!("SMMU at {:#x} aborts every stream", smmu.base),
            Err(error) => panic!("SMMU at {:#x}: {error:?}", smmu.base),
        }
    }
    let features = arch::features::Features::probe();
    info!("{features:?}");

    let image = Range { base: load_base, size: symbol!(image_end) - load_base };
    let hypervisor = hypervisor_range(&platform, image);
    let tree = Range { base: device_tree, size: fdt.data().len() as u64 };
    let bundle = match bundle(load_base) {
        Ok(bundle) => bundle,
        Err(reason) => panic!("boot bundle: {reason}"),
    };
    let kernel = Range { base: load_base + bundle.kernel_offset, size: bundle.kernel_size };
    let initrd = Range { base: load_base + bundle.initrd_offset, size: bundle.initrd_size };

    // SAFETY: the boot CPU runs alone with the MMU off; the parts cover the image, RAM and our devices.
    unsafe { enable_mmu(&platform, image) };

    if !skips_boot_scrub(&bundle) {
        let start = memory::ticks();
        for bank in &platform.ram {
            scrub_outside(*bank, &[hypervisor, kernel, initrd, tree]);
        }
        info!("RAM scrubbed in {} ticks", memory::ticks() - start);
    }

    // SAFETY: the tree lies in RAM outside every other part; nobody else uses it.
    let blob = unsafe { core::slice::from_raw_parts_mut(device_tree as *mut u8, tree.size as usize) };
    let found = devices::start(&platform);
    if found.is_none() {
        platform.pcie = None;
    }
    if let Err(error) = platform::edit_for_host(blob, &platform, hypervisor, &bundle, load_base) {
        panic!("host device tree: {error:?}");
    }
    memory::clean(device_tree as usize, tree.size as usize);

    let memory = match host_memory(&platform, &features, hypervisor, found.as_ref()) {
        Ok(memory) => memory,
        Err(error) => panic!("host stage 2: {error:?}"),
    };
    info!("host stage 2: {:?}", memory.census());
    world::init(features, platform, memory);
    if let Some(layout) = devices::attach_host(world::host_root() + stage2::STREAM_ROOT) {
        world::lock().install_npu(&mut memory::Hardware, layout);
        info!("the NPU is the host's");
    }
    if cfg!(feature = "fault-knobs") {
        error!("DEBUG IMAGE with fault knobs: protects nothing");
    }
    info!("entering the host at {:#x}", kernel.base);
    world::enter_host(0, kernel.base, device_tree)
}

/// First Rust code of every other CPU: MMU on.
#[unsafe(no_mangle)]
extern "C" fn secondary_main(cpu: u64) -> ! {
    world::park_if_panicking();
    let (entry, argument) = world::take_start(cpu as usize);
    world::enter_host(cpu as usize, entry, argument)
}

/// The device tree at an address.
///
/// # Safety
/// The address is 0 or that of a blob that firmware left, in memory that nobody writes.
unsafe fn device_tree_at(address: u64) -> Option<Fdt<'static>> {
    const HEADER: usize = 40;
    if address == 0 || address & 7 != 0 {
        return None;
    }
    // SAFETY: the caller vouches for the blob; a header is 40 bytes.
    let header = unsafe { core::slice::from_raw_parts(address as *const u8, HEADER) };
    let word =
        |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes);
    if word(0) != 0xd00d_feed || word(4) as usize > 2 << 20 {
        return None;
    }
    // SAFETY: the header says that the blob is this long.
    Fdt::new(unsafe { core::slice::from_raw_parts(address as *const u8, word(4) as usize) }).ok()
}

/// What the hypervisor keeps of RAM: its image, and what lies below it in the bank up to 2 MiB, so that the host's RAM
/// starts behind the hypervisor.
fn hypervisor_range(platform: &Platform, image: Range) -> Range {
    let bank = platform.ram.iter().find(|bank| bank.base <= image.base && image.end() <= bank.end());
    match bank {
        Some(bank) if image.base - bank.base <= 2 << 20 => {
            Range { base: bank.base, size: image.end() - bank.base }
        }
        _ => image,
    }
}

/// Copies and checks the packer's header.
fn bundle(load_base: u64) -> Result<BundleHeader, &'static str> {
    // SAFETY: the header is part of the image (boot.s).
    let bytes = unsafe {
        core::slice::from_raw_parts((load_base as usize + OFFSET) as *const u8, size_of::<BundleHeader>())
    };
    let header = BundleHeader::read_from_bytes(bytes).map_err(|_| "too short")?;
    if header.magic != MAGIC || header.version != VERSION {
        return Err("not packed by this version's packer");
    }
    let kernel_end = header.kernel_offset.checked_add(header.kernel_memory_size.max(header.kernel_size));
    let initrd_end = header.initrd_offset.checked_add(header.initrd_size).ok_or("initrd wraps")?;
    if header.kernel_size == 0 {
        return Err("holds no host kernel: pack one (cargo xtask run does)");
    }
    if header.kernel_offset < symbol!(image_end) - load_base || kernel_end.is_none() || initrd_end > 1 << 38 {
        return Err("kernel inside the hypervisor, or out of range");
    }
    Ok(header)
}

/// Turns stage 1 on.
///
/// # Safety
/// As for [`arch::stage1::build_and_enable`].
unsafe fn enable_mmu(platform: &Platform, image: Range) {
    let mut parts = ArrayVec::<_, 64>::new();
    let between = |from: u64, to: u64| Range { base: from, size: to - from };
    platform::outside(&platform.ram, image, |range| parts.push((range, DATA)));
    parts.push((between(image.base, symbol!(rodata_start)), CODE));
    parts.push((between(symbol!(rodata_start), symbol!(data_start)), CONSTANTS));
    parts.push((between(symbol!(data_start), symbol!(stacks_start)), DATA));
    for cpu in 0..MAX_CPUS as u64 {
        let stack = symbol!(stacks_start) + cpu * STACK_STRIDE as u64;
        parts.push((between(stack + PAGE_SIZE, stack + STACK_STRIDE as u64), DATA));
    }
    parts.push((between(symbol!(stacks_end), image.end()), DATA));
    parts.extend(platform.trusted_uart.map(|range| (range, DEVICE)));
    parts.extend(platform.redistributors.map(|range| (range, DEVICE)));
    for range in &platform.smmus {
        parts.push((*range, DEVICE));
    }
    if let Some(pcie) = &platform.pcie {
        parts.push((pcie.ecam, DEVICE));
        // Where the NPU's registers will be.
        parts.push((Range { size: pcie.mem64.size.min(1 << 30), ..pcie.mem64 }, DEVICE));
    }
    parts.retain(|(range, _)| range.size != 0);
    for (range, _) in &parts {
        assert!(range.end() <= arch::stage1::ADDRESS_LIMIT, "RAM or devices above {:#x}", range.end());
    }
    // SAFETY: the caller's promise.
    unsafe { arch::stage1::build_and_enable(&parts) };
}

/// The fault knob that acts before there is a host to turn knobs: a word in the host's command line. Never in a shipped
/// image.
fn skips_boot_scrub(bundle: &BundleHeader) -> bool {
    let word = b"fault-knob.boot-scrub=off";
    cfg!(feature = "fault-knobs") && bundle.command_line.windows(word.len()).any(|bytes| bytes == word)
}

/// Zeroes a bank of RAM outside `kept`, so that nothing of an earlier boot is left (I2).
fn scrub_outside(bank: Range, kept: &[Range]) {
    let mut at = bank.base;
    while at < bank.end() {
        let inside = kept.iter().find(|k| k.base <= at && at < k.end().next_multiple_of(PAGE_SIZE));
        if let Some(inside) = inside {
            at = inside.end().next_multiple_of(PAGE_SIZE);
            continue;
        }
        let next = kept.iter().map(|k| k.base & !(PAGE_SIZE - 1)).filter(|base| *base > at);
        let end = next.min().unwrap_or(bank.end()).min(bank.end());
        // SAFETY: RAM that holds no boot image, before anybody else runs.
        unsafe { memory::zero(at as usize, (end - at) as usize) };
        memory::clean(at as usize, (end - at) as usize);
        at = end;
    }
}

/// Builds the host's stage 2: its RAM and its devices, nothing else.
fn host_memory(
    platform: &Platform,
    features: &Features,
    hypervisor: Range,
    found: Option<&devices::Found>,
) -> Result<stage2::FlexMem, stage2::Error> {
    let gibibytes = platform.ram.iter().map(|bank| (bank.size >> 30) + 2).sum::<u64>();
    let mut memory = world::new_memory(gibibytes + 2);
    let machine = &mut memory::Hardware;
    for page in TABLE_PAGES.pages(1) {
        memory.boot_donate_table(machine, Pa(page))?;
    }
    if features.bbm_level_2 && found.is_none_or(|found| found.bbm_level == 2) {
        memory.boot_change_in_place();
    } else if found.is_some() {
        info!(
            "no FEAT_BBM level 2: the host's DMA can meet a hole while a block that it uses is split or merged"
        );
    }
    let mut result = memory.boot_reserve(machine, Pa(hypervisor.base), hypervisor.size);
    platform::outside(&platform.ram, hypervisor, |range| {
        if result.is_ok() {
            result = memory.boot_map_host(machine, Pa(range.base), range.size, HostMemory::Ram);
        }
    });
    result?;
    for device in &platform.host_devices {
        memory.boot_map_host(machine, Pa(device.base), device.size, HostMemory::Device)?;
    }
    // Redistributors without the page that says where LPI tables are.
    for frame in platform.redistributors.into_iter().flat_map(|region| arch::gic::find_all(region)) {
        let (base, size) = (frame + arch::gic::GUARDED_SIZE, arch::gic::GICR_STRIDE as u64);
        memory.boot_map_host(machine, Pa(base), size - arch::gic::GUARDED_SIZE, HostMemory::Device)?;
    }
    if let Some(found) = found {
        for bar in &found.bars {
            memory.boot_map_host(machine, Pa(bar.base), bar.size, HostMemory::Device)?;
        }
        if let Some(range) = found.npu.and_then(devices::window) {
            let mut tables = WINDOW_TABLES.pages(1).map(Pa);
            let tables = [tables.next().unwrap_or_default(), tables.next().unwrap_or_default()];
            memory.boot_window(machine, range, tables)?;
        }
    }
    Ok(memory)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    console::emergency(format_args!("PANIC {info}"));
    world::panicked()
}
