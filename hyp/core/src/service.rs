//! The vendor service ([`hyp_abi::service`]) as the host sees it. Each operation names the states it is allowed in.

use crate::ffa::Answer;
use crate::partition::{self, End, Partition, State, Vcpu};
use crate::{Hypervisor, Mailbox, Platform, knob, manifest, private};
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::error::{ABORTED, BUSY, DENIED, INVALID_PARAMETERS, NO_MEMORY, NOT_SUPPORTED};
use hyp_abi::manifest::{Manifest, access, kind};
use hyp_abi::service::{
    INFO_FAULT_KNOBS, MAX_PARTITIONS, MEASURE_STEP_PAGES, MEASUREMENT_SIZE, PageRange, STEP_PAGES, VERSION,
    op,
};
use hyp_abi::stats::{Cost, SystemStats};
use sha2::Digest;
use stage2::{Access, Error, Fill, Ipa, Pa, Slot};
use zerocopy::{FromBytes, IntoBytes};

/// x4-x7 of a response.
pub(crate) type Results = [u64; 4];

/// Why an operation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// FF-A error code.
    pub(crate) code: i32,
    /// What offended: a physical address, an IPA, a region index, an id, pages needed, or 0.
    pub(crate) value: u64,
}

/// A refusal with nothing to point at.
const fn refuse(code: i32) -> Refusal {
    Refusal { code, value: 0 }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (code, value) = match error {
            Error::InvalidRange | Error::Unaligned | Error::TooMany | Error::IpaOutOfRange => {
                (INVALID_PARAMETERS, 0)
            }
            Error::NoSuchPartition => (INVALID_PARAMETERS, 0),
            Error::Overlap { pa } | Error::NotPinned { pa } => (INVALID_PARAMETERS, pa.0),
            Error::NotHostOwned { pa } | Error::NotRam { pa } | Error::Pinned { pa } => (DENIED, pa.0),
            Error::TooManyPins => (DENIED, 0),
            Error::NotGiven { ipa } => (INVALID_PARAMETERS, ipa.0),
            Error::IpaTaken { ipa }
            | Error::NotShareable { ipa }
            | Error::AlreadyShared { ipa }
            | Error::NotShared { ipa }
            | Error::Loaned { ipa } => (DENIED, ipa.0),
            Error::NoSuchLoan => (INVALID_PARAMETERS, 0),
            Error::NotRetrievable | Error::NotBorrowed | Error::Borrowed => (DENIED, 0),
            Error::TooManyLoans => (NO_MEMORY, 0),
            Error::NoTables { needed } => (NO_MEMORY, needed),
            Error::SlotTaken | Error::Busy => (BUSY, 0),
            Error::Corrupted => {
                log::error!("ownership records disagree");
                (ABORTED, 0)
            }
        };
        Self { code, value }
    }
}

impl Hypervisor {
    /// Carries out an operation of the host.
    pub(crate) fn host_service(
        &mut self,
        platform: &mut impl Platform,
        operation: u64,
        arguments: [u64; 4],
    ) -> Result<Results, Refusal> {
        if self.shutting_down {
            return Err(refuse(DENIED));
        }
        let [a, b, c, _] = arguments;
        let Self { npu, memory, knobs, .. } = self;
        let context = crate::npu::Context { platform, memory, knobs };
        if let Some(result) = npu.operation(context, stage2::Party::Host, operation) {
            return result;
        }
        match operation {
            op::INFO => Ok(info(platform)),
            op::TABLES_GIVE => self.tables_give(platform, a),
            op::TABLES_RECALL => self.tables_recall(platform, a),
            op::CREATE => self.create(platform, a),
            op::GIVE => self.give(platform, a, b, c),
            op::MEASURE => self.measure(platform, a),
            op::START => self.start(platform, a),
            op::STOP => self.stop(platform, a),
            op::RECALL => self.recall(platform, a, b, c),
            op::DESTROY => self.destroy(platform, a),
            op::STATS => self.stats(platform, a),
            op::LOG => self.log(platform, a, b),
            op::REGION | op::SHARE | op::UNSHARE | op::EXIT | op::PANIC => Err(refuse(DENIED)),
            #[cfg(feature = "fault-knobs")]
            op::KNOB => self.turn_knob(platform, a, b, c),
            _ => Err(refuse(NOT_SUPPORTED)),
        }
    }

    /// The partition with this id.
    fn partition_mut(&mut self, id: u64) -> Result<&mut Partition, Refusal> {
        find(&mut self.partitions, id)
    }

    /// Copies TX once into `buffer`.
    fn fetch(&mut self, platform: &impl Platform) -> Result<(), Refusal> {
        let mailbox = self.mailbox.ok_or(refuse(DENIED))?;
        platform.read_page(mailbox.tx, &mut self.buffer);
        Ok(())
    }

    /// Copies a list of `count` ranges from TX into `ranges`, checks each, and returns the pages.
    fn fetch_ranges(&mut self, platform: &impl Platform, count: u64) -> Result<u64, Refusal> {
        if count == 0 || count > self.ranges.len() as u64 {
            return Err(refuse(INVALID_PARAMETERS));
        }
        self.fetch(platform)?;
        let cut = self.knobs.skips(knob::RANGE_FORM);
        let entries = self.buffer.chunks_exact(size_of::<PageRange>()).take(count as usize);
        let mut pages = 0u64;
        for (bytes, checked) in entries.zip(&mut self.ranges) {
            let mut entry = PageRange::read_from_bytes(bytes).unwrap_or_default();
            if cut {
                // What is left of an address in a table entry, and of a count after it was one of bytes.
                entry =
                    PageRange { base: entry.base & 0xFF_FFFF_F000, page_count: entry.page_count << 12 >> 12 };
            }
            let offence = Refusal { code: INVALID_PARAMETERS, value: entry.base };
            *checked = stage2::PageRange::new(Pa(entry.base), entry.page_count).map_err(|_| offence)?;
            // Each is below 2^28 pages, so the sum of 256 does not overflow.
            pages += entry.page_count;
            if pages > STEP_PAGES {
                return Err(offence);
            }
        }
        Ok(pages)
    }

    fn tables_give(&mut self, platform: &mut impl Platform, count: u64) -> Result<Results, Refusal> {
        self.fetch_ranges(platform, count)?;
        let ranges = self.ranges.get(..count as usize).unwrap_or_default();
        let taken = self.memory.host_give_tables(platform, ranges)?;
        Ok([taken, self.memory.census().tables_free, 0, 0])
    }

    /// RX is taken only when there is something in it.
    fn tables_recall(&mut self, platform: &mut impl Platform, most: u64) -> Result<Results, Refusal> {
        let Self { memory, mailbox, buffer, ranges, .. } = self;
        let mailbox = free_rx(mailbox)?;
        let (count, pages) = memory.host_recall_tables(platform, ranges, most.min(STEP_PAGES))?;
        let size = size_of::<PageRange>();
        for (range, target) in ranges.iter().take(count).zip(buffer.chunks_exact_mut(size)) {
            let entry = PageRange { base: range.base().0, page_count: range.page_count() };
            target.copy_from_slice(entry.as_bytes());
        }
        if count > 0 {
            mailbox.deliver(platform, buffer.get(..count * size).unwrap_or_default());
        }
        Ok([count as u64, pages, 0, 0])
    }

    fn create(&mut self, platform: &mut impl Platform, size: u64) -> Result<Results, Refusal> {
        if size != size_of::<Manifest>() as u64 {
            return Err(refuse(INVALID_PARAMETERS));
        }
        self.fetch(platform)?;
        let (manifest, _) =
            Manifest::read_from_prefix(&self.buffer).map_err(|_| refuse(INVALID_PARAMETERS))?;
        manifest::validate(&manifest)?;
        let free = self.partitions.iter().position(Option::is_none).and_then(Slot::new);
        let slot = free.ok_or(refuse(BUSY))?;
        self.memory.partition_create(platform, slot)?;
        if let Some(secure) = &mut self.secure {
            secure.partition_create(platform, slot)?;
        }
        let partition = Partition::new(slot, manifest);
        let id = partition.id();
        if let Some(place) = self.partitions.get_mut(slot.index()) {
            *place = Some(partition);
        }
        self.log_mut(slot).into_iter().for_each(crate::logs::Log::clear);
        self.next_generation();
        Ok([u64::from(id), 0, 0, 0])
    }

    /// Contents: in Created only, so that what is measured is what runs. Zeroed pages: until it ends.
    fn give(
        &mut self,
        platform: &mut impl Platform,
        id: u64,
        ipa: u64,
        count: u64,
    ) -> Result<Results, Refusal> {
        let late_contents = self.knobs.skips(knob::CONTENTS_AFTER_MEASURE);
        let writable = self.knobs.skips(knob::REGION_ACCESS);
        let partition = self.partition_mut(id)?;
        let offence = Refusal { code: INVALID_PARAMETERS, value: ipa };
        let (index, region) = manifest::region_of(&partition.manifest, ipa).ok_or(offence)?;
        let contents = manifest::has_contents(region);
        if region.kind == kind::BORROWED {
            return Err(Refusal { code: DENIED, value: index as u64 });
        }
        let allowed = match partition.state {
            State::Created => true,
            State::Measuring(_) | State::Measured | State::Running => !contents || late_contents,
            State::Ended(_) | State::Dying(_) => false,
        };
        if !allowed {
            return Err(Refusal { value: index as u64, ..partition::state_refusal(partition) });
        }
        let room = region.page_count - (ipa - region.ipa) / PAGE_SIZE;
        let access = match region.access {
            bits if bits & access::EXECUTE != 0 => Access::ReadExecute,
            bits if bits & access::WRITE != 0 || writable => Access::ReadWrite,
            _ => Access::Read,
        };
        let slot = partition.slot;
        if !ipa.is_multiple_of(PAGE_SIZE) || self.fetch_ranges(platform, count)? > room {
            return Err(offence);
        }
        if self.knobs.skips(knob::TX_SINGLE_FETCH) {
            self.fetch_ranges(platform, count)?;
        }
        let ranges = self.ranges.get(..count as usize).unwrap_or_default();
        let fill = if contents { Fill::Keep } else { Fill::Zero };
        let pages = self.memory.host_give_partition(platform, slot, ranges, Ipa(ipa), access, fill)?;
        self.copy_private(platform, slot, ipa, pages)?;
        self.partition_mut(id)?.account(ipa, pages, false);
        Ok([pages, 0, 0, 0])
    }

    /// Created, Measuring; in Measured it delivers the result again.
    fn measure(&mut self, platform: &mut impl Platform, id: u64) -> Result<Results, Refusal> {
        let Self { partitions, memory, secure, mailbox, buffer, .. } = self;
        let partition = find(partitions, id)?;
        let mailbox = free_rx(mailbox)?;
        let slot = partition.slot;
        if let State::Created = partition.state {
            partition.state = State::Measuring(partition.begin_measuring());
        }
        let measurement: [u8; MEASUREMENT_SIZE] = match &mut partition.state {
            State::Measuring(measuring) => {
                let mut steps = 0;
                while let Some(page) = memory.next_partition_page(platform, slot, Ipa(measuring.next)) {
                    let Some((_, region)) = manifest::region_of(&partition.manifest, page.ipa.0) else {
                        break;
                    };
                    if !manifest::has_contents(region) {
                        measuring.next = region.ipa + region.page_count * PAGE_SIZE;
                        continue;
                    }
                    if steps == MEASURE_STEP_PAGES {
                        return Ok([measuring.remaining.max(1), 0, 0, 0]);
                    }
                    let used = private::space(memory, secure, page.ipa.0);
                    let used = used.partition_page(platform, slot, page.ipa).ok_or(Error::Corrupted)?;
                    platform.read_page(used.pa, buffer);
                    measuring.hash.update(page.ipa.0.to_le_bytes());
                    measuring.hash.update(&buffer[..]);
                    measuring.next = page.ipa.0 + PAGE_SIZE;
                    measuring.remaining = measuring.remaining.saturating_sub(1);
                    steps += 1;
                }
                measuring.hash.clone().finalize().into()
            }
            State::Measured => partition.measurement,
            _ => return Err(partition::state_refusal(partition)),
        };
        partition.measurement = measurement;
        partition.state = State::Measured;
        mailbox.deliver(platform, &measurement);
        Ok([0; 4])
    }

    /// Measured only.
    fn start(&mut self, platform: &mut impl Platform, id: u64) -> Result<Results, Refusal> {
        let partition = self.partition_mut(id)?;
        let State::Measured = partition.state else { return Err(partition::state_refusal(partition)) };
        partition.state = State::Running;
        if let Some(first) = partition.vcpus_mut().first_mut() {
            *first = Vcpu::Ready;
        }
        platform.reset_vcpu(partition.slot, 0, partition.manifest.entry, 0);
        Ok([0; 4])
    }

    /// Every state; one that ended keeps its reason.
    fn stop(&mut self, platform: &mut impl Platform, id: u64) -> Result<Results, Refusal> {
        let partition = self.partition_mut(id)?;
        partition.stop();
        let slot = partition.slot;
        self.take_npu_from(platform, slot);
        leave(self.partition_mut(id)?, platform)?;
        Ok([0; 4])
    }

    /// Created and Ended, with no vCPU inside.
    fn recall(
        &mut self,
        platform: &mut impl Platform,
        id: u64,
        ipa: u64,
        page_count: u64,
    ) -> Result<Results, Refusal> {
        let unchecked = self.knobs.skips(knob::RECALL_STATE);
        let partition = self.partition_mut(id)?;
        let slot = partition.slot;
        match partition.state {
            _ if unchecked => (),
            State::Created => (),
            State::Ended(_) => leave(partition, platform)?,
            State::Dying(_) => return Err(Refusal { code: BUSY, value: id }),
            State::Measuring(_) | State::Measured | State::Running => {
                return Err(Refusal { code: DENIED, value: id });
            }
        }
        let pages = self.memory.host_recall_partition(platform, slot, Ipa(ipa), page_count)?;
        self.recall_private(platform, slot, ipa, pages)?;
        self.partition_mut(id)?.account(ipa, pages, true);
        Ok([pages, 0, 0, 0])
    }

    /// Every state; BUSY until every vCPU is out. Its registers are forgotten with its pages.
    fn destroy(&mut self, platform: &mut impl Platform, id: u64) -> Result<Results, Refusal> {
        let partition = self.partition_mut(id)?;
        partition.state = State::Dying(partition.end().unwrap_or(End::Stopped));
        let (slot, vcpu_count) = (partition.slot, partition.vcpus_mut().len());
        self.take_npu_from(platform, slot);
        leave(self.partition_mut(id)?, platform)?;
        let remaining = match self.destroy_private(platform, slot)? {
            0 => self.memory.partition_destroy(platform, slot, STEP_PAGES)?,
            // Behind each is a page that was given.
            _ => self.memory.partition_page_count(slot).max(1),
        };
        self.forget_transactions(slot);
        if remaining == 0
            && let Some(place) = self.partitions.get_mut(slot.index())
        {
            *place = None;
            // Registers hold what memory held.
            (0..vcpu_count).for_each(|vcpu| platform.reset_vcpu(slot, vcpu, 0, 0));
            // What others let it do is not for the next one with its id.
            self.forget_sender(slot);
            self.next_generation();
        }
        Ok([remaining, 0, 0, 0])
    }

    fn stats(&mut self, platform: &mut impl Platform, id: u64) -> Result<Results, Refusal> {
        let (system, partition);
        let bytes = if id == 0 {
            system = self.system_stats(platform);
            system.as_bytes()
        } else {
            partition = find(&mut self.partitions, id)?.stats(&self.memory);
            partition.as_bytes()
        };
        free_rx(&mut self.mailbox)?.deliver(platform, bytes);
        Ok([bytes.len() as u64, 0, 0, 0])
    }

    /// Every state: what it logged, from a position on.
    fn log(&mut self, platform: &mut impl Platform, id: u64, position: u64) -> Result<Results, Refusal> {
        let slot = find(&mut self.partitions, id)?.slot;
        let Self { mailbox, buffer, logs, .. } = self;
        let mailbox = free_rx(mailbox)?;
        let log = logs.get(slot.index()).ok_or(Refusal { code: INVALID_PARAMETERS, value: id })?;
        let (length, first) = log.read(position, buffer);
        // RX is taken only when there is something in it.
        if length > 0 {
            mailbox.deliver(platform, buffer.get(..length).unwrap_or_default());
        }
        Ok([length as u64, first, 0, 0])
    }

    fn system_stats(&self, platform: &impl Platform) -> SystemStats {
        let (census, counters) = (self.memory.census(), self.memory.counters());
        SystemStats {
            ticks_per_second: platform.ticks_per_second(),
            partition_count: self.partitions.iter().flatten().count() as u64,
            blocked_accesses: self.counters.blocked_accesses,
            refused_calls: self.counters.refused_calls,
            host_exits: self.counters.host_exits,
            world_switches: self.counters.world_switches,
            pages_given: counters.give.pages,
            pages_recalled: counters.recall.pages,
            tables_used: census.tables_used,
            tables_free: census.tables_free,
            tables_from_host: census.tables_from_host,
            leaves_1g: census.leaves_1g,
            leaves_2m: census.leaves_2m,
            leaves_4k: census.leaves_4k,
            splits: counters.splits,
            coalesces: counters.coalesces,
            give: cost(&counters.give),
            recall: cost(&counters.recall),
            last_give: cost(&counters.last_give),
            last_recall: cost(&counters.last_recall),
            npu: hyp_abi::stats::NpuStats { blocked: platform.dma_blocked(), ..self.npu.stats(platform) },
        }
    }

    #[cfg(feature = "fault-knobs")]
    fn turn_knob(
        &mut self,
        platform: &mut impl Platform,
        number: u64,
        on: u64,
        page: u64,
    ) -> Result<Results, Refusal> {
        if on > 1 {
            return Err(Refusal { code: INVALID_PARAMETERS, value: on });
        }
        if number == knob::DEVICE_ALLOW_LIST && on == 1 {
            self.memory.boot_map_host(platform, Pa(page), PAGE_SIZE, stage2::HostMemory::Device)?;
        }
        if let Some(knob) = stage2::Knob::ALL.into_iter().find(|knob| *knob as u64 == number) {
            self.memory.set_knob(knob, on == 1);
        } else if !self.knobs.set(number, on == 1) {
            return Err(Refusal { code: INVALID_PARAMETERS, value: number });
        }
        Ok([0; 4])
    }
}

/// The partition with this id.
fn find(partitions: &mut [Option<Partition>; MAX_PARTITIONS], id: u64) -> Result<&mut Partition, Refusal> {
    let missing = Refusal { code: INVALID_PARAMETERS, value: id };
    let slot = partition::slot_of(id).ok_or(missing)?;
    partitions.get_mut(slot.index()).and_then(Option::as_mut).ok_or(missing)
}

/// The host's mailbox, if there is one and the host has released RX.
pub(crate) fn free_rx(mailbox: &mut Option<Mailbox>) -> Result<&mut Mailbox, Refusal> {
    match mailbox {
        None => Err(refuse(DENIED)),
        Some(mailbox) if mailbox.rx_full => Err(refuse(BUSY)),
        Some(mailbox) => Ok(mailbox),
    }
}

impl Mailbox {
    /// Writes a result to RX, which [`free_rx`] found free; the host owns it until FFA_RX_RELEASE.
    pub(crate) fn deliver(&mut self, platform: &mut impl Platform, bytes: &[u8]) {
        platform.write_page(self.rx, 0, bytes);
        self.rx_full = true;
    }
}

/// INFO, the same for every caller.
pub(crate) fn info(platform: &impl Platform) -> Results {
    let flags = if cfg!(feature = "fault-knobs") { INFO_FAULT_KNOBS } else { 0 };
    [VERSION, flags, MAX_PARTITIONS as u64, platform.ticks_per_second()]
}

/// BUSY, after a kick, while a vCPU is inside.
fn leave(partition: &Partition, platform: &mut impl Platform) -> Result<(), Refusal> {
    if partition.is_inside() {
        partition.kick(platform);
        return Err(Refusal { code: BUSY, value: u64::from(partition.id()) });
    }
    Ok(())
}

fn cost(cost: &stage2::Cost) -> Cost {
    Cost {
        calls: cost.calls,
        pages: cost.pages,
        validate: cost.validate,
        tables: cost.tables,
        tlbi: cost.tlbi,
        scrub: cost.scrub,
    }
}

/// The service's response to a direct request of `sender`; a 32-bit one gets the low words, one of the second kind x8-x17
/// too, which this writes itself.
pub(crate) fn respond(
    request: u32,
    sender: u16,
    result: Result<Results, Refusal>,
    regs: &mut [u64; 18],
) -> Answer {
    use hyp_abi::ffa::{
        MSG_SEND_DIRECT_REQ_32, MSG_SEND_DIRECT_REQ2, MSG_SEND_DIRECT_RESP_32, MSG_SEND_DIRECT_RESP_64,
        MSG_SEND_DIRECT_RESP2, SERVICE_ID,
    };
    let (status, [a, b, c, d]) = match result {
        Ok(results) => (0, results),
        Err(refusal) => (i64::from(refusal.code) as u64, [refusal.value, 0, 0, 0]),
    };
    let route = u64::from(SERVICE_ID) << 16 | u64::from(sender);
    match request {
        MSG_SEND_DIRECT_REQ_32 => {
            let low = |word: u64| word & u64::from(u32::MAX);
            [MSG_SEND_DIRECT_RESP_32.into(), route, 0, low(status), low(a), low(b), low(c), low(d)]
        }
        MSG_SEND_DIRECT_REQ2 => {
            *regs = [0; 18];
            regs[8] = d;
            [MSG_SEND_DIRECT_RESP2.into(), route, 0, 0, status, a, b, c]
        }
        _ => [MSG_SEND_DIRECT_RESP_64.into(), route, 0, status, a, b, c, d],
    }
}
