//! SMMUv3 (Arm IHI 0070): every stream aborts until an owner is attached, and again once it is detached.
//!
//! - [`abort_all`] needs nothing but registers: it runs before anything can master the bus, and when the hypervisor
//!   gives up.
//! - [`Smmu`] then takes over: a two-level stream table with one level-2 table per PCI bus, stage-2-only entries that
//!   point at the tables that the CPU walks, and two queues.
//!
//! Invariants: no entry ever says bypass; a change of owner is complete (configuration and TLB invalidated, CMD_SYNC
//! consumed) when the call returns `Ok`; every wait is bounded. An `Err` from [`Smmu::attach`], [`Smmu::detach`] or an
//! invalidation means that the SMMU may still use what it should have forgotten: no page may change hands on it.
//!
//! The format of stage-2 tables is the CPU's (VTCR_EL2): 4 KiB granule, from level 1 on, 40-bit output addresses,
//! write-back inner-shareable walks. Of the CPU's two concatenated level-1 tables streams walk the first: input
//! addresses have 39 bits, and those beyond fault. (QEMU 10 takes an address beyond into the first table too, but
//! caches it under its full value: unmapping the page and invalidating its address would leave the other in the TLB.)

mod events;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod queue;
mod registers;
mod streams;
#[cfg(test)]
mod tests;

pub use events::{Event, EventKind, Reports};
#[cfg(any(test, feature = "fault-knobs"))]
pub use streams::Skips;
pub use streams::{MAX_BUSES, MAX_STREAMS, Smmu, Structures};

use registers::*;

/// Access to the registers of one SMMU. Offsets are the specification's, page 1 at 0x1_0000.
pub trait Registers {
    /// Reads a 32-bit register. Later [`Memory::load`]s are not done before it.
    fn read(&self, offset: u64) -> u32;
    /// Writes a 32-bit register. The SMMU sees every earlier [`Memory::store`] by then.
    fn write(&mut self, offset: u64, value: u32);
    /// Writes a 64-bit register. In halves by default, which section 6.2 allows; only done while the SMMU is off.
    fn write64(&mut self, offset: u64, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }
}

/// Access to the structures in RAM that the SMMU reads and writes. The implementation maps them as normal write-back
/// memory, inner shareable; the SMMU is coherent (checked by [`Smmu::start`]).
pub trait Memory {
    /// Reads 8 bytes at a physical address: one 64-bit load.
    fn load(&self, address: u64) -> u64;
    /// Writes 8 bytes at a physical address: one 64-bit store, seen by the SMMU after all earlier ones (DMB OSHST
    /// before it, or STLR) and before any later [`Registers::write`] (which therefore starts with DSB OSHST, or with
    /// DSB ISHST where the SMMU is in the inner domain).
    fn store(&mut self, address: u64, value: u64);
}

/// All that the driver needs of the machine.
pub trait Io: Registers + Memory {}

impl<T: Registers + Memory> Io for T {}

/// What an SMMU lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// IDR0.S2P.
    Stage2,
    /// IDR0.TTF: VMSAv8-64 tables.
    AArch64Tables,
    /// IDR0.TTENDIAN: little-endian tables.
    LittleEndian,
    /// IDR0.COHACC.
    Coherency,
    /// IDR0.STALL_MODEL: faults that do not stall.
    Termination,
    /// IDR0.ST_LEVEL.
    TwoLevelStreamTable,
    /// IDR1.SIDSIZE: 16 bits.
    StreamIds,
    /// IDR1.CMDQS or EVENTQS, or queues or tables at fixed places (QUEUES_PRESET, TABLES_PRESET).
    Queues,
    /// IDR5.GRAN4K.
    Granule4K,
    /// IDR5.OAS: 40 bits.
    OutputSize,
}

/// The SMMU, or the caller, did not do what the specification says it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// CR0ACK did not follow CR0.
    NotDisabled,
    /// GBPA.Update did not clear.
    UpdateStuck,
    /// GBPA.ABORT did not stick.
    NotAborting,
    /// The SMMU lacks what this driver needs.
    Missing(Missing),
    /// A structure is misaligned or beyond 40 bits, or a bus is named twice or one too many.
    Structures,
    /// CR0ACK or IRQ_CTRL_ACK did not follow.
    NotEnabled,
    /// Commands were not consumed in time.
    CommandsStuck,
    /// The SMMU refused a command, which was then skipped (CERROR_ILL), or could not complete one.
    CommandFailed,
    /// The stream's bus has no level-2 table, or the StreamID more than 16 bits.
    NoTable,
    /// The stream has an owner already.
    Attached,
    /// The stream is not attached under that VMID.
    NotAttached,
    /// More streams than [`MAX_STREAMS`].
    TooManyStreams,
    /// The VMID has more bits than the SMMU's.
    Vmid,
    /// The level-1 table is misaligned or beyond 40 bits.
    Root,
}

/// Reads until the hardware is given up on.
const PATIENCE: u32 = 1_000_000;

fn settle(done: impl Fn() -> bool) -> bool {
    (0..PATIENCE).any(|_| done())
}

/// Makes the SMMU abort every transaction of every stream (section 6.3.15): translation off, GBPA.ABORT set. Aborting
/// is arranged before translation is turned off, so that there is no moment of bypass.
pub fn abort_all(registers: &mut impl Registers) -> Result<(), Error> {
    if !settle(|| registers.read(GBPA) & GBPA_UPDATE == 0) {
        return Err(Error::UpdateStuck);
    }
    let gbpa = registers.read(GBPA);
    registers.write(GBPA, gbpa | GBPA_ABORT | GBPA_UPDATE);
    if !settle(|| registers.read(GBPA) & GBPA_UPDATE == 0) {
        return Err(Error::UpdateStuck);
    }
    if registers.read(GBPA) & GBPA_ABORT == 0 {
        return Err(Error::NotAborting);
    }
    let cr0 = registers.read(CR0);
    registers.write(CR0, cr0 & !CR0_SMMUEN);
    if !settle(|| registers.read(CR0ACK) & CR0_SMMUEN == 0) {
        return Err(Error::NotDisabled);
    }
    Ok(())
}
