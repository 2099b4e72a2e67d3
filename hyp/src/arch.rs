//! Everything that is particular to AArch64: assembly, system registers, the machine under the policy. All unsafe code of
//! the hypervisor is below this module, in `console`, and in `main`'s boot code.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, Ordering};

pub mod context;
pub mod el2;
pub mod features;
pub mod gic;
pub mod host;
pub mod idregs;
pub mod interrupts;
pub mod memory;
pub mod mmio;
pub mod stage1;
#[rustfmt::skip] // tables
pub mod sysreg;
pub mod vcpu;

static SECURE: AtomicBool = AtomicBool::new(false);

/// Whether this program runs at S-EL2.
pub fn secure() -> bool {
    SECURE.load(Ordering::Relaxed)
}

/// Says that this program runs at S-EL2, before anything else.
pub fn set_secure() {
    SECURE.store(true, Ordering::Relaxed);
}

/// Bytes from one CPU's stack to the next: the lowest page of each is not mapped.
pub const STACK_STRIDE: usize = 0x1_0000;

global_asm!(
    include_str!("arch/boot.s"),
    STACK_STRIDE = const STACK_STRIDE,
    MAX_CPUS = const crate::platform::MAX_CPUS
);
global_asm!(
    ".set FAULT_KNOBS, {}",
    include_str!("arch/vectors.s"),
    const cfg!(feature = "fault-knobs") as u32
);
global_asm!(include_str!("arch/simd.s"));
