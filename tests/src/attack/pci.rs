//! The PCI bus, whose configuration decides who has which StreamID, and which registers are where.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use hyp_abi::PAGE_SIZE;
use hyp_abi::manifest::layout;

use super::dma::judge_word;
use super::{Outcome, Scene};
use crate::dma::{Edu, Ended, Function, MAGIC, Npu, PartitionSide, host_takes, page_of};
use crate::knob::Knob;
use crate::partition::{HEAP_PAGES, Partition};

const COMMAND: u64 = 0x04;
/// Base address registers 4 and 5, where virtio has its structures.
const BAR4: u64 = 0x20;
const BAR5: u64 = 0x24;
/// Secondary bus of a bridge.
const SECONDARY_BUS: u64 = 0x19;
/// The bus that the NPU is on.
const NPU_BUS: u32 = 1;
/// Identity that the NPU borrows.
const NPU_ID: u32 = 0x1069_1AF4;
const NOBODY: u32 = u32::MAX;
/// What a job of a partition's copies: one page of its heap to another.
const FROM: u64 = layout::HEAP;
const TO: u64 = layout::HEAP + 2 * PAGE_SIZE;
/// Where a partition has its queue: the last page of its heap.
pub(super) const QUEUE: u64 = layout::HEAP + (HEAP_PAGES - 1) * PAGE_SIZE;
/// Longer than the job takes.
const PATIENCE: Duration = Duration::from_secs(3);

/// A short job of a partition's; none: it does not end.
pub(super) fn work(npu: &mut Npu<PartitionSide<'_, '_>>) -> Result<Option<Ended>> {
    npu.submit_copy(FROM, TO, 64, 1)?;
    npu.wait(PATIENCE)
}

/// A partition that has the NPU and works with it, while the host does something to it: what that gave, and what came of
/// another job.
pub(super) fn while_owned<'h, T>(
    scene: &Scene<'h>,
    mut act: impl FnMut() -> Result<T>,
) -> Result<(Partition<'h>, T, bool)> {
    let mut partition = scene.partition()?;
    let mut npu = Npu::of_partition(&mut partition, QUEUE)?;
    let first = work(&mut npu)?;
    ensure!(first.is_some_and(|ended| ended.is_ok()), "the partition's job does not work: {first:?}");
    let found = act()?;
    let still = npu.queue.is_running()? && work(&mut npu)?.is_some_and(|ended| ended.is_ok());
    Ok((partition, found, still))
}

/// The registers of the host's device are moved to where the partition has the NPU's.
pub fn bar_over_npu(scene: &Scene<'_>) -> Result<Outcome> {
    let (npu, entropy) = (Npu::function()?, Function::open("0000:00:03.0")?);
    let place =
        |function: &Function| Ok::<_, anyhow::Error>([function.read(BAR4, 4)?, function.read(BAR5, 4)?]);
    let (own, target) = (place(&entropy)?, place(&npu)?);
    let move_to = |[low, high]: [u32; 2]| {
        entropy.write(BAR5, 4, high)?;
        entropy.write(BAR4, 4, low)
    };
    let mut partition = scene.partition()?;
    let mut npu = Npu::of_partition(&mut partition, QUEUE)?;
    ensure!(npu.magic()? == MAGIC, "the partition does not have the NPU");
    move_to(target)?;
    let magic = npu.magic()?;
    let works = magic == MAGIC && work(&mut npu)?.is_some_and(|ended| ended.is_ok());
    move_to(own)?;
    ensure!(place(&entropy)? == own, "the registers do not go back");
    match (magic, works) {
        (MAGIC, true) => Ok(Outcome::Blocked("the partition still has the NPU's registers".into())),
        (MAGIC, false) => bail!("the NPU does not work any more"),
        (other, _) => Ok(Outcome::Succeeded(format!("the partition has another device: {other:#x}"))),
    }
}

/// Another device gets the NPU's StreamID while a partition owns the NPU.
pub fn bus_number(scene: &Scene<'_>) -> Result<Outcome> {
    let port = Function::open("0000:00:05.0")?;
    let edu = Edu::second(scene.host)?;
    let own = port.read(SECONDARY_BUS, 1)?;
    let mut partition = scene.partition()?;
    port.write(SECONDARY_BUS, 1, NPU_BUS)?;
    // The switch comes after it, so that nothing is remembered of the device as another.
    let npu = Npu::of_partition(&mut partition, QUEUE).map(drop);
    // By the partition's address: the stream's tables are the partition's. Its answer would go there, too.
    let fetched = edu.fetch(layout::HEAP + HEAP_PAGES / 2 * PAGE_SIZE, 8);
    // The NPU goes, and with it whatever the SMMU knows of the other device as the NPU.
    partition.stop()?;
    let back = host_takes(scene.host);
    port.write(SECONDARY_BUS, 1, own)?;
    npu?;
    fetched?;
    back?;
    if scene.is_without {
        // The streams are attached anew, so that the SMMU forgets that the device was the NPU.
        for leave_out in [true, false] {
            Knob::StreamRoot.turn(&scene.host.module, leave_out)?;
        }
    }
    judge_word(scene, edu.buffered()?)
}

/// The host configures the NPU that a partition owns.
pub fn npu_configuration(scene: &Scene<'_>) -> Result<Outcome> {
    let function = Npu::function()?;
    let (identity, command) = (function.read(0, 4)?, function.read(COMMAND, 2)?);
    ensure!(identity == NPU_ID, "the host does not find the NPU while it has it: {identity:#x}");
    let (_partition, [identity, bar], works) = while_owned(scene, || {
        let found = [function.read(0, 4)?, function.read(BAR4, 4)?];
        // No memory, no bus mastering.
        function.write(COMMAND, 2, 0)?;
        function.write(BAR4, 4, 0)?;
        Ok(found)
    })?;
    function.write(BAR4, 4, bar)?;
    function.write(COMMAND, 2, command)?;
    match (identity, works) {
        (NOBODY, true) => Ok(Outcome::Blocked("the host finds no NPU, and stops nothing".into())),
        (NPU_ID, false) => Ok(Outcome::Succeeded("the host stops the partition's NPU".into())),
        (identity, works) => bail!("the host finds {identity:#x}; the NPU works: {works}"),
    }
}

/// A device is made to send its interrupts as writes to where the host says.
pub fn msi(scene: &Scene<'_>) -> Result<Outcome> {
    const MSI: u32 = 5;
    const DATA: u32 = 0x4D53;
    const RAISE: usize = 0x60;
    const ACKNOWLEDGE: usize = 0x64;
    let edu = Edu::first(scene.host)?;
    let (address, window) = page_of(scene.host)?;
    let capabilities = edu.function.capabilities(MSI)?;
    let [at] = capabilities[..] else { bail!("the device has {capabilities:?} for MSI") };
    let control = edu.function.read(at + 2, 2)?;
    for (register, width, value) in [
        (at + 4, 4, address as u32),
        (at + 8, 4, (address >> 32) as u32),
        (at + 12, 2, DATA),
        (at + 2, 2, control | 1),
    ] {
        edu.function.write(register, width, value)?;
    }
    let enabled = edu.function.read(at + 2, 2)? & 1 != 0;
    edu.registers.write(RAISE, 4, 1);
    edu.registers.write(ACKNOWLEDGE, 4, 1);
    let word = window.word(0);
    edu.function.write(at + 2, 2, control)?;
    match (enabled, word) {
        (false, 0) => Ok(Outcome::Blocked("the device sends no messages".into())),
        (true, word) if word == u64::from(DATA) => {
            Ok(Outcome::Succeeded("the device writes its message where the host says".into()))
        }
        (enabled, word) => bail!("enabled: {enabled}; the message is {word:#x}"),
    }
}
