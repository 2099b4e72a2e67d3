//! The policy at S-EL2. See the library.
#![no_std]
#![no_main]

use hyp::{Frame, SecureRam, spmc};

static SECURE_RAM: SecureRam = SecureRam::zeroed();

#[unsafe(no_mangle)]
extern "C" fn primary_main(_manifest: u64, load_base: u64) -> ! {
    spmc::primary_main(load_base, &SECURE_RAM)
}

#[unsafe(no_mangle)]
extern "C" fn secondary_main(cpu: u64) -> ! {
    spmc::secondary_main(cpu)
}

/// The host is in the other world: nothing below S-EL2 runs but partitions, which have vectors of their own.
#[unsafe(no_mangle)]
extern "C" fn host_exception(_frame: &mut Frame, vector: u64) {
    panic!("exception {vector} of nobody");
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    spmc::panicked(info)
}
