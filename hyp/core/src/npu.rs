//! Flex-NPU: who owns the NPU, and the switch from one owner to the next (I5).
//!
//! One party owns it: its registers are in that party's stage 2 and in nobody else's, and its DMA stream walks that party's
//! memory. A switch costs the same whatever either side's memory holds: it moves one table entry, and one stream.
//!
//! ```text
//!             ACQUIRE, nobody else holds it, or its time is up: switch
//!   free ────────────────────────────────────────────────► held by the caller
//!     ▲        RELEASE; end of a partition (back to the host)       │ asked for: after its SLICE it is `wanted`,
//!     └─────────────────────────────────────────────────────────────┘ with GRACE to reach a job boundary
//! ```
//! A free NPU stays with its last owner until somebody asks; one that was asked for is kept for who asked, for a while. Who
//! does not release it in time loses it in the middle of a job: the device is reset, the job is lost, and jobs may be
//! repeated.

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

/// Milliseconds that who holds the NPU may use it before others are heard, so that two who share it do not spend their time
/// with switches.
const SLICE: u64 = 50;
/// Milliseconds that it then has to the end of its job.
const GRACE: u64 = 200;
/// Milliseconds that an NPU that was released is kept for who asked for it.
const RESERVE: u64 = 20;

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
    /// When it was acquired or released, in ticks.
    since: u64,
    request: Option<Request>,
    stats: NpuStats,
}

/// What a switch works with.
pub(crate) struct Context<'a, P> {
    pub platform: &'a mut P,
    pub memory: &'a mut FlexMem,
    pub knobs: &'a Knobs,
}

fn ticks<P: Platform>(cx: &Context<'_, P>, milliseconds: u64) -> u64 {
    cx.platform.ticks_per_second().saturating_mul(milliseconds) / 1000
}

impl Npu {
    /// No NPU.
    pub(crate) const NONE: Self =
        Self { layout: None, owner: None, held: false, since: 0, request: None, stats: NpuStats::NONE };

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
            op::NPU_RELEASE => self.release(&cx, party),
            _ => Ok(()),
        };
        Some(done.map(|()| self.state(&cx, party, layout)))
    }

    fn state<P: Platform>(&self, cx: &Context<'_, P>, party: Party, layout: NpuLayout) -> Results {
        let memory = &cx.memory;
        let yours = self.owner == Some(party);
        let slice_end = self.since.saturating_add(ticks(cx, SLICE));
        let wanted = self.other_request(party).is_some() && cx.platform.ticks() >= slice_end;
        let mut flags = 0;
        flags |= if yours && self.held { npu::HELD } else { 0 };
        flags |= if yours && self.held && wanted { npu::WANTED } else { 0 };
        let window = memory.window().map(|window| (window.ipa(party).0, window.range().page_count()));
        let (ipa, page_count) = window.unwrap_or_default();
        let shape = u64::from(layout.notify_multiplier) | page_count << 32;
        [flags | self.stats.switches << npu::GENERATION_SHIFT, ipa, layout.offsets, shape]
    }

    fn acquire<P: Platform>(&mut self, cx: &mut Context<'_, P>, party: Party) -> Result<(), Refusal> {
        let now = cx.platform.ticks();
        if self.owner == Some(party) && self.held {
            return Ok(());
        }
        let reserved = self.since.saturating_add(ticks(cx, RESERVE));
        if self.held {
            self.ask(cx, party)?;
            self.stats.forced += 1;
        } else if self.other_request(party).is_some() && now < reserved {
            return Err(Refusal { code: BUSY, value: reserved - now });
        }
        if self.owner != Some(party) {
            self.switch(cx, party)?;
        }
        (self.held, self.since, self.request) = (true, now, None);
        Ok(())
    }

    fn other_request(&self, party: Party) -> Option<Request> {
        self.request.filter(|request| request.party != party)
    }

    /// Notes that a party wants what another holds; refuses until the other's time is up.
    fn ask<P: Platform>(&mut self, cx: &Context<'_, P>, party: Party) -> Result<(), Refusal> {
        let (now, grace) = (cx.platform.ticks(), ticks(cx, GRACE));
        let slice_end = self.since.saturating_add(ticks(cx, SLICE));
        let end = |request: &Request| request.since.max(slice_end).saturating_add(grace);
        // Who asked and does not come back keeps nobody else from asking.
        let lapsed = |request: &Request| now >= end(request).saturating_add(grace);
        self.request = self.request.filter(|request| request.party == party || !lapsed(request));
        let request = *self.request.get_or_insert(Request { party, since: now });
        let left = end(&request).saturating_sub(now);
        if request.party == party && left == 0 {
            return Ok(());
        }
        Err(Refusal { code: BUSY, value: left.max(1) })
    }

    fn release<P: Platform>(&mut self, cx: &Context<'_, P>, party: Party) -> Result<(), Refusal> {
        if self.owner != Some(party) || !self.held {
            return Err(Refusal { code: DENIED, value: 0 });
        }
        (self.held, self.since) = (false, cx.platform.ticks());
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
