//! A partition's virtual timer and virtual interrupt interface (GICv3 list registers).
//!
//! What a vCPU is owed becomes a pending interrupt of its own CPU interface before it is entered; what finds no list
//! register waits for the next entry, which a maintenance interrupt brings about as soon as there is room.

use super::sysreg::{mrs, msr, register};

pub const TIMER_ENABLE: u64 = 1;
pub const TIMER_IMASK: u64 = 2;

/// Interrupt number of the virtual timer (a PPI fixed by the Base System Architecture).
const VIRTUAL_TIMER: u32 = 27;
const LR_PENDING: u64 = 1 << 62;
const LR_STATE: u64 = 3 << 62;
const LR_GROUP1: u64 = 1 << 60;
const PRIORITY: u64 = 0xa0;
const LR_PRIORITY: u64 = PRIORITY << 48;
const LR_NUMBER: u64 = 0xffff_ffff;
const HCR_EN: u64 = 1 << 0;
const HCR_UIE: u64 = 1 << 1;
const VMCR_VENG1: u64 = 1 << 1;

/// List registers that are used; every GICv3 that this runs on has at least one.
const LISTS: usize = 4;

/// One vCPU's timer and interrupts while it does not run.
#[derive(Clone, Copy)]
pub struct Interrupts {
    ctl: u64,
    cval: u64,
    loaded: u64,
    lists: [u64; LISTS],
    /// Owed, without a list register.
    waiting: u32,
    /// Pending ones that a wait has returned for.
    told: u32,
    vmcr: u64,
    ap0r: u64,
    ap1r: u64,
}

/// How many of [`LISTS`] this CPU has.
fn list_count() -> usize {
    (mrs!(register!(ich_vtr_el2)) as usize & 0x1f) + 1
}

impl Interrupts {
    /// Nothing pending, timer off.
    pub const RESET: Self = Self {
        ctl: 0,
        cval: 0,
        loaded: 0,
        lists: [0; LISTS],
        waiting: 0,
        told: 0,
        vmcr: 0,
        ap0r: 0,
        ap1r: 0,
    };

    fn armed(&self) -> bool {
        self.ctl & (TIMER_ENABLE | TIMER_IMASK) == TIMER_ENABLE
    }

    /// The counter value at which the timer fires, if it is armed.
    pub fn deadline(&self) -> Option<u64> {
        self.armed().then_some(self.cval)
    }

    /// Moves what waits into list registers. A number that is there already, and not taken yet, stays one interrupt.
    fn fill_lists(&mut self, count: usize) {
        let mut left = self.waiting;
        while left != 0 {
            let number = 31 - left.leading_zeros(); // the timer first
            left &= !(1 << number);
            let holds = |lr: &&mut u64| **lr & LR_STATE != 0 && **lr & LR_NUMBER == u64::from(number);
            let place = match self.lists.iter_mut().find(holds) {
                Some(place) => Some(place),
                None => self.lists.iter_mut().take(count).find(|lr| **lr & LR_STATE == 0),
            };
            if let Some(place) = place {
                let active = *place & LR_STATE;
                *place = active | LR_PENDING | LR_GROUP1 | LR_PRIORITY | u64::from(number);
                self.waiting &= !(1 << number);
                self.told &= !(1 << number);
            }
        }
    }

    /// Loads the timer and the interface, with new interrupts `taken`. A due timer becomes a pending virtual interrupt,
    /// and its own line is masked as long as that is not handled: the physical interrupt belongs to the host.
    pub fn restore(&mut self, taken: u32) {
        let mut ctl = self.ctl & (TIMER_ENABLE | TIMER_IMASK);
        self.waiting = self.waiting & !(1 << VIRTUAL_TIMER) | taken;
        if self.armed() && mrs!("cntvct_el0") >= self.cval {
            ctl |= TIMER_IMASK;
            self.waiting |= 1 << VIRTUAL_TIMER;
        } else {
            // The timer's line is a level: what the partition did not take before it fell is gone.
            let fallen = LR_PENDING | LR_GROUP1 | LR_PRIORITY | u64::from(VIRTUAL_TIMER);
            self.lists.iter_mut().filter(|lr| **lr == fallen).for_each(|lr| *lr = 0);
        }
        let count = list_count();
        self.fill_lists(count);
        self.loaded = ctl;
        msr!("cntv_cval_el0", self.cval);
        msr!("cntv_ctl_el0", ctl);
        msr!(register!(ich_vmcr_el2), self.vmcr);
        msr!(register!(ich_ap0r0_el2), self.ap0r);
        msr!(register!(ich_ap1r0_el2), self.ap1r);
        write_lists(&self.lists);
        // With a single list register this condition would hold all the time; then the next exit must do.
        let underflow = if self.waiting != 0 && count > 1 { HCR_UIE } else { 0 };
        msr!(register!(ich_hcr_el2), HCR_EN | underflow);
    }

    /// Takes the timer and the interface away again.
    pub fn save(&mut self) {
        let ctl = mrs!("cntv_ctl_el0") & (TIMER_ENABLE | TIMER_IMASK);
        if ctl != self.loaded {
            self.ctl = ctl; // the partition wrote it; otherwise the mask may be ours
        }
        self.cval = mrs!("cntv_cval_el0");
        msr!("cntv_ctl_el0", 0);
        self.lists = read_lists();
        self.vmcr = mrs!(register!(ich_vmcr_el2));
        self.ap0r = mrs!(register!(ich_ap0r0_el2));
        self.ap1r = mrs!(register!(ich_ap1r0_el2));
        msr!(register!(ich_hcr_el2), 0);
        write_lists(&[0; LISTS]);
    }

    /// Whether WFI does not wait: for what the CPU interface signals, and once for anything else that is pending. So no vCPU
    /// sleeps through what its siblings send it where it has no virtual interface: at S-EL1 in QEMU (10.0).
    pub fn wakes(&mut self) -> bool {
        let pending = self.lists.iter().filter(|lr| **lr & LR_STATE == LR_PENDING);
        let all = pending.fold(self.waiting, |all, lr| all | 1u32 << (lr & 31));
        let news = all & !self.told & !(1 << VIRTUAL_TIMER);
        self.told |= news;
        self.signalled() || news != 0
    }

    /// Whether an interrupt is pending that the CPU interface signals.
    fn signalled(&self) -> bool {
        let is_pending = |lr: &u64| *lr & LR_STATE == LR_PENDING;
        self.vmcr & VMCR_VENG1 != 0
            && PRIORITY < self.vmcr >> 24
            && self.ap0r | self.ap1r == 0
            && self.lists.iter().any(is_pending)
    }

    /// Hands back what policy made pending and the partition could have taken, but did not.
    pub fn unseen(&mut self) -> u32 {
        if !self.signalled() {
            return 0;
        }
        let mut bits = self.waiting & !(1 << VIRTUAL_TIMER);
        self.waiting &= 1 << VIRTUAL_TIMER;
        for lr in &mut self.lists {
            let number = (*lr & LR_NUMBER) as u32;
            if *lr & LR_STATE == LR_PENDING && number < VIRTUAL_TIMER {
                bits |= 1 << number;
                *lr = 0;
            }
        }
        bits
    }
}

/// Makes what reads, and writes, the list registers that there are; the others are undefined instructions.
macro_rules! lists {
    ($($n:literal: $register:ident),*) => {
        fn read_lists() -> [u64; LISTS] {
            let count = list_count();
            [$(if $n < count { mrs!(register!($register)) } else { 0 }),*]
        }

        fn write_lists(lists: &[u64; LISTS]) {
            let count = list_count();
            $(if $n < count { msr!(register!($register), lists[$n]) })*
        }
    };
}

lists!(0: ich_lr0_el2, 1: ich_lr1_el2, 2: ich_lr2_el2, 3: ich_lr3_el2);
