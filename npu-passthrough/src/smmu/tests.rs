use super::fake::{Breaks, FakeSmmu, Fault};
use super::*;
use std::vec::Vec;

const STRUCTURES: Structures = Structures {
    stream_table: 0x10_0800,
    buses: &[(0, 0x11_0000), (1, 0x11_4000)],
    command_queue: 0x12_0000,
    event_queue: 0x12_1000,
};
/// The NPU's stream, and one of a bus without a table.
const NPU: u32 = 0x18;
const UNKNOWN: u32 = 0x218;
const IPA: u64 = 0x7f_1234_5000;
const PA_A: u64 = 0x8000_1000;
const PA_B: u64 = 0x8000_2000;

fn started() -> (FakeSmmu, Smmu) {
    let mut fake = FakeSmmu::new();
    let smmu = Smmu::start(&mut fake, STRUCTURES).unwrap();
    (fake, smmu)
}

/// Two owners with the same IPA at different pages.
fn with_owners() -> (FakeSmmu, Smmu, u64, u64) {
    let (mut fake, smmu) = started();
    let (a, b) = (fake.new_root(), fake.new_root());
    fake.map(a, IPA, PA_A, true, true);
    fake.map(b, IPA, PA_B, true, true);
    (fake, smmu, a, b)
}

fn events(fake: &mut FakeSmmu, smmu: &mut Smmu) -> Vec<Event> {
    let mut events = Vec::new();
    smmu.events(fake, |event| events.push(event));
    events
}

#[test]
fn aborts_from_reset_and_from_a_bootloader_that_left_it_on() {
    for cr0 in [0, CR0_SMMUEN | CR0_CMDQEN | CR0_EVENTQEN] {
        let mut fake = FakeSmmu::new();
        fake.set_register(CR0, cr0);
        assert_eq!(abort_all(&mut fake), Ok(()));
        assert_eq!(fake.read(GBPA) & (GBPA_ABORT | GBPA_UPDATE), GBPA_ABORT);
        assert_eq!(fake.read(GBPA) & 0x1000, 0x1000, "the other fields stay");
        assert_eq!(fake.read(CR0) & CR0_SMMUEN, 0);
        assert_eq!(fake.dma(NPU, IPA, false), Err(Fault::Abort));
    }
}

#[test]
fn hardware_that_does_not_abort_is_reported() {
    let broken = |breaks| {
        let mut fake = FakeSmmu::new();
        fake.breaks = breaks;
        abort_all(&mut fake)
    };
    assert_eq!(broken(Breaks { gbpa_stuck: true, ..Breaks::default() }), Err(Error::UpdateStuck));
    assert_eq!(broken(Breaks { gbpa_deaf: true, ..Breaks::default() }), Err(Error::NotAborting));
    let mut fake = FakeSmmu::new();
    fake.breaks.no_ack = true;
    fake.set_register(CR0ACK, CR0_SMMUEN);
    assert_eq!(abort_all(&mut fake), Err(Error::NotDisabled));
}

#[test]
fn every_stream_aborts_after_start() {
    for cr0 in [0, CR0_SMMUEN | CR0_CMDQEN | CR0_EVENTQEN] {
        let mut fake = FakeSmmu::new();
        fake.set_register(CR0, cr0);
        fake.set_register(GERROR, GERROR_CMDQ_ERR);
        for address in (0x10_0000..0x13_0000).step_by(8) {
            fake.store(address, u64::MAX);
        }
        let mut smmu = Smmu::start(&mut fake, STRUCTURES).unwrap();
        assert_eq!(smmu.bbm_level(), 2);
        assert_eq!((fake.read(CR1), fake.read(CR2)), (0xd75, CR2_RECINVSID | CR2_PTM));
        for stream in [0, NPU, 0xff, 0x100, 0x1ff] {
            assert_eq!(fake.dma(stream, IPA, false), Err(Fault::Abort), "{stream:#x}");
        }
        assert_eq!(events(&mut fake, &mut smmu), []);
        for stream in [0x200, UNKNOWN, 0xffff, 0x1_0000] {
            assert_eq!(fake.dma(stream, IPA, true), Err(Fault::BadStreamId), "{stream:#x}");
        }
        let seen = events(&mut fake, &mut smmu);
        assert!(seen.iter().all(|event| event.kind == EventKind::BadStreamId));
        assert_eq!(seen.len(), 4);
        let root = fake.new_root();
        fake.map(root, IPA, PA_A, true, true);
        smmu.attach(&mut fake, NPU, 2, root).unwrap();
        assert_eq!(fake.dma(NPU, IPA, true), Ok(PA_A));
    }
}

#[test]
fn what_earlier_software_left_cached_is_forgotten() {
    let (mut fake, mut smmu, a, _) = with_owners();
    smmu.attach(&mut fake, NPU, 2, a).unwrap();
    fake.dma(NPU, IPA, true).unwrap();
    Smmu::start(&mut fake, STRUCTURES).unwrap();
    assert!(!fake.caches(2));
    assert_eq!(fake.dma(NPU, IPA, true), Err(Fault::Abort));
}

#[test]
fn nothing_gets_through_while_it_starts() {
    let mut fake = FakeSmmu::new();
    abort_all(&mut fake).unwrap();
    fake.adversary = Some((NPU, IPA));
    Smmu::start(&mut fake, STRUCTURES).unwrap();
    assert_eq!(fake.reached, []);
}

#[test]
fn what_is_missing_is_named() {
    let cases = [
        (IDR0, IDR0_S2P, 0, Missing::Stage2),
        (IDR0, IDR0_TTF_AARCH64, 0, Missing::AArch64Tables),
        (IDR0, 0, IDR0_TTENDIAN_NOT_LITTLE, Missing::LittleEndian),
        (IDR0, IDR0_COHACC, 0, Missing::Coherency),
        (IDR0, 0, IDR0_STALL_FORCED, Missing::Termination),
        (IDR0, IDR0_ST_LEVEL_2, 0, Missing::TwoLevelStreamTable),
        (IDR1, 0x3f, 15, Missing::StreamIds),
        (IDR1, 0x1f << 21, 7 << 21, Missing::Queues),
        (IDR1, 0x1f << 16, 6 << 16, Missing::Queues),
        (IDR1, 0, 1 << 29, Missing::Queues),
        (IDR5, IDR5_GRAN4K, 0, Missing::Granule4K),
        (IDR5, 7, 1, Missing::OutputSize),
    ];
    for (register, clear, set, what) in cases {
        let mut fake = FakeSmmu::new();
        let value = fake.read(register);
        fake.set_register(register, value & !clear | set);
        assert_eq!(Smmu::start(&mut fake, STRUCTURES).err(), Some(Error::Missing(what)));
        assert_eq!(fake.dma(NPU, IPA, false), Err(Fault::Abort), "{what:?}: refused, and aborting");
    }
}

#[test]
fn bad_structures_are_refused() {
    let table = |bus| (bus, 0x11_0000 + 0x4000 * u64::from(bus));
    for structures in [
        Structures { stream_table: 0x10_0400, ..STRUCTURES },
        Structures { stream_table: 1 << 40, ..STRUCTURES },
        Structures { command_queue: 0x12_0800, ..STRUCTURES },
        Structures { event_queue: 0x12_0800, ..STRUCTURES },
        Structures { buses: &[(0, 0x11_2000)], ..STRUCTURES },
        Structures { buses: &[(3, 0x11_0000), (3, 0x11_4000)], ..STRUCTURES },
        Structures { buses: &[0, 1, 2, 3, 4].map(table), ..STRUCTURES },
    ] {
        assert_eq!(Smmu::start(&mut FakeSmmu::new(), structures).err(), Some(Error::Structures));
    }
}

#[test]
fn an_attached_stream_reaches_its_owner_only() {
    let (mut fake, mut smmu, a, _) = with_owners();
    smmu.attach(&mut fake, NPU, 2, a).unwrap();
    assert_eq!(smmu.owner(NPU), Some(2));
    assert_eq!(fake.dma(NPU, IPA + 8, true), Ok(PA_A + 8));
    assert_eq!(fake.dma(NPU + 1, IPA, true), Err(Fault::Abort));
    assert_eq!(fake.dma(NPU, IPA + 0x1000, true), Err(Fault::Translation));
    assert_eq!(fake.dma(NPU, IPA | 1 << 39, false), Err(Fault::Translation), "no aliases");
    let [first, second] = events(&mut fake, &mut smmu)[..] else { panic!() };
    let expected = Event { kind: EventKind::Translation, stream: NPU, address: IPA + 0x1000, is_write: true };
    assert_eq!(first, expected);
    assert!(!second.is_write);
    fake.map(a, IPA, PA_A, true, false);
    smmu.invalidate_pages(&mut fake, 2, IPA, 1).unwrap();
    assert_eq!(fake.dma(NPU, IPA, false), Ok(PA_A));
    assert_eq!(fake.dma(NPU, IPA, true), Err(Fault::Permission));
}

#[test]
fn requests_that_make_no_sense_change_nothing() {
    let (mut fake, mut smmu, a, b) = with_owners();
    assert_eq!(smmu.attach(&mut fake, UNKNOWN, 2, a), Err(Error::NoTable));
    assert_eq!(smmu.attach(&mut fake, 0x1_0018, 2, a), Err(Error::NoTable));
    assert_eq!(smmu.attach(&mut fake, NPU, 2, a + 0x800), Err(Error::Root));
    assert_eq!(smmu.attach(&mut fake, NPU, 2, 1 << 40), Err(Error::Root));
    assert_eq!(smmu.detach(&mut fake, NPU, 2), Err(Error::NotAttached));
    assert_eq!(fake.dma(NPU, IPA, true), Err(Fault::Abort));
    smmu.attach(&mut fake, NPU, 2, a).unwrap();
    assert_eq!(smmu.attach(&mut fake, NPU, 3, b), Err(Error::Attached));
    assert_eq!(smmu.detach(&mut fake, NPU, 3), Err(Error::NotAttached));
    assert_eq!(fake.dma(NPU, IPA, true), Ok(PA_A));
    for stream in 0x100..0x100 + MAX_STREAMS as u32 - 1 {
        smmu.attach(&mut fake, stream, 1, b).unwrap();
    }
    assert_eq!(smmu.attach(&mut fake, 0x1ff, 1, b), Err(Error::TooManyStreams));

    let mut fake = FakeSmmu::new();
    fake.set_register(IDR0, 0x0d40_101b); // 8-bit VMIDs
    let mut smmu = Smmu::start(&mut fake, STRUCTURES).unwrap();
    assert_eq!(smmu.attach(&mut fake, NPU, 0x100, a), Err(Error::Vmid));
}

/// What the owner before can still do after a switch from A to B.
fn switch_with(skips: Skips, device_caches: bool) -> (FakeSmmu, Smmu) {
    let (mut fake, mut smmu, a, b) = with_owners();
    fake.device_caches = device_caches;
    smmu.attach(&mut fake, NPU, 2, a).unwrap();
    fake.dma(NPU, IPA, true).unwrap();
    smmu.set_skips(skips);
    smmu.detach(&mut fake, NPU, 2).unwrap();
    fake.adversary = Some((NPU, IPA));
    smmu.attach(&mut fake, NPU, 3, b).unwrap();
    (fake, smmu)
}

#[test]
fn a_switch_of_owner_leaves_nothing_of_the_last() {
    for device_caches in [false, true] {
        let (mut fake, _) = switch_with(Skips::empty(), device_caches);
        assert!(!fake.reached.contains(&PA_A));
        assert_eq!(fake.dma(NPU, IPA, true), Ok(PA_B));
    }
}

#[test]
fn a_transaction_under_way_brings_nothing_back() {
    let (mut fake, mut smmu, a, _) = with_owners();
    smmu.attach(&mut fake, NPU, 2, a).unwrap();
    fake.dma(NPU, IPA, true).unwrap();
    fake.adversary = Some((NPU, IPA));
    smmu.detach(&mut fake, NPU, 2).unwrap();
    assert!(fake.reached.contains(&PA_A) && !fake.caches(2));
}

#[test]
fn every_step_of_a_switch_is_needed() {
    let reaches_a = |skips, device_caches| switch_with(skips, device_caches).0.reached.contains(&PA_A);
    assert!(reaches_a(Skips::CFGI, false), "entry not forgotten");
    assert!(reaches_a(Skips::SYNC, false), "commands not complete");
    assert!(reaches_a(Skips::CFGI_FIRST, false), "old words under a new word 0");
    assert!(reaches_a(Skips::TLBI, true), "the device's cache");
    assert!(reaches_a(Skips::ABORT, false), "entry still A's");
}

#[test]
fn a_vmid_starts_with_nothing_cached() {
    // The same VMID for two owners, one after the other.
    for (skips, stale) in [(Skips::empty(), false), (Skips::TLBI, true)] {
        let (mut fake, mut smmu, a, b) = with_owners();
        smmu.attach(&mut fake, NPU, 2, a).unwrap();
        fake.dma(NPU, IPA, true).unwrap();
        smmu.set_skips(skips);
        smmu.detach(&mut fake, NPU, 2).unwrap();
        smmu.attach(&mut fake, NPU, 2, b).unwrap();
        assert_eq!(fake.dma(NPU, IPA, true), Ok(if stale { PA_A } else { PA_B }));
    }
}

#[test]
fn commands_are_what_does_it() {
    for (opcode, device_caches) in [(CFGI_STE, false), (TLBI_S12_VMALL, true)] {
        let (mut fake, mut smmu, a, _) = with_owners();
        fake.device_caches = device_caches;
        smmu.attach(&mut fake, NPU, 2, a).unwrap();
        fake.dma(NPU, IPA, true).unwrap();
        fake.breaks.ignore.push(opcode);
        smmu.detach(&mut fake, NPU, 2).unwrap();
        assert_eq!(fake.dma(NPU, IPA, true), Ok(PA_A), "{opcode:#x}");
    }
}

#[test]
fn an_unmapped_page_is_out_of_reach_once_invalidated() {
    for (skips, gone) in [(Skips::empty(), true), (Skips::TLBI, false), (Skips::SYNC, false)] {
        let (mut fake, mut smmu, a, _) = with_owners();
        smmu.attach(&mut fake, NPU, 2, a).unwrap();
        fake.dma(NPU, IPA, true).unwrap();
        smmu.set_skips(skips);
        fake.map(a, IPA, 0, false, false);
        assert_eq!(fake.dma(NPU, IPA, true), Ok(PA_A), "stale until told");
        smmu.invalidate_pages(&mut fake, 2, IPA, 1).unwrap();
        assert_eq!(fake.dma(NPU, IPA, true).is_err(), gone);
    }
}

#[test]
fn every_page_of_a_range_is_invalidated() {
    for has_ranges in [true, false] {
        for (first, page_count) in [(0, 1), (5, 2), (1, 31), (3, 33), (0, 64), (7, 65), (511, 300), (0, 512)]
        {
            let mut fake = FakeSmmu::new();
            if !has_ranges {
                fake.set_register(IDR3, 0);
            }
            let mut smmu = Smmu::start(&mut fake, STRUCTURES).unwrap();
            let root = fake.new_root();
            let pages = first..first + page_count;
            for page in 0..1024 {
                fake.map(root, page << 12, PA_A + (page << 12), true, true);
            }
            smmu.attach(&mut fake, NPU, 2, root).unwrap();
            for page in 0..1024 {
                fake.dma(NPU, page << 12, true).unwrap();
            }
            for page in pages.clone() {
                fake.map(root, page << 12, 0, false, false);
            }
            let before = fake.commands.len();
            smmu.invalidate_pages(&mut fake, 2, first << 12, page_count).unwrap();
            assert!(!has_ranges || fake.commands.len() - before <= 3);
            assert!(fake.commands.len() - before <= 65);
            for page in 0..1024 {
                assert_eq!(fake.dma(NPU, page << 12, true).is_err(), pages.contains(&page), "{page}");
            }
        }
    }
}

#[test]
fn table_pointers_are_invalidated_with_the_pages() {
    let (mut fake, mut smmu, a, b) = with_owners();
    smmu.attach(&mut fake, NPU, 2, a).unwrap();
    fake.dma(NPU, IPA, true).unwrap();
    // The last table is replaced by another owner's.
    let level1 = |root: u64| root + 8 * (IPA >> 30);
    let table = fake.load(level1(b));
    fake.store(level1(a), table);
    smmu.invalidate_pages(&mut fake, 2, IPA, 1).unwrap();
    assert_eq!(fake.dma(NPU, IPA, true), Ok(PA_B));
}

#[test]
fn vmids_without_streams_cost_no_command() {
    let (mut fake, mut smmu, a, _) = with_owners();
    smmu.attach(&mut fake, NPU, 2, a).unwrap();
    let before = fake.commands.len();
    smmu.invalidate_pages(&mut fake, 3, IPA, 1).unwrap();
    smmu.invalidate_vmid(&mut fake, 3).unwrap();
    assert_eq!(fake.commands.len(), before);
    smmu.invalidate_pages(&mut fake, 2, u64::MAX << 12, u64::MAX).unwrap();
    smmu.invalidate_vmid(&mut fake, 2).unwrap();
    assert_eq!(fake.commands.len(), before + 4, "an impossible range is the whole VMID");
}

#[test]
fn the_queue_wraps() {
    let (mut fake, mut smmu, a, _) = with_owners();
    smmu.attach(&mut fake, NPU, 2, a).unwrap();
    for round in 0..2000 {
        smmu.invalidate_pages(&mut fake, 2, IPA, 1 + round % 40).unwrap();
    }
    smmu.detach(&mut fake, NPU, 2).unwrap();
    assert_eq!(fake.dma(NPU, IPA, true), Err(Fault::Abort));
}

#[test]
fn a_refused_command_fails_its_call_and_no_other() {
    let (mut fake, mut smmu, a, _) = with_owners();
    smmu.attach(&mut fake, NPU, 2, a).unwrap();
    for error in [1, 3] {
        fake.breaks.refuse = Some((TLBI_S12_VMALL, error, u32::MAX));
        assert_eq!(smmu.invalidate_vmid(&mut fake, 2), Err(Error::CommandFailed), "skipped, not tried again");
        fake.breaks.refuse = None;
        assert_eq!(smmu.invalidate_vmid(&mut fake, 2), Ok(()));
    }
    // A fetch that aborted is tried again, but not for ever.
    fake.breaks.refuse = Some((TLBI_S12_VMALL, CERROR_ABT, 3));
    assert_eq!(smmu.invalidate_vmid(&mut fake, 2), Ok(()));
    fake.breaks.refuse = Some((TLBI_S12_VMALL, CERROR_ABT, u32::MAX));
    assert_eq!(smmu.invalidate_vmid(&mut fake, 2), Err(Error::CommandsStuck));
}

#[test]
fn a_detach_that_fails_can_be_tried_again() {
    for opcode in [CFGI_STE, TLBI_S12_VMALL] {
        let (mut fake, mut smmu, a, _) = with_owners();
        smmu.attach(&mut fake, NPU, 2, a).unwrap();
        fake.breaks.refuse = Some((opcode, 1, 1));
        assert_eq!(smmu.detach(&mut fake, NPU, 2), Err(Error::CommandFailed));
        assert_eq!(smmu.owner(NPU), Some(2), "still counted, still invalidated");
        assert_eq!(smmu.detach(&mut fake, NPU, 2), Ok(()));
        assert_eq!(fake.dma(NPU, IPA, true), Err(Fault::Abort));
        // The same for attach: the stream aborts, and is let go by detach.
        fake.breaks.refuse = Some((opcode, 1, 1));
        assert_eq!(smmu.attach(&mut fake, NPU, 2, a), Err(Error::CommandFailed));
        assert_eq!(fake.dma(NPU, IPA, true), Err(Fault::Abort));
        assert_eq!(smmu.detach(&mut fake, NPU, 2), Ok(()));
        assert_eq!(fake.dma(NPU, IPA, true), Err(Fault::Abort));
    }
}

#[test]
fn an_smmu_that_does_not_answer_is_given_up_on() {
    let (mut fake, mut smmu, a, _) = with_owners();
    smmu.attach(&mut fake, NPU, 2, a).unwrap();
    fake.breaks.stuck = true;
    for _ in 0..2 {
        assert_eq!(smmu.detach(&mut fake, NPU, 2), Err(Error::CommandsStuck));
    }
    // Whatever is asked of it meanwhile, the queue does not run over.
    let mut fake = FakeSmmu::new();
    fake.set_register(IDR3, 0);
    let mut smmu = Smmu::start(&mut fake, STRUCTURES).unwrap();
    let root = fake.new_root();
    smmu.attach(&mut fake, NPU, 2, root).unwrap();
    fake.breaks.stuck = true;
    for _ in 0..6 {
        assert_eq!(smmu.invalidate_pages(&mut fake, 2, IPA, 64), Err(Error::CommandsStuck));
    }
    fake.breaks.stuck = false;
    assert_eq!(smmu.invalidate_vmid(&mut fake, 2), Ok(()));
    let mut fake = FakeSmmu::new();
    fake.breaks.no_ack = true;
    assert_eq!(Smmu::start(&mut fake, STRUCTURES).err(), Some(Error::NotEnabled));
    let mut fake = FakeSmmu::new();
    fake.breaks.stuck = true;
    assert_eq!(Smmu::start(&mut fake, STRUCTURES).err(), Some(Error::CommandsStuck));
    assert_eq!(fake.dma(NPU, IPA, true), Err(Fault::Abort));
}

#[test]
fn a_flood_of_events_costs_bounded_work_and_a_bounded_log() {
    let (mut fake, mut smmu, a, _) = with_owners();
    smmu.attach(&mut fake, NPU, 2, a).unwrap();
    for round in 1..=3 {
        for _ in 0..1000 {
            assert_eq!(fake.dma(NPU, 0, true), Err(Fault::Translation));
        }
        assert_eq!(events(&mut fake, &mut smmu).len(), 128);
        assert_eq!(smmu.event_losses(), round);
        assert_eq!(events(&mut fake, &mut smmu).len(), 0);
        fake.dma(NPU, 0, true).unwrap_err();
        assert_eq!(events(&mut fake, &mut smmu).len(), 1);
        assert_eq!(smmu.event_losses(), round);
    }
    // A queue that could not be written.
    fake.set_register(GERROR, GERROR_EVENTQ_ABT_ERR);
    events(&mut fake, &mut smmu);
    assert_eq!((fake.read(GERRORN), smmu.event_losses()), (GERROR_EVENTQ_ABT_ERR, 4));
    // A queue pointer that makes no sense.
    fake.set_register(EVENTQ_PROD, 0xffff_ffff);
    assert!(events(&mut fake, &mut smmu).len() <= 128);

    let mut reports = Reports::new(3, 100);
    let lines = (0..1000).filter_map(|now| reports.admit(now)).collect::<Vec<_>>();
    assert_eq!(lines.len(), 30);
    assert_eq!(lines.iter().sum::<u64>(), 1000 - 30 - 97);
}

#[test]
fn ats_is_looked_up() {
    let mut fake = FakeSmmu::new();
    Smmu::start(&mut fake, STRUCTURES).unwrap();
    assert_eq!(fake.read(CR0), CR0_SMMUEN | CR0_CMDQEN | CR0_EVENTQEN);
    let mut fake = FakeSmmu::new();
    fake.set_register(IDR0, 0x0d44_101b | IDR0_ATS);
    Smmu::start(&mut fake, STRUCTURES).unwrap();
    assert_ne!(fake.read(CR0) & CR0_ATSCHK, 0);
}
