//! What a host needs of its machine: the same list runs with the hypervisor and without it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flexserve::image::Image;
use guest_abi::session::probe;
use serde_json::json;

use crate::host::{Host, open_attack_module};
use crate::partition::{Exit, PROBE_PATH, Partition};
use crate::report;
use crate::secret::Secret;
use crate::sys::{self, Conduit};
use crate::syscall::{self, Timer};

type Test = fn() -> Result<String>;

/// The tests of both machines, in order.
const TESTS: [(&str, Test); 7] = [
    ("timers", timers),
    ("clocks", clocks),
    ("interrupts-between-cpus", interrupts_between_cpus),
    ("cpu-hotplug", cpu_hotplug),
    ("cpu-standby", cpu_standby),
    ("psci", psci),
    ("suspend-to-idle", suspend_to_idle),
];
/// Tests that need the hypervisor.
const WITH_HYPERVISOR: [(&str, Test); 2] = [
    ("cpu-hotplug-under-a-partition", hotplug_under_a_partition),
    ("suspend-with-a-partition", suspend_with_a_partition),
];
/// The last one: the machine does not come back from it.
const KEXEC: &str = "kexec";

/// Runs the wanted tests; `bare`: there is no hypervisor.
pub fn run(bare: bool) -> Result<()> {
    let wanted = report::wanted_tests()?;
    let is_wanted = |name: &str| wanted.iter().any(|wanted| wanted == name);
    let more: &[(&str, Test)] = if bare { &[] } else { &WITH_HYPERVISOR };
    for (name, test) in TESTS.iter().chain(more).filter(|(name, _)| is_wanted(name)) {
        judge(name, test())?;
    }
    if is_wanted(KEXEC) {
        // Returns only when it is refused, which a host must survive.
        judge(KEXEC, kexec(bare))?;
    }
    Ok(())
}

fn judge(name: &str, result: Result<String>) -> Result<()> {
    match result {
        Ok(detail) => report::verdict(name, true, &detail),
        Err(error) => report::verdict(name, false, &format!("{error:#}")),
    }
}

fn cpus() -> Result<u32> {
    Ok(thread::available_parallelism()?.get() as u32)
}

/// Sleeps are never short, and periodic timers lose nothing, on every CPU.
fn timers() -> Result<String> {
    const SLEEP: Duration = Duration::from_millis(20);
    const PERIOD: Duration = Duration::from_millis(5);
    let mut longest = Duration::ZERO;
    for cpu in 0..cpus()? {
        sys::pin_to_cpu(cpu)?;
        for _ in 0..5 {
            let start = Instant::now();
            thread::sleep(SLEEP);
            let slept = start.elapsed();
            ensure!(slept >= SLEEP, "a sleep of {SLEEP:?} took {slept:?}");
            longest = longest.max(slept);
        }
        let (start, timer) = (Instant::now(), Timer::start(PERIOD)?);
        let mut fired = 0;
        while fired < 40 {
            fired += timer.wait()?;
        }
        let periods = (start.elapsed().as_nanos() / PERIOD.as_nanos()) as u64;
        // What fires after the read is counted by the next; an emulated CPU may be away in between.
        ensure!(fired <= periods + 1, "{fired} times in {periods} periods");
        ensure!(periods - fired.min(periods) < 400, "only {fired} times in {periods} periods");
    }
    sys::unpin()?;
    Ok(format!("sleeps of {SLEEP:?} took at most {longest:?}"))
}

/// No CPU's clock is behind what another one showed before.
fn clocks() -> Result<String> {
    const ROUNDS: u64 = 500;
    let count = u64::from(cpus()?);
    let (turn, last, behind) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..count)
            .map(|cpu| {
                let (turn, last, behind) = (&turn, &last, &behind);
                scope.spawn(move || -> Result<()> {
                    sys::pin_to_cpu(cpu as u32)?;
                    for round in 0..ROUNDS {
                        while turn.load(Ordering::Acquire) != round * count + cpu {
                            thread::yield_now();
                        }
                        let now = start.elapsed().as_nanos() as u64;
                        if last.swap(now, Ordering::Relaxed) > now {
                            behind.fetch_add(1, Ordering::Relaxed);
                        }
                        turn.fetch_add(1, Ordering::Release);
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    let behind = behind.into_inner();
    ensure!(behind == 0, "{behind} times a clock was behind");
    Ok(format!("{} readings on {count} CPUs in order", ROUNDS * count))
}

/// Barriers, functions run on every CPU, threads that move.
fn interrupts_between_cpus() -> Result<String> {
    const ROUNDS: u32 = 100;
    let count = cpus()?;
    let (stop, spun) = (AtomicBool::new(false), AtomicU64::new(0));
    let module = open_attack_module()?;
    thread::scope(|scope| {
        for cpu in 0..count {
            let (stop, spun) = (&stop, &spun);
            scope.spawn(move || {
                let _ = sys::pin_to_cpu(cpu);
                while !stop.load(Ordering::Relaxed) {
                    spun.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let result = (0..ROUNDS).try_for_each(|round| {
            syscall::membarrier()?;
            let ran = module.interrupt_all_cpus().context("the attack module")?;
            ensure!(ran == u64::from(count), "{ran} of {count} CPUs ran a function");
            sys::pin_to_cpu(round % count)?;
            let cpu = syscall::current_cpu()?;
            ensure!(cpu == round % count, "on CPU {cpu} instead of {}", round % count);
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    sys::unpin()?;
    Ok(format!("{ROUNDS} rounds on {count} CPUs"))
}

/// Switches of the CPUs that can go offline.
fn switches() -> Vec<(u32, PathBuf)> {
    let switch = |cpu| (cpu, PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}/online")));
    (0..64).map(switch).filter(|(_, path)| path.exists()).collect()
}

fn set_online(switch: &Path, online: bool) -> Result<()> {
    let text = if online { "1" } else { "0" };
    fs::write(switch, text).with_context(|| format!("{}: {text}", switch.display()))?;
    let now = fs::read_to_string(switch)?;
    ensure!(now.trim() == text, "{} is {now}", switch.display());
    Ok(())
}

/// Every CPU goes and comes back, several times, and runs a thread each time.
fn cpu_hotplug() -> Result<String> {
    const ROUNDS: u32 = 3;
    let switches = switches();
    ensure!(cpus()? == 1 || switches.len() > 1, "no CPU can go offline");
    for _ in 0..ROUNDS {
        for (cpu, switch) in &switches {
            set_online(switch, false)?;
            ensure!(sys::pin_to_cpu(*cpu).is_err(), "a thread runs on CPU {cpu}, which is offline");
            set_online(switch, true)?;
            sys::pin_to_cpu(*cpu)?;
            let on = syscall::current_cpu()?;
            ensure!(on == *cpu, "on CPU {on} instead of {cpu}");
            sys::unpin()?;
        }
    }
    Ok(format!("{ROUNDS} rounds of {} CPUs", switches.len()))
}

/// How this host reaches firmware.
fn conduit() -> Result<Conduit> {
    let method = fs::read_to_string("/proc/device-tree/psci/method").context("no PSCI node")?;
    match method.trim_end_matches('\0') {
        "smc" => Ok(Conduit::Smc),
        "hvc" => Ok(Conduit::Hvc),
        other => bail!("PSCI by {other}"),
    }
}

fn firmware(words: &[u64]) -> Result<i32> {
    let mut regs = [0; 18];
    regs[..words.len()].copy_from_slice(words);
    Ok(open_attack_module()?.call(conduit()?, regs).context("the attack module")?[0] as i32)
}

const CPU_SUSPEND: u64 = 0xC400_0001;
const CPU_OFF: u64 = 0x8400_0002;
const CPU_ON: u64 = 0xC400_0003;
const AFFINITY_INFO: u64 = 0xC400_0004;
const MIGRATE_INFO_TYPE: u64 = 0x8400_0006;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const FEATURES: u64 = 0x8400_000A;

/// A CPU waits in firmware until its next interrupt.
fn cpu_standby() -> Result<String> {
    const ROUNDS: u32 = 20;
    for round in 0..ROUNDS {
        sys::pin_to_cpu(round % cpus()?)?;
        let answer = firmware(&[CPU_SUSPEND, 0, 0, 0])?;
        ensure!(answer == 0, "CPU_SUSPEND answers {answer}");
    }
    sys::unpin()?;
    Ok(format!("{ROUNDS} times"))
}

/// Firmware's calls are what its FEATURES says.
fn psci() -> Result<String> {
    let version = firmware(&[0x8400_0000])?;
    ensure!(version >= 0x1_0000, "PSCI_VERSION is {version:#x}");
    for function in [CPU_SUSPEND, CPU_OFF, CPU_ON, AFFINITY_INFO, SYSTEM_OFF, SYSTEM_RESET, FEATURES] {
        let answer = firmware(&[FEATURES, function])?;
        ensure!(answer >= 0, "FEATURES of {function:#x} is {answer}");
    }
    ensure!(firmware(&[FEATURES, 0x8400_FFFF])? == -1, "FEATURES knows what is none");
    ensure!(firmware(&[AFFINITY_INFO, 0, 0])? == 0, "the boot CPU is not on");
    ensure!(firmware(&[MIGRATE_INFO_TYPE])? == 2, "there is something to migrate");
    // PSCI: ALREADY_ON; the entry must be the host's memory.
    let page = open_attack_module()?.allocate(1).context("memory of the host")?;
    let answer = firmware(&[CPU_ON, 0, page, 0])?;
    ensure!(answer == -4, "CPU_ON of a running CPU answers {answer}");
    ensure!(firmware(&[CPU_ON, 0xFF_FFFF, page, 0])? == -2, "a CPU that is none is turned on");
    Ok(format!("version {}.{}", version >> 16, version & 0xFFFF))
}

/// Suspends until the clock's alarm.
fn suspend() -> Result<Duration> {
    const CLOCK: &str = "/sys/class/rtc/rtc0";
    let seconds = || -> Result<u64> {
        Ok(fs::read_to_string(format!("{CLOCK}/since_epoch")).context("no clock")?.trim().parse()?)
    };
    let before = seconds()?;
    fs::write(format!("{CLOCK}/wakealarm"), "+2").context("the alarm")?;
    let start = Instant::now();
    fs::write("/sys/power/state", "freeze").context("suspend-to-idle")?;
    let slept = seconds()? - before;
    ensure!((1..60).contains(&slept), "it slept {slept} s");
    Ok(start.elapsed())
}

fn suspend_to_idle() -> Result<String> {
    let states = fs::read_to_string("/sys/power/state").unwrap_or_default();
    ensure!(states.split_whitespace().any(|state| state == "freeze"), "this kernel has no suspend-to-idle");
    suspend()?;
    // Every CPU still works.
    cpu_hotplug()?;
    timers()
        .map(|_| "twice, then timers and CPUs as before".into())
        .and_then(|text: String| suspend().map(|_| text))
}

/// A running probe, entered by a thread bound to a CPU that goes offline: the vCPU comes out and goes on elsewhere.
fn hotplug_under_a_partition() -> Result<String> {
    let switches = switches();
    let (cpu, switch) = switches.last().context("no CPU can go offline")?;
    let (host, image) = (Host::new()?, Image::load(PROBE_PATH.as_ref())?);
    let partition = Partition::load(&host, &image, None)?;
    partition.send(probe::SPIN, [0; 4], &[])?;
    let (entries, barrier) = (AtomicU64::new(0), Barrier::new(2));
    let running = &partition;
    let end = thread::scope(|scope| {
        let vcpu = scope.spawn(|| -> Result<Exit> {
            let pinned = sys::pin_to_cpu(*cpu);
            barrier.wait();
            pinned?;
            loop {
                match running.enter()? {
                    Exit::Interrupt => entries.fetch_add(1, Ordering::Relaxed),
                    other => return Ok(other),
                };
            }
        });
        barrier.wait();
        let wait_for_more = || {
            let before = entries.load(Ordering::Relaxed);
            while entries.load(Ordering::Relaxed) < before + 5 && !vcpu.is_finished() {
                thread::sleep(Duration::from_millis(5));
            }
        };
        let result = (0..3).try_for_each(|_| {
            wait_for_more();
            set_online(switch, false)?;
            wait_for_more();
            set_online(switch, true)
        });
        partition.stop()?;
        let end = vcpu.join().map_err(|_| anyhow!("the vCPU's thread panicked"))?;
        result.and(end)
    })?;
    ensure!(end == Exit::Stopped, "the vCPU ended by {end:?}");
    host.destroy(partition.id())?;
    Ok(format!("CPU {cpu} went three times; {} turns", entries.into_inner()))
}

/// A partition with a secret is there while the host sleeps.
fn suspend_with_a_partition() -> Result<String> {
    let (host, image, secret) = (Host::new()?, Image::load(PROBE_PATH.as_ref())?, Secret::new()?);
    let mut partition = Partition::load(&host, &image, Some(&secret))?;
    suspend()?;
    let damaged = partition.damage(&secret)?;
    ensure!(damaged == 0, "{damaged} copies of the secret are damaged");
    host.destroy(partition.id())?;
    Ok("the partition has what it had".into())
}

/// Another kernel takes over, with a partition there: it finds that partition's page closed, and can turn the machine off.
fn kexec(bare: bool) -> Result<String> {
    let texts = |ok: bool, detail: &str| {
        let verdict = json!({"event": "test", "name": KEXEC, "ok": ok, "detail": detail});
        format!("\n\u{1e}{verdict}\n\u{1e}{}\n", json!({"event": "done"}))
    };
    let module = open_attack_module()?;
    let destination = module.allocate(2).context("memory of the host")?;
    let (good, bad) =
        (texts(true, "the next kernel runs"), texts(false, "the next kernel reads a partition's page"));
    let hvc = conduit()? == Conduit::Hvc;
    if bare {
        syscall::kexec(destination, 0, hvc, &good, &bad)?;
    } else {
        let (host, image, secret) = (Host::new()?, Image::load(PROBE_PATH.as_ref())?, Secret::new()?);
        let partition = Partition::load(&host, &image, Some(&secret))?;
        let page = partition.heap_page()?;
        ensure!(secret.is_at(page)?, "the secret is not where it should be");
        syscall::kexec(destination, page, hvc, &good, &bad)?;
    }
    bail!("it returned")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_machines_pass_the_same_list() {
        let listed = |text: &str| -> Vec<String> {
            let suite: toml::Value = toml::from_str(text).unwrap();
            let tests = suite["tests"].as_array().unwrap();
            tests.iter().filter_map(|test| test.as_str()).map(str::to_owned).collect()
        };
        let mut with = listed(include_str!("../suites/health.toml"));
        let without = listed(include_str!("../suites/health-bare.toml"));
        let own = |name: &String| WITH_HYPERVISOR.iter().any(|(known, _)| known == name);
        assert_eq!(with.iter().filter(|name| own(name)).count(), WITH_HYPERVISOR.len());
        with.retain(|name| !own(name));
        assert_eq!(with, without);
        let all: Vec<&str> = TESTS.iter().map(|(name, _)| *name).chain([KEXEC]).collect();
        assert_eq!(without, all);
    }
}
