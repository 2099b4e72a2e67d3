//! A partition with virtio devices: the probe uses the product's drivers, this process is the device side.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use flexserve::image::Image;
use flexserve::virtio::block::Block;
use flexserve::virtio::socket::{Socket, StreamEnd};
use flexserve::virtio::{Devices, Memory};
use guest_abi::session::{SESSION_PAGES, probe};
use guest_abi::virtio::{
    DevicePage, QueueRegisters, SLOT_MODEL, SLOT_SCRATCH, SLOT_STREAM, STREAM_PORT, VIRTIO_PAGES,
};
use hyp_abi::PAGE_SIZE;
use hyp_abi::manifest::layout;
use sha2::{Digest, Sha256};
use vm_memory::{Bytes, GuestAddress};

use crate::host::Host;
use crate::partition::{Answer, Exit, PROBE_PATH, Partition};
use crate::report;
use crate::secret::Secret;

/// A model of the suite.
const MODEL: &str = "/usr/lib/flexserve/models/tiny-f16.gguf";
/// Bytes of a block.
const BLOCK: u64 = 512;

/// A probe with virtio pages.
pub struct Equipped<'h> {
    /// The partition.
    pub partition: Partition<'h>,
    /// Its shared region. Untouchable before the partition has shared it.
    pub memory: Memory,
    host: &'h Host,
}

impl<'h> Equipped<'h> {
    /// As [`Partition::load`].
    pub fn load(host: &'h Host, image: &Image, secret: Option<&Secret>) -> Result<Self> {
        let mut partition = Partition::create(host, image)?;
        partition.give_all(image)?;
        let address = partition.give_zero(layout::VIRTIO, VIRTIO_PAGES)?;
        let memory = host.module.map_virtio(address)?;
        host.measure(partition.id())?;
        partition.start()?;
        if let Some(secret) = secret {
            partition.fill(secret)?;
        }
        Ok(Equipped { partition, memory, host })
    }

    /// Has the probe commit an act; whenever it comes out, `serve` is the device side.
    pub fn act(
        &mut self,
        kind: u32,
        args: [u64; 4],
        serve: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Answer> {
        let (host, mut shared) = (self.host, false);
        self.partition.act_by(kind, args, &mut |partition| {
            let exit = partition.enter()?;
            if matches!(exit, Exit::Kick | Exit::Waiting) {
                if !shared {
                    let pages = host.partition_stats(partition.id())?.pages_shared;
                    shared = pages >= SESSION_PAGES + VIRTIO_PAGES;
                }
                if shared {
                    serve()?;
                }
            }
            Ok(exit)
        })
    }
}

/// Serves devices until nothing moves.
pub fn serve(devices: &mut Devices) -> Result<()> {
    while devices.service()? {}
    Ok(())
}

/// SHA-256, as the probe reports it.
pub fn hash(bytes: &[u8]) -> [u64; 4] {
    zerocopy::transmute!(<[u8; 32]>::from(Sha256::digest(bytes)))
}

/// A file of the host for scratch blocks.
pub fn scratch(blocks: u64) -> Result<File> {
    let path = "/tmp/scratch";
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).context(path)?;
    file.set_len(blocks * BLOCK)?;
    Ok(file)
}

/// The partition reads the model file, which the device rounds up to whole blocks.
fn model_by_block(host: &Host, image: &Image) -> Result<String> {
    let mut probe = Equipped::load(host, image, None)?;
    let mut devices = Devices::new(probe.memory.clone());
    devices.add(SLOT_MODEL, Block::new(File::open(MODEL).context(MODEL)?, true)?);
    let mut bytes = std::fs::read(MODEL)?;
    bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
    let blocks = bytes.len() as u64 / BLOCK;
    let args = [SLOT_MODEL as u64, 0, blocks, 0];
    let read = probe.act(probe::VIRTIO_READ, args, &mut || serve(&mut devices))?.values()?;
    ensure!(read == hash(&bytes), "the partition reads something else");
    let written =
        probe.act(probe::VIRTIO_WRITE, [SLOT_MODEL as u64, 0, 1, 1], &mut || serve(&mut devices))?;
    ensure!(written.values().is_err(), "the model can be written");
    ensure!(std::fs::read(MODEL)?.starts_with(&bytes[..512]), "the model was written");
    Ok(format!("{blocks} blocks, as the file has them; a write is refused"))
}

/// The partition writes blocks and reads them back; the file has them, and no others.
fn scratch_by_block(host: &Host, image: &Image) -> Result<String> {
    const BLOCKS: u64 = 300;
    let mut probe = Equipped::load(host, image, None)?;
    let file = scratch(BLOCKS + 100)?;
    let mut devices = Devices::new(probe.memory.clone());
    devices.add(SLOT_SCRATCH, Block::new(file.try_clone()?, false)?);
    let slot = SLOT_SCRATCH as u64;
    let mut act =
        |kind, seed| probe.act(kind, [slot, 50, BLOCKS, seed], &mut || serve(&mut devices))?.values();
    let written = act(probe::VIRTIO_WRITE, 7)?;
    let read = act(probe::VIRTIO_READ, 0)?;
    ensure!(written == read, "the partition reads what it did not write");
    let mut bytes = vec![0; ((BLOCKS + 100) * BLOCK) as usize];
    file.read_exact_at(&mut bytes, 0)?;
    let (before, rest) = bytes.split_at(50 * BLOCK as usize);
    let (inside, after) = rest.split_at((BLOCKS * BLOCK) as usize);
    ensure!(hash(inside) == written, "the file has something else");
    ensure!(before.iter().chain(after).all(|byte| *byte == 0), "the file changed elsewhere");
    let beyond = probe.act(probe::VIRTIO_READ, [slot, BLOCKS + 99, 2, 0], &mut || serve(&mut devices))?;
    ensure!(beyond.values().is_err(), "blocks behind the end can be read");
    Ok(format!("{BLOCKS} blocks written, flushed and read back"))
}

/// Bytes go to the partition and come back.
fn stream_echo(host: &Host, image: &Image) -> Result<String> {
    const TOTAL: usize = 300_000;
    let mut probe = Equipped::load(host, image, None)?;
    let (socket, end): (Socket, StreamEnd) = Socket::new();
    let mut devices = Devices::new(probe.memory.clone());
    devices.add(SLOT_STREAM, socket);
    let bytes: Vec<u8> = (0..TOTAL).map(|i| (i % 251) as u8).collect();
    let (mut sent, mut heard, mut buffer) = (0, Vec::new(), vec![0; 8192]);
    let mut host_side = || {
        serve(&mut devices)?;
        sent += end.write(&bytes[sent..TOTAL.min(sent + 20_000)]);
        loop {
            match end.read(&mut buffer) {
                0 => break,
                count => heard.extend_from_slice(&buffer[..count]),
            }
        }
        serve(&mut devices)
    };
    let args = [STREAM_PORT.into(), TOTAL as u64, 0, 0];
    let [echoed, ..] = probe.act(probe::VIRTIO_ECHO, args, &mut host_side)?.values()?;
    host_side()?;
    ensure!(echoed == TOTAL as u64 && heard == bytes, "{} bytes came back", heard.len());
    Ok(format!("{TOTAL} bytes went to the partition and came back"))
}

/// An address that the driver put into the registers of a queue.
pub fn queue_address(memory: &Memory, slot: usize, queue: usize, offset: usize) -> Result<GuestAddress> {
    let queues = std::mem::offset_of!(DevicePage, queues) + queue * size_of::<QueueRegisters>();
    let place = layout::VIRTIO + slot as u64 * PAGE_SIZE + (queues + offset) as u64;
    Ok(GuestAddress(memory.read_obj(GuestAddress(place))?))
}

/// One lie about the only answer in a used ring.
type Lie = fn(&Memory, u64) -> Result<()>;

/// A device that lies about its answers: the driver gives it up for the right reason, and takes no harm.
fn lying_device(host: &Host, image: &Image) -> Result<String> {
    fn set<const SIZE: usize>(memory: &Memory, at: u64, bytes: [u8; SIZE]) -> Result<()> {
        Ok(memory.write_slice(&bytes, GuestAddress(at))?)
    }
    // Faults by their position: see `guest_llm::virtio::Fault`.
    const LIES: [(&str, i32, Lie); 9] = [
        ("nothing", 0, |_, _| Ok(())),
        ("a used index that is ahead", 4, |memory, used| set(memory, used + 2, 2_u16.to_le_bytes())),
        ("a used index that went back", 4, |memory, used| set(memory, used + 2, 0xFFFF_u16.to_le_bytes())),
        ("a chain that was never posted", 5, |memory, used| set(memory, used + 4, 3_u32.to_le_bytes())),
        ("a chain beyond the queue", 5, |memory, used| set(memory, used + 4, 16_u32.to_le_bytes())),
        ("a chain beyond 16 bits", 5, |memory, used| set(memory, used + 4, 0x1_0000_u32.to_le_bytes())),
        ("a byte too many", 6, |memory, used| set(memory, used + 8, 514_u32.to_le_bytes())),
        ("all bytes there are", 6, |memory, used| set(memory, used + 8, u32::MAX.to_le_bytes())),
        ("a byte too few", 6, |memory, used| set(memory, used + 8, 512_u32.to_le_bytes())),
    ];
    let secret = Secret::new()?;
    let mut probe = Equipped::load(host, image, Some(&secret))?;
    let memory = probe.memory.clone();
    for (what, fault, lie) in LIES {
        let mut devices = Devices::new(memory.clone());
        devices.add(SLOT_SCRATCH, Block::new(scratch(8)?, false)?);
        let mut host_side = || {
            serve(&mut devices)?;
            let used = queue_address(&memory, SLOT_SCRATCH, 0, std::mem::offset_of!(QueueRegisters, used))?;
            if used.0 != 0 && memory.read_obj::<u16>(GuestAddress(used.0 + 2))? == 1 {
                lie(&memory, used.0)?;
            }
            Ok(())
        };
        let args = [SLOT_SCRATCH as u64, 0, 1, 0];
        let Answer::Report(report) = probe.act(probe::VIRTIO_READ, args, &mut host_side)? else {
            bail!("the partition does not survive {what}")
        };
        let expected = if fault == 0 { 0 } else { probe::VIRTIO_FAULT + fault };
        ensure!(report.status == expected, "{what}: {:#x}, expected {expected:#x}", report.status);
    }
    ensure!(probe.partition.damage(&secret)? == 0, "the partition's memory changed");
    let mut region = vec![0; (VIRTIO_PAGES * PAGE_SIZE) as usize];
    memory.read_slice(&mut region, GuestAddress(layout::VIRTIO))?;
    let mut words = region.chunks_exact(8).filter_map(|word| Some(u64::from_le_bytes(*word.first_chunk()?)));
    ensure!(!words.any(|word| secret.has_word(word)), "the secret is in the shared pages");
    Ok(format!("{} lies, each found out; the secret is whole and private", LIES.len() - 1))
}

type Test = fn(&Host, &Image) -> Result<String>;
/// The suite's tests.
const TESTS: [(&str, Test); 4] = [
    ("model-by-block", model_by_block),
    ("scratch-by-block", scratch_by_block),
    ("stream-echo", stream_echo),
    ("lying-device", lying_device),
];

/// Runs the wanted tests.
pub fn run() -> Result<()> {
    let wanted = report::wanted_tests()?;
    let host = Host::new()?;
    let image = Image::load(PROBE_PATH.as_ref())?;
    for (name, test) in TESTS {
        if !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        let result = test(&host, &image);
        let cleared = host.destroy_all();
        let (ok, detail) = match result.and_then(|detail| cleared.map(|_| detail)) {
            Ok(detail) => (true, detail),
            Err(error) => (false, format!("{error:#}")),
        };
        report::verdict(name, ok, &detail)?;
    }
    Ok(())
}
