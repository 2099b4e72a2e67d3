//! The partition's side: why its vCPU came out, and what its calls do.

use crate::ffa::{self, Answer, success};
use crate::knob::{self, Knobs};
use crate::message::{self, Endpoint};
use crate::npu::{self, Npu};
use crate::partition::{self, End, Partition, State, Vcpu};
use crate::service::{self, Refusal, Results};
use crate::{Exit, Hypervisor, Next, Platform, manifest, private, psci};
use hyp_abi::ffa::error::{DENIED, INVALID_PARAMETERS, NOT_SUPPORTED};
use hyp_abi::ffa::{
    HOST_ID, ID_GET, INTERRUPT, MSG_SEND_DIRECT_REQ_32, MSG_SEND_DIRECT_REQ_64, MSG_SEND_DIRECT_REQ2,
    MSG_SEND_DIRECT_RESP_32, MSG_SEND_DIRECT_RESP_64, MSG_SEND_DIRECT_RESP2, MSG_WAIT, MSG_WAIT_RETAIN_RX,
    RX_RELEASE, RXTX_MAP_32, RXTX_MAP_64, RXTX_UNMAP, VERSION, VERSION_1_2, YIELD,
};
use hyp_abi::manifest::kind;
use hyp_abi::service::{crash, op, run_exit};
use stage2::{FlexMem, Ipa, Party, Slot};

/// How often a vCPU may abort at an address where its stage 2 allows the access, and has not changed since. At S-EL1 the access may
/// be by an address of the wrong space. HPFAR_EL2.NS would say so, but emulation (QEMU 10.0) has it the wrong way round.
const PATIENCE: u8 = 3;

/// What an exit leads to.
enum Step {
    /// The vCPU goes on.
    Resume,
    /// The vCPU goes on: it reached for the NPU, which is not its any more.
    NoDevice,
    /// It comes out, stays runnable, and FFA_RUN answers this.
    Leave(Answer),
    /// It comes out, waits for a message, and the host's call answers this; x8-x17 only if they carry something.
    Respond([u64; 18]),
    /// It comes out and stays off until another vCPU turns it on.
    Off,
    /// Its partition ends.
    End(End),
}

/// What a partition's call works on.
struct Call<'a, P> {
    platform: &'a mut P,
    memory: &'a mut FlexMem,
    partition: &'a mut Partition,
    knobs: &'a Knobs,
    npu: &'a mut Npu,
    vcpu: usize,
}

impl Hypervisor {
    /// Handles a vCPU that came out. `guest` are its x0-x17, `host` those of the host's CPU that entered it by FFA_RUN.
    pub fn vcpu_exit(
        &mut self,
        platform: &mut impl Platform,
        slot: Slot,
        vcpu: usize,
        exit: Exit,
        guest: &mut [u64; 18],
        host: &mut [u64; 18],
    ) -> Next {
        let found = self.partition_in(slot);
        let Some(partition) = found.filter(|partition| partition.is_vcpu_inside(vcpu)) else {
            // Nobody entered it.
            ffa::put(host, ffa::failure(DENIED));
            return Next::Host;
        };
        if partition.end().is_some() {
            // Stopped, destroyed or crashed on another CPU meanwhile: whatever it wanted is void.
            partition.come_out(vcpu, Vcpu::Off, platform.ticks());
            ffa::put(host, ffa::ended(partition, vcpu));
            return Next::Host;
        }
        if exit == Exit::Call
            && let Some(answer) = self.partition_call(platform, slot, guest)
        {
            ffa::put(guest, answer);
            return Next::Resume;
        }
        let Self { partitions, memory, knobs, npu, .. } = self;
        let found = partitions.get_mut(slot.index()).and_then(Option::as_mut);
        // Found just now.
        let Some(partition) = found else { return Next::Host };
        let mut call = Call { platform, memory, partition, knobs, npu, vcpu };
        let step = match exit {
            #[cfg(feature = "fault-knobs")]
            Exit::Abort { ipa, .. } if knobs.skips(knob::PARTITION_ABORT) => call.lend(ipa),
            exit => call.step(exit, guest),
        };
        let Call { platform, partition, memory, npu, .. } = call;
        let (state, answer) = match step {
            Step::Resume => return Next::Resume,
            Step::NoDevice => return Next::NoDevice,
            Step::Leave(answer) => (Vcpu::Ready, answer),
            Step::Respond(response) => {
                if response[0] == u64::from(MSG_SEND_DIRECT_RESP2) {
                    *host = response;
                }
                (Vcpu::Ready, response.first_chunk().copied().unwrap_or_default())
            }
            Step::Off => {
                partition.forget_ipis(vcpu);
                (Vcpu::Off, ffa::waiting(partition, vcpu))
            }
            Step::End(end) => {
                partition.end_with(end);
                (Vcpu::Off, ffa::ended(partition, vcpu))
            }
        };
        partition.come_out(vcpu, state, platform.ticks());
        if partition.end().is_some() {
            partition.kick(platform);
            npu.leave(npu::Context { platform, memory, knobs }, Party::Partition(slot));
        }
        ffa::put(host, answer);
        Next::Host
    }
}

impl Hypervisor {
    /// A call of a partition that concerns more than itself, or its buffers; none if it is something else.
    fn partition_call(
        &mut self,
        platform: &mut impl Platform,
        slot: Slot,
        guest: &mut [u64; 18],
    ) -> Option<Answer> {
        let function = guest[0] as u32;
        let version = &self.partition_in(slot)?.version;
        if !ffa::is_ffa(function) || version.hides(function) {
            return None;
        }
        let [_, first, second, third, ..] = ffa::arguments(function, guest);
        let result = match function {
            RXTX_MAP_32 | RXTX_MAP_64 => self.partition_rxtx_map(platform, slot, [first, second, third]),
            RXTX_UNMAP => self.partition_rxtx_unmap(slot, first),
            RX_RELEASE => self.partition_rx_release(slot, first),
            _ => Ok(self.endpoint_call(platform, Endpoint::Partition(slot), function, guest)?),
        };
        if let Some(partition) = self.partition_in(slot) {
            partition.version.fix();
        }
        Some(result.unwrap_or_else(ffa::failure))
    }
}

impl Partition {
    /// Records that a vCPU left its CPU.
    fn come_out(&mut self, vcpu: usize, state: Vcpu, now: u64) {
        if let Some(place) = self.vcpus.get_mut(vcpu) {
            if let Vcpu::Inside { since, .. } = *place {
                self.run_ticks = self.run_ticks.saturating_add(now.saturating_sub(since));
            }
            *place = state;
        }
    }

    /// Ends it by its own doing. The log line names cause and addresses, never data.
    fn end_with(&mut self, end: End) {
        self.state = State::Ended(end);
        if let End::Crashed([cause, first, second]) = end {
            let what = match cause {
                crash::PANIC => "panic",
                crash::ABORT => "access to memory it was not given",
                crash::UNDEFINED => "instruction or register that is not its own",
                _ => "SError",
            };
            log::warn!(
                "partition {:#06x} ({}) crashed: {what}, {first:#x} {second:#x}",
                self.id(),
                self.name()
            );
        }
    }
}

impl<P: Platform> Call<'_, P> {
    fn step(&mut self, exit: Exit, guest: &mut [u64; 18]) -> Step {
        let target = ffa::run_target(self.partition, self.vcpu);
        match exit {
            Exit::Call => self.call(guest),
            Exit::Interrupt => {
                self.partition.interrupts += 1;
                Step::Leave([INTERRUPT.into(), target, 0, 0, run_exit::INTERRUPT, 0, 0, 0])
            }
            // What it was for is done: the interrupt that came with it is taken on the way back in.
            Exit::Kick => Step::Resume,
            Exit::Sgi { value } => {
                self.partition.send_sgi(self.platform, self.vcpu, value);
                Step::Resume
            }
            Exit::WaitForInterrupt { deadline } => self.wait_until(deadline),
            Exit::Abort { ipa, fetch: false, .. } if self.is_npu_register(ipa) => Step::NoDevice,
            // The page is there by now: a break-before-make window of a give.
            Exit::Abort { ipa, write, fetch } if self.allows(ipa, write, fetch) && self.is_news(ipa) => {
                Step::Resume
            }
            Exit::Abort { ipa, .. } => Step::End(End::Crashed([crash::ABORT, ipa, 0])),
            Exit::Undefined { class } => Step::End(End::Crashed([crash::UNDEFINED, class, 0])),
            Exit::SError => Step::End(End::Crashed([crash::SERROR, 0, 0])),
        }
    }

    /// Fault knob: maps the page of that address, whoever the host meant it for, and lets the access repeat.
    #[cfg(feature = "fault-knobs")]
    fn lend(&mut self, ipa: u64) -> Step {
        use stage2::{Access, Fill, Pa, PageRange};
        let page = ipa & !(hyp_abi::PAGE_SIZE - 1);
        let slot = self.partition.slot;
        let lent = PageRange::new(Pa(page), 1).and_then(|range| {
            let access = Access::ReadWrite;
            self.memory.host_give_partition(self.platform, slot, &[range], Ipa(page), access, Fill::Keep)
        });
        match lent {
            Ok(_) => Step::Resume,
            Err(_) => Step::End(End::Crashed([crash::ABORT, ipa, 0])),
        }
    }

    /// It sleeps until its timer fires or an interrupt comes, unless one came just now.
    fn wait_until(&self, deadline: Option<u64>) -> Step {
        if self.is_interrupted() {
            return Step::Resume;
        }
        let target = ffa::run_target(self.partition, self.vcpu);
        let [low, high] = deadline.map_or([0; 2], |deadline| self.nanoseconds_until(deadline));
        let until = deadline.unwrap_or(u64::MAX);
        Step::Leave([YIELD.into(), target, low, high, run_exit::TIMER, until, 0, 0])
    }

    /// Whether an interrupt waits for this vCPU.
    fn is_interrupted(&self) -> bool {
        self.partition.pending.get(self.vcpu).is_some_and(|pending| *pending != 0)
    }

    /// FFA_YIELD's time-out in w2 and w3: at least 1, since 0 means none.
    fn nanoseconds_until(&self, deadline: u64) -> [u64; 2] {
        let ticks = deadline.saturating_sub(self.platform.ticks());
        let per_second = u128::from(self.platform.ticks_per_second().max(1));
        let nanoseconds = u128::from(ticks) * 1_000_000_000 / per_second;
        let nanoseconds = u64::try_from(nanoseconds).unwrap_or(u64::MAX).max(1);
        [nanoseconds & u64::from(u32::MAX), nanoseconds >> 32]
    }

    /// Whether the NPU's registers are at `ipa` when the partition owns it.
    fn is_npu_register(&self, ipa: u64) -> bool {
        let party = Party::Partition(self.partition.slot);
        self.memory.window().is_some_and(|window| window.holds(party, ipa))
    }

    /// Whether an abort that should not be may still have a reason.
    fn is_news(&mut self, ipa: u64) -> bool {
        self.partition.count_repeats(self.vcpu, ipa, self.memory.counters().tlbi_count) < PATIENCE
    }

    /// Whether the partition's stage 2 allows an access now.
    fn allows(&self, ipa: u64, write: bool, fetch: bool) -> bool {
        use stage2::Access::{Read, ReadExecute, ReadWrite};
        let page = self.memory.partition_page(self.platform, self.partition.slot, Ipa(ipa));
        // Private memory is as it was when the partition was started.
        page.filter(|_| !private::is_private(ipa)).is_some_and(|page| match page.access {
            Read => !write && !fetch,
            ReadWrite => !fetch,
            ReadExecute => !write,
        })
    }

    /// An SMC that concerns the partition alone.
    fn call(&mut self, guest: &mut [u64; 18]) -> Step {
        let function = guest[0] as u32;
        let args = ffa::arguments(function, guest);
        if !ffa::is_ffa(function) {
            return self.firmware_call(function, &args, guest);
        }
        if function != VERSION {
            self.partition.version.fix();
        }
        let target = ffa::run_target(self.partition, self.vcpu);
        let [_, first, second, third, ..] = args;
        let answer = match function {
            _ if self.partition.version.hides(function) => ffa::failure(NOT_SUPPORTED),
            VERSION => self.partition.version.negotiate(first as u32),
            ID_GET => success(self.partition.id().into(), 0),
            // It would sleep over what it waits for.
            MSG_WAIT if self.is_interrupted() => [INTERRUPT.into(), target, 0, 0, 0, 0, 0, 0],
            MSG_WAIT => match self.wait(first, second) {
                Ok(()) => {
                    ffa::put(guest, message::woken(self.partition, self.vcpu));
                    return Step::Leave(ffa::waiting(self.partition, self.vcpu));
                }
                Err(code) => ffa::failure(code),
            },
            YIELD => {
                ffa::put(guest, success(0, 0));
                let [low, high] = [second, third].map(|word| word & u64::from(u32::MAX));
                return Step::Leave([YIELD.into(), target, low, high, run_exit::KICK, 0, 0, 0]);
            }
            MSG_SEND_DIRECT_REQ_32 | MSG_SEND_DIRECT_REQ_64 | MSG_SEND_DIRECT_REQ2 => {
                let id = self.partition.id();
                match ffa::service_request(function, id, guest) {
                    Some((operation, [first, second, ..])) => match self.service(operation, first, second) {
                        Ok(result) => service::respond(function, id, result, guest),
                        Err(end) => return Step::End(end),
                    },
                    None => ffa::failure(self.route_refusal(first)),
                }
            }
            MSG_SEND_DIRECT_RESP_32 | MSG_SEND_DIRECT_RESP_64 | MSG_SEND_DIRECT_RESP2 => {
                let id = self.partition.id();
                match self.partition.messages.respond(id, self.vcpu, function, guest) {
                    Ok(response) => {
                        ffa::put(guest, message::woken(self.partition, self.vcpu));
                        return Step::Respond(response);
                    }
                    Err(code) => ffa::failure(code),
                }
            }
            _ => ffa::failure(NOT_SUPPORTED),
        };
        ffa::put(guest, answer);
        Step::Resume
    }

    /// MSG_WAIT: frees RX unless the partition keeps it (1.2). Not while the host waits for a response.
    fn wait(&mut self, first: u64, flags: u64) -> Result<(), i32> {
        let known = if self.partition.version.version() >= VERSION_1_2 { MSG_WAIT_RETAIN_RX } else { 0 };
        if first != 0 || flags & !u64::from(known) != 0 {
            return Err(INVALID_PARAMETERS);
        }
        let messages = &mut self.partition.messages;
        if messages.owes_response(self.vcpu) {
            return Err(DENIED);
        }
        if flags == 0 {
            messages.release_rx();
        }
        messages.wait(self.vcpu);
        Ok(())
    }

    /// Why a direct request to somebody else than the service is refused.
    fn route_refusal(&self, route: u64) -> i32 {
        let (sender, receiver) = (route >> 16, route & 0xFFFF);
        let id = u64::from(self.partition.id());
        let is_endpoint = receiver == u64::from(HOST_ID) || partition::slot_of(receiver).is_some();
        if sender == id && receiver != id && is_endpoint { DENIED } else { INVALID_PARAMETERS }
    }

    /// The vendor service as a partition sees it: a result, or the end.
    fn service(&mut self, operation: u64, first: u64, second: u64) -> Result<Result<Results, Refusal>, End> {
        let slot = self.partition.slot;
        let refuse = |code, value| Err(Refusal { code, value });
        let context =
            npu::Context { platform: &mut *self.platform, memory: &mut *self.memory, knobs: self.knobs };
        if let Some(result) = self.npu.operation(context, Party::Partition(slot), operation) {
            return Ok(result);
        }
        Ok(match operation {
            op::INFO => Ok(service::info(self.platform)),
            op::REGION => {
                let index = usize::try_from(first).unwrap_or(usize::MAX);
                let used = self.partition.manifest.region_count as usize;
                let regions = self.partition.manifest.regions.iter().zip(self.partition.given);
                match regions.take(used).nth(index) {
                    Some((region, given)) => {
                        Ok([region.ipa, given, u64::from(region.kind), u64::from(region.access)])
                    }
                    None => refuse(INVALID_PARAMETERS, first),
                }
            }
            op::SHARE | op::UNSHARE => match manifest::region_of(&self.partition.manifest, first) {
                // Messages of others must not be seen by the host, nor may it change them.
                Some(_) if self.partition.messages.uses(first) => refuse(DENIED, first),
                Some((_, region)) if region.kind == kind::SHARED => {
                    let done = if operation == op::SHARE {
                        self.memory.partition_share_host(self.platform, slot, Ipa(first))
                    } else {
                        self.memory.partition_unshare_host(self.platform, slot, Ipa(first))
                    };
                    done.map(|()| [0; 4]).map_err(Refusal::from)
                }
                Some(_) => refuse(DENIED, first),
                None => refuse(INVALID_PARAMETERS, first),
            },
            op::EXIT => return Err(End::Finished(first)),
            op::PANIC => return Err(End::Crashed([crash::PANIC, first, second])),
            op::TABLES_GIVE | op::TABLES_RECALL | op::CREATE..=op::STATS | op::LOG => refuse(DENIED, 0),
            _ => refuse(NOT_SUPPORTED, 0),
        })
    }

    /// PSCI for the partition's own vCPUs; nothing reaches EL3.
    fn firmware_call(&mut self, function: u32, args: &[u64; 8], guest: &mut [u64; 18]) -> Step {
        use psci::{code, id};
        let [_, first, second, third, ..] = *args;
        guest[0] = match function {
            id::SMCCC_VERSION => psci::SMCCC_VERSION_1_2,
            id::SMCCC_ARCH_FEATURES => psci::present(psci::is_arch_feature(first as u32)),
            id::VERSION => psci::PSCI_VERSION_1_1,
            id::FEATURES => psci::present(psci::is_partition_feature(first as u32)),
            id::CPU_ON_64 => self.cpu_on(first, second, third),
            id::CPU_OFF if self.partition.messages.owes_response(self.vcpu) => code::DENIED,
            id::CPU_OFF => return Step::Off,
            id::CPU_SUSPEND_32 | id::CPU_SUSPEND_64 if psci::is_standby(first) => {
                guest[0] = code::SUCCESS;
                return self.wait_until(self.platform.timer_deadline(self.partition.slot, self.vcpu));
            }
            // Power-down would lose what nobody saves.
            id::CPU_SUSPEND_32 | id::CPU_SUSPEND_64 => code::INVALID_PARAMETERS,
            id::AFFINITY_INFO_32 | id::AFFINITY_INFO_64 => self.affinity_info(first, second),
            id::SYSTEM_OFF => return Step::End(End::Finished(0)),
            // SYSTEM_RESET too: a measured start happens once.
            _ => code::NOT_SUPPORTED,
        };
        Step::Resume
    }

    /// The vCPU that an MPIDR names: affinity 0 is its index, the rest is zero.
    fn vcpu_of(&mut self, target: u64) -> Option<(usize, &mut Vcpu)> {
        let index = usize::try_from(target).ok()?;
        let vcpus = match self.knobs.skips(knob::VCPU_COUNT) {
            false => self.partition.vcpus_mut(),
            true => &mut self.partition.vcpus,
        };
        Some((index, vcpus.get_mut(index)?))
    }

    /// Makes another vCPU ready. The host then runs it like the first.
    fn cpu_on(&mut self, target: u64, entry: u64, argument: u64) -> u64 {
        use psci::code;
        let slot = self.partition.slot;
        let entry_is_sound = manifest::is_entry(&self.partition.manifest, entry);
        match self.vcpu_of(target) {
            None => code::INVALID_PARAMETERS,
            Some(_) if !entry_is_sound => code::INVALID_ADDRESS,
            Some((index, vcpu @ Vcpu::Off)) => {
                *vcpu = Vcpu::Ready;
                self.partition.forget_ipis(index);
                self.platform.reset_vcpu(slot, index, entry, argument);
                self.platform.signal_host();
                code::SUCCESS
            }
            Some(_) => code::ALREADY_ON,
        }
    }

    /// Whether a vCPU is on (0) or off (1).
    fn affinity_info(&mut self, target: u64, lowest_level: u64) -> u64 {
        match self.vcpu_of(target) {
            Some((_, state)) if lowest_level == 0 => u64::from(*state == Vcpu::Off),
            _ => psci::code::INVALID_PARAMETERS,
        }
    }
}
