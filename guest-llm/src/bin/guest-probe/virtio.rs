//! Acts with virtio devices: the product's drivers, used on command.

use alloc::vec::Vec;

use guest_abi::session::probe;
use guest_abi::virtio::{Page, Region, SLOT_STREAM};
use guest_llm::memory::{self, Host, SharedPool};
use guest_llm::virtio::block::{BLOCK, Block};
use guest_llm::virtio::stream::Stream;
use guest_llm::virtio::{Doorbell, Fault, PATIENCE};
use hyp_abi::ffa::error::NO_DATA;
use sha2::{Digest, Sha256};

use crate::calls::Random;

/// Bytes read or written at a time.
const STEP: usize = 64 * BLOCK;

/// The devices, once they are used.
#[derive(Default)]
pub struct Virtio {
    region: Option<&'static Region>,
}

impl Virtio {
    /// Commits one act; returns the status for the report.
    pub fn commit(&mut self, kind: u32, args: [u64; 4], values: &mut [u64; 4]) -> i32 {
        // For the drivers; the heap region is the probe's own.
        static HEAP: [Page; 48] = [const { Page::new() }; 48];
        if self.region.is_none() {
            memory::start_allocator_on(&HEAP);
            self.region = match memory::take_virtio() {
                Ok(region) => region,
                Err(status) => return status.0,
            };
        }
        let Some(region) = self.region else { return NO_DATA };
        let done = match kind {
            probe::VIRTIO_ECHO => echo(region, args, values),
            _ => blocks(region, kind == probe::VIRTIO_WRITE, args, values),
        };
        done.map_or_else(|fault| probe::VIRTIO_FAULT + fault as i32, |()| 0)
    }
}

fn blocks(
    region: &'static Region,
    write: bool,
    [slot, first, count, seed]: [u64; 4],
    values: &mut [u64; 4],
) -> Result<(), Fault> {
    let page = usize::try_from(slot).ok().and_then(|slot| region.devices.get(slot)).ok_or(Fault::Absent)?;
    let mut block = Block::<SharedPool, Host>::new(page, Host)?;
    let (mut random, mut hash) = (Random(seed), Sha256::new());
    let mut buffer = buffer()?;
    let mut done = 0;
    while done < count {
        let blocks = (count - done).min((STEP / BLOCK) as u64);
        let part = buffer.get_mut(..blocks as usize * BLOCK).ok_or(Fault::Range)?;
        let at = first.checked_add(done).ok_or(Fault::Range)?;
        if write {
            part.chunks_mut(8)
                .for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()[..word.len()]));
            block.write(at, part)?;
        } else {
            block.read(at, part)?;
        }
        hash.update(part);
        done += blocks;
    }
    if write {
        block.flush()?;
    }
    *values = zerocopy::transmute!(<[u8; 32]>::from(hash.finalize()));
    Ok(())
}

fn buffer() -> Result<Vec<u8>, Fault> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(STEP).map_err(|_| Fault::Memory)?;
    buffer.resize(STEP, 0);
    Ok(buffer)
}

fn echo(region: &'static Region, [port, total, ..]: [u64; 4], values: &mut [u64; 4]) -> Result<(), Fault> {
    let page = region.devices.get(SLOT_STREAM).ok_or(Fault::Absent)?;
    let mut stream = Stream::<SharedPool, Host>::connect(page, port as u32, Host)?;
    let mut buffer = buffer()?;
    let mut patience = PATIENCE;
    while values[0] < total {
        stream.look()?;
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            patience = patience.checked_sub(1).ok_or(Fault::Silent)?;
            Host.ring();
            continue;
        }
        stream.write_all(buffer.get(..count).unwrap_or(&[]))?;
        values[0] += count as u64;
    }
    Ok(())
}
