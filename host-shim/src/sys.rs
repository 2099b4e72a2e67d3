//! All unsafe code: the module's ioctls, memory mappings, and the handler of bus errors.

use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;

use guest_abi::session::{SESSION_PAGES, Session};
use hyp_abi::PAGE_SIZE;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::machine::CallError;

/// `struct flexserve_request` of `kmod/flexserve.h`.
#[derive(Default)]
#[repr(C)]
struct Request {
    status: i32,
    reserved: u32,
    detail: u64,
    input: [u64; 4],
    output: [u64; OUTPUTS],
}
const _: () = assert!(size_of::<Request>() == 128);

/// Outputs of a call.
pub const OUTPUTS: usize = 10;
/// FLEXSERVE_GIVE_MAPPABLE.
const GIVE_MAPPABLE: u64 = 1;

/// The ioctls of `kmod/flexserve.h`, with their inputs.
#[derive(Debug)]
pub enum Command<'a> {
    /// FLEXSERVE_INFO.
    Info,
    /// FLEXSERVE_STATS.
    Stats {
        /// 0 for the system, or a partition's.
        id: u16,
        /// Where they go.
        buffer: &'a mut [u8],
    },
    /// FLEXSERVE_RUN.
    Run {
        /// vCPU.
        vcpu: u32,
        /// Longest stay; 0: no limit.
        nanoseconds: u64,
    },
    /// FLEXSERVE_CREATE.
    Create {
        /// The manifest.
        manifest: &'a [u8],
    },
    /// FLEXSERVE_GIVE of zero pages.
    GiveZero {
        /// IPA of the first.
        ipa: u64,
        /// How many.
        pages: u64,
        /// May be mapped.
        mappable: bool,
    },
    /// FLEXSERVE_GIVE of contents; a last part of less than a page is left out.
    GiveBytes {
        /// IPA of the first page.
        ipa: u64,
        /// Contents.
        bytes: &'a [u8],
        /// May be mapped.
        mappable: bool,
    },
    /// FLEXSERVE_MEASURE.
    Measure {
        /// Most steps; 0: all.
        steps: u64,
    },
    /// FLEXSERVE_START.
    Start,
    /// FLEXSERVE_STOP.
    Stop,
    /// FLEXSERVE_RECALL.
    Recall {
        /// IPA of the first page.
        ipa: u64,
        /// How many.
        pages: u64,
    },
    /// FLEXSERVE_DESTROY.
    Destroy,
    /// FLEXSERVE_NPU.
    Npu {
        /// 0: state, 1: acquire, 2: release.
        operation: u64,
    },
    /// FLEXSERVE_NPU_MEMORY.
    NpuMemory {
        /// Its size.
        bytes: u64,
    },
    /// FLEXSERVE_LOG.
    Log {
        /// The partition's.
        id: u16,
        /// From where on.
        position: u64,
        /// Where it goes.
        buffer: &'a mut [u8],
    },
}

impl Command<'_> {
    /// Name and number.
    fn id(&self) -> (&'static str, u8) {
        match self {
            Command::Info => ("INFO", 0),
            Command::Stats { .. } => ("STATS", 1),
            Command::Run { .. } => ("RUN", 2),
            Command::Create { .. } => ("CREATE", 3),
            Command::GiveZero { .. } | Command::GiveBytes { .. } => ("GIVE", 4),
            Command::Measure { .. } => ("MEASURE", 5),
            Command::Start => ("START", 6),
            Command::Stop => ("STOP", 7),
            Command::Recall { .. } => ("RECALL", 8),
            Command::Destroy => ("DESTROY", 9),
            Command::Log { .. } => ("LOG", 16),
            Command::Npu { .. } => ("NPU", 17),
            Command::NpuMemory { .. } => ("NPU_MEMORY", 18),
        }
    }

    fn input(&mut self) -> [u64; 4] {
        match self {
            Command::Info | Command::Start | Command::Stop | Command::Destroy => [0; 4],
            Command::Measure { steps: word }
            | Command::Npu { operation: word }
            | Command::NpuMemory { bytes: word } => [*word, 0, 0, 0],
            Command::Stats { id, buffer } => {
                [u64::from(*id), buffer.as_mut_ptr() as u64, buffer.len() as u64, 0]
            }
            Command::Run { vcpu, nanoseconds } => [u64::from(*vcpu), *nanoseconds, 0, 0],
            Command::Create { manifest } => [manifest.as_ptr() as u64, manifest.len() as u64, 0, 0],
            Command::GiveZero { ipa, pages, mappable } => {
                [*ipa, *pages, 0, u64::from(*mappable) * GIVE_MAPPABLE]
            }
            Command::GiveBytes { ipa, bytes, mappable } => {
                let pages = bytes.len() as u64 / PAGE_SIZE;
                [*ipa, pages, bytes.as_ptr() as u64, u64::from(*mappable) * GIVE_MAPPABLE]
            }
            Command::Recall { ipa, pages } => [*ipa, *pages, 0, 0],
            Command::Log { id, position, buffer } => {
                [u64::from(*id), *position, buffer.as_mut_ptr() as u64, buffer.len() as u64]
            }
        }
    }
}

/// Calls the module; returns the outputs.
///
/// # Errors
/// What the module and, behind it, the hypervisor answered.
pub fn call(device: BorrowedFd<'_>, mut command: Command<'_>) -> Result<[u64; OUTPUTS], CallError> {
    let (call, number) = command.id();
    let mut request = Request { input: command.input(), ..Request::default() };
    let code = nix::request_code_readwrite!(0xF5, number, size_of::<Request>());
    // SAFETY: the number says that the module reads and writes one `Request`, which `request` is. Beyond it the module
    // reads the manifest or the contents and writes the statistics, within the lengths of slices that `command` borrows
    // until the call is over. If the descriptor is another driver's, the number is not its own, and it refuses.
    let answer = unsafe { nix::libc::ioctl(device.as_raw_fd(), code as _, &raw mut request) };
    match Errno::result(answer) {
        Ok(_) => Ok(request.output),
        Err(errno) => Err(CallError { call, errno, status: request.status, detail: request.detail }),
    }
}

/// A mapping, unmapped when it is dropped.
pub struct Mapping {
    start: NonNull<core::ffi::c_void>,
    size: usize,
}

// SAFETY: a mapping belongs to the process; what it may be used for is up to its owners below.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Where it starts.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr().cast()
    }

    /// Its bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Maps a file from an offset on; shared if it is to be written.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(file: impl AsFd, offset: u64, size: usize, write: bool) -> Result<Self, Errno> {
        let size_or_page = size.try_into().map_err(|_| Errno::EINVAL)?;
        let (protection, flags) = match write {
            true => (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED),
            false => (ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE),
        };
        let offset = offset.try_into().map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: the kernel chooses the address, so nothing that exists is replaced.
        let start = unsafe { mmap(None, size_or_page, protection, flags, file, offset)? };
        Ok(Mapping { start, size })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and references into it do not outlive its owner.
        let _ = unsafe { munmap(self.start, self.size) };
    }
}

/// The session pages of a partition, mapped. A touch of a page that the partition does not share is a bus error.
pub struct SessionMap(Mapping);

impl SessionMap {
    /// Maps them from the module's device; `ipa` is that of the first.
    ///
    /// # Errors
    /// The module's.
    pub fn new(device: BorrowedFd<'_>, ipa: u64) -> Result<Self, CallError> {
        let map = Mapping::new(device, ipa, (SESSION_PAGES * PAGE_SIZE) as usize, true);
        map.map(SessionMap).map_err(|errno| CallError { call: "mmap", errno, status: 0, detail: ipa })
    }
}

impl Deref for SessionMap {
    type Target = Session;

    fn deref(&self) -> &Session {
        // SAFETY: the mapping is page-aligned, which is `Session`'s alignment, at least as large (asserted in hyp-abi),
        // and lives as long as `self`. Every bit pattern is a `Session`: it consists of atomics and padding, so that the
        // partition may change it at any time.
        unsafe { self.0.start.cast::<Session>().as_ref() }
    }
}

/// What registers hold: nothing but numbers of up to 32 bits.
pub trait Register: sealed::Number {}
impl<T: sealed::Number> Register for T {}

mod sealed {
    pub trait Number: Copy {}
    impl Number for u8 {}
    impl Number for u16 {}
    impl Number for u32 {}
}

/// Registers of the NPU, mapped. While a partition owns it, loads are all ones and stores do nothing.
pub struct Registers(Mapping);

impl Registers {
    /// Maps them from the module's device.
    ///
    /// # Errors
    /// The module's.
    pub fn new(device: BorrowedFd<'_>, size: usize) -> Result<Self, CallError> {
        let map = Mapping::new(device, 0, size, true);
        map.map(Registers).map_err(|errno| CallError { call: "mmap", errno, status: 0, detail: 0 })
    }

    /// A pointer to the register of type `T` at `offset`; none outside the window or if it is misaligned.
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let inside = offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.0.size);
        let aligned = offset.is_multiple_of(size_of::<T>());
        (inside && aligned).then(|| self.0.start.as_ptr().cast::<u8>().wrapping_add(offset).cast())
    }

    /// Loads a register; `none` outside the window.
    pub fn load<T: Register>(&self, offset: usize, none: T) -> T {
        // SAFETY: inside the mapping, which lives as long as `self`, and aligned; every value of a register is a `T`.
        self.at::<T>(offset).map_or(none, |register| unsafe { register.read_volatile() })
    }

    /// Stores to a register; does nothing outside the window.
    pub fn store<T: Register>(&self, offset: usize, value: T) {
        if let Some(register) = self.at::<T>(offset) {
            // SAFETY: as above.
            unsafe { register.write_volatile(value) };
        }
    }
}

/// A file's bytes, mapped read-only. If the file shrinks meanwhile, a touch beyond its end is a bus error.
pub struct FileMap(Option<Mapping>);

impl FileMap {
    /// Maps a file.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(file: &std::fs::File) -> std::io::Result<Self> {
        let size = usize::try_from(file.metadata()?.len()).map_err(|_| Errno::EOVERFLOW)?;
        let map = if size == 0 { None } else { Some(Mapping::new(file, 0, size, false)?) };
        Ok(FileMap(map))
    }

    /// The bytes. The file must not be written meanwhile; who does anyway gets a model that does not verify.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            None => &[],
            // SAFETY: mapped for reading, as long as `self` lives. Nobody in this process writes the file; the models'
            // folder belongs to root, as does this program.
            Some(map) => unsafe { core::slice::from_raw_parts(map.start.as_ptr().cast(), map.size) },
        }
    }
}

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".pushsection .rodata",
    ".balign 4",
    ".global npu_switcher, npu_switcher_end",
    "npu_switcher:",
    "mov w0, #{ID_GET} & 0xffff",
    "movk w0, #{ID_GET} >> 16, lsl #16",
    "smc #0",
    "lsl x19, x2, #16",
    "mov x1, #{SERVICE}",
    "orr x19, x19, x1",
    "1: mov w20, #{ACQUIRE}",
    "bl 2f",
    "mov w20, #{RELEASE}",
    "bl 2f",
    "mov w0, #{WAIT} & 0xffff",
    "movk w0, #{WAIT} >> 16, lsl #16",
    "mov x1, #0",
    "mov x2, #0",
    "smc #0",
    "b 1b",
    "2: mov w0, #{REQUEST} & 0xffff",
    "movk w0, #{REQUEST} >> 16, lsl #16",
    "mov x1, x19",
    "mov x2, #0",
    "mov w3, w20",
    "smc #0",
    "ret",
    "npu_switcher_end:",
    ".popsection",
    ID_GET = const hyp_abi::ffa::ID_GET,
    WAIT = const hyp_abi::ffa::MSG_WAIT,
    REQUEST = const hyp_abi::ffa::MSG_SEND_DIRECT_REQ_64,
    SERVICE = const hyp_abi::ffa::SERVICE_ID,
    ACQUIRE = const hyp_abi::service::op::NPU_ACQUIRE,
    RELEASE = const hyp_abi::service::op::NPU_RELEASE,
);

/// A partition's program that acquires the NPU, releases it and waits for a message, over and over; empty on other
/// architectures, where only tests run. FF-A numbers as in [`hyp_abi::ffa`], operations as in [`hyp_abi::service::op`].
pub fn npu_switcher() -> &'static [u8] {
    #[cfg(target_arch = "aarch64")]
    {
        unsafe extern "C" {
            static npu_switcher: u8;
            static npu_switcher_end: u8;
        }
        let start = &raw const npu_switcher;
        let size = &raw const npu_switcher_end as usize - start as usize;
        // SAFETY: both symbols are in the section above, with the code between them, which nobody writes.
        unsafe { core::slice::from_raw_parts(start, size) }
    }
    #[cfg(not(target_arch = "aarch64"))]
    &[]
}

/// The system counter (CNTVCT_EL0); 0 on other architectures, where only tests run.
pub fn counter() -> u64 {
    #[cfg(target_arch = "aarch64")]
    {
        let value: u64;
        // SAFETY: Linux lets processes read the counter; reading has no side effect.
        unsafe { core::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nostack, nomem)) };
        value
    }
    #[cfg(not(target_arch = "aarch64"))]
    0
}

/// What the handler of bus errors writes, and to which descriptor.
static BUS_ERROR: OnceLock<(i32, Vec<u8>)> = OnceLock::new();

/// From now on a bus error (a shared page or a file's page vanished) ends the process with this exit code and these bytes
/// on this descriptor. Works once.
pub fn on_bus_error(descriptor: i32, message: Vec<u8>) {
    extern "C" fn handler(_: i32) {
        let (descriptor, message) = match BUS_ERROR.get() {
            Some((descriptor, message)) => (*descriptor, message.as_slice()),
            None => (2, &b"bus error\n"[..]),
        };
        // SAFETY: both functions are async-signal-safe, and the message is never changed or freed.
        unsafe {
            nix::libc::write(descriptor, message.as_ptr().cast(), message.len());
            nix::libc::_exit(crate::error::Code::Partition as i32);
        }
    }
    if BUS_ERROR.set((descriptor, message)).is_ok() {
        let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler only reads a static that is set and calls async-signal-safe functions.
        let _ = unsafe { sigaction(Signal::SIGBUS, &action) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn ioctl_numbers_are_those_of_the_header() {
        let header = include_str!("../kmod/flexserve.h");
        let (mut buffer, mut log) = ([0; 8], [0; 8]);
        let commands = [
            Command::Info,
            Command::Stats { id: 0, buffer: &mut buffer },
            Command::Run { vcpu: 0, nanoseconds: 0 },
            Command::Create { manifest: &[] },
            Command::GiveZero { ipa: 0, pages: 0, mappable: false },
            Command::Measure { steps: 0 },
            Command::Start,
            Command::Stop,
            Command::Recall { ipa: 0, pages: 0 },
            Command::Destroy,
            Command::Log { id: 1, position: 0, buffer: &mut log },
            Command::Npu { operation: 0 },
            Command::NpuMemory { bytes: 1 },
        ];
        for command in commands {
            let (name, number) = command.id();
            let line = format!("#define FLEXSERVE_{name} FLEXSERVE_IOC({number})\n");
            assert!(header.contains(&line), "{line}");
        }
        assert!(header.contains("_IOWR(0xF5, nr, struct flexserve_request)"));
        assert!(header.contains("#define FLEXSERVE_GIVE_MAPPABLE 1\t"));
        assert!(header.contains("__u64 in[4];\n\t__u64 out[10];"));
    }

    #[test]
    fn another_driver_refuses_the_calls() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = call(file.as_fd(), Command::Info).unwrap_err();
        assert_eq!((error.call, error.errno), ("INFO", Errno::ENOTTY));
    }

    #[test]
    fn files_are_mapped_whole() {
        let path = std::env::temp_dir().join(format!("flexserve-map-{}", std::process::id()));
        let bytes: Vec<u8> = (0..10_000).map(|i| i as u8).collect();
        std::fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
        let map = FileMap::new(&std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(map.bytes(), bytes);
        std::fs::File::create(&path).unwrap();
        assert_eq!(FileMap::new(&std::fs::File::open(&path).unwrap()).unwrap().bytes(), [0u8; 0]);
        std::fs::remove_file(path).unwrap();
    }
}
