//! System register access by name: the Arm ARM's, or the generic `s3_4_c1_c2_2` form where the assembler of the base
//! architecture does not know it.

/// Reads a system register.
macro_rules! mrs {
    ($name:expr) => {{
        let value: u64;
        // SAFETY: reading this register has no side effect on memory or on the state Rust relies on.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack)) };
        value
    }};
}

/// Writes a system register. The caller of the surrounding function vouches for the value.
macro_rules! msr {
    ($name:expr, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the registers written by this crate configure lower exception levels and the interrupt controller; none
        // changes how this Rust code itself runs.
        unsafe { core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack)) }
    }};
}

pub(crate) use {mrs, msr};
