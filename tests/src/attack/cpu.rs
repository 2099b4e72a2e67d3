//! Calls that would start a CPU where it must not run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyp_abi::PAGE_SIZE;

use super::{Outcome, Scene};
use crate::partition::Partition;
use crate::sys::Conduit;

const CPU_ON_32: u64 = 0x8400_0003;
const CPU_ON_64: u64 = 0xC400_0003;
const AFFINITY_INFO: u64 = 0xC400_0004;
/// CPU_ON of PSCI 0.1 as QEMU's firmware has it; no operating system uses it.
const CPU_ON_0_1: u64 = 0x95C1_BA60;
const AFFINITY_OFF: u64 = 1;
const NOT_SUPPORTED: u64 = -1i64 as u64;
const INVALID_ADDRESS: u64 = -9i64 as u64;
/// How long to wait for a CPU that firmware said it turned on.
const START_TIME: Duration = Duration::from_secs(30);

/// Code for a CPU that starts with x0 = address of a block of words: writes CurrentEL to word 0, copies 16 bytes from the
/// address in word 1 to words 2 and 3, writes 1 to word 4, turns itself off.
const PAYLOAD: [u32; 12] = [
    0xD538_4241, // mrs x1, CurrentEL
    0xF900_0001, // str x1, [x0]
    0xF940_0402, // ldr x2, [x0, #8]
    0xA940_1043, // ldp x3, x4, [x2]
    0xA901_1003, // stp x3, x4, [x0, #16]
    0xD280_0025, // mov x5, #1
    0xD503_3F9F, // dsb sy
    0xF900_1005, // str x5, [x0, #32]
    0x52B0_8000, // mov w0, #0x84000000
    0x1100_0800, // add w0, w0, #2 (CPU_OFF)
    0xD400_0003, // smc #0
    0x1400_0000, // b .
];

fn payload() -> Vec<u8> {
    PAYLOAD.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The last CPU, offline in Linux while this lives.
struct IdleCpu {
    switch: PathBuf,
    mpidr: u64,
}

impl IdleCpu {
    fn take() -> Result<Self> {
        let number = (1..64).take_while(|number| Path::new(&folder(*number)).exists()).last();
        let number = number.context("there is only one CPU")?;
        let bytes =
            fs::read(format!("/proc/device-tree/cpus/cpu@{number:x}/reg")).context("the CPU's node")?;
        let mpidr = bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let cpu = Self { switch: PathBuf::from(folder(number)).join("online"), mpidr };
        fs::write(&cpu.switch, "0").context("taking a CPU offline")?;
        Ok(cpu)
    }

    /// Waits until firmware says that it is off.
    fn wait_until_off(&self, scene: &Scene<'_>) -> Result<()> {
        loop {
            let mut regs = [0; 18];
            regs[..2].copy_from_slice(&[AFFINITY_INFO, self.mpidr]);
            if scene.host.module.call(Conduit::Smc, regs)?[0] == AFFINITY_OFF {
                return Ok(());
            }
            std::thread::yield_now();
        }
    }

    /// Brings it back: proof that it still works.
    fn give_back(self) -> Result<()> {
        fs::write(&self.switch, "1").context("bringing a CPU back")
    }
}

fn folder(number: u32) -> String {
    format!("/sys/devices/system/cpu/cpu{number}")
}

fn call(scene: &Scene<'_>, conduit: Conduit, words: &[u64]) -> Result<u64> {
    let mut regs = [0; 18];
    regs[..words.len()].copy_from_slice(words);
    Ok(scene.host.module.call(conduit, regs)?[0])
}

/// Waits for the payload's last word. The block's address is returned mapped.
fn await_payload(scene: &Scene<'_>, block: u64) -> Result<[u64; 4]> {
    let window = scene.host.module.map(block, 1)?;
    let start = Instant::now();
    while window.word(32) != 1 {
        ensure!(start.elapsed() < START_TIME, "firmware says the CPU is on, but it does not run the code");
        std::thread::yield_now();
    }
    Ok([0, 8, 16, 24].map(|offset| window.word(offset)))
}

/// A CPU is turned on with its first instruction in a partition.
pub fn cpu_on_in_partition(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = Partition::create(scene.host, scene.image)?;
    partition.give_all(scene.image)?;
    let entry = partition.give_contents(scene.free_code_ipa()?, &payload())?;
    let block = scene.host.allocate(1)?;
    scene.host.module.map(block, 1)?.write(8, &block.to_le_bytes());
    let cpu = IdleCpu::take()?;
    cpu.wait_until_off(scene)?;
    let first = call(scene, Conduit::Smc, &[CPU_ON_64, cpu.mpidr, entry, block])?;
    let outcome = match first {
        INVALID_ADDRESS => {
            let others = [
                ("by the 32-bit call", CPU_ON_32, entry),
                ("in the page's last word", CPU_ON_64, entry + PAGE_SIZE - 4),
                ("where there is no memory", CPU_ON_64, 0x1000),
                ("in a device", CPU_ON_64, 0x0900_0000),
            ];
            for (what, function, entry) in others {
                let answer = call(scene, Conduit::Smc, &[function, cpu.mpidr, entry, block])?;
                ensure!(answer == INVALID_ADDRESS, "{what}: {answer:#x}");
            }
            Outcome::Blocked("INVALID_ADDRESS, and elsewhere outside the host's memory too".into())
        }
        0 => {
            let [level, ..] = await_payload(scene, block)?;
            cpu.wait_until_off(scene)?;
            ensure!(level >> 2 == 1, "it runs at EL{}", level >> 2);
            Outcome::Succeeded("a CPU ran code in the partition's page".into())
        }
        other => bail!("CPU_ON answers {other:#x}"),
    };
    cpu.give_back()?;
    Ok(outcome)
}

/// Firmware calls that are not on the list; one of them would start a CPU of the host's at the hypervisor's level.
pub fn unlisted_firmware_call(scene: &Scene<'_>) -> Result<Outcome> {
    let partition = scene.partition()?;
    let code = scene.host.allocate(1)?;
    scene.host.module.map(code, 1)?.write(0, &payload());
    let block = scene.host.allocate(1)?;
    scene.host.module.map(block, 1)?.write(8, &partition.heap_page()?.to_le_bytes());
    let cpu = IdleCpu::take()?;
    cpu.wait_until_off(scene)?;
    let outcome = match call(scene, Conduit::Smc, &[CPU_ON_0_1, cpu.mpidr, code, block])? {
        NOT_SUPPORTED => {
            // PSCI: CPU_FREEZE, CPU_DEFAULT_SUSPEND, NODE_HW_STATE, SYSTEM_SUSPEND, SET_SUSPEND_MODE, STAT, MEM_PROTECT;
            // Arm, CPU, SiP, OEM, standard secure, vendor hypervisor, trusted OS.
            let unlisted = [
                0x8400_000B,
                0x8400_000C,
                0xC400_000D,
                0xC400_000E,
                0x8400_000F,
                0xC400_0010,
                0xC400_0011,
                0x8400_0013,
                0x8400_0014,
                0x8000_8000,
                0x8100_0000,
                0xC200_0001,
                0x8300_0000,
                0xC400_0180,
                0x8600_FF01,
                0xB200_0000,
                0xBF00_FF01,
                0x0,
            ];
            for function in unlisted {
                let answer = call(scene, Conduit::Smc, &[function, cpu.mpidr, code, block])?;
                ensure!(answer == NOT_SUPPORTED, "{function:#x} answers {answer:#x}");
            }
            for conduit in [Conduit::Hvc, Conduit::SmcOne] {
                let answer = call(scene, conduit, &[CPU_ON_64, cpu.mpidr, code, block])?;
                ensure!(answer == NOT_SUPPORTED, "{conduit:?} answers {answer:#x}");
            }
            Outcome::Blocked(format!("{} functions, HVC and SMC #1 are NOT_SUPPORTED", unlisted.len() + 1))
        }
        0 => {
            let [level, _, first, second] = await_payload(scene, block)?;
            cpu.wait_until_off(scene)?;
            let stolen = scene.secret.has_word(first) && scene.secret.has_word(second);
            ensure!(level >> 2 == 2 && stolen, "at EL{} it reads {first:#x}", level >> 2);
            Outcome::Succeeded("a CPU of the host ran at EL2 and copied the secret".into())
        }
        other => bail!("the call answers {other:#x}"),
    };
    cpu.give_back()?;
    Ok(outcome)
}
