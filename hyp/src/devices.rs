//! DMA and who may do it: the SMMU, the PCI bus and the NPU, behind one lock.
//!
//! Lock order: the policy's, this one, the console's. From [`start`] on a stream is either its owner's or aborts; if the SMMU
//! ever fails, every stream aborts for good ([`cut_off`]).

use core::sync::atomic::{AtomicBool, Ordering};
use hyp_core::{NpuFault, NpuLayout, NpuStep, knob};
use log::{error, info, warn};
use npu_passthrough::pci::{Config, Kind, Pci, RoutingId, Window, Windows};
use npu_passthrough::smmu::{self, Reports, Smmu, Structures};
use npu_passthrough::{npu, pci};
use spin::Once;
use spin::mutex::TicketMutex;
use stage2::{HOST_VMID, Pa};

use crate::arch::memory::ticks;
use crate::arch::mmio::{Access, Device};
use crate::arch::sysreg::mrs;
use crate::platform::{Pcie, Platform, Range};
use crate::world::{self, skips};

/// Made at compile time: it is too large to pass over a boot stack.
static DEVICES: TicketMutex<Devices> =
    TicketMutex::new(Devices { pci: Pci::EMPTY, driven: None, reports: Reports::new(8, 10), blocked: 0 });
/// The NPU, for [`cut_off`], which cannot wait for the lock.
static NPU: Once<(npu::Npu, Device)> = Once::new();
/// Every stream aborts for good.
static OFF: AtomicBool = AtomicBool::new(false);

/// Vendor and device of the NPU: virtio's GPIO controller, whose identity it borrows.
const NPU_ID: u32 = 0x1069_1af4;
/// Offset in the NPU's configuration of the number of jobs that it ended.
const NPU_JOBS: u64 = 4;

/// Configuration space.
struct Ecam {
    registers: Device,
    first_bus: u8,
}

impl Ecam {
    fn offset(&self, id: RoutingId, offset: u16) -> u64 {
        (u64::from(id.0) << 12 | u64::from(offset & 0xfff)) - (u64::from(self.first_bus) << 20)
    }
}

impl Config for Ecam {
    fn read(&self, id: RoutingId, offset: u16, width: u8) -> u32 {
        self.registers.read(self.offset(id, offset), width) as u32
    }

    fn write(&mut self, id: RoutingId, offset: u16, width: u8, value: u32) {
        self.registers.write(self.offset(id, offset), width, value.into());
    }
}

struct Devices {
    pci: Pci,
    driven: Option<Driven>,
    reports: Reports,
    blocked: u64,
}

/// What is driven once there is something.
struct Driven {
    registers: Device,
    smmu: Smmu,
    ecam: Ecam,
    /// Routing ID of the NPU.
    npu: Option<RoutingId>,
}

/// What the host's and the hypervisor's memory maps need to know.
pub struct Found {
    /// Whether tables that streams walk may change in place.
    pub bbm_level: u8,
    /// Registers of the host's functions.
    pub bars: arrayvec::ArrayVec<Range, 96>,
    /// Registers of the NPU.
    pub npu: Option<Range>,
}

/// Finds the PCI functions and starts the SMMU; every stream aborts. `None`: no PCI for the host, and why.
pub fn start(platform: &Platform) -> Option<Found> {
    let (pcie, [smmu]) = (platform.pcie.clone()?, platform.smmus.as_slice()) else {
        info!("no PCI for the host: it takes a host bridge and one SMMU");
        return None;
    };
    let mut found = Found { bbm_level: 0, bars: arrayvec::ArrayVec::new(), npu: None };
    match DEVICES.lock().start(pcie, *smmu, &mut found) {
        Ok(()) => Some(found),
        Err(reason) => {
            warn!("no PCI for the host: {reason:?}");
            None
        }
    }
}

#[derive(Debug)]
enum Reason {
    Pci(#[allow(dead_code, reason = "printed")] pci::Error),
    Smmu(#[allow(dead_code, reason = "printed")] smmu::Error),
}

impl Devices {
    fn start(&mut self, pcie: Pcie, smmu: Range, found: &mut Found) -> Result<(), Reason> {
        // SAFETY: configuration space of the host bridge and registers of the SMMU, as the device tree says; both are mapped
        // for us and for nobody else.
        let (ecam, mut registers) = unsafe { (Device::new(pcie.ecam.base), Device::new(smmu.base)) };
        let mut ecam = Ecam { registers: ecam, first_bus: *pcie.buses.start() };
        let window = |range: Range| Window { base: range.base, size: range.size };
        let windows = Windows { mem32: window(pcie.mem32), mem64: window(pcie.mem64) };
        let arena = world::arena();
        let is_npu = |config: &Ecam, id| config.read(id, 0, 4) == NPU_ID;
        let pci = &mut self.pci;
        pci.enumerate(&mut ecam, pcie.buses, windows, is_npu).map_err(Reason::Pci)?;
        let mut buses = arrayvec::ArrayVec::<_, { smmu::MAX_BUSES }>::new();
        for (bus, table) in pci.buses().zip(arena.bus_tables.pages(4)) {
            let _ = buses.try_push((bus, table)); // functions of further buses get no stream
        }
        let mut queues = arena.queues.pages(1);
        let structures = Structures {
            stream_table: arena.stream_table.address(),
            buses: &buses,
            command_queue: queues.next().unwrap_or_default(),
            event_queue: queues.next().unwrap_or_default(),
        };
        let smmu = Smmu::start(&mut registers, structures).map_err(Reason::Smmu)?;
        found.bbm_level = smmu.bbm_level();
        for function in pci.functions() {
            info!("PCI {:#06x}: {:?}", function.id.0, function.kind);
            let bars = function.bars.iter().flatten();
            if function.kind == Kind::Endpoint {
                let pages = bars.map(|bar| Range { base: bar.base, size: bar.size.next_multiple_of(4096) });
                found.bars.extend(pages.take(found.bars.remaining_capacity()));
            }
        }
        let mut id = None;
        if let Some(function) = pci.npu() {
            match npu::Npu::find(&ecam, function) {
                Ok(npu) => {
                    let window = npu.layout().window;
                    // SAFETY: registers of the NPU, mapped for us; others reach them only when policy says so.
                    NPU.call_once(|| (npu, unsafe { Device::new(window.base) }));
                    found.npu = Some(Range { base: window.base, size: window.size });
                    id = Some(function.id);
                }
                Err(reason) => warn!("the NPU cannot be lent: {reason:?}"),
            }
        }
        self.driven = Some(Driven { registers, smmu, ecam, npu: id });
        Ok(())
    }

    /// Lets the streams of the host's functions walk these tables.
    fn attach_host(&mut self, root: u64) {
        let Self { pci, driven: Some(Driven { registers, smmu, .. }), .. } = self else { return };
        for function in pci.functions().iter().filter(|function| function.kind == Kind::Endpoint) {
            let stream = function.id.stream();
            let _ = smmu.detach(registers, stream, HOST_VMID); // not attached at boot
            if let Err(error) = smmu.attach(registers, stream, HOST_VMID, root) {
                warn!("stream {stream:#x} stays cut off: {error:?}");
            }
        }
    }

    /// The outer error is the SMMU's: it may still use what it should have forgotten.
    fn npu_step(&mut self, step: NpuStep) -> Result<Result<(), NpuFault>, smmu::Error> {
        let Self { pci, driven: Some(Driven { registers, smmu, ecam, npu: Some(id) }), .. } = self else {
            return Ok(Err(NpuFault));
        };
        #[cfg(feature = "fault-knobs")]
        smmu.set_skips(match skips(knob::NPU_INVALIDATE) {
            true => smmu::Skips::TLBI,
            false => smmu::Skips::empty(),
        });
        let done = match step {
            NpuStep::Reset => {
                let Some((npu, registers)) = NPU.get() else { return Ok(Err(NpuFault)) };
                pci.reset_npu(ecam);
                if let Err(error) = npu.reset(&mut { *registers }) {
                    error!("the NPU does not reset: {error:?}");
                    return Ok(Err(NpuFault));
                }
                Ok(())
            }
            NpuStep::Detach { .. } | NpuStep::Attach { .. } if skips(knob::NPU_STREAM) => Ok(()),
            NpuStep::Detach { vmid } => smmu.detach(registers, id.stream(), vmid),
            NpuStep::Attach { vmid, root } => smmu.attach(registers, id.stream(), vmid, root.0),
            NpuStep::Interrupt { enabled } => {
                pci.set_npu_interrupt(ecam, enabled);
                Ok(())
            }
        };
        #[cfg(feature = "fault-knobs")]
        smmu.set_skips(smmu::Skips::empty());
        done.map(Ok)
    }

    fn drain_events(&mut self) {
        let Self { driven: Some(Driven { registers, smmu, .. }), reports, blocked, .. } = self else {
            return;
        };
        smmu.events(registers, |event| {
            *blocked += 1;
            let seconds = ticks() / mrs!("cntfrq_el0").max(1);
            if let Some(more) = reports.admit(seconds).or(skips(knob::DMA_REPORTS).then_some(0)) {
                warn!("DMA blocked: {event:x?}, {more} more before");
            }
        });
    }
}

/// Lets the host's devices reach its RAM, and says where the NPU's structures are.
pub fn attach_host(root: u64) -> Option<NpuLayout> {
    DEVICES.lock().attach_host(root);
    let layout = NPU.get()?.0.layout();
    let offsets = [layout.common, layout.isr, layout.device, layout.notify];
    let offsets = offsets.iter().enumerate().map(|(i, offset)| (offset & 0xffff) << (16 * i)).sum();
    Some(NpuLayout { offsets, notify_multiplier: layout.notify_off_multiplier })
}

/// Makes the SMMU forget pages of a VMID, or all: complete on return. Part of every change of stage 2.
pub fn invalidate(vmid: u16, pages: Option<(u64, u64)>) {
    if OFF.load(Ordering::Acquire) || skips(knob::SMMU_INVALIDATE) {
        return;
    }
    let mut guard = DEVICES.lock();
    let Some(Driven { registers, smmu, .. }) = &mut guard.driven else { return };
    let done = match pages {
        Some((ipa, page_count)) => smmu.invalidate_pages(registers, vmid, ipa, page_count),
        None => smmu.invalidate_vmid(registers, vmid),
    };
    if let Err(error) = done {
        error!("SMMU: {error:?}");
        drop(guard);
        cut_off();
    }
}

/// Does a step of a change of the NPU's owner.
pub fn npu_step(step: NpuStep) -> Result<(), NpuFault> {
    if OFF.load(Ordering::Acquire) {
        return Err(NpuFault);
    }
    let mut devices = DEVICES.lock();
    devices.drain_events();
    match devices.npu_step(step) {
        Ok(done) => done,
        Err(error) => {
            error!("SMMU: {step:?}: {error:?}");
            drop(devices);
            cut_off();
            Err(NpuFault)
        }
    }
}

/// Jobs that the NPU ended since its reset.
pub fn npu_jobs() -> u64 {
    NPU.get().map_or(0, |(npu, registers)| registers.read(npu.layout().device + NPU_JOBS, 4))
}

/// Accesses that the SMMU refused, as far as it reported them.
pub fn blocked() -> u64 {
    let mut devices = DEVICES.lock();
    devices.drain_events();
    devices.blocked
}

/// Whether the host's accesses to an address are carried out by [`access`].
pub fn emulates(ipa: u64) -> bool {
    world::platform().pcie.as_ref().is_some_and(|pcie| pcie.ecam.contains(ipa))
}

/// Carries out an access of the host's to configuration space; returns what a load gets.
pub fn access(ipa: u64, access: &Access, stored: u64, npu_is_hosts: bool) -> u64 {
    let mut guard = DEVICES.lock();
    let Devices { pci, driven: Some(Driven { ecam, .. }), .. } = &mut *guard else { return u64::MAX };
    let Some(pcie) = &world::platform().pcie else { return u64::MAX };
    let offset = ipa - pcie.ecam.base;
    if access.write {
        // Refused writes are ignored, as a bus does.
        pci.host_write(ecam, offset, access.width, stored as u32, npu_is_hosts);
        return 0;
    }
    let value = pci.host_read(ecam, offset, access.width.min(4), npu_is_hosts);
    if access.width > 4 { u64::MAX } else { value.into() }
}

/// Fault knobs: passes them on to the parts.
#[cfg(feature = "fault-knobs")]
pub fn turn_knobs(host_root: u64) {
    static CPU_ROOT: AtomicBool = AtomicBool::new(false);
    let mut devices = DEVICES.lock();
    let mut pci_skips = pci::Skips::empty();
    pci_skips.set(pci::Skips::BAR_MOVE, skips(knob::BAR_MOVE));
    pci_skips.set(pci::Skips::BUS_NUMBERS, skips(knob::BUS_NUMBERS));
    pci_skips.set(pci::Skips::NPU_CONFIG, skips(knob::NPU_CONFIG));
    pci_skips.set(pci::Skips::MSI, skips(knob::MSI));
    devices.pci.set_skips(pci_skips);
    let cpu_root = skips(knob::STREAM_ROOT);
    if CPU_ROOT.swap(cpu_root, Ordering::Relaxed) != cpu_root {
        devices.attach_host(if cpu_root { host_root } else { host_root + stage2::STREAM_ROOT });
    }
}

/// Ends all DMA at once and for good, without the lock: the NPU is reset, and every stream aborts.
pub fn cut_off() {
    if OFF.swap(true, Ordering::AcqRel) {
        return;
    }
    if let Some((npu, registers)) = NPU.get() {
        let _ = npu.reset(&mut { *registers });
    }
    for smmu in &world::platform().smmus {
        // SAFETY: registers of an SMMU, mapped for us. The driver may be in the middle of something, which is over now.
        let mut registers = unsafe { Device::new(smmu.base) };
        if let Err(error) = smmu::abort_all(&mut registers) {
            error!("SMMU at {:#x}: {error:?}", smmu.base);
        }
    }
}

/// The pages of the NPU's registers.
pub fn window(range: Range) -> Option<stage2::PageRange> {
    stage2::PageRange::new(Pa(range.base), range.size / 4096).ok()
}
