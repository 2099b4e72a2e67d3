//! The session: frames between the host and a partition, over a [`Channel`].
//!
//! The product's channel is the stream of a virtio socket device ([`crate::virtio`]). The probe's is a pair of byte rings
//! in pages of its own: it shares them, writes [`MAGIC`], and waits with FFA_MSG_WAIT. The host writes a frame into
//! `to_partition` and lets it run; answers come back in `to_host`, each followed by FFA_YIELD so that the host looks. Each
//! side trusts nothing that it reads: positions are taken modulo the ring, lengths are bounded by what is there, and bytes
//! are copied out once before they are looked at.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use crate::request::*;

/// [`Session::magic`] once the partition listens.
pub const MAGIC: u32 = 0x3153_5346;
/// Bytes of each ring. A power of two, so that positions may wrap at 2^32.
pub const RING_SIZE: usize = 64 * 1024;
/// Pages of the session.
pub const SESSION_PAGES: u64 = 33;
/// The most bytes that a frame's payload has.
pub const MAX_FRAME: usize = RING_SIZE / 2;

/// Frame kinds.
pub mod frame {
    /// Host to partition: a [`super::Request`], then its texts.
    pub const REQUEST: u32 = 1;
    /// Host to partition: stop the answer.
    pub const CANCEL: u32 = 2;
    /// Host to partition: end.
    pub const SHUTDOWN: u32 = 3;
    /// Host to partition: forget the conversation; no payload, no answer.
    pub const RESET: u32 = 4;
    /// Host to partition: pages were added to the heap, look at its region again; no payload, no answer.
    pub const GROW: u32 = 5;
    /// Partition to host: the model is loaded; a [`super::Ready`].
    pub const READY: u32 = 0x101;
    /// Partition to host: the prompt is read; no payload. Sent before the first token.
    pub const PREFILLED: u32 = 0x102;
    /// Partition to host: a piece of the answer (complete UTF-8).
    pub const TOKEN: u32 = 0x103;
    /// Partition to host: a piece of what the model thinks before it answers (complete UTF-8).
    pub const THOUGHT: u32 = 0x106;
    /// Partition to host: the answer is whole; a [`super::Done`].
    pub const DONE: u32 = 0x104;
    /// Partition to host: the request or the model was refused; a [`super::Failure`], then text for people (UTF-8).
    pub const ERROR: u32 = 0x105;
}

/// Payload of READY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ready {
    /// Ticks from start to here.
    pub load_ticks: u64,
    /// Bytes of the model file.
    pub model_bytes: u64,
    /// Heap bytes in use.
    pub heap_used: u64,
    /// Bits: [`READY_CHAT`].
    pub features: u64,
}
/// [`Ready::features`]: the model has a chat template that the partition knows, so that REQUEST_CHAT works.
pub const READY_CHAT: u64 = 1;

/// Payload of DONE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Done {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub tokens: u32,
    /// Ticks of the prompt phase.
    pub prefill_ticks: u64,
    /// Ticks of the answer phase.
    pub decode_ticks: u64,
    /// 0: end of text, 1: length, 2: cancelled, 3: a stop string.
    pub stop: u32,
    /// Of the prompt's tokens, those that a request before had in common with it, so that they were not computed again.
    pub reused_tokens: u32,
}

/// Payload of ERROR, before the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Failure {
    /// One of [`failure`].
    pub code: u32,
    /// Zero.
    pub reserved: u32,
    /// With [`failure::MEMORY`] as answer to a request: so many bytes more of heap would do, 0: nobody knows. A host that
    /// gives them sends GROW and the request again. Else 0.
    pub bytes: u64,
}

/// Codes of [`Failure`].
pub mod failure {
    /// The model file is malformed or not supported: its provider's fault.
    pub const MODEL: u32 = 1;
    /// The partition's memory does not suffice for this model or context.
    pub const MEMORY: u32 = 2;
    /// The request is malformed: the caller's fault.
    pub const REQUEST: u32 = 3;
}

/// Exit code of a partition whose heap does not even hold what a session begins with.
pub const EXIT_NO_MEMORY: u64 = 4;

/// Frames between the attack suite and the probe (`guest-llm/src/bin/guest-probe`), a hostile partition that commits
/// one act per frame. Not part of the product's session: the inference runtime answers these kinds with ERROR.
///
/// A command's payload is a [`Command`](probe::Command); FILL_HEAP and CHECK_HEAP have a pattern of
/// [`PATTERN_SIZE`](probe::PATTERN_SIZE) bytes after it. Acts that return are answered by one RESULT with a
/// [`Report`](probe::Report); for the others the hypervisor ends the partition and its report is the result.
pub mod probe {
    use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

    /// Host to partition: reads 8 bytes at IPA `args[0]`, with `args[1]` = 1 in the other address space than its own (at S-EL1;
    /// see `hyp_abi::manifest::PRIVATE_END`). Result: `values[0]` = the value.
    pub const READ: u32 = 0x200;
    /// Host to partition: writes `args[1]` (8 bytes) at IPA `args[0]`. Result: `values[0]` = the value read back.
    pub const WRITE: u32 = 0x201;
    /// Host to partition: calls code at IPA `args[0]`, after writing it there if `args[1]` is 1 (the code returns
    /// [`EXECUTED`]). Result: `values[0]` = what the code returned.
    pub const EXECUTE: u32 = 0x202;
    /// Host to partition: reads register number `args[0]` of [`REGISTERS`]. Result: `values[0]` = its value.
    pub const REGISTER_READ: u32 = 0x203;
    /// Host to partition: writes `args[1]` to register number `args[0]` of [`REGISTERS`], which must be writable.
    pub const REGISTER_WRITE: u32 = 0x204;
    /// Host to partition: `args[1]` seeded random SMCs from seed `args[0]`, without those that a partition may make to
    /// its own harm (EXIT, PANIC, SHARE, UNSHARE, FFA_MSG_WAIT, PSCI). Result: `values[0]` = calls answered NOT_SUPPORTED by SMCCC or FF-A, `values[1]` = other
    /// errors, `values[2]` = calls that succeeded, `values[3]` = function id of the last one that did.
    pub const SMC: u32 = 0x205;
    /// Host to partition: fills the heap with the pattern, each of its two words XORed with `args[0]`, so that the host
    /// need not have in clear what it later looks for. Result: `values[0]` = pages filled.
    pub const FILL_HEAP: u32 = 0x206;
    /// Host to partition: compares the heap with the pattern, XORed as above. Result: `values[0]` = patterns compared,
    /// `values[1]` = those that differ.
    pub const CHECK_HEAP: u32 = 0x207;
    /// Host to partition: fills v0-v31, FPCR and FPSR with values made from `args[0]`, gives the CPU away (FFA_YIELD)
    /// if `args[1]` is 0, else spins `args[1]` ticks, and compares; `args[2]` rounds. Result: `values[0]` = registers
    /// found changed over all rounds.
    pub const SIMD: u32 = 0x208;
    /// Host to partition: spins for `args[0]` ticks; 0: for ever. Result: `values[0]` = ticks spun.
    pub const SPIN: u32 = 0x209;
    /// Host to partition: sleeps by WFI until the virtual timer fires after `args[0]` ticks. Result: `values[0]` =
    /// ticks slept, `values[1]` = CNTV_CTL_EL0 afterwards.
    pub const SLEEP: u32 = 0x20A;
    /// Host to partition: ends itself with exit code `args[0]`.
    pub const EXIT: u32 = 0x20B;
    /// Host to partition: panics.
    pub const PANIC: u32 = 0x20C;
    /// Host to partition: shares the page at IPA `args[0]`. Result: status.
    pub const SHARE: u32 = 0x20D;
    /// Host to partition: takes the shared page at IPA `args[0]` back. Result: status.
    pub const UNSHARE: u32 = 0x20E;
    /// Host to partition: what vCPU 0 found when it started. Result: `values[0]` = general-purpose registers that were
    /// not zero (a bit each), `values[1]` = SIMD registers that were not zero.
    pub const BOOT_STATE: u32 = 0x20F;
    /// Host to partition: an FF-A call: `args[0]` = function, `args[1..]` = x1-x3. Result: `values` = x0-x3. It must not end the
    /// partition, nor take memory away that the probe lives in.
    pub const FFA: u32 = 0x210;
    /// Host to partition: keeps the pattern, both words XORed with `args[0]`, in the image's data. Result: `values[0]` = its IPA.
    pub const KEEP: u32 = 0x211;

    /// Host to partition: an FF-A call with x0-x3 = `args`, and x4, x5 = the pattern, if there is one. Result: status = the
    /// code of FFA_ERROR; `values[0]` = x0, `values[1..]` = w2 and w3, w4 and w5, w6 and w7 in one word each. While it waits for
    /// commands the probe answers direct requests with their payload inverted.
    pub const FFA_CALL: u32 = 0x230;
    /// Host to partition: logs the 16 bytes of the pattern as they are, and a line feed, by FFA_CONSOLE_LOG. Result: status.
    pub const LOG: u32 = 0x231;
    /// Host to partition: has vCPU `args[0]`, which may be any number, turned on for task `args[1]` of [`task`] with
    /// argument `args[2]`. Result: `values[0]` = what PSCI CPU_ON returned.
    pub const CREW_START: u32 = 0x240;
    /// Host to partition: what vCPU `args[0]` did so far. Result: `values[0]` = progress, `values[1]` = interrupts taken,
    /// `values[2]` = their numbers (a bit each), `values[3]` = errors found.
    pub const CREW_LOOK: u32 = 0x241;
    /// Host to partition: an SMC with x0 to x3 = `args`. Result: `values[0]` = x0.
    pub const CALL: u32 = 0x242;
    /// Host to partition: writes `args[0]` to ICC_SGI1R_EL1, `args[1]` times.
    pub const SEND_SGI: u32 = 0x243;
    /// Host to partition: waits until `args[0]` interrupts came, at most `args[1]` ticks. Result: `values[0]` = how many
    /// came, `values[1]` = their numbers (a bit each).
    pub const RECEIVE: u32 = 0x244;

    /// Host to partition: makes SMCs for ever.
    pub const STORM: u32 = 0x245;

    /// What another vCPU does until it is turned off, if it ever is.
    pub mod task {
        /// Counts.
        pub const SPIN: u64 = 1;
        /// Counts interrupts; the argument, unless 0, is written to ICC_SGI1R_EL1 for each.
        pub const RECEIVE: u64 = 2;
        /// Counts interrupts of its timer, which fires every so many ticks.
        pub const TIMER: u64 = 3;
        /// Turns itself off.
        pub const OFF: u64 = 4;
        /// Reads at this IPA.
        pub const READ: u64 = 5;
        /// Writes and reads 511 pages from this IPA on.
        pub const TOUCH: u64 = 6;
        /// Counts SMCs.
        pub const SMC_STORM: u64 = 7;
        /// Counts interrupts that it sends to all others and itself.
        pub const SGI_STORM: u64 = 8;
    }

    /// Host to partition: a call of the vendor service, operation `args[0]` with x4 = `args[1]`. Result: status;
    /// `values` = x4-x7.
    pub const SERVICE: u32 = 0x260;
    /// Host to partition: one access of `args[1]` bytes (1, 2, 4 or 8) at IPA `args[0]`: if `args[2]` is 1, a write of
    /// `args[3]`, else a read. Result: `values[0]` = what it read.
    pub const ACCESS: u32 = 0x261;
    /// Host to partition: signs the value `args[0]` with the modifier `args[1]` by PACGA, after taking keys made from
    /// `args[2]` if that is not 0. Only on CPUs with pointer authentication. Result: `values[0]` = the signature,
    /// `values[1]`, `values[2]`, `values[3]` = APIAKeyLo_EL1, APDAKeyLo_EL1, APGAKeyLo_EL1 as they are then.
    pub const PAUTH: u32 = 0x270;
    /// Host to partition: takes debug exceptions while it reads a word and calls a function, `args[0]` times, with
    /// `args[1]` ticks between. Result: `values[0]` = address of the word, `values[1]` = of the function.
    pub const DEBUG: u32 = 0x271;
    /// Host to partition: reads `args[2]` blocks of the block device in slot `args[0]` from block `args[1]` on. Result:
    /// `values` = their SHA-256. Virtio acts answer status [`VIRTIO_FAULT`] + fault where the device is given up.
    pub const VIRTIO_READ: u32 = 0x250;
    /// Host to partition: writes `args[2]` blocks to slot `args[0]` from block `args[1]` on, made from seed `args[3]`, and
    /// flushes. Result: `values` = their SHA-256.
    pub const VIRTIO_WRITE: u32 = 0x251;
    /// Host to partition: connects to port `args[0]` of the socket device and sends the first `args[1]` bytes that come back.
    /// Result: `values[0]` = bytes sent.
    pub const VIRTIO_ECHO: u32 = 0x252;
    /// Status of a virtio act: this, plus the position of the fault in the partition's list.
    pub const VIRTIO_FAULT: i32 = 0x100;

    /// Partition to host: the probe listens; no payload.
    pub const LISTENING: u32 = 0x300;
    /// Partition to host: an act came back; a [`Report`].
    pub const RESULT: u32 = 0x301;

    /// What the code that EXECUTE plants returns.
    pub const EXECUTED: u64 = 0xC0DE;
    /// Bytes of the pattern behind FILL_HEAP and CHECK_HEAP.
    pub const PATTERN_SIZE: usize = 16;

    /// Registers that REGISTER_READ and REGISTER_WRITE name by their number here.
    pub const REGISTERS: [&str; 49] = [
        // Identification: what is hidden (system.md I12) must read as absent.
        "ID_AA64PFR0_EL1",
        "ID_AA64PFR1_EL1",
        "ID_AA64DFR0_EL1",
        "ID_AA64ISAR1_EL1",
        "ID_AA64MMFR0_EL1",
        "ID_AA64MMFR1_EL1",
        "ID_AA64MMFR2_EL1",
        "MIDR_EL1",
        "MPIDR_EL1",
        // Higher exception levels.
        "HCR_EL2",
        "VTTBR_EL2",
        "VTCR_EL2",
        "SCTLR_EL2",
        "TTBR0_EL2",
        "VBAR_EL2",
        "ELR_EL2",
        "CNTHCTL_EL2",
        "CNTHP_CTL_EL2",
        "ICH_HCR_EL2",
        "MDCR_EL2",
        "SCR_EL3",
        // The host's interrupts.
        "ICC_SRE_EL1",
        "ICC_IAR1_EL1",
        "ICC_EOIR1_EL1",
        "ICC_PMR_EL1",
        "ICC_IGRPEN1_EL1",
        "ICC_SGI1R_EL1",
        // The host's timer, debug, performance monitors and error records.
        "CNTP_CTL_EL0",
        "CNTP_CVAL_EL0",
        "CNTKCTL_EL1",
        "MDSCR_EL1",
        "OSLAR_EL1",
        "DBGBVR0_EL1",
        "DBGBCR0_EL1",
        "PMCR_EL0",
        "PMCCNTR_EL0",
        "ERRSELR_EL1",
        // Features that are hidden.
        "ZCR_EL1",
        "SMCR_EL1",
        "GCR_EL1",
        "PMSCR_EL1",
        "TRBLIMITR_EL1",
        "BRBCR_EL1",
        "AMCR_EL0",
        "MPAM1_EL1",
        "LORC_EL1",
        "TPIDR2_EL0",
        "ID_AA64MMFR3_EL1",
        "PIR_EL1",
    ];

    /// Payload of a command. 32 bytes.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
    #[repr(C)]
    pub struct Command {
        /// As the kind says; the rest is ignored.
        pub args: [u64; 4],
    }

    /// Payload of RESULT. 40 bytes.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
    #[repr(C)]
    pub struct Report {
        /// Kind of the command.
        pub act: u32,
        /// 0, or the FF-A error code that the hypervisor answered; INVALID_PARAMETERS for a malformed command.
        pub status: i32,
        /// As the kind says; the rest is zero.
        pub values: [u64; 4],
    }
}

/// One direction: a single-producer single-consumer byte ring. Valid when zeroed.
#[repr(C, align(64))]
pub struct Ring {
    head: AtomicU32,
    _pad0: [u32; 15],
    tail: AtomicU32,
    _pad1: [u32; 15],
    data: [AtomicU8; RING_SIZE],
}

/// What was wrong with a ring or a frame: the other side's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// The other side moved its position to where it cannot be.
    Corrupt,
    /// A frame is longer than [`MAX_FRAME`] or than the caller's buffer.
    TooLong,
}

/// Bytes of a frame's header: kind and length.
pub const HEADER: usize = 8;

impl Ring {
    fn used(&self) -> Result<usize, RingError> {
        let used = self.head.load(Ordering::Acquire).wrapping_sub(self.tail.load(Ordering::Acquire)) as usize;
        if used > RING_SIZE { Err(RingError::Corrupt) } else { Ok(used) }
    }

    fn put(&self, at: u32, bytes: &[u8]) {
        for (i, b) in bytes.iter().enumerate() {
            let index = (at.wrapping_add(i as u32) as usize) % RING_SIZE;
            if let Some(cell) = self.data.get(index) {
                cell.store(*b, Ordering::Relaxed);
            }
        }
    }

    fn take(&self, at: u32, bytes: &mut [u8]) {
        for (i, b) in bytes.iter_mut().enumerate() {
            let index = (at.wrapping_add(i as u32) as usize) % RING_SIZE;
            *b = self.data.get(index).map_or(0, |cell| cell.load(Ordering::Relaxed));
        }
    }

    /// Writes one frame made of two parts. Returns false when there is no room now.
    pub fn send(&self, kind: u32, first: &[u8], second: &[u8]) -> Result<bool, RingError> {
        let length = first.len() + second.len();
        if length > MAX_FRAME {
            return Err(RingError::TooLong);
        }
        if RING_SIZE - self.used()? < HEADER + length {
            return Ok(false);
        }
        let head = self.head.load(Ordering::Relaxed);
        self.put(head, &kind.to_le_bytes());
        self.put(head.wrapping_add(4), &(length as u32).to_le_bytes());
        self.put(head.wrapping_add(8), first);
        self.put(head.wrapping_add(8 + first.len() as u32), second);
        self.head.store(head.wrapping_add((HEADER + length) as u32), Ordering::Release);
        Ok(true)
    }

    /// Reads one frame into `buffer`. Returns its kind and length, or none when there is no whole frame.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Option<(u32, usize)>, RingError> {
        let used = self.used()?;
        if used < HEADER {
            return Ok(None);
        }
        let tail = self.tail.load(Ordering::Relaxed);
        let mut word = [0; 4];
        self.take(tail, &mut word);
        let kind = u32::from_le_bytes(word);
        self.take(tail.wrapping_add(4), &mut word);
        let length = u32::from_le_bytes(word) as usize;
        if length > MAX_FRAME {
            return Err(RingError::TooLong);
        }
        if used < HEADER + length {
            return Err(RingError::Corrupt);
        }
        let Some(target) = buffer.get_mut(..length) else { return Err(RingError::TooLong) };
        self.take(tail.wrapping_add(8), target);
        self.tail.store(tail.wrapping_add((HEADER + length) as u32), Ordering::Release);
        Ok(Some((kind, length)))
    }
}

/// A channel of frames, at one end: the two rings, or a stream of bytes.
pub trait Channel {
    /// Why it cannot be used any more.
    type Error;
    /// Sends one frame made of two parts. Returns false when there is no room now.
    fn send(&mut self, kind: u32, first: &[u8], second: &[u8]) -> Result<bool, Self::Error>;
    /// Receives one frame into `buffer`. Returns its kind and length, or none when no whole frame is there.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<(u32, usize)>, Self::Error>;
}

/// The rings as a channel.
pub struct Rings<'s> {
    /// To the other end.
    pub outgoing: &'s Ring,
    /// From the other end.
    pub incoming: &'s Ring,
}

impl Channel for Rings<'_> {
    type Error = RingError;

    fn send(&mut self, kind: u32, first: &[u8], second: &[u8]) -> Result<bool, RingError> {
        self.outgoing.send(kind, first, second)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<(u32, usize)>, RingError> {
        self.incoming.receive(buffer)
    }
}

/// Makes the header of a frame: kind and length of its payload.
///
/// # Errors
/// TooLong beyond [`MAX_FRAME`].
pub fn frame_header(kind: u32, length: usize) -> Result<[u8; HEADER], RingError> {
    let mut header = [0; HEADER];
    if length > MAX_FRAME {
        return Err(RingError::TooLong);
    }
    let (first, second) = header.split_at_mut(4);
    first.copy_from_slice(&kind.to_le_bytes());
    second.copy_from_slice(&(length as u32).to_le_bytes());
    Ok(header)
}

/// Takes the header of a frame apart.
///
/// # Errors
/// TooLong beyond [`MAX_FRAME`].
pub fn parse_frame_header(header: [u8; HEADER]) -> Result<(u32, usize), RingError> {
    let [a, b, c, d, e, f, g, h] = header;
    let length = u32::from_le_bytes([e, f, g, h]) as usize;
    if length > MAX_FRAME { Err(RingError::TooLong) } else { Ok((u32::from_le_bytes([a, b, c, d]), length)) }
}

/// The session pages of the probe. Valid when zeroed. Lies at [`hyp_abi::manifest::layout::SESSION`] in the partition.
#[repr(C, align(4096))]
pub struct Session {
    /// [`MAGIC`] once the partition listens.
    pub magic: AtomicU32,
    _pad: [u32; 15],
    /// Requests.
    pub to_partition: Ring,
    /// Answers.
    pub to_host: Ring,
}
const _: () = assert!(RING_SIZE.is_power_of_two());
const _: () = assert!(size_of::<Session>() as u64 <= SESSION_PAGES * hyp_abi::PAGE_SIZE);

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::boxed::Box;

    fn ring() -> Box<Ring> {
        Box::new(Ring {
            head: AtomicU32::new(0),
            _pad0: [0; 15],
            tail: AtomicU32::new(0),
            _pad1: [0; 15],
            data: [const { AtomicU8::new(0) }; RING_SIZE],
        })
    }

    #[test]
    fn headers_are_bounded() {
        assert_eq!(frame_header(7, MAX_FRAME).and_then(parse_frame_header), Ok((7, MAX_FRAME)));
        assert_eq!(frame_header(7, MAX_FRAME + 1), Err(RingError::TooLong));
        assert_eq!(parse_frame_header([0xFF; HEADER]), Err(RingError::TooLong));
        let (one, two) = (ring(), ring());
        let mut here = Rings { outgoing: &one, incoming: &two };
        let mut there = Rings { outgoing: &two, incoming: &one };
        let mut buffer = [0; 16];
        assert_eq!(here.send(3, b"ab", b"c"), Ok(true));
        assert_eq!(there.receive(&mut buffer), Ok(Some((3, 3))));
        assert_eq!((&buffer[..3], here.receive(&mut buffer.clone())), (&b"abc"[..], Ok(None)));
    }

    #[test]
    fn frames_survive_wrapping() {
        let ring = ring();
        ring.head.store(u32::MAX - 2, Ordering::Relaxed);
        ring.tail.store(u32::MAX - 2, Ordering::Relaxed);
        let mut buffer = [0; MAX_FRAME];
        for round in 0..200u32 {
            let payload = [round as u8; 701];
            assert_eq!(ring.send(round, &payload[..100], &payload[100..]), Ok(true));
            assert_eq!(ring.receive(&mut buffer), Ok(Some((round, 701))));
            assert!(buffer[..701].iter().all(|b| *b == round as u8));
        }
        assert_eq!(ring.receive(&mut buffer), Ok(None));
    }

    #[test]
    fn a_full_ring_takes_nothing_and_loses_nothing() {
        let ring = ring();
        let payload = [7; MAX_FRAME];
        assert_eq!(ring.send(1, &payload, &[]), Ok(true));
        assert_eq!(ring.send(2, &payload, &[]), Ok(false));
        let mut buffer = [0; MAX_FRAME];
        assert_eq!(ring.receive(&mut buffer), Ok(Some((1, MAX_FRAME))));
        assert_eq!(ring.send(2, &payload, &[1]), Err(RingError::TooLong));
    }

    #[test]
    fn hostile_positions_and_lengths_are_refused() {
        let ring = ring();
        let mut buffer = [0; 64];
        ring.head.store(RING_SIZE as u32 + 1, Ordering::Relaxed);
        assert_eq!(ring.receive(&mut buffer), Err(RingError::Corrupt));
        assert_eq!(ring.send(1, &[0], &[]), Err(RingError::Corrupt));
        ring.head.store(8, Ordering::Relaxed);
        ring.put(4, &u32::MAX.to_le_bytes());
        assert_eq!(ring.receive(&mut buffer), Err(RingError::TooLong));
        ring.put(4, &100u32.to_le_bytes());
        assert_eq!(ring.receive(&mut buffer), Err(RingError::Corrupt));
        ring.head.store(8 + 100, Ordering::Relaxed);
        assert_eq!(ring.receive(&mut buffer), Err(RingError::TooLong));
    }
}
