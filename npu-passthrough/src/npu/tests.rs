use super::*;
use crate::pci::fake::{FakeConfig, FakeFunction};
use crate::pci::{Pci, Windows};
use core::cell::Cell;
use std::vec::Vec;

/// cfg_type, BAR, offset, length: as QEMU lays a virtio function out.
const STRUCTURES: [[u32; 4]; 4] =
    [[1, 4, 0, 0x1000], [3, 4, 0x1000, 0x1000], [4, 4, 0x2000, 0x1000], [2, 4, 0x3000, 0x1000]];

fn function(structures: &[[u32; 4]]) -> FakeFunction {
    let mut function = FakeFunction::endpoint(0x18, 0x1042_1af4, &[(0x1000, 0), (0x1000, 0)]);
    function.bars[4] = (0x4000, 0xc);
    function.set32(4, 0x0010_0000);
    function.registers[0x34] = 0x40;
    for (index, [cfg_type, bar, offset, length]) in structures.iter().enumerate() {
        let at = 0x40 + 0x14 * index;
        let next = if index + 1 < structures.len() { at + 0x14 } else { 0 };
        function.set32(at, 0x14_0009 | (next as u32) << 8 | cfg_type << 24);
        function.set32(at + 4, *bar);
        function.set32(at + 8, *offset);
        function.set32(at + 12, *length);
        function.set32(at + 16, 4);
    }
    function
}

fn find(function: FakeFunction) -> Result<Npu, Error> {
    let mut config = FakeConfig::new([function]);
    let windows = Windows {
        mem32: Window { base: 0x1000_0000, size: 0x1000_0000 },
        mem64: Window { base: 0x80_0000_1000, size: 4 << 30 },
    };
    let mut pci = Pci::EMPTY;
    pci.enumerate(&mut config, 0..=0, windows, |_, _| true).unwrap();
    Npu::find(&config, pci.npu().unwrap())
}

#[test]
fn the_structures_are_found() {
    let npu = find(function(&STRUCTURES)).unwrap();
    let expected = Layout {
        window: Window { base: 0x80_4000_0000, size: 0x4000 },
        common: 0,
        notify: 0x3000,
        notify_off_multiplier: 4,
        isr: 0x1000,
        device: 0x2000,
    };
    assert_eq!(*npu.layout(), expected);
    // The first of each type counts.
    let mut twice = STRUCTURES.to_vec();
    twice.push([1, 0, 0, 0x38]);
    assert_eq!(*find(function(&twice)).unwrap().layout(), expected);
}

#[test]
fn a_function_that_lies_is_refused() {
    let with = |index: usize, field: usize, value| {
        let mut structures = STRUCTURES;
        structures[index][field] = value;
        find(function(&structures)).err()
    };
    assert_eq!(with(0, 0, 5), Some(Error::Missing));
    assert_eq!(with(3, 0, 1), Some(Error::Missing));
    assert_eq!(with(0, 1, 2), Some(Error::OutsideBar), "no BAR there");
    assert_eq!(with(0, 1, 5), Some(Error::OutsideBar), "the upper half");
    assert_eq!(with(0, 1, 0xff), Some(Error::OutsideBar));
    assert_eq!(with(1, 1, 0), Some(Error::OutsideBar));
    assert_eq!(with(2, 2, 0x3004), Some(Error::OutsideBar));
    assert_eq!(with(2, 2, u32::MAX), Some(Error::OutsideBar));
    assert_eq!(with(2, 3, u32::MAX), Some(Error::OutsideBar));
    assert_eq!(with(0, 3, 0x37), Some(Error::OutsideBar));
    assert_eq!(with(1, 3, 0), Some(Error::OutsideBar));
    let mut structures = STRUCTURES;
    structures[0][2..].copy_from_slice(&[2, 0x38]);
    assert_eq!(find(function(&structures)).err(), Some(Error::Unaligned));
    structures[0] = [1, 0, 0, 0x38];
    assert_eq!(find(function(&structures)).err(), Some(Error::SeveralBars));
}

#[test]
fn lists_without_an_end_end() {
    let mut looping = function(&STRUCTURES[..3]);
    looping.registers[0x40 + 0x28 + 1] = 0x40;
    assert_eq!(find(looping).err(), Some(Error::Missing));
    for pointer in [0, 1, 0x3c, 0xf0, 0xfc, 0xff] {
        let mut outside = function(&STRUCTURES);
        outside.registers[0x34] = pointer;
        assert_eq!(find(outside).err(), Some(Error::Missing), "{pointer:#x}");
    }
    // The last place whose capability is all in the first 256 bytes, and the one after it.
    for (place, error) in [(0xec, None), (0xf0, Some(Error::Missing))] {
        let mut last = function(&STRUCTURES);
        let common = last.registers[0x40..0x54].to_vec();
        last.registers[place..place + 0x14].copy_from_slice(&common);
        last.registers[place + 1] = 0x54 | 3; // the lower two bits do not count
        last.registers[0x34] = place as u8 | 3;
        assert_eq!(find(last).err(), error, "{place:#x}");
    }
    let mut none = function(&STRUCTURES);
    none.set32(4, 0);
    assert_eq!(find(none).err(), Some(Error::Missing));
    // Any bytes at all.
    let mut state = 1u32;
    for _ in 0..2000 {
        let mut random = function(&STRUCTURES);
        for _ in 0..8 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            random.registers[0x34 + (state >> 8) as usize % 0xcc] = (state >> 24) as u8;
        }
        let _ = find(random);
    }
}

/// The common configuration of a device with two queues, with a reset that may leave things.
struct FakeNpu {
    bytes: [u8; 0x38],
    driver_features: [u32; 2],
    queues: [[u8; 0x20]; 2],
    isr: Cell<u8>,
    queue_count: u16,
    /// Reads until the status is 0.
    delay: Cell<u32>,
    /// What a reset does not clear: 0 nothing, 1 features (as QEMU's), 2 queue_enable.
    forgetful: u32,
}

impl FakeNpu {
    /// After use by an owner.
    fn used() -> Self {
        let mut fake = Self {
            bytes: [0xff; 0x38],
            driver_features: [0xffff_ffff; 2],
            queues: [[0x5a; 0x20]; 2],
            isr: Cell::new(1),
            queue_count: 2,
            delay: Cell::new(3),
            forgetful: 1,
        };
        fake.bytes[0x14] = 0xf;
        fake.bytes[0x08..0x0c].fill(0);
        fake.bytes[0x16..0x18].fill(0);
        fake
    }

    fn selected(&self) -> Option<usize> {
        let queue = u16::from_le_bytes([self.bytes[0x16], self.bytes[0x17]]);
        (queue < self.queue_count.min(2)).then_some(queue.into())
    }

    fn load(&self, offset: u64, width: usize) -> u64 {
        assert!(offset.is_multiple_of(width as u64));
        let offset = offset as usize;
        let select = self.bytes[0x08] as usize;
        let bytes: Vec<u8> = match offset {
            0x0c => self.driver_features.get(select).copied().unwrap_or(0).to_le_bytes().to_vec(),
            0x12 => self.queue_count.to_le_bytes().to_vec(),
            0x14 if self.bytes[0x14] == 0 && self.delay.get() > 0 => {
                self.delay.set(self.delay.get() - 1);
                std::vec![0xf]
            }
            0x18..0x38 => match self.selected() {
                Some(queue) => self.queues[queue][offset - 0x18..][..width].to_vec(),
                None => std::vec![0; width],
            },
            0x1000 => std::vec![self.isr.take()],
            _ => self.bytes[offset..offset + width].to_vec(),
        };
        bytes.iter().take(width).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn save(&mut self, offset: u64, value: u64, width: usize) {
        assert!(offset.is_multiple_of(width as u64));
        let select = self.bytes[0x08] as usize;
        match offset as usize {
            0x0c => {
                if let Some(features) = self.driver_features.get_mut(select) {
                    *features = value as u32;
                }
            }
            0x1c => panic!("only reset disables a queue"),
            at @ 0x18..0x38 => {
                let queue = self.selected().expect("no such queue");
                self.queues[queue][at - 0x18..][..width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
            at => {
                self.bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
                if at == 0x14 && value == 0 {
                    let (select, device_select) = (self.bytes[0x08], self.bytes[0x00]);
                    self.bytes = [0; 0x38];
                    (self.bytes[0x08], self.bytes[0x00]) = (select, device_select);
                    self.bytes[0x10..0x12].fill(0xff);
                    for queue in &mut self.queues {
                        let enable = queue[4];
                        *queue = [0; 0x20];
                        queue[2..4].fill(0xff);
                        if self.forgetful == 2 {
                            queue[4] = enable;
                        }
                    }
                }
            }
        }
    }
}

impl Mmio for FakeNpu {
    fn read(&self, offset: u64, width: u8) -> u32 {
        self.load(offset, width.into()) as u32
    }

    fn write(&mut self, offset: u64, width: u8, value: u32) {
        self.save(offset, value.into(), width.into());
    }
}

#[test]
fn a_reset_leaves_nothing_of_the_last_owner() {
    let npu = find(function(&STRUCTURES)).unwrap();
    let mut fake = FakeNpu::used();
    assert_eq!(npu.is_pristine(&mut fake), Ok(false));
    assert_eq!(npu.reset(&mut fake), Ok(()));
    assert_eq!(npu.is_pristine(&mut fake), Ok(true));
    assert_eq!(fake.driver_features, [0, 0]);
    assert_eq!((fake.bytes[0x00], fake.bytes[0x08], fake.bytes[0x16]), (0, 0, 0), "selectors");
    fake.isr.set(1);
    assert_eq!(npu.is_pristine(&mut fake), Ok(false));
    // Each trace is seen.
    for (offset, value) in [(0x00, 1), (0x0c, 1), (0x10, 0), (0x20, 1), (0x34, 1)] {
        let mut fake = FakeNpu::used();
        npu.reset(&mut fake).unwrap();
        let width = if offset == 0x10 { 2 } else { 4 };
        fake.save(offset, value, width);
        assert_eq!(npu.is_pristine(&mut fake), Ok(false), "{offset:#x}");
    }
}

#[test]
fn an_npu_that_does_not_let_go_is_reported() {
    let npu = find(function(&STRUCTURES)).unwrap();
    let mut fake = FakeNpu::used();
    fake.delay.set(u32::MAX);
    assert_eq!(npu.reset(&mut fake), Err(Error::NotReset));
    let mut fake = FakeNpu::used();
    fake.forgetful = 2;
    assert_eq!(npu.reset(&mut fake), Err(Error::NotPristine));
    let mut fake = FakeNpu::used();
    fake.queue_count = 0xffff;
    assert_eq!(npu.reset(&mut fake), Err(Error::TooManyQueues));
}
