//! Devices that lie. Whatever they do, the drivers return in bounded time, panic never, read and write nothing but the
//! shared pages and the caller's buffers, and put nothing there but what was to be sent.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flexserve::virtio::Devices;
use flexserve::virtio::block::Block as BlockDevice;
use flexserve::virtio::socket::{Socket, StreamEnd};
use guest_abi::virtio::{Region, SLOT_SCRATCH, SLOT_STREAM, STREAM_PORT};
use guest_llm::virtio::Fault;
use hyp_abi::manifest::layout;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::{Bell, Block, SECRET, Stream, World, file};

const BLOCKS: usize = 64;

/// A lie, told after the honest devices did their work.
#[derive(Clone, Debug)]
enum Lie {
    /// None.
    Honest,
    /// The devices are not even asked.
    Silence,
    /// Adds to a queue's used index.
    UsedIndex(u16),
    /// Another id in the last used element.
    UsedId(u32),
    /// Another length there.
    UsedLength(u32),
    /// A descriptor points elsewhere.
    Descriptor { index: usize, ipa: u64 },
    /// A word of a page for queues and buffers.
    Word { page: usize, word: usize, value: u64 },
    /// A 32-bit register of the device.
    Register { offset: usize, value: u32 },
    /// A field of the last packet sent to the driver.
    Packet { offset: usize, value: u32 },
}

/// The device of one slot, and what it does next.
struct Liar {
    region: &'static Region,
    devices: Devices,
    slot: usize,
    lies: Vec<Lie>,
    steps: Rc<Cell<u64>>,
}

impl Liar {
    /// The pool's page at an IPA that the driver named.
    fn page(&self, registers: &[std::sync::atomic::AtomicU32; 2]) -> Option<usize> {
        let ipa = u64::from(registers[0].load(Ordering::Relaxed));
        let ipa = ipa | u64::from(registers[1].load(Ordering::Relaxed)) << 32;
        let page = ipa.checked_sub(guest_abi::virtio::dma_ipa(layout::VIRTIO))? / 4096;
        (page < self.region.pages.len() as u64).then_some(page as usize)
    }

    fn act(&mut self) {
        self.steps.set(self.steps.get() + 1);
        let lie = self.lies.pop().unwrap_or(Lie::Honest);
        if !matches!(lie, Lie::Silence) {
            // The honest device may well find the driver's queues broken by an earlier lie.
            let _ = self.devices.service();
        }
        let queues = &self.region.devices[self.slot].queues;
        for queue in queues {
            let Some(used) = self.page(&queue.used) else { continue };
            let used = &self.region.pages[used].0;
            let index = (used[0].load(Ordering::Relaxed) >> 16) as u16;
            let last = usize::from(index.wrapping_sub(1) % 16);
            let size = (queue.size.load(Ordering::Relaxed) as usize).clamp(1, 16);
            let last = last % size;
            match lie {
                Lie::UsedIndex(add) => {
                    used[0].store(u64::from(index.wrapping_add(add)) << 16, Ordering::Relaxed);
                }
                Lie::UsedId(id) => {
                    let word = used[last].load(Ordering::Relaxed);
                    used[last].store(word & 0xFFFF_FFFF | u64::from(id) << 32, Ordering::Relaxed);
                }
                Lie::UsedLength(length) => {
                    let word = used[last + 1].load(Ordering::Relaxed);
                    used[last + 1].store(word >> 32 << 32 | u64::from(length), Ordering::Relaxed);
                }
                Lie::Descriptor { index, ipa } => {
                    if let Some(page) = self.page(&queue.descriptors) {
                        self.region.pages[page].0[2 * index].store(ipa, Ordering::Relaxed);
                    }
                }
                Lie::Packet { offset, value } => {
                    // The header is at the start of the buffer that the last used id names.
                    let id = (used[last].load(Ordering::Relaxed) >> 32) as usize % 16;
                    let Some(table) = self.page(&queue.descriptors) else { continue };
                    let ipa = self.region.pages[table].0[2 * id].load(Ordering::Relaxed);
                    let parts = [(ipa as u32).into(), ((ipa >> 32) as u32).into()];
                    if let Some(page) = self.page(&parts) {
                        let word = &self.region.pages[page].0[offset / 8];
                        let old = word.load(Ordering::Relaxed);
                        let shift = offset % 8 * 8;
                        let new = old & !(0xFFFF_FFFF << shift) | u64::from(value) << shift;
                        word.store(new, Ordering::Relaxed);
                    }
                }
                _ => {}
            }
        }
        match lie {
            Lie::Word { page, word, value } => {
                self.region.pages[page % self.region.pages.len()].0[word].store(value, Ordering::Relaxed);
            }
            Lie::Register { offset, value } => {
                let page = std::ptr::from_ref(&self.region.devices[self.slot])
                    .cast::<std::sync::atomic::AtomicU32>();
                // SAFETY: the offset is inside the page of registers, which is made of atomics.
                unsafe { &*page.add(offset % 1024) }.store(value, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

fn lie() -> impl Strategy<Value = Lie> {
    let small = prop_oneof![0..40_u32, any::<u32>(), Just(u32::MAX), Just(4096), Just(4097), Just(44)];
    // No lie may look like a secret.
    let small = small.prop_filter("secret", |value| value.to_ne_bytes().iter().all(|byte| *byte != SECRET));
    let word = any::<u64>().prop_filter("secret", |value| !value.to_ne_bytes().contains(&SECRET));
    prop_oneof![
        12 => Just(Lie::Honest),
        1 => Just(Lie::Silence),
        1 => prop_oneof![1..4_u16, Just(u16::MAX), any::<u16>()].prop_map(Lie::UsedIndex),
        1 => small.clone().prop_map(Lie::UsedId),
        2 => small.clone().prop_map(Lie::UsedLength),
        1 => (0..16_usize, prop_oneof![Just(layout::HEAP), Just(layout::MODEL), Just(0), word.clone()])
            .prop_map(|(index, ipa)| Lie::Descriptor { index, ipa }),
        2 => (0..40_usize, 0..512_usize, word).prop_map(|(page, word, value)| Lie::Word { page, word, value }),
        2 => (0..0x60_usize, small.clone()).prop_map(|(offset, value)| Lie::Register { offset: offset / 4, value }),
        1 => (0x80..0xC8_usize, small.clone()).prop_map(|(offset, value)| Lie::Register { offset, value }),
        3 => (prop_oneof![Just(24_usize), Just(28), Just(32), Just(36), Just(40), Just(16), Just(20), Just(0), Just(8)], small)
            .prop_map(|(offset, value)| Lie::Packet { offset, value }),
    ]
}

/// A buffer in the middle of private memory.
struct Guarded(Vec<u8>);

impl Guarded {
    const MARGIN: usize = 64;

    fn new(size: usize) -> Self {
        Guarded(vec![SECRET; size + 2 * Self::MARGIN])
    }

    fn inside(&mut self) -> &mut [u8] {
        let end = self.0.len() - Self::MARGIN;
        &mut self.0[Self::MARGIN..end]
    }

    fn assert_intact(&self) {
        let (margin, end) = (Self::MARGIN, self.0.len() - Self::MARGIN);
        assert!(self.0[..margin].iter().chain(&self.0[end..]).all(|byte| *byte == SECRET));
    }
}

fn bell(world: &World, slot: usize, devices: Devices, lies: Vec<Lie>, steps: &Rc<Cell<u64>>) -> Bell {
    let mut liar = Liar { region: world.region, devices, slot, lies, steps: steps.clone() };
    Bell::new(move || liar.act())
}

/// Uses a block device until it is given up, several times.
fn use_block(world: &World, lies: Vec<Lie>, steps: &Rc<Cell<u64>>) {
    let mut devices = Devices::new(world.memory.clone());
    devices.add(SLOT_SCRATCH, BlockDevice::new(file(&[1; BLOCKS * 512]), false).unwrap());
    let bell = bell(world, SLOT_SCRATCH, devices, lies, steps);
    for round in 0..4_u64 {
        let Ok(mut block) = Block::new(&world.region.devices[SLOT_SCRATCH], bell.clone()) else { continue };
        for step in 0..8 {
            let first = (round * 8 + step) % BLOCKS as u64;
            let mut guarded = Guarded::new(1536);
            let done = match step % 3 {
                0 => block.read(first, guarded.inside()),
                1 => {
                    guarded.inside().fill(step as u8);
                    block.write(first, guarded.inside())
                }
                _ => block.flush(),
            };
            guarded.assert_intact();
            if !matches!(done, Ok(()) | Err(Fault::Refused | Fault::Range)) {
                // Given up, for good, and at once.
                let before = steps.get();
                assert_eq!(block.read(0, &mut [SECRET; 512]), done.map(drop));
                assert_eq!(steps.get(), before);
                break;
            }
        }
    }
}

/// The same with a stream.
fn use_stream(world: &World, lies: Vec<Lie>, steps: &Rc<Cell<u64>>) {
    let (socket, end) = Socket::new();
    let mut devices = Devices::new(world.memory.clone());
    devices.add(SLOT_STREAM, socket);
    let bell = bell(world, SLOT_STREAM, devices, lies, steps);
    for _ in 0..3 {
        let slot = &world.region.devices[SLOT_STREAM];
        if let Ok(stream) = Stream::connect(slot, STREAM_PORT, bell.clone()) {
            // Its end is the device being given up, or the other end.
            let _: Result<(), Fault> = talk(stream, &end, &bell);
        }
    }
}

fn talk(mut stream: Stream, end: &StreamEnd, bell: &Bell) -> Result<(), Fault> {
    let mut heard = [0; 4096];
    for step in 0..8_u8 {
        let mut guarded = Guarded::new(1000);
        guarded.inside().fill(step);
        let sent = stream.write(guarded.inside());
        guarded.assert_intact();
        sent?;
        end.read(&mut heard);
        end.write(&[step; 3000]);
        guest_llm::virtio::Doorbell::ring(bell);
        stream.look()?;
        let mut guarded = Guarded::new(700);
        let read = stream.read(guarded.inside());
        guarded.assert_intact();
        read?;
    }
    Ok(())
}

fn run(cases: u32, least_steps: u64, act: fn(&World, Vec<Lie>, &Rc<Cell<u64>>)) {
    let (world, steps) = (World::zeroed(), Rc::new(Cell::new(0)));
    let mut runner = TestRunner::new_with_rng(
        Config { cases, failure_persistence: None, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let result = runner.run(&prop::collection::vec(lie(), 4..60), |lies| {
        world.restart();
        act(&world, lies, &steps);
        world.assert_no_secret();
        assert_eq!(world.pages_in_use(), 0, "pages of the pool leak");
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(steps.get() >= least_steps, "only {} steps", steps.get());
}

#[test]
fn a_lying_block_device_gets_nothing() {
    run(1000, 100_000, use_block);
}

#[test]
fn a_lying_socket_device_gets_nothing() {
    run(1000, 100_000, use_stream);
}

/// Deals with one lie in a block device's answer to a read.
fn fault_of(lies: &[Lie]) -> Result<(), Fault> {
    let world = World::zeroed();
    let mut devices = Devices::new(world.memory.clone());
    devices.add(SLOT_SCRATCH, BlockDevice::new(file(&[1; BLOCKS * 512]), false).unwrap());
    let steps = Rc::new(Cell::new(0));
    // Reset twice, features, ready: then comes the answer.
    let mut told: Vec<Lie> = lies.iter().rev().cloned().collect();
    told.extend([const { Lie::Honest }; 4]);
    let bell = bell(&world, SLOT_SCRATCH, devices, told, &steps);
    let mut block = Block::new(&world.region.devices[SLOT_SCRATCH], bell)?;
    let mut buffer = [SECRET; 1024];
    let done = block.read(0, &mut buffer);
    assert!(done.is_err() || buffer == [1; 1024]);
    world.assert_no_secret();
    done
}

#[test]
fn each_lie_has_its_fault() {
    let cases = [
        (vec![], Ok(())),
        (vec![Lie::UsedIndex(1)], Err(Fault::Index)),
        (vec![Lie::UsedIndex(u16::MAX - 1)], Err(Fault::Index)),
        (vec![Lie::UsedId(1)], Err(Fault::Token)),
        (vec![Lie::UsedId(0x1_0000)], Err(Fault::Token)),
        (vec![Lie::UsedId(u32::MAX)], Err(Fault::Token)),
        (vec![Lie::UsedLength(1026)], Err(Fault::Length)),
        (vec![Lie::UsedLength(u32::MAX)], Err(Fault::Length)),
        // Too little is as wrong: the rest of the buffer would be nobody's.
        (vec![Lie::UsedLength(512)], Err(Fault::Length)),
        // Nothing comes of descriptors: they are never read back.
        (vec![Lie::Descriptor { index: 1, ipa: layout::HEAP }], Ok(())),
        (vec![Lie::Silence; 2000], Err(Fault::Silent)),
        // Taking the answer back keeps the driver waiting, until it stops.
        (vec![Lie::UsedIndex(u16::MAX)], Err(Fault::Silent)),
    ];
    for (lies, expected) in cases {
        let short = format!("{:?}", &lies[..lies.len().min(3)]);
        assert_eq!(fault_of(&lies), expected, "{short}");
    }
}

/// A device that lies already about what it is.
fn found_with(slot: usize, offset: usize, value: u32) -> Option<Fault> {
    let world = World::zeroed();
    let mut devices = Devices::new(world.memory.clone());
    devices.add(SLOT_SCRATCH, BlockDevice::new(file(&[1; 512]), false).unwrap());
    devices.add(SLOT_STREAM, Socket::new().0);
    let steps = Rc::new(Cell::new(0));
    let lies = vec![Lie::Register { offset: offset / 4, value }; 8];
    let bell = bell(&world, slot, devices, lies, &steps);
    let page = &world.region.devices[slot];
    match slot {
        SLOT_STREAM => Stream::connect(page, STREAM_PORT, bell).err(),
        _ => Block::new(page, bell).err(),
    }
}

#[test]
fn what_a_device_says_of_itself_is_checked() {
    for (slot, offset, value, fault) in [
        (SLOT_SCRATCH, 0x00, 0, Fault::Absent),
        (SLOT_SCRATCH, 0x04, 2, Fault::Absent),
        (SLOT_SCRATCH, 0x08, 19, Fault::Absent),
        (SLOT_SCRATCH, 0x14, 1, Fault::Features),
        (SLOT_SCRATCH, 0x14, 2, Fault::Features),
        // It takes FEATURES_OK back, or wants a reset.
        (SLOT_SCRATCH, 0x18, 3, Fault::Features),
        (SLOT_SCRATCH, 0x18, 0x4F, Fault::Features),
        (SLOT_SCRATCH, 0x20, 8, Fault::Config),
        // A capacity beyond all addresses.
        (SLOT_SCRATCH, 0x44, 0x8000_0000, Fault::Config),
        (SLOT_STREAM, 0x24, 4, Fault::Config),
        (SLOT_STREAM, 0x40, 2, Fault::Config),
        (SLOT_STREAM, 0x44, 1, Fault::Config),
        (SLOT_STREAM, 0x1C, 77, Fault::Silent),
    ] {
        assert_eq!(found_with(slot, offset, value), Some(fault), "slot {slot}, {offset:#x}: {value:#x}");
    }
}

#[test]
fn a_capacity_that_changes_is_not_seen() {
    let world = World::zeroed();
    let mut devices = Devices::new(world.memory.clone());
    devices.add(SLOT_SCRATCH, BlockDevice::new(file(&[1; BLOCKS * 512]), false).unwrap());
    let lies: Vec<Lie> = [Lie::Honest, Lie::Register { offset: 0x10, value: 1_000_000 }]
        .into_iter()
        .flat_map(|lie| vec![lie; 4])
        .rev()
        .collect();
    let bell = bell(&world, SLOT_SCRATCH, devices, lies, &Rc::default());
    let mut block = Block::new(&world.region.devices[SLOT_SCRATCH], bell).unwrap();
    block.read(0, &mut [0; 512]).unwrap();
    assert_eq!(block.blocks(), BLOCKS as u64);
    assert_eq!(block.read(BLOCKS as u64, &mut [0; 512]), Err(Fault::Range));
}

#[test]
fn packets_that_lie_end_the_stream() {
    // Offsets in a packet's header: length, type, operation, credit.
    for (offset, value) in [
        (0, 7),
        (8, 2),
        (16, 2),
        (20, 2),
        (24, 5000),
        (24, u32::MAX),
        (28, 0x0001),
        (28, 0x0001_0001),
        (28, 0x0002_0001),
        (28, 0x0009_0001),
        (28, 0xFFFF_0001),
        (36, 10),
        (40, 4_000_000),
        (40, u32::MAX),
    ] {
        let world = World::zeroed();
        let (socket, end) = Socket::new();
        let mut devices = Devices::new(world.memory.clone());
        devices.add(SLOT_STREAM, socket);
        let lies = Rc::new(RefCell::new(false));
        let mut liar =
            Liar { region: world.region, devices, slot: SLOT_STREAM, lies: vec![], steps: Rc::default() };
        let lying = lies.clone();
        let bell = Bell::new(move || {
            if *lying.borrow() {
                liar.lies.push(Lie::Packet { offset, value });
            }
            liar.act();
        });
        let mut stream =
            Stream::connect(&world.region.devices[SLOT_STREAM], STREAM_PORT, bell.clone()).unwrap();
        stream.write_all(&[7; 100]).unwrap();
        end.write(b"hello");
        *lies.borrow_mut() = true;
        guest_llm::virtio::Doorbell::ring(&bell);
        assert_eq!(stream.look(), Err(Fault::Protocol), "offset {offset}: {value:#x}");
        assert_eq!(stream.write(b"x"), Err(Fault::Protocol));
        world.assert_no_secret();
    }
}

/// The other CPU: changes every shared word all the time, also between two looks of the driver at one.
#[test]
fn a_device_that_never_stops_lying_gets_nothing() {
    let world = World::zeroed();
    let stop = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let region = world.region;
        let (stop, done) = (&stop, &done);
        scope.spawn(move || {
            let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
            while !stop.load(Ordering::Relaxed) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let page = (seed >> 40) as usize % 16;
                let word = (seed >> 20) as usize % 48;
                // Small numbers, so that some of them are possible.
                let value = seed >> 33 & 0x0003_0003_0003_0003;
                region.pages[page].0[word].store(value, Ordering::Relaxed);
                if seed & 7 == 0 {
                    region.devices[SLOT_SCRATCH].config[(seed >> 50) as usize % 16]
                        .store((seed >> 56) as u8 & 0x7F, Ordering::Relaxed);
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        let steps = Rc::new(Cell::new(0));
        for _ in 0..30 {
            // Not `restart`: the region is not this thread's alone.
            use_block(&world, vec![], &steps);
            use_stream(&world, vec![], &steps);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(done.load(Ordering::Relaxed) > 1000);
    world.assert_no_secret();
    assert_eq!(world.pages_in_use(), 0);
}

/// The other way round: registers, rings, descriptors and packets of a partition that lies.
#[test]
fn devices_survive_a_hostile_partition() {
    let world = World::zeroed();
    let (mut seed, mut served, mut refused) = (1_u64, 0, 0);
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..600 {
        world.restart();
        let (socket, end) = Socket::new();
        let mut devices = Devices::new(world.memory.clone());
        devices.add(SLOT_SCRATCH, BlockDevice::new(file(&[1; BLOCKS * 512]), false).unwrap());
        devices.add(SLOT_STREAM, socket);
        let slot = if random(2) == 0 { SLOT_SCRATCH } else { SLOT_STREAM };
        let page = &world.region.devices[slot];
        let ipa = |page: u64| guest_abi::virtio::dma_ipa(layout::VIRTIO) + page * 4096;
        let announce = |status: u32| {
            page.status.store(status, Ordering::Relaxed);
            page.sequence.fetch_add(1, Ordering::Release);
        };
        announce(0);
        devices.service().unwrap();
        page.driver_features[1].store(3, Ordering::Relaxed);
        for (number, queue) in (0..).zip(&page.queues) {
            queue.ready.store(1, Ordering::Relaxed);
            queue.size.store(16 >> random(4), Ordering::Relaxed);
            let registers = [&queue.descriptors, &queue.available, &queue.used];
            for (place, registers) in (0..).zip(registers) {
                // Mostly sound, so that the device starts.
                let ipa = if random(30) == 0 { random(u64::MAX) } else { ipa(number * 3 + place) };
                registers[0].store(ipa as u32, Ordering::Relaxed);
                registers[1].store((ipa >> 32) as u32, Ordering::Relaxed);
            }
        }
        announce(15);
        for _ in 0..20 {
            for _ in 0..12 {
                let (page, index) = (random(12) as usize, random(12) * random(2));
                let word = &world.region.pages[page].0[index as usize];
                // Descriptors are on every third page from the first, available rings on the next.
                let kind = if random(4) == 0 { random(5) } else { [index % 2, 2, 3][page % 3] };
                let value = match kind {
                    // A descriptor of a page, its length, flags and successor; an index; a header of a packet.
                    0 => ipa(random(130)),
                    1 => [16, 44, 512, random(5000)][random(4) as usize] | random(4) << 32 | random(4) << 48,
                    2 => random(4) << 16 | random(4) << 32 | random(16) << 48,
                    3 => random(4) | random(4) << 32,
                    _ => random(u64::MAX),
                };
                word.store(value, Ordering::Relaxed);
            }
            match devices.service() {
                Ok(moved) => served += u32::from(moved),
                Err(error) => {
                    assert_eq!(error.code, flexserve::error::Code::Partition);
                    refused += 1;
                }
            }
            end.write(&[1; 100]);
            assert!(end.read(&mut [0; 4096]) <= 4096);
        }
    }
    assert!(served > 300 && refused > 200, "{served} services, {refused} refusals: nothing was tried");
}
