//! Accesses to registers, each a single load or store: what the hypervisor can carry out in a device's place.

use core::arch::asm;

macro_rules! accesses {
    ($($read:ident: $load:literal, $write:ident: $store:literal, $ty:ty;)*) => {$(
        /// Reads a register.
        ///
        /// # Safety
        /// There is a register of this size at `address`, whose reading has no effect on memory.
        pub unsafe fn $read(address: usize) -> $ty {
            let value: u32;
            // SAFETY: the caller's promise. What a device wrote before is seen after it.
            unsafe {
                asm!(concat!($load, " {value:w}, [{address}]"), "dmb oshld", value = out(reg) value,
                     address = in(reg) address, options(nostack, preserves_flags));
            }
            value as $ty
        }

        /// Writes a register, after everything before it is visible to devices.
        ///
        /// # Safety
        /// There is a register of this size at `address`, and what the device does then to memory is allowed.
        pub unsafe fn $write(address: usize, value: $ty) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!("dmb oshst", concat!($store, " {value:w}, [{address}]"), value = in(reg) u32::from(value),
                     address = in(reg) address, options(nostack, preserves_flags));
            }
        }
    )*};
}

accesses! {
    read_u8: "ldrb", write_u8: "strb", u8;
    read_u16: "ldrh", write_u16: "strh", u16;
    read_u32: "ldr", write_u32: "str", u32;
}
