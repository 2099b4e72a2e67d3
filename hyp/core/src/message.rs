//! Messages between endpoints: a partition's buffers, indirect messages, and direct requests of the host to a partition.
//!
//! A partition's buffers are named by IPA, two pages that are its own alone, and looked up anew at each use, so that
//! nothing dangles when a page goes. A receiver agrees to messages by having buffers, the host by having a notification
//! bitmap too, since its RX also takes the service's results. Direct requests go from the host to partitions and from everybody to the vendor
//! service; between partitions they are denied, since one would run on the other's time.

use crate::ffa::{self, Answer, success};
use crate::partition::{self, Partition, State, Vcpu};
use crate::{Hypervisor, Outcome, Platform, knob, private};
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::error::{BUSY, DENIED, INVALID_PARAMETERS};
use hyp_abi::ffa::{
    HOST_ID, MESSAGE_HEADER_SIZE_1_1, MSG_SEND_DIRECT_REQ2, MSG_SEND_DIRECT_RESP2, MessageHeader,
    PARTITION_ID_BASE, PARTITION_UUID, RUN, SEND2_DELAY_SRI, VERSION_1_2,
};
use stage2::{Access, FlexMem, Ipa, Pa, PageState, Slot};
use zerocopy::{FromBytes, IntoBytes};

/// Who calls, sends or receives. The vendor service is none of them: it lives in the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// The host.
    Host,
    /// The partition in a slot.
    Partition(Slot),
}

impl Endpoint {
    /// Endpoint id.
    pub(crate) fn id(self) -> u16 {
        match self {
            Self::Host => HOST_ID,
            Self::Partition(slot) => PARTITION_ID_BASE + slot.index() as u16,
        }
    }
}

/// A partition's buffers.
#[derive(Clone, Copy, Debug)]
struct Buffers {
    tx: Ipa,
    rx: Ipa,
    /// Whether the partition still reads RX.
    rx_full: bool,
}

/// What a partition is in the middle of.
#[derive(Clone, Debug)]
pub(crate) struct Messages {
    buffers: Option<Buffers>,
    /// Whether vCPU 0 waits for a message (FFA_MSG_WAIT, or after a response): a direct request may enter it.
    is_waiting: bool,
    /// The function of the host's direct request that vCPU 0 works on.
    request: Option<u32>,
}

impl Messages {
    pub(crate) const NONE: Self = Self { buffers: None, is_waiting: false, request: None };

    /// Whether the page that holds `ipa` is a buffer: it must stay the partition's alone.
    pub(crate) fn uses(&self, ipa: u64) -> bool {
        let page = ipa & !(PAGE_SIZE - 1);
        self.buffers.is_some_and(|buffers| buffers.tx.0 == page || buffers.rx.0 == page)
    }

    /// Whether a vCPU owes the host a response.
    pub(crate) fn owes_response(&self, vcpu: usize) -> bool {
        vcpu == 0 && self.request.is_some()
    }

    /// The vCPU waits for a message.
    pub(crate) fn wait(&mut self, vcpu: usize) {
        self.is_waiting |= vcpu == 0;
    }

    /// The vCPU runs.
    pub(crate) fn resume(&mut self, vcpu: usize) {
        self.is_waiting &= vcpu != 0;
    }

    /// Whether it waits for a message and owes a response, which cannot be.
    #[cfg(test)]
    pub(crate) fn is_torn(&self) -> bool {
        self.is_waiting && self.request.is_some()
    }

    /// Frees RX; false when there is nothing in it.
    pub(crate) fn release_rx(&mut self) -> bool {
        let full = self.buffers.as_mut().map(|buffers| &mut buffers.rx_full);
        full.is_some_and(core::mem::take)
    }

    /// Ends the host's request with a response of vCPU `vcpu`: x0-x17 for the host.
    pub(crate) fn respond(
        &mut self,
        id: u16,
        vcpu: usize,
        function: u32,
        regs: &[u64; 18],
    ) -> Result<[u64; 18], i32> {
        let request = self.request.filter(|_| vcpu == 0).ok_or(DENIED)?;
        let is_second_kind = function == MSG_SEND_DIRECT_RESP2;
        if is_second_kind != (request == MSG_SEND_DIRECT_REQ2) {
            return Err(DENIED);
        }
        let [_, route, second, third, ..] = ffa::arguments(function, regs);
        // w2 is for framework messages, x2 and x3 of the second kind must be 0.
        if route != u64::from(id) << 16 | u64::from(HOST_ID) || second != 0 || is_second_kind && third != 0 {
            return Err(INVALID_PARAMETERS);
        }
        self.request = None;
        self.is_waiting = true;
        Ok(whole(function, regs))
    }
}

/// x0-x17 of a direct message as the other side gets them: what its kind does not carry is zero.
fn whole(function: u32, regs: &[u64; 18]) -> [u64; 18] {
    let mut message = *regs;
    if !matches!(function, MSG_SEND_DIRECT_REQ2 | MSG_SEND_DIRECT_RESP2) {
        message = [0; 18];
        ffa::put(&mut message, ffa::arguments(function, regs));
    }
    message[0] = function.into();
    message
}

/// x0-x7 that a waiting vCPU sees when the host runs it without a message.
pub(crate) fn woken(partition: &Partition, vcpu: usize) -> Answer {
    [RUN.into(), ffa::run_target(partition, vcpu), 0, 0, 0, 0, 0, 0]
}

/// Bytes of a message's header for an endpoint of that version.
fn header_size(version: u32) -> usize {
    if version >= VERSION_1_2 { size_of::<MessageHeader>() } else { MESSAGE_HEADER_SIZE_1_1 }
}

/// The page of a partition's buffer, if it is the partition's alone and writable.
fn buffer_page(
    memory: &FlexMem,
    platform: &impl Platform,
    slot: Slot,
    ipa: Ipa,
    unchecked: bool,
) -> Option<Pa> {
    let page = memory.partition_page(platform, slot, ipa);
    if unchecked {
        // As if the address were a physical one where the partition has none.
        return Some(page.map_or(Pa(ipa.0), |page| page.pa));
    }
    let page = page.filter(|page| page.access == Access::ReadWrite && !page.shared && !page.loaned)?;
    let is_own = memory.host_state(platform, page.pa) == PageState::Partition { slot, ipa };
    is_own.then_some(page.pa)
}

impl Hypervisor {
    /// Who an id means; none if nobody.
    pub(crate) fn endpoint(&self, id: u64) -> Option<Endpoint> {
        if id == u64::from(HOST_ID) {
            return Some(Endpoint::Host);
        }
        let slot = partition::slot_of(id)?;
        self.partitions.get(slot.index())?.as_ref().map(|_| Endpoint::Partition(slot))
    }

    /// The partition in a slot.
    pub(crate) fn partition_in(&mut self, slot: Slot) -> Option<&mut Partition> {
        self.partitions.get_mut(slot.index())?.as_mut()
    }

    /// Who a caller claims to be: itself.
    pub(crate) fn sender(&self, caller: Endpoint, claimed: u64) -> Result<Endpoint, i32> {
        if claimed == u64::from(caller.id()) {
            return Ok(caller);
        }
        let forged = self.endpoint(claimed).filter(|_| self.knobs.skips(knob::SENDER_ID));
        forged.ok_or(INVALID_PARAMETERS)
    }

    /// The FF-A version that an endpoint works with.
    pub(crate) fn version_of(&self, endpoint: Endpoint) -> u32 {
        match endpoint {
            Endpoint::Host => self.version.version(),
            Endpoint::Partition(slot) => {
                let partition = self.partitions.get(slot.index()).and_then(Option::as_ref);
                partition.map_or(VERSION_1_2, |partition| partition.version.version())
            }
        }
    }

    fn buffers_of(&self, slot: Slot) -> Result<Buffers, i32> {
        let partition = self.partitions.get(slot.index()).and_then(Option::as_ref);
        partition.and_then(|partition| partition.messages.buffers).ok_or(DENIED)
    }

    fn own_page(&self, platform: &impl Platform, slot: Slot, ipa: Ipa) -> Result<Pa, i32> {
        let unchecked = self.knobs.skips(knob::GUEST_MAILBOX);
        let memory = private::space(&self.memory, &self.secure, ipa.0);
        buffer_page(memory, platform, slot, ipa, unchecked).ok_or(DENIED)
    }

    /// TX of an endpoint.
    pub(crate) fn tx_page(&self, platform: &impl Platform, endpoint: Endpoint) -> Result<Pa, i32> {
        match endpoint {
            Endpoint::Host => self.mailbox.map(|mailbox| mailbox.tx).ok_or(DENIED),
            Endpoint::Partition(slot) => self.own_page(platform, slot, self.buffers_of(slot)?.tx),
        }
    }

    /// RX of an endpoint that has released it.
    pub(crate) fn free_rx_page(&self, platform: &impl Platform, endpoint: Endpoint) -> Result<Pa, i32> {
        let (page, is_full) = match endpoint {
            Endpoint::Host => {
                let mailbox = self.mailbox.ok_or(DENIED)?;
                (mailbox.rx, mailbox.rx_full)
            }
            Endpoint::Partition(slot) => {
                let buffers = self.buffers_of(slot)?;
                (self.own_page(platform, slot, buffers.rx)?, buffers.rx_full)
            }
        };
        if is_full && !self.knobs.skips(knob::RX_OWNERSHIP) { Err(BUSY) } else { Ok(page) }
    }

    /// Something was written to RX: the endpoint owns it until it releases it.
    pub(crate) fn set_rx_full(&mut self, endpoint: Endpoint) {
        match endpoint {
            Endpoint::Host => self.mailbox.iter_mut().for_each(|mailbox| mailbox.rx_full = true),
            Endpoint::Partition(slot) => {
                let buffers =
                    self.partition_in(slot).and_then(|partition| partition.messages.buffers.as_mut());
                buffers.into_iter().for_each(|buffers| buffers.rx_full = true);
            }
        }
    }

    /// RXTX_MAP of a partition: one page each, aligned, distinct, its own alone, read-write.
    pub(crate) fn partition_rxtx_map(
        &mut self,
        platform: &impl Platform,
        slot: Slot,
        [tx, rx, page_count]: [u64; 3],
    ) -> Result<Answer, i32> {
        if page_count != 1 || tx == rx || !tx.is_multiple_of(PAGE_SIZE) || !rx.is_multiple_of(PAGE_SIZE) {
            return Err(INVALID_PARAMETERS);
        }
        if self.buffers_of(slot).is_ok() {
            return Err(DENIED);
        }
        let (tx, rx) = (Ipa(tx), Ipa(rx));
        self.own_page(platform, slot, tx)?;
        self.own_page(platform, slot, rx)?;
        if let Some(partition) = self.partition_in(slot) {
            partition.messages.buffers = Some(Buffers { tx, rx, rx_full: false });
        }
        Ok(success(0, 0))
    }

    /// RXTX_UNMAP of a partition; w1 must be 0 at its instance.
    pub(crate) fn partition_rxtx_unmap(&mut self, slot: Slot, endpoint: u64) -> Result<Answer, i32> {
        let partition = self.partition_in(slot).filter(|_| endpoint == 0).ok_or(INVALID_PARAMETERS)?;
        partition.messages.buffers.take().ok_or(INVALID_PARAMETERS)?;
        Ok(success(0, 0))
    }

    /// RX_RELEASE of a partition.
    pub(crate) fn partition_rx_release(&mut self, slot: Slot, endpoint: u64) -> Result<Answer, i32> {
        let partition = self.partition_in(slot).filter(|_| endpoint == 0).ok_or(INVALID_PARAMETERS)?;
        if partition.messages.release_rx() { Ok(success(0, 0)) } else { Err(DENIED) }
    }

    /// RX_ACQUIRE of the host, which is its own hypervisor: RX is its to write until it releases it.
    pub(crate) fn rx_acquire(&mut self, endpoint: u64) -> Result<Answer, i32> {
        match &mut self.mailbox {
            _ if endpoint != u64::from(HOST_ID) => Err(INVALID_PARAMETERS),
            Some(mailbox) if !mailbox.rx_full => {
                mailbox.rx_full = true;
                Ok(success(0, 0))
            }
            _ => Err(DENIED),
        }
    }

    /// MSG_SEND2: copies TX once, and leaves nothing of it behind.
    pub(crate) fn send2(
        &mut self,
        platform: &mut impl Platform,
        caller: Endpoint,
        sender_vm: u64,
        flags: u64,
    ) -> Result<Answer, i32> {
        if sender_vm != 0 || flags & !u64::from(SEND2_DELAY_SRI) != 0 {
            return Err(INVALID_PARAMETERS);
        }
        let tx = self.tx_page(platform, caller)?;
        platform.read_page(tx, &mut self.buffer);
        let receiver = self.hand_over(platform, caller);
        self.buffer.fill(0);
        self.signal(platform, receiver?, flags != 0);
        Ok(success(0, 0))
    }

    /// Checks the header in `buffer`, and writes header and payload to the receiver in the format of its version.
    fn hand_over(&mut self, platform: &mut impl Platform, caller: Endpoint) -> Result<Endpoint, i32> {
        let header_bytes = header_size(self.version_of(caller));
        let mut bytes = [0; size_of::<MessageHeader>()];
        bytes.iter_mut().zip(&self.buffer).take(header_bytes).for_each(|(to, byte)| *to = *byte);
        let mut header = MessageHeader::read_from_bytes(&bytes).unwrap_or_default();

        let sender = self.sender(caller, u64::from(header.route >> 16))?;
        let receiver = self.endpoint(u64::from(header.route & 0xFFFF)).filter(|receiver| *receiver != caller);
        let receiver = receiver.ok_or(INVALID_PARAMETERS)?;
        let is_known = header.uuid == [0; 16] || receiver != Endpoint::Host && header.uuid == PARTITION_UUID;
        let (offset, size) = (header.offset as usize, header.size as usize);
        let payload = offset.checked_add(size).and_then(|end| self.buffer.get(offset..end));
        let room = self.buffer.len() - header_size(self.version_of(receiver));
        let is_sound = header.flags == 0 && header.reserved == 0 && header.reserved_2 == 0;
        let Some(payload) = payload.filter(|payload| {
            is_sound && is_known && offset >= header_bytes && !payload.is_empty() && payload.len() <= room
        }) else {
            return Err(INVALID_PARAMETERS);
        };
        self.refuse_ended(receiver)?;
        // A host without a bitmap does not listen: a message must not take RX from the service's results.
        if receiver == Endpoint::Host && self.host_notifications.is_none() {
            return Err(DENIED);
        }
        let rx = self.free_rx_page(platform, receiver)?;

        let header_bytes = header_size(self.version_of(receiver));
        header.offset = header_bytes as u32;
        header.route = u32::from(sender.id()) << 16 | u32::from(receiver.id());
        platform.write_page(rx, 0, header.as_bytes().get(..header_bytes).unwrap_or_default());
        platform.write_page(rx, header_bytes, payload);
        self.set_rx_full(receiver);
        self.notifications(receiver)?.rx_full();
        Ok(receiver)
    }

    /// A direct request of the host to a partition: enters its waiting vCPU 0 on this CPU, or says why not.
    pub(crate) fn direct_request(
        &mut self,
        platform: &mut impl Platform,
        cpu: usize,
        function: u32,
        regs: &[u64; 18],
    ) -> Result<Outcome, Answer> {
        let args = ffa::arguments(function, regs);
        let [_, route, second, third, ..] = args;
        let refuse = |code| Err(ffa::failure(code));
        let slot = partition::slot_of(route & 0xFFFF).filter(|_| route >> 16 == u64::from(HOST_ID));
        let Some(partition) = slot.and_then(|slot| self.partition_in(slot)) else {
            return refuse(INVALID_PARAMETERS);
        };
        let is_second_kind = function == MSG_SEND_DIRECT_REQ2;
        let is_sound = match is_second_kind {
            true => is_for(second, third, &PARTITION_UUID),
            // Framework messages are for the SPMC.
            false => second == 0,
        };
        if !is_sound {
            return refuse(INVALID_PARAMETERS);
        }
        match (&partition.state, partition.vcpus.first()) {
            (State::Ended(_) | State::Dying(_), _) => return Err(ffa::ended(partition, 0)),
            (State::Running, Some(Vcpu::Ready)) if partition.messages.is_waiting => (),
            (State::Running, Some(Vcpu::Ready | Vcpu::Inside { .. })) => return refuse(BUSY),
            _ => return refuse(DENIED),
        }
        if is_second_kind && partition.version.version() < VERSION_1_2 {
            return refuse(DENIED);
        }
        partition.messages.request = Some(function);
        let target = ffa::run_target(partition, 0);
        platform.set_registers(partition.slot, 0, &whole(function, regs));
        self.run(platform, cpu, target)
    }
}

/// Whether a UUID in two registers (byte 0 in the low bits of the first) is nil or `uuid`.
pub(crate) fn is_for(low: u64, high: u64, uuid: &[u8; 16]) -> bool {
    let asked = u128::from(high) << 64 | u128::from(low);
    asked == 0 || asked == u128::from_le_bytes(*uuid)
}
