//! What an endpoint can find out: features, and who there is.
//!
//! The host sees the vendor service and every partition; a partition sees the service and itself, since providers do not
//! trust each other.

use crate::ffa::{Answer, failure, success};
use crate::message::{Endpoint, is_for};
use crate::partition::Partition;
use crate::{Hypervisor, Platform, memory};
use hyp_abi::ffa::error::{INVALID_PARAMETERS, NOT_SUPPORTED, RETRY};
use hyp_abi::ffa::*;

/// Bytes of a partition information descriptor of FF-A 1.1 and later.
const DESCRIPTOR_SIZE: usize = 24;
/// Registers of a descriptor.
const DESCRIPTOR_REGISTERS: usize = 3;
/// Descriptors in x3-x17.
const DESCRIPTORS_IN_REGISTERS: usize = 5;
/// PARTITION_INFO_GET flag: only the count.
const COUNT_ONLY: u64 = 1;
/// Properties that 1.1 does not know.
const PROPERTIES_1_2: u32 = RECEIVES_DIRECT_REQUESTS_2 | SENDS_DIRECT_REQUESTS_2;
const SERVICE_PROPERTIES: u32 = AARCH64 | RECEIVES_DIRECT_REQUESTS | RECEIVES_DIRECT_REQUESTS_2;
/// They send direct requests to the service only.
const PARTITION_PROPERTIES: u32 = AARCH64
    | RECEIVES_DIRECT_REQUESTS
    | SENDS_DIRECT_REQUESTS
    | INDIRECT_MESSAGES
    | RECEIVES_NOTIFICATIONS
    | PROPERTIES_1_2;

/// Whether a function came with FF-A 1.2: who negotiated 1.1 does not have it.
pub(crate) fn is_of_1_2(function: u32) -> bool {
    matches!(
        function,
        CONSOLE_LOG_32
            | CONSOLE_LOG_64
            | PARTITION_INFO_GET_REGS
            | MSG_SEND_DIRECT_REQ2
            | MSG_SEND_DIRECT_RESP2
    )
}

/// FFA_FEATURES: w2 and w3 for a function that the caller can call or gets as an answer, or for a feature.
pub(crate) fn features(function: u32, is_host: bool, version: u32) -> Answer {
    if is_of_1_2(function) && version < VERSION_1_2 {
        return failure(NOT_SUPPORTED);
    }
    match function {
        ERROR
        | SUCCESS_32
        | SUCCESS_64
        | VERSION
        | FEATURES
        | ID_GET
        | SPM_ID_GET
        | RX_RELEASE
        | RXTX_UNMAP
        | PARTITION_INFO_GET
        | PARTITION_INFO_GET_REGS
        | MSG_SEND_DIRECT_REQ_32
        | MSG_SEND_DIRECT_REQ_64
        | MSG_SEND_DIRECT_REQ2
        | MSG_SEND_DIRECT_RESP_32
        | MSG_SEND_DIRECT_RESP_64
        | MSG_SEND_DIRECT_RESP2
        | MSG_SEND2
        | MSG_WAIT
        | YIELD
        | NOTIFICATION_BIND
        | NOTIFICATION_UNBIND
        | NOTIFICATION_SET
        | NOTIFICATION_GET => success(0, 0),
        // Smallest size and alignment 4 KiB (bits 1:0), and most pages 1 (bits 31:16).
        RXTX_MAP_32 | RXTX_MAP_64 => success(1 << 16, 0),
        INTERRUPT
        | RUN
        | RX_ACQUIRE
        | NOTIFICATION_BITMAP_CREATE
        | NOTIFICATION_BITMAP_DESTROY
        | NOTIFICATION_INFO_GET_32
        | NOTIFICATION_INFO_GET_64
            if is_host =>
        {
            success(0, 0)
        }
        CONSOLE_LOG_32 | CONSOLE_LOG_64 if !is_host => success(0, 0),
        FEATURE_SRI if is_host => success(SRI.into(), 0),
        FEATURE_NPI if !is_host => success(NPI.into(), 0),
        // Managed exit, among others: a partition is preempted as it is.
        _ => memory::features(function).map_or(failure(NOT_SUPPORTED), |[w2, w3]| success(w2, w3)),
    }
}

/// One partition, as it travels; its UUID is told only to who does not know it.
fn descriptor(
    id: u16,
    vcpu_count: u16,
    properties: u32,
    uuid: &[u8; 16],
    asked: &[u8; 16],
) -> [u8; DESCRIPTOR_SIZE] {
    let told = if *asked == [0; 16] { *uuid } else { [0; 16] };
    let fields = id.to_le_bytes().into_iter().chain(vcpu_count.to_le_bytes());
    let mut bytes = [0; DESCRIPTOR_SIZE];
    bytes
        .iter_mut()
        .zip(fields.chain(properties.to_le_bytes()).chain(told))
        .for_each(|(to, byte)| *to = byte);
    bytes
}

impl Hypervisor {
    /// Whom `caller` sees of those with this UUID; nil: of all.
    fn seen(&self, caller: Endpoint, asked: [u8; 16]) -> impl Iterator<Item = [u8; DESCRIPTOR_SIZE]> {
        let known = if self.version_of(caller) >= VERSION_1_2 { u32::MAX } else { !PROPERTIES_1_2 };
        let [low, high] = words(&asked);
        let service = descriptor(SERVICE_ID, 1, SERVICE_PROPERTIES & known, &SERVICE_UUID, &asked);
        let partitions = self.partitions.iter().flatten();
        let visible = move |partition: &&Partition| {
            caller == Endpoint::Host || caller == Endpoint::Partition(partition.slot)
        };
        let describe = move |partition: &Partition| {
            let vcpu_count = partition.manifest.vcpu_count as u16;
            descriptor(partition.id(), vcpu_count, PARTITION_PROPERTIES & known, &PARTITION_UUID, &asked)
        };
        let service = Some(service).filter(|_| is_for(low, high, &SERVICE_UUID));
        let partitions =
            partitions.filter(visible).map(describe).filter(move |_| is_for(low, high, &PARTITION_UUID));
        service.into_iter().chain(partitions)
    }

    /// PARTITION_INFO_GET: into RX, or with a flag only how many.
    pub(crate) fn partition_info_get(
        &mut self,
        platform: &mut impl Platform,
        caller: Endpoint,
        uuid: [u64; 4],
        flags: u64,
    ) -> Result<Answer, i32> {
        let mut asked = [0; 16];
        let bytes = uuid.into_iter().flat_map(|word| (word as u32).to_le_bytes());
        asked.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
        let count = self.seen(caller, asked).count();
        if flags & !COUNT_ONLY != 0 || count == 0 {
            return Err(INVALID_PARAMETERS);
        }
        if flags & COUNT_ONLY != 0 {
            return Ok(success(count as u64, 0));
        }
        let rx = self.free_rx_page(platform, caller)?;
        // Small enough for RX: one for the service and one for each slot.
        for (index, descriptor) in self.seen(caller, asked).enumerate() {
            platform.write_page(rx, index * DESCRIPTOR_SIZE, &descriptor);
        }
        self.set_rx_full(caller);
        Ok(success(count as u64, DESCRIPTOR_SIZE as u64))
    }

    /// PARTITION_INFO_GET_REGS: x1, x2 = UUID, x3 = index of the first | tag << 16. The tag names the set of partitions: a
    /// caller that goes on after it changed has to begin anew. Writes x8-x17 itself.
    pub(crate) fn partition_info_get_regs(
        &self,
        caller: Endpoint,
        regs: &mut [u64; 18],
    ) -> Result<Answer, i32> {
        let [_, low, high, start, ..] = *regs;
        let mut asked = [0; 16];
        let bytes = [low, high].into_iter().flat_map(u64::to_le_bytes);
        asked.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
        let (first, tag) = (start & 0xFFFF, start >> 16 & 0xFFFF);
        let count = self.seen(caller, asked).count() as u64;
        if start >> 32 != 0 || first >= count || first == 0 && tag != 0 {
            return Err(INVALID_PARAMETERS);
        }
        if first != 0 && tag != u64::from(self.generation) {
            return Err(RETRY);
        }
        let mut answer = [0; 18];
        let mut last = first;
        let [status, _, summary, places @ ..] = &mut answer;
        let found = self.seen(caller, asked).skip(first as usize).take(DESCRIPTORS_IN_REGISTERS);
        for ((index, descriptor), place) in
            (first..).zip(found).zip(places.chunks_exact_mut(DESCRIPTOR_REGISTERS))
        {
            for (register, bytes) in place.iter_mut().zip(descriptor.chunks_exact(8)) {
                *register = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            }
            last = index;
        }
        *status = SUCCESS_64.into();
        *summary =
            (DESCRIPTOR_SIZE as u64) << 48 | u64::from(self.generation) << 32 | last << 16 | (count - 1);
        *regs = answer;
        let [a, b, c, d, e, f, g, h, ..] = answer;
        Ok([a, b, c, d, e, f, g, h])
    }
}

/// A UUID in two registers.
fn words(uuid: &[u8; 16]) -> [u64; 2] {
    let whole = u128::from_le_bytes(*uuid);
    [whole as u64, (whole >> 64) as u64]
}
