//! Which call goes where: the SPM dispatcher of FF-A 1.2 (Arm DEN0077A) as Trusted Firmware-A has it, so that one SPMC runs
//! above either. FF-A calls cross to the other world, with x0-x17; a few are answered here.
//!
//! What the normal world may not say is refused here; what this dispatcher does not know is the SPMC's to refuse.
//!
//! One [`Core`] for each core. What the SPMC has to answer before the normal world may go on is [`Owed`]; while it owes
//! something it cannot cross, so that nothing but that answer ends what the dispatcher began.

use hyp_abi::ffa;
use smccc::arch::{SMCCC_ARCH_FEATURES, SMCCC_VERSION};

/// Calls that `hyp_abi` does not name, since only dispatcher and SPMC speak them.
const NORMAL_WORLD_RESUME: u32 = 0x8400_007C;
const SECONDARY_EP_REGISTER: u32 = 0xC400_0087;

/// SMCCC 1.2: x0-x17 are arguments and results.
const SMCCC_1_2: u64 = 0x1_0002;
/// SMCCC "not supported".
const SMCCC_NOT_SUPPORTED: u64 = -1_i64 as u64;
/// FF-A 1.2.
const FFA_1_2: u64 = 0x1_0002;
/// FFA_VERSION: not supported.
const NO_VERSION: u64 = ffa::error::NOT_SUPPORTED as u32 as u64;
/// The SPMC's endpoint.
pub const SPMC: u64 = 0x8000;
/// The dispatcher's endpoint, and the first that it keeps for itself.
pub const SPMD: u64 = 0xffff;
const SPMD_FIRST: u64 = 0xffc0;
/// Secure endpoints have this bit.
const SECURE: u64 = 0x8000;
/// A framework message, in w2: PSCI's as it is; FFA_VERSION and its answer.
const FRAMEWORK: u64 = 1 << 31;
const FRAMEWORK_VERSION: u64 = FRAMEWORK | 8;
const FRAMEWORK_VERSION_ANSWER: u64 = FRAMEWORK | 9;

/// Security state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// The SPMC and its partitions.
    Secure,
    /// Guard and host.
    Normal,
}

/// What the SPMC has to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owed {
    /// That it is up on this core: FFA_MSG_WAIT.
    #[default]
    Start,
    /// Nothing.
    Nothing,
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
    /// To the normal world, where it stopped or is to start.
    Resume,
    /// The SPMC's entry point on further cores, in x1.
    SecondaryEntry,
    /// A call of PSCI's.
    Psci,
    /// This core goes off.
    Off,
}

/// x0-x17.
pub type Registers = [u64; 18];

/// The dispatcher on one core, which at first is about to enter the SPMC.
#[derive(Clone, Debug, Default)]
pub struct Core {
    owed: Owed,
}

impl Core {
    /// Decides on an SMC.
    pub fn call(&mut self, caller: World, x: &mut Registers) -> Step {
        // The identifier is w0.
        x[0] &= 0xffff_ffff;
        match x[0] as u32 {
            SMCCC_VERSION => only(x, SMCCC_1_2),
            SMCCC_ARCH_FEATURES if [SMCCC_VERSION, SMCCC_ARCH_FEATURES].contains(&(x[1] as u32)) => {
                only(x, 0)
            }
            0x8400_0000..=0x8400_001f | 0xc400_0000..=0xc400_001f if caller == World::Normal => Step::Psci,
            function @ (0x8400_0060..=0x8400_00ff | 0xc400_0060..=0xc400_00ff) => match caller {
                World::Secure => self.secure(function, x),
                World::Normal => self.normal(function, x),
            },
            _ => only(x, SMCCC_NOT_SUPPORTED),
        }
    }

    /// An interrupt of the secure world's in the normal world: the SPMC takes it, with x0-x7.
    pub fn interrupt(&mut self, x: &mut Registers) {
        self.owed = Owed::Interrupt;
        set(x, [ffa::INTERRUPT.into(), 0, 0, 0]);
    }

    /// This core is to go off: the SPMC is asked first, with x0-x17.
    pub fn off(&mut self, x: &mut Registers) {
        self.owed = Owed::Off;
        *x = [0; 18];
        request(x, FRAMEWORK, smccc::psci::PSCI_CPU_OFF.into());
    }

    fn normal(&mut self, function: u32, x: &mut Registers) -> Step {
        match function {
            ffa::VERSION if x[1] & FRAMEWORK != 0 => set(x, [NO_VERSION, 0, 0, 0]),
            ffa::VERSION => {
                self.owed = Owed::Version;
                request(x, FRAMEWORK_VERSION, x[1] & 0xffff_ffff);
                Step::Cross
            }
            ffa::ID_GET => succeed(x, 0),
            ffa::SPM_ID_GET => succeed(x, SPMC),
            // Nobody in the normal world speaks for a secure endpoint, nor to the dispatcher.
            ffa::MSG_SEND_DIRECT_REQ_32 | ffa::MSG_SEND_DIRECT_REQ_64 | ffa::MSG_SEND_DIRECT_REQ2
                if sender(x) & SECURE != 0 || receiver(x) >= SPMD_FIRST =>
            {
                refuse(x, ffa::error::INVALID_PARAMETERS)
            }
            // What only an SPMC or a partition says.
            ffa::MSG_WAIT
            | ffa::YIELD
            | ffa::INTERRUPT
            | NORMAL_WORLD_RESUME
            | SECONDARY_EP_REGISTER
            | ffa::CONSOLE_LOG_32
            | ffa::CONSOLE_LOG_64 => refuse(x, ffa::error::NOT_SUPPORTED),
            // The rest is for the SPMC to know.
            _ => Step::Cross,
        }
    }

    fn secure(&mut self, function: u32, x: &mut Registers) -> Step {
        match function {
            ffa::VERSION => set(x, [FFA_1_2, 0, 0, 0]),
            ffa::FEATURES => only(x, ffa::SUCCESS_32.into()),
            ffa::ID_GET => succeed(x, SPMC),
            ffa::SPM_ID_GET => succeed(x, SPMD),
            SECONDARY_EP_REGISTER => Step::SecondaryEntry,
            _ if self.owed != Owed::Nothing => self.settle(function, x),
            NORMAL_WORLD_RESUME => refuse(x, ffa::error::DENIED),
            _ => Step::Cross,
        }
    }

    /// The SPMC's answer to what it owes; everything else is denied.
    fn settle(&mut self, function: u32, x: &mut Registers) -> Step {
        let is_answer = function == ffa::MSG_SEND_DIRECT_RESP_32 && sender(x) == SPMC && receiver(x) == SPMD;
        let step = match (self.owed, function) {
            (Owed::Start, ffa::MSG_WAIT) | (Owed::Interrupt, NORMAL_WORLD_RESUME) => Step::Resume,
            (Owed::Version, _) if is_answer => {
                let is_version = x[2] & 0xffff_ffff == FRAMEWORK_VERSION_ANSWER;
                set(x, [if is_version { x[3] & 0xffff_ffff } else { NO_VERSION }, 0, 0, 0]);
                Step::Cross
            }
            (Owed::Off, _) if is_answer => Step::Off,
            _ => return refuse(x, ffa::error::DENIED),
        };
        self.owed = Owed::Nothing;
        step
    }
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
    set(x, [ffa::ERROR.into(), 0, u64::from(code as u32), 0])
}

fn succeed(x: &mut Registers, value: u64) -> Step {
    set(x, [ffa::SUCCESS_32.into(), 0, value, 0])
}

/// Answers the registration of an entry point.
pub fn answer_secondary_entry(x: &mut Registers, is_taken: bool) -> Step {
    if is_taken {
        set(x, [ffa::SUCCESS_64.into(), 0, 0, 0])
    } else {
        refuse(x, ffa::error::INVALID_PARAMETERS)
    }
}

/// An answer in x0 alone, the rest as it was.
fn only(x: &mut Registers, value: u64) -> Step {
    x[0] = value;
    Step::Back
}

/// Sets x0-x3, and x4-x7 to zero.
fn set(x: &mut Registers, values: [u64; 4]) -> Step {
    x[..4].copy_from_slice(&values);
    x[4..8].fill(0);
    Step::Back
}

#[cfg(test)]
mod tests;
