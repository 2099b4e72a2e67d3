//! What the VMM needs of a partition: the calls of the kernel module, as a trait, so that the VMM is tested against a
//! fake hypervisor. [`crate::device::Device`] is the real one.

use guest_abi::session::{Channel, RingError};
use hyp_abi::service::MEASUREMENT_SIZE;
use hyp_abi::stats::{PartitionStats, SystemStats};
use nix::errno::Errno;

use crate::error::Result as ResultOf;

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallError {
    /// Name of the call.
    pub call: &'static str,
    /// The module's answer.
    pub errno: Errno,
    /// The hypervisor's last answer: an FF-A status, 0 if it did not refuse.
    pub status: i32,
    /// What offended the hypervisor: an address, an index, or 0.
    pub detail: u64,
}

/// What pages hold when they are given.
#[derive(Clone, Copy, Debug)]
pub enum Contents<'a> {
    /// So many pages of zeros.
    Zero(u64),
    /// A whole number of pages of 4096 bytes.
    Bytes(&'a [u8]),
}

/// How far a measurement got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measured {
    /// So many pages are left: measure again.
    Left(u64),
    /// It is whole.
    Whole([u8; MEASUREMENT_SIZE]),
}

/// Why a vCPU came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The partition wants the host to look at its devices.
    Kick,
    /// It sleeps; the module waited for a while.
    Sleep,
    /// It waits for a message.
    Waiting,
    /// It ended itself with this code.
    Finished(u64),
    /// It crashed: cause ([`hyp_abi::service::crash`]) and details.
    Crashed(u64, [u64; 2]),
    /// The host stopped it.
    Stopped,
    /// The time asked for is over.
    Slice,
    /// A reason that this program does not know.
    Unknown(u64),
}

/// The host's end of a partition's session, with the devices below it.
pub trait Line: Channel<Error = RingError> {
    /// Has the devices do what the partition asks for. Returns whether anything moved.
    ///
    /// # Errors
    /// 5 when the partition misuses a device beyond repair.
    fn service(&mut self) -> ResultOf<bool>;
}

/// One partition, from before its creation to after its end. Dropping it destroys the partition.
pub trait Machine: Sync {
    /// The session.
    type Line: Line;

    /// Creates the partition and returns its id.
    fn create(&self, manifest: &[u8]) -> Result<u16, CallError>;
    /// Gives pages at ascending IPAs; `mappable` for those that the partition will share.
    fn give(&self, ipa: u64, contents: Contents<'_>, mappable: bool) -> Result<(), CallError>;
    /// Measures a part of what was given.
    fn measure(&self) -> Result<Measured, CallError>;
    /// Makes the partition runnable.
    fn start(&self) -> Result<(), CallError>;
    /// Runs a vCPU for at most so many nanoseconds.
    fn run(&self, vcpu: u32, nanoseconds: u64) -> Result<Exit, CallError>;
    /// Ends the partition.
    fn stop(&self) -> Result<(), CallError>;
    /// Takes the pages of a range back; returns how many there were.
    fn recall(&self, ipa: u64, pages: u64) -> Result<u64, CallError>;
    /// Destroys the partition; returns how many pages came back.
    fn destroy(&self) -> Result<u64, CallError>;
    /// Statistics of the system.
    fn system_stats(&self) -> Result<SystemStats, CallError>;
    /// Statistics of a partition.
    fn partition_stats(&self, id: u16) -> Result<PartitionStats, CallError>;
    /// Takes the session up, once the partition shares all pages that it goes through. To be dropped before the partition is
    /// destroyed.
    ///
    /// # Errors
    /// 5 if the pages were not given.
    fn connect(&self) -> ResultOf<Self::Line>;
}
