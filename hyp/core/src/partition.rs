//! A partition's record: its state, its vCPUs, and its measurement as it grows.

use crate::message::{Endpoint, Messages};
use crate::notification::Notifications;
use crate::{Platform, ffa, interrupt, manifest, service};
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::PARTITION_ID_BASE;
use hyp_abi::manifest::{MAX_REGIONS, MEASURE_LABEL, Manifest};
use hyp_abi::service::{MAX_VCPUS, MEASUREMENT_SIZE, run_exit};
use hyp_abi::stats::{PartitionStats, state};
use sha2::{Digest, Sha384};
use stage2::{FlexMem, Slot};
use zerocopy::IntoBytes;

/// Why a partition ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It ended itself with this exit code.
    Finished(u64),
    /// Its own fault: one of [`hyp_abi::service::crash`], and details.
    Crashed([u64; 3]),
    /// The host stopped it, or destroyed it while it had not ended.
    Stopped,
}

impl End {
    /// x4-x7 of the FFA_RUN that reports it.
    pub(crate) fn reason(self) -> [u64; 4] {
        match self {
            Self::Finished(code) => [run_exit::FINISHED, code, 0, 0],
            Self::Crashed([cause, first, second]) => [run_exit::CRASHED, cause, first, second],
            Self::Stopped => [run_exit::STOPPED, 0, 0, 0],
        }
    }
}

/// Where a partition is in its life. The crate's documentation draws the transitions.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is no heap")]
pub(crate) enum State {
    /// Contents, private and shared pages may be given and recalled.
    Created,
    /// The contents are fixed and being hashed; no page leaves.
    Measuring(Measuring),
    /// The measurement is final; no page leaves.
    Measured,
    /// FFA_RUN enters it.
    Running,
    /// No vCPU enters any more; once all are out, pages may be recalled.
    Ended(End),
    /// Its pages go back; nothing else is possible.
    Dying(End),
}

/// A measurement in progress.
#[derive(Clone, Debug)]
pub(crate) struct Measuring {
    pub(crate) hash: Sha384,
    /// Pages below this IPA are hashed.
    pub(crate) next: u64,
    /// Pages still to hash.
    pub(crate) remaining: u64,
}

/// A vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vcpu {
    /// Not started, or turned off by itself.
    Off,
    /// FFA_RUN may enter it.
    Ready,
    /// It runs on a CPU, since a value of the system counter.
    Inside {
        /// The CPU.
        cpu: usize,
        /// Ticks when it was entered.
        since: u64,
    },
}

/// A partition.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) slot: Slot,
    pub(crate) state: State,
    /// Validated.
    pub(crate) manifest: Manifest,
    /// Pages given now, by region.
    pub(crate) given: [u64; MAX_REGIONS],
    pub(crate) vcpus: [Vcpu; MAX_VCPUS],
    /// Where each vCPU last aborted and was let repeat it, after how many changes of stage 2, and how often.
    aborts: [((u64, u64), u8); MAX_VCPUS],
    /// Virtual interrupts that each vCPU is owed, a bit per number of [`crate::interrupt`].
    pub(crate) pending: [u32; MAX_VCPUS],
    pub(crate) version: ffa::Negotiation,
    pub(crate) messages: Messages,
    pub(crate) notifications: Notifications,
    pub(crate) measurement: [u8; MEASUREMENT_SIZE],
    pub(crate) pages_given: u64,
    pub(crate) pages_recalled: u64,
    pub(crate) world_switches: u64,
    pub(crate) interrupts: u64,
    pub(crate) run_ticks: u64,
}

/// Finds the slot that an endpoint id means.
pub(crate) fn slot_of(id: u64) -> Option<Slot> {
    let index = id.checked_sub(u64::from(PARTITION_ID_BASE))?;
    Slot::new(usize::try_from(index).ok()?)
}

impl Partition {
    /// Starts the life of a partition with a validated manifest.
    pub(crate) fn new(slot: Slot, manifest: Manifest) -> Self {
        Self {
            slot,
            state: State::Created,
            manifest,
            given: [0; MAX_REGIONS],
            vcpus: [Vcpu::Off; MAX_VCPUS],
            aborts: [((0, 0), 0); MAX_VCPUS],
            pending: [0; MAX_VCPUS],
            version: ffa::Negotiation::new(),
            messages: Messages::NONE,
            notifications: Notifications::NONE,
            measurement: [0; MEASUREMENT_SIZE],
            pages_given: 0,
            pages_recalled: 0,
            world_switches: 0,
            interrupts: 0,
            run_ticks: 0,
        }
    }

    /// Endpoint id.
    pub(crate) fn id(&self) -> u16 {
        Endpoint::Partition(self.slot).id()
    }

    /// The vCPUs that the manifest asks for.
    pub(crate) fn vcpus_mut(&mut self) -> &mut [Vcpu] {
        let count = (self.manifest.vcpu_count as usize).min(MAX_VCPUS);
        self.vcpus.split_at_mut(count).0
    }

    /// Whether a vCPU is inside on any CPU.
    pub(crate) fn is_inside(&self) -> bool {
        self.vcpus.iter().any(|vcpu| matches!(vcpu, Vcpu::Inside { .. }))
    }

    /// Whether this vCPU is inside.
    pub(crate) fn is_vcpu_inside(&self, vcpu: usize) -> bool {
        matches!(self.vcpus.get(vcpu), Some(Vcpu::Inside { .. }))
    }

    /// Asks every CPU that runs one of its vCPUs to come out.
    pub(crate) fn kick(&self, platform: &mut impl Platform) {
        for vcpu in &self.vcpus {
            if let Vcpu::Inside { cpu, .. } = *vcpu {
                platform.kick(cpu);
            }
        }
    }

    /// How often a vCPU aborted at `ipa` again, though no stage 2 has changed since (`changes` counts).
    pub(crate) fn count_repeats(&mut self, vcpu: usize, ipa: u64, changes: u64) -> u8 {
        let Some((last, count)) = self.aborts.get_mut(vcpu) else { return 0 };
        *count = if *last == (ipa, changes) { count.saturating_add(1) } else { 0 };
        *last = (ipa, changes);
        *count
    }

    /// Makes a virtual interrupt pending for a vCPU, and has that vCPU look: at once if it is inside, when the host runs it
    /// again if not. One that is pending already changes nothing, so that no partition floods the host with signals.
    pub(crate) fn pend(&mut self, platform: &mut impl Platform, vcpu: usize, interrupt: u32) {
        let bit = 1u32.checked_shl(interrupt).unwrap_or(0) & interrupt::ALL;
        let (Some(state), Some(pending)) = (self.vcpus.get(vcpu), self.pending.get_mut(vcpu)) else { return };
        if *pending & bit != bit {
            *pending |= bit;
            match *state {
                Vcpu::Inside { cpu, .. } => platform.kick(cpu),
                Vcpu::Ready => platform.signal_host(),
                Vcpu::Off => (),
            }
        }
    }

    /// Sends an interrupt to its own vCPUs, as a write of ICC_SGI1R_EL1 asks (GIC architecture 12.2). Names nobody else:
    /// vCPUs that it does not have, or that are off, get nothing.
    pub(crate) fn send_sgi(&mut self, platform: &mut impl Platform, sender: usize, value: u64) {
        /// Aff1, RS, Aff2, Aff3: all of its vCPUs have zero there.
        const AFFINITY: u64 = 0xFF << 16 | 0xFF << 32 | 0xFF << 48 | 0xF << 44;
        const ALL_BUT_SELF: u64 = 1 << 40;
        let number = (value >> 24 & 15) as u32;
        let count = self.vcpus_mut().len();
        let targets = match value & ALL_BUT_SELF {
            0 if value & AFFINITY == 0 => value & 0xFFFF,
            0 => 0,
            _ => !(1 << sender),
        };
        if number >= interrupt::IPI_COUNT {
            return;
        }
        for vcpu in (0..count).filter(|vcpu| targets >> vcpu & 1 == 1) {
            if self.vcpus.get(vcpu).is_some_and(|state| *state != Vcpu::Off) {
                self.pend(platform, vcpu, number);
            }
        }
    }

    /// Turns a vCPU off or makes it fresh: what its former life was owed by its siblings is void.
    pub(crate) fn forget_ipis(&mut self, vcpu: usize) {
        if let Some(pending) = self.pending.get_mut(vcpu) {
            *pending &= !interrupt::IPIS;
        }
    }

    /// Why it ended, if it did.
    pub(crate) fn end(&self) -> Option<End> {
        match self.state {
            State::Ended(end) | State::Dying(end) => Some(end),
            State::Created | State::Measuring(_) | State::Measured | State::Running => None,
        }
    }

    /// Ends it as stopped unless it has ended.
    pub(crate) fn stop(&mut self) {
        if self.end().is_none() {
            self.state = State::Ended(End::Stopped);
        }
    }

    /// Starts a measurement over all contents given so far.
    pub(crate) fn begin_measuring(&self) -> Measuring {
        let mut hash = Sha384::new();
        hash.update(MEASURE_LABEL);
        hash.update(self.manifest.as_bytes());
        let contents = self.manifest.regions.iter().zip(self.given);
        let remaining =
            contents.filter(|(region, _)| manifest::has_contents(region)).map(|(_, given)| given).sum();
        Measuring { hash, next: 0, remaining }
    }

    /// Records that pages were given or, with `recalled`, taken back. They may span regions.
    pub(crate) fn account(&mut self, ipa: u64, page_count: u64, recalled: bool) {
        let end = ipa + page_count * PAGE_SIZE;
        for (region, given) in self.manifest.regions.iter().zip(&mut self.given) {
            let first = ipa.max(region.ipa);
            let last = end.min(region.ipa + region.page_count * PAGE_SIZE);
            let pages = last.saturating_sub(first) / PAGE_SIZE;
            *given = if recalled { given.saturating_sub(pages) } else { *given + pages };
        }
        if recalled {
            self.pages_recalled += page_count;
        } else {
            self.pages_given += page_count;
        }
    }

    /// Its statistics as they travel.
    pub(crate) fn stats(&self, memory: &FlexMem) -> PartitionStats {
        let number = match self.state {
            State::Created => state::CREATED,
            State::Measuring(_) | State::Measured => state::MEASURED,
            State::Running => state::RUNNING,
            State::Ended(End::Finished(_)) => state::FINISHED,
            State::Ended(End::Crashed(_)) => state::CRASHED,
            State::Ended(End::Stopped) => state::STOPPED,
            State::Dying(_) => state::DYING,
        };
        let [_, end @ ..] = self.end().map_or([0; 4], End::reason);
        PartitionStats {
            id: u32::from(self.id()),
            state: number,
            name: self.manifest.name,
            vcpu_count: u64::from(self.manifest.vcpu_count),
            pages_given: self.pages_given,
            pages_recalled: self.pages_recalled,
            pages_shared: memory.partition_shared_count(self.slot),
            world_switches: self.world_switches,
            interrupts: self.interrupts,
            run_ticks: self.run_ticks,
            end,
            measurement: self.measurement,
        }
    }

    /// Its name, for log lines.
    pub(crate) fn name(&self) -> &str {
        let text = self.manifest.name.split(|b| *b == 0).next().unwrap_or_default();
        core::str::from_utf8(text).unwrap_or_default()
    }
}

/// The refusal of an operation that the partition's state does not allow.
pub(crate) fn state_refusal(partition: &Partition) -> service::Refusal {
    use hyp_abi::ffa::error::{ABORTED, DENIED};
    let code = if partition.end().is_some() { ABORTED } else { DENIED };
    service::Refusal { code, value: u64::from(partition.id()) }
}
