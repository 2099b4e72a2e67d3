//! FF-A 1.2 (Arm DEN0077A) at the host's instance, and what both instances share.

use crate::discovery::{features, is_of_1_2};
use crate::message::{Endpoint, is_for};
use crate::partition::{self, Partition, State, Vcpu};
use crate::{Hypervisor, Mailbox, Outcome, Platform, knob, memory, service};
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::error::{ABORTED, BUSY, DENIED, INVALID_PARAMETERS, NOT_SUPPORTED};
use hyp_abi::ffa::{
    CONSOLE_LOG_32, CONSOLE_LOG_64, ERROR, FEATURES, HOST_ID, ID_GET, MSG_SEND_DIRECT_REQ_32,
    MSG_SEND_DIRECT_REQ_64, MSG_SEND_DIRECT_REQ2, MSG_SEND2, MSG_WAIT, PARTITION_INFO_GET,
    PARTITION_INFO_GET_REGS, RUN, RX_ACQUIRE, RX_RELEASE, RXTX_MAP_32, RXTX_MAP_64, RXTX_UNMAP, SERVICE_ID,
    SERVICE_UUID, SPM_ID_GET, SPMC_ID, SUCCESS_32, VERSION, VERSION_1_1, VERSION_1_2,
};
use hyp_abi::service::{MAX_VCPUS, run_exit};
use stage2::Pa;

/// x0-x7 of an answer.
pub(crate) type Answer = [u64; 8];

/// Whether a function identifier is in FF-A's range, whose refusals are FFA_ERROR.
pub fn is_ffa(function: u32) -> bool {
    matches!(function & !(1 << 30), 0x8400_0060..=0x8400_00EF)
}

/// FFA_SUCCESS with w2 and w3.
pub(crate) const fn success(second: u64, third: u64) -> Answer {
    [SUCCESS_32 as u64, 0, second, third, 0, 0, 0, 0]
}

/// FFA_ERROR with a code.
pub(crate) const fn failure(code: i32) -> Answer {
    [ERROR as u64, 0, code as u32 as u64, 0, 0, 0, 0, 0]
}

/// x0-x7 of a call; a 32-bit one has only the low words.
pub(crate) fn arguments(function: u32, regs: &[u64; 18]) -> [u64; 8] {
    let mask = if function & 1 << 30 == 0 { u64::from(u32::MAX) } else { u64::MAX };
    let [a, b, c, d, e, f, g, h, ..] = *regs;
    [a, b, c, d, e, f, g, h].map(|word| word & mask)
}

/// Puts an answer into x0-x7; the other registers keep their values.
pub(crate) fn put(regs: &mut [u64; 18], answer: Answer) {
    for (register, value) in regs.iter_mut().zip(answer) {
        *register = value;
    }
}

/// The version that an endpoint works with: 1.2 unless it asks for 1.1, fixed by its first other call.
#[derive(Debug)]
pub(crate) struct Negotiation {
    version: u32,
    fixed: bool,
}

impl Negotiation {
    pub(crate) const fn new() -> Self {
        Self { version: VERSION_1_2, fixed: false }
    }

    /// Answers FFA_VERSION: our version, or NOT_SUPPORTED for another major, for 1.0, and for a change of
    /// mind after other calls. A caller that is newer within the major gets 1.2 and steps down.
    pub(crate) fn negotiate(&mut self, requested: u32) -> Answer {
        let agreed = requested.min(VERSION_1_2);
        let known = requested >> 16 == VERSION_1_2 >> 16 && requested >= VERSION_1_1;
        if !known || self.fixed && agreed != self.version {
            return [NOT_SUPPORTED as u32 as u64, 0, 0, 0, 0, 0, 0, 0];
        }
        self.version = agreed;
        [VERSION_1_2 as u64, 0, 0, 0, 0, 0, 0, 0]
    }

    /// The version.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// Whether the endpoint does not have this function.
    pub(crate) fn hides(&self, function: u32) -> bool {
        is_of_1_2(function) && self.version < VERSION_1_2
    }

    /// Any other call: the version stays.
    pub(crate) fn fix(&mut self) {
        self.fixed = true;
    }
}

/// A direct request to the vendor service: operation and arguments; none if its route, its flags or its UUID are not for
/// the service. Framework messages (bit 31 of w2) are for the SPMC.
pub(crate) fn service_request(function: u32, sender: u16, regs: &[u64; 18]) -> Option<(u64, [u64; 4])> {
    let args = arguments(function, regs);
    let [_, route, second, third, a, b, c, d] = args;
    if route != u64::from(sender) << 16 | u64::from(SERVICE_ID) {
        return None;
    }
    if function == MSG_SEND_DIRECT_REQ2 {
        return is_for(second, third, &SERVICE_UUID).then_some((a, [b, c, d, regs[8]]));
    }
    (second == 0).then_some((third, [a, b, c, d]))
}

/// The FFA_RUN answer that a partition ended, as [`hyp_abi::service::run_exit`] says.
pub(crate) fn ended(partition: &Partition, vcpu: usize) -> Answer {
    let [a, b, c, d] = partition.end().map_or([0; 4], partition::End::reason);
    [ERROR.into(), run_target(partition, vcpu), ABORTED as u32 as u64, 0, a, b, c, d]
}

/// The FFA_RUN answer that a vCPU waits for a message or is off.
pub(crate) fn waiting(partition: &Partition, vcpu: usize) -> Answer {
    [MSG_WAIT.into(), run_target(partition, vcpu), 0, 0, run_exit::WAITING, 0, 0, 0]
}

/// w1 of FFA_RUN and of its answers.
pub(crate) fn run_target(partition: &Partition, vcpu: usize) -> u64 {
    u64::from(partition.id()) << 16 | vcpu as u64
}

impl Hypervisor {
    /// Answers an FF-A call of the host.
    pub(crate) fn host_ffa(
        &mut self,
        platform: &mut impl Platform,
        cpu: usize,
        function: u32,
        regs: &mut [u64; 18],
    ) -> Outcome {
        let args = arguments(function, regs);
        if function != VERSION {
            self.version.fix();
        }
        let [_, first, second, third, ..] = args;
        let answer = match function {
            _ if self.version.hides(function) => failure(NOT_SUPPORTED),
            VERSION => self.version.negotiate(first as u32),
            ID_GET => success(HOST_ID.into(), 0),
            RXTX_MAP_32 | RXTX_MAP_64 => self.rxtx_map(platform, first, second, third),
            RXTX_UNMAP => self.rxtx_unmap(first),
            RX_RELEASE => self.rx_release(first),
            RX_ACQUIRE => self.rx_acquire(first).unwrap_or_else(failure),
            MSG_SEND_DIRECT_REQ_32 | MSG_SEND_DIRECT_REQ_64 | MSG_SEND_DIRECT_REQ2 => {
                if let Some((operation, arguments)) = service_request(function, HOST_ID, regs) {
                    let result = self.host_service(platform, operation, arguments);
                    if let Err(refusal) = result {
                        self.count_refusal(refusal.code);
                    }
                    service::respond(function, HOST_ID, result, regs)
                } else {
                    match self.direct_request(platform, cpu, function, regs) {
                        Ok(enter) => return enter,
                        Err(answer) => answer,
                    }
                }
            }
            RUN => match self.run(platform, cpu, first) {
                Ok(enter) => return enter,
                Err(answer) => answer,
            },
            _ => {
                self.endpoint_call(platform, Endpoint::Host, function, regs).unwrap_or(failure(NOT_SUPPORTED))
            }
        };
        let [status, _, code, ..] = answer;
        if status == u64::from(ERROR) {
            self.count_refusal(code as u32 as i32);
        } else if function == VERSION && status as u32 as i32 == NOT_SUPPORTED {
            self.count_refusal(NOT_SUPPORTED);
        }
        put(regs, answer);
        Outcome::Return
    }

    /// Carries out what the host and partitions call alike: none if `function` is nothing of that kind.
    pub(crate) fn endpoint_call(
        &mut self,
        platform: &mut impl Platform,
        caller: Endpoint,
        function: u32,
        regs: &mut [u64; 18],
    ) -> Option<Answer> {
        let args = arguments(function, regs);
        let [_, first, second, third, fourth, flags, ..] = args;
        let result = match function {
            FEATURES => Ok(features(first as u32, caller == Endpoint::Host, self.version_of(caller))),
            SPM_ID_GET => Ok(success(SPMC_ID.into(), 0)),
            PARTITION_INFO_GET => {
                self.partition_info_get(platform, caller, [first, second, third, fourth], flags)
            }
            PARTITION_INFO_GET_REGS => self.partition_info_get_regs(caller, regs),
            MSG_SEND2 => self.send2(platform, caller, first, second),
            CONSOLE_LOG_32 | CONSOLE_LOG_64 => {
                self.console_log(platform, caller, function, regs).map(|()| success(0, 0))
            }
            _ if memory::is_memory_call(function) => {
                return self.memory_call(platform, caller, function, &args);
            }
            _ => self.notification_call(platform, caller, function, &args)?,
        };
        Some(result.unwrap_or_else(failure))
    }

    /// Counts errors that are the host's doing; BUSY, NO_MEMORY and the end of a partition are not.
    fn count_refusal(&mut self, code: i32) {
        self.counters.refused_calls += u64::from(matches!(code, NOT_SUPPORTED | INVALID_PARAMETERS | DENIED));
    }

    /// One page each, aligned, distinct, RAM of the host's alone; pinned, so that they cannot be given away.
    fn rxtx_map(&mut self, platform: &impl Platform, tx: u64, rx: u64, page_count: u64) -> Answer {
        if page_count != 1 || tx == rx || !tx.is_multiple_of(PAGE_SIZE) || !rx.is_multiple_of(PAGE_SIZE) {
            return failure(INVALID_PARAMETERS);
        }
        if self.mailbox.is_some() || self.shutting_down {
            return failure(DENIED);
        }
        let (tx, rx) = (Pa(tx), Pa(rx));
        if !self.knobs.skips(knob::RXTX_OWNERSHIP) {
            if self.memory.host_pin(platform, tx).is_err() {
                return failure(DENIED);
            }
            if self.memory.host_pin(platform, rx).is_err() {
                // It was pinned just now, so this succeeds.
                let _ = self.memory.host_unpin(tx);
                return failure(DENIED);
            }
        }
        self.mailbox = Some(Mailbox { tx, rx, rx_full: false });
        success(0, 0)
    }

    fn rxtx_unmap(&mut self, endpoint: u64) -> Answer {
        if endpoint >> 16 != u64::from(HOST_ID) {
            return failure(INVALID_PARAMETERS);
        }
        let Some(mailbox) = self.mailbox.take() else { return failure(INVALID_PARAMETERS) };
        // Both fail only when the pins were skipped by a fault knob.
        let _ = self.memory.host_unpin(mailbox.tx);
        let _ = self.memory.host_unpin(mailbox.rx);
        success(0, 0)
    }

    fn rx_release(&mut self, endpoint: u64) -> Answer {
        match &mut self.mailbox {
            _ if endpoint != u64::from(HOST_ID) => failure(INVALID_PARAMETERS),
            Some(mailbox) if mailbox.rx_full => {
                mailbox.rx_full = false;
                success(0, 0)
            }
            _ => failure(DENIED),
        }
    }

    /// Enters a vCPU of a running partition, or says why not.
    pub(crate) fn run(
        &mut self,
        platform: &impl Platform,
        cpu: usize,
        target: u64,
    ) -> Result<Outcome, Answer> {
        let (id, vcpu) = (target >> 16, (target & 0xFFFF) as usize);
        let slot = partition::slot_of(id).ok_or(failure(INVALID_PARAMETERS))?;
        let partition = self.partitions.get_mut(slot.index()).and_then(Option::as_mut);
        let partition = partition.ok_or(failure(INVALID_PARAMETERS))?;
        let bound = if self.knobs.skips(knob::VCPU_COUNT) { MAX_VCPUS } else { partition.vcpus_mut().len() };
        let state = partition.vcpus.get(vcpu).filter(|_| vcpu < bound).copied();
        match (&partition.state, state.ok_or(failure(INVALID_PARAMETERS))?) {
            (State::Ended(_) | State::Dying(_), _) => return Err(ended(partition, vcpu)),
            (State::Running, Vcpu::Ready) => (),
            (State::Running, Vcpu::Inside { .. }) if self.knobs.skips(knob::VCPU_INSIDE) => (),
            (State::Running, Vcpu::Inside { .. }) => return Err(failure(BUSY)),
            _ => return Err(failure(DENIED)),
        }
        if let Some(place) = partition.vcpus.get_mut(vcpu) {
            *place = Vcpu::Inside { cpu, since: platform.ticks() };
        }
        partition.messages.resume(vcpu);
        partition.world_switches += 1;
        self.counters.world_switches += 1;
        Ok(Outcome::Enter { slot, vcpu })
    }
}
