//! Share, lend and donate, whole or in fragments.

use super::*;
use descriptor::{CONSTITUENT, constituents};
use hyp_abi::ffa::MEM_FRAG_RX;
use hyp_abi::memory::{ATTRIBUTES, READ_ONLY, READ_WRITE};

impl Hypervisor {
    /// FFA_MEM_DONATE, LEND, SHARE: the first fragment, which holds all but constituents. Whatever the sender left
    /// unfinished before is given up.
    pub(super) fn memory_send(
        &mut self,
        platform: &mut impl Platform,
        caller: Endpoint,
        kind: LoanKind,
        args: &[u64; 8],
    ) -> Result<Answer, Refusal> {
        let invalid = refuse(INVALID_PARAMETERS);
        let [_, mut total, length, address, page_count, ..] = *args;
        let unfinished =
            self.transactions.of_sender(caller).find(|(_, t)| t.awaited.is_some()).map(|(id, _)| id);
        if let Some(id) = unfinished {
            self.abort_transmission(platform, id);
        }
        if (address, page_count) != (0, 0) || length > total {
            return Err(invalid);
        }
        let mut length = self.fetch_tx(platform, caller, length)?;
        let trusting = self.knobs.skips(knob::DESCRIPTOR_BOUNDS);
        let bytes = self.buffer.get(..if trusting { self.buffer.len() } else { length }).ok_or(invalid)?;
        let descriptor = Descriptor::parse(bytes).ok_or(invalid)?;
        let (receivers, composite_offset) = self.receivers(caller, kind, &descriptor)?;
        let composite = descriptor.composite(bytes, composite_offset).ok_or(invalid)?;
        if trusting {
            total = composite.end;
            length = composite.end.min(PAGE_SIZE) as usize;
        }
        // In the first fragment all but constituents; of those, none in part.
        let list = length.checked_sub(composite.start).filter(|size| size.is_multiple_of(CONSTITUENT));
        if total != composite.end || list.is_none() {
            return Err(invalid);
        }
        if caller != Endpoint::Host && self.transactions.of_sender(caller).count() >= MAX_PARTITION_LOANS {
            return Err(refuse(NO_MEMORY));
        }

        let id = self.memory.list_begin(platform, as_party(caller))?;
        let transaction = Transaction {
            handle: self.transactions.next_handle(id),
            sender: caller,
            kind,
            zero: descriptor.header.flags & FLAG_ZERO != 0,
            tag: descriptor.header.tag,
            receivers,
            awaited: Some(Transmission {
                received: composite.start as u64,
                total,
                page_count: composite.page_count,
            }),
        };
        self.transactions.put(id, Some(transaction));
        self.receive(platform, id, composite.start..length)
    }

    /// FFA_MEM_FRAG_TX: more constituents.
    pub(super) fn memory_fragment(
        &mut self,
        platform: &mut impl Platform,
        caller: Endpoint,
        args: &[u64; 8],
    ) -> Result<Answer, Refusal> {
        let [_, low, high, length, endpoint, ..] = *args;
        let is_mine = |t: &Transaction| t.sender == caller && t.awaited.is_some();
        let (id, _) = self.transactions.find(handle_of(low, high), is_mine)?;
        let received = match self.fetch_tx(platform, caller, length) {
            Ok(length) if endpoint == 0 && length.is_multiple_of(CONSTITUENT) => {
                self.receive(platform, id, 0..length)
            }
            Ok(_) => Err(refuse(INVALID_PARAMETERS)),
            Err(refusal) => Err(refusal),
        };
        if received.is_err() {
            self.abort_transmission(platform, id);
        }
        received
    }

    /// Takes constituents out of the buffer; the last of them complete the transaction. What goes wrong ends it.
    fn receive(
        &mut self,
        platform: &mut impl Platform,
        id: LoanId,
        bytes: core::ops::Range<usize>,
    ) -> Result<Answer, Refusal> {
        let received = self.try_receive(platform, id, bytes);
        if received.is_err() {
            self.abort_transmission(platform, id);
        }
        received
    }

    fn try_receive(
        &mut self,
        platform: &mut impl Platform,
        id: LoanId,
        bytes: core::ops::Range<usize>,
    ) -> Result<Answer, Refusal> {
        let invalid = refuse(INVALID_PARAMETERS);
        let transaction = self.transactions.get_mut(id).ok_or(invalid)?;
        let awaited = transaction.awaited.as_mut().ok_or(invalid)?;
        awaited.received += bytes.len() as u64;
        if awaited.received > awaited.total {
            return Err(invalid);
        }
        for range in constituents(self.buffer.get(bytes).ok_or(invalid)?) {
            let range = range.ok_or(invalid)?;
            if transaction.sender != Endpoint::Host && private::is_private(range.base().0) {
                return Err(Refusal { code: DENIED, value: range.base().0 });
            }
            self.memory.list_push(platform, id, range)?;
        }
        let [low, high] = low_and_high(transaction.handle);
        if awaited.received < awaited.total {
            return Ok([MEM_FRAG_RX.into(), low, high, awaited.received, 0, 0, 0, 0]);
        }
        if self.memory.loan(id).is_none_or(|list| list.page_count != awaited.page_count) {
            return Err(invalid);
        }
        let Transaction { sender, kind, zero, .. } = *transaction;
        match sender {
            Endpoint::Host => self.memory.host_send(platform, id, kind, zero)?,
            Endpoint::Partition(slot) => self.memory.partition_send(platform, id, slot, kind, zero)?,
        }
        transaction.awaited = None;
        Ok(success(low, high))
    }

    /// Checks all that the sender says but the pages: the receivers, and where the list of pages is.
    fn receivers(
        &self,
        caller: Endpoint,
        kind: LoanKind,
        descriptor: &Descriptor,
    ) -> Result<([Option<Receiver>; MAX_BORROWERS], u32), Refusal> {
        let invalid = refuse(INVALID_PARAMETERS);
        let header = &descriptor.header;
        let accesses = descriptor.accesses();
        let is_share = kind == LoanKind::Share;
        // Who lends or donates leaves the attributes to the receiver, unless there are several.
        let attributes_are_sound = match header.attributes {
            ATTRIBUTES => is_share || accesses.len() > 1,
            other => other == 0 && !is_share,
        };
        let flags = if is_share { 0 } else { FLAG_ZERO };
        let is_sound = header.sender == caller.id()
            && header.handle == 0
            && header.flags & !flags == 0
            && attributes_are_sound
            && (kind != LoanKind::Donate || accesses.len() == 1);
        let composite_offset = accesses.first().map_or(0, |access| access.composite_offset);
        if !is_sound {
            return Err(invalid);
        }
        if kind == LoanKind::Donate && caller != Endpoint::Host {
            // A partition's pages are lent to it: the host stays their owner.
            return Err(refuse(DENIED));
        }
        let mut receivers: [Option<Receiver>; MAX_BORROWERS] = [None; _];
        for (index, access) in accesses.iter().enumerate() {
            let endpoint = self.endpoint(access.receiver.into()).filter(|receiver| *receiver != caller);
            let endpoint = endpoint.filter(|receiver| self.is_alive(*receiver)).ok_or(invalid)?;
            let is_new = receivers.iter().flatten().all(|receiver| receiver.endpoint != endpoint);
            let can_write = match access.permissions {
                READ_WRITE => kind != LoanKind::Donate,
                READ_ONLY => false,
                0 if kind == LoanKind::Donate => true,
                _ => return Err(invalid),
            };
            if !is_new
                || access.composite_offset != composite_offset
                || kind == LoanKind::Donate && access.permissions != 0
            {
                return Err(invalid);
            }
            if endpoint == Endpoint::Host && !is_share {
                return Err(refuse(DENIED));
            }
            let implementation = access.implementation;
            if let Some(place) = receivers.get_mut(index) {
                *place = Some(Receiver { endpoint, can_write, implementation, retrieved: None });
            }
        }
        Ok((receivers, composite_offset))
    }

    /// Whether an endpoint has not ended.
    fn is_alive(&self, endpoint: Endpoint) -> bool {
        match endpoint {
            Endpoint::Host => true,
            Endpoint::Partition(slot) => {
                let partition = self.partitions.get(slot.index()).and_then(Option::as_ref);
                partition.is_some_and(|partition| partition.end().is_none())
            }
        }
    }
}
