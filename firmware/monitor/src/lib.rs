//! EL3 firmware for QEMU's `virt` machine. This part of it decides, and runs anywhere: which call goes where, and what lies in
//! flash. The binary does what it says.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod fdt;
pub mod fip;
pub mod psci;
pub mod spmd;
