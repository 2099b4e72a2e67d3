//! The platform as the device tree describes it, and the device tree that the host gets to see. Nothing about a
//! board is hard-coded: what the host may touch is an allow-list of device kinds, everything else disappears.

use arrayvec::{ArrayString, ArrayVec};
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::fdt_mut::FdtMut;
use dtoolkit::{Node, Property};
use hyp_abi::bundle::BundleHeader;

use crate::arch::secure;

/// Most CPUs.
pub const MAX_CPUS: usize = 8;
const MAX_RANGES: usize = 16;

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

/// A PCI host bridge with ECAM.
#[derive(Clone, Debug)]
pub struct Pcie {
    /// Configuration space.
    pub ecam: Range,
    /// Buses that it reaches.
    pub buses: core::ops::RangeInclusive<u8>,
    /// Addresses for registers below 4 GiB.
    pub mem32: Range,
    /// Addresses for registers above; may be empty.
    pub mem64: Range,
}

impl Range {
    /// Whether the byte at `address` is in it.
    pub fn contains(&self, address: u64) -> bool {
        address >= self.base && address - self.base < self.size
    }

    /// First byte after the range.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }
}

/// What the hypervisor needs to know about the machine.
#[derive(Clone, Debug, Default)]
pub struct Platform {
    /// RAM, as the firmware describes it.
    pub ram: ArrayVec<Range, MAX_RANGES>,
    /// Devices that the host gets, page-aligned.
    pub host_devices: ArrayVec<Range, MAX_RANGES>,
    /// MPIDR affinity of each CPU, by index.
    pub cpus: ArrayVec<u64, MAX_CPUS>,
    /// GICv3 redistributors.
    pub redistributors: Option<Range>,
    /// SMMUv3 register pages.
    pub smmus: ArrayVec<Range, 4>,
    /// The PCI host bridge whose devices are behind the SMMU; the host gets it, guarded.
    pub pcie: Option<Pcie>,
    /// Our own PL011.
    pub trusted_uart: Option<Range>,
}

/// What makes the platform unusable; printed by the panic that follows at boot.
#[derive(Clone, Copy, Debug)]
pub enum PlatformError {
    /// The blob is no device tree, or one of its nodes is malformed.
    DeviceTree,
    /// No GICv3.
    NoGicV3,
    /// More RAM banks, devices or CPUs than this build has room for.
    TooMany,
    /// The edited tree does not fit.
    NoRoom,
}

/// Devices that the host may have: its console and timekeepers, which master no DMA.
const HOST_DEVICES: [&str; 3] = ["arm,pl011", "arm,pl031", "arm,pl061"];
/// Nodes of the root that stay in the host's tree, by name without address. Devices stay only if they are the host's.
const KEPT_NODES: [&str; 15] = [
    "pcie",
    "memory",
    "chosen",
    "cpus",
    "psci",
    "timer",
    "pmu",
    "aliases",
    "apb-pclk",
    "intc",
    "gpio-keys",
    "pl011",
    "pl031",
    "pl061",
    "interrupt-controller",
];

fn regs<'a>(node: FdtNode<'a>) -> Result<impl Iterator<Item = Range> + 'a, PlatformError> {
    let regs = node.reg().map_err(|_| PlatformError::DeviceTree)?;
    Ok(regs
        .into_iter()
        .flatten()
        .filter_map(|reg| Some(Range { base: reg.address::<u64>().ok()?, size: reg.size::<u64>().ok()? })))
}

fn is_compatible(node: &FdtNode, name: &str) -> bool {
    node.compatible().is_some_and(|mut all| all.any(|c| c == name))
}

fn enabled(node: &FdtNode) -> bool {
    node.property("status").is_none_or(|p| matches!(p.value_as::<&str>(), Ok("okay" | "ok")))
}

/// Whether it is there for the secure world alone (the secure firmware's device tree binding).
fn is_secure(node: &FdtNode) -> bool {
    node.property("secure-status").is_some_and(|p| p.value_as::<&str>() == Ok("okay")) && !enabled(node)
}

/// The PL011 that is the host's: the one `stdout-path` names, else the first.
fn is_host_uart(fdt: Fdt, node: &FdtNode) -> bool {
    let path = fdt.find_node("/chosen").and_then(|c| c.property("stdout-path"));
    match path.as_ref().and_then(|p| p.value_as::<&str>().ok()) {
        Some(path) => path.trim_start_matches('/').split(':').next() == Some(node.name()),
        None => {
            let first = fdt.root().children().find(|n| is_compatible(n, "arm,pl011"));
            first.is_some_and(|first| first.name() == node.name())
        }
    }
}

/// Reads a host bridge (PCI Bus Binding to IEEE 1275, 2.1): windows where CPU and bus addresses are the same.
fn pcie(node: FdtNode<'_>) -> Result<Pcie, PlatformError> {
    let ecam = regs(node)?.next().ok_or(PlatformError::DeviceTree)?;
    let cells = |name| {
        let property = node.property(name);
        let value = property.as_ref().map_or(&[] as &[u8], |property| property.value());
        let cells = value.chunks_exact(4).map(|cell| cell.try_into().map_or(0, u32::from_be_bytes));
        cells.take(7 * 8).collect::<ArrayVec<u32, { 7 * 8 }>>()
    };
    let mut numbers = cells("bus-range").into_iter();
    let (first, last) = (numbers.next().unwrap_or(0) as u8, numbers.next().unwrap_or(255) as u8);
    let last = last.min(first.saturating_add((ecam.size >> 20).saturating_sub(1).min(255) as u8));
    let mut bridge = Pcie { ecam, buses: first..=last, mem32: Range::default(), mem64: Range::default() };
    for range in cells("ranges").chunks_exact(7) {
        let &[kind, child_high, child_low, high, low, size_high, size_low] = range else { continue };
        let wide = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        let window = Range { base: wide(high, low), size: wide(size_high, size_low) };
        match kind >> 24 & 3 {
            _ if window.base != wide(child_high, child_low) => {}
            2 => bridge.mem32 = window,
            3 => bridge.mem64 = window,
            _ => {}
        }
    }
    Ok(bridge)
}

impl Platform {
    /// Reads the machine's device tree.
    pub fn new(fdt: Fdt) -> Result<Self, PlatformError> {
        let mut platform = Self::default();
        let too_many = |_| PlatformError::TooMany;
        for node in fdt.root().children() {
            if !enabled(&node) {
                if secure() && is_secure(&node) && is_compatible(&node, "arm,pl011") {
                    platform.trusted_uart = regs(node)?.next();
                }
            } else if node.name_without_address() == "memory" {
                for range in regs(node)?.filter(|r| r.size != 0) {
                    platform.ram.try_push(range).map_err(|_| PlatformError::TooMany)?;
                }
            } else if node.name() == "cpus" {
                for cpu in node.children().filter(|n| n.name_without_address() == "cpu") {
                    let affinity = cpu.property("reg").and_then(|p| match p.value().len() {
                        4 => p.value_as::<u32>().ok().map(u64::from),
                        8 => p.value_as::<u64>().ok(),
                        _ => None,
                    });
                    let affinity = affinity.ok_or(PlatformError::DeviceTree)?;
                    platform.cpus.try_push(affinity).map_err(|_| PlatformError::TooMany)?;
                }
            } else if is_compatible(&node, "arm,gic-v3") {
                let mut regs = regs(node)?;
                let distributor = regs.next().ok_or(PlatformError::DeviceTree)?;
                let redistributors = regs.next().ok_or(PlatformError::DeviceTree)?;
                platform.host_devices.try_push(distributor).map_err(too_many)?;
                platform.redistributors = Some(redistributors);
            } else if is_compatible(&node, "pci-host-ecam-generic") {
                // One that is not behind an SMMU would let its devices write anywhere.
                if node.property("iommu-map").is_some() {
                    platform.pcie = Some(pcie(node)?);
                }
            } else if is_compatible(&node, "arm,smmu-v3") {
                for range in regs(node)?.take(1) {
                    platform.smmus.try_push(range).map_err(|_| PlatformError::TooMany)?;
                }
            } else if is_compatible(&node, "arm,pl011") && !is_host_uart(fdt, &node) {
                platform.trusted_uart = regs(node)?.next();
            } else if HOST_DEVICES.iter().any(|d| is_compatible(&node, d)) {
                for range in regs(node)? {
                    platform.host_devices.try_push(range).map_err(too_many)?;
                }
            }
        }
        if platform.redistributors.is_none() {
            return Err(PlatformError::NoGicV3);
        }
        if platform.ram.is_empty() || platform.cpus.is_empty() {
            return Err(PlatformError::DeviceTree);
        }
        Ok(platform)
    }

    /// Index of the CPU with this MPIDR.
    pub fn cpu_index(&self, mpidr: u64) -> Option<usize> {
        self.cpus.iter().position(|affinity| *affinity == mpidr & 0xff_00ff_ffff)
    }
}

/// Calls `f` for the parts of `ram` outside `hole`.
pub fn outside(ram: &[Range], hole: Range, mut f: impl FnMut(Range)) {
    for bank in ram {
        let below = Range { base: bank.base, size: hole.base.min(bank.end()).saturating_sub(bank.base) };
        let start = hole.end().max(bank.base);
        let above = Range { base: start, size: bank.end().saturating_sub(start) };
        [below, above].into_iter().filter(|r| r.size != 0).for_each(&mut f);
    }
}

/// Turns the machine's tree into the host's, in place: RAM without the hypervisor's, allowed devices only, the
/// bundle's command line and initrd. `blob` may be larger than the tree.
pub fn edit_for_host(
    blob: &mut [u8],
    platform: &Platform,
    hypervisor: Range,
    bundle: &BundleHeader,
    load_base: u64,
) -> Result<(), PlatformError> {
    let mut fdt = FdtMut::from_slice(blob).map_err(|_| PlatformError::DeviceTree)?;
    let mut removed = ArrayVec::<Name, 96>::new();
    {
        let view = fdt.as_read_only();
        for node in view.root().children() {
            let name = node.name_without_address();
            let ours = is_compatible(&node, "arm,pl011") && !is_host_uart(view, &node);
            let bridge = platform.pcie.is_some() && is_compatible(&node, "pci-host-ecam-generic");
            let device_allowed = node.property("reg").is_none()
                || bridge
                || matches!(name, "memory" | "intc" | "interrupt-controller" | "cpus")
                || HOST_DEVICES.iter().any(|d| is_compatible(&node, d));
            if KEPT_NODES.contains(&name) && device_allowed && !ours {
                continue;
            }
            let copy = Name::from(node.name()).map_err(|_| PlatformError::TooMany)?;
            removed.try_push(copy).map_err(|_| PlatformError::TooMany)?;
        }
    }
    let mut root = fdt.root_mut();
    removed.iter().for_each(|name| {
        root.remove_child(name);
    });
    // The ITS lives below the interrupt controller: LPIs are refused (I6), so it goes too.
    for controller in ["intc", "interrupt-controller"] {
        while let Some(name) = child_name(fdt.as_read_only(), controller, "its") {
            let Some(mut node) = find_root_child(&mut fdt, controller) else { break };
            if !node.remove_child(&name) {
                break;
            }
        }
    }
    // Streams are the hypervisor's business, and interrupts of PCI devices are INTx.
    if let Some(mut bridge) = find_root_child(&mut fdt, "pcie") {
        for name in ["iommu-map", "iommu-map-mask", "msi-map", "msi-map-mask", "msi-parent"] {
            bridge.remove_property(name);
        }
    }
    fdt.compact();

    // RAM: all banks in one node, without ours.
    let mut cells = ArrayVec::<u8, { MAX_RANGES * 32 }>::new();
    let mut fits = true;
    outside(&platform.ram, hypervisor, |range| {
        fits &= cells.try_extend_from_slice(&range.base.to_be_bytes()).is_ok();
        fits &= cells.try_extend_from_slice(&range.size.to_be_bytes()).is_ok();
    });
    if !fits {
        return Err(PlatformError::TooMany);
    }
    let mut memory = find_root_child(&mut fdt, "memory").ok_or(PlatformError::DeviceTree)?;
    memory.remove_property("reg");
    memory.add_property("reg", cells.as_slice()).map_err(|_| PlatformError::NoRoom)?;

    let mut chosen = fdt.find_node_mut("/chosen").ok_or(PlatformError::DeviceTree)?;
    for name in ["bootargs", "linux,initrd-start", "linux,initrd-end"] {
        chosen.remove_property(name);
    }
    // Bus numbers and addresses are given for good.
    chosen.add_property("linux,pci-probe-only", 1u32).map_err(|_| PlatformError::NoRoom)?;
    let length = (bundle.command_line_size as usize).min(bundle.command_line.len());
    let line = bundle.command_line.get(..length).and_then(|b| core::str::from_utf8(b).ok()).unwrap_or("");
    chosen.add_property("bootargs", line).map_err(|_| PlatformError::NoRoom)?;
    if bundle.initrd_size != 0 {
        let start = load_base.saturating_add(bundle.initrd_offset);
        let end = start.saturating_add(bundle.initrd_size);
        chosen.add_property("linux,initrd-start", start).map_err(|_| PlatformError::NoRoom)?;
        chosen.add_property("linux,initrd-end", end).map_err(|_| PlatformError::NoRoom)?;
    }
    Ok(())
}

/// A node's name, or its path from the root.
type Name = ArrayString<64>;

fn child_name(fdt: Fdt, parent: &str, prefix: &str) -> Option<Name> {
    let parent = fdt.root().children().find(|n| n.name_without_address() == parent)?;
    let child = parent.children().find(|n| n.name_without_address() == prefix)?;
    Name::from(child.name()).ok()
}

fn find_root_child<'a, B: dtoolkit::fdt_mut::FdtBuffer>(
    fdt: &'a mut FdtMut<B>,
    name: &str,
) -> Option<dtoolkit::fdt_mut::FdtNodeMut<'a, B>> {
    let mut path = Name::from("/").ok()?;
    {
        let view = fdt.as_read_only();
        let node = view.root().children().find(|n| n.name_without_address() == name)?;
        path.try_push_str(node.name()).ok()?;
    }
    fdt.find_node_mut(&path)
}
