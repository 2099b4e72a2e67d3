//! Tables of the interrupt controller, aimed at memory of a partition.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use hyp_abi::manifest::layout;

use super::{Outcome, Scene};
use crate::child::{self, Access, End};
use crate::sys::{Act, Mapping};

/// The first redistributor of QEMU's `virt` machine.
const REDISTRIBUTOR: u64 = 0x080A_0000;
const CTLR: u64 = REDISTRIBUTOR;
const PROPBASER: u64 = REDISTRIBUTOR + 0x70;
const PENDBASER: u64 = REDISTRIBUTOR + 0x78;
const ENABLE_LPIS: u64 = 1;
/// 14 bits of interrupt numbers: LPIs from 8192 to 16383.
const ID_BITS: u64 = 13;
/// LPIs that are enabled: their pending bits are those of 32 bytes.
const LPIS: usize = 256;
/// Group 1, in the middle of priorities, enabled.
const ENABLED: u8 = 0xA1;
/// Until the host has taken them all.
const PATIENCE: Duration = Duration::from_secs(2);

/// The pending table of LPIs is a partition's page: what is there comes out as interrupts, and each that is taken clears a
/// bit.
pub fn lpi_tables(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.partition()?;
    let pending = partition.page(layout::HEAP)?;
    ensure!(pending.is_multiple_of(1 << 16), "the heap does not lie as a pending table must");
    let properties = scene.host.allocate(2)?;
    scene.host.module.map(properties, 2)?.write(0, &[ENABLED; LPIS]);
    let wide = |address, value| Access::device_write(address, 8, value);
    let attempt = child::access(&[
        wide(PROPBASER, properties | ID_BITS),
        wide(PENDBASER, pending),
        Access::device_write(CTLR, 4, ENABLE_LPIS),
        Access { address: PENDBASER, mapping: Mapping::Device, act: Act::Read(8) },
        Access::device_read(CTLR),
    ])?;
    let End::Values(values) = attempt else { bail!("the redistributor aborts: {attempt:?}") };
    let &[base, control] = values.as_slice() else { bail!("{values:x?}") };
    let start = Instant::now();
    let mut damage = 0;
    while damage == 0 && start.elapsed() < PATIENCE {
        damage = partition.damage(&scene.secret)?;
    }
    child::access(&[Access::device_write(CTLR, 4, 0)])?;
    match (base & !0xFFFF, control & ENABLE_LPIS, damage) {
        (0, 0, 0) => Ok(Outcome::Blocked("there are no tables".into())),
        (_, ENABLE_LPIS, 1..) => Ok(Outcome::Succeeded("interrupts change the partition's memory".into())),
        _ => bail!("pending table {base:#x}, control {control:#x}, {damage} copies of the secret changed"),
    }
}
