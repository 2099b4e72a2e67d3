//! FF-A memory management (Arm DEN0140) at both instances: what [`stage2`]'s loans mean between endpoints.
//!
//! A transaction stands beside the loan of the same index: stage2 knows whose pages are mapped where, the transaction who
//! may retrieve them and how. Descriptors are copied once from TX, a fragment at a time, then validated, then used; the
//! ranges wait in the loan's list, so that a transmission in fragments binds nothing but its own entry of the table.
//!
//! | operation | who |
//! |---|---|
//! | DONATE | the host, to one partition; the pages become its own (a ZERO region) |
//! | LEND | the host and partitions, to partitions (a BORROWED region) |
//! | SHARE | the same, and partitions to the host |
//! | RETRIEVE_REQ, FRAG_RX, RELINQUISH | receivers |
//! | FRAG_TX, RECLAIM | senders; RECLAIM also ends an unfinished transmission |

mod descriptor;
mod retrieve;
mod send;

use crate::ffa::{self, Answer, success};
use crate::message::Endpoint;
use crate::service::Refusal;
use crate::{Hypervisor, Platform, knob, private};
use descriptor::Descriptor;
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::error::{DENIED, INVALID_PARAMETERS, NO_MEMORY};
use hyp_abi::ffa::{
    MEM_DONATE_32, MEM_DONATE_64, MEM_FRAG_RX, MEM_FRAG_TX, MEM_LEND_32, MEM_LEND_64, MEM_RECLAIM,
    MEM_RELINQUISH, MEM_RETRIEVE_REQ_32, MEM_RETRIEVE_REQ_64, MEM_SHARE_32, MEM_SHARE_64,
};
use hyp_abi::memory::{FLAG_ZERO, Relinquish};
use stage2::{LoanId, LoanKind, MAX_BORROWERS, MAX_LOANS, Party, Slot};
use zerocopy::FromBytes;

/// The most transactions of which a partition is the sender: nobody starves the others of the table.
const MAX_PARTITION_LOANS: usize = 3;

/// Whom a transaction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Receiver {
    endpoint: Endpoint,
    can_write: bool,
    /// The sender's 16 bytes for it.
    implementation: [u8; 16],
    /// Whether it has retrieved and not relinquished; then, whether it writes, and wants zeros left behind.
    retrieved: Option<Retrieved>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Retrieved {
    can_write: bool,
    zero_after: bool,
}

/// A transmission that is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Transmission {
    received: u64,
    total: u64,
    page_count: u64,
}

/// A transaction: from the first fragment of its descriptor to its reclaim.
#[derive(Clone, Copy, Debug)]
struct Transaction {
    handle: u64,
    sender: Endpoint,
    kind: LoanKind,
    /// Whether the sender had the pages zeroed.
    zero: bool,
    tag: u64,
    /// One that is gone leaves a hole: whoever gets its id later is somebody else.
    receivers: [Option<Receiver>; MAX_BORROWERS],
    awaited: Option<Transmission>,
}

impl Transaction {
    fn receiver_mut(&mut self, endpoint: Endpoint) -> Option<&mut Receiver> {
        self.receivers.iter_mut().flatten().find(|receiver| receiver.endpoint == endpoint)
    }

    fn retrieved(&self, endpoint: Endpoint) -> Option<Retrieved> {
        let receiver = self.receivers.iter().flatten().find(|receiver| receiver.endpoint == endpoint);
        receiver.and_then(|receiver| receiver.retrieved)
    }
}

/// All transactions; entry `n` goes with stage2's loan `n`.
#[derive(Debug)]
pub(crate) struct Transactions {
    entries: [Option<Transaction>; MAX_LOANS],
    /// Transactions so far: the upper part of handles, so that none comes twice.
    count: u64,
}

impl Transactions {
    pub(crate) const NONE: Self = Self { entries: [None; _], count: 0 };

    /// Bit 63 of a handle is 0: allocated by the SPMC.
    fn next_handle(&mut self, id: LoanId) -> u64 {
        self.count = self.count.wrapping_add(1);
        (self.count << 8 & !(1 << 63)) | id.index() as u64
    }

    fn get(&self, id: LoanId) -> Option<&Transaction> {
        self.entries.get(id.index())?.as_ref()
    }

    fn get_mut(&mut self, id: LoanId) -> Option<&mut Transaction> {
        self.entries.get_mut(id.index())?.as_mut()
    }

    fn put(&mut self, id: LoanId, transaction: Option<Transaction>) {
        if let Some(place) = self.entries.get_mut(id.index()) {
            *place = transaction;
        }
    }

    /// The transaction that a handle names, if it is the caller's business.
    fn find(
        &self,
        handle: u64,
        concerns: impl Fn(&Transaction) -> bool,
    ) -> Result<(LoanId, Transaction), Refusal> {
        let id = LoanId::new((handle & 0xFF) as usize).ok_or(refuse(INVALID_PARAMETERS))?;
        let found = self.get(id).filter(|transaction| transaction.handle == handle && concerns(transaction));
        // Not to be told apart: no such handle, and not yours.
        Ok((id, *found.ok_or(refuse(INVALID_PARAMETERS))?))
    }

    fn of_sender(&self, sender: Endpoint) -> impl Iterator<Item = (LoanId, &Transaction)> {
        let all = self.entries.iter().enumerate();
        all.filter_map(|(index, entry)| Some((LoanId::new(index)?, entry.as_ref()?)))
            .filter(move |(_, transaction)| transaction.sender == sender)
    }
}

/// A refusal with nothing to point at.
const fn refuse(code: i32) -> Refusal {
    Refusal { code, value: 0 }
}

fn as_party(endpoint: Endpoint) -> Party {
    match endpoint {
        Endpoint::Host => Party::Host,
        Endpoint::Partition(slot) => Party::Partition(slot),
    }
}

/// A handle as it travels in two registers.
fn handle_of(low: u64, high: u64) -> u64 {
    low & u64::from(u32::MAX) | high << 32
}

fn low_and_high(handle: u64) -> [u64; 2] {
    [handle & u64::from(u32::MAX), handle >> 32]
}

/// Whether FFA_FEATURES knows a function of memory management; w2 and w3.
pub(crate) fn features(function: u32) -> Option<[u64; 2]> {
    match function {
        // No buffers but TX.
        MEM_DONATE_32 | MEM_DONATE_64 | MEM_LEND_32 | MEM_LEND_64 | MEM_SHARE_32 | MEM_SHARE_64 => {
            Some([0, 0])
        }
        // Nor here; and an endpoint retrieves once (2^(0 + 1) - 1) before it relinquishes.
        MEM_RETRIEVE_REQ_32 | MEM_RETRIEVE_REQ_64 => Some([0, 0]),
        hyp_abi::ffa::MEM_RETRIEVE_RESP | MEM_RELINQUISH | MEM_RECLAIM | MEM_FRAG_RX | MEM_FRAG_TX => {
            Some([0, 0])
        }
        _ => None,
    }
}

/// Whether a function is a call of memory management.
pub(crate) fn is_memory_call(function: u32) -> bool {
    function != hyp_abi::ffa::MEM_RETRIEVE_RESP && features(function).is_some()
}

impl Hypervisor {
    /// Answers a call of memory management; none if it is something else.
    pub(crate) fn memory_call(
        &mut self,
        platform: &mut impl Platform,
        caller: Endpoint,
        function: u32,
        args: &[u64; 8],
    ) -> Option<Answer> {
        let result = match function {
            _ if self.shutting_down && features(function).is_some() => Err(refuse(DENIED)),
            MEM_DONATE_32 | MEM_DONATE_64 => self.memory_send(platform, caller, LoanKind::Donate, args),
            MEM_LEND_32 | MEM_LEND_64 => self.memory_send(platform, caller, LoanKind::Lend, args),
            MEM_SHARE_32 | MEM_SHARE_64 => self.memory_send(platform, caller, LoanKind::Share, args),
            MEM_FRAG_TX => self.memory_fragment(platform, caller, args),
            MEM_RETRIEVE_REQ_32 | MEM_RETRIEVE_REQ_64 => self.memory_retrieve(platform, caller, args),
            MEM_FRAG_RX => self.memory_fragment_wanted(platform, caller, args),
            MEM_RELINQUISH => self.memory_relinquish(platform, caller),
            MEM_RECLAIM => self.memory_reclaim(platform, caller, args),
            _ => return None,
        };
        // A partition's TX may hold more than a descriptor: it must not outlive the partition's own pages (I2).
        self.buffer.fill(0);
        Some(result.unwrap_or_else(|refusal| {
            let mut answer = ffa::failure(refusal.code);
            if refusal.code == NO_MEMORY {
                // Table pages to give before the call is repeated; 0: none would help.
                answer[3] = refusal.value;
            }
            answer
        }))
    }

    /// Copies `length` bytes of the caller's TX, once.
    fn fetch_tx(
        &mut self,
        platform: &impl Platform,
        caller: Endpoint,
        length: u64,
    ) -> Result<usize, Refusal> {
        if !(1..=PAGE_SIZE).contains(&length) {
            return Err(refuse(INVALID_PARAMETERS));
        }
        let page = self.tx_page(platform, caller).map_err(refuse)?;
        platform.read_page(page, &mut self.buffer);
        Ok(length as usize)
    }

    fn memory_relinquish(
        &mut self,
        platform: &mut impl Platform,
        caller: Endpoint,
    ) -> Result<Answer, Refusal> {
        self.fetch_tx(platform, caller, PAGE_SIZE)?;
        let invalid = refuse(INVALID_PARAMETERS);
        let (request, _) = Relinquish::read_from_prefix(&self.buffer).map_err(|_| invalid)?;
        let Relinquish { handle, flags, endpoint_count, endpoint } = request;
        if flags & !FLAG_ZERO != 0 || endpoint_count != 1 || endpoint != caller.id() {
            return Err(invalid);
        }
        let is_receiver = |t: &Transaction| t.receivers.iter().flatten().any(|r| r.endpoint == caller);
        let (id, transaction) = self.transactions.find(handle, is_receiver)?;
        let retrieved = transaction.retrieved(caller).ok_or(refuse(DENIED))?;
        let asked = flags & FLAG_ZERO != 0;
        if asked && (transaction.kind == LoanKind::Share || !retrieved.can_write) {
            return Err(invalid);
        }
        self.memory.relinquish(platform, id, as_party(caller), asked || retrieved.zero_after)?;
        if let Some(receiver) = self.transactions.get_mut(id).and_then(|t| t.receiver_mut(caller)) {
            receiver.retrieved = None;
        }
        Ok(success(0, 0))
    }

    fn memory_reclaim(
        &mut self,
        platform: &mut impl Platform,
        caller: Endpoint,
        args: &[u64; 8],
    ) -> Result<Answer, Refusal> {
        let [_, low, high, flags, ..] = *args;
        let unchecked = self.knobs.skips(knob::HANDLE_SENDER);
        let is_mine = |t: &Transaction| t.sender == caller || unchecked;
        let (id, transaction) = self.transactions.find(handle_of(low, high), is_mine)?;
        if transaction.awaited.is_some() {
            self.abort_transmission(platform, id);
            return Ok(success(0, 0));
        }
        let zero = flags & u64::from(FLAG_ZERO) != 0;
        if flags & !u64::from(FLAG_ZERO) != 0 || zero && transaction.kind == LoanKind::Share {
            return Err(refuse(INVALID_PARAMETERS));
        }
        self.memory.reclaim(platform, id, zero)?;
        self.transactions.put(id, None);
        Ok(success(0, 0))
    }

    /// Gives up what was received so far.
    fn abort_transmission(&mut self, platform: &mut impl Platform, id: LoanId) {
        // It fails only when the list has been sent, which ends the transmission.
        let _ = self.memory.list_abort(platform, id);
        self.transactions.put(id, None);
    }

    /// A partition is dying: nothing is for it any more, and what stage2 has ended has no transaction.
    pub(crate) fn forget_transactions(&mut self, slot: Slot) {
        for (index, entry) in self.transactions.entries.iter_mut().enumerate() {
            if LoanId::new(index).is_none_or(|id| self.memory.loan(id).is_none()) {
                *entry = None;
            }
            for receiver in entry.iter_mut().flat_map(|transaction| &mut transaction.receivers) {
                if receiver.is_some_and(|receiver| receiver.endpoint == Endpoint::Partition(slot)) {
                    *receiver = None;
                }
            }
        }
    }
}

#[cfg(test)]
impl Transactions {
    /// Whether any receiver has it now; none if there is no such transaction.
    pub(crate) fn retrieved_now(&self, id: LoanId) -> Option<bool> {
        self.get(id).map(|t| t.receivers.iter().flatten().any(|receiver| receiver.retrieved.is_some()))
    }

    /// Handles of a sender.
    pub(crate) fn handles(&self, sender: Endpoint) -> std::vec::Vec<u64> {
        self.of_sender(sender).map(|(_, transaction)| transaction.handle).collect()
    }
}
