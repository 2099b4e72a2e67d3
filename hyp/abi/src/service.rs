//! The vendor service: what FF-A lacks, carried in direct messages to [`crate::ffa::SERVICE_ID`].
//!
//! Request: FFA_MSG_SEND_DIRECT_REQ (64-bit), x1 = sender << 16 | SERVICE_ID, x2 = 0, x3 = [`op`], x4-x7 = arguments.
//! Response: FFA_MSG_SEND_DIRECT_RESP (64-bit), x1 = SERVICE_ID << 16 | sender, x2 = 0, x3 = status (0, or an FF-A
//! error code sign-extended to 64 bits), x4-x7 = results. On [`crate::ffa::error::NO_MEMORY`] x4 says how many table
//! pages to give with [`op::TABLES_GIVE`] before the call is repeated. On other errors x4 says what offended: a
//! physical address, an IPA, a region index, a partition id, or 0.
//!
//! The same as FFA_MSG_SEND_DIRECT_REQ2: x2, x3 = [`crate::ffa::SERVICE_UUID`] or nil, x4 = operation, x5-x8 =
//! arguments; FFA_MSG_SEND_DIRECT_RESP2: x4 = status, x5-x8 = results, x9-x17 = 0.
//!
//! Lists travel in the caller's TX buffer as an array of [`PageRange`]; the hypervisor copies it once. Results that
//! do not fit registers are written to the caller's RX buffer, which stays owned by the caller until
//! FFA_RX_RELEASE; a call that would overwrite it meanwhile answers BUSY.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of this interface: major << 16 | minor.
pub const VERSION: u64 = 0x0001_0000;
/// The most pages that one call moves; longer work is the caller's loop.
pub const STEP_PAGES: u64 = 512;
/// The most pages that one MEASURE call hashes (bounds the time with interrupts masked).
pub const MEASURE_STEP_PAGES: u64 = 32;
/// The most ranges that one list holds: a 4 KiB buffer of 16-byte entries.
pub const MAX_RANGES: usize = 256;
/// Bytes of a measurement (SHA-384).
pub const MEASUREMENT_SIZE: usize = 48;
/// Most partitions at a time.
pub const MAX_PARTITIONS: usize = 16;
/// Most vCPUs of a partition.
pub const MAX_VCPUS: usize = 8;

/// Bytes of a partition's log that are kept.
pub const LOG_SIZE: usize = 4096;

/// Operation numbers (x3 of the request).
pub mod op {
    /// Host or partition. Result: x4 = version, x5 = flags ([`super::INFO_FAULT_KNOBS`]), x6 = most partitions, x7 = ticks per second.
    pub const INFO: u64 = 0x00;
    /// Host. Donates pages for page tables. x4 = ranges in TX. Result: x4 = pages taken, x5 = free table pages now.
    pub const TABLES_GIVE: u64 = 0x01;
    /// Host. Takes free table pages back. x4 = most pages. Result: x4 = ranges written to RX, x5 = pages.
    pub const TABLES_RECALL: u64 = 0x02;
    /// Host. Creates a partition. x4 = bytes of the [`crate::manifest::Manifest`] in TX. Result: x4 = partition id.
    pub const CREATE: u64 = 0x10;
    /// Host. Gives pages. x4 = partition id, x5 = IPA of the first page, x6 = ranges in TX. Pages land at ascending
    /// IPAs inside one manifest region, whose kind decides whether contents stay (to be measured) or are zeroed.
    /// All or nothing, at most [`super::STEP_PAGES`]. Result: x4 = pages given.
    pub const GIVE: u64 = 0x11;
    /// Host. Measures the given contents, in IPA order, a step at a time. x4 = partition id. Result: x4 = pages
    /// still to hash; when 0 the measurement is final and stands in RX ([`super::MEASUREMENT_SIZE`] bytes).
    pub const MEASURE: u64 = 0x12;
    /// Host. Makes a measured partition runnable by FFA_RUN. x4 = partition id.
    pub const START: u64 = 0x13;
    /// Host. Ends a partition: no vCPU enters it again. x4 = partition id. BUSY while a vCPU is still inside.
    pub const STOP: u64 = 0x14;
    /// Host. Takes pages back from a stopped, finished, crashed or not yet started partition; scrubbed. x4 = partition
    /// id, x5 = IPA of the first page, x6 = pages (at most [`super::STEP_PAGES`]). Result: x4 = pages recalled.
    pub const RECALL: u64 = 0x15;
    /// Host. Destroys a partition, a step at a time: stops it, scrubs and returns its pages. x4 = partition id.
    /// Result: x4 = pages still to return; 0 when the partition is gone and its id free.
    pub const DESTROY: u64 = 0x16;
    /// Host. Statistics. x4 = 0 for [`crate::stats::SystemStats`], a partition id for [`crate::stats::PartitionStats`].
    /// Result: x4 = bytes written to RX.
    pub const STATS: u64 = 0x17;

    /// Partition. Describes region x4 of its manifest. Result: x4 = IPA, x5 = pages given so far, x6 = kind, x7 = access.
    pub const REGION: u64 = 0x20;
    /// Partition. Shares one of its pages in a SHARED region with the host. x4 = IPA.
    pub const SHARE: u64 = 0x21;
    /// Partition. Takes a shared page back. x4 = IPA. The page is zeroed.
    pub const UNSHARE: u64 = 0x22;
    /// Partition. Ends itself. x4 = exit code; 0 is success. Does not return.
    pub const EXIT: u64 = 0x23;
    /// Partition. Reports a panic: x4 = hash of the source file's name, x5 = line. No text: it could hold secrets. Does not return.
    pub const PANIC: u64 = 0x24;

    /// Host. Copies what a partition logged by FFA_CONSOLE_LOG to RX. x4 = partition id, x5 = position from which on, in
    /// bytes since its creation; the log keeps the last [`super::LOG_SIZE`]. Result: x4 = bytes in RX, x5 = position of the first one.
    pub const LOG: u64 = 0x30;

    /// Host or partition. What the caller has to know of the NPU; NOT_SUPPORTED where there is none. Result: x4 = [`super::npu`]
    /// flags and generation, x5 = IPA of its registers, x6 = offsets there: 16 bits each for the virtio structures common
    /// configuration, interrupt status, device configuration and notifications (virtio 1.2, 4.1.4), x7 = notification
    /// multiplier, and from bit 32 on pages.
    pub const NPU_STATE: u64 = 0x40;
    /// Host or partition. Takes the NPU, which is then in its power-on state. Result as of NPU_STATE. BUSY while another
    /// holds it: that one is asked to release it; x4 = ticks until a call takes it by force.
    pub const NPU_ACQUIRE: u64 = 0x41;
    /// Host or partition. Does not use the NPU any more; it stays where it is until another acquires it. DENIED: the caller does
    /// not hold it. Result as of NPU_STATE.
    pub const NPU_RELEASE: u64 = 0x42;

    /// Fault-knob images only. x4 = knob number, x5 = 0 off or 1 on.
    pub const KNOB: u64 = 0x7F00;
}

/// INFO flag: this image was built with fault knobs and is not for production.
pub const INFO_FAULT_KNOBS: u64 = 1;

/// x4 of what the NPU operations return.
pub mod npu {
    /// The caller holds the NPU.
    pub const HELD: u64 = 1;
    /// And somebody else asks for it: release it at the end of the job, or lose it.
    pub const WANTED: u64 = 2;
    /// From this bit on: how often it changed hands. Another number than at ACQUIRE: it was lost in between, and with it
    /// every job that had not ended.
    pub const GENERATION_SHIFT: u32 = 8;
}

/// A run of physically contiguous pages in a list. 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PageRange {
    /// Physical address of the first page (the host's IPA; the two are equal).
    pub base: u64,
    /// Pages, at least 1.
    pub page_count: u64,
}
const _: () = assert!(size_of::<PageRange>() == 16);

/// Why FFA_RUN came back, in x4 (x0-x3 are as FF-A says: FFA_INTERRUPT, FFA_YIELD, FFA_MSG_WAIT or FFA_ERROR ABORTED;
/// x1 = partition id << 16 | vCPU).
pub mod run_exit {
    /// An interrupt of the host is pending (FFA_INTERRUPT).
    pub const INTERRUPT: u64 = 0;
    /// The partition asks the host to look at the session (FFA_YIELD).
    pub const KICK: u64 = 1;
    /// The partition sleeps until x5, a value of the virtual counter (FFA_YIELD); u64::MAX: no deadline.
    pub const TIMER: u64 = 2;
    /// The partition waits for a message (FFA_MSG_WAIT).
    pub const WAITING: u64 = 3;
    /// The partition ended itself; x5 = exit code (FFA_ERROR ABORTED).
    pub const FINISHED: u64 = 4;
    /// The partition crashed; x5 = [`super::crash`] cause, x6 and x7 = detail (FFA_ERROR ABORTED).
    pub const CRASHED: u64 = 5;
    /// The partition was stopped by the host (FFA_ERROR ABORTED).
    pub const STOPPED: u64 = 6;
}

/// Causes of a crash.
pub mod crash {
    /// Its runtime reported a panic; x6 = hash of the file name, x7 = line.
    pub const PANIC: u64 = 1;
    /// It touched memory that it was not given; x6 = IPA.
    pub const ABORT: u64 = 2;
    /// It used an instruction or register that it must not; x6 = exception class (EC).
    pub const UNDEFINED: u64 = 3;
    /// An SError was taken while it ran.
    pub const SERROR: u64 = 4;
}
