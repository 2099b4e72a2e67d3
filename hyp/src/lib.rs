//! The hypervisor: boot, exceptions, vCPUs, the machine. What it decides is `hyp-core`'s, what it does to memory `stage2`'s;
//! this package connects them to the hardware. `docs/architecture.md` has the picture. Three programs are made of it:
//!
//! | program | runs at | is |
//! |---|---|---|
//! | `hyp` | EL2 | all of it: the pKVM-style deployment |
//! | `spmc` | S-EL2 | the same policy, machine and vCPUs; hears the host through the guard and EL3 ([`spmc`]) |
//! | `guard` | EL2 | the SPMC's hand in the normal world: takes the host's exceptions, decides nothing ([`guard`]) |
//!
//! Where code is the same but for the world that it runs in, it asks `arch::secure()`.
#![no_std]

mod arch;
mod arena;
mod boot;
mod console;
mod devices;
pub mod el2;
pub mod guard;
mod machine;
mod platform;
pub mod spmc;
mod world;

pub use arch::host::Frame;
pub use arena::{Arena, SecureRam};

use arch::STACK_STRIDE;
use arena::Pages;
use platform::MAX_CPUS;

/// Stacks of the CPUs, each above a page that is not mapped.
#[unsafe(link_section = ".stacks")]
#[used]
static STACKS: Pages<{ STACK_STRIDE * MAX_CPUS }> = Pages::zeroed();
/// Stacks for faults of our own.
#[unsafe(no_mangle)]
static EMERGENCY_STACKS: Pages<{ 4096 * MAX_CPUS }> = Pages::zeroed();
