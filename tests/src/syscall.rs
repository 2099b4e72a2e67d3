//! The unsafe part of the health suite: system calls that no crate here wraps, and the program that kexec starts.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyp_abi::PAGE_SIZE;
use nix::errno::Errno;
use nix::libc;

/// The CPU on which this thread runs.
pub fn current_cpu() -> Result<u32> {
    // SAFETY: takes nothing.
    let cpu = Errno::result(unsafe { libc::sched_getcpu() }).context("getcpu")?;
    Ok(cpu as u32)
}

/// Makes every thread of this process pass a barrier, by interrupts. The first call registers the process.
pub fn membarrier() -> Result<()> {
    const PRIVATE_EXPEDITED: i32 = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: i32 = 1 << 4;
    for command in [REGISTER_PRIVATE_EXPEDITED, PRIVATE_EXPEDITED] {
        // SAFETY: takes numbers only.
        Errno::result(unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }).context("membarrier")?;
    }
    Ok(())
}

/// Starts SME's streaming mode; a process that must not have it ends by SIGILL.
pub fn start_streaming() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: SMSTART touches vectors only, which are declared; where it is allowed, SMSTOP follows.
    unsafe {
        std::arch::asm!(".inst 0xd503477f", ".inst 0xd503467f", out("v0") _, out("v1") _, out("v2") _, out("v3") _,
            out("v4") _, out("v5") _, out("v6") _, out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _,
            out("v12") _, out("v13") _, out("v14") _, out("v15") _, out("v16") _, out("v17") _, out("v18") _,
            out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _, out("v24") _, out("v25") _,
            out("v26") _, out("v27") _, out("v28") _, out("v29") _, out("v30") _, out("v31") _, options(nostack));
    }
}

/// A timer that fires periodically.
#[derive(Debug)]
pub struct Timer(std::os::fd::OwnedFd);

impl Timer {
    /// Starts it.
    pub fn start(period: Duration) -> Result<Self> {
        use std::os::fd::FromRawFd;
        // SAFETY: takes numbers only.
        let fd =
            Errno::result(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) }).context("timerfd")?;
        // SAFETY: a descriptor that is nobody else's.
        let timer = Self(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) });
        let time = libc::timespec { tv_sec: 0, tv_nsec: period.subsec_nanos().into() };
        let setting = libc::itimerspec { it_interval: time, it_value: time };
        // SAFETY: the kernel reads one structure; the old setting is not asked for.
        let set = unsafe { libc::timerfd_settime(fd, 0, &raw const setting, std::ptr::null_mut()) };
        Errno::result(set).context("timerfd_settime")?;
        Ok(timer)
    }

    /// Waits until it has fired; returns how often since the last time.
    pub fn wait(&self) -> Result<u64> {
        let mut count = [0; 8];
        ensure!(nix::unistd::read(&self.0, &mut count).context("a timer")? == 8, "a short read");
        Ok(u64::from_ne_bytes(count))
    }
}

#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    r#"
    // Entered at EL1 with the MMU off. Reads the word at the address in `kexec_page`, if that is not 0: an abort is what
    // should come of it. Writes one of two texts to UART0 and turns the machine off.
    .pushsection .rodata.kexec, "a"
    .balign 4096
    .global kexec_program
kexec_program:
    adr     x0, 5f
    msr     vbar_el1, x0
    isb
    adr     x9, kexec_texts
    ldr     x1, kexec_page
    cbz     x1, 1f
    ldr     x2, [x1]
    add     x9, x9, #1024
1:  mov     x3, #0x09000000
2:  ldrb    w4, [x9], #1
    cbz     w4, 4f
3:  ldr     w5, [x3, #0x18]
    tbnz    w5, #5, 3b
    str     w4, [x3]
    b       2b
4:  ldr     w5, [x3, #0x18]
    tbnz    w5, #3, 4b
    movz    w0, #0x0008
    movk    w0, #0x8400, lsl #16
    ldr     x1, kexec_conduit
    cbnz    x1, 6f
    smc     #0
6:  hvc     #0
    b       .
    .balign 8
    .global kexec_page
kexec_page:
    .quad   0
kexec_conduit:
    .quad   0
    .balign 2048
5:  .rept   16
    b       1b
    .balign 128
    .endr
    .global kexec_texts
kexec_texts:
    .zero   2048
    .global kexec_program_end
kexec_program_end:
    .popsection
    "#
);

/// The program, and where in it its two words and its two texts are.
#[cfg(target_arch = "aarch64")]
fn program() -> (Vec<u8>, usize, usize) {
    unsafe extern "C" {
        static kexec_program: u8;
        static kexec_program_end: u8;
        static kexec_page: u8;
        static kexec_texts: u8;
    }
    let start = &raw const kexec_program;
    let size = (&raw const kexec_program_end) as usize - start as usize;
    // SAFETY: constants of this program between the two symbols.
    let bytes = unsafe { std::slice::from_raw_parts(start, size) }.to_vec();
    (
        bytes,
        (&raw const kexec_page) as usize - start as usize,
        (&raw const kexec_texts) as usize - start as usize,
    )
}

#[cfg(not(target_arch = "aarch64"))]
fn program() -> (Vec<u8>, usize, usize) {
    (vec![0; 6144], 0, 4096)
}

/// Loads a program for kexec at two contiguous pages of this host, and starts it: it prints `good` or, if it can read the
/// word at `page` (not 0), `bad`, and turns the machine off. Returns only if it is refused.
pub fn kexec(destination: u64, page: u64, hvc: bool, good: &str, bad: &str) -> Result<()> {
    const ARCH_AARCH64: u64 = 183 << 16;
    let (mut bytes, words, texts) = program();
    ensure!(good.len() < 1024 && bad.len() < 1024, "a text is too long");
    bytes[words..words + 8].copy_from_slice(&page.to_le_bytes());
    bytes[words + 8..words + 16].copy_from_slice(&u64::from(hvc).to_le_bytes());
    bytes[texts..texts + good.len()].copy_from_slice(good.as_bytes());
    bytes[texts + 1024..texts + 1024 + bad.len()].copy_from_slice(bad.as_bytes());
    let segment: [u64; 4] = [bytes.as_ptr() as u64, bytes.len() as u64, destination, 2 * PAGE_SIZE];
    // SAFETY: the kernel reads one segment and its bytes, and copies them.
    let loaded =
        unsafe { libc::syscall(libc::SYS_kexec_load, destination, 1, segment.as_ptr(), ARCH_AARCH64) };
    Errno::result(loaded).context("kexec_load")?;
    // SAFETY: takes a number; the machine goes on in the program.
    Errno::result(unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) }).context("kexec").map(drop)
}
