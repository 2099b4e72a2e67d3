//! What keeps DMA and the NPU in their owners' hands: the SMMUv3 driver ([`smmu`]), the guard of the PCI
//! configuration space ([`pci`]) and the NPU's registers as far as a change of owner needs them ([`npu`]).
//!
//! `no_std`, no unsafe code: registers and memory are reached through the traits [`smmu::Registers`],
//! [`smmu::Memory`], [`pci::Config`] and [`npu::Mmio`], which the hypervisor implements over MMIO and the tests over
//! models. Policy (who owns which stream) is the caller's. With the feature `fake` the models are there for other
//! crates' tests; with `fault-knobs` single protections can be left out at run time, for the attack suite.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "fake"))]
extern crate std;

pub mod npu;
pub mod pci;
pub mod smmu;
