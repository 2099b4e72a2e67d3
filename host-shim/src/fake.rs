//! A fake hypervisor with a fake partition, for tests. It checks what the real one checks: pages given twice or outside
//! their region, calls in the wrong state, a session taken up before its pages are shared. Its session is a pair of rings.
//!
//! The partition is a function in a thread of its own; it and the host take turns as a vCPU does.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use guest_abi::session::{Channel, MAX_FRAME, RING_SIZE, RingError, SESSION_PAGES};
use guest_abi::virtio::VIRTIO_PAGES;
use hyp_abi::PAGE_SIZE;
use hyp_abi::manifest::{MEASURE_LABEL, Manifest, kind};
use hyp_abi::service::MEASUREMENT_SIZE;
use hyp_abi::stats::{PartitionStats, SystemStats, state};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use sha2::{Digest, Sha384};
use zerocopy::{FromBytes, FromZeros};

use crate::error::{Error, Result as ResultOf};
use crate::machine::{CallError, Contents, Exit, Line, Machine, Measured};
use crate::sys::SessionMap;

/// What the partition does; returns how it ends.
pub trait Script: FnOnce(&Fake) -> Exit + Send {}
impl<T: FnOnce(&Fake) -> Exit + Send> Script for T {}

/// The fake; clones are views of the same one.
#[derive(Clone)]
pub struct Fake(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// The session's memory.
    file: File,
    /// The host's end of the vCPU; none once the partition has ended.
    host: Mutex<Option<(SyncSender<()>, Receiver<Exit>)>>,
    /// The partition's end.
    guest: Mutex<Option<(Receiver<()>, SyncSender<Exit>)>>,
    script: Mutex<Option<Box<dyn Script>>>,
}

#[derive(Default)]
struct State {
    manifest: Option<(Manifest, Vec<u8>)>,
    /// One of [`state`]; 0 before and after.
    phase: u32,
    pages: BTreeMap<u64, Vec<u8>>,
    given: u64,
    recalled: u64,
    shared: u64,
    entries: u64,
    stopped: bool,
    measurement: Option<[u8; MEASUREMENT_SIZE]>,
    corrupt: bool,
    fail_give: Option<(u64, Errno)>,
    /// Bits of vCPUs that were entered.
    vcpus: u32,
    crash_other: Option<Exit>,
    measure_calls: u32,
    services: u32,
    break_devices_after: Option<u32>,
}

impl Fake {
    /// The partition's id.
    pub const ID: u16 = 0x8002;

    /// A machine whose partition will run `script`.
    pub fn new(script: impl Script + 'static) -> Self {
        let file = File::from(memfd_create("session", MFdFlags::empty()).unwrap());
        file.set_len(SESSION_PAGES * PAGE_SIZE).unwrap();
        let (enter, entered) = sync_channel(0);
        let (leave, left) = sync_channel(0);
        Fake(Arc::new(Inner {
            state: Mutex::default(),
            file,
            host: Mutex::new(Some((enter, left))),
            guest: Mutex::new(Some((entered, leave))),
            script: Mutex::new(Some(Box::new(script))),
        }))
    }

    /// A machine whose partition is started already.
    pub fn started(script: impl Script + 'static) -> Self {
        let fake = Self::new(script);
        fake.0.state.lock().unwrap().phase = state::MEASURED;
        fake.start().unwrap();
        fake
    }

    /// Makes the next measurement differ from what was given.
    pub fn corrupt_measurement(&self) {
        self.0.state.lock().unwrap().corrupt = true;
    }

    /// Makes a give at this IPA fail.
    pub fn fail_give(&self, ipa: u64, errno: Errno) {
        self.0.state.lock().unwrap().fail_give = Some((ipa, errno));
    }

    /// How many vCPUs were ever entered.
    pub fn vcpus_seen(&self) -> u32 {
        self.0.state.lock().unwrap().vcpus.count_ones()
    }

    /// Makes the next entry of a vCPU other than 0 end the partition.
    pub fn crash_other(&self, exit: Exit) {
        self.0.state.lock().unwrap().crash_other = Some(exit);
    }

    /// Lets the devices fail when they were looked after so many times.
    pub fn break_devices_after(&self, services: u32) {
        self.0.state.lock().unwrap().break_devices_after = Some(services);
    }

    /// How often devices were looked after.
    pub fn services(&self) -> u32 {
        self.0.state.lock().unwrap().services
    }

    /// The measurement that was reported.
    pub fn measurement(&self) -> [u8; MEASUREMENT_SIZE] {
        self.0.state.lock().unwrap().measurement.unwrap()
    }

    /// Whether the partition was destroyed and all its pages came back.
    pub fn is_gone(&self) -> bool {
        let state = self.0.state.lock().unwrap();
        state.manifest.is_some()
            && state.phase == 0
            && state.pages.is_empty()
            && state.given == state.recalled
    }

    /// Whether there ever was a partition.
    pub fn was_created(&self) -> bool {
        self.0.state.lock().unwrap().manifest.is_some()
    }

    /// Whether the host stopped the partition.
    pub fn stopped(&self) -> bool {
        self.0.state.lock().unwrap().stopped
    }

    /// Partition: shares the pages of its session.
    pub fn share_session(&self) {
        self.0.state.lock().unwrap().shared = VIRTIO_PAGES;
    }

    /// Partition: comes out, and goes on when it is entered again. Ends the thread when it never is.
    pub fn come_out(&self, exit: Exit) {
        let guest = self.0.guest.lock().unwrap();
        let (entered, leave) = guest.as_ref().unwrap();
        if leave.send(exit).is_err() || entered.recv().is_err() {
            drop(guest);
            std::panic::resume_unwind(Box::new("the host is gone"));
        }
    }

    /// Partition: sends a frame and has the host look.
    pub fn say(&self, kind: u32, payload: &[u8]) {
        assert_eq!(self.session().to_host.send(kind, payload, &[]), Ok(true));
        self.come_out(Exit::Kick);
    }

    /// Partition: waits for the host's next frame.
    pub fn wait_for_frame(&self) -> (u32, Vec<u8>) {
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            if let Some((kind, length)) = self.session().to_partition.receive(&mut buffer).unwrap() {
                buffer.truncate(length);
                return (kind, buffer);
            }
            self.come_out(Exit::Waiting);
        }
    }

    /// Partition: writes `bytes` at `offset` from the next frame in the ring to the host, and claims that `length` bytes
    /// are there.
    pub fn poke_to_host(&self, offset: u64, bytes: &[u8], length: u32) {
        let ring = 64 + 128 + RING_SIZE as u64;
        let mut tail = [0; 4];
        self.0.file.read_exact_at(&mut tail, ring + 64).unwrap();
        let tail = u32::from_le_bytes(tail);
        self.0.file.write_all_at(bytes, ring + 128 + u64::from(tail) + offset).unwrap();
        self.0.file.write_all_at(&tail.wrapping_add(length).to_le_bytes(), ring).unwrap();
    }

    fn session(&self) -> SessionMap {
        SessionMap::new(self.0.file.as_fd(), 0).unwrap()
    }

    fn in_phase(
        &self,
        call: &'static str,
        allowed: &[u32],
    ) -> Result<std::sync::MutexGuard<'_, State>, CallError> {
        let state = self.0.state.lock().unwrap();
        if allowed.contains(&state.phase) {
            return Ok(state);
        }
        Err(CallError { call, errno: Errno::EACCES, status: -6, detail: 0 })
    }
}

fn refuse<T>(call: &'static str, detail: u64) -> Result<T, CallError> {
    Err(CallError { call, errno: Errno::EINVAL, status: -2, detail })
}

impl Machine for Fake {
    type Line = Rings;

    fn create(&self, manifest: &[u8]) -> Result<u16, CallError> {
        let mut state = self.in_phase("CREATE", &[0])?;
        assert!(state.manifest.is_none(), "one partition in a file's life");
        state.manifest = Some((Manifest::read_from_bytes(manifest).unwrap(), manifest.to_vec()));
        state.phase = state::CREATED;
        Ok(Self::ID)
    }

    fn give(&self, ipa: u64, contents: Contents<'_>, mappable: bool) -> Result<(), CallError> {
        let mut state = self.in_phase("GIVE", &[state::CREATED, state::RUNNING])?;
        if let Some((_, errno)) = state.fail_give.filter(|(at, _)| *at == ipa) {
            return Err(CallError { call: "GIVE", errno, status: 0, detail: 0 });
        }
        let pages = match contents {
            Contents::Zero(pages) => pages,
            Contents::Bytes(bytes) => {
                assert_eq!(bytes.len() as u64 % PAGE_SIZE, 0, "whole pages");
                bytes.len() as u64 / PAGE_SIZE
            }
        };
        let (manifest, _) = state.manifest.as_ref().unwrap();
        let inside = |region: &&hyp_abi::manifest::Region| {
            region.ipa <= ipa && ipa + pages * PAGE_SIZE <= region.ipa + region.page_count * PAGE_SIZE
        };
        let Some(region) = manifest.regions.iter().find(inside).copied() else { return refuse("GIVE", ipa) };
        if state.phase == state::RUNNING && region.kind != kind::ZERO {
            return refuse("GIVE", ipa);
        }
        assert_eq!(mappable, region.kind == kind::SHARED);
        for page in 0..pages {
            let bytes = match contents {
                Contents::Zero(_) => vec![0; PAGE_SIZE as usize],
                Contents::Bytes(bytes) => bytes[(page * PAGE_SIZE) as usize..][..PAGE_SIZE as usize].to_vec(),
            };
            if state.pages.insert(ipa + page * PAGE_SIZE, bytes).is_some() {
                return refuse("GIVE", ipa + page * PAGE_SIZE);
            }
        }
        state.given += pages;
        Ok(())
    }

    fn measure(&self) -> Result<Measured, CallError> {
        let mut state = self.in_phase("MEASURE", &[state::CREATED])?;
        if state.measure_calls < 2 {
            state.measure_calls += 1;
            return Ok(Measured::Left(2 - u64::from(state.measure_calls)));
        }
        let (manifest, bytes) = state.manifest.as_ref().unwrap();
        let mut hash = Sha384::new();
        hash.update(MEASURE_LABEL);
        hash.update(bytes);
        for (ipa, bytes) in &state.pages {
            let region =
                manifest.regions.iter().rev().find(|region| region.page_count > 0 && region.ipa <= *ipa);
            let kind = region.map_or(kind::NONE, |region| region.kind);
            if kind == kind::IMAGE || kind == kind::MODEL {
                hash.update(ipa.to_le_bytes());
                hash.update(bytes);
            }
        }
        let mut measurement: [u8; MEASUREMENT_SIZE] = hash.finalize().into();
        measurement[0] ^= u8::from(state.corrupt);
        state.measurement = Some(measurement);
        state.phase = state::MEASURED;
        Ok(Measured::Whole(measurement))
    }

    fn start(&self) -> Result<(), CallError> {
        self.in_phase("START", &[state::MEASURED])?.phase = state::RUNNING;
        let script = self.0.script.lock().unwrap().take().unwrap();
        let partition = self.clone();
        std::thread::spawn(move || {
            let entered = partition.0.guest.lock().unwrap().as_ref().unwrap().0.recv();
            if entered.is_ok() {
                let end = script(&partition);
                let guest = partition.0.guest.lock().unwrap().take().unwrap();
                // Nobody may be interested in the end.
                let _ = guest.1.send(end);
            }
        });
        Ok(())
    }

    fn run(&self, vcpu: u32, _: u64) -> Result<Exit, CallError> {
        let mut state = self.in_phase("RUN", &[state::RUNNING])?;
        state.vcpus |= 1 << vcpu;
        if vcpu > 0 {
            if let Some(exit) = state.crash_other.take() {
                state.phase = state::CRASHED;
                return Ok(exit);
            }
            drop(state);
            // Off, as far as this fake goes.
            std::thread::sleep(std::time::Duration::from_millis(1));
            return Ok(Exit::Slice);
        }
        state.entries += 1;
        drop(state);
        let host = self.0.host.lock().unwrap();
        let Some((enter, left)) = host.as_ref() else { return refuse("RUN", 0) };
        enter.send(()).expect("the partition's thread is there");
        let exit = left.recv().expect("the partition's thread did not panic");
        match exit {
            Exit::Finished(_) => self.0.state.lock().unwrap().phase = state::FINISHED,
            Exit::Crashed(..) => self.0.state.lock().unwrap().phase = state::CRASHED,
            _ => {}
        }
        Ok(exit)
    }

    fn stop(&self) -> Result<(), CallError> {
        let mut state = self.in_phase("STOP", &[state::RUNNING])?;
        state.phase = state::STOPPED;
        state.stopped = true;
        Ok(())
    }

    fn recall(&self, ipa: u64, pages: u64) -> Result<u64, CallError> {
        let mut state = self.in_phase("RECALL", &[state::FINISHED, state::STOPPED, state::CRASHED])?;
        let range: Vec<u64> = state.pages.range(ipa..ipa + pages * PAGE_SIZE).map(|(ipa, _)| *ipa).collect();
        range.iter().for_each(|ipa| drop(state.pages.remove(ipa)));
        state.recalled += range.len() as u64;
        Ok(range.len() as u64)
    }

    fn destroy(&self) -> Result<u64, CallError> {
        let mut state = self.0.state.lock().unwrap();
        let left = state.pages.len() as u64;
        state.pages.clear();
        state.recalled += left;
        state.phase = 0;
        // The partition's thread, if it waits, ends.
        self.0.host.lock().unwrap().take();
        Ok(left)
    }

    fn system_stats(&self) -> Result<SystemStats, CallError> {
        let state = self.0.state.lock().unwrap();
        Ok(SystemStats { pages_given: state.given, pages_recalled: state.recalled, ..SystemStats::default() })
    }

    fn partition_stats(&self, id: u16) -> Result<PartitionStats, CallError> {
        assert_eq!(id, Self::ID);
        let state = self.0.state.lock().unwrap();
        let mut stats = PartitionStats::new_zeroed();
        stats.state = state.phase;
        stats.pages_given = state.given;
        stats.pages_shared = state.shared;
        stats.world_switches = state.entries;
        Ok(stats)
    }

    fn connect(&self) -> ResultOf<Rings> {
        assert_eq!(self.0.state.lock().unwrap().shared, VIRTIO_PAGES, "a touch would be a bus error");
        Ok(Rings { session: self.session(), fake: self.clone() })
    }
}

/// The host's end of the session.
pub struct Rings {
    session: SessionMap,
    fake: Fake,
}

impl Line for Rings {
    fn service(&mut self) -> ResultOf<bool> {
        let mut state = self.fake.0.state.lock().unwrap();
        state.services += 1;
        let broken = state.break_devices_after.is_some_and(|most| state.services > most);
        if broken { Err(Error::protocol("enough")) } else { Ok(false) }
    }
}

impl Channel for Rings {
    type Error = RingError;

    fn send(&mut self, kind: u32, first: &[u8], second: &[u8]) -> Result<bool, RingError> {
        self.session.to_partition.send(kind, first, second)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<(u32, usize)>, RingError> {
        self.session.to_host.receive(buffer)
    }
}
