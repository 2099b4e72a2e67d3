//! What only this CPU can do: start-up, exception vectors, stage-1 tables, SMC, counters. Unsafe code of the runtime lives
//! here, in [`crate::memory`], which turns given pages into references, in [`crate::ffa`], in `crate::npu::device`, which
//! lends memory to the NPU, and in [`flexserve_engine::pool`], which lends other vCPUs a reference.

#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod cpu;
#[cfg(target_os = "none")]
pub mod mmio;
pub mod tables;

#[cfg(target_os = "none")]
pub use cpu::{
    acknowledge, endpoint_id, halt, receive_interrupts, secondary_entry, send_interrupt, send_interrupt_raw,
    set_endpoint_id, set_timer, sleep, smc, ticks, ticks_per_second, vcpu_index, wait,
};
