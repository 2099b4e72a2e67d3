//! The unsafe part: the attack module's calls, mappings, and SIMD registers.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use anyhow::{Context, Result};
use guest_abi::session::{SESSION_PAGES, Session};
use hyp_abi::PAGE_SIZE;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The module's device.
pub const ATTACK_DEVICE: &str = "/dev/flexserve_attack";

/// How a call reaches the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Conduit {
    /// SMC #0.
    Smc = 0,
    /// HVC #0.
    Hvc = 1,
    /// SMC #1; only x0 comes back.
    SmcOne = 2,
}

/// How the kernel gets at a physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mapping {
    /// Its own map of RAM.
    Linear = 0,
    /// A new mapping as normal memory.
    Cached = 1,
    /// A new mapping as device memory.
    Device = 2,
}

/// What it does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Reads so many bytes (1, 2, 4 or 8).
    Read(u32),
    /// Writes so many bytes.
    Write(u32, u64),
}

/// `struct flexattack_call`.
#[repr(C)]
struct CallRequest {
    regs: [u64; 18],
    conduit: u64,
}

/// `struct flexattack_access`.
#[repr(C)]
struct AccessRequest {
    address: u64,
    value: u64,
    map: u32,
    act: u32,
}

/// `struct flexattack_pages`.
#[repr(C)]
struct PagesRequest {
    address: u64,
    count: u64,
}

/// `struct flexattack_code`.
#[repr(C)]
struct CodeRequest {
    address: u64,
    value: u64,
}

/// Registers of [`State`].
pub const STATE_REGISTERS: usize = 57;

/// `struct flexattack_state`: one call, and the CPU's state around it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct State {
    /// x0-x17, in and out.
    pub regs: [u64; 18],
    /// XORed into registers that can take another value for a moment.
    pub plant: u64,
    /// Address of an instruction at EL1 where the host breaks, or 0.
    pub breakpoint: u64,
    /// Address of a doubleword that the host watches, or 0.
    pub watchpoint: u64,
    /// What the CPU has.
    pub features: u64,
    /// Registers before the call.
    pub before: [u64; STATE_REGISTERS],
    /// Registers after it.
    pub after: [u64; STATE_REGISTERS],
    /// Length of a vector in bytes.
    pub vector_bytes: u64,
    /// Bytes of all vectors that were not zero.
    pub vector_bits: u64,
    /// Bytes of vectors, predicates and FFR that changed.
    pub vector_changes: u64,
    /// Of the counter, that the call took.
    pub ticks: u64,
    /// Of PMCCNTR_EL0.
    pub cycles: u64,
    /// CPU_CYCLES of event counter 0.
    pub events: u64,
}

impl State {
    /// A call to make.
    pub fn new(regs: [u64; 18]) -> Self {
        // SAFETY: numbers only; zero is a value of each.
        let zero: Self = unsafe { std::mem::zeroed() };
        Self { regs, ..zero }
    }
}

/// `struct flexattack_register`.
#[repr(C)]
struct RegisterRequest {
    value: u64,
    number: u32,
    write: u32,
}

/// What the module's code page returns, and the code that tests plant.
pub const CODE_RETURNS: u64 = 0xC0DE;

const fn number<T>(nr: u8) -> u64 {
    // _IOWR(0xF6, nr, T).
    3 << 30 | (size_of::<T>() as u64) << 16 | 0xF6 << 8 | nr as u64
}

/// The open attack module.
#[derive(Debug)]
pub struct AttackModule {
    file: File,
}

impl AttackModule {
    /// Opens its device.
    pub fn open() -> Result<Self> {
        let file = File::options().read(true).write(true).open(ATTACK_DEVICE).context(ATTACK_DEVICE)?;
        Ok(Self { file })
    }

    fn ioctl<T>(&self, nr: u8, request: &mut T) -> Result<(), Errno> {
        // SAFETY: the number says that the module reads and writes one `T`, and `T` is the structure of that number (each
        // caller is a line below). What the module does to the machine beyond that is the attack.
        let result = unsafe {
            nix::libc::ioctl(self.file.as_raw_fd(), number::<T>(nr) as _, std::ptr::from_mut(request))
        };
        Errno::result(result).map(drop)
    }

    /// Calls the hypervisor with x0-x17 and returns them.
    pub fn call(&self, conduit: Conduit, regs: [u64; 18]) -> Result<[u64; 18], Errno> {
        let mut request = CallRequest { regs, conduit: conduit as u64 };
        self.ioctl(0, &mut request)?;
        Ok(request.regs)
    }

    /// As [`Self::call`] by SMC, with v0-v31 of this thread holding `simd`, which then holds what they are afterwards.
    pub fn call_with_simd(&self, regs: [u64; 18], simd: &mut [[u64; 2]; 32]) -> Result<[u64; 18], Errno> {
        #[cfg(not(target_arch = "aarch64"))]
        return {
            let _ = (regs, simd);
            Err(Errno::ENOSYS)
        };
        #[cfg(target_arch = "aarch64")]
        self.call_with_simd_registers(regs, simd)
    }

    #[cfg(target_arch = "aarch64")]
    fn call_with_simd_registers(
        &self,
        regs: [u64; 18],
        simd: &mut [[u64; 2]; 32],
    ) -> Result<[u64; 18], Errno> {
        let mut request = CallRequest { regs, conduit: Conduit::Smc as u64 };
        let result: i64;
        // SAFETY: the system call is `Self::ioctl`'s; all SIMD registers are declared as clobbered, and are loaded from and
        // stored to `simd`, which has room for them.
        unsafe {
            std::arch::asm!(
                "ldp q0, q1, [{simd}]", "ldp q2, q3, [{simd}, #32]", "ldp q4, q5, [{simd}, #64]",
                "ldp q6, q7, [{simd}, #96]", "ldp q8, q9, [{simd}, #128]", "ldp q10, q11, [{simd}, #160]",
                "ldp q12, q13, [{simd}, #192]", "ldp q14, q15, [{simd}, #224]", "ldp q16, q17, [{simd}, #256]",
                "ldp q18, q19, [{simd}, #288]", "ldp q20, q21, [{simd}, #320]", "ldp q22, q23, [{simd}, #352]",
                "ldp q24, q25, [{simd}, #384]", "ldp q26, q27, [{simd}, #416]", "ldp q28, q29, [{simd}, #448]",
                "ldp q30, q31, [{simd}, #480]",
                "svc #0",
                "stp q0, q1, [{simd}]", "stp q2, q3, [{simd}, #32]", "stp q4, q5, [{simd}, #64]",
                "stp q6, q7, [{simd}, #96]", "stp q8, q9, [{simd}, #128]", "stp q10, q11, [{simd}, #160]",
                "stp q12, q13, [{simd}, #192]", "stp q14, q15, [{simd}, #224]", "stp q16, q17, [{simd}, #256]",
                "stp q18, q19, [{simd}, #288]", "stp q20, q21, [{simd}, #320]", "stp q22, q23, [{simd}, #352]",
                "stp q24, q25, [{simd}, #384]", "stp q26, q27, [{simd}, #416]", "stp q28, q29, [{simd}, #448]",
                "stp q30, q31, [{simd}, #480]",
                simd = in(reg) simd.as_mut_ptr(),
                in("x8") nix::libc::SYS_ioctl,
                inout("x0") i64::from(self.file.as_raw_fd()) => result,
                in("x1") number::<CallRequest>(0),
                in("x2") &raw mut request,
                out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
                out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _,
                out("v14") _, out("v15") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _,
                out("v21") _, out("v22") _, out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _,
                out("v28") _, out("v29") _, out("v30") _, out("v31") _,
                options(nostack)
            );
        }
        if result < 0 { Err(Errno::from_raw(-result as i32)) } else { Ok(request.regs) }
    }

    /// Accesses a physical address as the kernel; returns what was read. If it is refused, this process ends.
    pub fn access(&self, address: u64, mapping: Mapping, act: Act) -> Result<u64, Errno> {
        let (act, value) = match act {
            Act::Read(width) => (width << 8, 0),
            Act::Write(width, value) => (width << 8 | 1, value),
        };
        let mut request = AccessRequest { address, value, map: mapping as u32, act };
        self.ioctl(1, &mut request)?;
        Ok(request.value)
    }

    /// Allocates contiguous zeroed pages (a power of two, at most 1024); they stay until they are freed.
    pub fn allocate(&self, count: u64) -> Result<u64, Errno> {
        let mut request = PagesRequest { address: 0, count };
        self.ioctl(2, &mut request)?;
        Ok(request.address)
    }

    /// Frees pages. They must be this host's, or it dies later.
    pub fn free(&self, address: u64, count: u64) -> Result<(), Errno> {
        self.ioctl(3, &mut PagesRequest { address, count })
    }

    /// Address of a page of the module's code; it works until it is given.
    pub fn code_page(&self) -> Result<u64, Errno> {
        let mut request = CodeRequest { address: 0, value: 0 };
        self.ioctl(4, &mut request)?;
        Ok(request.address)
    }

    /// Calls that code as the kernel; returns [`CODE_RETURNS`]. If it is refused, this process ends.
    pub fn call_code_page(&self) -> Result<u64, Errno> {
        let mut request = CodeRequest { address: 0, value: 0 };
        self.ioctl(5, &mut request)?;
        Ok(request.value)
    }

    /// Makes a call with interrupts off, and takes the CPU's state before and after it.
    pub fn call_with_state(&self, state: &mut State) -> Result<(), Errno> {
        self.ioctl(48, state)
    }

    /// Reads a system register by its number in `kmod/cpu_state.c`. If the CPU refuses, this process ends.
    pub fn read_register(&self, number: u32) -> Result<u64, Errno> {
        let mut request = RegisterRequest { value: 0, number, write: 0 };
        self.ioctl(49, &mut request)?;
        Ok(request.value)
    }

    /// Writes a system register.
    pub fn write_register(&self, number: u32, value: u64) -> Result<(), Errno> {
        self.ioctl(49, &mut RegisterRequest { value, number, write: 1 })
    }

    /// Has every CPU run a function of the kernel; returns how many did.
    pub fn interrupt_all_cpus(&self) -> Result<u64, Errno> {
        let mut request = RegisterRequest { value: 0, number: 0, write: 0 };
        self.ioctl(50, &mut request)?;
        Ok(request.value)
    }

    /// Maps a partition's virtio pages into this process, as its devices see them.
    pub fn map_virtio(&self, address: u64) -> Result<flexserve::virtio::Memory> {
        Ok(flexserve::virtio::map(self.file.try_clone()?, address)?)
    }

    /// Maps allocated pages into this process. A touch of what the host may not touch ends it by SIGBUS.
    pub fn map(&self, address: u64, count: u64) -> Result<Window> {
        let size = NonZeroUsize::new((count * PAGE_SIZE) as usize).context("no pages to map")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the address, so nothing that exists is replaced.
        let start = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, &self.file, address as i64) };
        Ok(Window { start: start.context("mmap of the attack module")?, size: size.get() })
    }
}

/// Mapped pages. Others may change them at any time, so they are only copied in and out.
#[derive(Debug)]
pub struct Window {
    start: NonNull<core::ffi::c_void>,
    size: usize,
}

// SAFETY: the mapping belongs to the process, and every access is volatile or atomic.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    fn at(&self, offset: usize, size: usize) -> *mut u8 {
        assert!(size <= self.size && offset <= self.size - size, "outside the window");
        // SAFETY: just checked.
        unsafe { self.start.as_ptr().cast::<u8>().add(offset) }
    }

    /// Copies out.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        for (i, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: inside the mapping.
            *byte = unsafe { from.add(i).read_volatile() };
        }
    }

    /// Copies in.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: inside the mapping.
            unsafe { to.add(i).write_volatile(*byte) };
        }
    }

    /// Reads a word at an aligned offset.
    pub fn word(&self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8));
        // SAFETY: inside the mapping and aligned, since the mapping is.
        unsafe { self.at(offset, 8).cast::<u64>().read_volatile() }
    }

    /// The session in it. Touch it only once the partition shares its pages.
    pub fn session(&self) -> &Session {
        assert!(self.size >= (SESSION_PAGES * PAGE_SIZE) as usize && size_of::<Session>() <= self.size);
        // SAFETY: page-aligned and large enough, mapped as long as `self` lives; every bit pattern is a `Session`, which
        // consists of atomics and padding.
        unsafe { self.start.cast::<Session>().as_ref() }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and references into it do not outlive it.
        let _ = unsafe { munmap(self.start, self.size) };
    }
}

/// Registers of a device, mapped.
#[derive(Debug)]
pub struct Registers {
    start: NonNull<core::ffi::c_void>,
    size: usize,
}

impl Registers {
    /// Maps what a file of sysfs stands for. An access of theirs that is refused with an abort ends this process by SIGBUS.
    pub fn map(file: &File, size: usize) -> Result<Self> {
        let length = NonZeroUsize::new(size).context("no registers")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the address, so nothing that exists is replaced.
        let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0) };
        Ok(Self { start: start.context("mmap of registers")?, size })
    }

    fn at(&self, offset: usize, width: u32) -> *mut u8 {
        assert!(offset.is_multiple_of(width as usize) && offset + width as usize <= self.size, "no register");
        // SAFETY: just checked.
        unsafe { self.start.as_ptr().cast::<u8>().add(offset) }
    }

    /// Reads 1, 2, 4 or 8 bytes.
    pub fn read(&self, offset: usize, width: u32) -> u64 {
        let from = self.at(offset, width);
        // SAFETY: inside the mapping, and aligned, since the mapping is. What the device does is the attack.
        unsafe {
            match width {
                1 => from.read_volatile().into(),
                2 => from.cast::<u16>().read_volatile().into(),
                4 => from.cast::<u32>().read_volatile().into(),
                _ => from.cast::<u64>().read_volatile(),
            }
        }
    }

    /// Writes 1, 2, 4 or 8 bytes, after everything that was stored to memory.
    pub fn write(&self, offset: usize, width: u32, value: u64) {
        let to = self.at(offset, width);
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a barrier.
        unsafe {
            std::arch::asm!("dsb sy", options(nostack));
        }
        // SAFETY: as in `read`.
        unsafe {
            match width {
                1 => to.write_volatile(value as u8),
                2 => to.cast::<u16>().write_volatile(value as u16),
                4 => to.cast::<u32>().write_volatile(value as u32),
                _ => to.cast::<u64>().write_volatile(value),
            }
        }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it.
        let _ = unsafe { munmap(self.start, self.size) };
    }
}

/// Lets this thread run on these CPUs only, a bit each.
fn set_affinity(cpus: u64) -> Result<()> {
    // SAFETY: the kernel reads 8 bytes of a mask.
    let result = unsafe { nix::libc::syscall(nix::libc::SYS_sched_setaffinity, 0, 8, &raw const cpus) };
    Errno::result(result).context("sched_setaffinity").map(drop)
}

/// Lets this thread run on one CPU only.
pub fn pin_to_cpu(cpu: u32) -> Result<()> {
    set_affinity(1 << cpu)
}

/// Lets this thread run on every CPU.
pub fn unpin() -> Result<()> {
    set_affinity(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_layouts_are_those_of_the_header() {
        let header = include_str!("../kmod/flexserve_attack.h");
        for line in [
            "#define FLEXATTACK_IOC(nr, type) _IOWR(0xF6, nr, type)",
            "#define FLEXATTACK_CALL FLEXATTACK_IOC(0, struct flexattack_call)",
            "#define FLEXATTACK_ACCESS FLEXATTACK_IOC(1, struct flexattack_access)",
            "#define FLEXATTACK_ALLOC FLEXATTACK_IOC(2, struct flexattack_pages)",
            "#define FLEXATTACK_FREE FLEXATTACK_IOC(3, struct flexattack_pages)",
            "#define FLEXATTACK_SMC_1 2\t",
            "#define FLEXATTACK_DEVICE 2\t",
            "#define FLEXATTACK_WRITE 1\t",
            "#define FLEXATTACK_CODE_RETURNS 0xC0DE",
            "#define FLEXATTACK_CODE FLEXATTACK_IOC(4, struct flexattack_code)",
            "#define FLEXATTACK_CODE_CALL FLEXATTACK_IOC(5, struct flexattack_code)",
            "\t__u64 regs[18];\t",
            "#define FLEXATTACK_STATE_REGISTERS 57\n",
            "#define FLEXATTACK_STATE FLEXATTACK_IOC(48, struct flexattack_state)",
            "#define FLEXATTACK_REGISTER FLEXATTACK_IOC(49, struct flexattack_register)",
            "#define FLEXATTACK_IPI FLEXATTACK_IOC(50, struct flexattack_register)\t",
        ] {
            assert!(header.contains(line), "{line}");
        }
        assert_eq!(
            [size_of::<CallRequest>(), size_of::<AccessRequest>(), size_of::<PagesRequest>()],
            [152, 24, 16]
        );
        assert_eq!(
            [size_of::<State>(), size_of::<RegisterRequest>()],
            [(18 + 10 + 2 * STATE_REGISTERS) * 8, 16]
        );
        assert_eq!(number::<PagesRequest>(3), nix::request_code_readwrite!(0xF6, 3, 16));
    }
}
