//! Seeded random calls of a hostile host and hostile partitions, with invariants between them.

use super::memory::Sent;
use super::*;
use crate::message::Endpoint;
use crate::partition::Vcpu;
use hyp_abi::ffa::error;
use hyp_abi::memory::{FLAG_ANY_RECEIVERS, READ_ONLY, Relinquish};
use stage2::{HOST_VMID, Ipa, LoanId, LoanKind, MAX_LOANS};

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

struct Fuzz {
    world: World,
    random: Random,
    /// (id, vCPU) that the arch layer has on a CPU.
    inside: Vec<(u64, u64)>,
    /// Handles that were seen, with sender, receiver and pages.
    handles: Vec<(u64, u64, u64, u64)>,
    /// TX of partitions, by id.
    guest_tx: std::collections::BTreeMap<u64, u64>,
    /// How often each interesting thing happened: the test means nothing if one never does.
    reached: std::collections::BTreeMap<&'static str, u64>,
}

impl Fuzz {
    fn new(seed: u64, secure: bool) -> Self {
        // So little secure RAM that it is full now and then.
        let mut world = if secure { World::secure(96) } else { World::new() };
        world.ffa(&[abi::NOTIFICATION_BITMAP_CREATE.into(), 0, 2]);
        let (handles, guest_tx, reached) = Default::default();
        Self { world, random: Random(seed), inside: Vec::new(), handles, guest_tx, reached }
    }

    fn note(&mut self, what: &'static str) {
        *self.reached.entry(what).or_default() += 1;
    }

    fn id(&mut self) -> u64 {
        if self.random.one_in(16) { self.random.next() & 0x8_001F } else { 0x8002 + self.random.below(4) }
    }

    fn ipa(&mut self) -> u64 {
        let (base, pages) = match self.random.below(40) {
            0 => (self.random.pick(&[0, 1 << 40, u64::MAX << 12]), 1),
            1..=6 => (IMAGE, 64),
            7 | 8 => (DATA, 16),
            9 | 10 => (MODEL, 64),
            11 => (BORROWED, 64),
            12 => (BORROWED_READ, 16),
            13..=16 => (HEAP, 2048),
            17..=30 => (HEAP, 64),
            _ => (SESSION, 8),
        };
        // Its buffers lie at the start of the heap.
        let pages = if base == HEAP && self.random.one_in(2) { 2 } else { pages };
        let offset =
            if self.random.one_in(30) { self.random.below(9000) } else { self.random.below(pages) * PAGE };
        base.wrapping_add(offset)
    }

    fn pa(&mut self) -> u64 {
        match self.random.below(24) {
            0 => self.random.pick(&[
                TX,
                RX,
                DEVICE,
                HYPERVISOR,
                ABSENT,
                RAM + RAM_SIZE - PAGE,
                1 << 40,
                u64::MAX << 12,
            ]),
            1 => self.random.next(),
            _ => PAGES + self.random.below(4096) * PAGE,
        }
    }

    fn count(&mut self) -> u64 {
        match self.random.below(24) {
            0 => self.random.pick(&[0, 255, 256, 257, 512, 513, 1 << 32, u64::MAX]),
            1..=4 => 8 + self.random.below(24),
            _ => 1 + self.random.below(4),
        }
    }

    fn word(&mut self) -> u64 {
        match self.random.below(8) {
            0 => self.id(),
            1 => self.ipa(),
            2 => self.pa(),
            3 => self.random.next(),
            4 => self.id() << 16 | self.random.below(3),
            5 => u64::from(abi::SERVICE_ID),
            _ => self.count(),
        }
    }

    /// What lies in TX: mostly what the operation wants, else something broken, or noise.
    fn fill_tx(&mut self, operation: u64) {
        let bytes = match self.random.below(16) {
            0 => (0..4096).map(|_| self.random.next() as u8).collect(),
            _ if operation == op::CREATE => {
                let mut manifest = borrowing();
                manifest.vcpu_count = 1 + self.random.below(4) as u32;
                if self.random.one_in(8) {
                    let at = self.random.below(432) as usize;
                    manifest.as_mut_bytes()[at] ^= self.random.next() as u8;
                }
                manifest.as_bytes().to_vec()
            }
            _ => {
                let list: Vec<_> = (0..4).map(|_| (self.pa(), self.count())).collect();
                list_bytes(&list)
            }
        };
        // RXTX_MAP may have moved the buffer.
        if let Some(mailbox) = self.world.hyp.mailbox {
            self.world.platform.machine.write_page(mailbox.tx, &page(&bytes));
        }
    }

    /// x0-x7 of a message or a notification, mostly sound, of `caller`.
    fn talk(&mut self, caller: u64) -> [u64; 8] {
        let other = match self.random.below(8) {
            0..=2 if caller != 0 => 0,
            3 => self.id(),
            _ => 0x8002 + self.random.below(2),
        };
        let bits = 1 << self.random.below(2);
        let (to, from) = (caller << 16 | other, other << 16 | caller);
        if caller != 0 && self.random.one_in(4) {
            return [abi::RXTX_MAP_64.into(), HEAP, HEAP + PAGE, 1, 0, 0, 0, 0];
        }
        match self.random.below(16) {
            0..=4 => {
                let header = abi::MessageHeader {
                    offset: if self.random.one_in(16) { self.random.next() as u32 } else { 40 },
                    size: if self.random.one_in(16) { self.random.next() as u32 } else { 8 },
                    route: to as u32,
                    ..Default::default()
                };
                let tx = if caller == 0 {
                    self.world.hyp.mailbox.map(|mailbox| mailbox.tx)
                } else {
                    let World { hyp, platform } = &self.world;
                    hyp.memory.partition_page(platform, slot(caller), Ipa(HEAP)).map(|page| page.pa)
                };
                if let Some(tx) = tx {
                    self.world.platform.machine.write_page(tx, &page(header.as_bytes()));
                }
                [abi::MSG_SEND2.into(), 0, 0, 0, 0, 0, 0, 0]
            }
            5..=7 => [abi::NOTIFICATION_BIND.into(), from, 0, bits, 0, 0, 0, 0],
            8 => [abi::NOTIFICATION_UNBIND.into(), from, 0, bits, 0, 0, 0, 0],
            9..=12 => [abi::NOTIFICATION_SET.into(), to, self.random.below(4), bits, 0, 0, 0, 0],
            13 => [abi::NOTIFICATION_GET.into(), caller, 7, 0, 0, 0, 0, 0],
            14 => [abi::RX_RELEASE.into(), 0, 0, 0, 0, 0, 0, 0],
            15 if self.random.one_in(2) => [abi::NOTIFICATION_INFO_GET_64.into(), 0, 0, 0, 0, 0, 0, 0],
            _ => [abi::PARTITION_INFO_GET.into(), 0, 0, 0, 0, 0, 0, 0],
        }
    }

    /// A call of memory management: its words, and what should be in TX. Mostly it makes sense, then a part of it is broken.
    fn memory_call(&mut self, caller: u64) -> ([u64; 8], Vec<u8>) {
        let number = self.random.below(16);
        // Mostly one that is the caller's to use.
        let fits = |&&(_, sender, receiver, _): &&(u64, u64, u64, u64)| match number {
            5..=11 | 15 => receiver == caller,
            _ => sender == caller,
        };
        let mine: Vec<_> = self.handles.iter().filter(fits).copied().collect();
        let handle = match (self.random.below(12), self.handles.is_empty()) {
            (0, _) | (_, true) => (self.random.next() >> 20, self.id(), self.id(), 1),
            (1, _) => self.random.pick(&self.handles.clone()),
            (2..=5, _) => mine.last().copied().unwrap_or((0, 0, 0, 1)),
            _ => {
                if mine.is_empty() {
                    (0, 0, 0, 1)
                } else {
                    self.random.pick(&mine)
                }
            }
        };
        let kinds = [LoanKind::Share, LoanKind::Lend, LoanKind::Donate];
        let split = |handle: u64| [handle & 0xFFFF_FFFF, handle >> 32];
        let mut words = [0; 8];
        let mut bytes = match number {
            0..=4 => {
                let kind = self.random.pick(&kinds);
                let count = if self.random.one_in(20) { 250 } else { 1 + self.random.below(3) };
                let ranges: Vec<_> = (0..count)
                    .map(|_| {
                        let address = match caller {
                            0 => self.pa(),
                            _ if self.random.one_in(8) => self.ipa(),
                            _ => HEAP + self.random.below(64) * PAGE,
                        };
                        (address, 1 + self.random.below(4))
                    })
                    .collect();
                let receivers: Vec<_> = (0..if self.random.one_in(4) { 2 } else { 1 })
                    .map(|_| if caller != 0 && self.random.one_in(3) { 0 } else { self.id() })
                    .collect();
                let mut sent = Sent::new(caller, kind, &receivers, &ranges);
                sent.old = self.random.one_in(4);
                let function = [abi::MEM_SHARE_32, abi::MEM_LEND_64, abi::MEM_DONATE_32];
                let bytes = sent.bytes();
                let index = kinds.iter().position(|k| *k == kind).unwrap();
                let fragment =
                    if self.random.one_in(8) { bytes.len() as u64 - 16 } else { bytes.len() as u64 };
                words[..3].copy_from_slice(&[function[index].into(), bytes.len() as u64, fragment.min(4096)]);
                bytes
            }
            5..=8 => {
                let (handle, sender, receiver, pages) = handle;
                let receiver = if self.random.one_in(8) { receiver } else { caller };
                let at = match self.random.below(4) {
                    0 => self.ipa(),
                    1 => HEAP + (256 + self.random.below(128)) * PAGE,
                    _ => BORROWED + self.random.below(64) * PAGE,
                };
                let mut request =
                    Sent::request(handle, sender, receiver, (caller != 0).then_some((at, pages)));
                request.header.flags = FLAG_ANY_RECEIVERS;
                if self.random.one_in(3) {
                    request.accesses[0].permissions = self.random.pick(&[0, READ_ONLY]);
                }
                let bytes = request.bytes();
                words[..3].copy_from_slice(&[
                    abi::MEM_RETRIEVE_REQ_64.into(),
                    bytes.len() as u64,
                    bytes.len() as u64,
                ]);
                bytes
            }
            9..=11 => {
                words[0] = abi::MEM_RELINQUISH.into();
                let flags = u32::from(self.random.one_in(4));
                let endpoint = caller as u16;
                Relinquish { handle: handle.0, flags, endpoint_count: 1, endpoint }.as_bytes().to_vec()
            }
            12 => {
                let [low, high] = split(handle.0);
                words[..4].copy_from_slice(&[abi::MEM_RECLAIM.into(), low, high, self.random.below(16) / 15]);
                Vec::new()
            }
            13 | 14 => {
                let [low, high] = split(handle.0);
                words[..4].copy_from_slice(&[abi::MEM_FRAG_TX.into(), low, high, 16]);
                let address = if caller == 0 { self.pa() } else { HEAP + self.random.below(64) * PAGE };
                let pages = 1 + self.random.below(4);
                let range = Sent::new(0, LoanKind::Share, &[], &[(address, pages)]).ranges;
                range.as_bytes().to_vec()
            }
            _ => {
                let [low, high] = split(handle.0);
                words[..4].copy_from_slice(&[abi::MEM_FRAG_RX.into(), low, high, 16 * self.random.below(16)]);
                Vec::new()
            }
        };
        bytes.truncate(4096);
        if self.random.one_in(5) && !bytes.is_empty() {
            let at = self.random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.random.below(8);
        }
        if self.random.one_in(20) {
            words[1 + self.random.below(4) as usize] = self.word();
        }
        (words, bytes)
    }

    /// Remembers the handles that calls answer, and counts what happened.
    fn note_memory(&mut self, caller: u64, words: &[u64], bytes: &[u8], answer: &[u64]) {
        let function = words[0] as u32;
        let is_send = matches!(function & 0xFF, 0x71..=0x73);
        let done = answer[0] == abi::SUCCESS_32.into();
        match function {
            _ if is_send && answer[0] == abi::MEM_FRAG_RX.into() => self.note("fragment awaited"),
            abi::MEM_FRAG_TX if done => self.note("fragments complete"),
            abi::MEM_RETRIEVE_REQ_64 if answer[0] == abi::MEM_RETRIEVE_RESP.into() => {
                self.note(if caller == 0 { "host retrieved" } else { "retrieved" });
            }
            abi::MEM_RELINQUISH if done => self.note("relinquished"),
            abi::MEM_RECLAIM if done => self.note("reclaimed"),
            _ if is_send && done => self.note(if caller == 0 { "host loaned" } else { "partition loaned" }),
            _ => {}
        }
        let is_handle = is_send && answer[0] != abi::ERROR.into();
        if is_handle {
            let words = if answer[0] == abi::SUCCESS_32.into() { &answer[2..4] } else { &answer[1..3] };
            let handle = words[0] | words[1] << 32;
            let id = LoanId::new((handle & 0xFF) as usize).unwrap();
            let pages = self.world.hyp.memory().loan(id).map_or(1, |loan| loan.page_count);
            if self.handles.len() > 40 {
                let at = self.random.below(40) as usize;
                self.handles.swap_remove(at);
            }
            let receiver = u16::from_le_bytes([bytes[48], bytes[49]]);
            self.handles.push((handle, caller, receiver.into(), pages));
        }
    }

    fn host_call(&mut self) {
        let functions = [
            abi::VERSION,
            abi::FEATURES,
            abi::ID_GET,
            abi::SPM_ID_GET,
            abi::RXTX_MAP_32,
            abi::RXTX_MAP_64,
            abi::RXTX_UNMAP,
            abi::PARTITION_INFO_GET,
            abi::MSG_WAIT,
            abi::YIELD,
            abi::PARTITION_INFO_GET_REGS,
            abi::RX_ACQUIRE,
            abi::CONSOLE_LOG_64,
            abi::NOTIFICATION_BITMAP_CREATE,
            abi::NOTIFICATION_BITMAP_DESTROY,
            0x8400_0003,
            0xC400_0003,
            0x8400_0001,
            0x8400_0053,
            0x8400_0004,
            0x8400_0071,
        ];
        let mut words: [u64; 8] = std::array::from_fn(|_| self.word());
        match self.random.below(44) {
            32..=34 | 40..=43 => words = self.talk(0),
            35..=39 => {
                let kinds =
                    [abi::MSG_SEND_DIRECT_REQ_32, abi::MSG_SEND_DIRECT_REQ_64, abi::MSG_SEND_DIRECT_REQ2];
                words = [self.random.pick(&kinds).into(), self.id(), 0, 0, 1, 2, 3, 4];
            }
            0 => words[0] = self.random.next(),
            1 => words[0] = self.random.pick(&functions).into(),
            2 | 3 => words[..2].copy_from_slice(&[abi::RX_RELEASE.into(), 0]),
            4..=9 => {
                let vcpu = self.random.pick(&[0, 0, 0, 0, 1, 1, 2, 3]);
                words[..2].copy_from_slice(&[abi::RUN.into(), self.id() << 16 | vcpu]);
            }
            10 if self.random.one_in(4) => {
                // The buffers come back where they were, or somewhere else.
                let tx = if self.random.one_in(2) { TX } else { self.pa() };
                words[..4].copy_from_slice(&[abi::RXTX_MAP_64.into(), tx, tx ^ PAGE, 1]);
            }
            11..=16 => {
                let (call, bytes) = self.memory_call(0);
                if let Some(mailbox) = self.world.hyp.mailbox {
                    self.world.platform.machine.write_page(mailbox.tx, &page(&bytes));
                }
                let (regs, outcome) = self.world.smc(&call);
                assert_eq!(outcome, Outcome::Return);
                self.note_memory(0, &call, &bytes, &regs);
                return;
            }
            10 => words[..4].copy_from_slice(&[abi::RXTX_MAP_64.into(), TX, RX, 1]),
            _ => {
                let operation = match self.random.below(64) {
                    0 => self.random.next() & 0xff,
                    1 if self.random.one_in(8) => op::DESTROY,
                    2 if self.random.one_in(8) => op::STOP,
                    1 | 2 => {
                        self.destroy_ended();
                        return;
                    }
                    3..=6 => op::CREATE,
                    7..=10 => op::MEASURE,
                    11..=14 => op::START,
                    15..=18 => op::RECALL,
                    19..=20 => op::STATS,
                    21 => op::TABLES_GIVE,
                    22 => op::TABLES_RECALL,
                    _ => op::GIVE,
                };
                self.fill_tx(operation);
                let arguments = match operation {
                    op::CREATE => [432, 0, 0, 0],
                    op::GIVE | op::RECALL => [self.id(), self.ipa(), self.count(), 0],
                    op::TABLES_GIVE | op::TABLES_RECALL => [self.count(), 0, 0, 0],
                    _ => [self.id(), self.word(), self.word(), self.word()],
                };
                words =
                    [abi::MSG_SEND_DIRECT_REQ_64.into(), abi::SERVICE_ID.into(), 0, operation, 0, 0, 0, 0];
                words[4..].copy_from_slice(&arguments);
                if self.random.one_in(16) {
                    let at = self.random.below(8) as usize;
                    words[at] = self.word();
                }
            }
        }
        // A reset ends the machine: that has its own test.
        if matches!(words[0] as u32, 0x8400_0008 | 0x8400_0009 | 0x8400_0012 | 0xC400_0012) {
            return;
        }
        let (regs, outcome) = self.world.smc(&words);
        match outcome {
            Outcome::Enter { slot, vcpu } => {
                let asked = words[0] as u32 != abi::RUN;
                self.note(if asked { "asked" } else { "entered" });
                let id = u64::from(abi::PARTITION_ID_BASE) + slot.index() as u64;
                assert!(!self.inside.contains(&(id, vcpu as u64)), "entered twice");
                self.inside.push((id, vcpu as u64));
            }
            Outcome::CpuOn { entry, .. } => {
                let state = self.world.hyp.memory().host_state(&self.world.platform, Pa(entry));
                assert!(matches!(state, PageState::HostOwned | PageState::HostPinned));
            }
            Outcome::Shutdown => panic!("nobody asked"),
            Outcome::Firmware | Outcome::Return => (),
        }
        if regs[0] == u64::from(abi::SUCCESS_32) {
            match words[0] as u32 {
                abi::MSG_SEND2 => self.note("host sent"),
                abi::NOTIFICATION_SET => self.note("host notified"),
                abi::NOTIFICATION_BIND => self.note("host bound"),
                _ => (),
            }
        }
        if regs[0] == u64::from(abi::MSG_SEND_DIRECT_RESP_64) {
            match (words[3], regs[3] as i32) {
                (op::GIVE, 0) => self.note("given"),
                (op::GIVE, error::DENIED) if (IMAGE..DATA + 0x20_0000).contains(&regs[4]) => {
                    self.note("secure RAM full");
                }
                (op::GIVE, _) => self.note("give refused"),
                (op::RECALL, 0) => self.note("recalled"),
                (op::MEASURE, 0) => self.note("measured"),
                (op::START, 0) => self.note("started"),
                (op::CREATE, 0) => self.note("created"),
                (op::DESTROY, 0) => self.note("destroyed"),
                (op::TABLES_RECALL, 0) => self.note("tables recalled"),
                (op::STOP, error::BUSY) => self.note("stop busy"),
                _ => (),
            }
        }
    }

    /// Random calls alone hardly ever get a partition to run with all it needs.
    fn boot(&mut self) {
        let Some(mailbox) = self.world.hyp.mailbox else { return };
        self.world.ffa(&[abi::RX_RELEASE.into(), 0]);
        self.world.platform.machine.write_page(mailbox.tx, &page(borrowing().as_bytes()));
        let (0, [id, ..]) = self.world.request(op::CREATE, &[432]) else { return };
        for (ipa, count) in [(IMAGE, 2), (HEAP, 64), (SESSION, 4)] {
            for _ in 0..8 {
                let list = list_bytes(&[(PAGES + self.random.below(4096 - count) * PAGE, count)]);
                self.world.platform.machine.write_page(mailbox.tx, &page(&list));
                if self.world.request(op::GIVE, &[id, ipa, 1]).0 == 0 {
                    self.note("given");
                    break;
                }
            }
        }
        self.world.request(op::MEASURE, &[id]);
        self.world.ffa(&[abi::RX_RELEASE.into(), 0]);
        self.world.request(op::START, &[id]);
        let (_, outcome) = self.world.smc(&[abi::RUN.into(), id << 16]);
        if let Outcome::Enter { .. } = outcome {
            self.inside.push((id, 0));
            let map = [abi::RXTX_MAP_64.into(), HEAP, HEAP + PAGE, 1];
            let (_, guest, _) = self.world.exit(id, 0, Exit::Call, &map);
            if guest[0] == abi::SUCCESS_32.into() {
                self.guest_tx.insert(id, HEAP);
                self.note("booted");
            }
        }
    }

    /// So that ids become free.
    fn destroy_ended(&mut self) {
        let ended = self.world.hyp.partitions.iter().flatten().filter(|partition| partition.end().is_some());
        let ids: Vec<_> = ended.map(|partition| u64::from(partition.id())).collect();
        if !ids.is_empty() {
            let id = self.random.pick(&ids);
            if let (0, [0, ..]) = self.world.request(op::DESTROY, &[id]) {
                self.note("destroyed");
            }
        }
    }

    fn vcpu_exits(&mut self) {
        let Some(index) = (!self.inside.is_empty()).then(|| self.random.below(self.inside.len() as u64))
        else {
            return;
        };
        let (id, vcpu) = self.inside[index as usize];
        let mut words: [u64; 8] = std::array::from_fn(|_| self.word());
        let mut memory = None;
        let goes_on = !self.random.one_in(3);
        let exit = match self.random.below(192) {
            0..=2 if goes_on => Exit::Interrupt,
            0 => Exit::Undefined { class: self.random.below(64) },
            1 => Exit::SError,
            2 => Exit::Abort { ipa: self.ipa(), write: self.random.one_in(2), fetch: self.random.one_in(2) },
            3..=13 => Exit::Interrupt,
            14..=15 => Exit::Kick,
            16..=17 => Exit::Sgi {
                value: if self.random.one_in(4) { self.random.next() } else { self.random.below(16) },
            },
            18..=24 => Exit::WaitForInterrupt { deadline: self.random.one_in(2).then(|| self.random.next()) },
            128..=175 => {
                let (call, bytes) = self.memory_call(id);
                words = call;
                if let Some(&tx) = self.guest_tx.get(&id)
                    && let World { hyp, platform } = &mut self.world
                    && let Some(page_of_tx) = hyp.memory().partition_page(platform, slot(id), Ipa(tx))
                    && !page_of_tx.borrowed
                {
                    platform.machine.write_page(page_of_tx.pa, &page(&bytes));
                }
                memory = Some(bytes);
                Exit::Call
            }
            176..=183 => {
                words[0] = abi::RX_RELEASE.into();
                words[1] = 0;
                if self.random.one_in(3) || !self.guest_tx.contains_key(&id) {
                    let tx = HEAP + self.random.below(64) * PAGE;
                    words[..4].copy_from_slice(&[abi::RXTX_MAP_64.into(), tx, tx ^ PAGE, 1]);
                } else if self.random.one_in(16) {
                    words[..2].copy_from_slice(&[abi::RXTX_UNMAP.into(), 0]);
                }
                Exit::Call
            }
            _ => {
                match self.random.below(28) {
                    _ if self.random.one_in(400) => words[0] = 0x8400_0008,
                    8..=11 | 16..=27 => words = self.talk(id),
                    12..=13 => {
                        let kinds = [
                            abi::MSG_SEND_DIRECT_RESP_32,
                            abi::MSG_SEND_DIRECT_RESP_64,
                            abi::MSG_SEND_DIRECT_RESP2,
                        ];
                        words = [self.random.pick(&kinds).into(), id << 16, 0, 0, 1, 2, 3, 4];
                    }
                    14 => words[..3].copy_from_slice(&[abi::MSG_WAIT.into(), 0, 0]),
                    15 => {
                        words[..2].copy_from_slice(&[abi::CONSOLE_LOG_64.into(), 1 + self.random.below(128)])
                    }
                    0 => words[0] = self.random.next(),
                    1 => words[0] = u64::from(0x8400_0060 + self.random.below(64) as u32),
                    2..=4 => {
                        let function = self.random.pick(&[
                            0xC400_0003,
                            0xC400_0003,
                            0x8400_0002,
                            0xC400_0001,
                            0xC400_0004,
                        ]);
                        words[..3].copy_from_slice(&[function, self.random.below(5), IMAGE]);
                        words[2] = self.random.pick(&[IMAGE, IMAGE, 0]);
                    }
                    _ => {
                        let operation = match self.random.below(32) {
                            0 if self.random.one_in(4) => self.random.pick(&[op::EXIT, op::PANIC]),
                            1..=14 => op::SHARE,
                            15..=24 => op::UNSHARE,
                            _ => self.random.pick(&[op::REGION, op::INFO, op::GIVE]),
                        };
                        let route = id << 16 | u64::from(abi::SERVICE_ID);
                        words[..4].copy_from_slice(&[
                            abi::MSG_SEND_DIRECT_REQ_64.into(),
                            route,
                            0,
                            operation,
                        ]);
                        words[4] = if self.random.one_in(4) {
                            self.word()
                        } else {
                            SESSION + self.random.below(8) * PAGE
                        };
                    }
                }
                Exit::Call
            }
        };
        // As the arch layer does: takes what is pending when it enters, and returns some of it.
        let taken = self.world.hyp.take_pending(slot(id), vcpu as usize);
        if taken != 0 {
            self.note("interrupted");
            self.world.hyp.return_pending(slot(id), vcpu as usize, taken & self.random.next() as u32);
        }
        let shared = self.world.hyp.memory().counters().pages_shared;
        let call = (exit == Exit::Call).then_some(words[0] as u32);
        let (next, regs, host) = self.world.exit(id, vcpu, exit, &words);
        if regs[0] == u64::from(abi::SUCCESS_32) {
            match call {
                Some(abi::MSG_SEND2) => self.note("partition sent"),
                Some(abi::NOTIFICATION_SET) => self.note("partition notified"),
                Some(abi::NOTIFICATION_BIND) => self.note("partition bound"),
                Some(abi::CONSOLE_LOG_64) => self.note("logged"),
                _ => (),
            }
        }
        if next == Next::Resume
            && let Some(bytes) = memory
        {
            self.note_memory(id, &words, &bytes, &regs);
        }
        if exit == Exit::Call && words[0] as u32 == abi::RXTX_MAP_64 && regs[0] == abi::SUCCESS_32.into() {
            self.guest_tx.insert(id, words[1]);
        }
        if self.world.hyp.memory().counters().pages_shared > shared {
            self.note("shared");
        }
        if next == Next::Host {
            self.inside.swap_remove(index as usize);
            match (host[0] as u32, host[4]) {
                (abi::ERROR, 4) => self.note("finished"),
                (abi::ERROR, 5) => self.note("crashed"),
                (abi::ERROR, 6) => self.note("stopped"),
                (
                    abi::MSG_SEND_DIRECT_RESP_32 | abi::MSG_SEND_DIRECT_RESP_64 | abi::MSG_SEND_DIRECT_RESP2,
                    _,
                ) => {
                    self.note("answered");
                }
                _ => (),
            }
        }
    }

    fn check(&mut self) {
        let World { hyp, platform } = &mut self.world;
        let (mut inside, mut owned) = (Vec::new(), std::collections::BTreeSet::new());
        for partition in hyp.partitions.iter().flatten() {
            let id = u64::from(partition.id());
            let count = partition.manifest.vcpu_count as usize;
            assert!(partition.vcpus[count..].iter().all(|vcpu| *vcpu == Vcpu::Off));
            assert!(partition.pending[count..].iter().all(|pending| *pending == 0));
            let running = |v: &(usize, &Vcpu)| matches!(v.1, Vcpu::Inside { .. });
            inside.extend(partition.vcpus.iter().enumerate().filter(running).map(|(v, _)| (id, v as u64)));
            if partition.pages_recalled == 0 || !matches!(partition.state, crate::partition::State::Dying(_))
            {
                let given: u64 = partition.given.iter().sum();
                assert_eq!(given, hyp.memory.partition_page_count(partition.slot));
            }
            // Every page lies where the manifest has a region, and is nobody else's.
            let mut from = Ipa(0);
            while let Some(page) = hyp.memory.next_partition_page(platform, partition.slot, from) {
                let (_, region) = crate::manifest::region_of(&partition.manifest, page.ipa.0).unwrap();
                assert_eq!(page.borrowed, region.kind == kind::BORROWED);
                let readable = platform.machine.read(1, HOST_VMID, Ipa(page.pa.0), true).is_some();
                match page.borrowed {
                    false => {
                        let dying = matches!(partition.state, crate::partition::State::Dying(_));
                        let private = crate::private::is_private(page.ipa.0) && !dying;
                        if let Some(secure) = hyp.secure.as_ref().filter(|_| private) {
                            let copy = secure.partition_page(platform, partition.slot, page.ipa).unwrap();
                            assert_eq!(copy.access, page.access);
                            assert!(owned.insert(copy.pa), "{copy:x?} has two owners");
                        }
                        assert_eq!(readable, page.shared, "{page:x?}");
                        assert!(owned.insert(page.pa), "{page:x?} has two owners");
                    }
                    true => {
                        let state = hyp.memory.host_state(platform, page.pa);
                        let shared = matches!(state, PageState::HostShared | PageState::Shared);
                        assert_eq!(readable, shared, "{page:x?} {state:?}");
                        assert_ne!(state, PageState::HostOwned);
                    }
                }
                from = Ipa(page.ipa.0 + PAGE);
            }
        }
        // A bit is one partition's, and only of one that exists; who is being asked is not waiting.
        let here: Vec<bool> = hyp.partitions.iter().map(Option::is_some).collect();
        for partition in hyp.partitions.iter().flatten() {
            partition.notifications.check(&here);
            assert!(!partition.messages.is_torn());
        }
        let is_dying = |p: &crate::Partition| matches!(p.state, crate::partition::State::Dying(_));
        let any_dying = hyp.partitions.iter().flatten().any(is_dying);
        for id in (0..MAX_LOANS).filter_map(LoanId::new) {
            let (loan, transaction) = (hyp.memory.loan(id), hyp.transactions.retrieved_now(id));
            // What a dying partition still has, its transactions know no more.
            let dying =
                loan.is_some_and(|loan| loan.is_borrowed()) && transaction == Some(false) && any_dying;
            assert!(dying || loan.map(|loan| loan.is_borrowed()) == transaction);
        }
        inside.sort();
        self.inside.sort();
        assert_eq!(inside, self.inside);
        if let Some(mailbox) = hyp.mailbox {
            for page in [mailbox.tx, mailbox.rx] {
                assert_eq!(hyp.memory.host_state(platform, page), PageState::HostPinned);
            }
        }
    }

    /// Everything back to the host: nothing is lost.
    fn finish(mut self) -> std::collections::BTreeMap<&'static str, u64> {
        for (id, vcpu) in std::mem::take(&mut self.inside) {
            self.world.exit(id, vcpu, Exit::Interrupt, &[]);
        }
        for id in 0x8002..0x8012 {
            while matches!(self.world.request(op::DESTROY, &[id]), (0, [left, ..]) if left > 0) {}
        }
        self.world.ffa(&[abi::RXTX_UNMAP.into(), 0]);
        for handle in self.world.hyp.transactions.handles(Endpoint::Host) {
            let [low, high] = [handle & 0xFFFF_FFFF, handle >> 32];
            assert_eq!(self.world.ffa(&[abi::MEM_RECLAIM.into(), low, high, 0])[0], abi::SUCCESS_32.into());
        }
        // The old buffers may be anybody's by now; these were never named.
        self.world.ffa(&[abi::RXTX_MAP_64.into(), RAM + 0x3000_0000, RAM + 0x3000_1000, 1]);
        while self.world.ok(op::TABLES_RECALL, &[512])[1] > 0 {
            assert_eq!(self.world.ffa(&[abi::RX_RELEASE.into()])[0], abi::SUCCESS_32.into());
        }
        let (memory, secure, shared) = self.world.census();
        assert_eq!((memory, shared), (World::new().census().0, 0));
        assert_eq!(secure, secure.and(World::secure(96).census().1));
        assert_eq!(self.world.hyp.memory().census().leaves_1g, World::new().hyp.memory().census().leaves_1g);
        self.reached
    }
}

fn run(seed: u64, secure: bool, steps: u64) -> std::collections::BTreeMap<&'static str, u64> {
    let mut fuzz = Fuzz::new(seed, secure);
    for step in 0..steps {
        if step % 512 == 0 {
            fuzz.boot();
        } else if fuzz.random.one_in(3) {
            fuzz.vcpu_exits();
        } else {
            fuzz.host_call();
        }
        if step % 256 == 0 {
            fuzz.check();
        }
    }
    fuzz.check();
    fuzz.finish()
}

#[test]
fn a_million_random_calls_break_nothing() {
    // A million calls in all.
    let seeds = |first: u64| (first..=8).step_by(2).map(|seed| 0x9E37_79B9_7F4A_7C15u64.wrapping_mul(seed));
    // One half at EL2, one at S-EL2.
    let half = |first| seeds(first).flat_map(|seed| run(seed, first == 2, 125_000)).collect::<Vec<_>>();
    let halves = std::thread::scope(|scope| {
        [1, 2].map(|first| scope.spawn(move || half(first))).map(|thread| thread.join().unwrap())
    });
    let mut reached = std::collections::BTreeMap::new();
    for (what, count) in halves.into_iter().flatten() {
        *reached.entry(what).or_insert(0) += count;
    }
    for what in [
        "entered",
        "given",
        "give refused",
        "secure RAM full",
        "recalled",
        "measured",
        "started",
        "created",
        "destroyed",
        "shared",
        "finished",
        "crashed",
        "stopped",
        "stop busy",
        "tables recalled",
        "interrupted",
        "asked",
        "answered",
        "host sent",
        "host notified",
        "host bound",
        "partition sent",
        "partition notified",
        "partition bound",
        "logged",
        "host loaned",
        "partition loaned",
        "fragment awaited",
        "fragments complete",
        "retrieved",
        "host retrieved",
        "relinquished",
        "reclaimed",
    ] {
        let count = reached.get(what).copied().unwrap_or(0);
        assert!(count >= 5, "{what} happened {count} times: {reached:?}");
    }
    println!("{reached:?}");
}
