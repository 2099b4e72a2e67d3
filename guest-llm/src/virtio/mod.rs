//! Virtio drivers of the partition: block devices and a stream, over pages shared with the host (`guest_abi::virtio`).
//!
//! The device is hostile. What it can do is bounded here, below virtio-drivers, which is not made for that:
//! - Buffers are copied into shared pages and back ([`pool`]); nothing private is ever shared, and no address of the device
//!   is ever followed.
//! - Virtqueues are shadowed ([`shadow`]): drivers see only used chains that were posted, once, with possible lengths.
//! - Registers and configuration are read once, at the start ([`transport`]); later changes are not seen.
//! - Waiting is bounded: a device that does not answer while it is asked [`PATIENCE`] times is given up.
//! - Once given up, a device stays so: [`Fault`] says why, every operation returns it, and its memory is not looked at.
//!
//! Confidentiality and freshness of contents are not: a block is what the device says it is. Who reads one verifies it.
//!
//! Unsafe code: two copies in [`pool`], and the driver's and this module's shared use of private twins.

use core::fmt;

pub mod block;
pub mod frames;
pub mod pool;
pub mod shadow;
pub mod stream;
pub mod transport;

/// Times that a device is asked for one answer.
pub const PATIENCE: u32 = 1000;

/// Lets the host look at its devices.
pub trait Doorbell {
    /// Gives way to the host; returns when it runs the partition again.
    fn ring(&self);
}

/// Why a device was given up, or a request refused.
///
/// The order is part of the probe's interface (`guest_abi::session::probe`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The slot has no device, or none of the kind that is looked for.
    Absent,
    /// The device lacks a feature that is needed, or does not agree to the features chosen.
    Features,
    /// The configuration is impossible, or kept changing.
    Config,
    /// The device does not answer.
    Silent,
    /// Its used index is impossible.
    Index,
    /// It used a chain that it does not have.
    Token,
    /// It wrote more, or less, than it can have.
    Length,
    /// The pool has no page left: a limit of this partition, not the device's fault.
    Memory,
    /// It says that the request failed.
    Refused,
    /// The request is outside the device, or not whole blocks: the caller's fault.
    Range,
    /// A packet of the stream is impossible.
    Protocol,
    /// The stream is closed.
    Closed,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Absent => "there is no such device",
            Fault::Features => "the device lacks a needed feature",
            Fault::Config => "the device's configuration is impossible",
            Fault::Silent => "the device does not answer",
            Fault::Index => "the device's used index is impossible",
            Fault::Token => "the device used what it was not given",
            Fault::Length => "the device claims an impossible length",
            Fault::Memory => "the partition has no page left for the device",
            Fault::Refused => "the device refuses the request",
            Fault::Range => "the request is outside the device",
            Fault::Protocol => "the device sent an impossible packet",
            Fault::Closed => "the stream is closed",
        })
    }
}
