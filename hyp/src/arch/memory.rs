//! Physical memory and TLB maintenance: the machine under `stage2` and `hyp-core`.
//!
//! All RAM is mapped by our stage 1 at its physical address, so reaching a page is a pointer cast. Policy guarantees
//! which pages may be reached; this module only refuses addresses outside RAM.

use core::arch::asm;
use hyp_core::{NpuFault, NpuStep, Platform};
use stage2::{HOST_VMID, Ipa, Machine, Pa, Slot};

use super::sysreg::mrs;
use super::{el2, gic, secure, vcpu};
use crate::{devices, spmc, world};

/// Cleans and invalidates a range to the point of coherency. All of RAM passes here at boot, so the loop is tight: two
/// instructions a line.
pub fn clean(base: usize, size: usize) {
    let line = 4usize << ((mrs!("ctr_el0") >> 16) & 0xf);
    let (mut at, end) = (base, base.saturating_add(size));
    if (base | size).is_multiple_of(16 * line) {
        while at < end {
            // SAFETY: cache maintenance by address on mapped memory changes no contents.
            unsafe {
                asm!(".rept 16", "dc civac, {0}", "add {0}, {0}, {1}", ".endr", inout(reg) at, in(reg) line, options(nostack));
            }
        }
    }
    while at < end {
        // SAFETY: as above.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack)) };
        at = at.saturating_add(line);
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}

/// Zeroes a range of RAM, page-aligned.
///
/// # Safety
/// Nobody may rely on the contents.
pub unsafe fn zero(base: usize, size: usize) {
    let dczid = mrs!("dczid_el0");
    let block = 4usize << (dczid & 0xf);
    if dczid & 1 << 4 == 0 && (base | size).is_multiple_of(16 * block) {
        let (mut at, end) = (base, base.saturating_add(size));
        while at < end {
            // SAFETY: zeroes memory that the caller gave up; stage 1 maps all RAM as normal memory.
            unsafe {
                asm!(".rept 16", "dc zva, {0}", "add {0}, {0}, {1}", ".endr", inout(reg) at, in(reg) block, options(nostack));
            }
        }
    } else {
        // SAFETY: as above.
        unsafe { core::ptr::write_bytes(base as *mut u8, 0, size) };
    }
}

/// The machine. Zero-sized: its state is the hardware's. Made where the global lock is held.
pub struct Hardware;

impl Hardware {
    /// Forgets translations of the CPUs' (see [`el2::forget`]). The root goes with the VMID: a walk that the CPU makes ahead
    /// of time must not cache one owner's translation under another's VMID. No lower level runs on this CPU until the
    /// register is restored.
    fn forget(&self, vmid: u16, pages: Option<(u64, u64)>) {
        if secure() && vmid == HOST_VMID {
            return spmc::forget_host(pages);
        }
        let old = mrs!("vttbr_el2");
        let slot = Slot::all().find(|slot| slot.vmid() == vmid);
        let root = slot.map_or(world::host_root(), world::partition_root);
        el2::set_stage2(el2::stage2(root, vmid));
        el2::isb();
        el2::forget(pages);
        el2::set_stage2(old);
        el2::isb();
    }
}

impl Machine for Hardware {
    fn load(&self, table: Pa, index: usize) -> u64 {
        // SAFETY: tables are pages of the hypervisor, and index is below 1024 (root) or 512.
        unsafe { (table.0 as *const u64).add(index).read_volatile() }
    }

    fn store(&mut self, table: Pa, index: usize, descriptor: u64) {
        // SAFETY: as for load; the global lock is held. The barriers order the store for walkers on every core.
        unsafe {
            asm!("dsb ishst", options(nostack));
            (table.0 as *mut u64).add(index).write_volatile(descriptor);
            asm!("dsb ishst", "isb", options(nostack));
        }
    }

    fn tlbi_pages(&mut self, vmid: u16, ipa: Ipa, page_count: u64) {
        // Past this many pages one flush of the whole VMID is cheaper (and bounds the loop).
        if page_count > 64 {
            return self.tlbi_vmid(vmid);
        }
        devices::invalidate(vmid, Some((ipa.0, page_count)));
        self.forget(vmid, Some((ipa.0, page_count)));
    }

    fn tlbi_vmid(&mut self, vmid: u16) {
        devices::invalidate(vmid, None);
        self.forget(vmid, None);
    }

    fn zero(&mut self, page: Pa) {
        // SAFETY: policy zeroes only pages whose contents are given up.
        unsafe { zero(page.0 as usize, 4096) };
    }

    fn clean(&mut self, page: Pa) {
        clean(page.0 as usize, 4096);
    }

    fn sync_icache(&mut self, page: Pa) {
        clean(page.0 as usize, 4096);
        // SAFETY: instruction cache invalidation on all cores.
        unsafe { asm!("ic ialluis", "dsb ish", "isb", options(nostack)) };
    }

    fn ticks(&self) -> u64 {
        ticks()
    }
}

/// The system counter.
pub fn ticks() -> u64 {
    // SAFETY: a barrier, so that the read is not early.
    unsafe { asm!("isb", options(nostack)) };
    mrs!("cntpct_el0")
}

impl Platform for Hardware {
    fn read_page(&self, page: Pa, buffer: &mut [u8; 4096]) {
        for (i, chunk) in buffer.chunks_exact_mut(8).enumerate() {
            // SAFETY: the page is RAM. Others may write it meanwhile, so it is read as volatile words, once (I4).
            let word = unsafe { (page.0 as *const u64).add(i).read_volatile() };
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
    }

    fn write_page(&mut self, page: Pa, offset: usize, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate().take(4096usize.saturating_sub(offset)) {
            // SAFETY: inside the page: an RX buffer, a pinned page of the host or a partition's own.
            unsafe { (page.0 as *mut u8).add(offset + i).write_volatile(*byte) };
        }
    }

    fn ticks_per_second(&self) -> u64 {
        mrs!("cntfrq_el0")
    }

    fn reset_vcpu(&mut self, slot: Slot, vcpu: usize, entry: u64, argument: u64) {
        vcpu::reset(slot, vcpu, entry, argument);
    }

    fn set_registers(&mut self, slot: Slot, vcpu: usize, registers: &[u64; 18]) {
        vcpu::set_registers(slot, vcpu, registers);
    }

    fn kick(&mut self, cpu: usize) {
        if let Some(mpidr) = world::platform().cpus.get(cpu) {
            gic::kick(*mpidr);
        }
    }

    fn signal_host(&mut self) {
        world::signal_host();
    }

    fn timer_deadline(&self, slot: Slot, vcpu: usize) -> Option<u64> {
        vcpu::timer_deadline(slot, vcpu)
    }

    fn npu(&mut self, step: NpuStep) -> Result<(), NpuFault> {
        devices::npu_step(step)
    }

    fn npu_jobs(&self) -> u64 {
        devices::npu_jobs()
    }

    fn dma_blocked(&self) -> u64 {
        devices::blocked()
    }
}
