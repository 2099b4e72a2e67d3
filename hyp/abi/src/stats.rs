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
