//! Fault knobs: each switches one defence off, chosen at run time by [`hyp_abi::service::op::KNOB`], so that the attack
//! suite can show that every attack that is blocked succeeds without its defence. Only images built with the feature
//! `fault-knobs` have them, and those report [`hyp_abi::service::INFO_FAULT_KNOBS`].
//!
//! | number | name | what is skipped when it is on |
//! |---|---|---|
//! | 0x00-0x13 | those of `stage2::Knob` | as described there; `SkipScrubAll` is the scrub before a reset |
//! | 0x40 | `RXTX_OWNERSHIP` | RXTX_MAP's check that the host owns the buffers, and their pin |
//! | 0x41 | `CPU_ON_ENTRY` | the check that the entry point of CPU_ON is memory of the host |
//! | 0x42 | `CONTENTS_AFTER_MEASURE` | GIVE's check that contents come before measuring |
//! | 0x43 | `RECALL_STATE` | RECALL's check of the state and of vCPUs inside |
//! | 0x44 | `TX_SINGLE_FETCH` | the single copy of a list: it is validated, then read again and used |
//! | 0x45 | `REGION_ACCESS` | the manifest's rights of read-only data: it becomes writable |
//! | 0x46 | `PARTITION_ABORT` | the end of a partition that touches what it was not given: the page is mapped for it instead |
//! | 0x47 | `RANGE_FORM` | the checks of a list's addresses and counts: what exceeds a table entry is cut off instead |
//! | 0x48 | `SMC_ALLOW_LIST` | the allow-list of firmware calls: what is not on it goes to EL3 |
//! | 0x49 | `DEVICE_ALLOW_LIST` | the allow-list of devices: the absent page x6 is mapped for the host, and stays so |
//! | 0x4A | `SIMD_SWITCH` | saving and restoring SIMD registers (arch layer) |
//! | 0x4B | `REGISTER_TRAPS` | the traps of debug and performance registers in a partition (arch layer) |
//! | 0x4C | `INTERRUPT_ROUTING` | taking interrupts from a partition (arch layer) |
//! | 0x50 | `HANDLE_RECEIVER` | RETRIEVE_REQ's check that the caller is a receiver |
//! | 0x51 | `HANDLE_SENDER` | RECLAIM's check that the caller is the sender |
//! | 0x52 | `DESCRIPTOR_BOUNDS` | the check that a descriptor lies in what was sent: its own numbers are believed |
//! | 0x58 | `GUEST_MAILBOX` | the check that a partition's buffers are pages of its own alone |
//! | 0x59 | `NOTIFICATION_BINDING` | the check that the receiver lets the sender set a notification |
//! | 0x5A | `SENDER_ID` | the check that who sends is who it says |
//! | 0x5B | `RX_OWNERSHIP` | the check that RX was released before it is written again |
//! | 0x5C | `LOG_CHARACTERS` | the replacement of control characters in what a partition logs |
//! | 0x60 | `VCPU_INSIDE` | FFA_RUN's check that no other CPU runs the vCPU |
//! | 0x61 | `VCPU_COUNT` | the manifest's number of vCPUs as the bound of vCPU numbers |
//! | 0x62 | `NPU_RESET` | the NPU's reset when it changes hands |
//! | 0x63 | `NPU_INVALIDATE` | the invalidation of the SMMU when the NPU's stream is cut (arch layer) |
//! | 0x64 | `SMMU_INVALIDATE` | the invalidation of the SMMU with that of the CPUs (arch layer) |
//! | 0x65 | `BAR_MOVE` | the guard of base address registers: what the host writes reaches the device (arch layer) |
//! | 0x66 | `BUS_NUMBERS` | the guard of bridges' bus numbers (arch layer) |
//! | 0x67 | `NPU_CONFIG` | the guard of the NPU's configuration space (arch layer) |
//! | 0x68 | `MSI` | the guard of MSI and MSI-X (arch layer) |
//! | 0x69 | `GICR_TABLES` | the guard of the redistributors' tables (arch layer) |
//! | 0x6A | `STREAM_ROOT` | the root that hides devices from the host's streams: they walk the CPUs' (arch layer) |
//! | 0x6B | `NPU_INTERRUPT` | the end of the NPU's interrupts at the host while a partition owns it |
//! | 0x6C | `NPU_STREAM` | the NPU's stream table entry at a switch: it stays the old owner's (arch layer) |
//! | 0x6D | `DMA_REPORTS` | the bound on log lines about refused DMA (arch layer) |
//! | 0x70 | `PAUTH_SWITCH` | the switch of pointer authentication keys at entry (arch layer) |
//! | 0x71 | `DEBUG_OFF` | breakpoints and watchpoints off at entry: the host's MDSCR_EL1 stays (arch layer) |
//! | 0x72 | `COUNTERS_STOP` | stopping the host's event counters at entry (arch layer) |
//! | 0x73 | `HIDDEN_FEATURES` | the traps of a hidden feature's register, TPIDR2_EL0 of SME (arch layer) |
//! | 0x74 | `SERROR` | nothing: while it is on, every entry meets a pending SError (arch layer) |
//! | 0x75 | `GUARD_NAME` | the guard's refusal to pass on what the host says under another name (the guard, at S-EL2) |
//! | 0x76 | `NORMAL_SPACE` | the bits by which a partition's non-secure addresses lead to the normal world's memory (arch layer, at S-EL2) |
//! | 0x77 | `PRIVATE_MEMORY` | private memory in secure RAM: a partition runs on what the host gave (arch layer, at S-EL2) |
//! | 0xFF | `PANIC` | nothing: the call makes the hypervisor panic at once |

macro_rules! knobs {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        $($(#[$doc])* pub const $name: u64 = $number;)*

        /// Every knob of this crate with its name, for the attack suite.
        pub const NAMES: &[(&str, u64)] = &[$((stringify!($name), $number),)*];
    };
}

knobs! {
    /// RXTX_MAP's ownership check.
    RXTX_OWNERSHIP = 0x40,
    /// CPU_ON's entry check.
    CPU_ON_ENTRY = 0x41,
    /// GIVE's check that contents come before measuring.
    CONTENTS_AFTER_MEASURE = 0x42,
    /// RECALL's state check.
    RECALL_STATE = 0x43,
    /// One copy of every list.
    TX_SINGLE_FETCH = 0x44,
    /// Rights of read-only regions.
    REGION_ACCESS = 0x45,
    /// The end of a partition that touches what it was not given.
    PARTITION_ABORT = 0x46,
    /// Checks of a list's numbers.
    RANGE_FORM = 0x47,
    /// The closed list of firmware calls.
    SMC_ALLOW_LIST = 0x48,
    /// The closed list of devices.
    DEVICE_ALLOW_LIST = 0x49,
    /// The switch of SIMD registers.
    SIMD_SWITCH = 0x4A,
    /// The traps of registers that are not a partition's.
    REGISTER_TRAPS = 0x4B,
    /// The routing of interrupts to the hypervisor.
    INTERRUPT_ROUTING = 0x4C,
    /// RETRIEVE_REQ's check of the caller.
    HANDLE_RECEIVER = 0x50,
    /// RECLAIM's check of the caller.
    HANDLE_SENDER = 0x51,
    /// Bounds of memory descriptors.
    DESCRIPTOR_BOUNDS = 0x52,
    /// Ownership of a partition's buffers.
    GUEST_MAILBOX = 0x58,
    /// The receiver's consent to a notification.
    NOTIFICATION_BINDING = 0x59,
    /// The sender's id.
    SENDER_ID = 0x5A,
    /// Ownership of RX.
    RX_OWNERSHIP = 0x5B,
    /// Characters of partitions' logs.
    LOG_CHARACTERS = 0x5C,
    /// One CPU at a time in a vCPU.
    VCPU_INSIDE = 0x60,
    /// No more vCPUs than the manifest says.
    VCPU_COUNT = 0x61,
    /// The reset of the NPU.
    NPU_RESET = 0x62,
    /// SMMU invalidation at a switch of the NPU.
    NPU_INVALIDATE = 0x63,
    /// SMMU invalidation at every change of stage 2.
    SMMU_INVALIDATE = 0x64,
    /// Fixed base address registers.
    BAR_MOVE = 0x65,
    /// Fixed bus numbers.
    BUS_NUMBERS = 0x66,
    /// The NPU's configuration space.
    NPU_CONFIG = 0x67,
    /// No message-signalled interrupts.
    MSI = 0x68,
    /// No LPI tables.
    GICR_TABLES = 0x69,
    /// A root without devices for the host's streams.
    STREAM_ROOT = 0x6A,
    /// No interrupts of a partition's NPU.
    NPU_INTERRUPT = 0x6B,
    /// The NPU's stream follows its owner.
    NPU_STREAM = 0x6C,
    /// The bound on reports of refused DMA.
    DMA_REPORTS = 0x6D,
    /// The switch of pointer authentication keys.
    PAUTH_SWITCH = 0x70,
    /// Breakpoints and watchpoints off across entry.
    DEBUG_OFF = 0x71,
    /// The host's counters stopped across entry.
    COUNTERS_STOP = 0x72,
    /// The traps of a hidden feature.
    HIDDEN_FEATURES = 0x73,
    /// An event that emulation does not have: a pending SError at every entry.
    SERROR = 0x74,
    /// Nobody but the guard speaks under the guard's name.
    GUARD_NAME = 0x75,
    /// What is not private leads to the normal world's memory.
    NORMAL_SPACE = 0x76,
    /// What is private leads to secure RAM.
    PRIVATE_MEMORY = 0x77,
    /// An action: panic now.
    PANIC = 0xFF,
}

/// The bit of a knob among all.
#[cfg(feature = "fault-knobs")]
pub fn bit(knob: u64) -> u64 {
    1 << (knob & 63)
}

/// Which defences are off. Without the feature it is empty and every question answers "on".
#[derive(Debug)]
pub(crate) struct Knobs {
    #[cfg(feature = "fault-knobs")]
    off: u64,
}

impl Knobs {
    /// Every defence on.
    pub(crate) const fn new() -> Self {
        Self {
            #[cfg(feature = "fault-knobs")]
            off: 0,
        }
    }

    /// Whether the defence behind `knob` is skipped.
    #[cfg_attr(
        not(feature = "fault-knobs"),
        allow(clippy::unused_self, reason = "same signature in both images")
    )]
    pub(crate) fn skips(&self, knob: u64) -> bool {
        #[cfg(feature = "fault-knobs")]
        return self.off & bit(knob) != 0;
        #[cfg(not(feature = "fault-knobs"))]
        {
            let _ = knob;
            false
        }
    }

    /// The defences that are off, by [`bit`].
    #[cfg(feature = "fault-knobs")]
    pub(crate) fn bits(&self) -> u64 {
        self.off
    }

    /// Switches the defence behind `knob` off (`on`) or back on; false when there is no such knob.
    #[cfg(feature = "fault-knobs")]
    pub(crate) fn set(&mut self, knob: u64, on: bool) -> bool {
        assert!(knob != PANIC, "fault knob PANIC");
        if !NAMES.iter().any(|(_, number)| *number == knob) {
            return false;
        }
        self.off = if on { self.off | bit(knob) } else { self.off & !bit(knob) };
        true
    }
}
