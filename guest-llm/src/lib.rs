//! Partition runtime: what both images of this folder share.
//!
//! [`serve`](mod@serve) is the product: the session between the host and the inference engine, free of unsafe code and of
//! anything that needs the CPU, and tested on the development machine. [`layout`] says where things lie. The rest exists in
//! the images only (`target_os = "none"`): start-up and tables in [`arch`], calls in `ffa`, given pages in `memory`, vCPUs
//! in `vcpu`; [`npu`] lets the NPU work for the engine. [`pool`] shares work between vCPUs, and is tested with threads.
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod arch;
#[cfg(target_os = "none")]
pub mod ffa;
pub mod layout;
#[cfg(target_os = "none")]
pub mod memory;
pub mod npu;
pub mod serve;
#[cfg(target_os = "none")]
pub mod vcpu;
pub mod virtio;

pub use hyp_abi as abi;

/// FNV-1a (64 bit): how PANIC names a source file without text. The hash of `guest-llm/src/lib.rs` is that of the path
/// as the compiler was given it.
pub const fn fnv1a(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x100_0000_01B3);
        i += 1;
    }
    hash
}

/// Ends the partition without a word: a message could hold secrets.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => ffa::panicked(fnv1a(at.file()), u64::from(at.line())),
        None => ffa::panicked(0, 0),
    }
}

/// Makes an image: its manifest, called by a 16-byte name, its main function (`fn(u64, u64) -> !`, which gets x28 and
/// x29 as the boot code found them), and that of its other vCPUs (`fn(usize) -> !`, which gets the vCPU's index).
#[macro_export]
macro_rules! partition {
    ($name:expr, $main:path, $secondary:path) => {
        #[cfg(target_os = "none")]
        #[used]
        #[unsafe(link_section = ".manifest")]
        static MANIFEST: $crate::abi::manifest::Manifest = $crate::layout::manifest($name);

        #[cfg(target_os = "none")]
        #[unsafe(export_name = "partition_main")]
        extern "C" fn partition_main(x28: u64, x29: u64) -> ! {
            $main(x28, x29)
        }

        #[cfg(target_os = "none")]
        #[unsafe(export_name = "partition_secondary")]
        extern "C" fn partition_secondary(index: u64) -> ! {
            $secondary(index as usize)
        }
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn fnv1a_matches_its_published_vectors() {
        assert_eq!(super::fnv1a(""), 0xCBF2_9CE4_8422_2325);
        assert_eq!(super::fnv1a("a"), 0xAF63_DC4C_8601_EC8C);
        assert_eq!(super::fnv1a("foobar"), 0x8594_4171_F739_67E8);
    }
}
