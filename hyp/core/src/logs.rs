//! What partitions log by FFA_CONSOLE_LOG: the last [`LOG_SIZE`] bytes of each are kept for the host, and lines are
//! mirrored to the trusted log with the partition's id.
//!
//! The host and whoever watches the trusted log read it, so control characters are replaced, a line cannot pose as
//! another's, and a partition that talks too much loses mirrored lines, its own first.

use crate::message::Endpoint;
use crate::{Hypervisor, Platform, knob};
use hyp_abi::ffa::error::{INVALID_PARAMETERS, NOT_SUPPORTED};
use hyp_abi::ffa::{CONSOLE_LOG_32, CONSOLE_LOG_32_SIZE, CONSOLE_LOG_64_SIZE};
use hyp_abi::service::LOG_SIZE;
use stage2::Slot;

/// Longest mirrored line; a longer one becomes several.
const LINE_SIZE: usize = 100;
/// Lines of one partition that a second mirrors.
const LINES_PER_SECOND: u32 = 4;
/// Lines of all partitions that a second mirrors: the trusted log has room for more, and needs it for itself.
const LINES_PER_SECOND_OF_ALL: u32 = 20;

/// Counts events of the same second.
#[derive(Debug)]
pub(crate) struct Rate {
    second: u64,
    count: u32,
}

impl Rate {
    pub(crate) const fn new() -> Self {
        Self { second: 0, count: 0 }
    }

    /// Whether one more is within `limit`.
    fn take(&mut self, second: u64, limit: u32) -> bool {
        if self.second != second {
            *self = Self { second, count: 0 };
        }
        let within = self.count < limit;
        self.count += u32::from(within);
        within
    }
}

/// One partition's log.
#[derive(Debug)]
pub(crate) struct Log {
    /// A ring: the byte of position p lies at p modulo its size.
    bytes: [u8; LOG_SIZE],
    /// Bytes since the partition's creation.
    written: u64,
    /// The line that is not ended yet.
    line: [u8; LINE_SIZE],
    length: usize,
    mirrored: Rate,
    /// Lines that were too many.
    dropped: u64,
}

impl Log {
    pub(crate) const EMPTY: Self =
        Self { bytes: [0; _], written: 0, line: [0; _], length: 0, mirrored: Rate::new(), dropped: 0 };

    /// Starts anew for another partition. In place: it is too large to pass over a stack.
    pub(crate) fn clear(&mut self) {
        self.bytes.fill(0);
        self.line.fill(0);
        (self.written, self.length, self.mirrored, self.dropped) = (0, 0, Rate::new(), 0);
    }

    /// Adds one character; true when it ended a line, which is to be mirrored.
    fn push(&mut self, byte: u8) -> bool {
        if let Some(place) = self.bytes.get_mut((self.written % LOG_SIZE as u64) as usize) {
            *place = byte;
        }
        self.written += 1;
        if byte != b'\n'
            && let Some(place) = self.line.get_mut(self.length)
        {
            *place = byte;
            self.length += 1;
        }
        byte == b'\n' || self.length == LINE_SIZE
    }

    /// Takes the line that ended, if there is anything in it; none with more than its share in this second.
    fn take_line(&mut self, second: u64, of_all: &mut Rate) -> Option<(&str, u64)> {
        let length = core::mem::take(&mut self.length);
        if length == 0 {
            return None;
        }
        if !self.mirrored.take(second, LINES_PER_SECOND) || !of_all.take(second, LINES_PER_SECOND_OF_ALL) {
            self.dropped += 1;
            return None;
        }
        // ASCII, unless a fault knob let anything through.
        let text = core::str::from_utf8(self.line.get(..length)?).unwrap_or("?");
        Some((text, core::mem::take(&mut self.dropped)))
    }

    /// Copies what was written from `position` on, and is kept, to `target`; its length and the position of its first byte.
    pub(crate) fn read(&self, position: u64, target: &mut [u8; LOG_SIZE]) -> (usize, u64) {
        let oldest = self.written.saturating_sub(LOG_SIZE as u64);
        let first = position.clamp(oldest, self.written);
        let mut length = 0;
        for (at, place) in (first..self.written).zip(target) {
            *place = self.bytes.get((at % LOG_SIZE as u64) as usize).copied().unwrap_or_default();
            length += 1;
        }
        (length, first)
    }
}

/// What may stand in a log: printable ASCII and line feeds.
fn shown(byte: u8) -> u8 {
    match byte {
        b'\n' | b' '..=b'~' => byte,
        b'\t' => b' ',
        _ => b'?',
    }
}

impl Hypervisor {
    /// FFA_CONSOLE_LOG: w1 characters in the registers from x2 on. The host has a console of its own.
    pub(crate) fn console_log(
        &mut self,
        platform: &impl Platform,
        caller: Endpoint,
        function: u32,
        regs: &[u64; 18],
    ) -> Result<(), i32> {
        let Endpoint::Partition(slot) = caller else { return Err(NOT_SUPPORTED) };
        let [_, count, characters @ ..] = regs;
        let (width, most) =
            if function == CONSOLE_LOG_32 { (4, CONSOLE_LOG_32_SIZE) } else { (8, CONSOLE_LOG_64_SIZE) };
        let count = usize::try_from(*count & u64::from(u32::MAX)).unwrap_or(usize::MAX);
        if count == 0 || count > most {
            return Err(INVALID_PARAMETERS);
        }
        let raw = self.knobs.skips(knob::LOG_CHARACTERS);
        let second = platform.ticks() / platform.ticks_per_second().max(1);
        let log = self.logs.get_mut(slot.index()).ok_or(INVALID_PARAMETERS)?;
        let bytes = characters.iter().flat_map(|register| register.to_le_bytes().into_iter().take(width));
        for byte in bytes.take(count) {
            let ended = log.push(if raw { byte } else { shown(byte) });
            if ended && let Some((line, dropped)) = log.take_line(second, &mut self.mirrored) {
                let id = caller.id();
                if dropped > 0 {
                    log::info!("partition {id:#06x} says: ({dropped} lines dropped)");
                }
                log::info!("partition {id:#06x} says: {line}");
            }
        }
        Ok(())
    }

    /// The log of a partition's slot.
    pub(crate) fn log_mut(&mut self, slot: Slot) -> Option<&mut Log> {
        self.logs.get_mut(slot.index())
    }
}
