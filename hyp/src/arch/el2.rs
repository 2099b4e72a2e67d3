//! EL2 control registers: what traps while the host runs, what traps while a partition runs.

use core::arch::asm;

use super::features::Features;
use super::secure;
use super::sysreg::{mrs, msr, register};
use crate::world;

// HCR_EL2 (Arm ARM D24.2.52).
const HCR_VM: u64 = 1 << 0;
const HCR_SWIO: u64 = 1 << 1;
const HCR_FMO: u64 = 1 << 3;
const HCR_IMO: u64 = 1 << 4;
const HCR_AMO: u64 = 1 << 5;
const HCR_FB: u64 = 1 << 9;
const HCR_TWI: u64 = 1 << 13;
const HCR_TID1: u64 = 1 << 16;
const HCR_TID2: u64 = 1 << 17;
const HCR_TID3: u64 = 1 << 18;
const HCR_TSC: u64 = 1 << 19;
const HCR_TIDCP: u64 = 1 << 20;
const HCR_TACR: u64 = 1 << 21;
const HCR_TSW: u64 = 1 << 22;
const HCR_RW: u64 = 1 << 31;
const HCR_TLOR: u64 = 1 << 35;
const HCR_TERR: u64 = 1 << 36;
const HCR_APK: u64 = 1 << 40;
const HCR_API: u64 = 1 << 41;
const HCR_TID5: u64 = 1 << 58;

/// What both have: stage 2, set/way invalidation made harmless, SMC and ID registers trapped, hidden registers too.
const HCR_COMMON: u64 =
    HCR_VM | HCR_SWIO | HCR_RW | HCR_TSC | HCR_TID3 | HCR_TLOR | HCR_TID5 | HCR_APK | HCR_API;
/// While the host runs: it takes its own interrupts.
pub const HCR_HOST: u64 = HCR_COMMON;
/// While a partition runs: interrupts and errors come to us, WFI too, implementation-defined registers trap.
pub const HCR_PARTITION: u64 = HCR_COMMON
    | HCR_FMO
    | HCR_IMO
    | HCR_AMO
    | HCR_FB
    | HCR_TWI
    | HCR_TID1
    | HCR_TID2
    | HCR_TIDCP
    | HCR_TACR
    | HCR_TSW
    | HCR_TERR;

/// VTCR_EL2: 40-bit IPA, two concatenated level-1 tables, 4 KiB granule, inner-shareable write-back walks, 40-bit PA.
const VTCR: u64 = 24 | 1 << 6 | 1 << 8 | 1 << 10 | 3 << 12 | 2 << 16 | 1 << 31;

// At S-EL2 the non-secure addresses of a partition lead to the normal world's memory, by tables there; the secure ones to
// secure RAM (VSTCR_EL2.SW and SA are 0).
const VTCR_NSW: u64 = 1 << 29;
const VTCR_NSA: u64 = 1 << 30;
/// VSTCR_EL2: as [`VTCR`].
const VSTCR: u64 = 24 | 1 << 6 | 1 << 31;

// CPTR_EL2 with E2H = 0.
const CPTR_RES1: u64 = 0x22ff;
const CPTR_TZ: u64 = 1 << 8;
const CPTR_TSM: u64 = 1 << 12;
const CPTR_TTA: u64 = 1 << 20;
const CPTR_TAM: u64 = 1 << 30;
/// SVE is the host's; SME, trace and activity monitors are nobody's.
pub const CPTR_HOST: u64 = CPTR_RES1 | CPTR_TSM | CPTR_TTA | CPTR_TAM;
/// A partition has SIMD but no SVE.
pub const CPTR_PARTITION: u64 = CPTR_HOST | CPTR_TZ;

// MDCR_EL2.
const MDCR_HPMN: u64 = 0x1f;
const MDCR_TPMCR: u64 = 1 << 5;
const MDCR_TPM: u64 = 1 << 6;
const MDCR_TDA: u64 = 1 << 9;
const MDCR_TDOSA: u64 = 1 << 10;
const MDCR_TDRA: u64 = 1 << 11;
const MDCR_TPMS: u64 = 1 << 14;
const MDCR_HPMD: u64 = 1 << 17;
const MDCR_TTRF: u64 = 1 << 19;

// HCRX_EL2.
const HCRX_MSCEN: u64 = 1 << 11;
const HCRX_TCR2EN: u64 = 1 << 14;

// CNTHCTL_EL2 with E2H = 0.
const CNTHCTL_EL1PCTEN: u64 = 1 << 0;
const CNTHCTL_EL1PCEN: u64 = 1 << 1;

/// The debug and performance-monitor traps; HPMN (host's counters) stays what reset made it: all of them.
fn mdcr(partition: bool) -> u64 {
    let counters = (mrs!("pmcr_el0") >> 11) & MDCR_HPMN;
    // Sampling, trace and trace buffers trap for both; counting stops at EL2.
    let common = counters | MDCR_TPMS | MDCR_HPMD | MDCR_TTRF;
    let extra = MDCR_TPM | MDCR_TPMCR | MDCR_TDA | MDCR_TDOSA | MDCR_TDRA;
    if partition { common | extra } else { common }
}

/// VTTBR_EL2 for a tree and a VMID.
pub fn stage2(root: u64, vmid: u16) -> u64 {
    root | u64::from(vmid) << 48
}

/// Sets VTTBR_EL2, and what takes its place for secure addresses, which maps nothing while the VMID changes.
pub fn set_stage2(vttbr: u64) {
    if secure() {
        msr!(register!(vsttbr_el2), world::secure_root(stage2::HOST_VMID));
        isb();
    }
    msr!("vttbr_el2", vttbr);
    if secure() {
        isb();
        msr!(register!(vsttbr_el2), world::secure_root((vttbr >> 48) as u16));
    }
}

/// Forgets translations of pages, or everything, under the VMID that is set, on all CPUs; complete on return. Stage 2 by
/// address first, then combined and stage-1 entries (Arm ARM D8.14: break-before-make of stage 2).
pub fn forget(pages: Option<(u64, u64)>) {
    let Some((ipa, page_count)) = pages else {
        // SAFETY: invalidation is always safe.
        unsafe { asm!("dsb ishst", "tlbi vmalls12e1is", "dsb ish", "isb", options(nostack)) };
        return;
    };
    // SAFETY: a barrier.
    unsafe { asm!("dsb ishst", options(nostack)) };
    for page in 0..page_count {
        let page = (ipa >> 12) + page;
        // SAFETY: invalidation is always safe.
        unsafe { asm!("tlbi ipas2e1is, {}", in(reg) page, options(nostack)) };
        if secure() {
            // SAFETY: as above: that was the secure address, this is the non-secure one.
            unsafe { asm!("tlbi ipas2e1is, {}", in(reg) page | 1 << 63, options(nostack)) };
        }
    }
    // SAFETY: as above.
    unsafe { asm!("dsb ish", "tlbi vmalle1is", "dsb ish", "isb", options(nostack)) };
}

/// Configures this CPU for running its host; called once per CPU, MMU on.
pub fn configure(features: &Features, host_root: u64, host_vmid: u16) {
    if secure() {
        msr!("vtcr_el2", VTCR | VTCR_NSW | VTCR_NSA);
        msr!(register!(vstcr_el2), VSTCR);
        // Emulation reads the same memory in both worlds, and would hide that a bit is not there.
        let kept = mrs!("vtcr_el2") & !mrs!(register!(vstcr_el2)) & (VTCR_NSW | VTCR_NSA);
        assert!(kept == VTCR_NSW | VTCR_NSA, "the normal world's memory cannot be told from ours at S-EL1");
    } else {
        msr!("vtcr_el2", VTCR);
    }
    set_stage2(stage2(host_root, host_vmid));
    msr!("hcr_el2", HCR_HOST);
    msr!("hstr_el2", 0);
    msr!("cptr_el2", CPTR_HOST);
    isb();
    if features.sve {
        msr!(register!(zcr_el2), 0xf);
    }
    if features.hcx {
        msr!(register!(hcrx_el2), HCRX_MSCEN | HCRX_TCR2EN);
    }
    if features.fgt {
        // Bits whose meaning is "do not trap" stay 0: what they guard is hidden. Bits that trap stay 0 as well.
        msr!(register!(hfgrtr_el2), 0);
        msr!(register!(hfgwtr_el2), 0);
        msr!(register!(hfgitr_el2), 0);
        msr!(register!(hdfgrtr_el2), 0);
        msr!(register!(hdfgwtr_el2), 0);
    }
    if features.mpam {
        msr!(register!(mpam2_el2), 3 << 48); // trap MPAM0_EL1 and MPAM1_EL1
    }
    msr!("cnthctl_el2", CNTHCTL_EL1PCTEN | CNTHCTL_EL1PCEN);
    msr!("cntvoff_el2", 0);
    msr!("cnthp_ctl_el2", 0);
    msr!(register!(icc_sre_el2), 0xf);
    isb();
    msr!(register!(ich_hcr_el2), 0);
    msr!("mdcr_el2", mdcr(false));
    msr!("vpidr_el2", mrs!("midr_el1"));
    msr!("vmpidr_el2", mrs!("mpidr_el1"));
    // SAFETY: nothing ran below EL2 on this CPU yet, so stale translations are garbage.
    unsafe { core::arch::asm!("dsb ishst", "tlbi alle1", "ic iallu", "dsb nsh", "isb", options(nostack)) };
}

/// MPIDR_EL1 bit that reads as one.
const MPIDR_RES1: u64 = 1 << 31;

/// Switches the control registers to a partition's stage 2 and to the vCPU's number. `forget` is set where another vCPU of
/// the partition ran last on this CPU: the VMID does not tell one's translations from the other's.
pub fn enter_partition(root: u64, vmid: u16, vcpu: usize, forget: bool) {
    msr!("hcr_el2", HCR_PARTITION);
    msr!("mdcr_el2", mdcr(true));
    msr!("cnthctl_el2", CNTHCTL_EL1PCTEN);
    set_stage2(stage2(root, vmid));
    msr!("cptr_el2", CPTR_PARTITION);
    msr!("vmpidr_el2", MPIDR_RES1 | vcpu as u64);
    isb();
    if forget {
        // SAFETY: invalidation on this CPU, under the VMID set above, is always safe.
        unsafe { core::arch::asm!("tlbi vmalle1", "ic iallu", "dsb nsh", "isb", options(nostack)) };
    }
}

/// Fault knobs: takes back what [`enter_partition`] set up against a partition's use of debug and performance registers,
/// and of the CPU without end; what [`configure`] set up against its use of the secure world's memory; and that private memory
/// is there: it finds what the host gave instead.
#[cfg(feature = "fault-knobs")]
pub fn weaken(register_traps: bool, interrupt_routing: bool, normal_space: bool, private_memory: bool) {
    if secure() {
        msr!("vtcr_el2", if normal_space { VTCR } else { VTCR | VTCR_NSW | VTCR_NSA });
        msr!(register!(vstcr_el2), if private_memory { VSTCR | VTCR_NSW | VTCR_NSA } else { VSTCR });
        if private_memory {
            msr!(register!(vsttbr_el2), mrs!("vttbr_el2") & ((1 << 48) - 1));
        }
    }
    if register_traps {
        msr!("mdcr_el2", mdcr(false));
    }
    if interrupt_routing {
        msr!("hcr_el2", HCR_PARTITION & !(HCR_FMO | HCR_IMO | HCR_AMO));
    }
    isb();
}

/// Fault knob: opens the fine-grained traps of a hidden register, TPIDR2_EL0, on this CPU, or closes them.
#[cfg(feature = "fault-knobs")]
pub fn weaken_hidden(features: &Features, open: bool) {
    const N_TPIDR2_EL0: u64 = 1 << 55;
    if features.fgt {
        let traps = if open { N_TPIDR2_EL0 } else { 0 };
        msr!(register!(hfgrtr_el2), traps);
        msr!(register!(hfgwtr_el2), traps);
        isb();
    }
}

/// Switches the control registers back to the host's.
pub fn leave_partition(host_root: u64, host_vmid: u16) {
    msr!("cptr_el2", CPTR_HOST);
    set_stage2(stage2(host_root, host_vmid));
    msr!("cnthctl_el2", CNTHCTL_EL1PCTEN | CNTHCTL_EL1PCEN);
    msr!("mdcr_el2", mdcr(false));
    msr!("hcr_el2", HCR_HOST);
    msr!("vmpidr_el2", mrs!("mpidr_el1"));
    isb();
}

/// Instruction synchronisation.
pub fn isb() {
    // SAFETY: a barrier.
    unsafe { core::arch::asm!("isb", options(nostack)) };
}
