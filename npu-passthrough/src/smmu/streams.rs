//! The stream table, and who owns which stream.

use super::events::{self, Event, EventQueue};
use super::queue::{self, CommandQueue};
use super::registers::*;
use super::{Error, Io, Missing, Registers, abort_all, settle};
use arrayvec::ArrayVec;

/// The most PCI buses with a level-2 table.
pub const MAX_BUSES: usize = 4;
/// The most streams attached at a time.
pub const MAX_STREAMS: usize = 32;
/// Pages beyond which a VMID is invalidated as a whole, where the SMMU has no range invalidation.
const MAX_SINGLE_PAGES: u64 = 64;
/// Addresses of this driver's and in its tables are below 2 to this power.
const ADDRESS_BITS: u32 = 40;

/// Memory of one SMMU: the hypervisor's alone, below 2^40. What it holds before [`Smmu::start`] does not matter.
#[derive(Clone, Copy, Debug)]
pub struct Structures<'a> {
    /// Level-1 stream table: 2 KiB, aligned to that.
    pub stream_table: u64,
    /// Buses that have functions, and the level-2 table of each: 16 KiB, aligned to that.
    pub buses: &'a [(u8, u64)],
    /// Command queue: 4 KiB, aligned to that.
    pub command_queue: u64,
    /// Event queue: 4 KiB, aligned to that.
    pub event_queue: u64,
}

impl Structures<'_> {
    const LEVEL1_SIZE: u64 = 8 << (STREAM_ID_BITS - SPLIT);
    const LEVEL2_SIZE: u64 = STE_SIZE << SPLIT;

    fn are_valid(&self) -> bool {
        let fits = |base: u64, size: u64| base.is_multiple_of(size) && base >> ADDRESS_BITS == 0;
        let is_twice = |bus: u8| self.buses.iter().filter(|other| other.0 == bus).count() > 1;
        fits(self.stream_table, Self::LEVEL1_SIZE)
            && fits(self.command_queue, 16 << queue::LOG2SIZE)
            && fits(self.event_queue, 32 << events::LOG2SIZE)
            && self.buses.len() <= MAX_BUSES
            && self.buses.iter().all(|&(bus, table)| fits(table, Self::LEVEL2_SIZE) && !is_twice(bus))
    }
}

#[cfg(any(test, feature = "fault-knobs"))]
bitflags::bitflags! {
    /// Protections that can be left out, to show that each is needed. Not in a shipped image.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Skips: u8 {
        /// Detach leaves the stream's entry as it is.
        const ABORT = 1 << 0;
        /// No CMD_CFGI_STE.
        const CFGI = 1 << 1;
        /// No CMD_TLBI_*, at changes of owner and of pages.
        const TLBI = 1 << 2;
        /// No CMD_SYNC.
        const SYNC = 1 << 3;
        /// Attach writes all of an entry before the SMMU has forgotten the old one.
        const CFGI_FIRST = 1 << 4;
    }
}

#[derive(Clone, Copy)]
struct Stream {
    id: u32,
    vmid: u16,
}

/// An SMMU whose streams abort unless attached. The caller serializes all calls.
pub struct Smmu {
    buses: ArrayVec<(u8, u64), MAX_BUSES>,
    streams: ArrayVec<Stream, MAX_STREAMS>,
    commands: CommandQueue,
    events: EventQueue,
    has_ranges: bool,
    has_vmid16: bool,
    bbm_level: u8,
    #[cfg(any(test, feature = "fault-knobs"))]
    skips: Skips,
}

/// Whether a knob leaves a protection out: constant `false` in a shipped image.
macro_rules! skips {
    ($smmu:expr, $skip:ident) => {{
        #[cfg(any(test, feature = "fault-knobs"))]
        let skip = $smmu.skips.contains(Skips::$skip);
        #[cfg(not(any(test, feature = "fault-knobs")))]
        let skip = false;
        skip
    }};
}

/// What the SMMU lacks, if anything.
fn missing(registers: &impl Registers) -> Option<Missing> {
    let (idr0, idr1, idr5) = (registers.read(IDR0), registers.read(IDR1), registers.read(IDR5));
    let has_queues = idr1 & IDR1_PRESET == 0
        && idr1_command_queue_log2(idr1) >= queue::LOG2SIZE
        && idr1_event_queue_log2(idr1) >= events::LOG2SIZE;
    [
        (idr0 & IDR0_S2P != 0, Missing::Stage2),
        (idr0 & IDR0_TTF_AARCH64 != 0, Missing::AArch64Tables),
        (idr0 & IDR0_TTENDIAN_NOT_LITTLE == 0, Missing::LittleEndian),
        (idr0 & IDR0_COHACC != 0, Missing::Coherency),
        (idr0 & IDR0_STALL_FORCED == 0, Missing::Termination),
        (idr0 & IDR0_ST_LEVEL_2 != 0, Missing::TwoLevelStreamTable),
        (idr1_stream_id_bits(idr1) >= STREAM_ID_BITS, Missing::StreamIds),
        (has_queues, Missing::Queues),
        (idr5 & IDR5_GRAN4K != 0, Missing::Granule4K),
        (idr5_output_size(idr5) >= OUTPUT_SIZE_40, Missing::OutputSize),
    ]
    .iter()
    .find_map(|&(has, what)| (!has).then_some(what))
}

fn set_cr0(io: &mut impl Io, value: u32) -> Result<(), Error> {
    io.write(CR0, value);
    if settle(|| io.read(CR0ACK) == value) { Ok(()) } else { Err(Error::NotEnabled) }
}

impl Smmu {
    /// Takes the SMMU over, in whatever state it is, and turns it on with every stream aborting (section 6.3.9.6 and
    /// 3.11). GBPA aborts before, meanwhile, and should translation ever be turned off.
    pub fn start(io: &mut impl Io, structures: Structures) -> Result<Self, Error> {
        abort_all(io)?;
        if let Some(what) = missing(io) {
            return Err(Error::Missing(what));
        }
        if !structures.are_valid() {
            return Err(Error::Structures);
        }
        set_cr0(io, 0)?;
        io.write(IRQ_CTRL, 0); // events are polled
        if !settle(|| io.read(IRQ_CTRL_ACK) == 0) {
            return Err(Error::NotEnabled);
        }
        io.write(CR1, CR1_WRITE_BACK);
        io.write(CR2, CR2_RECINVSID | CR2_PTM);
        let gerror = io.read(GERROR);
        io.write(GERRORN, gerror);

        for &(_, table) in structures.buses {
            for entry in (table..table + Structures::LEVEL2_SIZE).step_by(STE_SIZE as usize) {
                io.store(entry, STE_ABORT);
                for word in 1..STE_SIZE / 8 {
                    io.store(entry + 8 * word, 0);
                }
            }
        }
        for index in 0..1 << (STREAM_ID_BITS - SPLIT) {
            let table = structures.buses.iter().find(|bus| u64::from(bus.0) == index);
            io.store(structures.stream_table + 8 * index, table.map_or(0, |bus| bus.1 | L1_SPAN));
        }
        io.write64(STRTAB_BASE, structures.stream_table | BASE_ALLOCATE);
        io.write(STRTAB_BASE_CFG, STRTAB_BASE_CFG_PER_BUS);

        let idr0 = io.read(IDR0);
        let idr3 = io.read(IDR3);
        let mut smmu = Self {
            buses: structures.buses.iter().copied().collect(),
            streams: ArrayVec::new(),
            commands: CommandQueue::start(io, structures.command_queue),
            events: EventQueue::start(io, structures.event_queue),
            has_ranges: idr3 & IDR3_RIL != 0,
            has_vmid16: idr0 & IDR0_VMID16 != 0,
            bbm_level: idr3_bbm_level(idr3),
            #[cfg(any(test, feature = "fault-knobs"))]
            skips: Skips::empty(),
        };
        // ATSCHK is RES0 without ATS, and then its acknowledgement would never come.
        let mut cr0 = CR0_CMDQEN | if idr0 & IDR0_ATS != 0 { CR0_ATSCHK } else { 0 };
        set_cr0(io, cr0)?;
        smmu.commands.put(io, CFGI_ALL_STREAMS)?;
        smmu.commands.put(io, TLBI_EVERYTHING)?;
        smmu.commands.sync(io)?;
        cr0 |= CR0_EVENTQEN;
        set_cr0(io, cr0)?;
        set_cr0(io, cr0 | CR0_SMMUEN)?;
        Ok(smmu)
    }

    /// How well tables may change between blocks and tables in place (IDR3.BBML, 0 to 2).
    pub fn bbm_level(&self) -> u8 {
        self.bbm_level
    }

    /// VMID of the stream's owner.
    pub fn owner(&self, stream: u32) -> Option<u16> {
        self.streams.iter().find(|entry| entry.id == stream).map(|entry| entry.vmid)
    }

    /// Whether a stream walks the tables of `vmid`.
    pub fn is_used(&self, vmid: u16) -> bool {
        self.streams.iter().any(|stream| stream.vmid == vmid)
    }

    fn entry(&self, stream: u32) -> Result<u64, Error> {
        let bus = self.buses.iter().find(|bus| u32::from(bus.0) == stream >> SPLIT).ok_or(Error::NoTable)?;
        Ok(bus.1 + STE_SIZE * u64::from(stream & ((1 << SPLIT) - 1)))
    }

    /// Lets a stream walk the tables at `root` (a level-1 table, 4 KiB aligned) under `vmid`. On an error
    /// the stream aborts as far as the SMMU listens, and counts as attached until [`Self::detach`] succeeds, unless the
    /// error is the caller's.
    pub fn attach(&mut self, io: &mut impl Io, stream: u32, vmid: u16, root: u64) -> Result<(), Error> {
        let entry = self.entry(stream)?;
        if self.owner(stream).is_some() {
            return Err(Error::Attached);
        }
        if !self.has_vmid16 && vmid > 0xff {
            return Err(Error::Vmid);
        }
        if !root.is_multiple_of(0x1000) || root >> ADDRESS_BITS != 0 {
            return Err(Error::Root);
        }
        self.streams.try_push(Stream { id: stream, vmid }).map_err(|_| Error::TooManyStreams)?;
        let result = self.write_entry(io, stream, entry, vmid, root);
        if result.is_err() {
            io.store(entry, STE_ABORT);
        }
        result
    }

    /// Section 3.21.3.1: the words that word 0 makes count are written, and older copies of them forgotten, before it.
    /// Until then the entry says abort (not invalid, which would record events).
    fn write_entry(
        &mut self,
        io: &mut impl Io,
        stream: u32,
        entry: u64,
        vmid: u16,
        root: u64,
    ) -> Result<(), Error> {
        io.store(entry + 8, STE_WORD1);
        io.store(entry + 16, u64::from(vmid) | STE_STAGE2_FORMAT);
        io.store(entry + 24, root);
        if !skips!(self, CFGI_FIRST) {
            self.forget_entry(io, stream)?;
        }
        io.store(entry, STE_STAGE2);
        self.forget_entry(io, stream)?;
        self.forget_vmid(io, vmid)
    }

    /// Ends a stream's use of the tables of `vmid`: on `Ok` its DMA is aborted and nothing of the VMID is cached. The
    /// device may still think that it owns translations only if it has ATS, which is off.
    pub fn detach(&mut self, io: &mut impl Io, stream: u32, vmid: u16) -> Result<(), Error> {
        let entry = self.entry(stream)?;
        let is_this = |attached: &Stream| attached.id == stream && attached.vmid == vmid;
        let index = self.streams.iter().position(is_this).ok_or(Error::NotAttached)?;
        if !skips!(self, ABORT) {
            io.store(entry, STE_ABORT);
        }
        // In this order: a transaction that still uses the old entry could bring translations back.
        self.forget_entry(io, stream)?;
        self.forget_vmid(io, vmid)?;
        self.streams.swap_remove(index);
        Ok(())
    }

    /// Forgets translations of `page_count` pages from `ipa` on, walk caches included. Does nothing if no stream uses
    /// the VMID.
    pub fn invalidate_pages(
        &mut self,
        io: &mut impl Io,
        vmid: u16,
        ipa: u64,
        page_count: u64,
    ) -> Result<(), Error> {
        if !self.is_used(vmid) || page_count == 0 || skips!(self, TLBI) {
            return Ok(());
        }
        let in_space = ipa >> ADDRESS_BITS == 0 && page_count <= 1 << (ADDRESS_BITS - 12);
        if !in_space || (!self.has_ranges && page_count > MAX_SINGLE_PAGES) {
            return self.forget_vmid(io, vmid);
        }
        let mut page = ipa >> 12;
        let mut left = page_count;
        while left > 0 {
            // Up to 32 << scale pages go in one command; the odd ones first.
            let scale = if self.has_ranges { left.trailing_zeros() } else { 0 };
            let count = if self.has_ranges { left >> scale & 31 } else { 1 };
            let pages = count << scale;
            let command = if pages == 1 {
                tlbi_s2_ipa(vmid, page << 12)
            } else {
                tlbi_s2_range(vmid, page << 12, count, scale)
            };
            self.commands.put(io, command)?;
            page += pages;
            left -= pages;
        }
        self.sync(io)
    }

    /// Forgets all translations of `vmid`. Does nothing if no stream uses it.
    pub fn invalidate_vmid(&mut self, io: &mut impl Io, vmid: u16) -> Result<(), Error> {
        if self.is_used(vmid) { self.forget_vmid(io, vmid) } else { Ok(()) }
    }

    fn forget_entry(&mut self, io: &mut impl Io, stream: u32) -> Result<(), Error> {
        if !skips!(self, CFGI) {
            self.commands.put(io, cfgi_ste(stream))?;
        }
        self.sync(io)
    }

    fn forget_vmid(&mut self, io: &mut impl Io, vmid: u16) -> Result<(), Error> {
        if !skips!(self, TLBI) {
            self.commands.put(io, tlbi_s12_vmall(vmid))?;
        }
        self.sync(io)
    }

    fn sync(&mut self, io: &mut impl Io) -> Result<(), Error> {
        if skips!(self, SYNC) { self.commands.drain(io) } else { self.commands.sync(io) }
    }

    /// Takes the recorded events out, at most one queue full (128), and acknowledges what made events go missing.
    pub fn events(&mut self, io: &mut impl Io, report: impl FnMut(Event)) {
        self.events.drain(io, report);
    }

    /// How often events went missing: the queue was full, or could not be written.
    pub fn event_losses(&self) -> u64 {
        self.events.losses
    }

    /// Chooses the protections to leave out.
    #[cfg(any(test, feature = "fault-knobs"))]
    pub fn set_skips(&mut self, skips: Skips) {
        self.skips = skips;
    }
}
