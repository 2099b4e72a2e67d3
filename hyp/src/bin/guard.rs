//! The guard at EL2 of the normal world. See the library.
#![no_std]
#![no_main]

use hyp::{Arena, Frame, guard};

static ARENA: Arena = Arena::zeroed();

#[unsafe(no_mangle)]
extern "C" fn primary_main(device_tree: u64, load_base: u64) -> ! {
    guard::primary_main(device_tree, load_base, &ARENA)
}

#[unsafe(no_mangle)]
extern "C" fn secondary_main(cpu: u64) -> ! {
    guard::secondary_main(cpu)
}

#[unsafe(no_mangle)]
extern "C" fn host_exception(frame: &mut Frame, vector: u64) {
    guard::host_exception(frame, vector);
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    guard::panicked()
}
