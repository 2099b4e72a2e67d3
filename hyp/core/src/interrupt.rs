//! Virtual interrupts of a partition's vCPU. There is no distributor: a partition has its CPU interface only, and these
//! numbers, all of them edge-triggered, of group 1, and of one priority.

/// Interrupts that its vCPUs send each other (0 to 7), by ICC_SGI1R_EL1 with a vCPU's index as Aff0.
pub const IPI_COUNT: u32 = 8;
/// The FF-A notification pending interrupt.
pub const NOTIFICATION: u32 = hyp_abi::ffa::NPI;
/// Bits of the interrupts that vCPUs send each other.
pub(crate) const IPIS: u32 = (1 << IPI_COUNT) - 1;
/// Bits of all interrupts that policy makes pending. The virtual timer's (27) is the arch layer's.
pub(crate) const ALL: u32 = IPIS | 1 << NOTIFICATION;
