//! A PCI Express hierarchy for tests: accesses are routed by the bus numbers that the bridges hold, and two functions
//! that answer to one routing ID are a panic.

use super::{BAR_COUNT, Config, RoutingId};
use core::cell::RefCell;
use std::vec::Vec;

/// A function of the fake.
#[derive(Clone)]
pub struct FakeFunction {
    /// The bridge it is behind, by its place in [`FakeConfig::functions`]; none on the root bus.
    pub parent: Option<usize>,
    /// Device number << 3 | function number.
    pub place: u8,
    /// Configuration space.
    pub registers: Vec<u8>,
    /// Size of each BAR register's region, and bits 3:0; for a 64-bit one the next is 0.
    pub bars: [(u64, u32); BAR_COUNT],
    /// The uppermost bits of BARs do not answer; a bridge has no 64-bit window.
    pub broken: bool,
}

impl FakeFunction {
    /// An endpoint on the root bus.
    pub fn endpoint(place: u8, vendor_and_device: u32, bars: &[(u64, u32)]) -> Self {
        let mut function = Self {
            parent: None,
            place,
            registers: std::vec![0; 4096],
            bars: [(0, 0); BAR_COUNT],
            broken: false,
        };
        function.set32(0, vendor_and_device);
        let mut index = 0;
        for &bar in bars {
            function.bars[index] = bar;
            index += if bar.1 & 5 == 4 { 2 } else { 1 };
        }
        function
    }

    /// A root port or bridge.
    pub fn bridge(place: u8) -> Self {
        let mut function = Self::endpoint(place, 0x000c_1b36, &[(0x1000, 0)]);
        function.registers[0x0b] = 6;
        function.registers[0x0e] = 1;
        function
    }

    /// The same, behind a bridge.
    pub fn behind(mut self, bridge: usize) -> Self {
        self.parent = Some(bridge);
        self
    }

    /// Sets a register, from outside.
    pub fn set32(&mut self, offset: usize, value: u32) {
        self.registers[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Reads a register, from outside.
    pub fn get32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.registers[offset..offset + 4].try_into().unwrap())
    }

    fn is_bridge(&self) -> bool {
        self.registers[0x0e] & 0x7f == 1
    }

    fn bar_count(&self) -> usize {
        if self.is_bridge() { 2 } else { BAR_COUNT }
    }

    /// The bits of the register at `offset` (a multiple of 4) that software can write, and those that are always set.
    fn writable(&self, offset: usize) -> (u32, u32) {
        let bar = (offset.wrapping_sub(0x10)) / 4;
        if offset >= 0x10 && bar < self.bar_count() {
            let stuck = if self.broken { 0xff00_0000 } else { 0 };
            let (size, flags) = self.bars[bar];
            return match bar.checked_sub(1).map(|lower| self.bars[lower]) {
                Some((size, flags)) if flags & 5 == 4 => ((!(size - 1) >> 32) as u32 & !stuck, 0),
                _ if size == 0 => (0, 0),
                _ => (!(size - 1) as u32 & !0xf & !stuck, flags),
            };
        }
        match (offset, self.is_bridge()) {
            (0x00 | 0x08, _) => (0, 0),
            (0x04, _) => (0x0547, 0),
            (0x0c, _) => (0xffff, 0),
            (0x18, true) => (0x00ff_ffff, 0),
            (0x1c, true) => (0xf0f0, 0),
            (0x20, true) => (0xfff0_fff0, 0),
            (0x28 | 0x2c, true) if self.broken => (0, 0),
            (0x24, true) => (0xfff0_fff0, 0x0001_0001),
            (0x34, _) => (0, 0),
            (0x3c, _) => (0xff, 0),
            _ => (u32::MAX, 0),
        }
    }

    /// Software writes the bits in `mask` of the register at `offset`.
    pub fn write(&mut self, offset: usize, mask: u32, value: u32) {
        let (writable, fixed) = self.writable(offset);
        let mask = mask & writable;
        self.set32(offset, self.get32(offset) & !mask | value & mask | fixed);
    }
}

/// The hierarchy.
#[derive(Default)]
pub struct FakeConfig {
    /// Bus number of the root bus.
    pub root_bus: u8,
    /// Functions; bridges before what is behind them.
    pub functions: Vec<FakeFunction>,
    /// Every write that reached a function.
    pub writes: RefCell<Vec<(RoutingId, u16, u8, u32)>>,
}

impl FakeConfig {
    /// A hierarchy on root bus 0.
    pub fn new(functions: impl IntoIterator<Item = FakeFunction>) -> Self {
        Self { functions: functions.into_iter().collect(), ..Self::default() }
    }

    /// The routing ID that the function at `index` has now.
    pub fn id(&self, index: usize) -> Option<RoutingId> {
        let function = &self.functions[index];
        let bus = match function.parent {
            None => self.root_bus,
            Some(bridge) => {
                let [above, secondary, subordinate, _] = self.functions[bridge].get32(0x18).to_le_bytes();
                let is_reached =
                    self.id(bridge)?.bus() == above && above < secondary && secondary <= subordinate;
                let mut outer = self.functions[bridge].parent;
                while let Some(index) = outer {
                    let [_, first, last, _] = self.functions[index].get32(0x18).to_le_bytes();
                    if !(first..=last).contains(&secondary) {
                        return None;
                    }
                    outer = self.functions[index].parent;
                }
                is_reached.then_some(secondary)?
            }
        };
        Some(RoutingId(u16::from(bus) << 8 | u16::from(function.place)))
    }

    fn find(&self, id: RoutingId) -> Option<usize> {
        let mut found = (0..self.functions.len()).filter(|&index| self.id(index) == Some(id));
        let first = found.next();
        assert_eq!(found.next(), None, "two functions answer to {id:x?}");
        first
    }

    /// Functions that claim a memory access of a CPU, and their BAR.
    pub fn claims(&self, address: u64) -> Vec<(usize, usize)> {
        let mut claims = Vec::new();
        for (index, function) in self.functions.iter().enumerate() {
            for bar in 0..function.bar_count() {
                let (size, flags) = function.bars[bar];
                let register = 0x10 + 4 * bar;
                let mut base = u64::from(function.get32(register) & !0xf);
                if flags & 5 == 4 {
                    base |= u64::from(function.get32(register + 4)) << 32;
                }
                let is_on = size > 0 && flags & 1 == 0 && function.get32(4) & 2 != 0;
                if is_on && address.wrapping_sub(base) < size && self.forwards(function.parent, address) {
                    claims.push((index, bar));
                }
            }
        }
        claims
    }

    fn forwards(&self, bridge: Option<usize>, address: u64) -> bool {
        let Some(bridge) = bridge else { return true };
        self.passes(bridge, address) && self.forwards(self.functions[bridge].parent, address)
    }

    /// Whether the bridge's windows hold the address.
    pub fn passes(&self, bridge: usize, address: u64) -> bool {
        let bridge = &self.functions[bridge];
        let range = |register: usize, base: u64, limit: u64| {
            let value = u64::from(bridge.get32(register));
            base << 32 | (value & 0xfff0) << 16..=limit << 32 | value & 0xfff0_0000 | 0xf_ffff
        };
        let upper = |register| u64::from(bridge.get32(register));
        bridge.get32(4) & 2 != 0
            && (range(0x20, 0, 0).contains(&address)
                || range(0x24, upper(0x28), upper(0x2c)).contains(&address))
    }
}

impl Config for FakeConfig {
    fn read(&self, id: RoutingId, offset: u16, width: u8) -> u32 {
        assert!(offset < 4096 && offset.is_multiple_of(width.into()));
        let Some(index) = self.find(id) else { return u32::MAX >> (32 - 8 * width) };
        let bytes = &self.functions[index].registers[usize::from(offset)..][..width.into()];
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    fn write(&mut self, id: RoutingId, offset: u16, width: u8, value: u32) {
        assert!(offset < 4096 && offset.is_multiple_of(width.into()));
        let Some(index) = self.find(id) else { return };
        self.writes.borrow_mut().push((id, offset, width, value));
        let shift = 8 * u32::from(offset & 3);
        let mask = (u32::MAX >> (32 - 8 * width)) << shift;
        self.functions[index].write(usize::from(offset & !3), mask, value << shift);
    }
}
