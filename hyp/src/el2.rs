//! The program `hyp`: everything at EL2.

use hyp_core::Outcome;
use log::info;

use crate::arch::host::{self, Answer, Authority};
use crate::arch::{stage1, vcpu};
use crate::{Arena, Frame, boot, machine, world};

/// Runs on the first CPU, MMU off, stack and relocations in place.
pub fn primary_main(device_tree: u64, load_base: u64, arena: &'static Arena) -> ! {
    // SAFETY: the boot CPU runs alone with the MMU off.
    let mut map = unsafe { stage1::Map::start(load_base) };
    let end = stage1::image(load_base).end();
    let given = boot::Given { tree: device_tree, bundle: load_base, end, arena };
    let (entry, tree) = boot::prepare_host(&mut map, &given);
    info!("entering the host at {entry:#x}");
    enter(0, entry, tree)
}

/// Runs on every other CPU, MMU on.
pub fn secondary_main(cpu: u64) -> ! {
    machine::park_if_panicking();
    let (entry, argument) = machine::take_start(cpu as usize);
    enter(cpu as usize, entry, argument)
}

fn enter(cpu: usize, entry: u64, argument: u64) -> ! {
    world::start_cpu(cpu);
    host::enter(entry, argument)
}

/// Takes an exception of the host.
pub fn host_exception(frame: &mut Frame, vector: u64) {
    host::exception::<Local>(frame, vector);
}

/// The policy in this image.
struct Local;

impl Authority for Local {
    fn call(cpu: usize, registers: &mut [u64; 18]) -> Answer {
        #[cfg(feature = "fault-knobs")]
        if world::skips(hyp_core::knob::SERROR) {
            host::exception::<Self>(&mut Frame::default(), 3); // as if it had come first
        }
        let outcome = world::host_call(cpu, registers);
        #[cfg(feature = "fault-knobs")]
        crate::arch::el2::weaken_hidden(machine::features(), world::skips(hyp_core::knob::HIDDEN_FEATURES));
        match outcome {
            Outcome::Return => Answer::Done,
            Outcome::Enter { slot, vcpu } => {
                vcpu::run(cpu, slot, vcpu, registers);
                Answer::Done
            }
            Outcome::Firmware => Answer::Firmware,
            Outcome::CpuOn { target, entry, context } => {
                let index = world::platform().cpu_index(target).unwrap_or(usize::MAX);
                Answer::CpuOn { index, target, entry, context }
            }
            Outcome::Shutdown => {
                world::end_partitions(registers[0]);
                Answer::Shutdown
            }
        }
    }

    fn refuse(registers: &mut [u64; 18]) {
        world::lock().host_refuse(registers);
    }

    fn abort(ipa: u64, syndrome: u64, stored: u64) -> host::Abort {
        world::host_abort(ipa, syndrome, stored)
    }

    fn count_exit() {
        world::lock().count_host_exits(1);
    }
}

/// Reports that the hypervisor failed; what partitions had is scrubbed.
pub fn panicked(info: &core::panic::PanicInfo) -> ! {
    world::panicked(format_args!("PANIC {info}"))
}
