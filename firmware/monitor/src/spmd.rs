//! Which call goes where: the SPM dispatcher of FF-A 1.2 (Arm DEN0077A) as Trusted Firmware-A has it, so that one SPMC runs
//! above either. FF-A calls cross to the other world, with x0-x17; a few are answered here; everything unknown is refused.
//!
//! One [`Core`] for each core. What the SPMC has to answer before the normal world may go on is [`Owed`]; while it owes
//! something it cannot cross, so that nothing but that answer ends what the dispatcher began.

use hyp_abi::ffa;
use smccc::arch::{SMCCC_ARCH_FEATURES, SMCCC_VERSION};

/// Calls that `hyp_abi` does not name, since only dispatcher and SPMC speak them.
const NORMAL_WORLD_RESUME: u32 = 0x8400_007C;
const SECONDARY_EP_REGISTER: u32 = 0xC400_0087;
const MSG_SEND: u32 = 0x8400_006E;

/// SMCCC 1.2: x0-x17 are arguments and results.
const SMCCC_1_2: u64 = 0x1_0002;
/// SMCCC "not supported".
const SMCCC_NOT_SUPPORTED: u64 = -1_i64 as u64;
/// FF-A 1.2.
const FFA_1_2: u64 = 0x1_0002;
/// The SPMC's endpoint.
pub const SPMC: u64 = 0x8000;
/// The dispatcher's endpoint, and the first that it keeps for itself.
pub const SPMD: u64 = 0xffff;
const SPMD_FIRST: u64 = 0xffc0;
/// Secure endpoints have this bit.
const SECURE: u64 = 0x8000;
/// A framework message, in w2: PSCI, FFA_VERSION and its answer.
const FRAMEWORK: u64 = 1 << 31;
const FRAMEWORK_PSCI: u64 = FRAMEWORK;
const FRAMEWORK_VERSION: u64 = FRAMEWORK | 8;
const FRAMEWORK_VERSION_ANSWER: u64 = FRAMEWORK | 9;
/// A caller that has no live SVE state may say so in x0.
const SVE_HINT: u32 = 1 << 16;

/// Security state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum World {
    /// The SPMC and its partitions.
    Secure,
    /// Guard and host.
    Normal,
}

/// What the SPMC has to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    /// Nothing.
    Nothing,
    /// That it is up on this core: FFA_MSG_WAIT.
    Start,
    /// Its version.
    Version,
    /// That this core may go off.
    Off,
    /// That the interrupt is handled: FFA_NORMAL_WORLD_RESUME.
    Interrupt,
}

/// What follows from a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Back to the caller; x0-x17 are the answer.
    Back,
    /// To the other world, with x0-x17.
    Cross,
    /// To the normal world, where it stopped.
    Resume,
    /// The SPMC is up, or (false) failed to come up: the normal world starts.
    Started(bool),
    /// The SPMC's entry point on further cores, in x1.
    SecondaryEntry,
    /// A call of PSCI's.
    Psci,
    /// This core goes off.
    Off,
}

/// x0-x17.
pub type Registers = [u64; 18];

/// The dispatcher on one core.
#[derive(Clone, Debug)]
pub struct Core {
    owed: Owed,
    /// The SPMC runs on this core.
    spmc: bool,
}

impl Core {
    /// A core that is about to enter the SPMC for the first time.
    pub const fn new() -> Self {
        Self { owed: Owed::Start, spmc: false }
    }

    /// Decides on an SMC.
    pub fn call(&mut self, caller: World, x: &mut Registers) -> Step {
        // The identifier is w0.
        x[0] &= 0xffff_ffff;
        match x[0] as u32 & !SVE_HINT {
            SMCCC_VERSION => answer(x, SMCCC_1_2),
            SMCCC_ARCH_FEATURES => match x[1] as u32 {
                SMCCC_VERSION | SMCCC_ARCH_FEATURES => answer(x, 0),
                _ => answer(x, SMCCC_NOT_SUPPORTED),
            },
            0x8400_0000..=0x8400_001f | 0xc400_0000..=0xc400_001f if caller == World::Normal => Step::Psci,
            function @ (0x8400_0060..=0x8400_00ff | 0xc400_0060..=0xc400_00ff) => match caller {
                World::Secure => self.secure(function, x),
                World::Normal => self.normal(function, x),
            },
            _ => answer(x, SMCCC_NOT_SUPPORTED),
        }
    }

    /// An interrupt of the secure world's in the normal world: whether the SPMC takes it, with x0-x7.
    pub fn interrupt(&mut self, x: &mut Registers) -> bool {
        if self.spmc {
            self.owed = Owed::Interrupt;
            set(x, [ffa::INTERRUPT.into(), 0, 0, 0]);
        }
        self.spmc
    }

    /// This core is to go off: whether the SPMC is asked first, with x0-x17.
    pub fn off(&mut self, x: &mut Registers) -> bool {
        if self.spmc {
            self.owed = Owed::Off;
            *x = [0; 18];
            request(x, FRAMEWORK_PSCI, smccc::psci::PSCI_CPU_OFF.into());
        }
        self.spmc
    }

    fn normal(&mut self, function: u32, x: &mut Registers) -> Step {
        match function {
            ffa::VERSION if !self.spmc || x[1] & FRAMEWORK != 0 => {
                set(x, [u64::from(ffa::error::NOT_SUPPORTED as u32), 0, 0, 0]);
                Step::Back
            }
            _ if !self.spmc => refuse(x, ffa::error::NOT_SUPPORTED),
            ffa::VERSION => {
                self.owed = Owed::Version;
                request(x, FRAMEWORK_VERSION, x[1] & 0xffff_ffff);
                Step::Cross
            }
            ffa::ID_GET => succeed(x, 0),
            ffa::SPM_ID_GET => succeed(x, SPMC),
            ffa::MSG_SEND_DIRECT_REQ_32 | ffa::MSG_SEND_DIRECT_REQ_64 | ffa::MSG_SEND_DIRECT_REQ2 => {
                // Nobody in the normal world speaks for a secure endpoint, nor to the dispatcher.
                if sender(x) & SECURE != 0 || receiver(x) >= SPMD_FIRST {
                    return refuse(x, ffa::error::INVALID_PARAMETERS);
                }
                Step::Cross
            }
            function if crosses(function) || only_normal(function) => Step::Cross,
            _ => refuse(x, ffa::error::NOT_SUPPORTED),
        }
    }

    fn secure(&mut self, function: u32, x: &mut Registers) -> Step {
        match function {
            ffa::VERSION => {
                set(x, [FFA_1_2, 0, 0, 0]);
                Step::Back
            }
            ffa::FEATURES => {
                x[0] = ffa::SUCCESS_32.into();
                Step::Back
            }
            ffa::ID_GET => succeed(x, SPMC),
            ffa::SPM_ID_GET => succeed(x, SPMD),
            SECONDARY_EP_REGISTER => Step::SecondaryEntry,
            _ if self.owed != Owed::Nothing => self.settle(function, x),
            ffa::MSG_SEND_DIRECT_REQ_32 | ffa::MSG_SEND_DIRECT_REQ_64 | ffa::MSG_SEND_DIRECT_REQ2
                if receiver(x) >= SPMD_FIRST =>
            {
                refuse(x, ffa::error::DENIED)
            }
            ffa::MSG_WAIT
            | ffa::YIELD
            | ffa::INTERRUPT
            | ffa::MSG_SEND_DIRECT_REQ_32
            | ffa::MSG_SEND_DIRECT_REQ_64
            | ffa::MSG_SEND_DIRECT_REQ2 => Step::Cross,
            NORMAL_WORLD_RESUME => refuse(x, ffa::error::DENIED),
            function if crosses(function) => Step::Cross,
            _ => refuse(x, ffa::error::NOT_SUPPORTED),
        }
    }

    /// The SPMC's answer to what it owes; everything else is denied.
    fn settle(&mut self, function: u32, x: &mut Registers) -> Step {
        let is_answer = function == ffa::MSG_SEND_DIRECT_RESP_32 && sender(x) == SPMC && receiver(x) == SPMD;
        let step = match (self.owed, function) {
            (Owed::Start, ffa::MSG_WAIT) => Step::Started(true),
            (Owed::Start, ffa::ERROR) => Step::Started(false),
            (Owed::Interrupt, NORMAL_WORLD_RESUME) => Step::Resume,
            (Owed::Version, _) if is_answer => {
                let known = x[2] & 0xffff_ffff == FRAMEWORK_VERSION_ANSWER;
                let version = if known { x[3] as u32 } else { ffa::error::NOT_SUPPORTED as u32 };
                set(x, [version.into(), 0, 0, 0]);
                Step::Cross
            }
            (Owed::Off, _) if is_answer => Step::Off,
            _ => return refuse(x, ffa::error::DENIED),
        };
        self.owed = Owed::Nothing;
        if let Step::Started(spmc) = step {
            self.spmc = spmc;
        }
        step
    }
}

impl Default for Core {
    fn default() -> Self {
        Self::new()
    }
}

/// Calls that either world makes of the other.
fn crosses(function: u32) -> bool {
    matches!(
        function,
        ffa::ERROR
            | ffa::SUCCESS_32
            | ffa::SUCCESS_64
            | ffa::MSG_SEND_DIRECT_RESP_32
            | ffa::MSG_SEND_DIRECT_RESP_64
            | ffa::MSG_SEND_DIRECT_RESP2
            | MSG_SEND
            | ffa::MEM_DONATE_32
            | ffa::MEM_DONATE_64
            | ffa::MEM_LEND_32
            | ffa::MEM_LEND_64
            | ffa::MEM_SHARE_32
            | ffa::MEM_SHARE_64
            | ffa::MEM_RETRIEVE_REQ_32
            | ffa::MEM_RETRIEVE_REQ_64
            | ffa::MEM_RETRIEVE_RESP
            | ffa::MEM_RELINQUISH
            | ffa::MEM_RECLAIM
            | ffa::MEM_FRAG_RX
            | ffa::MEM_FRAG_TX
    )
}

/// Calls that only the normal world makes.
fn only_normal(function: u32) -> bool {
    matches!(
        function,
        ffa::FEATURES
            | ffa::RX_RELEASE
            | ffa::RX_ACQUIRE
            | ffa::RXTX_MAP_32
            | ffa::RXTX_MAP_64
            | ffa::RXTX_UNMAP
            | ffa::PARTITION_INFO_GET
            | ffa::PARTITION_INFO_GET_REGS
            | ffa::NOTIFICATION_BITMAP_CREATE
            | ffa::NOTIFICATION_BITMAP_DESTROY
            | ffa::NOTIFICATION_BIND
            | ffa::NOTIFICATION_UNBIND
            | ffa::NOTIFICATION_SET
            | ffa::NOTIFICATION_GET
            | ffa::NOTIFICATION_INFO_GET_32
            | ffa::NOTIFICATION_INFO_GET_64
            | ffa::MSG_SEND2
            | ffa::RUN
    )
}

fn sender(x: &Registers) -> u64 {
    x[1] >> 16 & 0xffff
}

fn receiver(x: &Registers) -> u64 {
    x[1] & 0xffff
}

/// A message of the dispatcher's own to the SPMC; x8-x17 stay.
fn request(x: &mut Registers, message: u64, argument: u64) {
    set(x, [ffa::MSG_SEND_DIRECT_REQ_32.into(), SPMD << 16 | SPMC, message, argument]);
}

fn refuse(x: &mut Registers, code: i32) -> Step {
    set(x, [ffa::ERROR.into(), 0, u64::from(code as u32), 0]);
    Step::Back
}

/// Answers success to this core's caller.
pub fn succeed(x: &mut Registers, value: u64) -> Step {
    set(x, [ffa::SUCCESS_32.into(), 0, value, 0]);
    Step::Back
}

/// Answers the registration of an entry point.
pub fn answer_secondary_entry(x: &mut Registers, taken: bool) {
    if taken {
        set(x, [ffa::SUCCESS_64.into(), 0, 0, 0]);
    } else {
        refuse(x, ffa::error::INVALID_PARAMETERS);
    }
}

fn answer(x: &mut Registers, value: u64) -> Step {
    x[0] = value;
    Step::Back
}

/// Sets x0-x3, and x4-x7 to zero.
fn set(x: &mut Registers, values: [u64; 4]) {
    x[..4].copy_from_slice(&values);
    x[4..8].fill(0);
}

#[cfg(test)]
mod tests;
