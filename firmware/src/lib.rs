//! Packs what boots: the bundle, one arm64 Image that holds the hypervisor, the host's kernel and its initrd, each where it
//! can run in place; and the flash with firmware and SPMC.
//!
//! Runs on the development machine. Inputs are files that the user names, so nothing here panics on their contents.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod elf;
pub mod flash;
pub mod image;
