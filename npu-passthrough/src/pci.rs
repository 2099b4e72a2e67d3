//! PCI Express configuration space (PCI Express Base Specification, chapter 7; PCI Local Bus 3.0, chapter 6): the
//! hypervisor is its firmware, and then its guard.
//!
//! A function's StreamID is its routing ID, which bridges make from bus numbers that software writes, and where its
//! registers appear is what its BARs say. So both are assigned once, by [`Pci::enumerate`] at boot, and never move
//! again: the host sees configuration space through [`Pci::host_read`] and [`Pci::host_write`] (and is told not to
//! assign anything itself: `linux,pci-probe-only`).
//!
//! Invariants:
//! - No two functions share a bus number with a device number, an address, or a 4 KiB page.
//! - The NPU shares neither its device nor a bridge with a function of the host's.
//! - The host's writes reach a function only where a list here says so: bus master and INTx disable in the command
//!   register, the interrupt line. All capabilities are read-only for it, MSI, MSI-X, ATS, SR-IOV, power management and
//!   function-level reset among them: interrupts are INTx, no stream's tables hold a doorbell, and a reset would undo
//!   the BARs.
//! - I/O space and expansion ROMs are off, and absent in the host's eyes.

mod enumerate;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod guard;
#[cfg(test)]
mod tests;

pub use guard::Outcome;

use arrayvec::ArrayVec;

/// The most functions, bridges included.
pub const MAX_FUNCTIONS: usize = 32;
/// BARs of an endpoint.
pub const BAR_COUNT: usize = 6;

/// Bus, device and function: 8, 5 and 3 bits. Equal to the function's StreamID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoutingId(pub u16);

impl RoutingId {
    /// Device and function are taken modulo their widths.
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | (device as u16 & 0x1f) << 3 | function as u16 & 7)
    }

    /// The bus number.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The device number.
    pub const fn device(self) -> u8 {
        self.0 as u8 >> 3
    }

    /// The StreamID.
    pub const fn stream(self) -> u32 {
        self.0 as u32
    }
}

/// Real accesses to configuration space (ECAM). `offset` is below 4096 and a multiple of `width`, which is 1, 2 or 4.
pub trait Config {
    /// Reads; all ones where no function answers.
    fn read(&self, id: RoutingId, offset: u16, width: u8) -> u32;
    /// Writes.
    fn write(&mut self, id: RoutingId, offset: u16, width: u8, value: u32);
}

/// A part of the address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// First address.
    pub base: u64,
    /// Bytes; may be 0.
    pub size: u64,
}

/// Where BARs may go: the host bridge's memory windows, identical for CPUs and devices.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Below 4 GiB.
    pub mem32: Window,
    /// For large prefetchable 64-bit BARs.
    pub mem64: Window,
}

/// What a function is to this hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A device of the host's.
    Endpoint,
    /// A bridge of whatever kind: it never gets a stream, and the host never writes to it.
    Bridge,
    /// The NPU.
    Npu,
}

/// A memory BAR with the address that it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// First address, aligned to the size and to 4 KiB.
    pub base: u64,
    /// Bytes, a power of two. Nothing else is in the pages that they touch.
    pub size: u64,
    /// Bits 3:0 of the register: width and prefetchability.
    flags: u32,
}

impl Bar {
    const IS_64_BIT: u32 = 1 << 2;
    const PREFETCHABLE: u32 = 1 << 3;

    fn is_64_bit(self) -> bool {
        self.flags & Self::IS_64_BIT != 0
    }
}

/// A function that was found.
#[derive(Clone, Debug)]
pub struct Function {
    /// Where it is.
    pub id: RoutingId,
    /// What it is.
    pub kind: Kind,
    /// Memory BARs by number; a 64-bit BAR is at its lower one.
    pub bars: [Option<Bar>; BAR_COUNT],
    /// Header type 1.
    is_type1: bool,
    /// What the command register holds.
    command: u16,
    /// BAR registers whose size the host asked for and did not read past yet, by number.
    sizing: u8,
}

/// Why enumeration failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// More functions than [`MAX_FUNCTIONS`].
    TooManyFunctions,
    /// More buses than the host bridge has, or bridges too deep.
    TooManyBuses,
    /// A header type other than 0 and 1.
    HeaderType,
    /// A BAR that answers as no BAR may.
    Bar,
    /// The memory windows are too small.
    OutOfSpace,
    /// A bridge that cannot hold the bus numbers or windows it needs.
    Bridge,
    /// More than one function is an NPU.
    SeveralNpus,
    /// The NPU shares its device or a bridge with a device of the host's.
    NpuShared,
}

#[cfg(any(test, feature = "fault-knobs"))]
bitflags::bitflags! {
    /// Protections that can be left out, to show that each is needed. Not in a shipped image.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Skips: u8 {
        /// The host's writes of BARs reach the device.
        const BAR_MOVE = 1 << 0;
        /// The host's writes of bus numbers reach the bridge.
        const BUS_NUMBERS = 1 << 1;
        /// Everything of the NPU's reaches it, whoever owns it.
        const NPU_CONFIG = 1 << 2;
        /// The host's writes of capabilities, MSI and MSI-X among them, reach the device.
        const MSI = 1 << 3;
    }
}

/// Configuration space with everything in its place. The caller serializes all calls.
pub struct Pci {
    first_bus: u8,
    last_bus: u8,
    functions: ArrayVec<Function, MAX_FUNCTIONS>,
    #[cfg(any(test, feature = "fault-knobs"))]
    skips: Skips,
}

impl Pci {
    /// Nothing found yet. It is large, so it is filled in place.
    pub const EMPTY: Self = Self {
        first_bus: 0,
        last_bus: 0,
        functions: ArrayVec::new_const(),
        #[cfg(any(test, feature = "fault-knobs"))]
        skips: Skips::empty(),
    };

    /// All functions, bus by bus.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// The NPU, if there is one.
    pub fn npu(&self) -> Option<&Function> {
        self.functions.iter().find(|function| function.kind == Kind::Npu)
    }

    /// Bus numbers in use.
    pub fn buses(&self) -> core::ops::RangeInclusive<u8> {
        self.first_bus..=self.last_bus
    }

    /// Chooses the protections to leave out.
    #[cfg(any(test, feature = "fault-knobs"))]
    pub fn set_skips(&mut self, skips: Skips) {
        self.skips = skips;
    }
}

/// Registers of the configuration header.
mod register {
    pub const VENDOR_ID: u16 = 0x00;
    pub const COMMAND: u16 = 0x04;
    pub const CLASS: u16 = 0x0b;
    pub const HEADER_TYPE: u16 = 0x0e;
    pub const BAR0: u16 = 0x10;
    pub const PRIMARY_BUS: u16 = 0x18;
    pub const SUBORDINATE_BUS: u16 = 0x1a;
    pub const IO_WINDOW: u16 = 0x1c;
    pub const MEMORY_WINDOW: u16 = 0x20;
    pub const PREFETCHABLE_WINDOW: u16 = 0x24;
    pub const PREFETCHABLE_BASE_UPPER: u16 = 0x28;
    pub const PREFETCHABLE_LIMIT_UPPER: u16 = 0x2c;
    pub const ROM_TYPE0: u16 = 0x30;
    pub const ROM_TYPE1: u16 = 0x38;
    pub const INTERRUPT_LINE: u16 = 0x3c;
    #[cfg(any(test, feature = "fault-knobs"))]
    pub const CAPABILITIES: u16 = 0x40;
    #[cfg(any(test, feature = "fault-knobs"))]
    pub const EXTENDED: u16 = 0x100;

    pub const COMMAND_MEMORY: u16 = 1 << 1;
    pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
    pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
}
