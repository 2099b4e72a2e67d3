//! The partition manifest: what a partition consists of and how its memory is laid out.
//!
//! The image is an ELF file whose section `.manifest` (not loaded) holds one [`Manifest`]. The host passes it with
//! CREATE; the hypervisor validates it, hashes it first of all into the measurement, and lets pages be given only
//! inside its regions. Regions do not overlap, are page-aligned, below [`IPA_LIMIT`], and none is both writable and
//! executable. Regions of the image, and no others, lie below [`PRIVATE_END`]: a partition at S-EL1 finds them in the secure
//! address space, in secure RAM, and all others in the non-secure one; what lies there is never shared or lent.
//!
//! # Measurement
//! SHA-384 over: [`MEASURE_LABEL`], the manifest's bytes, then for every given page of an IMAGE or MODEL region in
//! ascending IPA order its IPA (8 bytes, little-endian) and its 4096 bytes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`Manifest::magic`].
pub const MAGIC: [u8; 8] = *b"FLEXPART";
/// [`Manifest::version`].
pub const VERSION: u32 = 1;
/// First bytes of every measurement.
pub const MEASURE_LABEL: [u8; 16] = *b"flexserve-meas-1";
/// Most regions of a partition.
pub const MAX_REGIONS: usize = 16;
/// IPAs are below this (40 bits, the stage-2 format of this project).
pub const IPA_LIMIT: u64 = 1 << 39;

/// IPAs of the image are below this, all others above.
pub const PRIVATE_END: u64 = 1 << 32;

/// Region kinds.
pub mod kind {
    /// Unused slot.
    pub const NONE: u32 = 0;
    /// Code and data of the image: contents are given and measured.
    pub const IMAGE: u32 = 1;
    /// Private memory: zeroed when given.
    pub const ZERO: u32 = 2;
    /// Model file: contents are given and measured.
    pub const MODEL: u32 = 3;
    /// Memory that the partition may share with the host page by page: zeroed when given.
    pub const SHARED: u32 = 4;
    /// Room for memory that the partition retrieves from others (FF-A share and lend): nothing is given here.
    pub const BORROWED: u32 = 5;
}

/// Region access bits.
pub mod access {
    /// Readable.
    pub const READ: u32 = 1;
    /// Writable.
    pub const WRITE: u32 = 2;
    /// Executable.
    pub const EXECUTE: u32 = 4;
}

/// One region. 24 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Region {
    /// First IPA, page-aligned.
    pub ipa: u64,
    /// The most pages that can be given.
    pub page_count: u64,
    /// One of [`kind`].
    pub kind: u32,
    /// Bits of [`access`].
    pub access: u32,
}

/// The manifest. 432 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Manifest {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// vCPUs, at least 1.
    pub vcpu_count: u32,
    /// IPA where vCPU 0 starts, MMU off, EL1, x0 = 0; inside an executable region.
    pub entry: u64,
    /// Used entries of `regions`, from the first.
    pub region_count: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Name for logs and `flexserve ps`: ASCII, zero-padded.
    pub name: [u8; 16],
    /// Regions.
    pub regions: [Region; MAX_REGIONS],
}
const _: () = assert!(size_of::<Manifest>() == 48 + 24 * MAX_REGIONS);

/// IPAs that the project's own partition image uses.
pub mod layout {
    /// Image: code, read-only data, data.
    pub const IMAGE: u64 = 0x0040_0000;
    /// Heap, stacks and page tables.
    pub const HEAP: u64 = 0x2_0000_0000;
    /// Session pages.
    pub const SESSION: u64 = 0x4_0000_0000;
    /// Pages of virtio devices.
    pub const VIRTIO: u64 = SESSION + (2 << 20);
    /// Model file.
    pub const MODEL: u64 = 0x8_0000_0000;
    /// Memory of others.
    pub const BORROWED: u64 = 0x20_0000_0000;
}
