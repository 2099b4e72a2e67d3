//! Memory management, both sides: what each call does, and every way to get it wrong.

use super::*;
use hyp_abi::ffa::error::{BUSY, DENIED, INVALID_PARAMETERS, NO_MEMORY};
use hyp_abi::memory::*;
use stage2::{Ipa, LoanKind};

/// The partitions' buffers.
const GUEST_TX: u64 = HEAP + 2 * PAGE;
const GUEST_RX: u64 = HEAP + 3 * PAGE;
/// Where the partitions' pages lie.
const FIRST: u64 = PAGES;
const SECOND: u64 = PAGES + 0x20_0000;
/// Pages that the host sends.
pub const HOST_PAGES: u64 = PAGES + 0x100_0000;
const HOST: u64 = 0;

/// A descriptor under construction, sound until a test breaks it.
#[derive(Clone)]
pub struct Sent {
    pub header: MemoryRegion,
    pub accesses: Vec<EndpointAccess>,
    pub composite: CompositeRegion,
    pub ranges: Vec<Constituent>,
    /// 16-byte access descriptors.
    pub old: bool,
    pub has_list: bool,
}

impl Sent {
    pub fn new(sender: u64, kind: LoanKind, receivers: &[u64], ranges: &[(u64, u64)]) -> Self {
        let access = |&id: &u64| EndpointAccess {
            receiver: id as u16,
            permissions: if kind == LoanKind::Donate { 0 } else { READ_WRITE },
            implementation: [id as u8; 16],
            ..EndpointAccess::default()
        };
        let header = MemoryRegion {
            sender: sender as u16,
            attributes: if kind == LoanKind::Share { ATTRIBUTES } else { 0 },
            tag: 0x7A6,
            access_offset: 48,
            ..MemoryRegion::default()
        };
        let range =
            |&(address, count): &(u64, u64)| Constituent { address, page_count: count as u32, reserved: 0 };
        let page_count = ranges.iter().map(|range| range.1 as u32).sum();
        Self {
            header,
            accesses: receivers.iter().map(access).collect(),
            composite: CompositeRegion { page_count, range_count: ranges.len() as u32, reserved: 0 },
            ranges: ranges.iter().map(range).collect(),
            old: false,
            has_list: true,
        }
    }

    /// A request to retrieve the sender's transaction.
    pub fn request(handle: u64, sender: u64, receiver: u64, range: Option<(u64, u64)>) -> Self {
        let mut sent = Self::new(sender, LoanKind::Share, &[receiver], range.as_slice());
        (sent.header.handle, sent.has_list) = (handle, range.is_some());
        sent
    }

    pub fn bytes(&self) -> Vec<u8> {
        let size = if self.old { 16 } else { 32 };
        let mut header = self.header;
        // Unless a test has said otherwise.
        header.access_size |= size;
        header.access_count += self.accesses.len() as u32;
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(header.access_offset.clamp(48, 4000) as usize, 0);
        let composite = bytes.len() as u32 + size * self.accesses.len() as u32;
        for access in &self.accesses {
            let mut access = *access;
            let offset = if self.has_list { composite } else { 0 };
            access.composite_offset = access.composite_offset.wrapping_add(offset);
            match self.old {
                true => bytes.extend(EndpointAccess11::from(access).as_bytes()),
                false => bytes.extend(access.as_bytes()),
            }
        }
        if self.has_list {
            bytes.extend(self.composite.as_bytes());
            self.ranges.iter().for_each(|range| bytes.extend(range.as_bytes()));
        }
        bytes
    }
}

/// Two running partitions with mailboxes, both inside.
pub struct Scene {
    pub world: World,
    pub ids: [u64; 2],
}

impl Scene {
    pub fn new() -> Self {
        Self::with_tables(200)
    }

    pub fn with_tables(tables: u64) -> Self {
        let mut world = World::bare(tables);
        assert_eq!(world.ffa(&[abi::RXTX_MAP_64.into(), TX, RX, 1])[0], abi::SUCCESS_32.into());
        let ids = [FIRST, SECOND].map(|pages| {
            let id = world.populated_as(&borrowing(), pages);
            world.measure(id);
            world.ok(op::START, &[id]);
            id
        });
        let mut scene = Self { world, ids };
        for (cpu, id) in ids.into_iter().enumerate() {
            scene.world.enter(id, 0, cpu);
            let map = scene.world.guest_call(id, &[abi::RXTX_MAP_64.into(), GUEST_TX, GUEST_RX, 1]);
            assert_eq!(map[0], abi::SUCCESS_32.into());
        }
        scene
    }

    pub fn call(&mut self, caller: u64, words: &[u64]) -> [u64; 8] {
        if caller == HOST { self.world.ffa(words) } else { self.world.guest_call(caller, words) }
    }

    fn page_of(&self, caller: u64, ipa: u64) -> Pa {
        let (hyp, platform) = (&self.world.hyp, &self.world.platform);
        hyp.memory().partition_page(platform, slot(caller), Ipa(ipa)).unwrap().pa
    }

    fn buffers(&self, caller: u64) -> [Pa; 2] {
        if caller == HOST {
            [Pa(TX), Pa(RX)]
        } else {
            [GUEST_TX, GUEST_RX].map(|ipa| self.page_of(caller, ipa))
        }
    }

    pub fn put(&mut self, caller: u64, bytes: &[u8]) {
        let [tx, _] = self.buffers(caller);
        self.world.platform.machine.write_page(tx, &page(bytes));
    }

    /// RX, which is given back.
    fn take(&mut self, caller: u64, size: u64) -> Vec<u8> {
        let [_, rx] = self.buffers(caller);
        let bytes = self.world.platform.machine.read_page(rx)[..size as usize].to_vec();
        assert_eq!(self.call(caller, &[abi::RX_RELEASE.into()])[0], abi::SUCCESS_32.into());
        bytes
    }

    /// A call with all of its descriptor in TX.
    pub fn with(&mut self, caller: u64, function: u32, bytes: &[u8]) -> [u64; 8] {
        self.put(caller, bytes);
        self.call(caller, &[function.into(), bytes.len() as u64, bytes.len() as u64])
    }

    pub fn send(&mut self, kind: LoanKind, sent: &Sent) -> [u64; 8] {
        let function = match kind {
            LoanKind::Share => abi::MEM_SHARE_64,
            LoanKind::Lend => abi::MEM_LEND_32,
            LoanKind::Donate => abi::MEM_DONATE_64,
        };
        self.with(sent.header.sender.into(), function, &sent.bytes())
    }

    /// One that succeeds: its handle.
    pub fn sent(&mut self, sender: u64, kind: LoanKind, receivers: &[u64], ranges: &[(u64, u64)]) -> u64 {
        let answer = self.send(kind, &Sent::new(sender, kind, receivers, ranges));
        handle(answer)
    }

    pub fn retrieve(&mut self, caller: u64, request: &Sent) -> [u64; 8] {
        self.with(caller, abi::MEM_RETRIEVE_REQ_64, &request.bytes())
    }

    /// One that succeeds: the response.
    fn retrieved(&mut self, caller: u64, handle: u64, sender: u64, range: Option<(u64, u64)>) -> Vec<u8> {
        let answer = self.retrieve(caller, &Sent::request(handle, sender, caller, range));
        assert_eq!((answer[0], answer[1]), (abi::MEM_RETRIEVE_RESP.into(), answer[2]), "{answer:x?}");
        self.take(caller, answer[2])
    }

    pub fn relinquish(&mut self, caller: u64, handle: u64, flags: u32) -> [u64; 8] {
        let request = Relinquish { handle, flags, endpoint_count: 1, endpoint: caller as u16 };
        self.put(caller, request.as_bytes());
        self.call(caller, &[abi::MEM_RELINQUISH.into()])
    }

    pub fn reclaim(&mut self, caller: u64, handle: u64, flags: u64) -> [u64; 8] {
        self.call(caller, &[abi::MEM_RECLAIM.into(), handle & 0xFFFF_FFFF, handle >> 32, flags])
    }

    /// The partition's software touches an IPA: reads the first word, and tries to write it back.
    fn touch(&mut self, id: u64, ipa: u64) -> (Option<u64>, bool) {
        let machine = &mut self.world.platform.machine;
        let word = machine.read(1, slot(id).vmid(), Ipa(ipa), true);
        let written = word.is_some_and(|word| machine.write(1, slot(id).vmid(), Ipa(ipa), word));
        assert!(!machine.can_execute(1, slot(id).vmid(), Ipa(ipa)) || word.is_none());
        (word, written)
    }

    fn write(&mut self, id: u64, ipa: u64, word: u64) {
        let vmid = if id == HOST { stage2::HOST_VMID } else { slot(id).vmid() };
        assert!(self.world.platform.machine.write(0, vmid, Ipa(ipa), word));
    }

    fn fails(&mut self, sent: &Sent, kind: LoanKind, code: i32, why: &str) {
        let before = self.world.census();
        assert_eq!(self.send(kind, sent)[..3], failed(code)[..3], "{why}");
        assert_eq!(self.world.census(), before, "{why}");
    }
}

fn failed(code: i32) -> [u64; 8] {
    [abi::ERROR.into(), 0, w(code), 0, 0, 0, 0, 0]
}

fn done() -> [u64; 8] {
    [abi::SUCCESS_32.into(), 0, 0, 0, 0, 0, 0, 0]
}

fn handle(answer: [u64; 8]) -> u64 {
    assert_eq!(answer[..2], [abi::SUCCESS_32.into(), 0], "{answer:x?}");
    answer[2] | answer[3] << 32
}

#[test]
fn the_host_shares_lends_and_donates() {
    for kind in [LoanKind::Share, LoanKind::Lend, LoanKind::Donate] {
        let mut scene = Scene::new();
        let [first, second] = scene.ids;
        let before = scene.world.census();
        scene.write(HOST, HOST_PAGES, 0xA);
        scene.write(HOST, HOST_PAGES + 4 * PAGE, 0xB);
        let ranges = [(HOST_PAGES + 4 * PAGE, 1), (HOST_PAGES, 2)];
        let handle = scene.sent(HOST, kind, &[first], &ranges);
        assert!(handle >> 63 == 0 && handle > 0xFF, "{handle:x}");
        let keeps = kind == LoanKind::Share;
        assert_eq!(scene.world.host_reads(HOST_PAGES).is_some(), keeps);
        // Nobody else may, nor may it be somewhere else.
        let request = Sent::request(handle, HOST, second, Some((BORROWED, 3)));
        assert_eq!(scene.retrieve(second, &request), failed(INVALID_PARAMETERS));
        let place = if kind == LoanKind::Donate { HEAP + 16 * PAGE } else { BORROWED + PAGE };
        let response = scene.retrieved(first, handle, HOST, Some((place, 3)));
        let (header, rest) = MemoryRegion::read_from_prefix(&response).unwrap();
        let (access, rest) = EndpointAccess::read_from_prefix(rest).unwrap();
        let (composite, rest) = CompositeRegion::read_from_prefix(rest).unwrap();
        let constituent = Constituent::read_from_bytes(rest).unwrap();
        let number = [LoanKind::Share, LoanKind::Lend, LoanKind::Donate].iter().position(|k| *k == kind);
        let expected = MemoryRegion {
            attributes: ATTRIBUTES,
            flags: (number.unwrap() as u32 + 1) << 3,
            handle,
            tag: 0x7A6,
            access_size: 32,
            access_count: 1,
            access_offset: 48,
            ..MemoryRegion::default()
        };
        assert_eq!(header, expected);
        assert_eq!((access.receiver, access.permissions), (first as u16, READ_WRITE | EXECUTE_NEVER));
        assert_eq!((access.composite_offset, access.implementation), (80, [first as u8; 16]));
        assert_eq!((composite.page_count, composite.range_count), (3, 1));
        assert_eq!((constituent.address, constituent.page_count), (place, 3));
        assert_eq!(scene.touch(first, place), (Some(0xB), true));
        assert_eq!(scene.touch(first, place + PAGE), (Some(0xA), true));
        assert_eq!(scene.touch(second, place), (None, false));

        if kind == LoanKind::Donate {
            assert_eq!(scene.reclaim(HOST, handle, 0), failed(INVALID_PARAMETERS), "it is over");
            assert_eq!(scene.world.partition_stats(first).pages_given, IMAGE_PAGES + 6 + 3);
            scene.world.exit(first, 0, Exit::Call, &[0xC400_006F, first << 16 | 0x8001, 0, op::EXIT, 0]);
            assert_eq!(scene.world.ok(op::RECALL, &[first, place, 3])[0], 3);
            assert_eq!(scene.world.host_reads(HOST_PAGES), Some(0));
            continue;
        }
        assert_eq!(scene.world.request(op::RECALL, &[first, place, 3]).0, DENIED);
        assert_eq!(scene.reclaim(HOST, handle, 0), failed(DENIED), "while it is borrowed");
        scene.write(first, place, 0x5EC);
        assert_eq!(scene.relinquish(first, handle, 0), done());
        assert_eq!(scene.relinquish(first, handle, 0), failed(DENIED));
        assert_eq!(scene.touch(first, place), (None, false));
        assert_eq!(scene.reclaim(HOST, handle, 0), done());
        assert_eq!(scene.reclaim(HOST, handle, 0), failed(INVALID_PARAMETERS));
        let left = if keeps { 0x5EC } else { 0 };
        assert_eq!(scene.world.host_reads(HOST_PAGES + 4 * PAGE), Some(left), "a lend comes back zeroed");
        assert_eq!(scene.world.census(), before);
    }
}

#[test]
fn version_1_1_reads_and_gets_short_access_descriptors() {
    let mut scene = Scene::new();
    scene.world.hyp.version = {
        let mut version = crate::ffa::Negotiation::new();
        version.negotiate(0x1_0001);
        version
    };
    let [first, _] = scene.ids;
    let mut sent = Sent::new(first, LoanKind::Share, &[HOST], &[(SESSION, 1)]);
    sent.old = true;
    let shared = handle(scene.send(LoanKind::Share, &sent));
    let mut request = Sent::request(shared, first, HOST, None);
    request.old = true;
    let answer = scene.retrieve(HOST, &request);
    assert_eq!(answer[..3], [abi::MEM_RETRIEVE_RESP.into(), 96, 96]);
    let response = scene.take(HOST, 96);
    let (header, rest) = MemoryRegion::read_from_prefix(&response).unwrap();
    let (access, rest) = EndpointAccess11::read_from_prefix(rest).unwrap();
    assert_eq!((header.access_size, access.composite_offset, access.reserved), (16, 64, 0));
    let page = Constituent::read_from_bytes(&rest[16..]).unwrap();
    assert_eq!(page.address, scene.page_of(first, SESSION).0);
}

#[test]
fn partitions_lend_and_share_to_each_other_and_share_to_the_host() {
    let mut scene = Scene::new();
    let [first, second] = scene.ids;
    let before = scene.world.census();
    scene.write(first, HEAP, 0xC0DE);
    let lent = scene.sent(first, LoanKind::Lend, &[second], &[(HEAP, 2)]);
    assert_eq!(scene.touch(first, HEAP), (None, false));
    scene.retrieved(second, lent, first, Some((BORROWED, 2)));
    assert_eq!(scene.touch(second, BORROWED), (Some(0xC0DE), true));
    let at = scene.page_of(second, BORROWED).0;
    assert_eq!(scene.world.host_reads(at), None, "the host has no part in it");
    assert_eq!(scene.reclaim(second, lent, 0), failed(INVALID_PARAMETERS));
    assert_eq!(scene.reclaim(HOST, lent, 0), failed(INVALID_PARAMETERS));
    assert_eq!(scene.relinquish(second, lent, FLAG_ZERO), done());
    assert_eq!(scene.reclaim(first, lent, 0), done());
    assert_eq!(scene.touch(first, HEAP), (Some(0), true));

    let shared = scene.sent(first, LoanKind::Share, &[second, HOST], &[(SESSION, 1)]);
    assert_eq!(scene.world.guest_request(first, op::SHARE, &[SESSION]).0, DENIED);
    assert_eq!(scene.world.guest_request(first, op::UNSHARE, &[SESSION]).0, DENIED);
    let mut request = Sent::request(shared, first, second, Some((BORROWED, 1)));
    assert_eq!(scene.retrieve(second, &request), failed(INVALID_PARAMETERS), "it must know of the host");
    request.header.flags = FLAG_ANY_RECEIVERS;
    assert_eq!(scene.retrieve(second, &request)[0], abi::MEM_RETRIEVE_RESP.into());
    let mut request = Sent::request(shared, first, HOST, None);
    let other = EndpointAccess { receiver: second as u16, ..request.accesses[0] };
    request.accesses.push(other);
    assert_eq!(scene.retrieve(HOST, &request)[0], abi::MEM_RETRIEVE_RESP.into());
    let page = scene.page_of(first, SESSION).0;
    scene.write(HOST, page, 7);
    assert_eq!(
        (scene.touch(first, SESSION), scene.touch(second, BORROWED)),
        ((Some(7), true), (Some(7), true))
    );
    assert_eq!(scene.world.partition_stats_full(first).pages_shared, 1);
    for caller in [HOST, second] {
        assert_eq!(scene.reclaim(first, shared, 0), failed(DENIED));
        assert_eq!(scene.relinquish(caller, shared, 0), done());
    }
    assert_eq!(scene.world.host_reads(page), None);
    assert_eq!(scene.reclaim(first, shared, 0), done());
    assert_eq!(scene.touch(first, SESSION), (Some(7), true));
    assert_eq!(scene.world.census(), before);
}

#[test]
fn what_is_sent_in_fragments_arrives_whole() {
    let mut scene = Scene::new();
    let [first, _] = scene.ids;
    let before = scene.world.census();
    // Every second page: 512 ranges, so that the descriptor needs three buffers.
    let ranges: Vec<_> = (0..512).map(|i| (HOST_PAGES + 2 * i * PAGE, 1)).collect();
    let bytes = Sent::new(HOST, LoanKind::Lend, &[first], &ranges).bytes();
    let total = bytes.len() as u64;
    let start = |scene: &mut Scene| {
        scene.put(HOST, &bytes[..4096]);
        let answer = scene.call(HOST, &[abi::MEM_LEND_64.into(), total, 4096]);
        assert_eq!((answer[0], answer[3]), (abi::MEM_FRAG_RX.into(), 4096));
        [answer[1], answer[2]]
    };
    let fragment = |scene: &mut Scene, [low, high]: [u64; 2], bytes: &[u8]| {
        scene.put(HOST, bytes);
        scene.call(HOST, &[abi::MEM_FRAG_TX.into(), low, high, bytes.len() as u64, 0])
    };
    let handle_words = start(&mut scene);
    assert_eq!(scene.world.host_reads(HOST_PAGES), Some(0), "nothing is lent yet");
    let early = Sent::request(handle_words[0], HOST, first, Some((BORROWED, 512)));
    assert_eq!(scene.retrieve(first, &early), failed(INVALID_PARAMETERS));
    assert_eq!(
        scene.call(first, &[abi::MEM_FRAG_TX.into(), handle_words[0], 0, 16]),
        failed(INVALID_PARAMETERS)
    );
    let more = fragment(&mut scene, handle_words, &bytes[4096..8192]);
    assert_eq!(more, [abi::MEM_FRAG_RX.into(), handle_words[0], handle_words[1], 8192, 0, 0, 0, 0]);
    let lent = handle(fragment(&mut scene, handle_words, &bytes[8192..]));
    assert_eq!(scene.world.host_reads(HOST_PAGES), None);
    scene.retrieved(first, lent, HOST, Some((BORROWED, 512)));
    assert_eq!(scene.relinquish(first, lent, 0), done());
    assert_eq!(scene.reclaim(HOST, lent, 0), done());
    assert_eq!(scene.world.census(), before);

    // Unfinished ones end by reclaim, by another send, by a bad fragment.
    let [low, _] = start(&mut scene);
    assert_eq!(scene.reclaim(HOST, low, 0), done());
    let old = start(&mut scene);
    let new = start(&mut scene);
    assert_eq!(fragment(&mut scene, old, &bytes[4096..8192]), failed(INVALID_PARAMETERS));
    for (bad, words) in [(&bytes[4096..4100], 0), (&bytes[..0], 0), (&bytes[4096..4112], 1)] {
        let current = if words == 0 { start(&mut scene) } else { new };
        scene.put(HOST, bad);
        let answer =
            scene.call(HOST, &[abi::MEM_FRAG_TX.into(), current[0], current[1], bad.len() as u64, words]);
        assert_eq!(answer, failed(INVALID_PARAMETERS));
        assert_eq!(scene.world.census(), before);
    }
    // A foreign page in the last fragment: nothing is lent.
    let words = start(&mut scene);
    fragment(&mut scene, words, &bytes[4096..8192]);
    let mut last = bytes[8192..].to_vec();
    let end = last.len();
    last[end - 16..end - 8].copy_from_slice(&HYPERVISOR.to_le_bytes());
    assert_eq!(fragment(&mut scene, words, &last), failed(DENIED));
    assert_eq!(scene.world.host_reads(HOST_PAGES), Some(0));
    // Pages that change hands between two fragments.
    let words = start(&mut scene);
    let moved = scene.world.give(first, HEAP + 32 * PAGE, HOST_PAGES, 1).0;
    assert_eq!(moved, 0);
    fragment(&mut scene, words, &bytes[4096..8192]);
    assert_eq!(fragment(&mut scene, words, &bytes[8192..]), failed(DENIED));
    assert_eq!(scene.world.host_reads(HOST_PAGES), None);
}

#[test]
fn the_host_retrieves_in_fragments() {
    let mut scene = Scene::new();
    let [first, _] = scene.ids;
    // 400 pages that are apart in memory and contiguous for the partition.
    for half in 0..2 {
        let list: Vec<_> = (0..200).map(|i| (HOST_PAGES + 2 * (200 * half + i) * PAGE, 1)).collect();
        assert_eq!(scene.world.with_list(op::GIVE, &[first, HEAP + (64 + 200 * half) * PAGE], &list).0, 0);
    }
    let shared = scene.sent(first, LoanKind::Share, &[HOST], &[(HEAP + 64 * PAGE, 400)]);
    let answer = scene.retrieve(HOST, &Sent::request(shared, first, HOST, None));
    assert_eq!(answer[..3], [abi::MEM_RETRIEVE_RESP.into(), 96 + 400 * 16, 4096]);
    let wanted = |offset: u64| [abi::MEM_FRAG_RX.into(), shared & 0xFFFF_FFFF, shared >> 32, offset, 0];
    assert_eq!(scene.call(HOST, &wanted(4096)), failed(BUSY), "RX is not released");
    let mut bytes = scene.take(HOST, 4096);
    for offset in [0, 95, 4097, 96 + 400 * 16, u64::MAX] {
        assert_eq!(scene.call(HOST, &wanted(offset)), failed(INVALID_PARAMETERS), "{offset}");
    }
    let fragment = scene.call(HOST, &wanted(4096));
    assert_eq!((fragment[0], fragment[3]), (abi::MEM_FRAG_TX.into(), 96 + 400 * 16 - 4096));
    bytes.extend(scene.take(HOST, fragment[3]));
    let list: Vec<_> =
        bytes[96..].chunks_exact(16).map(|c| Constituent::read_from_bytes(c).unwrap()).collect();
    for (i, constituent) in list.iter().enumerate() {
        assert_eq!((constituent.address, constituent.page_count), (HOST_PAGES + 2 * i as u64 * PAGE, 1));
        assert!(scene.world.host_reads(constituent.address).is_some());
    }
    assert_eq!(list.len(), 400);
    assert_eq!(scene.call(first, &wanted(4096)), failed(INVALID_PARAMETERS));
}

#[test]
fn every_way_to_send_wrongly() {
    type Break = fn(&mut Sent);
    let sound = |scene: &Scene| Sent::new(HOST, LoanKind::Share, &[scene.ids[0]], &[(HOST_PAGES, 2)]);
    let cases: &[(&str, i32, Break)] = &[
        ("another sender", INVALID_PARAMETERS, |s| s.header.sender = 0x8001),
        ("a handle", INVALID_PARAMETERS, |s| s.header.handle = 1),
        ("zeroed, shared", INVALID_PARAMETERS, |s| s.header.flags = 1),
        ("time slice", INVALID_PARAMETERS, |s| s.header.flags = 2),
        ("unknown flag", INVALID_PARAMETERS, |s| s.header.flags = 1 << 31),
        ("no attributes", INVALID_PARAMETERS, |s| s.header.attributes = 0),
        ("device memory", INVALID_PARAMETERS, |s| s.header.attributes = 0x1F),
        ("uncached", INVALID_PARAMETERS, |s| s.header.attributes = 0x27),
        ("header reserved", INVALID_PARAMETERS, |s| s.header.reserved[2] = 1),
        ("odd size of access", INVALID_PARAMETERS, |s| s.header.access_size = 8),
        ("huge size of access", INVALID_PARAMETERS, |s| s.header.access_size = 0xFFFF_FFF0),
        ("no receivers", INVALID_PARAMETERS, |s| s.accesses.clear()),
        ("more receivers than named", INVALID_PARAMETERS, |s| s.header.access_count = 1),
        ("count that overflows", INVALID_PARAMETERS, |s| s.header.access_count = 0xFFFF_FFF0),
        ("accesses in the header", INVALID_PARAMETERS, |s| s.header.access_offset = 32),
        ("accesses unaligned", INVALID_PARAMETERS, |s| s.header.access_offset = 56),
        ("accesses far away", INVALID_PARAMETERS, |s| s.header.access_offset = 0xFFFF_FFF0),
        ("five receivers", INVALID_PARAMETERS, |s| s.accesses = vec![s.accesses[0]; 5]),
        ("a receiver twice", INVALID_PARAMETERS, |s| s.accesses.push(s.accesses[0])),
        ("itself", INVALID_PARAMETERS, |s| s.accesses[0].receiver = 0),
        ("nobody", INVALID_PARAMETERS, |s| s.accesses[0].receiver = 0x8010),
        ("the service", INVALID_PARAMETERS, |s| s.accesses[0].receiver = 0x8001),
        ("the hypervisor", INVALID_PARAMETERS, |s| s.accesses[0].receiver = 0x8000),
        ("no data access", INVALID_PARAMETERS, |s| s.accesses[0].permissions = 0),
        ("reserved data access", INVALID_PARAMETERS, |s| s.accesses[0].permissions = 3),
        ("never executed", INVALID_PARAMETERS, |s| s.accesses[0].permissions = 6),
        ("executed", INVALID_PARAMETERS, |s| s.accesses[0].permissions = 10),
        ("reserved permission", INVALID_PARAMETERS, |s| s.accesses[0].permissions = 0x82),
        ("not retrieved by it", INVALID_PARAMETERS, |s| s.accesses[0].flags = 1),
        ("access reserved", INVALID_PARAMETERS, |s| s.accesses[0].reserved = 1),
        ("composite in the accesses", INVALID_PARAMETERS, |s| s.accesses[0].composite_offset = -16i32 as u32),
        ("composite unaligned", INVALID_PARAMETERS, |s| s.accesses[0].composite_offset = 4),
        ("composite past the end", INVALID_PARAMETERS, |s| s.accesses[0].composite_offset = 0x7FFF_FF00),
        ("composite reserved", INVALID_PARAMETERS, |s| s.composite.reserved = 1),
        ("no pages", INVALID_PARAMETERS, |s| s.composite.page_count = 0),
        ("fewer pages than listed", INVALID_PARAMETERS, |s| s.composite.page_count = 1),
        ("more pages than listed", INVALID_PARAMETERS, |s| s.composite.page_count = 3),
        ("too many pages", INVALID_PARAMETERS, |s| {
            (s.composite.page_count, s.ranges[0].page_count) = (513, 513);
        }),
        ("pages that overflow", INVALID_PARAMETERS, |s| {
            (s.composite.page_count, s.ranges[0].page_count) = (u32::MAX, u32::MAX);
        }),
        ("no ranges", INVALID_PARAMETERS, |s| s.composite.range_count = 0),
        ("ranges missing", INVALID_PARAMETERS, |s| s.composite.range_count = 2),
        ("ranges that overflow", INVALID_PARAMETERS, |s| s.composite.range_count = u32::MAX),
        ("range reserved", INVALID_PARAMETERS, |s| s.ranges[0].reserved = 1),
        ("range empty", INVALID_PARAMETERS, |s| s.ranges[0].page_count = 0),
        ("range unaligned", INVALID_PARAMETERS, |s| s.ranges[0].address += 8),
        ("range at the end", INVALID_PARAMETERS, |s| s.ranges[0].address = (1 << 40) - PAGE),
        ("range that wraps", INVALID_PARAMETERS, |s| s.ranges[0].address = u64::MAX << 12),
        ("a page twice", INVALID_PARAMETERS, |s| {
            *s = Sent::new(HOST, LoanKind::Share, &[0x8002], &[(HOST_PAGES, 2), (HOST_PAGES + PAGE, 1)]);
        }),
        ("a mailbox", DENIED, |s| s.ranges[0].address = TX),
        ("a device", DENIED, |s| s.ranges[0].address = DEVICE),
        ("the hypervisor's", DENIED, |s| s.ranges[0].address = HYPERVISOR),
        ("absent", DENIED, |s| s.ranges[0].address = ABSENT),
        ("a partition's", DENIED, |s| s.ranges[0].address = FIRST),
        ("partly a partition's", DENIED, |s| s.ranges[0].address = FIRST - PAGE),
    ];
    let mut scene = Scene::new();
    for (why, code, breaker) in cases {
        let mut sent = sound(&scene);
        breaker(&mut sent);
        let before = scene.world.census();
        let answer = scene.with(HOST, abi::MEM_SHARE_64, &sent.bytes());
        assert_eq!(answer[..3], failed(*code)[..3], "{why}");
        assert_eq!(scene.world.census(), before, "{why}");
    }
    // What only some kinds refuse.
    let ids = scene.ids;
    let mut sent = Sent::new(HOST, LoanKind::Lend, &ids[..1], &[(HOST_PAGES, 1)]);
    sent.header.attributes = ATTRIBUTES;
    scene.fails(&sent, LoanKind::Lend, INVALID_PARAMETERS, "attributes of a lend");
    let sent = Sent::new(HOST, LoanKind::Donate, &ids, &[(HOST_PAGES, 1)]);
    scene.fails(&sent, LoanKind::Donate, INVALID_PARAMETERS, "a donation to two");
    let mut sent = Sent::new(HOST, LoanKind::Donate, &ids[..1], &[(HOST_PAGES, 1)]);
    sent.accesses[0].permissions = READ_WRITE;
    scene.fails(&sent, LoanKind::Donate, INVALID_PARAMETERS, "permissions of a donation");
    let sent = Sent::new(ids[0], LoanKind::Donate, &ids[1..], &[(HEAP, 1)]);
    scene.fails(&sent, LoanKind::Donate, DENIED, "a partition's donation");
    let sent = Sent::new(ids[0], LoanKind::Lend, &[HOST], &[(HEAP, 1)]);
    scene.fails(&sent, LoanKind::Lend, DENIED, "a lend to the host");
    for (address, code, why) in [
        (IMAGE, DENIED, "code"),
        (HEAP + 9 * PAGE, INVALID_PARAMETERS, "not given"),
        (BORROWED, INVALID_PARAMETERS, "nothing there"),
    ] {
        scene.fails(
            &Sent::new(ids[0], LoanKind::Share, &ids[1..], &[(address, 1)]),
            LoanKind::Share,
            code,
            why,
        );
    }
    let lent = scene.sent(ids[0], LoanKind::Lend, &ids[1..], &[(HEAP, 1)]);
    scene.retrieved(ids[1], lent, ids[0], Some((BORROWED, 1)));
    let again = Sent::new(ids[0], LoanKind::Share, &ids[1..], &[(HEAP, 1)]);
    scene.fails(&again, LoanKind::Share, DENIED, "lent already");
    let onwards = Sent::new(ids[1], LoanKind::Share, &ids[..1], &[(BORROWED, 1)]);
    scene.fails(&onwards, LoanKind::Share, DENIED, "borrowed");
    // Of the call itself.
    let bytes = sound(&scene).bytes();
    let size = bytes.len() as u64;
    scene.put(HOST, &bytes);
    let share = u64::from(abi::MEM_SHARE_64);
    for (words, why) in [
        ([share, size, size, TX, 0], "an address"),
        ([share, size, size, 0, 1], "pages of a buffer"),
        ([share, size, 0, 0, 0], "nothing"),
        ([share, size - 1, size, 0, 0], "a fragment longer than the whole"),
        ([share, size + 16, size, 0, 0], "longer than its list"),
        ([share, size, size - 8, 0, 0], "half a range"),
        ([share, size, 100, 0, 0], "half of the accesses"),
        ([share, 1 << 20, 4097, 0, 0], "more than a buffer"),
        ([share, u64::MAX, u64::MAX, 0, 0], "all of memory"),
    ] {
        assert_eq!(scene.call(HOST, &words), failed(INVALID_PARAMETERS), "{why}");
    }
    assert_eq!(scene.call(HOST, &[abi::RXTX_UNMAP.into(), 0])[0], abi::SUCCESS_32.into());
    assert_eq!(scene.call(HOST, &[share, size, size]), failed(DENIED), "no TX");
}

#[test]
fn every_way_to_retrieve_wrongly() {
    type Break = fn(&mut Sent);
    let mut scene = Scene::new();
    let [first, second] = scene.ids;
    let mut sent = Sent::new(HOST, LoanKind::Lend, &[first], &[(HOST_PAGES, 2)]);
    sent.accesses[0].permissions = READ_ONLY;
    let lent = handle(scene.send(LoanKind::Lend, &sent));
    let sound = || {
        let mut request = Sent::request(lent, HOST, 0x8002, Some((BORROWED, 2)));
        request.accesses[0].permissions = READ_ONLY;
        request
    };
    let cases: &[(&str, i32, Break)] = &[
        ("no handle", INVALID_PARAMETERS, |s| s.header.handle = 0),
        ("another generation", INVALID_PARAMETERS, |s| s.header.handle += 0x100),
        ("another index", INVALID_PARAMETERS, |s| s.header.handle += 1),
        ("an index beyond the table", INVALID_PARAMETERS, |s| s.header.handle |= 0xC0),
        ("the other allocator's handle", INVALID_PARAMETERS, |s| s.header.handle |= 1 << 63),
        ("another sender", INVALID_PARAMETERS, |s| s.header.sender = 0x8003),
        ("another tag", INVALID_PARAMETERS, |s| s.header.tag += 1),
        ("a share", INVALID_PARAMETERS, |s| s.header.flags = KIND_SHARE << 3),
        ("time slice", INVALID_PARAMETERS, |s| s.header.flags = 2),
        ("unknown flag", INVALID_PARAMETERS, |s| s.header.flags = 1 << 11),
        ("zeroed before", DENIED, |s| s.header.flags = FLAG_ZERO),
        ("zeroed after, read only", DENIED, |s| s.header.flags = FLAG_ZERO_AFTER),
        ("device memory", DENIED, |s| s.header.attributes = 0x10),
        ("for another", INVALID_PARAMETERS, |s| s.accesses[0].receiver = 0x8003),
        ("with another", INVALID_PARAMETERS, |s| {
            let other = EndpointAccess { receiver: 0x8003, ..s.accesses[0] };
            s.accesses.push(other);
        }),
        ("twice", INVALID_PARAMETERS, |s| s.accesses.push(s.accesses[0])),
        ("writable", DENIED, |s| s.accesses[0].permissions = READ_WRITE),
        ("reserved", INVALID_PARAMETERS, |s| s.accesses[0].permissions = 3),
        ("executable", DENIED, |s| s.accesses[0].permissions = READ_ONLY | 8),
        ("nowhere", INVALID_PARAMETERS, |s| s.has_list = false),
        ("fewer pages", INVALID_PARAMETERS, |s| *s.size_mut() = 1),
        ("more pages", INVALID_PARAMETERS, |s| *s.size_mut() = 3),
        ("two ranges", INVALID_PARAMETERS, |s| {
            s.ranges = vec![Constituent { page_count: 1, ..s.ranges[0] }; 2];
            s.composite.range_count = 2;
        }),
        ("outside any region", INVALID_PARAMETERS, |s| s.ranges[0].address = 0x1000),
        ("beyond its region", DENIED, |s| s.ranges[0].address = BORROWED + 1023 * PAGE),
        ("in the heap", DENIED, |s| s.ranges[0].address = HEAP + 8 * PAGE),
        ("in the session", DENIED, |s| s.ranges[0].address = SESSION + 2 * PAGE),
        ("unaligned", INVALID_PARAMETERS, |s| s.ranges[0].address += 1),
    ];
    for (why, code, breaker) in cases {
        let mut request = sound();
        breaker(&mut request);
        assert_eq!(scene.retrieve(first, &request), failed(*code), "{why}");
        assert_eq!(scene.touch(first, BORROWED), (None, false), "{why}");
    }
    assert_eq!(scene.retrieve(second, &sound()), failed(INVALID_PARAMETERS));
    let request = sound().bytes();
    let size = request.len() as u64;
    scene.put(first, &request);
    let function = u64::from(abi::MEM_RETRIEVE_REQ_64);
    for words in
        [[function, size, size - 16, 0, 0], [function, size, size, BORROWED, 1], [function, 0, 0, 0, 0]]
    {
        assert_eq!(scene.call(first, &words), failed(INVALID_PARAMETERS));
    }
    // What is there is read only, and only once, where nothing else is.
    assert_eq!(scene.retrieve(first, &sound())[0], abi::MEM_RETRIEVE_RESP.into());
    assert_eq!(scene.touch(first, BORROWED), (Some(0), false));
    let other = scene.sent(HOST, LoanKind::Share, &[first], &[(HOST_PAGES + 8 * PAGE, 1)]);
    let at = |ipa| Sent::request(other, HOST, first, Some((ipa, 1)));
    assert_eq!(scene.retrieve(first, &at(BORROWED + 2 * PAGE)), failed(BUSY), "RX is not released");
    assert_eq!(scene.touch(first, BORROWED + 2 * PAGE), (None, false));
    scene.call(first, &[abi::RX_RELEASE.into()]);
    assert_eq!(scene.retrieve(first, &sound()), failed(DENIED), "again");
    assert_eq!(scene.retrieve(first, &at(BORROWED + PAGE)), failed(DENIED), "over another");
    assert_eq!(scene.retrieve(first, &at(BORROWED_READ)), failed(DENIED), "writable in a read-only region");
    let mut narrowed = at(BORROWED_READ);
    narrowed.accesses[0].permissions = 0;
    assert_eq!(scene.retrieve(first, &narrowed)[0], abi::MEM_RETRIEVE_RESP.into());
    assert_eq!(scene.touch(first, BORROWED_READ), (Some(0), false));
    // The host gets no address of its own choice.
    let shared = scene.sent(first, LoanKind::Share, &[HOST], &[(HEAP, 1)]);
    let request = Sent::request(shared, first, HOST, Some((HOST_PAGES, 1)));
    assert_eq!(scene.retrieve(HOST, &request), failed(INVALID_PARAMETERS));
    // Relinquish and reclaim.
    let mut relinquish = |flags, endpoint_count, endpoint| {
        let request = Relinquish { handle: lent, flags, endpoint_count, endpoint };
        scene.put(first, request.as_bytes());
        scene.call(first, &[abi::MEM_RELINQUISH.into()])
    };
    for (flags, count, endpoint) in
        [(2, 1, 0x8002), (0, 0, 0x8002), (0, 2, 0x8002), (0, 1, 0x8003), (1, 1, 0x8002)]
    {
        assert_eq!(relinquish(flags, count, endpoint), failed(INVALID_PARAMETERS), "{flags} {count}");
    }
    assert_eq!(scene.relinquish(second, lent, 0), failed(INVALID_PARAMETERS));
    assert_eq!(scene.relinquish(first, lent + 0x100, 0), failed(INVALID_PARAMETERS));
    assert_eq!(scene.relinquish(first, other, 1), failed(INVALID_PARAMETERS), "zeroing a share");
    assert_eq!(scene.reclaim(HOST, lent, 2), failed(INVALID_PARAMETERS));
    assert_eq!(scene.reclaim(HOST, other, 1), failed(INVALID_PARAMETERS), "zeroing a share");
    assert_eq!(scene.reclaim(first, lent, 0), failed(INVALID_PARAMETERS), "a borrower's reclaim");
    assert_eq!(scene.reclaim(HOST, 0, 0), failed(INVALID_PARAMETERS));
}

impl Sent {
    fn size_mut(&mut self) -> &mut u32 {
        self.composite.page_count = if self.composite.page_count == 2 { 1 } else { 3 };
        &mut self.ranges[0].page_count
    }
}

impl World {
    /// Statistics, whatever is in RX.
    fn partition_stats_full(&mut self, id: u64) -> hyp_abi::stats::PartitionStats {
        self.ffa(&[abi::RX_RELEASE.into()]);
        self.partition_stats(id)
    }
}

#[test]
fn zeroing_is_done_where_it_is_asked_for() {
    let mut scene = Scene::new();
    let [first, second] = scene.ids;
    scene.write(HOST, HOST_PAGES, 5);
    let mut sent = Sent::new(HOST, LoanKind::Lend, &[first], &[(HOST_PAGES, 1)]);
    sent.header.flags = FLAG_ZERO;
    let lent = handle(scene.send(LoanKind::Lend, &sent));
    let mut request = Sent::request(lent, HOST, first, Some((BORROWED, 1)));
    request.header.flags = FLAG_ZERO | FLAG_ZERO_AFTER | KIND_LEND << 3;
    assert_eq!(scene.retrieve(first, &request)[0], abi::MEM_RETRIEVE_RESP.into());
    assert_eq!(scene.touch(first, BORROWED), (Some(0), true));
    scene.write(first, BORROWED, 6);
    assert_eq!(scene.relinquish(first, lent, 0), done());
    scene.call(first, &[abi::RX_RELEASE.into()]);
    request.header.flags = 0;
    assert_eq!(scene.retrieve(first, &request)[0], abi::MEM_RETRIEVE_RESP.into(), "until it is reclaimed");
    assert_eq!(scene.touch(first, BORROWED), (Some(0), true));
    // Never retrieved: the host's own bytes, unless it asks.
    for flags in [0, 1] {
        scene.write(HOST, HOST_PAGES + PAGE, 9);
        let unused = scene.sent(HOST, LoanKind::Donate, &[second], &[(HOST_PAGES + PAGE, 1)]);
        assert_eq!(scene.reclaim(HOST, unused, flags), done());
        assert_eq!(scene.world.host_reads(HOST_PAGES + PAGE), Some(if flags == 0 { 9 } else { 0 }));
    }
}

#[test]
fn the_end_of_a_partition_ends_its_part() {
    let mut scene = Scene::new();
    let [first, second] = scene.ids;
    let lent = scene.sent(HOST, LoanKind::Lend, &[first], &[(HOST_PAGES, 1)]);
    scene.retrieved(first, lent, HOST, Some((BORROWED, 1)));
    scene.write(first, BORROWED, 0x5EC);
    let waiting = scene.sent(HOST, LoanKind::Lend, &[first], &[(HOST_PAGES + PAGE, 1)]);
    let shared = scene.sent(first, LoanKind::Share, &[second, HOST], &[(HEAP, 1)]);
    let mut request = Sent::request(shared, first, second, Some((BORROWED, 1)));
    request.header.flags = FLAG_ANY_RECEIVERS;
    assert_eq!(scene.retrieve(second, &request)[0], abi::MEM_RETRIEVE_RESP.into());
    let mut request = Sent::request(shared, first, HOST, None);
    request.header.flags = FLAG_ANY_RECEIVERS;
    assert_eq!(scene.retrieve(HOST, &request)[0], abi::MEM_RETRIEVE_RESP.into());
    scene.call(HOST, &[abi::RX_RELEASE.into()]);
    let page = scene.page_of(first, HEAP).0;
    scene.write(first, HEAP, 0x5EC);

    // The thirds' fragments: the transmission ends with its sender too.
    let ranges: Vec<_> = (0..2).map(|i| (HEAP + i * PAGE, 1)).collect();
    let bytes = Sent::new(first, LoanKind::Lend, &[second], &ranges).bytes();
    scene.put(first, &bytes);
    let answer = scene.call(first, &[abi::MEM_LEND_64.into(), bytes.len() as u64, bytes.len() as u64 - 16]);
    assert_eq!(answer[0], abi::MEM_FRAG_RX.into());

    scene.world.exit(first, 0, Exit::Interrupt, &[]);
    scene.world.destroy(first);
    assert_eq!(scene.touch(second, BORROWED), (None, false));
    assert_eq!(scene.world.host_reads(page), Some(0));
    assert_eq!(scene.relinquish(second, shared, 0), failed(INVALID_PARAMETERS));
    assert_eq!(scene.relinquish(HOST, shared, 0), failed(INVALID_PARAMETERS));
    assert_eq!(scene.world.host_reads(HOST_PAGES), None, "until the host reclaims");

    // Another of the same id gets nothing that was for the first.
    let third = scene.world.populated_as(&borrowing(), FIRST);
    assert_eq!(third, first);
    scene.world.measure(third);
    scene.world.ok(op::START, &[third]);
    scene.world.enter(third, 0, 0);
    scene.world.guest_call(third, &[abi::RXTX_MAP_64.into(), GUEST_TX, GUEST_RX, 1]);
    for handle in [lent, waiting] {
        let request = Sent::request(handle, HOST, third, Some((BORROWED, 1)));
        assert_eq!(scene.retrieve(third, &request), failed(INVALID_PARAMETERS));
        assert_eq!(scene.reclaim(HOST, handle, 0), done());
    }
    assert_eq!(scene.world.host_reads(HOST_PAGES), Some(0), "zeroed");
}

#[test]
fn tables_are_the_callers_and_only_sending_and_retrieving_need_them() {
    let mut scene = Scene::with_tables(27);
    let [first, second] = scene.ids;
    let before = scene.world.census();
    let ranges: Vec<_> = (0..8).map(|i| (HOST_PAGES + i * 0x20_0000, 1)).collect();
    let sent = Sent::new(HOST, LoanKind::Share, &[first], &ranges);
    let mut given = 0;
    let handle = loop {
        let answer = scene.send(LoanKind::Share, &sent);
        if answer[0] == abi::SUCCESS_32.into() {
            break handle(answer);
        }
        assert_eq!(answer[2], w(NO_MEMORY));
        let needed = answer[3];
        assert!(needed > 0);
        let pages = [(RAM + 0x3000_0000 + given * PAGE, needed)];
        assert_eq!(scene.world.with_list(op::TABLES_GIVE, &[], &pages).0, 0);
        given += needed;
    };
    assert!(given > 0, "there was too much");
    // A partition's list needs a page as well; all that is left goes into lists.
    let mut lists = Vec::new();
    let refusal = loop {
        let answer = scene.send(
            LoanKind::Share,
            &Sent::new(
                HOST,
                LoanKind::Share,
                &[second],
                &[(ranges[0].0 + (lists.len() as u64 + 1) * PAGE, 1)],
            ),
        );
        if answer[0] != abi::SUCCESS_32.into() {
            break answer;
        }
        lists.push(answer[2] | answer[3] << 32);
    };
    assert_eq!(refusal[2], w(NO_MEMORY));
    let request = Sent::request(handle, HOST, first, Some((BORROWED, 8)));
    assert_eq!(scene.retrieve(first, &request)[2], w(NO_MEMORY));
    let lend = scene.send(LoanKind::Lend, &Sent::new(first, LoanKind::Lend, &[second], &[(HEAP, 1)]));
    assert_eq!(lend[2], w(NO_MEMORY));
    // Ends need none.
    for list in lists {
        assert_eq!(scene.reclaim(HOST, list, 0), done());
    }
    assert_eq!(scene.retrieve(first, &request)[0], abi::MEM_RETRIEVE_RESP.into());
    assert_eq!(scene.relinquish(first, handle, 0), done());
    assert_eq!(scene.reclaim(HOST, handle, 0), done());
    while scene.world.ok(op::TABLES_RECALL, &[512])[1] > 0 {
        scene.world.ffa(&[abi::RX_RELEASE.into()]);
    }
    assert_eq!(scene.world.census(), before);
}

#[test]
fn nobody_can_take_the_whole_table() {
    let mut scene = Scene::new();
    let [first, second] = scene.ids;
    for i in 0..3 {
        let page = [HEAP, HEAP + PAGE, SESSION][i];
        scene.sent(first, LoanKind::Share, &[second], &[(page, 1)]);
    }
    let fourth = Sent::new(first, LoanKind::Share, &[second], &[(SESSION + PAGE, 1)]);
    scene.fails(&fourth, LoanKind::Share, NO_MEMORY, "a partition's fourth");
    for i in 0..61 {
        scene.sent(HOST, LoanKind::Lend, &[first], &[(HOST_PAGES + i * PAGE, 1)]);
    }
    let last = Sent::new(HOST, LoanKind::Lend, &[first], &[(HOST_PAGES + 100 * PAGE, 1)]);
    scene.fails(&last, LoanKind::Lend, NO_MEMORY, "the 65th");
}

#[test]
fn descriptors_are_fetched_once() {
    let mut scene = Scene::new();
    let [first, _] = scene.ids;
    let good = Sent::new(HOST, LoanKind::Share, &[first], &[(HOST_PAGES, 1)]).bytes();
    let evil = Sent::new(HOST, LoanKind::Share, &[first], &[(FIRST, 1)]).bytes();
    *scene.world.platform.fetches.borrow_mut() = 0;
    scene.world.platform.races.borrow_mut().extend([page(&evil), page(&evil)]);
    let answer = scene.with(HOST, abi::MEM_SHARE_64, &good);
    handle(answer);
    assert_eq!(*scene.world.platform.fetches.borrow(), 1);
    assert_eq!(scene.world.host_reads(FIRST), None);
}

#[test]
fn a_shutdown_ends_it_all() {
    let mut scene = Scene::new();
    let [first, second] = scene.ids;
    scene.world.exit(first, 0, Exit::Interrupt, &[]);
    scene.world.exit(second, 0, Exit::Interrupt, &[]);
    let sent = Sent::new(HOST, LoanKind::Share, &[first], &[(HOST_PAGES, 1)]);
    let (_, outcome) = scene.world.smc(&[0x8400_0009]);
    assert_eq!(outcome, Outcome::Shutdown);
    scene.fails(&sent, LoanKind::Share, DENIED, "during a shutdown");
}

#[test]
fn nothing_of_a_partitions_buffer_is_left_behind() {
    let mut world = World::new();
    let id = world.running();
    world.enter(id, 0, 0);
    let mapped = world.guest_call(id, &[abi::RXTX_MAP_64.into(), HEAP, HEAP + PAGE, 1]);
    assert_eq!(mapped[0], u64::from(abi::SUCCESS_32));
    let tx = world.hyp.memory().partition_page(&world.platform, slot(id), stage2::Ipa(HEAP)).unwrap().pa;
    world.platform.machine.write_page(tx, &[0x5E; 4096]);
    for function in [abi::MEM_RELINQUISH, abi::MEM_SHARE_64, abi::MEM_RETRIEVE_REQ_64] {
        let answer = world.guest_call(id, &[function.into(), 4096, 4096]);
        assert_eq!(answer[0], u64::from(abi::ERROR));
        assert!(world.hyp.buffer.iter().all(|byte| *byte == 0), "{function:#x}");
    }
}
