//! Finding every function, and giving bus numbers and addresses.

use super::register::*;
use super::{BAR_COUNT, Bar, Config, Error, Function, Kind, Pci, RoutingId, Window, Windows};
use core::ops::RangeInclusive;

/// Bridges below bridges.
const MAX_DEPTH: u32 = 4;
const PAGE_SIZE: u64 = 4096;
/// Granularity of a bridge's windows.
const BRIDGE_ALIGNMENT: u64 = 1 << 20;
/// Prefetchable 64-bit BARs above this size go beyond 4 GiB.
const LARGE: u64 = 64 << 20;
/// The NPU's registers have a GiB of their own: one entry of a table moves them from owner to owner.
const NPU_ALIGNMENT: u64 = 1 << 30;
/// A window whose limit is below its base.
const CLOSED: u32 = 0xfff0;

/// What is left of a [`Window`].
struct Space {
    next: u64,
    end: u64,
}

impl Space {
    fn new(window: Window) -> Self {
        Self { next: window.base, end: window.base.saturating_add(window.size) }
    }

    fn align(&mut self, alignment: u64) -> Result<u64, Error> {
        let next = self.next.checked_next_multiple_of(alignment).ok_or(Error::OutOfSpace)?;
        if next > self.end {
            return Err(Error::OutOfSpace);
        }
        self.next = next;
        Ok(next)
    }

    /// Whole pages, aligned to `size`, which is a power of two.
    fn take(&mut self, size: u64) -> Result<u64, Error> {
        let size = size.max(PAGE_SIZE);
        let base = self.align(size)?;
        if size > self.end - base {
            return Err(Error::OutOfSpace);
        }
        self.next = base + size;
        Ok(base)
    }
}

struct Enumerator<'a, C, F> {
    config: &'a mut C,
    is_npu: F,
    pci: &'a mut Pci,
    bus_limit: u8,
    mem32: Space,
    mem64: Space,
}

impl Pci {
    /// Finds all functions below the host bridge, whose buses are `buses`, turns their DMA off, and gives each its
    /// bus number and addresses. `is_npu` tells the NPU by its routing ID (final by then) and what its configuration
    /// space says. On an error everything found so far is without DMA, and BARs may overlap.
    pub fn enumerate<C: Config>(
        &mut self,
        config: &mut C,
        buses: RangeInclusive<u8>,
        windows: Windows,
        is_npu: impl FnMut(&C, RoutingId) -> bool,
    ) -> Result<(), Error> {
        let first_bus = *buses.start();
        self.first_bus = first_bus;
        self.last_bus = first_bus;
        self.functions.clear();
        let (mem32, mem64) = (Space::new(windows.mem32), Space::new(windows.mem64));
        if mem32.end > 1 << 32 {
            return Err(Error::OutOfSpace);
        }
        let bus_limit = *buses.end();
        let mut enumerator = Enumerator { config, is_npu, pci: &mut *self, bus_limit, mem32, mem64 };
        enumerator.bus(first_bus, 0)?;
        self.check_npu_is_alone()
    }

    fn check_npu_is_alone(&self) -> Result<(), Error> {
        let Some(npu) = self.npu() else { return Ok(()) };
        let is_sibling = |other: &Function| {
            other.kind != Kind::Npu && other.id.bus() == npu.id.bus() && other.id.device() == npu.id.device()
        };
        match self.functions.iter().filter(|other| other.kind == Kind::Npu).count() {
            1 if !self.functions.iter().any(is_sibling) => Ok(()),
            1 => Err(Error::NpuShared),
            _ => Err(Error::SeveralNpus),
        }
    }
}

impl<C: Config, F: FnMut(&C, RoutingId) -> bool> Enumerator<'_, C, F> {
    fn read(&self, function: &Function, offset: u16) -> u32 {
        self.config.read(function.id, offset, 4)
    }

    fn write(&mut self, function: &Function, offset: u16, value: u32) {
        self.config.write(function.id, offset, 4, value);
    }

    /// First quiets every function of the bus, so that no stale BAR or bus number answers, then places them.
    fn bus(&mut self, bus: u8, depth: u32) -> Result<(), Error> {
        let first = self.pci.functions.len();
        for device in 0..32 {
            for function in 0..8 {
                let id = RoutingId::new(bus, device, function);
                if matches!(self.config.read(id, VENDOR_ID, 2), 0 | 0xffff) {
                    if function == 0 {
                        break; // no function 0, no device
                    }
                    continue;
                }
                let quiet = self.quiet(id)?;
                self.pci.functions.try_push(quiet).map_err(|_| Error::TooManyFunctions)?;
                if function == 0 && self.config.read(id, HEADER_TYPE, 1) & 0x80 == 0 {
                    break;
                }
            }
        }
        for index in first..self.pci.functions.len() {
            let Some(mut function) = self.pci.functions.get(index).cloned() else { continue };
            self.assign_bars(&mut function)?;
            if function.bars.iter().any(Option::is_some) {
                function.command |= COMMAND_MEMORY;
            }
            if function.kind == Kind::Npu {
                function.command |= COMMAND_BUS_MASTER;
            }
            if function.is_type1 {
                function.command = COMMAND_MEMORY | COMMAND_BUS_MASTER;
                self.below(&function, depth)?;
            }
            self.config.write(function.id, COMMAND, 2, function.command.into());
            if let Some(place) = self.pci.functions.get_mut(index) {
                *place = function;
            }
        }
        Ok(())
    }

    fn quiet(&mut self, id: RoutingId) -> Result<Function, Error> {
        self.config.write(id, COMMAND, 2, 0);
        let is_type1 = match self.config.read(id, HEADER_TYPE, 1) & 0x7f {
            0 => false,
            1 => true,
            _ => return Err(Error::HeaderType),
        };
        let kind = if is_type1 || self.config.read(id, CLASS, 1) == 0x06 {
            Kind::Bridge
        } else if (self.is_npu)(self.config, id) {
            Kind::Npu
        } else {
            Kind::Endpoint
        };
        let function = Function { id, kind, bars: [None; BAR_COUNT], is_type1, command: 0, sizing: 0 };
        self.write(&function, if is_type1 { ROM_TYPE1 } else { ROM_TYPE0 }, 0);
        if is_type1 {
            self.write(&function, PRIMARY_BUS, 0);
            self.config.write(id, IO_WINDOW, 2, 0xf0);
            self.write(&function, MEMORY_WINDOW, CLOSED);
            self.write(&function, PREFETCHABLE_WINDOW, CLOSED);
            self.write(&function, PREFETCHABLE_BASE_UPPER, 0);
            self.write(&function, PREFETCHABLE_LIMIT_UPPER, 0);
        }
        Ok(function)
    }

    fn assign_bars(&mut self, function: &mut Function) -> Result<(), Error> {
        let count = if function.is_type1 { 2 } else { BAR_COUNT };
        let mut index = 0;
        while index < count {
            let register = BAR0 + 4 * index as u16;
            self.write(function, register, u32::MAX);
            let low = self.read(function, register);
            self.write(function, register, 0);
            let is_io = low & 1 != 0;
            if low == 0 || is_io {
                index += 1;
                continue;
            }
            let mut bar = Bar { base: 0, size: 0, flags: low & 0xf };
            let mut mask = u64::from(low & !0xf) | 0xffff_ffff << 32;
            if bar.is_64_bit() {
                if index + 1 == count {
                    return Err(Error::Bar);
                }
                self.write(function, register + 4, u32::MAX);
                mask = mask & 0xffff_ffff | u64::from(self.read(function, register + 4)) << 32;
            }
            bar.size = (!mask).wrapping_add(1);
            if !bar.size.is_power_of_two() || mask != !(bar.size - 1) {
                return Err(Error::Bar);
            }
            let goes_high = bar.is_64_bit() && low & Bar::PREFETCHABLE != 0;
            bar.base = if goes_high && function.kind == Kind::Npu {
                self.mem64.align(NPU_ALIGNMENT)?;
                let base = self.mem64.take(bar.size)?;
                self.mem64.align(NPU_ALIGNMENT)?;
                base
            } else if goes_high && bar.size > LARGE {
                self.mem64.take(bar.size)?
            } else {
                self.mem32.take(bar.size)?
            };
            self.write(function, register, bar.base as u32);
            if bar.is_64_bit() {
                self.write(function, register + 4, (bar.base >> 32) as u32);
            }
            if let Some(place) = function.bars.get_mut(index) {
                *place = Some(bar);
            }
            index += if bar.is_64_bit() { 2 } else { 1 };
        }
        Ok(())
    }

    /// Places everything behind a bridge.
    fn below(&mut self, bridge: &Function, depth: u32) -> Result<(), Error> {
        if depth == MAX_DEPTH || self.pci.last_bus >= self.bus_limit {
            return Err(Error::TooManyBuses);
        }
        self.pci.last_bus += 1;
        let secondary = self.pci.last_bus;
        let numbers = u32::from(bridge.id.bus()) | u32::from(secondary) << 8;
        // Up to the last bus while what is behind is not known; no other bridge has a number beyond `secondary` yet.
        self.write(bridge, PRIMARY_BUS, numbers | u32::from(self.bus_limit) << 16);
        let first = self.pci.functions.len();
        let mem32 = self.mem32.align(BRIDGE_ALIGNMENT)?;
        let mem64 = self.mem64.align(BRIDGE_ALIGNMENT)?;
        self.bus(secondary, depth + 1)?;
        let mem32 = mem32..self.mem32.align(BRIDGE_ALIGNMENT)?;
        let mem64 = mem64..self.mem64.align(BRIDGE_ALIGNMENT)?;

        let numbers = numbers | u32::from(self.pci.last_bus) << 16;
        self.config.write(bridge.id, SUBORDINATE_BUS, 1, self.pci.last_bus.into());
        let mut holds = self.read(bridge, PRIMARY_BUS) & 0x00ff_ffff == numbers;
        let base_and_limit = |range: &core::ops::Range<u64>| {
            (range.start >> 16) as u32 & 0xfff0 | (range.end - 1) as u32 & 0xfff0_0000
        };
        if !mem32.is_empty() {
            self.write(bridge, MEMORY_WINDOW, base_and_limit(&mem32));
        }
        if !mem64.is_empty() {
            let upper = |address: u64| (address >> 32) as u32;
            self.write(bridge, PREFETCHABLE_WINDOW, base_and_limit(&mem64));
            self.write(bridge, PREFETCHABLE_BASE_UPPER, upper(mem64.start));
            self.write(bridge, PREFETCHABLE_LIMIT_UPPER, upper(mem64.end - 1));
            holds &= self.read(bridge, PREFETCHABLE_WINDOW) & 0xfff0_fff0 == base_and_limit(&mem64)
                && self.read(bridge, PREFETCHABLE_BASE_UPPER) == upper(mem64.start)
                && self.read(bridge, PREFETCHABLE_LIMIT_UPPER) == upper(mem64.end - 1);
        }
        if !holds {
            return Err(Error::Bridge);
        }
        let has = |kind| self.pci.functions.iter().skip(first).any(|function| function.kind == kind);
        if has(Kind::Npu) && has(Kind::Endpoint) { Err(Error::NpuShared) } else { Ok(()) }
    }
}
