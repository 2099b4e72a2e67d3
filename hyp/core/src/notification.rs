//! Notifications (DEN0077A chapter 10): bits that one endpoint sets for another.
//!
//! The receiver binds each bit to one sender, so nobody is notified without consent; partitions receive from the host and
//! from each other in two separate bitmaps, the host from partitions only. Notifications are global: those for one vCPU
//! are not supported. A partition learns of them by the interrupt [`NPI`] of its vCPU 0, the host by [`SRI`] and by
//! INFO_GET, which names each receiver once until something new is set for it.
//!
//! [`NPI`]: hyp_abi::ffa::NPI
//! [`SRI`]: hyp_abi::ffa::SRI

use crate::ffa::{Answer, success};
use crate::message::Endpoint;
use crate::{Hypervisor, Platform, knob};
use hyp_abi::ffa::error::{ABORTED, DENIED, INVALID_PARAMETERS, NO_DATA};
use hyp_abi::ffa::{
    HOST_ID, NOTIFICATION_BIND, NOTIFICATION_BITMAP_CREATE, NOTIFICATION_BITMAP_DESTROY,
    NOTIFICATION_DELAY_SRI, NOTIFICATION_GET, NOTIFICATION_INFO_GET_32, NOTIFICATION_INFO_GET_64,
    NOTIFICATION_SET, NOTIFICATION_UNBIND, NOTIFICATIONS_FRAMEWORK, NOTIFICATIONS_FROM_HOST,
    NOTIFICATIONS_FROM_PARTITIONS, NPI, RX_BUFFER_FULL, SUCCESS_32, SUCCESS_64,
};
use hyp_abi::service::MAX_PARTITIONS;
use stage2::Slot;

/// NOTIFICATION_GET flag: those of a hypervisor below the host's VMs; there are none.
const FROM_HYPERVISOR: u32 = 1 << 3;
/// INFO_GET: more receivers than fit.
const MORE: u64 = 1;
/// INFO_GET: where the number of lists stands.
const LIST_COUNT_SHIFT: u32 = 7;

/// What one receiver has bound and not yet got.
#[derive(Clone, Debug)]
pub(crate) struct Notifications {
    /// Bits that each partition may set, by slot; none is two partitions'.
    bound: [u64; MAX_PARTITIONS],
    /// Bits that the host may set.
    bound_host: u64,
    /// Set by partitions.
    pending: u64,
    /// Set by the host.
    pending_host: u64,
    /// Set by the SPMC.
    framework: u32,
    /// Whether INFO_GET named this receiver since the last bit was set.
    reported: bool,
}

impl Notifications {
    pub(crate) const NONE: Self =
        Self { bound: [0; _], bound_host: 0, pending: 0, pending_host: 0, framework: 0, reported: false };

    /// What `sender` may set, what is pending of it and its like, and what anybody like it may set.
    fn of(&mut self, sender: Endpoint) -> Option<(&mut u64, &mut u64, u64)> {
        match sender {
            Endpoint::Host => {
                let all = self.bound_host;
                Some((&mut self.bound_host, &mut self.pending_host, all))
            }
            Endpoint::Partition(slot) => {
                let all = self.bound.iter().fold(0, |all, bits| all | bits);
                Some((self.bound.get_mut(slot.index())?, &mut self.pending, all))
            }
        }
    }

    /// Lets `sender` set bits that nobody like it may set yet.
    fn bind(&mut self, sender: Endpoint, bits: u64) -> Result<(), i32> {
        let (bound, pending, all) = self.of(sender).ok_or(INVALID_PARAMETERS)?;
        if bits & (all | *pending) != 0 {
            return Err(DENIED);
        }
        *bound |= bits;
        Ok(())
    }

    /// Ends [`Self::bind`] for bits that are not pending.
    fn unbind(&mut self, sender: Endpoint, bits: u64) -> Result<(), i32> {
        let (bound, pending, _) = self.of(sender).ok_or(INVALID_PARAMETERS)?;
        if bits & !*bound != 0 || bits & *pending != 0 {
            return Err(DENIED);
        }
        *bound &= !bits;
        Ok(())
    }

    /// Sets bits that `sender` may set; whether one of them was not pending yet.
    fn set(&mut self, sender: Endpoint, bits: u64, unchecked: bool) -> Result<bool, i32> {
        let (bound, pending, _) = self.of(sender).ok_or(INVALID_PARAMETERS)?;
        if bits & !*bound != 0 && !unchecked {
            return Err(DENIED);
        }
        let is_new = bits & !*pending != 0;
        *pending |= bits;
        self.reported &= !is_new;
        Ok(is_new)
    }

    /// Takes what `flags` ask for: of partitions, of the host, of the SPMC.
    fn take(&mut self, flags: u32) -> (u64, u64, u32) {
        let wants = |flag| flags & flag != 0;
        let mut taken = (0, 0, 0);
        if wants(NOTIFICATIONS_FROM_PARTITIONS) {
            taken.0 = core::mem::take(&mut self.pending);
        }
        if wants(NOTIFICATIONS_FROM_HOST) {
            taken.1 = core::mem::take(&mut self.pending_host);
        }
        if wants(NOTIFICATIONS_FRAMEWORK) {
            taken.2 = core::mem::take(&mut self.framework);
        }
        taken
    }

    /// Whether INFO_GET names this receiver; from then on it does not until more is set.
    fn report(&mut self) -> bool {
        let pending = self.pending != 0 || self.pending_host != 0 || self.framework != 0;
        let due = pending && !self.reported;
        self.reported |= due;
        due
    }

    /// Notes a message in RX.
    pub(crate) fn rx_full(&mut self) {
        self.framework |= RX_BUFFER_FULL;
        self.reported = false;
    }

    /// Panics unless each bit is one partition's, of those that are `here`.
    #[cfg(test)]
    pub(crate) fn check(&self, here: &[bool]) {
        let mut seen = 0;
        for (bits, here) in self.bound.iter().zip(here) {
            assert!(seen & bits == 0 && (*here || *bits == 0));
            seen |= bits;
        }
    }

    /// Forgets a sender that is gone, before another one gets its id.
    pub(crate) fn forget(&mut self, sender: Slot) {
        if let Some(bound) = self.bound.get_mut(sender.index()) {
            *bound = 0;
        }
    }
}

/// The host as a receiver, between BITMAP_CREATE and BITMAP_DESTROY.
#[derive(Debug)]
pub(crate) struct HostNotifications {
    notifications: Notifications,
    vcpu_count: u64,
}

/// w1 of BIND, UNBIND and SET: sender and receiver.
fn split(route: u64) -> (u64, u64) {
    (route >> 16, route & 0xFFFF)
}

/// w3 and w4 of them: not none.
fn bits(low: u64, high: u64) -> Result<u64, i32> {
    match high << 32 | low {
        0 => Err(INVALID_PARAMETERS),
        bits => Ok(bits),
    }
}

impl Hypervisor {
    /// Carries out a call of this chapter: none if `function` is not one that this caller has.
    pub(crate) fn notification_call(
        &mut self,
        platform: &mut impl Platform,
        caller: Endpoint,
        function: u32,
        args: &[u64; 8],
    ) -> Option<Result<Answer, i32>> {
        let [_, first, flags, low, high, ..] = *args;
        let is_host = caller == Endpoint::Host;
        let done = |result: Result<(), i32>| result.map(|()| success(0, 0));
        Some(match function {
            NOTIFICATION_BITMAP_CREATE if is_host => done(self.bitmap_create(first, flags)),
            NOTIFICATION_BITMAP_DESTROY if is_host => done(self.bitmap_destroy(first)),
            NOTIFICATION_BIND => done(self.bind(caller, first, flags, bits(low, high))),
            NOTIFICATION_UNBIND => done(self.unbind(caller, first, flags, bits(low, high))),
            NOTIFICATION_SET => done(self.set(platform, caller, first, flags, bits(low, high))),
            NOTIFICATION_GET => self.get(caller, first, flags),
            NOTIFICATION_INFO_GET_32 | NOTIFICATION_INFO_GET_64 if is_host => self.info_get(function),
            _ => return None,
        })
    }

    fn bitmap_create(&mut self, id: u64, vcpu_count: u64) -> Result<(), i32> {
        if id != u64::from(HOST_ID) || !(1..=0x1_0000).contains(&vcpu_count) {
            return Err(INVALID_PARAMETERS);
        }
        if self.host_notifications.is_some() {
            return Err(DENIED);
        }
        self.host_notifications = Some(HostNotifications { notifications: Notifications::NONE, vcpu_count });
        Ok(())
    }

    /// Denied while a partition's notification is pending.
    fn bitmap_destroy(&mut self, id: u64) -> Result<(), i32> {
        if id != u64::from(HOST_ID) {
            return Err(INVALID_PARAMETERS);
        }
        match &self.host_notifications {
            Some(host) if host.notifications.pending == 0 => self.host_notifications = None,
            _ => return Err(DENIED),
        }
        Ok(())
    }

    /// The bitmaps of a receiver; the host may have none.
    pub(crate) fn notifications(&mut self, receiver: Endpoint) -> Result<&mut Notifications, i32> {
        match receiver {
            Endpoint::Host => Ok(&mut self.host_notifications.as_mut().ok_or(DENIED)?.notifications),
            Endpoint::Partition(slot) => {
                let partition = self.partition_in(slot).ok_or(INVALID_PARAMETERS)?;
                Ok(&mut partition.notifications)
            }
        }
    }

    /// The two ends of a binding: the caller as the receiver, and somebody else who exists.
    fn ends(&self, caller: Endpoint, route: u64) -> Result<Endpoint, i32> {
        let (sender, receiver) = split(route);
        let sender = self.endpoint(sender).filter(|sender| *sender != caller);
        if receiver != u64::from(caller.id()) {
            return Err(INVALID_PARAMETERS);
        }
        sender.ok_or(INVALID_PARAMETERS)
    }

    /// No flag is known but that of notifications for one vCPU, which are not supported.
    fn bind(&mut self, caller: Endpoint, route: u64, flags: u64, bits: Result<u64, i32>) -> Result<(), i32> {
        let sender = self.ends(caller, route)?;
        if flags != 0 {
            return Err(INVALID_PARAMETERS);
        }
        self.notifications(caller)?.bind(sender, bits?)
    }

    fn unbind(
        &mut self,
        caller: Endpoint,
        route: u64,
        flags: u64,
        bits: Result<u64, i32>,
    ) -> Result<(), i32> {
        let sender = self.ends(caller, route)?;
        if flags != 0 {
            return Err(INVALID_PARAMETERS);
        }
        self.notifications(caller)?.unbind(sender, bits?)
    }

    fn set(
        &mut self,
        platform: &mut impl Platform,
        caller: Endpoint,
        route: u64,
        flags: u64,
        bits: Result<u64, i32>,
    ) -> Result<(), i32> {
        let (sender, receiver) = split(route);
        let sender = self.sender(caller, sender)?;
        let receiver = self.endpoint(receiver).filter(|receiver| *receiver != caller);
        let receiver = receiver.ok_or(INVALID_PARAMETERS)?;
        if flags & !u64::from(NOTIFICATION_DELAY_SRI) != 0 {
            return Err(INVALID_PARAMETERS);
        }
        let bits = bits?;
        let unchecked = self.knobs.skips(knob::NOTIFICATION_BINDING);
        self.refuse_ended(receiver)?;
        // What is pending already tells nobody again, so that no partition floods the host with signals.
        if self.notifications(receiver)?.set(sender, bits, unchecked)? {
            self.signal(platform, receiver, flags != 0);
        }
        Ok(())
    }

    /// A receiver that ended gets nothing any more.
    pub(crate) fn refuse_ended(&self, receiver: Endpoint) -> Result<(), i32> {
        let Endpoint::Partition(slot) = receiver else { return Ok(()) };
        let partition = self.partitions.get(slot.index()).and_then(Option::as_ref);
        if partition.is_some_and(|partition| partition.end().is_some()) { Err(ABORTED) } else { Ok(()) }
    }

    /// Tells a receiver, or the host that it should run one, that something is pending; not at once if it may wait.
    pub(crate) fn signal(&mut self, platform: &mut impl Platform, receiver: Endpoint, is_delayed: bool) {
        match receiver {
            Endpoint::Host if is_delayed => (),
            Endpoint::Host => platform.signal_host(),
            Endpoint::Partition(slot) => match self.partition_in(slot) {
                Some(partition) if is_delayed && !partition.is_vcpu_inside(0) => {
                    let [first, ..] = &mut partition.pending;
                    *first |= 1 << NPI;
                }
                Some(partition) => partition.pend(platform, 0, NPI),
                None => (),
            },
        }
    }

    fn get(&mut self, caller: Endpoint, target: u64, flags: u64) -> Result<Answer, i32> {
        let (vcpu, receiver) = split(target);
        let known = NOTIFICATIONS_FROM_PARTITIONS
            | NOTIFICATIONS_FROM_HOST
            | NOTIFICATIONS_FRAMEWORK
            | FROM_HYPERVISOR;
        let vcpu_count = match caller {
            Endpoint::Host => self.host_notifications.as_ref().map_or(u64::MAX, |host| host.vcpu_count),
            Endpoint::Partition(slot) => self.partition_in(slot).map_or(0, |p| p.vcpus_mut().len() as u64),
        };
        if receiver != u64::from(caller.id()) || flags & !u64::from(known) != 0 || vcpu >= vcpu_count {
            return Err(INVALID_PARAMETERS);
        }
        let (partitions, host, framework) = self.notifications(caller)?.take(flags as u32);
        let halves = |bits: u64| [bits & u64::from(u32::MAX), bits >> 32];
        let ([a, b], [c, d]) = (halves(partitions), halves(host));
        Ok([SUCCESS_32.into(), 0, a, b, c, d, framework.into(), 0])
    }

    /// Ids of receivers, two or four to a register from x3 on; each is a list of its own without vCPUs.
    fn info_get(&mut self, function: u32) -> Result<Answer, i32> {
        let (status, per_register) =
            if function == NOTIFICATION_INFO_GET_64 { (SUCCESS_64, 4) } else { (SUCCESS_32, 2) };
        let host = self.host_notifications.as_mut().map(|host| (HOST_ID, &mut host.notifications));
        let running = self.partitions.iter_mut().flatten().filter(|partition| partition.end().is_none());
        let partitions = running.map(|partition| (partition.id(), &mut partition.notifications));
        let mut due = host.into_iter().chain(partitions).filter(|(_, pending)| {
            // Looked at only: what does not fit is reported next time.
            (*pending).clone().report()
        });
        let mut answer: Answer = [status.into(), 0, 0, 0, 0, 0, 0, 0];
        let [_, _, summary, registers @ ..] = &mut answer;
        let mut count = 0;
        let places = registers.iter_mut().flat_map(|register| {
            let register = core::cell::Cell::from_mut(register);
            (0..per_register).map(move |place| (register, 16 * place))
        });
        for (register, shift) in places {
            let Some((id, pending)) = due.next() else { break };
            pending.report();
            register.set(register.get() | u64::from(id) << shift);
            count += 1;
        }
        if count == 0 {
            return Err(NO_DATA);
        }
        *summary = count << LIST_COUNT_SHIFT | if due.next().is_some() { MORE } else { 0 };
        Ok(answer)
    }

    /// Removes a partition that is gone from everybody's bindings.
    pub(crate) fn forget_sender(&mut self, slot: Slot) {
        if let Some(host) = &mut self.host_notifications {
            host.notifications.forget(slot);
        }
        self.partitions.iter_mut().flatten().for_each(|other| other.notifications.forget(slot));
    }
}
