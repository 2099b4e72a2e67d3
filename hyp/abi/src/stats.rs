//! Statistics that the hypervisor keeps; STATS copies them to the caller's RX buffer.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Partition states as they travel.
pub mod state {
    /// Created; pages may be given.
    pub const CREATED: u32 = 1;
    /// Being measured, or measured.
    pub const MEASURED: u32 = 2;
    /// Runnable.
    pub const RUNNING: u32 = 3;
    /// Ended itself.
    pub const FINISHED: u32 = 4;
    /// Crashed.
    pub const CRASHED: u32 = 5;
    /// Stopped by the host.
    pub const STOPPED: u32 = 6;
    /// Being destroyed.
    pub const DYING: u32 = 7;
}

/// Costs of one kind of transition, in ticks of the system counter, by part. Under QEMU's `-icount shift=0` with a
/// 1 GHz counter a tick is an instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cost {
    /// Calls.
    pub calls: u64,
    /// Pages moved.
    pub pages: u64,
    /// Validation and planning.
    pub validate: u64,
    /// Ownership records and table writes.
    pub tables: u64,
    /// TLB invalidation.
    pub tlbi: u64,
    /// Zeroing and cleaning.
    pub scrub: u64,
}

/// Cost of changes of the NPU's owner, in ticks, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SwitchCost {
    /// Registers out of the old owner's stage 2.
    pub close: u64,
    /// Drain and reset.
    pub reset: u64,
    /// Stream table entry to abort, invalidation.
    pub detach: u64,
    /// Stream table entry to the new owner's tables.
    pub attach: u64,
    /// Interrupt route, registers into the new owner's stage 2.
    pub open: u64,
}

impl SwitchCost {
    /// No cost.
    pub const NONE: Self = Self { close: 0, reset: 0, detach: 0, attach: 0, open: 0 };

    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.close += other.close;
        self.reset += other.reset;
        self.detach += other.detach;
        self.attach += other.attach;
        self.open += other.open;
    }
}

/// Counters of the NPU since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NpuStats {
    /// Jobs that the device counted.
    pub jobs: u64,
    /// Changes of owner.
    pub switches: u64,
    /// Of these, from an owner that did not release it.
    pub forced: u64,
    /// Accesses of all devices that the SMMU refused, as far as it reported them.
    pub blocked: u64,
    /// The last switch.
    pub last: SwitchCost,
    /// All switches.
    pub total: SwitchCost,
}

impl NpuStats {
    /// Nothing happened.
    pub const NONE: Self =
        Self { jobs: 0, switches: 0, forced: 0, blocked: 0, last: SwitchCost::NONE, total: SwitchCost::NONE };
}

/// Counters of the whole system since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SystemStats {
    /// Ticks of the system counter per second.
    pub ticks_per_second: u64,
    /// Partitions that exist.
    pub partition_count: u64,
    /// Host accesses to memory that is not its own, refused with an abort.
    pub blocked_accesses: u64,
    /// Calls of the host that were refused: not on the allow-list, malformed or not allowed.
    pub refused_calls: u64,
    /// Exceptions taken from the host.
    pub host_exits: u64,
    /// Entries into partitions.
    pub world_switches: u64,
    /// Pages given to partitions.
    pub pages_given: u64,
    /// Pages that came back.
    pub pages_recalled: u64,
    /// Table pages in use.
    pub tables_used: u64,
    /// Table pages free.
    pub tables_free: u64,
    /// Of the table pages, those given by the host.
    pub tables_from_host: u64,
    /// 1 GiB leaves of the host's stage 2.
    pub leaves_1g: u64,
    /// 2 MiB leaves of the host's stage 2.
    pub leaves_2m: u64,
    /// 4 KiB leaves of the host's stage 2.
    pub leaves_4k: u64,
    /// Blocks split since boot.
    pub splits: u64,
    /// Blocks made whole again since boot.
    pub coalesces: u64,
    /// Cost of gives since boot.
    pub give: Cost,
    /// Cost of recalls since boot (destroy included).
    pub recall: Cost,
    /// Cost of the last give.
    pub last_give: Cost,
    /// Cost of the last recall.
    pub last_recall: Cost,
    /// The NPU.
    pub npu: NpuStats,
}

/// Counters of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PartitionStats {
    /// Partition id.
    pub id: u32,
    /// One of [`state`].
    pub state: u32,
    /// Name from the manifest, zero-padded.
    pub name: [u8; 16],
    /// vCPUs.
    pub vcpu_count: u64,
    /// Pages given since creation.
    pub pages_given: u64,
    /// Pages recalled since creation.
    pub pages_recalled: u64,
    /// Pages shared with the host now.
    pub pages_shared: u64,
    /// Entries into the partition.
    pub world_switches: u64,
    /// Entries that ended by an interrupt of the host.
    pub interrupts: u64,
    /// Ticks that the partition ran.
    pub run_ticks: u64,
    /// Why it ended: exit code, or [`crate::service::crash`] cause; and details.
    pub end: [u64; 3],
    /// The measurement; zero until it is final.
    pub measurement: [u8; 48],
}
const _: () = assert!(size_of::<PartitionStats>() == 24 + 10 * 8 + 48);
