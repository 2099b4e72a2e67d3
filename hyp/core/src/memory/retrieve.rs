//! Retrieve: what a receiver must say, where it may map, and what it is told.

use super::*;
use crate::manifest::region_of;
use descriptor::{CONSTITUENT, constituents};
use hyp_abi::ffa::{MEM_FRAG_TX, MEM_RETRIEVE_RESP, VERSION_1_2};
use hyp_abi::manifest::{access, kind};
use hyp_abi::memory::{
    ATTRIBUTES, CompositeRegion, Constituent, EXECUTE_NEVER, EndpointAccess, EndpointAccess11,
    FLAG_ANY_RECEIVERS, FLAG_KIND_SHIFT, FLAG_ZERO_AFTER, KIND_DONATE, KIND_LEND, KIND_SHARE, MemoryRegion,
    READ_ONLY, READ_WRITE,
};
use stage2::{Access, Ipa};
use zerocopy::IntoBytes;

/// Flags of a request that are known: zero before, zero after, kind, an alignment hint that nobody needs, any receivers.
const KNOWN_FLAGS: u32 = FLAG_ZERO | FLAG_ZERO_AFTER | 3 << FLAG_KIND_SHIFT | 0x3E0 | FLAG_ANY_RECEIVERS;

fn kind_flag(kind: LoanKind) -> u32 {
    match kind {
        LoanKind::Share => KIND_SHARE,
        LoanKind::Lend => KIND_LEND,
        LoanKind::Donate => KIND_DONATE,
    }
}

impl Hypervisor {
    /// FFA_MEM_RETRIEVE_REQ. A partition names one contiguous range of a region; the host gets the pages where they lie.
    pub(super) fn memory_retrieve(
        &mut self,
        platform: &mut impl Platform,
        caller: Endpoint,
        args: &[u64; 8],
    ) -> Result<Answer, Refusal> {
        let invalid = refuse(INVALID_PARAMETERS);
        let [_, total, length, address, page_count, ..] = *args;
        if (address, page_count) != (0, 0) || length != total {
            return Err(invalid);
        }
        let length = self.fetch_tx(platform, caller, length)?;
        let bytes = self.buffer.get(..length).ok_or(invalid)?;
        let request = Descriptor::parse(bytes).ok_or(invalid)?;
        let unchecked = self.knobs.skips(knob::HANDLE_RECEIVER);
        let is_mine =
            |t: &Transaction| t.receivers.iter().flatten().any(|r| r.endpoint == caller) || unchecked;
        let (id, mut transaction) = self.transactions.find(request.header.handle, is_mine)?;
        if transaction.awaited.is_some() {
            return Err(invalid);
        }
        let own = request.accesses().iter().find(|access| access.receiver == caller.id()).ok_or(invalid)?;
        let mut receiver = match transaction.receiver_mut(caller) {
            Some(receiver) => *receiver,
            // Only without the check above.
            None => {
                let first = transaction.receivers.iter().flatten().next().ok_or(invalid)?;
                Receiver { retrieved: None, ..*first }
            }
        };
        let mut retrieved = check_request(&transaction, &receiver, &request, own)?;

        let rx = self.free_rx_page(platform, caller).map_err(refuse)?;
        let page_count = self.memory.loan(id).map_or(0, |loan| loan.page_count);
        let ipa = match caller {
            Endpoint::Host if own.composite_offset != 0 => return Err(invalid),
            Endpoint::Host => {
                self.memory.host_retrieve(platform, id)?;
                None
            }
            Endpoint::Partition(slot) => {
                let composite = request.composite(bytes, own.composite_offset).ok_or(invalid)?;
                // One range, nothing behind it, and just the pages that there are.
                let list =
                    bytes.get(composite.start..).filter(|_| composite.end == length as u64).ok_or(invalid)?;
                let range = constituents(list).next().flatten().ok_or(invalid)?;
                if composite.page_count != page_count || range.page_count() != page_count {
                    return Err(invalid);
                }
                let ipa = range.base().0;
                let rights = self.place_for(slot, transaction.kind, ipa, page_count)?;
                if !rights && (own.permissions & 3 == READ_WRITE || retrieved.zero_after) {
                    return Err(refuse(DENIED));
                }
                retrieved.can_write &= rights;
                let access = if retrieved.can_write { Access::ReadWrite } else { Access::Read };
                self.memory.partition_retrieve(platform, id, slot, Ipa(ipa), access)?;
                Some(ipa)
            }
        };
        receiver.retrieved = Some(retrieved);
        match (transaction.kind, caller) {
            (LoanKind::Donate, Endpoint::Partition(slot)) => {
                if let (Some(partition), Some(ipa)) = (self.partition_in(slot), ipa) {
                    partition.account(ipa, page_count, false);
                }
                self.transactions.put(id, None);
            }
            _ => {
                if let Some(place) = self.transactions.get_mut(id).and_then(|t| t.receiver_mut(caller)) {
                    *place = receiver;
                }
            }
        }
        let (total, length) =
            self.describe(platform, caller, id, &transaction, &receiver, ipa.map(|ipa| (ipa, page_count)));
        platform.write_page(rx, 0, self.buffer.get(..length).unwrap_or_default());
        self.set_rx_full(caller);
        Ok([MEM_RETRIEVE_RESP.into(), total as u64, length as u64, 0, 0, 0, 0, 0])
    }

    /// Whether the partition may map that many pages there for a transaction of that kind, and write them.
    fn place_for(
        &self,
        slot: Slot,
        kind_of_loan: LoanKind,
        ipa: u64,
        page_count: u64,
    ) -> Result<bool, Refusal> {
        let partition = self.partitions.get(slot.index()).and_then(Option::as_ref);
        let partition = partition.ok_or(refuse(INVALID_PARAMETERS))?;
        let (_, region) = region_of(&partition.manifest, ipa).ok_or(refuse(INVALID_PARAMETERS))?;
        let wanted = if kind_of_loan == LoanKind::Donate { kind::ZERO } else { kind::BORROWED };
        let room = region.page_count - (ipa - region.ipa) / PAGE_SIZE;
        if region.kind != wanted || page_count > room {
            return Err(refuse(DENIED));
        }
        Ok(region.access & access::WRITE != 0)
    }

    /// Writes the response into the buffer: its bytes in all, and those of the first fragment. A partition has one range.
    fn describe(
        &mut self,
        platform: &impl Platform,
        caller: Endpoint,
        id: LoanId,
        transaction: &Transaction,
        receiver: &Receiver,
        range: Option<(u64, u64)>,
    ) -> (usize, usize) {
        let start = self.list_offset(caller);
        let access_size = start - size_of::<MemoryRegion>() - size_of::<CompositeRegion>();
        let can_write = receiver.retrieved.is_some_and(|retrieved| retrieved.can_write);
        let access = EndpointAccess {
            receiver: caller.id(),
            permissions: if can_write { READ_WRITE } else { READ_ONLY } | EXECUTE_NEVER,
            flags: 0,
            composite_offset: (start - size_of::<CompositeRegion>()) as u32,
            implementation: receiver.implementation,
            reserved: 0,
        };
        let header = MemoryRegion {
            sender: transaction.sender.id(),
            attributes: ATTRIBUTES,
            flags: kind_flag(transaction.kind) << FLAG_KIND_SHIFT | u32::from(transaction.zero),
            handle: transaction.handle,
            tag: transaction.tag,
            access_size: access_size as u32,
            access_count: 1,
            access_offset: size_of::<MemoryRegion>() as u32,
            reserved: [0; 3],
        };
        let (range_count, page_count, length) = match range {
            Some((ipa, page_count)) => {
                let constituent = Constituent { address: ipa, page_count: page_count as u32, reserved: 0 };
                self.write(start, constituent.as_bytes());
                (1, page_count, start + CONSTITUENT)
            }
            None => {
                let page_count = self.memory.loan(id).map_or(0, |loan| loan.page_count);
                let (range_count, length) = self.write_runs(platform, id, 0, start);
                (range_count, page_count, length)
            }
        };
        let composite =
            CompositeRegion { page_count: page_count as u32, range_count: range_count as u32, reserved: 0 };
        self.write(0, header.as_bytes());
        if access_size == size_of::<EndpointAccess>() {
            self.write(size_of::<MemoryRegion>(), access.as_bytes());
        } else {
            self.write(size_of::<MemoryRegion>(), EndpointAccess11::from(access).as_bytes());
        }
        self.write(start - size_of::<CompositeRegion>(), composite.as_bytes());
        (start + range_count * CONSTITUENT, length)
    }

    /// Where the constituents begin in what an endpoint is told.
    fn list_offset(&self, endpoint: Endpoint) -> usize {
        let is_new = self.version_of(endpoint) >= VERSION_1_2;
        let access = if is_new { size_of::<EndpointAccess>() } else { size_of::<EndpointAccess11>() };
        size_of::<MemoryRegion>() + access + size_of::<CompositeRegion>()
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        if let Some(place) = self.buffer.get_mut(offset..offset + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// Writes the runs of a loan in physical memory from number `skip` on to the buffer at `offset`, as many as fit: runs in
    /// all, and where it stopped. Walks each page once.
    fn write_runs(
        &mut self,
        platform: &impl Platform,
        id: LoanId,
        skip: usize,
        offset: usize,
    ) -> (usize, usize) {
        let (mut count, mut page, mut at) = (0, 0, offset);
        while let Some(run) = self.memory.loan_run(platform, id, page) {
            page += run.page_count();
            if count >= skip && at + CONSTITUENT <= self.buffer.len() {
                let (address, page_count) = (run.base().0, run.page_count() as u32);
                self.write(at, Constituent { address, page_count, reserved: 0 }.as_bytes());
                at += CONSTITUENT;
            }
            count += 1;
        }
        (count, at)
    }

    /// FFA_MEM_FRAG_RX: more constituents of what the host retrieved. Any fragment may be asked for again.
    pub(super) fn memory_fragment_wanted(
        &mut self,
        platform: &mut impl Platform,
        caller: Endpoint,
        args: &[u64; 8],
    ) -> Result<Answer, Refusal> {
        let invalid = refuse(INVALID_PARAMETERS);
        let [_, low, high, offset, endpoint, ..] = *args;
        let has_it = |t: &Transaction| caller == Endpoint::Host && t.retrieved(caller).is_some();
        let (id, transaction) = self.transactions.find(handle_of(low, high), has_it)?;
        let passed =
            usize::try_from(offset).ok().and_then(|offset| offset.checked_sub(self.list_offset(caller)));
        let passed =
            passed.filter(|passed| endpoint == 0 && passed.is_multiple_of(CONSTITUENT)).ok_or(invalid)?;
        let rx = self.free_rx_page(platform, caller).map_err(refuse)?;
        let (_, length) = self.write_runs(platform, id, passed / CONSTITUENT, 0);
        if length == 0 {
            return Err(invalid);
        }
        platform.write_page(rx, 0, self.buffer.get(..length).unwrap_or_default());
        self.set_rx_full(caller);
        let [low, high] = low_and_high(transaction.handle);
        Ok([MEM_FRAG_TX.into(), low, high, length as u64, 0, 0, 0, 0])
    }
}

/// Checks all that a receiver says but the place: what it repeats, and that it asks for no more than it was granted.
fn check_request(
    transaction: &Transaction,
    receiver: &Receiver,
    request: &Descriptor,
    own: &EndpointAccess,
) -> Result<Retrieved, Refusal> {
    let invalid = refuse(INVALID_PARAMETERS);
    let MemoryRegion { sender, attributes, flags, tag, .. } = request.header;
    let kind = flags >> FLAG_KIND_SHIFT & 3;
    let is_share = transaction.kind == LoanKind::Share;
    let repeats = sender == transaction.sender.id()
        && tag == transaction.tag
        && (kind == 0 || kind == kind_flag(transaction.kind));
    if !repeats || flags & !KNOWN_FLAGS != 0 || is_share && flags & (FLAG_ZERO | FLAG_ZERO_AFTER) != 0 {
        return Err(invalid);
    }
    // It knows who else may have the memory, or says that it does not care.
    let named = request.accesses();
    let known = |id: u16| transaction.receivers.iter().flatten().any(|receiver| receiver.endpoint.id() == id);
    let distinct = named
        .iter()
        .enumerate()
        .all(|(index, access)| named.iter().take(index).all(|earlier| earlier.receiver != access.receiver));
    let all =
        flags & FLAG_ANY_RECEIVERS != 0 || named.len() == transaction.receivers.iter().flatten().count();
    let known_or_own = |access: &EndpointAccess| access.receiver == own.receiver || known(access.receiver);
    if !distinct || !all || !named.iter().all(known_or_own) {
        return Err(invalid);
    }
    let can_write = match own.permissions & 3 {
        0 => receiver.can_write,
        READ_ONLY => false,
        READ_WRITE => true,
        _ => return Err(invalid),
    };
    let zero_after = flags & FLAG_ZERO_AFTER != 0;
    let is_denied = receiver.retrieved.is_some()
        || can_write && !receiver.can_write
        || !matches!(own.permissions & !3, 0 | EXECUTE_NEVER)
        || !matches!(attributes, 0 | ATTRIBUTES)
        || flags & FLAG_ZERO != 0 && !transaction.zero
        || zero_after && !can_write;
    if is_denied {
        return Err(refuse(DENIED));
    }
    Ok(Retrieved { can_write, zero_after })
}
