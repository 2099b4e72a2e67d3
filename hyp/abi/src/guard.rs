//! Messages between the guard at EL2 of the normal world and the SPMC at S-EL2: FF-A direct messages of 64 bits. x1 holds
//! sender and receiver, x2 is 0, x3 holds what is asked or answered in its low half, and x4-x7 hold the rest.
//!
//! The SPMC decides, the guard carries out. Calls of the host that are FF-A are not wrapped: they travel as they are. While
//! the SPMC works on any call it may answer [`answer::FORGET`] in between; the guard does that and says [`request::DONE`],
//! and the call goes on.

use crate::ffa::SPMC_ID;

/// Endpoint id of the guard. The host's is 0, and the guard lets the host speak under no other.
pub const GUARD_ID: u16 = 0x7fff;
/// x1 of what the guard sends.
pub const REQUEST_ROUTE: u64 = (GUARD_ID as u64) << 16 | SPMC_ID as u64;
/// x1 of what the SPMC sends.
pub const ANSWER_ROUTE: u64 = (SPMC_ID as u64) << 16 | GUARD_ID as u64;

/// What the guard asks. The upper half of x3 has the host's exits that the guard handled itself since it asked last, except
/// for [`request::BOOT`].
pub mod request {
    /// The first: x4 = device tree, x5 = bundle, x6 = arena, x7 = end of the guard's memory; the upper half of x3 has the
    /// arena's size. Answered by [`super::answer::BOOTED`].
    pub const BOOT: u32 = 1;
    /// A call of the host's that is not FF-A: x4-x7 = its x0-x3.
    pub const CALL: u32 = 2;
    /// A call that is never allowed.
    pub const REFUSE: u32 = 3;
    /// An access of the host's that its stage 2 refused: x4 = address, x5 = ESR_EL2, x6 = what it stores.
    pub const ABORT: u32 = 4;
    /// [`super::answer::FORGET`] is done.
    pub const DONE: u32 = 5;
}

/// What the SPMC answers.
pub mod answer {
    /// The host may start: x4 = its entry, x5 = its device tree.
    pub const BOOTED: u32 = 1;
    /// The host goes on with x0 = x4.
    pub const RETURN: u32 = 2;
    /// The guard forwards x4-x7 to EL3 as x0-x3.
    pub const FIRMWARE: u32 = 3;
    /// The guard turns a CPU on: x4 = MPIDR, x5 = the host's entry, x6 = x0 there, x7 = the CPU's index.
    pub const CPU_ON: u32 = 4;
    /// The partitions are gone: the guard forwards x4-x7, which turn the machine off.
    pub const SHUTDOWN: u32 = 5;
    /// The access is repeated.
    pub const RETRY: u32 = 6;
    /// The access is carried out; a load gets x4.
    pub const VALUE: u32 = 7;
    /// The access aborts.
    pub const INJECT: u32 = 8;
    /// The guard makes all CPUs forget the host's translations of x5 pages from the address x4 on; of everything if x5 is 0.
    pub const FORGET: u32 = 9;
}
