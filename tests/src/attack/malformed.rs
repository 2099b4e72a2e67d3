//! Ten thousand calls that no well-meaning host makes.

use anyhow::{Result, bail, ensure};
use hyp_abi::ffa;
use hyp_abi::manifest::layout;
use hyp_abi::service::{PageRange, op};
use hyp_abi::{PAGE_SIZE, stats::SystemStats};
use zerocopy::IntoBytes;

use super::{Outcome, Scene};
use crate::sys::Conduit;

const CALLS: u32 = 10_000;
const SEED: u64 = 0x666C_6578_7365_7276;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// What the calls aim at.
#[derive(Clone, Copy, Debug)]
struct Targets {
    /// A page of the host's own.
    own: u64,
    /// Id of a running partition.
    id: u64,
    /// A page of that partition.
    page: u64,
}

/// A call: registers, and what TX holds.
struct Call {
    regs: [u64; 18],
    list: [PageRange; 4],
}

fn argument(random: &mut Random, targets: &Targets) -> u64 {
    match random.below(14) {
        0 => 0,
        1 => random.below(600),
        2 => u64::MAX - random.below(8192),
        3 => u64::from(u32::MAX) + random.below(2),
        4 => targets.page,
        5 => targets.own + random.below(PAGE_SIZE),
        6 => layout::HEAP + random.below(1 << 20),
        7 => 0x4000_0000 + (random.below(1 << 30) & !(PAGE_SIZE - 1)),
        8 => 0x0800_0000 + (random.below(1 << 27) & !(PAGE_SIZE - 1)),
        9 => 1 << random.below(64),
        10 => targets.id,
        11 => u64::from(ffa::PARTITION_ID_BASE) + random.below(20),
        12 => targets.id << 16 | random.below(4),
        _ => random.next(),
    }
}

/// A range that must not be accepted: not a page, no page, too many, not the host's, or beyond all addresses.
fn bad_range(random: &mut Random, targets: &Targets) -> PageRange {
    let few = 1 + random.below(4);
    match random.below(8) {
        0 => PageRange { base: targets.own + 1 + random.below(PAGE_SIZE - 1), page_count: 1 },
        1 => PageRange { base: targets.own, page_count: (1 << 52) + few },
        2 => PageRange { base: targets.own, page_count: 0 },
        3 => PageRange { base: targets.own, page_count: 513 + random.below(1 << 40) },
        4 => PageRange { base: targets.page, page_count: few },
        5 => PageRange { base: !(PAGE_SIZE - 1), page_count: few },
        // Also without the bits that no address has, this is no memory.
        6 => PageRange { base: random.next() | 3 << 39, page_count: few },
        _ => PageRange { base: 0x0900_0000, page_count: few },
    }
}

fn call(random: &mut Random, targets: &Targets) -> Call {
    let list = [(); 4].map(|()| bad_range(random, targets));
    loop {
        let mut regs: [u64; 18] = core::array::from_fn(|_| argument(random, targets));
        let width = random.below(2) << 30;
        regs[0] = match random.below(6) {
            0 => random.next() >> (32 * random.below(2)),
            1 => 0x8400_0000 | width | random.below(0x100),
            2 => random.below(2) << 31 | width | random.below(64) << 24 | random.below(0x20),
            _ => ffa::MSG_SEND_DIRECT_REQ_64.into(),
        };
        if regs[0] == u64::from(ffa::MSG_SEND_DIRECT_REQ_64) && random.below(8) != 0 {
            regs[1] = ffa::SERVICE_ID.into();
            regs[2] = 0;
            regs[3] = if random.below(4) == 0 { argument(random, targets) } else { random.below(0x28) };
            if matches!(regs[3], op::TABLES_GIVE | op::GIVE) {
                // A list that is read, in a place where it would fit.
                let count = 1 + random.below(4);
                if regs[3] == op::GIVE {
                    let page = random.below(64);
                    regs[4..7].copy_from_slice(&[
                        targets.id,
                        layout::HEAP + (1 << 20) + page * PAGE_SIZE,
                        count,
                    ]);
                } else {
                    regs[4] = count;
                }
            }
        }
        if !is_right(&regs, targets) {
            return Call { regs, list };
        }
    }
}

/// What a host may do, to its own harm or to that of the partition that is watched: end them, sleep, run it or ask it,
/// give its mailbox back, recall free tables. And the test's own knobs.
fn is_right(regs: &[u64; 18], targets: &Targets) -> bool {
    let [_, first, _, operation, argument, ..] = *regs;
    match regs[0] as u32 {
        // CPU_SUSPEND, CPU_OFF, CPU_ON, SYSTEM_OFF, SYSTEM_RESET, SYSTEM_RESET2.
        0x8400_0001..=0x8400_0003 | 0xC400_0001 | 0xC400_0003 | 0x8400_0008 | 0x8400_0009 => true,
        0x8400_0012 | 0xC400_0012 => first as u32 == 0,
        ffa::RXTX_UNMAP | ffa::RXTX_MAP_32 | ffa::RXTX_MAP_64 => true,
        ffa::RUN => first as u32 == (targets.id << 16) as u32,
        // A direct request runs it.
        ffa::MSG_SEND_DIRECT_REQ_32 | ffa::MSG_SEND_DIRECT_REQ_64 | ffa::MSG_SEND_DIRECT_REQ2
            if first as u32 == targets.id as u32 =>
        {
            true
        }
        ffa::MSG_SEND_DIRECT_REQ_32 | ffa::MSG_SEND_DIRECT_REQ_64 => match operation as u32 as u64 {
            op::STOP | op::DESTROY => argument as u32 == targets.id as u32,
            op::TABLES_RECALL | op::KNOB => true,
            _ => false,
        },
        _ => false,
    }
}

/// What no refused call changes.
fn unchanging(stats: &SystemStats) -> [u64; 5] {
    [
        stats.partition_count,
        stats.pages_given,
        stats.pages_recalled,
        stats.tables_from_host,
        stats.world_switches,
    ]
}

/// None is carried out, none breaks anything, none tells anything.
pub fn malformed_calls(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.partition()?;
    let targets =
        Targets { own: scene.host.allocate(8)?, id: partition.id().into(), page: partition.heap_page()? };
    let before = scene.host.stats()?;
    let mut random = Random(SEED);
    for number in 0..CALLS {
        let Call { regs, list } = call(&mut random, &targets);
        let answer = scene.host.call_with_list(Conduit::Smc, regs, list.as_bytes())?;
        let is_wide = [ffa::PARTITION_INFO_GET_REGS, ffa::MSG_SEND_DIRECT_REQ2].contains(&(regs[0] as u32));
        ensure!(is_wide || answer[8..] == regs[8..], "call {number} ({:#x}) changed x8-x17", regs[0]);
        let told = answer[..8].iter().find(|word| scene.secret.has_word(**word));
        ensure!(told.is_none(), "call {number} ({:#x}) tells the secret", regs[0]);
    }
    // One may have left something in RX.
    scene.host.ffa(ffa::RX_RELEASE, [0; 3])?;
    let after = scene.host.stats()?;
    let damage = partition.damage(&scene.secret)?;
    let refused = after.refused_calls - before.refused_calls;
    if unchanging(&before) == unchanging(&after) && damage == 0 {
        ensure!(refused > u64::from(CALLS) / 2, "only {refused} calls were refused");
        return Ok(Outcome::Blocked(format!(
            "{CALLS} calls from seed {SEED:#x}, {refused} counted as refused"
        )));
    }
    if after.pages_given > before.pages_given {
        let given = after.pages_given - before.pages_given;
        return Ok(Outcome::Succeeded(format!("malformed lists gave {given} pages")));
    }
    bail!("{:?} became {:?}, {damage} copies of the secret changed", unchanging(&before), unchanging(&after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn calls_are_many_kinds_repeatable_and_never_a_right() {
        let targets = Targets { own: 0x5000_0000, id: 0x8002, page: 0x6000_0000 };
        let (mut random, mut again) = (Random(SEED), Random(SEED));
        let mut kinds = BTreeMap::<u64, u32>::new();
        for _ in 0..CALLS {
            let first = call(&mut random, &targets);
            let second = call(&mut again, &targets);
            assert_eq!((first.regs, first.list), (second.regs, second.list));
            assert!(!is_right(&first.regs, &targets));
            let is_message = first.regs[0] == u64::from(ffa::MSG_SEND_DIRECT_REQ_64);
            *kinds.entry(if is_message { first.regs[3].min(0x100) } else { 0x101 }).or_default() += 1;
        }
        for operation in (op::INFO..=op::TABLES_GIVE).chain(op::CREATE..=op::STATS).chain([0x100, 0x101]) {
            assert!(kinds.get(&operation).is_some_and(|count| *count > 20), "{operation:#x}: {kinds:?}");
        }
    }
}
