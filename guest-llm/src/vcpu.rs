//! The image's other vCPUs: they help the first with the engine's work.

use crate::layout::VCPU_COUNT;
use crate::{arch, ffa};
use flexserve_engine::pool::{Park, Pool};

/// The interrupt that wakes.
const WAKE: u64 = 0;
/// Turns of a spin loop after which a vCPU sleeps: some tens of microseconds.
const SPINS: u32 = 4000;

/// The hypervisor's interrupts.
pub struct Interrupts;

impl Park for Interrupts {
    fn wait(&self) {
        arch::wait();
        while arch::acknowledge().is_some() {}
    }

    fn wake(&self, targets: u64) {
        arch::send_interrupt(WAKE, targets);
    }

    fn is_idle(&self, spun: u32) -> bool {
        spun >= SPINS
    }
}

/// All of the partition's vCPUs.
pub static POOL: Pool<Interrupts> = Pool::new(Interrupts);

/// Turns the other vCPUs on. Which of them the host runs, and when, changes speed alone.
pub fn start_others() {
    arch::receive_interrupts();
    for vcpu in 1..VCPU_COUNT {
        ffa::start_vcpu(vcpu);
    }
}

/// Main function of the others.
pub fn serve(index: usize) -> ! {
    arch::receive_interrupts();
    POOL.serve(index)
}

/// Waits for a message of the host. Interrupts that woke this vCPU for a job that is over do not count.
pub fn wait_for_message() {
    while arch::acknowledge().is_some() {}
    ffa::wait_for_message();
}

const _: () = assert!(VCPU_COUNT <= hyp_abi::service::MAX_VCPUS);
