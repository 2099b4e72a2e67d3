//! Wire formats that several sides of the system share: FF-A numbers, the vendor service, statistics,
//! the partition manifest, the guard's messages and the boot bundle.
//!
//! A leaf crate: `no_std`, no unsafe code, imported by the hypervisor, the partition, the host tools and the
//! packers, so that no format is written down twice. Everything is little-endian, as AArch64 runs here.
//! The human-readable description is `docs/formats.md`.
#![no_std]
#![forbid(unsafe_code)]

pub mod bundle;
pub mod ffa;
pub mod guard;
pub mod manifest;
pub mod memory;
pub mod service;
pub mod stats;

/// Bytes in a page, the granule of every transition.
pub const PAGE_SIZE: u64 = 4096;
