//! The trusted log: a PL011 that the host has no access to. Early on, before the device tree is read, there is none,
//! and what is logged is lost.

use core::fmt::Write;
use core::sync::atomic::{AtomicUsize, Ordering};
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::mutex::SpinMutex;

use crate::arch::sysreg::mrs;

/// PL011 registers (Arm DDI0183): data, flags.
const DR: usize = 0x00;
const FR: usize = 0x18;
const CR: usize = 0x30;
/// Enable, transmit, receive.
const CR_ENABLE: u32 = 1 | 1 << 8 | 1 << 9;
/// Transmit FIFO full.
const FR_TXFF: u32 = 1 << 5;

/// Base address; 0: none.
static BASE: AtomicUsize = AtomicUsize::new(0);
static BUDGET: SpinMutex<Budget> = SpinMutex::new(Budget { second: 0, lines: 0, dropped: 0 });

/// Lines that one second may hold. The host can cause some (a partition that crashes), and must not fill the log, nor
/// hold everybody up at a slow UART.
const LINES_PER_SECOND: u32 = 50;

struct Budget {
    second: u64,
    lines: u32,
    dropped: u64,
}

impl Budget {
    /// Whether a line may be written now; the lines dropped before it, if it is the first of its second.
    fn take(&mut self) -> Option<u64> {
        let second = mrs!("cntpct_el0") / mrs!("cntfrq_el0").max(1);
        if second != self.second {
            (self.second, self.lines) = (second, 0);
        }
        if self.lines == LINES_PER_SECOND {
            self.dropped = self.dropped.saturating_add(1);
            return None;
        }
        self.lines += 1;
        Some(core::mem::take(&mut self.dropped))
    }
}

struct Pl011(usize);

impl Write for Pl011 {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            // SAFETY: BASE is the PL011 that the device tree names as ours; stage 1 maps it as device memory, and it
            // is absent from every other translation.
            unsafe {
                while ((self.0 + FR) as *const u32).read_volatile() & FR_TXFF != 0 {}
                ((self.0 + DR) as *mut u32).write_volatile(u32::from(byte));
            }
        }
        Ok(())
    }
}

struct Console;

impl Log for Console {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record) {
        let base = BASE.load(Ordering::Relaxed);
        if base != 0 && self.enabled(record.metadata()) {
            let mut budget = BUDGET.lock();
            let Some(dropped) = budget.take() else { return };
            if dropped > 0 {
                let _ = writeln!(Pl011(base), "hyp: WARN  {dropped} lines dropped\r");
            }
            let _ = writeln!(Pl011(base), "hyp: {:5} {}\r", record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

/// Starts logging to the PL011 at `base`.
pub fn init(base: usize) {
    // SAFETY: the control register of our own PL011; nobody else uses it.
    unsafe { ((base + CR) as *mut u32).write_volatile(CR_ENABLE) };
    BASE.store(base, Ordering::Relaxed);
    // The logger is set once, on the boot CPU; a second call would keep the first.
    let _ = log::set_logger(&Console).map(|()| log::set_max_level(LevelFilter::Info));
}

/// Writes a line without taking the lock: for the panic handler, which may have interrupted its holder.
pub fn emergency(line: core::fmt::Arguments) {
    let base = BASE.load(Ordering::Relaxed);
    if base != 0 {
        let _ = writeln!(Pl011(base), "\r\nhyp: {line}\r");
    }
}
