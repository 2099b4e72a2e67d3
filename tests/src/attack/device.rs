//! Devices that read and write memory for whoever may talk to them, and the trusted ones.
//!
//! The addresses are those of QEMU's `virt` machine: the device tree that the host gets does not have them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use hyp_abi::PAGE_SIZE;
use nix::sys::signal::Signal::SIGSEGV;
use serde_json::json;

use super::{Outcome, Scene};
use crate::child::{self, Access};
use crate::knob::{Knob, allow_device};
use crate::report::ask;

pub(super) const SMMU: u64 = 0x0905_0000;
const FW_CFG: u64 = 0x0902_0000;
const TRUSTED_UART: u64 = 0x0904_0000;
const VIRTIO_MMIO: u64 = 0x0A00_0000;
const VIRTIO_SLOTS: u64 = 32;
const VIRTIO_SLOT_SIZE: u64 = 0x200;
/// How long a device may take over a request that it accepted.
const DEVICE_TIME: Duration = Duration::from_secs(30);

/// When the allow-list is left out: lets the host have the pages of a device.
pub(super) fn allow(scene: &Scene<'_>, base: u64, size: u64) -> Result<()> {
    if !scene.is_without {
        return Ok(());
    }
    for page in (base..base + size).step_by(PAGE_SIZE as usize) {
        // One that an earlier attack was allowed answers an error, and is there.
        let _ = allow_device(&scene.host.module, page);
    }
    debug_assert_eq!(Knob::DeviceAllowList.name(), "DeviceAllowList");
    Ok(())
}

/// Has the kernel talk to a device; none if it aborted.
pub(super) fn talk(scene: &Scene<'_>, accesses: &[Access]) -> Result<Option<Vec<u64>>> {
    scene.aborts(SIGSEGV, || child::access(accesses))
}

/// fw_cfg's DMA writes into a partition.
pub fn dma_by_fw_cfg(scene: &Scene<'_>) -> Result<Outcome> {
    // QEMU docs/specs/fw_cfg.rst: control (select the signature, read), length, address; all big-endian.
    const SELECT_AND_READ: u32 = 8 | 2;
    let mut partition = scene.partition()?;
    allow(scene, FW_CFG, PAGE_SIZE)?;
    let request = scene.host.allocate(1)?;
    let mut bytes = Vec::new();
    bytes.extend(SELECT_AND_READ.to_be_bytes());
    bytes.extend(4u32.to_be_bytes());
    bytes.extend(partition.heap_page()?.to_be_bytes());
    scene.host.module.map(request, 1)?.write(0, &bytes);
    let talked = talk(scene, &[Access::device_write(FW_CFG + 16, 8, request.swap_bytes())])?;
    match (talked, partition.damage(&scene.secret)?) {
        (None, 0) => Ok(Outcome::Blocked("the device is out of reach".into())),
        (Some(_), 1) => Ok(Outcome::Succeeded("the device wrote into the partition".into())),
        (talked, damage) => bail!("{talked:x?}, {damage} copies of the secret changed"),
    }
}

// Registers of a virtio-mmio device, legacy interface (virtio 1.2, 4.2.4).
const DEVICE_ID: u64 = 0x08;
const GUEST_PAGE_SIZE: u64 = 0x28;
const QUEUE_SELECT: u64 = 0x30;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_ALIGN: u64 = 0x3C;
const QUEUE_PFN: u64 = 0x40;
const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
/// ID of an entropy source.
const ENTROPY: u64 = 4;

/// A virtio device's DMA writes into a partition.
pub fn dma_by_virtio_mmio(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.partition()?;
    let target = partition.heap_page()?;
    allow(scene, VIRTIO_MMIO, VIRTIO_SLOTS * VIRTIO_SLOT_SIZE)?;
    let slots: Vec<u64> = (0..VIRTIO_SLOTS).map(|slot| VIRTIO_MMIO + slot * VIRTIO_SLOT_SIZE).collect();
    let identify: Vec<Access> = slots.iter().map(|slot| Access::device_read(slot + DEVICE_ID)).collect();
    let Some(ids) = talk(scene, &identify)? else {
        for page in (PAGE_SIZE..VIRTIO_SLOTS * VIRTIO_SLOT_SIZE).step_by(PAGE_SIZE as usize) {
            let read = talk(scene, &[Access::device_read(VIRTIO_MMIO + page + DEVICE_ID)])?;
            ensure!(read.is_none(), "a virtio-mmio device is in reach");
        }
        return Ok(Outcome::Blocked("the devices are out of reach".into()));
    };
    let Some((slot, _)) = slots.iter().zip(&ids).find(|(_, id)| **id == ENTROPY) else {
        bail!("this machine has no entropy device")
    };
    // A queue of 8: descriptors and the driver's ring in the first page, the device's ring in the second.
    let queue = scene.host.allocate(2)?;
    let window = scene.host.module.map(queue, 2)?;
    let mut descriptor = target.to_le_bytes().to_vec();
    descriptor.extend(16u32.to_le_bytes());
    descriptor.extend([2, 0, 0, 0]);
    window.write(0, &descriptor);
    window.write(8 * 16, &[0, 0, 1, 0, 0, 0]);
    let write = |register: u64, value: u64| Access::device_write(slot + register, 4, value);
    let started = talk(
        scene,
        &[
            write(STATUS, 0),
            write(STATUS, 1),
            write(STATUS, 3),
            write(GUEST_PAGE_SIZE, PAGE_SIZE),
            write(QUEUE_SELECT, 0),
            write(QUEUE_SIZE, 8),
            write(QUEUE_ALIGN, PAGE_SIZE),
            write(QUEUE_PFN, queue / PAGE_SIZE),
            write(STATUS, 7),
            write(QUEUE_NOTIFY, 0),
        ],
    )?;
    ensure!(started.is_some(), "the device is out of reach all at once");
    let start = Instant::now();
    while window.word(PAGE_SIZE as usize) >> 16 & 0xFFFF == 0 {
        ensure!(start.elapsed() < DEVICE_TIME, "the device does not answer");
        std::thread::yield_now();
    }
    match partition.damage(&scene.secret)? {
        0 => bail!("the device wrote nothing"),
        _ => Ok(Outcome::Succeeded("the device wrote into the partition".into())),
    }
}

/// The host turns the SMMU's abort into a bypass.
pub fn smmu_registers(scene: &Scene<'_>) -> Result<Outcome> {
    const GBPA: u64 = SMMU + 0x44;
    const ABORT: u64 = 1 << 20;
    const UPDATE: u64 = 1 << 31;
    allow(scene, SMMU, PAGE_SIZE)?;
    let bypass = [Access::device_write(GBPA, 4, UPDATE), Access::device_read(GBPA)];
    let Some(values) = talk(scene, &bypass)? else {
        let read = talk(scene, &[Access::device_read(GBPA)])?;
        ensure!(read.is_none(), "the SMMU can be read");
        return Ok(Outcome::Blocked("the SMMU is out of reach".into()));
    };
    ensure!(values[0] & ABORT == 0, "the SMMU still aborts: {:#x}", values[0]);
    // Back to what it was.
    talk(scene, &[Access::device_write(GBPA, 4, UPDATE | ABORT)])?;
    Ok(Outcome::Succeeded("every device may go past the SMMU".into()))
}

/// The host writes a line into the trusted log.
pub fn forged_trusted_log(scene: &Scene<'_>) -> Result<Outcome> {
    let line = format!("forged {}", scene.secret.hex());
    allow(scene, TRUSTED_UART, PAGE_SIZE)?;
    let accesses: Vec<Access> =
        line.bytes().map(|byte| Access::device_write(TRUSTED_UART, 4, byte.into())).collect();
    let talked = talk(scene, &accesses)?;
    let found = ask(json!({"ask": "log", "text": line}))?["found"] == true;
    match (talked, found) {
        (None, false) => Ok(Outcome::Blocked("the trusted serial port is out of reach".into())),
        (Some(_), true) => Ok(Outcome::Succeeded("the trusted log has a line of the host's".into())),
        (talked, found) => bail!("{talked:?}, in the log: {found}"),
    }
}
