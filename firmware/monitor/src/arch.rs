//! The architecture and the machine: all unsafe code that is not [`crate`]'s own.

pub mod bank;
pub mod device;
pub mod el3;
pub mod gic;
pub mod mmu;
pub mod sysreg;

core::arch::global_asm!(
    include_str!("arch/boot.s"),
    MAX_CORES = const crate::MAX_CORES,
    STACK_STRIDE = const crate::STACK_STRIDE,
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
    /// Where this core's stack at EL3 starts.
    pub stack: u64,
}
const _: () = assert!(core::mem::offset_of!(Frame, elr) == 248 && core::mem::offset_of!(Frame, stack) == 264);

unsafe extern "C" {
    /// Enters the world that a frame is of.
    pub fn enter(frame: *const Frame) -> !;
}
