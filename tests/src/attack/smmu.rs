//! The SMMU, in the host's hands: who programs it decides what devices reach (Arm IHI 0070).

use anyhow::{Context, Result, bail};
use hyp_abi::PAGE_SIZE;

use super::device::{SMMU, allow, talk};
use super::{Outcome, Scene};
use crate::child::Access;
use crate::dma::Edu;
use crate::sys::{Act, Mapping};

const CR0: u64 = SMMU + 0x20;
const GBPA: u64 = SMMU + 0x44;
const STRTAB_BASE: u64 = SMMU + 0x80;
const CMDQ_BASE: u64 = SMMU + 0x90;
const CMDQ_PROD: u64 = SMMU + 0x98;
const CMDQ_CONS: u64 = SMMU + 0x9C;
const SMMUEN: u64 = 1;
const CMDQEN: u64 = 1 << 3;
const GBPA_ABORT: u64 = 1 << 20;
const GBPA_UPDATE: u64 = 1 << 31;
/// RA, WA of a base.
const ALLOCATE: u64 = 1 << 62;
/// CMD_CFGI_ALL, CMD_TLBI_NSNH_ALL, CMD_SYNC: both words of each.
const COMMANDS: [u64; 6] = [0x04, 31, 0x30, 0, 0x46, 0];
/// Of the host's command queue, log2: enough for what is sent twice.
const QUEUE_LOG2: u64 = 3;
/// Of a level-1 entry of the stream table: 256 streams, as the hypervisor has it in STRTAB_BASE_CFG.
const SPAN: u64 = 9;
const EDU_STREAM: usize = 0x10;

fn write(register: u64, value: u64) -> Access {
    Access::device_write(register, if matches!(register, STRTAB_BASE | CMDQ_BASE) { 8 } else { 4 }, value)
}

fn read(register: u64) -> Access {
    let width = if matches!(register, STRTAB_BASE | CMDQ_BASE) { 8 } else { 4 };
    Access { address: register, mapping: Mapping::Device, act: Act::Read(width) }
}

/// From what registers hold: accesses that change them, and those that put them back.
type Change<'c> = &'c dyn Fn(&[u64]) -> Result<[Vec<Access>; 2]>;

/// Changes the SMMU, has a device write into a partition, and puts the SMMU back.
fn with_changed(scene: &Scene<'_>, change: Change<'_>) -> Result<Outcome> {
    let edu = Edu::first(scene.host)?;
    let mut partition = scene.partition()?;
    let page = partition.heap_page()?;
    allow(scene, SMMU, PAGE_SIZE)?;
    let registers = [CR0, STRTAB_BASE, CMDQ_BASE, CMDQ_PROD, CMDQ_CONS].map(read);
    let Some(before) = talk(scene, &registers)? else {
        edu.write(page, 8, 0xBAD)?;
        return match partition.damage(&scene.secret)? {
            0 => Ok(Outcome::Blocked("the SMMU is out of reach".into())),
            damage => bail!("{damage} copies of the secret changed"),
        };
    };
    // No call of the hypervisor from here on: it would use what is not its any more.
    let [change, restore] = change(&before)?;
    let changed = crate::child::access(&change)?;
    let written = edu.write(page, 8, 0xBAD);
    let restored = crate::child::access(&restore)?;
    written?;
    match partition.damage(&scene.secret)? {
        1 => Ok(Outcome::Succeeded("the device writes into the partition".into())),
        damage => bail!("{changed:?}, {restored:?}, {damage} copies of the secret changed"),
    }
}

/// A stream table of the host's own.
pub fn stream_table(scene: &Scene<'_>) -> Result<Outcome> {
    // Level-2 stream table of the root bus, level-1 stream table, level-1 page table, command queue.
    let base = scene.host.allocate(8)?;
    let [streams, root, queue] = [4, 5, 6].map(|page| page * PAGE_SIZE);
    let window = scene.host.module.map(base, 8)?;
    let put = |at: u64, word: u64| window.write(at as usize, &word.to_le_bytes());
    put(streams, base | SPAN);
    // A valid entry of stage 2 only: AArch64, 39 bits, 4 KiB, recording faults (section 5.2).
    let format: u64 = 25 | 1 << 6 | 1 << 8 | 1 << 10 | 3 << 12 | 4 << 16 | 1 << 19 | 1 << 26;
    let entry = [0xD, 1 << 44, 0x77 | format << 32, base + root];
    for (word, value) in (0..).zip(entry) {
        put(64 * EDU_STREAM as u64 + 8 * word, value);
    }
    // The GiB of RAM as one block, for reads and writes.
    put(root + 8, 0x4000_0000 | 1 | 0xF << 2 | 3 << 6 | 3 << 8 | 1 << 10);
    for (index, word) in (0..).zip(COMMANDS.iter().chain(&COMMANDS)) {
        put(queue + 8 * index, *word);
    }
    let sent = COMMANDS.len() as u64 / 2;
    with_changed(scene, &|before| {
        let &[cr0, strtab, cmdq, prod, cons] = before else { bail!("{before:x?}") };
        let change = vec![
            write(CR0, 0),
            write(STRTAB_BASE, (base + streams) | ALLOCATE),
            write(CMDQ_BASE, (base + queue) | ALLOCATE | QUEUE_LOG2),
            write(CMDQ_PROD, 0),
            write(CMDQ_CONS, 0),
            write(CR0, CMDQEN),
            write(CMDQ_PROD, sent),
            write(CR0, CMDQEN | SMMUEN),
        ];
        let restore = vec![
            write(CR0, 0),
            write(STRTAB_BASE, strtab),
            write(CR0, CMDQEN),
            write(CMDQ_PROD, 2 * sent),
            write(CR0, 0),
            write(CMDQ_BASE, cmdq),
            write(CMDQ_PROD, prod),
            write(CMDQ_CONS, cons),
            write(CR0, cr0),
        ];
        Ok([change, restore])
    })
}

/// Translation off, and what is not translated let through.
pub fn bypass(scene: &Scene<'_>) -> Result<Outcome> {
    with_changed(scene, &|before| {
        let cr0 = *before.first().context("no CR0")?;
        let change = vec![write(GBPA, GBPA_UPDATE), write(CR0, cr0 & !SMMUEN)];
        Ok([change, vec![write(GBPA, GBPA_UPDATE | GBPA_ABORT), write(CR0, cr0)]])
    })
}
