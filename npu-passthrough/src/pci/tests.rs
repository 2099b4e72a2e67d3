use super::fake::{FakeConfig, FakeFunction};
use super::*;
use std::vec;
use std::vec::Vec;

const WINDOWS: Windows = Windows {
    mem32: Window { base: 0x1000_0000, size: 0x2eff_0000 },
    mem64: Window { base: 0x80_0000_0000, size: 0x80_0000_0000 },
};
const NPU_ID: u32 = 0x1051_1af4;
const NET_ID: u32 = 0x1041_1af4;
/// 4 KiB, 32 bits; 16 KiB, 64 bits, prefetchable: as virtio under QEMU.
const VIRTIO_BARS: [(u64, u32); 2] = [(0x1000, 0), (0x4000, 0xc)];

fn npu(place: u8) -> FakeFunction {
    FakeFunction::endpoint(place, NPU_ID, &VIRTIO_BARS)
}

fn net(place: u8) -> FakeFunction {
    FakeFunction::endpoint(place, NET_ID, &VIRTIO_BARS)
}

fn host_bridge() -> FakeFunction {
    let mut function = FakeFunction::endpoint(0, 0x0008_1b36, &[]);
    function.registers[0x0b] = 6;
    function
}

fn enumerate(config: &mut FakeConfig) -> Result<Pci, Error> {
    let last = config.root_bus + 7;
    let mut pci = Pci::EMPTY;
    let buses = config.root_bus..=last;
    pci.enumerate(config, buses, WINDOWS, |config, id| config.read(id, 0, 4) == NPU_ID)?;
    Ok(pci)
}

fn offset(id: RoutingId, register: u64) -> u64 {
    u64::from(id.0) << 12 | register
}

/// A host bridge, a device, the NPU, a port with a device, a port with a bridge with two devices.
fn machine() -> FakeConfig {
    let small = FakeFunction::endpoint(0, 0x11e8_1234, &[(16, 0), (32, 1), (256, 8)]);
    let large = FakeFunction::endpoint(8, 0x2222_1234, &[(0x8000_0000, 0xc), (0x10_0000, 4)]);
    FakeConfig::new([
        host_bridge(),
        net(1 << 3),
        npu(3 << 3),
        FakeFunction::bridge(4 << 3),
        net(0).behind(3),
        FakeFunction::bridge(5 << 3),
        FakeFunction::bridge(2 << 3).behind(5),
        small.behind(6),
        large.behind(6),
    ])
}

#[test]
fn everything_gets_a_place_of_its_own() {
    for root_bus in [0, 0x40] {
        let mut config = machine();
        config.root_bus = root_bus;
        // As left behind by other firmware: all BARs at one place, all decoding, bridges open.
        for function in &mut config.functions {
            function.write(0x04, u32::MAX, 7);
            for register in [0x10, 0x14, 0x20, 0x24, 0x30, 0x38] {
                function.write(register, u32::MAX, 0x1000_0001);
            }
        }
        for port in [3, 5] {
            config.functions[port].set32(0x18, 0x0007_0100 + 0x1_0101 * u32::from(root_bus));
        }
        let pci = enumerate(&mut config).unwrap();
        assert_eq!(pci.buses(), root_bus..=root_bus + 3);
        assert_eq!(pci.functions().len(), 9);
        for (index, function) in config.functions.iter().enumerate() {
            let id = config.id(index).unwrap();
            let found = pci.functions().iter().find(|found| found.id == id).unwrap();
            let kind = match index {
                0 | 3 | 5 | 6 => Kind::Bridge,
                2 => Kind::Npu,
                _ => Kind::Endpoint,
            };
            assert_eq!(found.kind, kind);
            assert_eq!(function.get32(4) & 1, 0, "I/O decode");
            assert_eq!(
                function.get32(4) & 4 != 0,
                index == 2 || matches!(index, 3 | 5 | 6),
                "{index} bus master"
            );
            for bar in 0..BAR_COUNT {
                let Some(assigned) = found.bars[bar] else { continue };
                for address in [assigned.base, assigned.base + assigned.size - 1] {
                    assert_eq!(config.claims(address), [(index, bar)], "{address:#x}");
                }
                let pages = |bar: Bar| bar.base >> 12..(bar.base + bar.size).div_ceil(4096);
                let all = pci.functions().iter().flat_map(|other| other.bars).flatten();
                let shares = |other: &Bar| {
                    let (other, this) = (pages(*other), pages(assigned));
                    other.start < this.end && this.start < other.end
                };
                assert_eq!(all.filter(shares).count(), 1, "a page of its own");
                for bridge in [3, 5, 6] {
                    let is_behind = function.parent == Some(bridge) || bridge == 5 && index >= 6;
                    assert_eq!(config.passes(bridge, assigned.base), is_behind, "{bridge} {index}");
                }
            }
            let mut writes = config.writes.borrow().clone();
            writes.retain(|write| write.0 == id);
            assert_eq!(writes[0], (id, 4, 2, 0), "quiet first");
            let rom = if matches!(index, 3 | 5 | 6) { 0x38 } else { 0x30 };
            assert_eq!(function.get32(rom), 0, "ROM");
        }
        let bars = |index: usize| {
            let id = config.id(index).unwrap();
            pci.functions().iter().find(|found| found.id == id).unwrap().bars
        };
        assert!(bars(8)[0].unwrap().base >= WINDOWS.mem64.base, "large");
        assert!(bars(8)[2].unwrap().base < 1 << 32, "not prefetchable");
        assert_eq!(bars(7).map(|bar| bar.is_some()), [true, false, true, false, false, false], "no I/O");
        let npu = pci.npu().unwrap();
        assert_eq!(npu.id, RoutingId::new(root_bus, 3, 0));
        let gib = npu.bars[1].unwrap().base >> 30;
        let mut bars = pci.functions().iter().flat_map(|function| function.bars).flatten();
        assert!(gib >= 512 && bars.all(|bar| bar == npu.bars[1].unwrap() || bar.base >> 30 != gib));
    }
}

#[test]
fn a_bridge_with_nothing_behind_it_is_shut() {
    let mut config = FakeConfig::new([FakeFunction::bridge(8)]);
    for (register, value) in
        [(0x04, 6), (0x1c, 0xf000), (0x20, 0xfff0_0000), (0x24, 0xfff0_0000), (0x2c, 0xff)]
    {
        config.functions[0].write(register, u32::MAX, value);
    }
    assert!(config.passes(0, 0x1234_0000) && config.passes(0, 0xff_0000_0000));
    enumerate(&mut config).unwrap();
    for address in [0, 0x1234_0000, 0xfff0_0000, 0xff_0000_0000] {
        assert!(!config.passes(0, address));
    }
    assert_eq!(config.functions[0].get32(0x1c) & 0xffff, 0xf0, "I/O");
}

#[test]
fn functions_of_a_device_are_found() {
    let mut first = net(2 << 3);
    first.registers[0x0e] = 0x80;
    let hidden = net(3 << 3 | 1); // no function 0
    let single = net(4 << 3);
    let mut config = FakeConfig::new([first, net(2 << 3 | 5), hidden, single, net(4 << 3 | 1)]);
    let pci = enumerate(&mut config).unwrap();
    assert_eq!(pci.functions().iter().map(|found| found.id.0).collect::<Vec<_>>(), [0x10, 0x15, 0x20]);
}

#[test]
fn an_npu_that_shares_is_refused() {
    let multi = |mut function: FakeFunction| {
        function.registers[0x0e] |= 0x80;
        function
    };
    let port = || FakeFunction::bridge(4 << 3);
    let cases = [
        (vec![host_bridge(), npu(8), net(16)], None),
        (vec![port(), npu(0).behind(0), net(16)], None),
        (vec![port(), FakeFunction::bridge(0).behind(0), npu(0).behind(1)], None),
        (vec![port(), npu(0).behind(0), net(8).behind(0)], Some(Error::NpuShared)),
        (
            vec![port(), FakeFunction::bridge(0).behind(0), npu(0).behind(1), net(8).behind(0)],
            Some(Error::NpuShared),
        ),
        (
            vec![port(), npu(8).behind(0), FakeFunction::bridge(0).behind(0), net(0).behind(2)],
            Some(Error::NpuShared),
        ),
        (vec![multi(npu(8)), net(9)], Some(Error::NpuShared)),
        (vec![multi(net(8)), npu(9)], Some(Error::NpuShared)),
        (vec![npu(8), npu(16)], Some(Error::SeveralNpus)),
        (vec![multi(npu(8)), npu(9)], Some(Error::SeveralNpus)),
    ];
    for (index, (functions, error)) in cases.into_iter().enumerate() {
        assert_eq!(enumerate(&mut FakeConfig::new(functions)).err(), error, "{index}");
    }
}

#[test]
fn what_cannot_be_placed_is_an_error() {
    let fails = |functions: Vec<FakeFunction>| enumerate(&mut FakeConfig::new(functions)).err();
    let endpoint = |bars: &[(u64, u32)]| FakeFunction::endpoint(8, NET_ID, bars);
    let many = (1..5).flat_map(|device| (0..8).map(move |function| device << 3 | function)).map(|place| {
        let mut function = net(place);
        function.registers[0x0e] = 0x80;
        function
    });
    assert_eq!(fails(many.clone().collect()), None);
    assert_eq!(fails(many.chain([net(5 << 3)]).collect()), Some(Error::TooManyFunctions));
    let chain = |depth| {
        let mut functions = vec![FakeFunction::bridge(8)];
        (1..depth).for_each(|index| functions.push(FakeFunction::bridge(0).behind(index - 1)));
        functions
    };
    assert_eq!(fails(chain(4)), None);
    assert_eq!(fails(chain(5)), Some(Error::TooManyBuses));
    let ports = |count: u8| (1..=count).map(|device| FakeFunction::bridge(device << 3)).collect();
    assert_eq!(fails(ports(7)), None);
    assert_eq!(fails(ports(8)), Some(Error::TooManyBuses));
    let mut cardbus = net(8);
    cardbus.registers[0x0e] = 2;
    assert_eq!(fails(vec![cardbus]), Some(Error::HeaderType));
    assert_eq!(fails(vec![endpoint(&[(1 << 31, 0)])]), Some(Error::OutOfSpace));
    assert_eq!(fails(vec![endpoint(&[(1 << 40, 0xc)])]), Some(Error::OutOfSpace));
    let mut broken = endpoint(&[(0x1000, 0)]);
    broken.broken = true;
    assert_eq!(fails(vec![broken]), Some(Error::Bar));
    let mut bridge = FakeFunction::bridge(8);
    let large = || FakeFunction::endpoint(0, NET_ID, &[(1 << 30, 0xc)]).behind(0);
    assert_eq!(fails(vec![bridge.clone(), large()]), None);
    bridge.broken = true;
    bridge.bars[0] = (0, 0);
    assert_eq!(fails(vec![bridge, large()]), Some(Error::Bridge));
    let mut no_upper_half = endpoint(&[]);
    no_upper_half.bars[5] = (0x1000, 4);
    assert_eq!(fails(vec![no_upper_half]), Some(Error::Bar));
    let windows = Windows { mem32: Window { base: 1 << 32, size: 1 }, ..WINDOWS };
    let mut pci = Pci::EMPTY;
    let error = pci.enumerate(&mut FakeConfig::new([]), 0..=0, windows, |_, _| false).err();
    assert_eq!(error, Some(Error::OutOfSpace));
}

/// Every write the host can make to every function, of values that would hurt.
fn attack(pci: &mut Pci, config: &mut FakeConfig, npu_is_hosts: bool) {
    let absent = [0x08, 0x0f, 0xff, 0x101, 0x400].map(|id| RoutingId(id + (u16::from(config.root_bus) << 8)));
    let ids = pci.functions().iter().map(|function| function.id).chain(absent).collect::<Vec<_>>();
    for id in ids {
        for register in 0..0x140 {
            for (width, value) in
                [(1, 0xff), (1, 0), (2, 0xffff), (2, 0), (4, 0xffff_fff0), (4, 0), (3, 0), (0, 0), (8, 0)]
            {
                let at = offset(id, register);
                pci.host_write(config, at, width, value, npu_is_hosts);
                pci.host_read(config, at, width, npu_is_hosts);
            }
        }
    }
    for at in [1 << 28, u64::MAX, 0xffff_0000_0000_0000] {
        assert_eq!(pci.host_write(config, at, 4, 0, true), Outcome::Ignored);
        assert_eq!(pci.host_read(config, at, 4, true), u32::MAX);
    }
}

#[test]
fn the_host_changes_nothing_but_its_own_choices() {
    let mut config = machine();
    let mut pci = enumerate(&mut config).unwrap();
    let before = config.functions.clone();
    attack(&mut pci, &mut config, true);
    for (index, (before, after)) in before.iter().zip(&config.functions).enumerate() {
        for register in (0..4096).step_by(4) {
            let changeable = match (register, index) {
                (0x04, 1 | 4 | 7 | 8) => 0x404,
                (0x04, 2) => 0x400,
                (0x3c, _) => 0xff,
                _ => 0,
            };
            let changed = before.get32(register) ^ after.get32(register);
            assert_eq!(changed & !changeable, 0, "function {index}, register {register:#x}");
        }
    }
    assert_eq!(config.functions[2].get32(4) & 6, 6, "the NPU's bus master and decode");
}

#[test]
fn an_npu_of_a_partition_is_absent_for_the_host() {
    let mut config = machine();
    let mut pci = enumerate(&mut config).unwrap();
    let id = pci.npu().unwrap().id;
    config.writes.borrow_mut().clear();
    attack(&mut pci, &mut config, false);
    assert!(config.writes.borrow().iter().all(|write| write.0 != id));
    for (width, ones) in [(1, 0xff), (2, 0xffff), (4, u32::MAX)] {
        assert_eq!(pci.host_read(&config, offset(id, 0), width, false), ones);
        assert_eq!(
            pci.host_read(&config, offset(RoutingId::new(0, 9, 0), 0), width, true),
            ones,
            "no function"
        );
        assert_eq!(
            pci.host_read(&config, offset(RoutingId::new(0, 1, 0), 1), width, true) == ones,
            width > 1
        );
    }
    assert_eq!(pci.host_read(&config, offset(id, 0), 4, true), NPU_ID);
}

#[test]
fn the_host_sizes_bars_without_moving_them() {
    let mut config = machine();
    let mut pci = enumerate(&mut config).unwrap();
    let id = RoutingId::new(0, 1, 0);
    let bars = pci.functions().iter().find(|found| found.id == id).unwrap().bars;
    config.writes.borrow_mut().clear();
    // As Linux does: decode off, all ones, read, write back, decode on.
    let mut write = |register, value| pci.host_write(&mut config, offset(id, register), 4, value, true);
    assert_eq!(write(4, 0), Outcome::Done);
    for register in [0x10, 0x14, 0x18, 0x1c, 0x30] {
        write(register, u32::MAX);
    }
    let read = |register| pci.host_read(&config, offset(id, register), 4, true);
    assert_eq!([0x10, 0x14, 0x18, 0x1c, 0x30].map(read), [0xffff_f000, 0xffff_c00c, u32::MAX, 0, 0]);
    assert_eq!(read(0x04) & 0xffff, 2, "still decoding");
    assert_eq!(pci.host_read(&config, offset(id, 0x12), 2, true), 0xffff);
    let mut write = |register, value| pci.host_write(&mut config, offset(id, register), 4, value, true);
    for register in [0x10, 0x14, 0x18] {
        write(register, 0x1234_0000);
    }
    let read = |register| pci.host_read(&config, offset(id, register), 4, true);
    let (first, second) = (bars[0].unwrap().base as u32, bars[1].unwrap().base as u32);
    assert_eq!([0x10, 0x14, 0x18].map(read), [first, second | 0xc, 0]);
    assert!(config.writes.borrow().iter().all(|write| write.1 == 4), "no BAR write reached the device");
    // An I/O BAR is not there.
    let small = config.id(7).unwrap();
    pci.host_write(&mut config, offset(small, 0x14), 4, u32::MAX, true);
    assert_eq!(pci.host_read(&config, offset(small, 0x14), 4, true), 0);
}

#[test]
fn offsets_count_from_the_first_bus() {
    let mut config = machine();
    config.root_bus = 0xfc;
    let mut pci = Pci::EMPTY;
    pci.enumerate(&mut config, 0xfc..=0xff, WINDOWS, |_, _| false).unwrap();
    assert_eq!(pci.host_read(&config, 1 << 15, 4, false), NET_ID);
    assert_eq!(pci.host_read(&config, 1 << 20, 4, false), NET_ID);
    assert_eq!(pci.host_read(&config, 0xfc << 20 | 1 << 15, 4, false), u32::MAX);
}

#[test]
fn the_command_register_takes_the_hosts_choices() {
    let mut config = machine();
    let mut pci = enumerate(&mut config).unwrap();
    let net = RoutingId::new(0, 1, 0);
    let npu = pci.npu().unwrap().id;
    let mut command = |id, register, width, value| {
        pci.host_write(&mut config, offset(id, register), width, value, true);
        pci.host_read(&config, offset(id, 4), 2, true)
    };
    assert_eq!(command(net, 4, 2, 0xffff), 0x406);
    assert_eq!(command(net, 4, 1, 0), 0x402);
    assert_eq!(command(net, 5, 1, 0), 0x002);
    assert_eq!(command(net, 4, 4, 0xffff_0007), 0x006);
    assert_eq!(command(net, 6, 2, 0xffff), 0x006, "status");
    assert_eq!(command(npu, 4, 2, 0), 0x006);
    assert_eq!(command(npu, 4, 2, 0x400), 0x406);
    assert_eq!(command(RoutingId::new(0, 4, 0), 4, 2, 0), 0x006, "bridge");
    pci.host_write(&mut config, offset(npu, 0x3c), 1, 0x55, true);
    pci.host_write(&mut config, offset(npu, 0x10), 4, u32::MAX, true);
    assert_eq!(pci.host_read(&config, offset(npu, 0x3c), 1, true), 0x55);
    for (choice, enabled, command) in
        [(0, true, 6), (0, false, 0x406), (0x400, true, 0x406), (0x400, false, 0x406)]
    {
        pci.host_write(&mut config, offset(npu, 4), 2, choice, true);
        pci.set_npu_interrupt(&mut config, enabled);
        assert_eq!(
            config.functions[2].get32(4) & 0xffff,
            command,
            "the host's choice {choice:#x}, {enabled}"
        );
    }
    pci.reset_npu(&mut config);
    let base = pci.npu().unwrap().bars[0].unwrap().base;
    assert_eq!(pci.host_read(&config, offset(npu, 0x10), 4, true), base as u32);
    assert_eq!(config.functions[2].get32(4) & 0xffff, 0x006);
    assert_eq!(config.functions[2].get32(0x3c), 0);
}

#[test]
fn every_check_is_needed() {
    let with = |skips, id: RoutingId, register, value, npu_is_hosts| {
        let mut config = machine();
        let mut pci = enumerate(&mut config).unwrap();
        pci.set_skips(skips);
        let before = config.read(id, register as u16, 4);
        let outcome = pci.host_write(&mut config, offset(id, register), 4, value, npu_is_hosts);
        (outcome, before != config.read(id, register as u16, 4), config)
    };
    let (npu, net) = (RoutingId::new(0, 3, 0), RoutingId::new(0, 1, 0));
    for (skip, id, register, value, npu_is_hosts) in [
        (Skips::BAR_MOVE, net, 0x10, 0x1800_0000, true),
        (Skips::NPU_CONFIG, npu, 4, 0, false),
        (Skips::NPU_CONFIG, npu, 0x10, 0x1800_0000, false),
        (Skips::MSI, net, 0x50, 0x8001_0000, true),
    ] {
        let (_, changed, _) = with(Skips::empty(), id, register, value, npu_is_hosts);
        assert!(!changed, "{skip:?} blocks");
        let (_, changed, _) = with(Skips::all() - skip, id, register, value, npu_is_hosts);
        assert!(!changed, "{skip:?} alone");
        let (outcome, changed, _) = with(skip, id, register, value, npu_is_hosts);
        assert!(changed && outcome == Outcome::Done, "{skip:?} left out");
    }
    // A port's secondary bus takes the root bus's number: the device behind it would have the StreamID 0.
    let port = RoutingId::new(0, 4, 0);
    let (outcome, changed, _) = with(Skips::empty(), port, 0x18, 0x0009_0900, true);
    assert_eq!((outcome, changed), (Outcome::Ignored, false));
    let (outcome, changed, config) = with(Skips::BUS_NUMBERS, port, 0x18, 0x0009_0900, true);
    assert_eq!((outcome, changed), (Outcome::Done, true));
    assert_eq!(config.id(4), Some(RoutingId::new(9, 0, 0)));
}
