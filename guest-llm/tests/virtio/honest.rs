//! Devices that keep the rules.

use flexserve::virtio::block::Block as BlockDevice;
use flexserve::virtio::socket::{Socket, StreamEnd, WINDOW};
use flexserve::virtio::{Device, Devices};
use guest_abi::virtio::{SLOT_MODEL, SLOT_SCRATCH, SLOT_STREAM, STREAM_PORT};
use guest_llm::virtio::Fault;

use crate::{Bell, Block, SECRET, Stream, World, file};

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i % 131) as u8).collect()
}

fn devices(world: &World, slot: usize, device: impl Device + 'static) -> Bell {
    let mut devices = Devices::new(world.memory.clone());
    devices.add(slot, device);
    Bell::serving(devices)
}

#[test]
fn a_model_is_read_whole() {
    let world = World::zeroed();
    // Not whole blocks, and several requests.
    let contents = pattern(700_001);
    let bell = devices(&world, SLOT_MODEL, BlockDevice::new(file(&contents), true).unwrap());
    let mut block = Block::new(&world.region.devices[SLOT_MODEL], bell).unwrap();
    assert_eq!((block.blocks(), block.is_read_only()), (1368, true));
    let mut buffer = vec![SECRET; 1368 * 512];
    block.read(0, &mut buffer).unwrap();
    assert_eq!(buffer[..contents.len()], contents);
    assert!(buffer[contents.len()..].iter().all(|byte| *byte == 0));
    block.read(1367, &mut buffer[..512]).unwrap();
    assert_eq!(buffer[..97], contents[1367 * 512..]);

    for (first, size) in [(1368, 512), (1367, 1024), (0, 511), (u64::MAX, 512), (u64::MAX / 512, 512)] {
        assert_eq!(block.read(first, &mut buffer[..size]), Err(Fault::Range), "{first} {size}");
    }
    // The device refuses, and goes on.
    assert_eq!(block.write(0, &[1; 512]), Err(Fault::Refused));
    block.flush().unwrap();
    block.read(0, &mut buffer[..512]).unwrap();
    world.assert_no_secret();
    drop(block);
    assert_eq!(world.pages_in_use(), 0);
}

#[test]
fn scratch_keeps_what_was_written() {
    let world = World::zeroed();
    let bell = devices(&world, SLOT_SCRATCH, BlockDevice::new(file(&vec![0; 600 * 512]), false).unwrap());
    let mut block = Block::new(&world.region.devices[SLOT_SCRATCH], bell.clone()).unwrap();
    assert!(!block.is_read_only());
    let contents = pattern(570 * 512);
    block.write(30, &contents).unwrap();
    block.flush().unwrap();
    let mut buffer = vec![SECRET; contents.len()];
    block.read(30, &mut buffer).unwrap();
    assert_eq!(buffer, contents);
    world.assert_no_secret();
    drop(block);
    // Another driver, after a reset.
    let mut block = Block::new(&world.region.devices[SLOT_SCRATCH], bell).unwrap();
    block.read(31, &mut buffer[..512]).unwrap();
    assert_eq!(buffer[..512], contents[512..1024]);
}

#[test]
fn two_devices_work_side_by_side() {
    let world = World::zeroed();
    let mut both = Devices::new(world.memory.clone());
    both.add(SLOT_MODEL, BlockDevice::new(file(&pattern(512)), true).unwrap());
    both.add(SLOT_SCRATCH, BlockDevice::new(file(&[0; 512]), false).unwrap());
    let bell = Bell::serving(both);
    let mut model = Block::new(&world.region.devices[SLOT_MODEL], bell.clone()).unwrap();
    let mut scratch = Block::new(&world.region.devices[SLOT_SCRATCH], bell).unwrap();
    let mut buffer = [0; 512];
    model.read(0, &mut buffer).unwrap();
    scratch.write(0, &buffer).unwrap();
    buffer.fill(0);
    scratch.read(0, &mut buffer).unwrap();
    assert_eq!(buffer[..], pattern(512));
}

#[test]
fn what_is_not_there_is_absent() {
    let world = World::zeroed();
    let bell = devices(&world, SLOT_MODEL, BlockDevice::new(file(&[]), true).unwrap());
    let slot = |slot: usize| &world.region.devices[slot];
    assert_eq!(Block::new(slot(SLOT_SCRATCH), bell.clone()).err(), Some(Fault::Absent));
    assert_eq!(Stream::connect(slot(SLOT_MODEL), 1, bell.clone()).err(), Some(Fault::Absent));
    let mut empty = Block::new(slot(SLOT_MODEL), bell).unwrap();
    assert_eq!((empty.blocks(), empty.read(0, &mut [0; 512])), (0, Err(Fault::Range)));
    let mut rings = 0;
    let silent = Bell::new(move || {
        rings += 1;
        assert!(rings <= 1000, "waiting is bounded");
    });
    assert_eq!(Block::new(slot(3), silent).err(), Some(Fault::Silent));
}

#[test]
fn nothing_is_taken_before_the_partition_connects() {
    let end = Socket::new().1;
    assert_eq!((end.room(), end.write(b"early"), end.is_connected()), (0, 0, false));
}

/// A stream, the host's end of it, and honest devices.
pub fn connected(world: &World) -> (Stream, StreamEnd, Bell) {
    let (socket, end) = Socket::new();
    let bell = devices(world, SLOT_STREAM, socket);
    let stream = Stream::connect(&world.region.devices[SLOT_STREAM], STREAM_PORT, bell.clone()).unwrap();
    assert!(end.is_connected() && stream.is_open());
    (stream, end, bell)
}

fn read_all(stream: &mut Stream, bell: &Bell, size: usize) -> Vec<u8> {
    use guest_llm::virtio::Doorbell;
    let mut all = Vec::new();
    let mut buffer = [SECRET; 1000];
    while all.len() < size {
        stream.look().unwrap();
        match stream.read(&mut buffer).unwrap() {
            0 => bell.ring(),
            count => all.extend(&buffer[..count]),
        }
    }
    all
}

#[test]
fn a_stream_carries_bytes_both_ways() {
    let world = World::zeroed();
    let (mut stream, end, bell) = connected(&world);
    let contents = pattern(50_000);
    stream.write_all(&contents).unwrap();
    let mut heard = vec![0; 60_000];
    assert_eq!(end.read(&mut heard), contents.len());
    assert_eq!(heard[..contents.len()], contents);
    assert_eq!(end.write(&contents), contents.len());
    assert_eq!(read_all(&mut stream, &bell, contents.len()), contents);
    world.assert_no_secret();
}

#[test]
fn much_more_than_the_window_passes() {
    let world = World::zeroed();
    let (socket, end) = Socket::new();
    let mut devices = Devices::new(world.memory.clone());
    devices.add(SLOT_STREAM, socket);
    let (mut echo, other) = (vec![0; 7777], end.clone());
    // The host echoes as much as it can, a bit at a time.
    let bell = Bell::new(move || {
        devices.service().unwrap();
        let count = other.read(&mut echo[..7777.min(other.room())]);
        assert_eq!(other.write(&echo[..count]), count);
        while devices.service().unwrap() {}
    });
    let mut stream = Stream::connect(&world.region.devices[SLOT_STREAM], STREAM_PORT, bell.clone()).unwrap();
    let contents = pattern(10 * WINDOW + 13);
    let (mut heard, mut sent) = (Vec::<u8>::new(), 0);
    let mut buffer = [0; 5000];
    while heard.len() < contents.len() {
        sent += stream.write(&contents[sent..contents.len().min(sent + 9000)]).unwrap();
        if !stream.look().unwrap() {
            guest_llm::virtio::Doorbell::ring(&bell);
        }
        let count = stream.read(&mut buffer).unwrap();
        heard.extend(&buffer[..count]);
    }
    assert_eq!(heard, contents);
}

#[test]
fn a_partition_that_does_not_read_stops_the_sender() {
    let world = World::zeroed();
    let (mut stream, end, bell) = connected(&world);
    for _ in 0..10 {
        guest_llm::virtio::Doorbell::ring(&bell);
        end.write(&pattern(WINDOW));
        stream.look().unwrap();
    }
    assert!(stream.available() <= WINDOW);
    // And a host that does not read stops the partition, which does not wait for ever.
    assert_eq!(stream.write_all(&pattern(3 * WINDOW)), Err(Fault::Silent));
    assert_eq!(end.available(), WINDOW);
}

#[test]
fn ends_are_noticed_after_the_last_byte() {
    let world = World::zeroed();
    let (mut stream, end, bell) = connected(&world);
    end.write(b"the end");
    end.hang_up();
    while stream.is_open() {
        guest_llm::virtio::Doorbell::ring(&bell);
        stream.look().unwrap();
    }
    let mut buffer = [0; 10];
    assert_eq!((stream.read(&mut buffer), &buffer[..7]), (Ok(7), &b"the end"[..]));
    assert_eq!(stream.read(&mut buffer), Ok(0));
    assert_eq!(stream.write(b"x"), Err(Fault::Closed));
    drop(stream);
    assert_eq!(world.pages_in_use(), 0);
    // A new connection works.
    let mut stream = Stream::connect(&world.region.devices[SLOT_STREAM], STREAM_PORT, bell.clone()).unwrap();
    stream.write_all(b"again").unwrap();
    assert_eq!((end.read(&mut buffer), &buffer[..5]), (5, &b"again"[..]));
    drop(stream);
    assert_eq!(
        Stream::connect(&world.region.devices[SLOT_STREAM], STREAM_PORT + 1, bell).err(),
        Some(Fault::Closed)
    );
}

#[test]
fn frames_pass_whole() {
    use flexserve::virtio::frames::Frames as HostFrames;
    use guest_abi::session::{Channel, MAX_FRAME, RingError};
    use guest_llm::virtio::frames::Frames;

    let world = World::zeroed();
    let (stream, end, bell) = connected(&world);
    let (mut here, mut there) = (Frames::new(stream), HostFrames(end.clone()));
    let mut buffer = vec![0; MAX_FRAME];
    assert_eq!(there.receive(&mut buffer), Ok(None));
    for (kind, size) in [(1, 0), (2, 1), (3, 5000), (4, MAX_FRAME)] {
        let payload = pattern(size);
        let (first, second) = payload.split_at(size / 3);
        assert_eq!(here.send(kind, first, second), Ok(true));
        assert_eq!(there.receive(&mut buffer), Ok(Some((kind, size))));
        assert_eq!(buffer[..size], payload);
        assert_eq!(there.send(kind, second, first), Ok(true));
        let mut received = Ok(None);
        for _ in 0..10 {
            guest_llm::virtio::Doorbell::ring(&bell);
            received = here.receive(&mut buffer);
            if received != Ok(None) {
                break;
            }
        }
        assert_eq!(received, Ok(Some((kind, size))));
        assert_eq!(buffer[..size], [second, first].concat());
    }
    assert_eq!(there.send(1, &vec![0; MAX_FRAME + 1], &[]), Err(RingError::TooLong));
    assert_eq!(here.send(1, &vec![0; MAX_FRAME], &[0]), Err(Fault::Protocol));
    // Half a frame, then the end.
    end.write(&[1, 0, 0, 0, 9, 0, 0, 0, 7]);
    guest_llm::virtio::Doorbell::ring(&bell);
    assert_eq!(here.receive(&mut buffer), Ok(None));
    end.hang_up();
    guest_llm::virtio::Doorbell::ring(&bell);
    assert_eq!(here.receive(&mut buffer), Err(Fault::Closed));
}

#[test]
fn frames_that_are_too_long_are_refused() {
    use guest_abi::session::Channel;
    use guest_llm::virtio::frames::Frames;

    let world = World::zeroed();
    let (stream, end, bell) = connected(&world);
    end.write(&[1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
    guest_llm::virtio::Doorbell::ring(&bell);
    assert_eq!(Frames::new(stream).receive(&mut [0; 16]), Err(Fault::Protocol));
}
