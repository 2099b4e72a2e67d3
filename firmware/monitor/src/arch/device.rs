//! Device registers, the trusted UART, and what turns the machine off.

use core::fmt::{Arguments, Write};

use super::el3::wait;

/// The PL011 that only the secure world reaches.
const UART: usize = 0x0904_0000;
/// The PL061 that only the secure world reaches: line 0 turns the machine off, line 1 resets it, as each rises.
const GPIO: usize = 0x090b_0000;

/// Reads a register.
pub fn read(address: usize) -> u32 {
    // SAFETY: the addresses are constants of this crate's: registers of the machine's devices, mapped as device memory.
    unsafe { (address as *const u32).read_volatile() }
}

/// Writes a register.
pub fn write(address: usize, value: u32) {
    // SAFETY: as for `read`; no device of these masters the bus.
    unsafe { (address as *mut u32).write_volatile(value) };
}

struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            while read(UART + 0x18) & 1 << 5 != 0 {} // UARTFR: transmit FIFO full
            write(UART, byte.into());
        }
        Ok(())
    }
}

/// Writes a line to the trusted log.
pub fn log(line: Arguments<'_>) {
    write(UART + 0x30, 1 | 1 << 8 | 1 << 9); // UARTCR: enable, transmit, receive
    let _ = writeln!(Uart, "monitor: {line}\r");
}

/// Turns the machine off, or resets it.
pub fn end(reset: bool) -> ! {
    let line = if reset { 2 } else { 1 };
    // The data register's address says which lines are meant.
    let data = GPIO + (line << 2);
    write(GPIO + 0x400, 3); // GPIODIR: outputs
    write(data, 0);
    write(data, line as u32);
    loop {
        wait();
    }
}
