//! Calls as the SPMC, the guard and a hostile host make them.

use super::*;

const DENIED: u64 = ffa::error::DENIED as u32 as u64;
const NOT_SUPPORTED: u64 = ffa::error::NOT_SUPPORTED as u32 as u64;
const INVALID: u64 = ffa::error::INVALID_PARAMETERS as u32 as u64;
const GUARD_TO_SPMC: u64 = 0x7fff << 16 | SPMC;
const SPMC_TO_SPMD: u64 = SPMC << 16 | SPMD;

/// A core whose SPMC is up.
fn running() -> Core {
    let mut core = Core::default();
    assert_eq!(core.call(World::Secure, &mut registers(ffa::MSG_WAIT, [0; 3])), Step::Resume);
    core
}

/// x0-x3 as given, the rest recognizable.
fn registers(function: u32, arguments: [u64; 3]) -> Registers {
    let mut x = core::array::from_fn(|index| 100 + index as u64);
    x[0] = function.into();
    x[1..4].copy_from_slice(&arguments);
    x
}

fn call(core: &mut Core, caller: World, function: u32, arguments: [u64; 3]) -> (Step, Registers) {
    let mut x = registers(function, arguments);
    (core.call(caller, &mut x), x)
}

fn refused(core: &mut Core, caller: World, function: u32, arguments: [u64; 3], code: u64) {
    let (step, x) = call(core, caller, function, arguments);
    assert_eq!((step, &x[..4]), (Step::Back, &[ffa::ERROR.into(), 0, code, 0][..]), "{function:#x}");
}

#[test]
fn the_spmc_starts() {
    let mut core = Core::default();
    refused(&mut core, World::Secure, ffa::MSG_SEND_DIRECT_REQ_64, [SPMC << 16, 0, 0], DENIED);
    refused(&mut core, World::Secure, NORMAL_WORLD_RESUME, [0; 3], DENIED);
    for (function, value) in [(ffa::ID_GET, SPMC), (ffa::SPM_ID_GET, SPMD)] {
        let (step, x) = call(&mut core, World::Secure, function, [0; 3]);
        assert_eq!((step, x[0], x[2]), (Step::Back, ffa::SUCCESS_32.into(), value));
    }
    assert_eq!(call(&mut core, World::Secure, ffa::VERSION, [FFA_1_2, 0, 0]).1[0], FFA_1_2);
    let (step, x) = call(&mut core, World::Secure, SECONDARY_EP_REGISTER, [0xe10_1000, 0, 0]);
    assert_eq!((step, x[1]), (Step::SecondaryEntry, 0xe10_1000));
    refused(&mut core, World::Secure, ffa::ERROR, [0; 3], DENIED);
    assert_eq!(call(&mut core, World::Secure, ffa::MSG_WAIT, [0; 3]).0, Step::Resume);
}

#[test]
fn calls_cross_with_every_register() {
    let mut core = running();
    let (step, x) = call(&mut core, World::Normal, ffa::MSG_SEND_DIRECT_REQ_64, [GUARD_TO_SPMC, 2, 3]);
    assert_eq!(step, Step::Cross);
    assert_eq!(x, registers(ffa::MSG_SEND_DIRECT_REQ_64, [GUARD_TO_SPMC, 2, 3]));
    let (step, _) = call(&mut core, World::Secure, ffa::MSG_SEND_DIRECT_RESP_64, [SPMC << 16 | 0x7fff, 0, 0]);
    assert_eq!(step, Step::Cross);
    for function in
        [ffa::RUN, ffa::FEATURES, ffa::MEM_SHARE_64, ffa::NOTIFICATION_INFO_GET_64, ffa::MSG_SEND2]
    {
        assert_eq!(call(&mut core, World::Normal, function, [0; 3]).0, Step::Cross, "{function:#x}");
    }
    for function in [ffa::MSG_WAIT, ffa::YIELD, ffa::INTERRUPT] {
        assert_eq!(call(&mut core, World::Secure, function, [0; 3]).0, Step::Cross);
        refused(&mut core, World::Normal, function, [0; 3], NOT_SUPPORTED);
    }
}

#[test]
fn the_normal_world_speaks_for_itself_only() {
    let mut core = running();
    for request in [ffa::MSG_SEND_DIRECT_REQ_32, ffa::MSG_SEND_DIRECT_REQ_64, ffa::MSG_SEND_DIRECT_REQ2] {
        for sender in [SPMC, 0x8001, SPMD_FIRST, SPMD] {
            refused(&mut core, World::Normal, request, [sender << 16 | SPMC, 0, 0], INVALID);
        }
        refused(&mut core, World::Normal, request, [SPMD, 0, 0], INVALID);
        refused(&mut core, World::Normal, request, [SPMD_FIRST, 0, 0], INVALID);
    }
    for function in [SECONDARY_EP_REGISTER, NORMAL_WORLD_RESUME, ffa::CONSOLE_LOG_64] {
        refused(&mut core, World::Normal, function, [0; 3], NOT_SUPPORTED);
    }
    for function in [0x8200_0000, 0xc300_0001, 0x8400_0050, 0x8400_0100, 0xffff_ffff, 0x4000_0060] {
        let (step, x) = call(&mut core, World::Normal, function, [0; 3]);
        assert_eq!((step, x[0]), (Step::Back, SMCCC_NOT_SUPPORTED), "{function:#x}");
    }
}

#[test]
fn the_version_is_the_spmcs() {
    let mut core = running();
    let (step, x) = call(&mut core, World::Normal, ffa::VERSION, [0x1_0001, 0, 0]);
    assert_eq!(step, Step::Cross);
    assert_eq!(x[..4], [ffa::MSG_SEND_DIRECT_REQ_32.into(), SPMD << 16 | SPMC, FRAMEWORK_VERSION, 0x1_0001]);
    assert_eq!((x[4], x[8]), (0, 108), "x8-x17 are the caller's");
    refused(&mut core, World::Secure, ffa::MSG_WAIT, [0; 3], DENIED);
    refused(&mut core, World::Secure, ffa::MSG_SEND_DIRECT_RESP_32, [SPMC << 16, 0, 0], DENIED);
    let answer = [SPMC_TO_SPMD, FRAMEWORK_VERSION_ANSWER, FFA_1_2];
    let (step, x) = call(&mut core, World::Secure, ffa::MSG_SEND_DIRECT_RESP_32, answer);
    assert_eq!((step, &x[..8]), (Step::Cross, &[FFA_1_2, 0, 0, 0, 0, 0, 0, 0][..]));
    // Bit 31 of a version must be zero.
    let (step, x) = call(&mut core, World::Normal, ffa::VERSION, [1 << 31, 0, 0]);
    assert_eq!((step, x[0]), (Step::Back, NOT_SUPPORTED));
}

#[test]
fn an_interrupt_ends_with_the_normal_world_resumed() {
    let mut core = running();
    let mut x = [9; 18];
    core.interrupt(&mut x);
    assert_eq!(x[..8], [ffa::INTERRUPT.into(), 0, 0, 0, 0, 0, 0, 0]);
    refused(&mut core, World::Secure, ffa::MSG_SEND_DIRECT_RESP_64, [SPMC << 16 | 0x7fff, 0, 0], DENIED);
    refused(&mut core, World::Secure, ffa::MSG_WAIT, [0; 3], DENIED);
    assert_eq!(call(&mut core, World::Secure, NORMAL_WORLD_RESUME, [0; 3]).0, Step::Resume);
    refused(&mut core, World::Secure, NORMAL_WORLD_RESUME, [0; 3], DENIED);
}

#[test]
fn a_core_goes_off_when_the_spmc_says_so() {
    let mut core = running();
    let mut x = [9; 18];
    core.off(&mut x);
    assert_eq!(x[..4], [ffa::MSG_SEND_DIRECT_REQ_32.into(), SPMD << 16 | SPMC, FRAMEWORK, 0x8400_0002]);
    assert_eq!(x[4..], [0; 14]);
    refused(&mut core, World::Secure, ffa::ERROR, [0; 3], DENIED);
    let (step, _) =
        call(&mut core, World::Secure, ffa::MSG_SEND_DIRECT_RESP_32, [SPMC_TO_SPMD, FRAMEWORK, 0]);
    assert_eq!(step, Step::Off);
}

#[test]
fn psci_is_the_normal_worlds() {
    let mut core = running();
    assert_eq!(call(&mut core, World::Normal, 0xc400_0003, [0; 3]).0, Step::Psci);
    let (step, x) = call(&mut core, World::Secure, 0xc400_0003, [0; 3]);
    assert_eq!((step, x[0]), (Step::Back, SMCCC_NOT_SUPPORTED));
    assert_eq!(call(&mut core, World::Normal, SMCCC_VERSION, [0; 3]).1[0], SMCCC_1_2);
    assert_eq!(call(&mut core, World::Normal, SMCCC_ARCH_FEATURES, [SMCCC_VERSION.into(), 0, 0]).1[0], 0);
    let unknown = call(&mut core, World::Normal, SMCCC_ARCH_FEATURES, [0x8000_8000, 0, 0]).1[0];
    assert_eq!(unknown, SMCCC_NOT_SUPPORTED);
}

/// Random calls, near to real ones: the worlds take turns as the steps say, and nothing that the normal world says makes the
/// dispatcher owe what it did not begin.
#[test]
fn random_calls_keep_the_worlds_apart() {
    let mut state = 1_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..200 {
        let mut core = running();
        let mut world = World::Normal;
        for _ in 0..500 {
            let mut x: Registers = core::array::from_fn(|_| random() >> (random() & 63));
            if random() & 7 != 0 {
                x[0] = [0x8400_0060, 0xc400_0060][random() as usize & 1] + (random() & 0x3f);
            }
            if random() & 1 == 0 {
                x[1] = [SPMC_TO_SPMD, GUARD_TO_SPMC, SPMC << 16][random() as usize % 3];
            }
            let (owed, before) = (core.owed, x);
            let step = core.call(world, &mut x);
            match (world, step) {
                (World::Normal, Step::Back | Step::Psci) => assert_eq!(core.owed, Owed::Nothing),
                (World::Normal, Step::Cross) => {
                    assert!(core.owed == Owed::Nothing || core.owed == Owed::Version);
                    assert!(core.owed == Owed::Nothing || x[1] == (SPMD << 16 | SPMC));
                    world = World::Secure;
                }
                (World::Secure, Step::Back | Step::SecondaryEntry) => assert_eq!(core.owed, owed),
                (World::Secure, Step::Cross) => {
                    assert!(core.owed == Owed::Nothing && (owed == Owed::Nothing || owed == Owed::Version));
                    world = World::Normal;
                }
                (World::Secure, Step::Resume) => {
                    assert_eq!((owed, core.owed), (Owed::Interrupt, Owed::Nothing));
                    world = World::Normal;
                }
                other => panic!("{other:?} after {before:x?}"),
            }
            if world == World::Normal && random() & 15 == 0 {
                core.interrupt(&mut x);
                world = World::Secure;
            }
        }
    }
}
