//! From the device tree to a host that is ready to run: what policy needs of the machine, and the host's view of it.

use dtoolkit::fdt::Fdt;
use hyp_abi::PAGE_SIZE;
use hyp_abi::bundle::{BundleHeader, MAGIC, OFFSET, VERSION};
use log::{error, info};
use stage2::{HostMemory, Pa};
use zerocopy::FromBytes;

use crate::arch::stage1::{DATA, DEVICE, Map, normal_world};
use crate::arch::{gic, memory, mmio, secure};
use crate::platform::{Platform, Range, edit_for_host, outside};
use crate::{Arena, console, devices, machine, world};

/// What boots the host.
pub struct Given {
    /// Device tree.
    pub tree: u64,
    /// Start of the bundle, and of the image in it, which takes memory from the host.
    pub bundle: u64,
    /// End of that image.
    pub end: u64,
    /// Memory in it that others walk.
    pub arena: &'static Arena,
}

/// Prepares everything on the boot CPU. Returns the host's entry and its device tree.
pub fn prepare_host(map: &mut Map, given: &Given) -> (u64, u64) {
    let mut tree = map_tree(map, given.tree);
    // SAFETY: firmware left a device tree there (booting.rst); its header says how large it is. Nothing else runs.
    let Some(fdt) = (unsafe { device_tree(tree) }) else {
        machine::park() // no console yet: nothing to say it with
    };
    let mut platform = match Platform::new(fdt) {
        Ok(platform) => platform,
        Err(error) => panic!("platform: {error:?}"),
    };
    map_platform(map, &platform, Range { base: given.bundle, size: given.end - given.bundle });
    if let Some(uart) = platform.trusted_uart {
        console::init(uart.base as usize);
    }
    let place = if secure() { "SPMC" } else { "hypervisor" };
    info!("flexserve {place}, bundle at {:#x}, {} CPUs", given.bundle, platform.cpus.len());
    // Nothing may master the bus around us from the first moment on.
    for smmu in &platform.smmus {
        // SAFETY: the register page of an SMMUv3 of the device tree, mapped as a device.
        let mut registers = unsafe { mmio::Device::new(smmu.base) };
        match npu_passthrough::smmu::abort_all(&mut registers) {
            Ok(()) => info!("SMMU at {:#x} aborts every stream", smmu.base),
            Err(error) => panic!("SMMU at {:#x}: {error:?}", smmu.base),
        }
    }
    info!("{:?}", machine::features());

    let hypervisor = hypervisor_range(&platform, given);
    let bundle = match bundle(given) {
        Ok(bundle) => bundle,
        Err(reason) => panic!("boot bundle: {reason}"),
    };
    let kernel = Range { base: given.bundle + bundle.kernel_offset, size: bundle.kernel_size };
    let initrd = Range { base: given.bundle + bundle.initrd_offset, size: bundle.initrd_size };
    if hypervisor.contains(tree.base) {
        tree = move_tree(&platform, tree, &bundle, given.bundle);
    }

    if !skips_boot_scrub(&bundle) {
        let start = memory::ticks();
        for bank in &platform.ram {
            scrub_outside(*bank, &[hypervisor, kernel, initrd, tree]);
        }
        info!("RAM scrubbed in {} ticks", memory::ticks() - start);
    }

    let mut memory = world::new_memory(given.arena, reserve(&platform));
    let found = devices::start(&platform);
    if found.is_none() {
        platform.pcie = None;
    }
    // SAFETY: the tree lies in RAM outside every other part; nobody else uses it.
    let blob = unsafe { core::slice::from_raw_parts_mut(tree.base as *mut u8, tree.size as usize) };
    if let Err(error) = edit_for_host(blob, &platform, hypervisor, &bundle, given.bundle) {
        panic!("host device tree: {error:?}");
    }
    memory::clean(tree.base as usize, tree.size as usize);

    if let Err(error) = map_host(&mut memory, &platform, hypervisor, found.as_ref()) {
        panic!("host stage 2: {error:?}");
    }
    info!("host stage 2: {:?}", memory.census());
    world::init(platform, memory);
    if let Some(layout) = devices::attach_host(world::host_root() + stage2::STREAM_ROOT) {
        world::lock().install_npu(&mut memory::Hardware, layout);
        info!("the NPU is the host's");
    }
    if cfg!(feature = "fault-knobs") {
        error!("DEBUG IMAGE with fault knobs: protects nothing");
    }
    (kernel.base, tree.base)
}

/// Bytes of a device tree's header.
const TREE_HEADER: u64 = 40;
/// The largest device tree.
const MAX_TREE: u64 = 2 << 20;

/// Maps the device tree at an address: its header first, which says how large it is.
fn map_tree(map: &mut Map, tree: u64) -> Range {
    let mut range = Range { base: tree, size: TREE_HEADER };
    for _ in 0..2 {
        let start = range.base & !(PAGE_SIZE - 1);
        let size = (range.end() - start).next_multiple_of(PAGE_SIZE);
        map.add(Range { base: start, size }, normal_world(DATA));
        // SAFETY: just mapped; firmware's or the guard's, who write no more.
        let words = unsafe { core::slice::from_raw_parts(tree as *const u32, 2) };
        range.size = if words[0] == 0xd00d_feed_u32.to_be() { words[1].to_be().into() } else { TREE_HEADER };
        range.size = range.size.clamp(TREE_HEADER, MAX_TREE);
    }
    range
}

/// The device tree in a range that [`map_tree`] mapped.
///
/// # Safety
/// Nobody writes to it.
unsafe fn device_tree(tree: Range) -> Option<Fdt<'static>> {
    // SAFETY: the caller vouches for the blob.
    Fdt::new(unsafe { core::slice::from_raw_parts(tree.base as *const u8, tree.size as usize) }).ok()
}

/// Maps RAM, and the devices that we drive.
fn map_platform(map: &mut Map, platform: &Platform, image: Range) {
    // Our own image has its own attributes.
    let hole = if secure() { Range::default() } else { image };
    outside(&platform.ram, hole, |range| map.add(range, normal_world(DATA)));
    platform.trusted_uart.into_iter().for_each(|uart| map.add(uart, DEVICE));
    // With secure registers too.
    platform.redistributors.into_iter().for_each(|frames| map.add(frames, DEVICE));
    platform.smmus.iter().for_each(|smmu| map.add(*smmu, normal_world(DEVICE)));
    if let Some(pcie) = &platform.pcie {
        map.add(pcie.ecam, normal_world(DEVICE));
        // Where the NPU's registers will be.
        map.add(Range { size: pcie.mem64.size.min(1 << 30), ..pcie.mem64 }, normal_world(DEVICE));
    }
}

/// Moves the device tree out of what the host does not get, behind the bundle's other parts.
fn move_tree(platform: &Platform, tree: Range, bundle: &BundleHeader, base: u64) -> Range {
    let kernel_end = bundle.kernel_offset + bundle.kernel_size.max(bundle.kernel_memory_size);
    let end = base + kernel_end.max(bundle.initrd_offset + bundle.initrd_size);
    let place = Range { base: end.next_multiple_of(MAX_TREE), size: tree.size };
    if !platform.ram.iter().any(|bank| bank.base <= place.base && place.end() <= bank.end()) {
        panic!("no room for the device tree at {:#x}", place.base);
    }
    // SAFETY: both are RAM, apart from each other, and nobody else uses them.
    unsafe {
        core::ptr::copy_nonoverlapping(tree.base as *const u8, place.base as *mut u8, tree.size as usize);
    }
    place
}

/// What the hypervisor keeps of RAM: its image, and what lies below it in the bank up to 2 MiB, so that the host's RAM
/// starts behind the hypervisor.
fn hypervisor_range(platform: &Platform, given: &Given) -> Range {
    let image = Range { base: given.bundle, size: given.end - given.bundle };
    let bank = platform.ram.iter().find(|bank| bank.base <= image.base && image.end() <= bank.end());
    match bank {
        Some(bank) if image.base - bank.base <= 2 << 20 => {
            Range { base: bank.base, size: image.end() - bank.base }
        }
        _ => image,
    }
}

/// Copies and checks the packer's header.
fn bundle(given: &Given) -> Result<BundleHeader, &'static str> {
    // SAFETY: the header is part of the image (boot.s).
    let bytes = unsafe {
        core::slice::from_raw_parts((given.bundle as usize + OFFSET) as *const u8, size_of::<BundleHeader>())
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
    if header.kernel_offset < given.end - given.bundle || kernel_end.is_none() || initrd_end > 1 << 38 {
        return Err("kernel inside the hypervisor, or out of range");
    }
    Ok(header)
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

/// Table pages that are kept for giving more of them.
fn reserve(platform: &Platform) -> u64 {
    platform.ram.iter().map(|bank| (bank.size >> 30) + 2).sum::<u64>() + 2
}

/// Builds the host's stage 2: its RAM and its devices, nothing else.
fn map_host(
    memory: &mut stage2::FlexMem,
    platform: &Platform,
    hypervisor: Range,
    found: Option<&devices::Found>,
) -> Result<(), stage2::Error> {
    let hardware = &mut memory::Hardware;
    for page in world::arena().tables.pages(1) {
        memory.boot_donate_table(hardware, Pa(page))?;
    }
    if machine::features().bbm_level_2 && found.is_none_or(|found| found.bbm_level == 2) {
        memory.boot_change_in_place();
    } else if found.is_some() {
        info!(
            "no FEAT_BBM level 2: the host's DMA can meet a hole while a block that it uses is split or merged"
        );
    }
    let mut result = memory.boot_reserve(hardware, Pa(hypervisor.base), hypervisor.size);
    outside(&platform.ram, hypervisor, |range| {
        if result.is_ok() {
            result = memory.boot_map_host(hardware, Pa(range.base), range.size, HostMemory::Ram);
        }
    });
    result?;
    for device in &platform.host_devices {
        memory.boot_map_host(hardware, Pa(device.base), device.size, HostMemory::Device)?;
    }
    // Redistributors without the page that says where LPI tables are.
    for frame in platform.redistributors.into_iter().flat_map(|region| gic::find_all(region)) {
        let (base, size) = (frame + gic::GUARDED_SIZE, gic::GICR_STRIDE as u64);
        memory.boot_map_host(hardware, Pa(base), size - gic::GUARDED_SIZE, HostMemory::Device)?;
    }
    if let Some(found) = found {
        for bar in &found.bars {
            memory.boot_map_host(hardware, Pa(bar.base), bar.size, HostMemory::Device)?;
        }
        if let Some(range) = found.npu.and_then(devices::window) {
            let mut tables = world::arena().window_tables.pages(1).map(Pa);
            let tables = [tables.next().unwrap_or_default(), tables.next().unwrap_or_default()];
            memory.boot_window(hardware, range, tables)?;
        }
    }
    Ok(())
}
