//! Flex-NPU: who owns the NPU, and the switch from one owner to the next (I5).
//!
//! One party owns it: its registers are in that party's stage 2 and in nobody else's, and its DMA stream walks that party's
//! memory. A switch costs the same whatever either side's memory holds: it moves one table entry, and one stream.
//!
//! ```text
//!             ACQUIRE, nobody else holds it, or its time is up: switch
//!   free ────────────────────────────────────────────────► held by the caller
//!     ▲        RELEASE; end of a partition (back to the host)       │ asked for: `wanted`, and
//!     └─────────────────────────────────────────────────────────────┘ GRACE to reach a job boundary
//! ```
//! A free NPU stays with its last owner until somebody asks. Who does not release it in time loses it in the middle of a
//! job: the device is reset, the job is lost, and jobs may be repeated.

use crate::Platform;
use crate::knob::{self, Knobs};
use crate::service::{Refusal, Results};
use hyp_abi::ffa::error::{ABORTED, BUSY, DENIED, NOT_SUPPORTED};
use hyp_abi::service::{npu, op};
use hyp_abi::stats::{NpuStats, SwitchCost};
use stage2::{FlexMem, Pa, Party};

/// What the arch layer does to the NPU and its stream. Each is complete on return, and bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NpuStep {
    /// Aborts what it does and brings it to its power-on state. Its stream is still attached.
    Reset,
    /// Its stream aborts; nothing of that VMID is left in the SMMU.
    Detach {
        /// VMID of the owner that loses it.
        vmid: u16,
    },
    /// Its stream walks these tables.
    Attach {
        /// VMID of the new owner.
        vmid: u16,
        /// Root of the stage 2 that its DMA sees.
        root: Pa,
    },
    /// Whether its interrupt reaches the host's interrupt controller.
    Interrupt {
        /// It does.
        enabled: bool,
    },
}

/// The NPU did not do what a step asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NpuFault;

/// Where its registers are in the window, as they travel (x6 and x7 of [`op::NPU_STATE`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NpuLayout {
    /// Byte offsets of common configuration, interrupt status, device configuration and notifications, 16 bits each.
    pub offsets: u64,
    /// Distance of two queues' notification registers, in bytes.
    pub notify_multiplier: u32,
}

/// Milliseconds that an owner has from the request of another to the end of its job.
const GRACE_MILLISECONDS: u64 = 50;

/// Somebody who waits for the NPU.
#[derive(Clone, Copy, Debug)]
struct Request {
    party: Party,
    since: u64,
}

/// The NPU.
#[derive(Debug)]
pub(crate) struct Npu {
    layout: Option<NpuLayout>,
    /// Nobody: it did not come back from a reset.
    owner: Option<Party>,
    /// Whether the owner uses it.
    held: bool,
    request: Option<Request>,
    stats: NpuStats,
}

/// What a switch works with.
pub(crate) struct Context<'a, P> {
    pub platform: &'a mut P,
    pub memory: &'a mut FlexMem,
    pub knobs: &'a Knobs,
}

impl Npu {
    /// No NPU.
    pub(crate) const NONE: Self =
        Self { layout: None, owner: None, held: false, request: None, stats: NpuStats::NONE };

    /// Boot: there is one, in its power-on state, nobody's. The window is made.
    pub(crate) fn install<P: Platform>(&mut self, mut cx: Context<'_, P>, layout: NpuLayout) {
        self.layout = Some(layout);
        let _ = self.switch(&mut cx, Party::Host);
    }

    /// Carries out an operation of a party; none: it is not about the NPU.
    pub(crate) fn operation<P: Platform>(
        &mut self,
        mut cx: Context<'_, P>,
        party: Party,
        operation: u64,
    ) -> Option<Result<Results, Refusal>> {
        if !(op::NPU_STATE..=op::NPU_RELEASE).contains(&operation) {
            return None;
        }
        let absent = Refusal { code: NOT_SUPPORTED, value: 0 };
        let Some(layout) = self.layout else { return Some(Err(absent)) };
        let done = match operation {
            op::NPU_ACQUIRE => self.acquire(&mut cx, party),
            op::NPU_RELEASE => self.release(party),
            _ => Ok(()),
        };
        Some(done.map(|()| self.state(cx.memory, party, layout)))
    }

    fn state(&self, memory: &FlexMem, party: Party, layout: NpuLayout) -> Results {
        let yours = self.owner == Some(party);
        let wanted = self.request.is_some_and(|request| request.party != party);
        let mut flags = 0;
        flags |= if yours && self.held { npu::HELD } else { 0 };
        flags |= if yours && self.held && wanted { npu::WANTED } else { 0 };
        let window = memory.window().map(|window| (window.ipa(party).0, window.range().page_count()));
        let (ipa, page_count) = window.unwrap_or_default();
        let shape = u64::from(layout.notify_multiplier) | page_count << 32;
        [flags | self.stats.switches << npu::GENERATION_SHIFT, ipa, layout.offsets, shape]
    }

    fn acquire<P: Platform>(&mut self, cx: &mut Context<'_, P>, party: Party) -> Result<(), Refusal> {
        if self.owner != Some(party) {
            if self.held {
                self.ask(cx, party)?;
                self.stats.forced += 1;
            }
            self.switch(cx, party)?;
        }
        self.held = true;
        Ok(())
    }

    /// Notes that a party wants what another holds; refuses until the other's time is up.
    fn ask<P: Platform>(&mut self, cx: &Context<'_, P>, party: Party) -> Result<(), Refusal> {
        let now = cx.platform.ticks();
        let grace = cx.platform.ticks_per_second().saturating_mul(GRACE_MILLISECONDS) / 1000;
        // Who asked and does not come back keeps nobody else from asking.
        let expired = |request: &Request| now.saturating_sub(request.since) >= grace.saturating_mul(2);
        self.request = self.request.filter(|request| request.party == party || !expired(request));
        let request = *self.request.get_or_insert(Request { party, since: now });
        let left = grace.saturating_sub(now.saturating_sub(request.since));
        if request.party == party && left == 0 {
            return Ok(());
        }
        Err(Refusal { code: BUSY, value: left.max(1) })
    }

    fn release(&mut self, party: Party) -> Result<(), Refusal> {
        if self.owner != Some(party) || !self.held {
            return Err(Refusal { code: DENIED, value: 0 });
        }
        self.held = false;
        Ok(())
    }

    /// A party ends: the NPU goes back to the host, before any page of the party does.
    pub(crate) fn leave<P: Platform>(&mut self, mut cx: Context<'_, P>, party: Party) {
        if self.request.is_some_and(|request| request.party == party) {
            self.request = None;
        }
        if self.owner == Some(party) {
            self.held = false;
            // A fault leaves it with nobody.
            let _ = self.switch(&mut cx, Party::Host);
        }
    }

    /// Whether a partition owns it: then the host finds no device where it is.
    pub(crate) fn is_partitions(&self) -> bool {
        self.owner != Some(Party::Host)
    }

    /// The switch: stop intake, drain and reset, cut the stream, attach it, interrupt, start intake.
    fn switch<P: Platform>(&mut self, cx: &mut Context<'_, P>, to: Party) -> Result<(), Refusal> {
        let fault = |_| Refusal { code: ABORTED, value: 0 };
        let (vmid, root) = cx.memory.stream_root(to)?;
        let mut cost = SwitchCost::default();
        let mut at = cx.platform.ticks();
        let mut lap = |platform: &P, part: &mut u64| {
            let now = platform.ticks();
            *part = now.saturating_sub(core::mem::replace(&mut at, now));
        };
        let from = self.owner.take();
        self.held = false;
        self.request = self.request.filter(|request| request.party != to);
        if let Some(from) = from {
            cx.memory.window_close(cx.platform, from)?;
        }
        lap(cx.platform, &mut cost.close);
        self.stats.jobs += cx.platform.npu_jobs();
        let reset = match cx.knobs.skips(knob::NPU_RESET) {
            false => cx.platform.npu(NpuStep::Reset),
            true => Ok(()),
        };
        lap(cx.platform, &mut cost.reset);
        if let Some((vmid, _)) = from.and_then(|from| cx.memory.stream_root(from).ok()) {
            cx.platform.npu(NpuStep::Detach { vmid }).map_err(fault)?;
        }
        // One that does not come back reaches nothing and is nobody's.
        reset.map_err(fault)?;
        lap(cx.platform, &mut cost.detach);
        cx.platform.npu(NpuStep::Attach { vmid, root }).map_err(fault)?;
        lap(cx.platform, &mut cost.attach);
        let enabled = to == Party::Host || cx.knobs.skips(knob::NPU_INTERRUPT);
        cx.platform.npu(NpuStep::Interrupt { enabled }).map_err(fault)?;
        cx.memory.window_open(cx.platform, to)?;
        lap(cx.platform, &mut cost.open);
        self.owner = Some(to);
        self.stats.switches += 1;
        self.stats.last = cost;
        self.stats.total.add(&cost);
        Ok(())
    }

    /// Statistics since boot.
    pub(crate) fn stats<P: Platform>(&self, platform: &P) -> NpuStats {
        let mut stats = self.stats;
        if self.layout.is_some() {
            stats.jobs += platform.npu_jobs();
        }
        stats
    }
}
