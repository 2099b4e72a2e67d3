//! The boot bundle: one flat file that firmware or QEMU loads as an arm64 Image. It holds the hypervisor, then the
//! host's kernel and initrd, which run where they lie.
//!
//! Offset 0 has the arm64 Image header (Linux Documentation/arch/arm64/booting.rst), offset [`OFFSET`] this header,
//! filled in by the packer. All offsets count from the start of the file; the file is loaded at a 2 MiB boundary.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where the header lies in the file.
pub const OFFSET: usize = 64;
/// [`BundleHeader::magic`].
pub const MAGIC: [u8; 8] = *b"FLEXBNDL";
/// [`BundleHeader::version`].
pub const VERSION: u32 = 1;
/// Most bytes of the host's command line.
pub const COMMAND_LINE_SIZE: usize = 2048;

/// How the host kernel is entered.
pub mod entry_kind {
    /// An arm64 Image: entered at its first byte.
    pub const IMAGE: u32 = 0;
    /// A raw binary: entered at its first byte too; the packer places it 0x8_0000 past a 2 MiB boundary.
    pub const RAW: u32 = 1;
}

/// The header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BundleHeader {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// One of [`entry_kind`].
    pub entry_kind: u32,
    /// Written by the hypervisor's link: bytes from the start of the file that the hypervisor occupies once it
    /// runs, BSS, stacks and table reserve included. The packer puts the kernel after them.
    pub hypervisor_size: u64,
    /// Offset of the kernel; a multiple of 2 MiB for an Image.
    pub kernel_offset: u64,
    /// Bytes of the kernel in the file.
    pub kernel_size: u64,
    /// Bytes that the kernel needs in memory (BSS included).
    pub kernel_memory_size: u64,
    /// Offset of the initrd, page-aligned; not below `kernel_offset + kernel_memory_size`.
    pub initrd_offset: u64,
    /// Bytes of the initrd; 0: none.
    pub initrd_size: u64,
    /// Bytes of the command line.
    pub command_line_size: u64,
    /// The host's command line, UTF-8 without a terminating zero.
    pub command_line: [u8; COMMAND_LINE_SIZE],
}
const _: () = assert!(size_of::<BundleHeader>() == 72 + COMMAND_LINE_SIZE);
