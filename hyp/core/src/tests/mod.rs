//! Host tests: the shipped policy over `stage2` and its fake machine, driven through the calls that the arch layer makes.
//!
//! [`World`] is that arch layer: it has one GiB of host RAM, a device, and an adversary's host on top.

mod discovery;
mod ffa;
mod fuzz;
mod guest;
#[cfg(feature = "fault-knobs")]
mod knobs;
mod lifecycle;
mod logs;
mod manifest;
mod memory;
mod messages;
mod notifications;
mod npu;
mod private;
mod psci;
mod service;
mod states;
mod vcpus;

use crate::*;
use hyp_abi::ffa as abi;
use hyp_abi::manifest::{Manifest, Region, access, kind};
use hyp_abi::service::{PageRange as AbiRange, op};
use stage2::fake::FakeMachine;
use stage2::{HostMemory, Machine};
use std::boxed::Box;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::vec::Vec;
use zerocopy::{FromBytes, IntoBytes};

pub const RAM: u64 = 0x4000_0000;
pub const RAM_SIZE: u64 = 0x4000_0000;
pub const DEVICE: u64 = 0x0900_0000;
pub const HYPERVISOR: u64 = 0x8000_0000;
pub const ABSENT: u64 = 0x1000_0000;
/// Where a world with secure RAM has it.
pub const SECURE_RAM: u64 = 0x0E00_0000;
/// The host's buffers.
pub const TX: u64 = RAM;
pub const RX: u64 = RAM + 0x1000;
/// Where tests take pages to give from.
pub const PAGES: u64 = RAM + 0x20_0000;
pub const PAGE: u64 = 4096;
/// What firmware calls must not touch.
pub const CANARY: u64 = 0xCA4A_0000_0000_0000;

/// The machine and what the hypervisor asked of it.
pub struct FakePlatform {
    pub machine: FakeMachine,
    pub resets: Vec<(usize, usize, u64, u64)>,
    pub kicks: Vec<usize>,
    /// Signals to the host.
    pub signals: u64,
    /// What every vCPU's timer says.
    pub deadline: Option<u64>,
    /// x0-x17 of a vCPU, set from outside.
    pub set: Vec<(usize, usize, [u64; 18])>,
    /// Pages that a racing host puts into TX after each read of it.
    pub races: RefCell<VecDeque<[u8; 4096]>>,
    /// Reads of TX.
    pub fetches: RefCell<u64>,
    pub npu: npu::FakeNpu,
}

impl Machine for FakePlatform {
    fn load(&self, table: Pa, index: usize) -> u64 {
        self.machine.load(table, index)
    }
    fn store(&mut self, table: Pa, index: usize, descriptor: u64) {
        self.machine.store(table, index, descriptor);
    }
    fn tlbi_pages(&mut self, vmid: u16, ipa: stage2::Ipa, page_count: u64) {
        self.machine.tlbi_pages(vmid, ipa, page_count);
    }
    fn tlbi_vmid(&mut self, vmid: u16) {
        self.machine.tlbi_vmid(vmid);
    }
    fn zero(&mut self, page: Pa) {
        self.machine.zero(page);
    }
    fn clean(&mut self, page: Pa) {
        self.machine.clean(page);
    }
    fn sync_icache(&mut self, page: Pa) {
        self.machine.sync_icache(page);
    }
    fn ticks(&self) -> u64 {
        self.machine.ticks()
    }
}

impl Platform for FakePlatform {
    fn read_page(&self, page: Pa, buffer: &mut [u8; 4096]) {
        *buffer = self.machine.read_page(page);
        if page == Pa(TX) {
            *self.fetches.borrow_mut() += 1;
            if *self.fetches.borrow() > 1
                && let Some(later) = self.races.borrow_mut().pop_front()
            {
                *buffer = later;
            }
        }
    }
    fn write_page(&mut self, page: Pa, offset: usize, bytes: &[u8]) {
        let mut content = self.machine.read_page(page);
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.machine.write_page(page, &content);
    }
    fn ticks_per_second(&self) -> u64 {
        1_000_000
    }
    fn reset_vcpu(&mut self, slot: Slot, vcpu: usize, entry: u64, argument: u64) {
        self.resets.push((slot.index(), vcpu, entry, argument));
    }
    fn set_registers(&mut self, slot: Slot, vcpu: usize, registers: &[u64; 18]) {
        self.set.push((slot.index(), vcpu, *registers));
    }
    fn kick(&mut self, cpu: usize) {
        self.kicks.push(cpu);
    }
    fn signal_host(&mut self) {
        self.signals += 1;
    }
    fn timer_deadline(&self, _: Slot, _: usize) -> Option<u64> {
        self.deadline
    }
    fn npu(&mut self, step: NpuStep) -> Result<(), NpuFault> {
        self.npu.step(step, &mut self.machine)
    }
    fn npu_jobs(&self) -> u64 {
        self.npu.jobs
    }
    fn dma_blocked(&self) -> u64 {
        self.npu.blocked
    }
}

/// Host, hypervisor and machine.
pub struct World {
    pub platform: FakePlatform,
    pub hyp: Box<Hypervisor>,
}

/// x0-x17 of a call; the registers that it does not use hold canaries.
pub fn registers(words: &[u64]) -> [u64; 18] {
    let mut regs: [u64; 18] = std::array::from_fn(|i| CANARY + i as u64);
    if words.first().is_some_and(|w| crate::ffa::is_ffa(*w as u32)) {
        regs[..8].fill(0);
    }
    regs[..words.len()].copy_from_slice(words);
    regs
}

/// Whether the answer to a call may use x8-x17.
fn uses_more_registers(function: u64) -> bool {
    matches!(function as u32, abi::PARTITION_INFO_GET_REGS | abi::MSG_SEND_DIRECT_REQ2)
}

/// An error code as w2 holds it.
pub fn w(code: i32) -> u64 {
    u64::from(code as u32)
}

/// A status as x3 or a firmware call's x0 holds it.
pub fn x(code: i32) -> u64 {
    i64::from(code) as u64
}

impl World {
    /// As after boot: `tables` table pages, no mailbox.
    pub fn bare(tables: u64) -> Self {
        let roots = std::array::from_fn(|i| Pa(HYPERVISOR + 0x4000 + 0x4000 * i as u64));
        let machine = FakeMachine::new(2, Pa(HYPERVISOR), roots);
        let mut platform = FakePlatform {
            machine,
            resets: Vec::new(),
            kicks: Vec::new(),
            signals: 0,
            deadline: None,
            set: Vec::new(),
            races: RefCell::default(),
            fetches: RefCell::new(0),
            npu: npu::FakeNpu::default(),
        };
        let mut hyp = Box::new(Hypervisor::new(FlexMem::new(Pa(HYPERVISOR), roots, 3)));
        let memory = hyp.memory_mut();
        for i in 0..tables {
            memory.boot_donate_table(&mut platform, Pa(HYPERVISOR + 0x10_0000 + i * PAGE)).unwrap();
        }
        memory.boot_map_host(&mut platform, Pa(RAM), RAM_SIZE, HostMemory::Ram).unwrap();
        memory.boot_map_host(&mut platform, Pa(DEVICE), 0x20_0000, HostMemory::Device).unwrap();
        memory.boot_reserve(&mut platform, Pa(HYPERVISOR), 0x20_0000).unwrap();
        Self { platform, hyp }
    }

    /// With a mailbox and tables enough for all tests.
    pub fn new() -> Self {
        let mut world = Self::bare(120);
        assert_eq!(world.ffa(&[abi::RXTX_MAP_64.into(), TX, RX, 1])[0], abi::SUCCESS_32.into());
        world
    }

    /// The same above a secure world with `pages` pages for private memory.
    pub fn secure(pages: u64) -> Self {
        let mut world = Self::new();
        let World { platform, hyp } = &mut world;
        let roots = std::array::from_fn(|i| Pa(SECURE_RAM + 0x4000 * (i as u64 + 1)));
        platform.machine.add_secure(roots);
        let mut secure = FlexMem::new(Pa(SECURE_RAM), roots, 0);
        secure.boot_unwalked();
        for i in 0..24 {
            secure.boot_donate_table(platform, Pa(SECURE_RAM + 0x8_0000 + i * PAGE)).unwrap();
        }
        secure.boot_map_host(platform, Pa(SECURE_RAM + 0x20_0000), pages * PAGE, HostMemory::Ram).unwrap();
        hyp.install_secure_ram(secure);
        world
    }

    /// An SMC of the host on CPU 0; checks that x8-x17 are kept.
    pub fn smc(&mut self, words: &[u64]) -> ([u64; 18], Outcome) {
        self.smc_on(0, words)
    }

    pub fn smc_on(&mut self, cpu: usize, words: &[u64]) -> ([u64; 18], Outcome) {
        let before = registers(words);
        let mut regs = before;
        let outcome = self.hyp.host_call(&mut self.platform, cpu, &mut regs);
        if !uses_more_registers(words[0]) {
            assert_eq!(regs[8..], before[8..], "x8-x17 of {words:x?}");
        }
        self.platform.machine.quiesce();
        assert_eq!(self.platform.machine.violations, Vec::<std::string::String>::new());
        (regs, outcome)
    }

    /// An FF-A call of the host that returns: x0-x7.
    pub fn ffa(&mut self, words: &[u64]) -> [u64; 8] {
        let (regs, outcome) = self.smc(words);
        assert_eq!(outcome, Outcome::Return, "{words:x?}");
        regs[..8].try_into().unwrap()
    }

    /// A request to the vendor service: status and x4-x7.
    pub fn request(&mut self, operation: u64, arguments: &[u64]) -> (i32, [u64; 4]) {
        let mut words =
            vec64(&[abi::MSG_SEND_DIRECT_REQ_64.into(), u64::from(abi::SERVICE_ID), 0, operation]);
        words.extend(arguments);
        let answer = self.ffa(&words);
        assert_eq!(
            answer[..3],
            [u64::from(abi::MSG_SEND_DIRECT_RESP_64), u64::from(abi::SERVICE_ID) << 16, 0],
            "{operation:#x} {arguments:x?}"
        );
        let status = answer[3] as i32;
        assert_eq!(answer[3], x(status), "status is sign-extended");
        (status, answer[4..].try_into().unwrap())
    }

    /// A request that succeeds: x4-x7.
    pub fn ok(&mut self, operation: u64, arguments: &[u64]) -> [u64; 4] {
        let (status, results) = self.request(operation, arguments);
        assert_eq!(status, 0, "{operation:#x} {arguments:x?}: {results:x?}");
        results
    }

    /// Writes TX.
    pub fn tx(&mut self, bytes: &[u8]) {
        self.platform.machine.write_page(Pa(TX), &page(bytes));
    }

    /// Reads RX and gives it back.
    pub fn rx(&mut self, size: usize) -> Vec<u8> {
        let bytes = self.platform.machine.read_page(Pa(RX))[..size].to_vec();
        assert_eq!(self.ffa(&[abi::RX_RELEASE.into()])[0], abi::SUCCESS_32.into());
        bytes
    }

    /// A request with a list of ranges in TX.
    pub fn with_list(&mut self, operation: u64, arguments: &[u64], list: &[(u64, u64)]) -> (i32, [u64; 4]) {
        self.tx(&list_bytes(list));
        let mut words = arguments.to_vec();
        words.push(list.len() as u64);
        self.request(operation, &words)
    }

    /// GIVE of one range.
    pub fn give(&mut self, id: u64, ipa: u64, base: u64, page_count: u64) -> (i32, [u64; 4]) {
        self.with_list(op::GIVE, &[id, ipa], &[(base, page_count)])
    }

    /// CREATE of a manifest: status and id.
    pub fn create(&mut self, manifest: &Manifest) -> (i32, [u64; 4]) {
        self.tx(manifest.as_bytes());
        self.request(op::CREATE, &[size_of::<Manifest>() as u64])
    }

    /// MEASURE to its end; the measurement.
    pub fn measure(&mut self, id: u64) -> [u8; 48] {
        while self.ok(op::MEASURE, &[id])[0] > 0 {}
        self.rx(48).try_into().unwrap()
    }

    /// DESTROY to its end.
    pub fn destroy(&mut self, id: u64) {
        while self.ok(op::DESTROY, &[id])[0] > 0 {}
    }

    /// A created partition with contents in its image (pages IMAGE_PAGES at PAGES) and some private and session pages.
    pub fn populated(&mut self) -> u64 {
        self.populated_at(PAGES)
    }

    /// The same with its pages elsewhere.
    pub fn populated_at(&mut self, pages: u64) -> u64 {
        self.populated_as(&manifest(), pages)
    }

    /// The same by a manifest of its own.
    pub fn populated_as(&mut self, manifest: &Manifest, pages: u64) -> u64 {
        let (status, [id, ..]) = self.create(manifest);
        assert_eq!(status, 0);
        for i in 0..IMAGE_PAGES {
            self.platform.machine.write_page(Pa(pages + i * PAGE), &[i as u8 + 1; 4096]);
        }
        assert_eq!(self.give(id, IMAGE, pages, IMAGE_PAGES).0, 0);
        assert_eq!(self.give(id, HEAP, pages + 64 * PAGE, 4).0, 0);
        assert_eq!(self.give(id, SESSION, pages + 80 * PAGE, 2).0, 0);
        id
    }

    /// A running one.
    pub fn running(&mut self) -> u64 {
        let id = self.populated();
        self.measure(id);
        self.ok(op::START, &[id]);
        id
    }

    /// Enters vCPU `vcpu` on `cpu`.
    pub fn enter(&mut self, id: u64, vcpu: u64, cpu: usize) {
        let (_, outcome) = self.smc_on(cpu, &[abi::RUN.into(), id << 16 | vcpu]);
        assert_eq!(outcome, Outcome::Enter { slot: slot(id), vcpu: vcpu as usize });
    }

    /// The vCPU comes out: what is next, its registers, and x0-x7 of the host.
    pub fn exit(&mut self, id: u64, vcpu: u64, exit: Exit, guest: &[u64]) -> (Next, [u64; 18], [u64; 8]) {
        let before = registers(guest);
        let host_before = registers(&[abi::RUN.into(), id << 16 | vcpu]);
        let (mut regs, mut host) = (before, host_before);
        let next =
            self.hyp.vcpu_exit(&mut self.platform, slot(id), vcpu as usize, exit, &mut regs, &mut host);
        if !guest.first().copied().is_some_and(uses_more_registers) {
            assert_eq!(regs[8..], before[8..], "the partition's x8-x17");
        }
        if host[0] as u32 != abi::MSG_SEND_DIRECT_RESP2 {
            assert_eq!(host[8..], host_before[8..], "the host's x8-x17");
        }
        assert!(next == Next::Host || host == host_before, "the host's registers while the vCPU goes on");
        self.platform.machine.quiesce();
        assert_eq!(self.platform.machine.violations, Vec::<std::string::String>::new());
        (next, regs, host[..8].try_into().unwrap())
    }

    /// A call of the partition that does not leave it: its x0-x7.
    pub fn guest_call(&mut self, id: u64, words: &[u64]) -> [u64; 8] {
        let (next, regs, _) = self.exit(id, 0, Exit::Call, words);
        assert_eq!(next, Next::Resume, "{words:x?}");
        regs[..8].try_into().unwrap()
    }

    /// A running partition whose pages lie elsewhere, with vCPU 0 inside on `cpu`.
    pub fn inside_at(&mut self, pages: u64, cpu: usize) -> u64 {
        let id = self.populated_at(pages);
        self.measure(id);
        self.ok(op::START, &[id]);
        self.enter(id, 0, cpu);
        id
    }

    /// A partition's buffers: the first two pages of its heap.
    pub fn map_buffers(&mut self, id: u64) {
        let map = [abi::RXTX_MAP_64.into(), HEAP, HEAP + PAGE, 1];
        assert_eq!(self.guest_call(id, &map)[0], abi::SUCCESS_32.into());
    }

    /// Physical address of a partition's page.
    pub fn page_of(&self, id: u64, ipa: u64) -> Pa {
        self.hyp.memory().partition_page(&self.platform, slot(id), stage2::Ipa(ipa)).unwrap().pa
    }

    /// A request of the partition to the vendor service: status and x4-x7.
    pub fn guest_request(&mut self, id: u64, operation: u64, arguments: &[u64]) -> (i32, [u64; 4]) {
        let route = id << 16 | u64::from(abi::SERVICE_ID);
        let mut words = vec64(&[abi::MSG_SEND_DIRECT_REQ_64.into(), route, 0, operation]);
        words.extend(arguments);
        let answer = self.guest_call(id, &words);
        assert_eq!(
            answer[..3],
            [u64::from(abi::MSG_SEND_DIRECT_RESP_64), u64::from(abi::SERVICE_ID) << 16 | id, 0]
        );
        (answer[3] as i32, answer[4..].try_into().unwrap())
    }

    /// The host's own software touches a page: its first word, none when it faults.
    pub fn host_reads(&mut self, pa: u64) -> Option<u64> {
        self.platform.machine.read(0, stage2::HOST_VMID, stage2::Ipa(pa), true)
    }

    pub fn system_stats(&mut self) -> hyp_abi::stats::SystemStats {
        let [size, ..] = self.ok(op::STATS, &[0]);
        hyp_abi::stats::SystemStats::read_from_bytes(&self.rx(size as usize)).unwrap()
    }

    pub fn partition_stats(&mut self, id: u64) -> hyp_abi::stats::PartitionStats {
        let [size, ..] = self.ok(op::STATS, &[id]);
        hyp_abi::stats::PartitionStats::read_from_bytes(&self.rx(size as usize)).unwrap()
    }

    /// What memory looks like, for comparison before and after: by counts that a leak would change.
    pub fn census(&self) -> (stage2::Census, Option<stage2::Census>, u64) {
        let memory = self.hyp.memory();
        (memory.census(), self.hyp.secure.as_ref().map(FlexMem::census), memory.counters().pages_shared)
    }
}

pub fn vec64(words: &[u64]) -> Vec<u64> {
    words.to_vec()
}

pub fn slot(id: u64) -> Slot {
    crate::partition::slot_of(id).unwrap()
}

pub fn page(bytes: &[u8]) -> [u8; 4096] {
    let mut page = [0; 4096];
    page[..bytes.len()].copy_from_slice(bytes);
    page
}

pub fn list_bytes(list: &[(u64, u64)]) -> Vec<u8> {
    list.iter().flat_map(|&(base, page_count)| AbiRange { base, page_count }.as_bytes().to_vec()).collect()
}

pub const IMAGE: u64 = 0x40_0000;
pub const DATA: u64 = 0x60_0000;
pub const HEAP: u64 = 0x2_0000_0000;
pub const SESSION: u64 = 0x4_0000_0000;
pub const MODEL: u64 = 0x8_0000_0000;
pub const BORROWED: u64 = 0x10_0000_0000;
pub const BORROWED_READ: u64 = 0x18_0000_0000;
/// More than one MEASURE step.
pub const IMAGE_PAGES: u64 = 40;

/// The manifest with room to borrow.
pub fn borrowing() -> Manifest {
    let mut manifest = manifest();
    let region = |ipa, page_count, access| Region { ipa, page_count, kind: kind::BORROWED, access };
    manifest.regions[5] = region(BORROWED, 1024, access::READ | access::WRITE);
    manifest.regions[6] = region(BORROWED_READ, 16, access::READ);
    manifest.region_count = 7;
    manifest
}

/// A manifest with one region of each kind, regions deliberately out of order.
pub fn manifest() -> Manifest {
    let region = |ipa, page_count, kind, access| Region { ipa, page_count, kind, access };
    let mut regions = [Region::default(); 16];
    regions[0] = region(MODEL, 64, kind::MODEL, access::READ);
    regions[1] = region(IMAGE, 64, kind::IMAGE, access::READ | access::EXECUTE);
    regions[2] = region(DATA, 16, kind::IMAGE, access::READ | access::WRITE);
    regions[3] = region(HEAP, 2048, kind::ZERO, access::READ | access::WRITE);
    regions[4] = region(SESSION, 8, kind::SHARED, access::READ | access::WRITE);
    Manifest {
        magic: hyp_abi::manifest::MAGIC,
        version: 1,
        vcpu_count: 2,
        entry: IMAGE + 0x40,
        region_count: 5,
        reserved: 0,
        name: *b"phone-assistant\0",
        regions,
    }
}
