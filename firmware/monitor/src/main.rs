//! EL3 firmware for QEMU's `virt` machine: loads the SPMC, keeps the worlds apart and carries calls between them. It decides
//! nothing about memory or partitions. What goes where is the library's to say; this binary does it.
//!
//! Every core comes here from reset. The first loads the SPMC, adds PSCI to the device tree and enters the SPMC, then, when that
//! is up, the guard in normal RAM. The others wait, without running, until the normal world turns them on.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod arch;
#[cfg(target_os = "none")]
mod el3;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is firmware; cargo xtask builds it");
}
