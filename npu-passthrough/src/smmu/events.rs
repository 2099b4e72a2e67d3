//! The event queue (sections 3.5, 7.2, 7.3), and how much of it is worth a line in the log.

use super::registers::*;
use super::{Io, Memory};

/// Entries, as a power of two: 4 KiB.
pub(super) const LOG2SIZE: u32 = 7;
const POINTER: u32 = (2 << LOG2SIZE) - 1;

/// What happened (section 7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// C_BAD_STREAMID: no table for the stream.
    BadStreamId,
    /// C_BAD_STE.
    BadSte,
    /// F_TRANSL_FORBIDDEN, F_BAD_ATS_TREQ: the device used ATS.
    Ats,
    /// F_TRANSLATION: nothing is mapped there.
    Translation,
    /// F_ADDR_SIZE.
    AddressSize,
    /// F_ACCESS.
    AccessFlag,
    /// F_PERMISSION.
    Permission,
    /// Another number of the specification's.
    Other(u8),
}

/// A transaction that the SMMU aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// StreamID of the device.
    pub stream: u32,
    /// Address that the device used; 0 where the kind has none.
    pub address: u64,
    /// A write, where the kind has an address.
    pub is_write: bool,
}

impl Event {
    fn load(memory: &impl Memory, entry: u64) -> Self {
        let head = memory.load(entry);
        let kind = match head as u8 {
            0x02 => EventKind::BadStreamId,
            0x04 => EventKind::BadSte,
            0x05 | 0x07 => EventKind::Ats,
            0x10 => EventKind::Translation,
            0x11 => EventKind::AddressSize,
            0x12 => EventKind::AccessFlag,
            0x13 => EventKind::Permission,
            other => EventKind::Other(other),
        };
        let is_read = memory.load(entry + 8) & 1 << 35 != 0;
        Self { kind, stream: (head >> 32) as u32, address: memory.load(entry + 16), is_write: !is_read }
    }
}

pub(super) struct EventQueue {
    base: u64,
    cons: u32,
    pub losses: u64,
}

impl EventQueue {
    /// Programs an empty queue; CR0.EVENTQEN is off and acknowledged.
    pub fn start(io: &mut impl Io, base: u64) -> Self {
        io.write64(EVENTQ_BASE, base | BASE_ALLOCATE | u64::from(LOG2SIZE));
        io.write(EVENTQ_PROD, 0);
        io.write(EVENTQ_CONS, 0);
        Self { base, cons: 0, losses: 0 }
    }

    /// Takes out what is there, at most one queue full.
    pub fn drain(&mut self, io: &mut impl Io, mut report: impl FnMut(Event)) {
        let prod = io.read(EVENTQ_PROD);
        for _ in 0..1 << LOG2SIZE {
            if (prod ^ self.cons) & POINTER == 0 {
                break;
            }
            let index = self.cons & ((1 << LOG2SIZE) - 1);
            report(Event::load(io, self.base + 32 * u64::from(index)));
            self.cons = self.cons & EVENTQ_OVERFLOW | (self.cons + 1) & POINTER;
        }
        let gerrorn = io.read(GERRORN);
        let aborted = (io.read(GERROR) ^ gerrorn) & GERROR_EVENTQ_ABT_ERR;
        if aborted != 0 {
            io.write(GERRORN, gerrorn ^ aborted);
        }
        let overflow = (prod ^ self.cons) & EVENTQ_OVERFLOW;
        self.cons ^= overflow;
        self.losses += u64::from(overflow != 0) + u64::from(aborted != 0);
        io.write(EVENTQ_CONS, self.cons);
    }
}

/// Bounds the log that a device can cause: `burst` reports per `interval`, whatever comes.
#[derive(Clone, Copy, Debug)]
pub struct Reports {
    interval: u64,
    burst: u32,
    start: u64,
    used: u32,
    suppressed: u64,
}

impl Reports {
    /// `interval` is in the unit of the times passed to [`Self::admit`].
    pub const fn new(burst: u32, interval: u64) -> Self {
        Self { interval, burst, start: 0, used: 0, suppressed: 0 }
    }

    /// Whether to report something now, and how many reports before it were suppressed since the last one.
    pub fn admit(&mut self, now: u64) -> Option<u64> {
        if now.wrapping_sub(self.start) >= self.interval {
            self.start = now;
            self.used = 0;
        }
        if self.used == self.burst {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.used += 1;
        Some(core::mem::take(&mut self.suppressed))
    }
}
