//! Memory management descriptors of FF-A 1.1 and 1.2 (Arm DEN0140, chapter 1.10), as they travel in TX and RX.
//!
//! A transaction is a [`MemoryRegion`], then one access descriptor for each receiver ([`EndpointAccess`], or
//! [`EndpointAccess11`] at version 1.1), then a [`CompositeRegion`] and its [`Constituent`]s.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Memory attributes: normal, write-back, inner shareable. The only ones that exist here.
pub const ATTRIBUTES: u16 = 0x2F;
/// Flag: the hypervisor zeroes the memory (lend, donate; also of relinquish and reclaim).
pub const FLAG_ZERO: u32 = 1;
/// Flag of retrieve: the memory is zeroed when it is relinquished.
pub const FLAG_ZERO_AFTER: u32 = 1 << 2;
/// Flags of retrieve, bits 4:3: the kind of transaction; 0 leaves it open.
pub const FLAG_KIND_SHIFT: u32 = 3;
/// Kind of transaction.
pub const KIND_SHARE: u32 = 1;
/// Kind of transaction.
pub const KIND_LEND: u32 = 2;
/// Kind of transaction.
pub const KIND_DONATE: u32 = 3;
/// Flag of retrieve: the other receivers are not named.
pub const FLAG_ANY_RECEIVERS: u32 = 1 << 10;
/// Permissions: read-only.
pub const READ_ONLY: u8 = 1;
/// Permissions: read-write.
pub const READ_WRITE: u8 = 2;
/// Permissions: never executed.
pub const EXECUTE_NEVER: u8 = 1 << 2;

/// Head of a transaction (table 1.20). 48 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryRegion {
    /// Endpoint id of the sender.
    pub sender: u16,
    /// Memory attributes, [`ATTRIBUTES`] or 0: not said.
    pub attributes: u16,
    /// Flags.
    pub flags: u32,
    /// Handle; 0 when it is sent.
    pub handle: u64,
    /// Chosen by the sender, repeated by receivers.
    pub tag: u64,
    /// Bytes of an access descriptor.
    pub access_size: u32,
    /// Access descriptors.
    pub access_count: u32,
    /// Offset of the first one, a multiple of 16.
    pub access_offset: u32,
    /// Must be 0.
    pub reserved: [u32; 3],
}
const _: () = assert!(size_of::<MemoryRegion>() == 48);

/// What a receiver may do (table 1.16, version 1.2). 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EndpointAccess {
    /// Endpoint id of the receiver.
    pub receiver: u16,
    /// Data access in bits 1:0, instruction access in bits 3:2.
    pub permissions: u8,
    /// Must be 0.
    pub flags: u8,
    /// Offset of the [`CompositeRegion`] from the start of the transaction.
    pub composite_offset: u32,
    /// The sender's, handed on unread.
    pub implementation: [u8; 16],
    /// Must be 0.
    pub reserved: u64,
}
const _: () = assert!(size_of::<EndpointAccess>() == 32);

/// The same at version 1.1. 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EndpointAccess11 {
    /// Endpoint id of the receiver.
    pub receiver: u16,
    /// Data access in bits 1:0, instruction access in bits 3:2.
    pub permissions: u8,
    /// Must be 0.
    pub flags: u8,
    /// Offset of the [`CompositeRegion`] from the start of the transaction.
    pub composite_offset: u32,
    /// Must be 0.
    pub reserved: u64,
}
const _: () = assert!(size_of::<EndpointAccess11>() == 16);

impl From<EndpointAccess11> for EndpointAccess {
    fn from(old: EndpointAccess11) -> Self {
        let EndpointAccess11 { receiver, permissions, flags, composite_offset, reserved } = old;
        Self { receiver, permissions, flags, composite_offset, implementation: [0; 16], reserved }
    }
}

impl From<EndpointAccess> for EndpointAccess11 {
    fn from(new: EndpointAccess) -> Self {
        let EndpointAccess { receiver, permissions, flags, composite_offset, reserved, .. } = new;
        Self { receiver, permissions, flags, composite_offset, reserved }
    }
}

/// Head of a list of pages (table 1.13). 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CompositeRegion {
    /// Pages in all.
    pub page_count: u32,
    /// Constituents that follow.
    pub range_count: u32,
    /// Must be 0.
    pub reserved: u64,
}
const _: () = assert!(size_of::<CompositeRegion>() == 16);

/// A run of pages (table 1.14). 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Constituent {
    /// Address of the first page, for whoever wrote it.
    pub address: u64,
    /// Pages.
    pub page_count: u32,
    /// Must be 0.
    pub reserved: u32,
}
const _: () = assert!(size_of::<Constituent>() == 16);

/// FFA_MEM_RELINQUISH (table 2.25) of one endpoint, without the padding to 8 bytes. 18 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
pub struct Relinquish {
    /// Handle.
    pub handle: u64,
    /// [`FLAG_ZERO`] or 0.
    pub flags: u32,
    /// Endpoints: 1.
    pub endpoint_count: u32,
    /// The caller.
    pub endpoint: u16,
}
const _: () = assert!(size_of::<Relinquish>() == 18);
