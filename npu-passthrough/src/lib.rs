//! The SMMUv3 and, later, the ownership of the NPU's stream.
//!
//! `no_std`, no unsafe code: registers are reached through [`smmu::Registers`], which the hypervisor implements over
//! MMIO and the tests over a model. Depends on nothing.
#![no_std]
#![forbid(unsafe_code)]

pub mod smmu;
