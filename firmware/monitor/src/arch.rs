//! The architecture and the machine.

pub mod bank;
pub mod device;
pub mod el3;
pub mod gic;
pub mod mmu;
pub mod sysreg;

core::arch::global_asm!(
    include_str!("arch/boot.s"),
    MAX_CORES = const crate::el3::MAX_CORES,
    STACK_STRIDE = const crate::el3::STACK_STRIDE,
    GICD = const gic::GICD,
);

/// Registers of the level that a world was left from, as boot.s knows them.
#[repr(C)]
pub struct Frame {
    /// x0-x30.
    pub x: [u64; 31],
    /// Where it goes on.
    pub elr: u64,
    /// Its processor state.
    pub spsr: u64,
}
