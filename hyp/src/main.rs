//! The hypervisor at EL2. See the library.
#![no_std]
#![no_main]

use hyp::{Arena, Frame, el2};

static ARENA: Arena = Arena::zeroed();

#[unsafe(no_mangle)]
extern "C" fn primary_main(device_tree: u64, load_base: u64) -> ! {
    el2::primary_main(device_tree, load_base, &ARENA)
}

#[unsafe(no_mangle)]
extern "C" fn secondary_main(cpu: u64) -> ! {
    el2::secondary_main(cpu)
}

#[unsafe(no_mangle)]
extern "C" fn host_exception(frame: &mut Frame, vector: u64) {
    el2::host_exception(frame, vector);
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    el2::panicked(info)
}
