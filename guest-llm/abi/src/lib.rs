//! Wire formats between a partition and the host program that runs it: frames of a session, requests, the virtio registers
//! and rings. The hypervisor knows none of them.
//!
//! A leaf crate: `no_std`, no unsafe code, so that no format is written down twice. Everything is little-endian, as AArch64
//! runs here. The human-readable description is `docs/formats.md`.
#![no_std]
#![forbid(unsafe_code)]

mod request;
pub mod session;
pub mod virtio;
