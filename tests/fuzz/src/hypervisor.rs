//! A hostile host and hostile partitions, hand in hand, against the hypervisor's policy.
//!
//! The input is a sequence of steps: bytes for a message buffer, a call of the host, a vCPU that comes out. Half of the
//! numbers come from a table of those that matter, the rest are the input's. After the last step everybody leaves, and
//! every page and every table must be back.

use std::sync::OnceLock;

use arbitrary::{Arbitrary, Result, Unstructured};
use hyp_abi::ffa;
use hyp_abi::manifest::{MAGIC, Manifest, Region, access, kind};
use hyp_abi::memory::{
    ATTRIBUTES, CompositeRegion, Constituent, EndpointAccess, EndpointAccess11, MemoryRegion, READ_ONLY,
    READ_WRITE, Relinquish,
};
use hyp_abi::service::op;
use hyp_core::{Exit, Hypervisor, Next, NpuFault, NpuLayout, NpuStep, Outcome, Platform};
use stage2::fake::FakeMachine;
use stage2::{Census, FlexMem, HostMemory, Ipa, Machine, Pa, PageRange, Slot};
use zerocopy::IntoBytes;

/// Registers of the NPU.
const WINDOW: u64 = 200 << 30;
const PAGE: u64 = 4096;
const RAM: u64 = 0x4000_0000;
const RAM_SIZE: u64 = 0x1000_0000;
const DEVICE: u64 = 0x0900_0000;
const HYPERVISOR: u64 = 0x8000_0000;
const SECURE_RAM: u64 = 0x0E00_0000;
const TX: u64 = RAM;
const RX: u64 = RAM + PAGE;
/// Buffers for the end, which no step names.
const LAST_TX: u64 = RAM + RAM_SIZE - 2 * PAGE;
const PAGES: u64 = RAM + 0x20_0000;
const IMAGE: u64 = 0x40_0000;
const HEAP: u64 = 0x2_0000_0000;
const SESSION: u64 = 0x4_0000_0000;
const MODEL: u64 = 0x8_0000_0000;
const BORROWED: u64 = 0x20_0000_0000;
/// Steps of one input.
const STEPS: usize = 128;

struct Fake(FakeMachine);

impl Machine for Fake {
    fn load(&self, table: Pa, index: usize) -> u64 {
        self.0.load(table, index)
    }
    fn store(&mut self, table: Pa, index: usize, descriptor: u64) {
        self.0.store(table, index, descriptor);
    }
    fn tlbi_pages(&mut self, vmid: u16, ipa: Ipa, page_count: u64) {
        self.0.tlbi_pages(vmid, ipa, page_count);
    }
    fn tlbi_vmid(&mut self, vmid: u16) {
        self.0.tlbi_vmid(vmid);
    }
    fn zero(&mut self, page: Pa) {
        self.0.zero(page);
    }
    fn clean(&mut self, page: Pa) {
        self.0.clean(page);
    }
    fn sync_icache(&mut self, page: Pa) {
        self.0.sync_icache(page);
    }
    fn ticks(&self) -> u64 {
        self.0.ticks()
    }
}

impl Platform for Fake {
    fn read_page(&self, page: Pa, buffer: &mut [u8; 4096]) {
        *buffer = self.0.read_page(page);
    }
    fn write_page(&mut self, page: Pa, offset: usize, bytes: &[u8]) {
        let mut content = self.0.read_page(page);
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.0.write_page(page, &content);
    }
    fn ticks_per_second(&self) -> u64 {
        1_000_000
    }
    fn reset_vcpu(&mut self, _: Slot, _: usize, _: u64, _: u64) {}
    fn set_registers(&mut self, _: Slot, _: usize, _: &[u64; 18]) {}
    fn kick(&mut self, _: usize) {}
    fn signal_host(&mut self) {}
    fn timer_deadline(&self, slot: Slot, _: usize) -> Option<u64> {
        (slot.index() == 0).then_some(1000)
    }
    fn npu(&mut self, _: NpuStep) -> Result<(), NpuFault> {
        Ok(())
    }
    fn npu_jobs(&self) -> u64 {
        0
    }
    fn dma_blocked(&self) -> u64 {
        0
    }
}

struct World {
    fake: Fake,
    hypervisor: Box<Hypervisor>,
    /// Slot and vCPU on a CPU.
    inside: Vec<(Slot, usize)>,
    /// Handles of memory transactions that anybody got.
    handles: Vec<u64>,
}

/// Attacks the hypervisor with what the input says.
pub fn hypervisor(data: &[u8]) {
    let mut input = Unstructured::new(data);
    // The last byte says in which deployment.
    let mut world = World::new(data.last().is_some_and(|byte| byte & 1 == 1));
    world.populate();
    for _ in 0..STEPS {
        if input.is_empty() || world.step(&mut input).is_err() {
            break;
        }
        world.check();
    }
    world.finish();
}

/// Secure RAM that few images fill.
fn secure_ram(fake: &mut Fake) -> FlexMem {
    let roots = std::array::from_fn(|i| Pa(SECURE_RAM + 0x4000 * (i as u64 + 1)));
    fake.0.add_secure(roots);
    let mut memory = FlexMem::new(Pa(SECURE_RAM), roots, 0);
    memory.boot_unwalked();
    for i in 0..8 {
        memory.boot_donate_table(fake, Pa(SECURE_RAM + 0x8_0000 + i * PAGE)).unwrap();
    }
    memory.boot_map_host(fake, Pa(SECURE_RAM + 0x20_0000), 8 * PAGE, HostMemory::Ram).unwrap();
    memory
}

impl World {
    fn new(secure: bool) -> Self {
        let roots = std::array::from_fn(|i| Pa(HYPERVISOR + 0x4000 + 0x4000 * i as u64));
        let mut fake = Fake(FakeMachine::new(2, Pa(HYPERVISOR), roots));
        let mut hypervisor = Box::new(Hypervisor::new(FlexMem::new(Pa(HYPERVISOR), roots, 3)));
        let memory = hypervisor.memory_mut();
        for i in 0..120 {
            memory.boot_donate_table(&mut fake, Pa(HYPERVISOR + 0x10_0000 + i * PAGE)).unwrap();
        }
        memory.boot_map_host(&mut fake, Pa(RAM), RAM_SIZE, HostMemory::Ram).unwrap();
        memory.boot_map_host(&mut fake, Pa(DEVICE), 0x20_0000, HostMemory::Device).unwrap();
        memory.boot_reserve(&mut fake, Pa(HYPERVISOR), 0x20_0000).unwrap();
        let window = PageRange::new(Pa(WINDOW), 4).unwrap();
        let tables = [0, 1].map(|page| Pa(HYPERVISOR + 0xf_0000 + page * PAGE));
        memory.boot_window(&mut fake, window, tables).unwrap();
        hypervisor.install_npu(&mut fake, NpuLayout::default());
        if secure {
            hypervisor.install_secure_ram(secure_ram(&mut fake));
        }
        Self { fake, hypervisor, inside: Vec::new(), handles: Vec::new() }
    }

    /// Message buffers, and a running partition with pages of every kind: inputs need not find the way there.
    fn populate(&mut self) {
        self.host(&[ffa::RXTX_MAP_64.into(), TX, RX, 1]);
        self.write(TX, manifest().as_bytes());
        self.service(op::CREATE, [size_of::<Manifest>() as u64, 0, 0]);
        let id = u64::from(ffa::PARTITION_ID_BASE);
        let mut base = PAGES;
        for (ipa, pages) in [(IMAGE, 2), (MODEL, 1), (HEAP, 8), (SESSION, 4)] {
            self.write(TX, [base, pages].as_bytes());
            self.service(op::GIVE, [id, ipa, 1]);
            base += pages * PAGE;
        }
        self.service(op::MEASURE, [id, 0, 0]);
        self.host(&[ffa::RX_RELEASE.into()]);
        self.service(op::START, [id, 0, 0]);
        // Its buffers are the first two pages of its heap.
        self.host(&[ffa::RUN.into(), id << 16]);
        let mut words = [0; 18];
        words[..4].copy_from_slice(&[ffa::RXTX_MAP_64.into(), HEAP, HEAP + PAGE, 1]);
        self.exit(0, Exit::Call, words);
    }

    fn write(&mut self, page: u64, bytes: &[u8]) {
        let mut content = [0; 4096];
        content[..bytes.len()].copy_from_slice(bytes);
        self.fake.0.write_page(Pa(page), &content);
    }

    fn service(&mut self, operation: u64, [a, b, c]: [u64; 3]) -> [u64; 18] {
        self.host(&[ffa::MSG_SEND_DIRECT_REQ_64.into(), ffa::SERVICE_ID.into(), 0, operation, a, b, c])
    }

    fn host(&mut self, words: &[u64]) -> [u64; 18] {
        let mut regs = [0; 18];
        regs[..words.len()].copy_from_slice(words);
        // A reset ends the machine.
        if matches!(regs[0] as u32, 0x8400_0008 | 0x8400_0009 | 0x8400_0012 | 0xC400_0012) {
            return regs;
        }
        match self.hypervisor.host_call(&mut self.fake, 0, &mut regs) {
            Outcome::Enter { slot, vcpu } => {
                assert!(!self.inside.contains(&(slot, vcpu)), "entered twice");
                self.inside.push((slot, vcpu));
            }
            Outcome::CpuOn { entry, .. } => assert!((RAM..RAM + RAM_SIZE).contains(&entry)),
            Outcome::Shutdown => panic!("nobody asked for a reset"),
            Outcome::Firmware | Outcome::Return => self.note_handle(words[0], &regs),
        }
        regs
    }

    /// Remembers the handle that a send, or a part of one, was answered with.
    fn note_handle(&mut self, function: u64, regs: &[u64; 18]) {
        let is_send = matches!(function as u32 & !(1 << 30), 0x8400_0071..=0x8400_0073 | ffa::MEM_FRAG_TX);
        let low = match regs[0] as u32 {
            ffa::SUCCESS_32 if is_send => 2,
            ffa::MEM_FRAG_RX if is_send => 1,
            _ => return,
        };
        let handle = regs[low] & 0xFFFF_FFFF | regs[low + 1] << 32;
        if !self.handles.contains(&handle) {
            self.handles.push(handle);
        }
    }

    fn exit(&mut self, index: usize, exit: Exit, mut guest: [u64; 18]) {
        let (slot, vcpu) = self.inside[index];
        self.hypervisor.return_pending(slot, vcpu, guest[17] as u32);
        let function = guest[0];
        let next = self.hypervisor.vcpu_exit(&mut self.fake, slot, vcpu, exit, &mut guest, &mut [0; 18]);
        self.note_handle(function, &guest);
        match next {
            Next::Host => drop(self.inside.swap_remove(index)),
            Next::Resume | Next::NoDevice => drop(self.hypervisor.take_pending(slot, vcpu)),
        }
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        match input.int_in_range(0..=15)? {
            0..=2 => {
                let page = *input.choose(&[TX, TX, HEAP_PA, RX])?;
                let at = input.int_in_range(0..=511)? * 8;
                let mut content = self.fake.0.read_page(Pa(page));
                let length = input.int_in_range(0..=96)?.min(input.len()).min(4096 - at);
                content[at..at + length].copy_from_slice(input.bytes(length)?);
                self.fake.0.write_page(Pa(page), &content);
            }
            3 => {
                let count = input.int_in_range(1..=4)?;
                let mut list = Vec::new();
                for _ in 0..count {
                    list.extend([number(input)?, input.int_in_range(0..=3)?]);
                }
                self.write(TX, list.as_bytes());
            }
            4 if input.ratio(3, 4)? => self.transaction(input)?,
            4 => {
                let mut manifest = manifest();
                if input.ratio(1, 4)? {
                    let at = input.choose_index(size_of::<Manifest>())?;
                    manifest.as_mut_bytes()[at] ^= u8::arbitrary(input)?;
                }
                self.write(TX, manifest.as_bytes());
                self.service(op::CREATE, [size_of::<Manifest>() as u64, 0, 0]);
            }
            5..=7 => {
                let operation = input.int_in_range(0..=0x43)?;
                let arguments = [number(input)?, number(input)?, number(input)?];
                self.service(operation, arguments);
            }
            8 => {
                let vcpu = input.int_in_range(0..=2)?;
                self.host(&[
                    ffa::RUN.into(),
                    (u64::from(ffa::PARTITION_ID_BASE) + input.int_in_range(0..=2)?) << 16 | vcpu,
                ]);
            }
            9..=11 => {
                let words = call(input)?;
                self.host(&words);
            }
            _ if self.inside.is_empty() => {
                self.host(&[ffa::RUN.into(), u64::from(ffa::PARTITION_ID_BASE) << 16]);
            }
            _ => {
                let index = input.choose_index(self.inside.len())?;
                let words = call(input)?;
                let exit = match input.int_in_range(0..=15)? {
                    0 => Exit::Undefined { class: number(input)? },
                    1 => Exit::SError,
                    2 => Exit::Abort {
                        ipa: number(input)?,
                        write: input.arbitrary()?,
                        fetch: input.arbitrary()?,
                    },
                    3 => Exit::WaitForInterrupt { deadline: input.arbitrary()? },
                    4 => Exit::Interrupt,
                    5 => Exit::Sgi { value: input.arbitrary()? },
                    6 => Exit::Kick,
                    _ => Exit::Call,
                };
                self.exit(index, exit, words);
            }
        }
        Ok(())
    }

    /// A descriptor in good order but for what the input wants otherwise, and the call that it is for.
    fn transaction(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let partition =
            if self.inside.is_empty() { None } else { Some(input.choose_index(self.inside.len())?) };
        let partition = partition.filter(|_| input.ratio(1, 2).unwrap_or(false));
        let id_of = |slot: Slot| u64::from(ffa::PARTITION_ID_BASE) + slot.index() as u64;
        let caller = partition.map_or(0, |index| id_of(self.inside[index].0)) as u16;
        let function = *input.choose(&[
            ffa::MEM_SHARE_64,
            ffa::MEM_LEND_64,
            ffa::MEM_DONATE_64,
            ffa::MEM_RETRIEVE_REQ_64,
            ffa::MEM_RETRIEVE_REQ_64,
            ffa::MEM_RELINQUISH,
            ffa::MEM_RECLAIM,
        ])?;
        let handle = match self.handles.is_empty() || input.ratio(1, 16)? {
            true => number(input)?,
            false => *input.choose(&self.handles)?,
        };
        let mut words = [0; 18];
        words[0] = function.into();
        let mut bytes = match function {
            ffa::MEM_RECLAIM => {
                words[1..4].copy_from_slice(&[
                    handle & 0xFFFF_FFFF,
                    handle >> 32,
                    input.int_in_range(0..=1)?,
                ]);
                Vec::new()
            }
            ffa::MEM_RELINQUISH => {
                let flags = input.int_in_range(0..=1)?;
                Relinquish { handle, flags, endpoint_count: 1, endpoint: caller }.as_bytes().to_vec()
            }
            _ => {
                let is_request = function == ffa::MEM_RETRIEVE_REQ_64;
                let bytes = descriptor(input, caller, is_request, if is_request { handle } else { 0 })?;
                let length = bytes.len() as u64;
                words[1] = if input.ratio(1, 16)? { number(input)? } else { length };
                words[2] = if input.ratio(1, 16)? { number(input)? } else { length };
                bytes
            }
        };
        if input.ratio(1, 8)? && !bytes.is_empty() {
            let at = input.choose_index(bytes.len())?;
            bytes[at] ^= u8::arbitrary(input)?;
        }
        match partition {
            None => {
                self.write(TX, &bytes);
                self.host(&words[..8]);
            }
            Some(index) => {
                self.write(HEAP_PA, &bytes);
                self.exit(index, Exit::Call, words);
            }
        }
        Ok(())
    }

    fn check(&mut self) {
        self.fake.0.quiesce();
        assert!(self.fake.0.violations.is_empty(), "{:?}", self.fake.0.violations);
    }

    /// Everybody leaves; nothing may be lost.
    fn finish(mut self) {
        while !self.inside.is_empty() {
            self.exit(self.inside.len() - 1, Exit::Interrupt, [0; 18]);
        }
        self.host(&[ffa::RXTX_UNMAP.into()]);
        self.host(&[ffa::RXTX_MAP_64.into(), LAST_TX, LAST_TX + PAGE, 1]);
        for slot in 0..16 {
            let id = u64::from(ffa::PARTITION_ID_BASE) + slot;
            for _ in 0..1024 {
                let regs = self.service(op::DESTROY, [id, 0, 0]);
                if regs[3] != 0 || regs[4] == 0 {
                    break;
                }
            }
        }
        for handle in std::mem::take(&mut self.handles) {
            // Those of partitions ended with them.
            self.host(&[ffa::MEM_RECLAIM.into(), handle & 0xFFFF_FFFF, handle >> 32, 0]);
        }
        while self.service(op::TABLES_RECALL, [512, 0, 0])[5] > 0 {
            self.host(&[ffa::RX_RELEASE.into()]);
        }
        self.check();
        static AT_BOOT: OnceLock<Census> = OnceLock::new();
        let at_boot = AT_BOOT.get_or_init(|| World::new(false).hypervisor.memory().census());
        assert_eq!(self.hypervisor.memory().census(), *at_boot, "memory was lost");
    }
}

/// The first page of the running partition's heap.
const HEAP_PA: u64 = PAGES + 3 * PAGE;

/// A transaction's descriptor: what a sender lists, or what a receiver asks for.
fn descriptor(input: &mut Unstructured<'_>, caller: u16, is_request: bool, handle: u64) -> Result<Vec<u8>> {
    let other = |input: &mut Unstructured<'_>| {
        Ok(*input.choose(&[ffa::HOST_ID, ffa::PARTITION_ID_BASE, ffa::PARTITION_ID_BASE + 1])?)
    };
    let is_old = input.ratio(1, 4)?;
    let access_size = if is_old { size_of::<EndpointAccess11>() } else { size_of::<EndpointAccess>() };
    let access_count = if input.ratio(1, 8)? { 2 } else { 1 };
    let composite_offset = (size_of::<MemoryRegion>() + access_size * access_count) as u32;
    let header = MemoryRegion {
        sender: if is_request { other(input)? } else { caller },
        attributes: if input.ratio(1, 8)? { input.arbitrary()? } else { ATTRIBUTES },
        flags: if input.ratio(1, 4)? { input.int_in_range(0..=0x41F)? } else { 0 },
        handle,
        tag: input.int_in_range(0..=1)?,
        access_size: access_size as u32,
        access_count: access_count as u32,
        access_offset: size_of::<MemoryRegion>() as u32,
        reserved: [0; 3],
    };
    let mut bytes = header.as_bytes().to_vec();
    for _ in 0..access_count {
        let has_list = !(is_request && caller == ffa::HOST_ID);
        let access = EndpointAccess {
            receiver: if is_request { caller } else { other(input)? },
            permissions: *input.choose(&[READ_WRITE, READ_ONLY, 0, READ_WRITE | 4])?,
            composite_offset: if has_list { composite_offset } else { 0 },
            ..EndpointAccess::default()
        };
        match is_old {
            true => bytes.extend(EndpointAccess11::from(access).as_bytes()),
            false => bytes.extend(access.as_bytes()),
        }
    }
    let mut list = Vec::new();
    for _ in 0..input.int_in_range(1..=3)? {
        let place = match (is_request, caller) {
            (true, _) if input.ratio(3, 4)? => BORROWED,
            (true, _) => HEAP + 64 * PAGE,
            (false, ffa::HOST_ID) => PAGES + 64 * PAGE,
            (false, _) => HEAP + 2 * PAGE,
        };
        let address =
            if input.ratio(1, 8)? { number(input)? } else { place + input.int_in_range(0..=5)? * PAGE };
        list.push(Constituent { address, page_count: input.int_in_range(1..=3)?, reserved: 0 });
    }
    if is_request {
        list.truncate(1);
    }
    let page_count = list.iter().map(|range| range.page_count).sum();
    bytes.extend(CompositeRegion { page_count, range_count: list.len() as u32, reserved: 0 }.as_bytes());
    list.iter().for_each(|range| bytes.extend(range.as_bytes()));
    Ok(bytes)
}

/// x0-x17: a function that exists, mostly, and numbers.
fn call(input: &mut Unstructured<'_>) -> Result<[u64; 18]> {
    let mut words = [0; 18];
    let count = input.int_in_range(1..=8)?;
    for word in words.iter_mut().take(count + 1).skip(1) {
        *word = number(input)?;
    }
    words[0] = match input.int_in_range(0..=7)? {
        0 => u64::from(u32::arbitrary(input)?),
        1 => 0x8400_0000 + input.int_in_range(0..=0x5F)?,
        2 => {
            let id = u64::from(ffa::PARTITION_ID_BASE) + input.int_in_range(0..=1)?;
            let sender = if input.arbitrary()? { id << 16 } else { 0 };
            words[1] = sender | u64::from(ffa::SERVICE_ID);
            words[2] = 0;
            words[3] = input.int_in_range(0..=0x3F)?;
            ffa::MSG_SEND_DIRECT_REQ_64.into()
        }
        _ => 0x8400_0060 + input.int_in_range(0..=0x3F)? + (u64::from(bool::arbitrary(input)?) << 30),
    };
    Ok(words)
}

/// A number that means something somewhere, or any.
fn number(input: &mut Unstructured<'_>) -> Result<u64> {
    let page = u64::from(u8::arbitrary(input)?) % 16 * PAGE;
    Ok(match input.int_in_range(0..=15)? {
        0 | 1 => u64::from(ffa::PARTITION_ID_BASE) + page / PAGE % 3,
        2 => u64::from(ffa::PARTITION_ID_BASE) << 16 | (page / PAGE),
        3 => IMAGE + page,
        4 => HEAP + page,
        5 => SESSION + page,
        6 => MODEL + page,
        7 | 8 => PAGES + page,
        9 => RAM + page,
        10 => *input.choose(&[
            DEVICE,
            HYPERVISOR,
            1 << 40,
            u64::MAX << 12,
            0xFFFF,
            1 << 31,
            1 << 32,
            1 << 63,
        ])?,
        11 => u64::arbitrary(input)?,
        _ => page / PAGE,
    })
}

fn manifest() -> Manifest {
    let region = |ipa, page_count, kind, access| Region { ipa, page_count, kind, access };
    let mut regions = [Region::default(); 16];
    regions[0] = region(IMAGE, 16, kind::IMAGE, access::READ | access::EXECUTE);
    regions[1] = region(HEAP, 1024, kind::ZERO, access::READ | access::WRITE);
    regions[2] = region(SESSION, 16, kind::SHARED, access::READ | access::WRITE);
    regions[3] = region(MODEL, 16, kind::MODEL, access::READ);
    regions[4] = region(BORROWED, 16, kind::BORROWED, access::READ | access::WRITE);
    Manifest {
        magic: MAGIC,
        version: 1,
        vcpu_count: 2,
        entry: IMAGE,
        region_count: 5,
        reserved: 0,
        name: *b"fuzz\0\0\0\0\0\0\0\0\0\0\0\0",
        regions,
    }
}
