//! The S-EL2 deployment: who speaks for the guard, what the secure world's memory is, and whose the tables are that the SPMC
//! keeps in the normal world's.
//!
//! Attacks that a fault knob lets through are in [`super::ATTACKS`]. The others are [`TESTS`]: what they are stopped by is no
//! check that could be left out (secure RAM is no memory of the normal world at all), or there are many of it.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flexserve::error::status_name;
use flexserve::image::Image;
use guest_abi::session::probe;
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::{self, error};
use hyp_abi::guard::{ANSWER_ROUTE, GUARD_ID, REQUEST_ROUTE, answer, request};
use hyp_abi::manifest::layout;
use hyp_abi::service::{PageRange, op};
use nix::sys::signal::Signal::SIGSEGV;
use serde_json::json;

use super::give::{self, FREE_MODEL, one};
use super::memory_ffa::{handle, lend, reclaim, send, share, was_accepted};
use super::secure_ram::{self, FLASH, SECURE_RAM};
use super::{Outcome, Scene, clear_up};
use crate::child::{self, Access};
use crate::cpu_state;
use crate::dma::Edu;
use crate::host::{Host, unload_product_module};
use crate::partition::{HEAP_PAGES, PROBE_PATH, Partition};
use crate::report::{self, ask, to_hex};
use crate::secret::{Secret, complement_of_hex};
use crate::sys::{self, Act, Conduit, Mapping};

/// Start of RAM; firmware, guard and bundle lie at its start.
const RAM: u64 = 0x4000_0000;

type Test = fn(&Scene<'_>) -> Result<String>;

/// Tests on the shipped hypervisor.
const TESTS: [(&str, Test); 5] = [
    ("secure-ram", secure_ram::secure_ram),
    ("secure-ram-full", secure_ram::secure_ram_full),
    ("foreign-memory", foreign_memory),
    ("cpus-come-and-go", cpus_come_and_go),
    ("secure-interrupt-storm", secure_interrupt_storm),
];
/// Tests that leave out what stands before the defence that they are about.
const TESTS_WITHOUT: [(&str, Test); 1] =
    [("secure-ram-behind-stage-2", secure_ram::secure_ram_behind_stage_2)];

/// Runs the wanted attacks and tests.
pub fn run(without: bool) -> Result<()> {
    super::run(without, None)?;
    let wanted = report::wanted_tests()?;
    unload_product_module()?;
    let (host, image) = (Host::new()?, Image::load(PROBE_PATH.as_ref())?);
    let tests: &[(&str, Test)] = if without { &TESTS_WITHOUT } else { &TESTS };
    for (name, test) in tests.iter().filter(|(name, _)| wanted.iter().any(|wanted| wanted == name)) {
        let scene = Scene { host: &host, image: &image, secret: Secret::new()?, is_without: without };
        let result = test(&scene);
        let cleared = clear_up(&host, true);
        match result.and_then(|detail| cleared.map(|()| detail)) {
            Ok(detail) => report::verdict(name, true, &detail)?,
            Err(error) => report::verdict(name, false, &format!("{error:#}"))?,
        }
    }
    Ok(())
}

/// What an imitated guard says of the host's exits, in the upper half of x3.
const EXITS: u64 = 0x4000_0000;
const PSCI_VERSION: u64 = 0x8400_0000;
/// Calls that only an SPMC, a partition or the dispatcher says (DEN0077A): MSG_WAIT, YIELD, INTERRUPT, NORMAL_WORLD_RESUME,
/// SECONDARY_EP_REGISTER, and answers to direct requests.
const NOT_THE_HOSTS: [u32; 8] = [
    ffa::MSG_WAIT,
    ffa::YIELD,
    ffa::INTERRUPT,
    0x8400_007C,
    0xC400_0087,
    ffa::MSG_SEND_DIRECT_RESP_32,
    ffa::MSG_SEND_DIRECT_RESP_64,
    ffa::MSG_SEND_DIRECT_RESP2,
];

/// Routes that are not the host's: the guard's, others of the normal and of the secure world, to the SPMC, the service and a
/// partition; and the host's own to the SPMC.
fn routes(partition: u16) -> Vec<u64> {
    let senders = [GUARD_ID, 1, 0x7FFE, ffa::SPMC_ID, ffa::SERVICE_ID, partition, 0xFFC0, 0xFFFF];
    let receivers = [ffa::SPMC_ID, ffa::SERVICE_ID, partition, GUARD_ID];
    let pairs = senders.iter().flat_map(|sender| {
        receivers.iter().map(move |receiver| u64::from(*sender) << 16 | u64::from(*receiver))
    });
    // Of a 64-bit register FF-A uses the low half only.
    pairs.chain([REQUEST_ROUTE | 1 << 32, REQUEST_ROUTE | !0 << 32, ffa::SPMC_ID.into()]).collect()
}

/// Says everything that the guard says, under every name; returns how many calls were refused.
fn imitate(scene: &Scene<'_>, partition: u16, page: u64) -> Result<u64> {
    let mut refused = 0;
    let refuse = |words: [u64; 8], reason: Option<i32>| -> Result<()> {
        let answer = scene.host.call(&words)?;
        let code = answer[2] as i32;
        let is_refused = answer[0] == u64::from(ffa::ERROR) && reason.is_none_or(|reason| reason == code);
        ensure!(is_refused, "{words:x?} answers {:x?}", &answer[..8]);
        Ok(())
    };
    let requests = [request::BOOT, request::CALL, request::REFUSE, request::ABORT, request::DONE];
    let answers = answer::BOOTED..=answer::FORGET;
    for what in requests.into_iter().chain(answers).chain([0, u32::MAX]) {
        let what = u64::from(what) | EXITS << 32;
        for function in [ffa::MSG_SEND_DIRECT_REQ_64, ffa::MSG_SEND_DIRECT_REQ_32, ffa::MSG_SEND_DIRECT_REQ2]
        {
            for route in routes(partition) {
                // As an access of the host's to the partition, a call of PSCI's, a device tree.
                let words = [function.into(), route, 0, what, page, 0x9380_0000 | 1 << 6, 0, 0];
                refuse(words, Some(error::INVALID_PARAMETERS))?;
                refused += 1;
            }
        }
        for function in NOT_THE_HOSTS {
            for route in [REQUEST_ROUTE, ANSWER_ROUTE] {
                refuse([function.into(), route, 0, what, PSCI_VERSION, 0, 0, 0], None)?;
                refused += 1;
            }
        }
    }
    Ok(refused)
}

/// The host speaks as the guard: from one CPU, while the SPMC waits for the real guard's answer on the other.
pub fn guard_imitated(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.partition()?;
    let (id, page) = (partition.id(), partition.heap_page()?);
    let before = scene.host.stats()?;
    let what = u64::from(request::CALL) | EXITS << 32;
    let words = [ffa::MSG_SEND_DIRECT_REQ_64.into(), REQUEST_ROUTE, 0, what, PSCI_VERSION, 0, 0, 0];
    let first = scene.host.call(&words)?;
    if first[..2] == [ffa::MSG_SEND_DIRECT_RESP_64.into(), ANSWER_ROUTE] {
        let exits = scene.host.stats()?.host_exits - before.host_exits;
        ensure!(first[3] == u64::from(answer::RETURN) && exits >= EXITS, "{first:x?}, {exits} exits");
        return Ok(Outcome::Succeeded("the SPMC answers the host as its guard, and believes it".into()));
    }
    ensure!(first[0] as u32 == ffa::ERROR, "{first:x?}");
    let end = AtomicBool::new(false);
    let counts = thread::scope(|scope| -> Result<(u64, u64)> {
        let guard = scope.spawn(|| -> Result<u64> {
            sys::pin_to_cpu(1)?;
            let mut refused = 0;
            while refused == 0 || !end.load(Ordering::Relaxed) {
                refused += imitate(scene, id, page)?;
            }
            Ok(refused)
        });
        sys::pin_to_cpu(0)?;
        let mut rounds = 0;
        // Pages that go and come: each time the SPMC waits until the guard has forgotten them.
        let mut exchange = || -> Result<()> {
            while rounds < 200 && !guard.is_finished() {
                let other = Partition::create(scene.host, scene.image)?;
                let pages = scene.host.allocate(4)?;
                other.give(layout::HEAP, &[PageRange { base: pages, page_count: 4 }])?.ok("GIVE")?;
                scene.host.destroy(other.id())?;
                rounds += 1;
            }
            Ok(())
        };
        let exchanged = exchange();
        // Also from this CPU.
        let mine = imitate(scene, id, page);
        end.store(true, Ordering::Relaxed);
        let theirs = guard.join().map_err(|_| anyhow!("a thread panicked"))??;
        exchanged?;
        Ok((mine? + theirs, rounds))
    });
    sys::unpin()?;
    let (refused, rounds) = counts?;
    let after = scene.host.stats()?;
    let exits = after.host_exits - before.host_exits;
    ensure!(exits < EXITS, "the host's exits were counted as it said: {exits}");
    ensure!(after.blocked_accesses == before.blocked_accesses, "an access was taken for one of the host's");
    ensure!(after.partition_count == before.partition_count, "partitions came or went");
    let damage = partition.damage(&scene.secret)?;
    ensure!(damage == 0, "{damage} copies of the secret changed");
    Ok(Outcome::Blocked(format!("{refused} calls are refused, while {rounds} times pages changed hands")))
}

/// Where the stage-2 descriptor of a partition's page of heap lies, seen from outside.
fn descriptor_of(partition: &Partition<'_>) -> Result<(u64, u64)> {
    // Arm ARM D8.3.2: execute-never, accessed, inner shareable, read and write, normal write-back, a page.
    const ATTRIBUTES: u64 = 1 << 54 | 1 << 10 | 3 << 8 | 3 << 6 | 0xF << 2 | 3;
    let descriptor = partition.heap_page()? | ATTRIBUTES;
    let answer = ask(json!({"ask": "search", "bytes": to_hex(&(!descriptor).to_le_bytes())}))?;
    let hits: Vec<u64> = serde_json::from_value(answer["hits"].clone())?;
    let ipa = layout::HEAP + HEAP_PAGES / 2 * PAGE_SIZE;
    let place = ipa / PAGE_SIZE % 512 * 8;
    let hit = hits.iter().find(|hit| *hit % PAGE_SIZE == place);
    Ok((*hit.with_context(|| format!("no table has {descriptor:#x}: {hits:x?}"))?, descriptor))
}

fn word_outside(address: u64) -> Result<u64> {
    let answer = ask(json!({"ask": "read", "address": address, "size": 8}))?;
    let bytes = complement_of_hex(answer["bytes"].as_str().unwrap_or_default(), 0)?;
    Ok(u64::from_le_bytes(bytes.as_slice().try_into()?))
}

/// A page of stage-2 tables, which lies in the normal world's memory: read and written by the host's CPU and by a device, and
/// named as the host's own in every call that sends memory.
pub fn tables_shared(scene: &Scene<'_>) -> Result<Outcome> {
    let mut victim = scene.partition()?;
    let other = scene.plain_partition()?;
    let edu = Edu::first(scene.host)?;
    let (place, descriptor) = descriptor_of(&victim)?;
    let table = place & !(PAGE_SIZE - 1);
    // The host's kernel has no linear map of what is not its RAM.
    let read = Access { address: place, mapping: Mapping::Cached, act: Act::Read(8) };
    let write = Access { act: Act::Write(8, 0), ..read };
    let answer = send(scene.host, ffa::MEM_SHARE_64, &share(other.id(), &[(table, 1)]))?;
    if was_accepted(&answer, error::DENIED)? {
        let (by_cpu, by_device) = (scene.aborts(SIGSEGV, || child::access(&[read]))?, edu.read(place)?);
        let is_read = by_cpu.as_deref() == Some(&[descriptor]) && by_device == descriptor;
        ensure!(is_read, "{by_cpu:x?}, {by_device:#x}");
        // As it was: the partition is still needed.
        edu.write(place, 8, descriptor)?;
        reclaim(scene.host, handle(&answer)?)?;
        return Ok(Outcome::Succeeded("the host shares a table, and reads and writes it".into()));
    }
    names_foreign(scene, &other, table)?;
    for access in [read, write] {
        let done = scene.aborts(SIGSEGV, || child::access(&[access]))?;
        ensure!(done.is_none(), "the host reaches a table: {done:x?}");
    }
    ensure!(edu.read(place)? == 0, "a device reads a table");
    edu.write(place, 8, 0xBAD)?;
    ensure!(word_outside(place)? == descriptor, "the table changed");
    ensure!(victim.damage(&scene.secret)? == 0, "the partition's memory changed");
    Ok(Outcome::Blocked("calls are refused, CPU and device do not reach it".into()))
}

/// The descriptor of a gift: as that of a loan, but the receiver's access is not the sender's to say.
fn donate(receiver: u16, page: u64) -> Vec<u8> {
    /// Of the access permissions of the first receiver (DEN0140, memory region and access descriptors).
    const PERMISSIONS: usize = 48 + 2;
    let mut bytes = lend(receiver, &[(page, 1)]);
    bytes[PERMISSIONS] = 0;
    bytes
}

/// Names a page that is not the host's as if it were, in every call that sends memory.
fn names_foreign(scene: &Scene<'_>, receiver: &Partition<'_>, page: u64) -> Result<()> {
    let host = scene.host;
    let given = receiver.give(FREE_MODEL, &one(page))?;
    ensure!(!give::was_accepted(given, error::DENIED)?, "{page:#x} was given");
    let tables = host.service_with_list(op::TABLES_GIVE, [1, 0, 0, 0], &one(page))?;
    ensure!(!give::was_accepted(tables, error::DENIED)?, "{page:#x} was taken as a table page");
    for (function, bytes) in [
        (ffa::MEM_SHARE_64, share(receiver.id(), &[(page, 1)])),
        (ffa::MEM_LEND_64, lend(receiver.id(), &[(page, 1)])),
        (ffa::MEM_DONATE_64, donate(receiver.id(), page)),
    ] {
        let answer = send(host, function, &bytes)?;
        ensure!(!was_accepted(&answer, error::DENIED)?, "{page:#x} was sent by {function:#x}");
    }
    Ok(())
}

/// Where the host's RAM starts: what lies below is firmware's and the guard's.
fn own_ram() -> Result<u64> {
    let map = fs::read_to_string("/proc/iomem").context("no map of memory")?;
    let line = map.lines().find(|line| line.ends_with(": System RAM")).context("no RAM")?;
    let start = line.split('-').next().unwrap_or_default().trim();
    Ok(u64::from_str_radix(start, 16)?)
}

/// Every page of the guard, with the SPMC's arena in it, and pages of secure RAM: named in every call that sends memory or
/// maps a buffer. Some are read and written by CPU and device.
fn foreign_memory(scene: &Scene<'_>) -> Result<String> {
    /// Pages that are read and written too: each costs processes and transfers.
    const SAMPLES: u64 = 12;
    let mut victim = scene.partition()?;
    let receiver = Partition::create(scene.host, scene.image)?;
    let end = own_ram()?;
    ensure!((RAM + (1 << 20)..RAM + (64 << 20)).contains(&end), "the host's RAM starts at {end:#x}");
    let pages: Vec<u64> = (RAM..end).step_by(PAGE_SIZE as usize).chain(SECURE_RAM).chain([FLASH]).collect();
    for page in &pages {
        names_foreign(scene, &receiver, *page)?;
    }
    let own = scene.host.allocate(1)?;
    scene.host.ffa(ffa::RXTX_UNMAP, [0; 3])?;
    let mapped = pages.iter().find_map(|page| {
        let tries = [(own, *page), (*page, own)];
        let mut tries = tries.into_iter().map(|(tx, rx)| scene.host.rxtx_map(tx, rx));
        tries.find(|answer| !matches!(answer, Ok(error::DENIED))).map(|answer| (*page, answer))
    });
    scene.host.restore_mailbox()?;
    if let Some((page, answer)) = mapped {
        bail!("RXTX_MAP of {page:#x}: {}", status_name(answer?));
    }
    let edu = Edu::first(scene.host)?;
    for sample in 0..SAMPLES {
        let address = (RAM + (end - RAM) / SAMPLES * sample) & !(PAGE_SIZE - 1);
        for act in [Act::Read(8), Act::Write(8, 0xBAD)] {
            let access = Access { address, mapping: Mapping::Cached, act };
            let done = scene.aborts(SIGSEGV, || child::access(&[access]))?;
            ensure!(done.is_none(), "{access:x?} is carried out");
        }
        let before = word_outside(address)?;
        let word = edu.read(address)?;
        ensure!(word == 0, "a device reads {word:#x} at {address:#x}");
        // What lies there may change, but not to this.
        edu.write(address, 8, !before)?;
        ensure!(word_outside(address)? != !before, "a device writes at {address:#x}");
    }
    ensure!(victim.damage(&scene.secret)? == 0, "the partition's memory changed");
    Ok(format!("{} pages are refused by six calls", pages.len()))
}

/// Calls of all kinds, none of which a host may expect to succeed or to change anything: a wrong name, a call for nobody, calls
/// that are not there, and some that only answer.
fn storm(host: &Host, end: &AtomicBool, cpu: u32) -> Result<u64> {
    let calls: [[u64; 4]; 8] = [
        [ffa::MSG_SEND_DIRECT_REQ_64.into(), REQUEST_ROUTE, 0, request::DONE.into()],
        [ffa::RUN.into(), 0xBFFF << 16, 0, 0],
        [ffa::FEATURES.into(), ffa::RXTX_MAP_64.into(), 0, 0],
        [ffa::INTERRUPT.into(), 0, 0, 0],
        [0xC400_00EF, 1, 2, 3],
        [PSCI_VERSION, 0, 0, 0],
        [0xC400_0004, cpu.into(), 0, 0],
        [0xBF00_FF01, 0, 0, 0],
    ];
    let mut count = 0;
    while !end.load(Ordering::Relaxed) {
        // The CPU may be offline.
        let _ = sys::pin_to_cpu(cpu);
        for call in calls.iter().cycle().take(400) {
            host.call(call)?;
            count += 1;
        }
        host.module.call(Conduit::Hvc, [PSCI_VERSION; 18])?;
    }
    Ok(count)
}

/// A CPU goes off and comes back, again and again, while both run partitions and storms of calls.
fn cpus_come_and_go(scene: &Scene<'_>) -> Result<String> {
    const ROUNDS: u64 = 16;
    const PATIENCE: Duration = Duration::from_secs(120);
    let switch = Path::new("/sys/devices/system/cpu/cpu1/online");
    let mut partitions = [scene.partition()?, scene.partition()?];
    let (end, secret) = (AtomicBool::new(false), &scene.secret);
    let checks = [const { AtomicU64::new(0) }; 2];
    let checks = &checks;
    let (calls, turned) = thread::scope(|scope| {
        let end = &end;
        let runners: Vec<_> = (0..)
            .zip(&mut partitions)
            .map(|(cpu, partition)| {
                scope.spawn(move || -> Result<()> {
                    while !end.load(Ordering::Relaxed) {
                        let _ = sys::pin_to_cpu(cpu);
                        let damage = partition.damage(secret)?;
                        ensure!(damage == 0, "{damage} copies of the secret are not what they were");
                        checks[cpu as usize].fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let storms: Vec<_> = (0..2).map(|cpu| scope.spawn(move || storm(scene.host, end, cpu))).collect();
        let is_over = || runners.iter().any(|runner| runner.is_finished());
        let progress = || checks.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>();
        // Until both partitions got something done.
        let wait = || -> Result<()> {
            let (before, start) = (progress(), Instant::now());
            while progress().iter().zip(&before).any(|(now, before)| now == before) && !is_over() {
                ensure!(start.elapsed() < PATIENCE, "a partition gets nothing done");
                thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        };
        let turned = (0..ROUNDS).try_for_each(|_| -> Result<()> {
            wait()?;
            fs::write(switch, "0").context("taking a CPU offline")?;
            wait()?;
            fs::write(switch, "1").context("bringing a CPU back")
        });
        end.store(true, Ordering::Relaxed);
        let mut calls = 0;
        let mut result = turned;
        for runner in runners {
            let ran = runner.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")));
            result = result.and(ran);
        }
        for storm in storms {
            match storm.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))) {
                Ok(count) => calls += count,
                Err(error) => result = result.and(Err(error)),
            }
        }
        (calls, result)
    });
    sys::unpin()?;
    let online = fs::read_to_string(switch)?;
    turned?;
    ensure!(online.trim() == "1", "the CPU is not back");
    for partition in &mut partitions {
        ensure!(partition.damage(secret)? == 0, "the secret is not what it was");
    }
    let checks = checks.each_ref().map(|count| count.load(Ordering::Relaxed));
    Ok(format!("{ROUNDS} times, {calls} calls, {checks:?} checks of partitions"))
}

/// Secure interrupts as fast as they come, on both CPUs: a partition's vCPU sends to a sibling, each time a kick of the hypervisor's to
/// the other CPU, in whichever world that is; and the host writes every register that might send one, which it may not.
fn secure_interrupt_storm(scene: &Scene<'_>) -> Result<String> {
    const ROUNDS: u64 = 20;
    const AT_ONCE: u64 = 500;
    const SECURE: core::ops::Range<u64> = 8..16;
    let mut partition = scene.partition()?;
    let runner = partition.runner();
    let started = partition.act(probe::CREW_START, [1, probe::task::SPIN, 0, 0])?.values()?[0];
    ensure!(started == 0, "CPU_ON answers {started:#x}");
    let end = AtomicBool::new(false);
    let registers = ["ICC_SGI1R_EL1", "ICC_ASGI1R_EL1", "ICC_SGI0R_EL1"].map(cpu_state::number);
    let forge = |cpu: u32| -> Result<u64> {
        sys::pin_to_cpu(cpu)?;
        let mut count = 0;
        while !end.load(Ordering::Relaxed) {
            for register in &registers {
                let register = *register.as_ref().map_err(|error| anyhow!("{error}"))?;
                for id in SECURE {
                    scene.host.module.write_register(register, id << 24 | 0b11)?;
                    count += 1;
                }
            }
        }
        Ok(count)
    };
    let (sent, forged, turns) = thread::scope(|scope| {
        let forgers: Vec<_> = (0..2).map(|cpu| scope.spawn(move || forge(cpu))).collect();
        let sibling = scope.spawn(|| -> Result<u64> {
            sys::pin_to_cpu(1)?;
            let mut turns = 0;
            while !end.load(Ordering::Relaxed) {
                runner.enter(1)?;
                turns += 1;
            }
            Ok(turns)
        });
        let mut send = || -> Result<u64> {
            sys::pin_to_cpu(0)?;
            let (mut progress, mut kicks) = (0, 0);
            for _ in 0..ROUNDS {
                partition.act(probe::SEND_SGI, [1 << 1, AT_ONCE, 0, 0])?.values()?;
                kicks += AT_ONCE;
                ensure!(partition.damage(&scene.secret)? == 0, "the secret is not what it was");
                let now = partition.act(probe::CREW_LOOK, [1, 0, 0, 0])?.values()?[0];
                progress = progress.max(now);
                ensure!(scene.host.module.interrupt_all_cpus()? == 2, "a CPU of the host does not answer");
            }
            ensure!(progress > 0, "the other vCPU gets nothing done");
            Ok(kicks)
        };
        let sent = send();
        end.store(true, Ordering::Relaxed);
        let forged = forgers
            .into_iter()
            .map(|forger| forger.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))));
        let forged: Result<u64> = forged.sum();
        let turns = sibling.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")));
        (sent, forged, turns)
    });
    sys::unpin()?;
    let (sent, forged, turns) = (sent?, forged?, turns?);
    Ok(format!("{sent} interrupts between vCPUs in {turns} turns, {forged} forged ones; all go on"))
}
