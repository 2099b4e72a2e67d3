//! FF-A calls of the partition: the vendor service, giving the CPU away, and the end.

use hyp_abi::ffa;
use hyp_abi::service::op;

use crate::arch;

/// One of a manifest's regions as the hypervisor sees it.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// First IPA.
    pub ipa: u64,
    /// Pages given so far. The host may leave holes; touching one ends the partition.
    pub page_count: u64,
    /// One of [`hyp_abi::manifest::kind`].
    pub kind: u64,
}

/// A status of the vendor service other than 0: an FF-A error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub i32);

/// # Safety
/// As [`arch::smc`].
unsafe fn call(function: u32, args: [u64; 7]) -> [u64; 8] {
    let mut x = [0; 18];
    x[0] = u64::from(function);
    x[1..8].copy_from_slice(&args);
    // SAFETY: passed on to the caller.
    unsafe { arch::smc(&mut x) };
    [x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]]
}

/// # Safety
/// As [`arch::smc`].
unsafe fn service(op: u64, args: [u64; 4]) -> Result<[u64; 4], Status> {
    let ids = arch::endpoint_id() << 16 | u64::from(ffa::SERVICE_ID);
    // SAFETY: passed on to the caller.
    let x = unsafe { call(ffa::MSG_SEND_DIRECT_REQ_64, [ids, 0, op, args[0], args[1], args[2], args[3]]) };
    match (x[0] as u32, x[3] as i32) {
        (ffa::MSG_SEND_DIRECT_RESP_64, 0) => Ok([x[4], x[5], x[6], x[7]]),
        (ffa::MSG_SEND_DIRECT_RESP_64, status) => Err(Status(status)),
        (ffa::ERROR, _) => Err(Status(x[2] as i32)),
        _ => Err(Status(ffa::error::NOT_SUPPORTED)),
    }
}

/// Asks for this partition's id, which later calls name as the sender. Must come first.
pub fn identify() -> Result<u16, Status> {
    // SAFETY: FFA_ID_GET touches no memory.
    let x = unsafe { call(ffa::ID_GET, [0; 7]) };
    if x[0] as u32 != ffa::SUCCESS_32 {
        return Err(Status(x[2] as i32));
    }
    arch::set_endpoint_id(x[2] as u16);
    Ok(x[2] as u16)
}

/// Describes region `index` of the manifest.
pub fn region(index: u64) -> Result<Region, Status> {
    // SAFETY: REGION touches no memory.
    let x = unsafe { service(op::REGION, [index, 0, 0, 0])? };
    Ok(Region { ipa: x[0], page_count: x[1], kind: x[2] })
}

/// One of the operations on the NPU.
pub fn npu(operation: u64) -> Result<[u64; 4], Status> {
    // SAFETY: whoever loses the NPU loses its accesses to memory; whoever gets it has asked nothing of it yet.
    unsafe { service(operation, [0; 4]) }
}

/// Shares the page at `ipa` with the host.
///
/// # Safety
/// From here on the host changes the page at any time: only atomics and volatile accesses may touch it.
pub unsafe fn share(ipa: u64) -> Result<(), Status> {
    // SAFETY: passed on to the caller.
    unsafe { service(op::SHARE, [ipa, 0, 0, 0]) }.map(drop)
}

/// Takes a shared page back, zeroed.
///
/// # Safety
/// No reference to the page may exist.
pub unsafe fn unshare(ipa: u64) -> Result<(), Status> {
    // SAFETY: passed on to the caller.
    unsafe { service(op::UNSHARE, [ipa, 0, 0, 0]) }.map(drop)
}

/// Gives the CPU to the host, which is asked to look at the session; returns when it runs the partition again.
pub fn give_way() {
    // SAFETY: meanwhile the host changes shared pages only, which are accessed by atomics.
    unsafe { call(ffa::YIELD, [0; 7]) };
}

/// Tells the host that there is nothing to do; returns when it runs the partition again. Direct requests that come
/// meanwhile are answered NOT_SUPPORTED.
pub fn wait_for_message() {
    wait_answering(|payload| {
        payload.fill(0);
        if let Some(status) = payload.first_mut() {
            *status = i64::from(ffa::error::NOT_SUPPORTED) as u64;
        }
    });
}

/// As [`wait_for_message`]; direct requests are answered by `answer`, which turns their payload (5 registers, or 14 for
/// one of the second kind) into the response's.
pub fn wait_answering(mut answer: impl FnMut(&mut [u64])) {
    let mut x = [0; 18];
    x[0] = u64::from(ffa::MSG_WAIT);
    loop {
        // SAFETY: as in `give_way`.
        unsafe { arch::smc(&mut x) };
        let [function, route, second, third, payload @ ..] = &mut x;
        let response = match *function as u32 {
            ffa::MSG_SEND_DIRECT_REQ_32 => ffa::MSG_SEND_DIRECT_RESP_32,
            ffa::MSG_SEND_DIRECT_REQ_64 => ffa::MSG_SEND_DIRECT_RESP_64,
            ffa::MSG_SEND_DIRECT_REQ2 => ffa::MSG_SEND_DIRECT_RESP2,
            _ => return,
        };
        *function = u64::from(response);
        *route = (*route & 0xFFFF) << 16 | *route >> 16 & 0xFFFF;
        *second = 0;
        if response == ffa::MSG_SEND_DIRECT_RESP2 {
            *third = 0;
            answer(payload);
        } else if let Some(payload) = x.get_mut(3..8) {
            answer(payload);
        }
    }
}

/// Writes to the partition's log, which the host and the trusted log show: fixed words and numbers only, never a byte of
/// prompt, answer or weights.
pub fn log(text: &str) {
    for part in text.as_bytes().chunks(ffa::CONSOLE_LOG_64_SIZE) {
        let mut x = [0; 18];
        let [function, count, registers @ ..] = &mut x;
        (*function, *count) = (u64::from(ffa::CONSOLE_LOG_64), part.len() as u64);
        for (register, bytes) in registers.iter_mut().zip(part.chunks(8)) {
            *register = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        // A hypervisor without logs loses them.
        // SAFETY: FFA_CONSOLE_LOG touches no memory.
        unsafe { arch::smc(&mut x) };
    }
}

/// Writes a line to the log.
pub fn log_line(line: core::fmt::Arguments<'_>) {
    // On the stack, since the heap may be what is missing. What does not fit is cut off, by `write_fmt`'s error.
    let mut text = arrayvec::ArrayString::<96>::new();
    let _ = core::fmt::Write::write_fmt(&mut text, line);
    log(&text);
    log("\n");
}

/// Makes any FF-A call with x0-x5; returns x0-x7.
///
/// # Safety
/// As [`arch::smc`].
pub unsafe fn any(x: [u64; 6]) -> [u64; 8] {
    // SAFETY: passed on to the caller.
    unsafe { call(x[0] as u32, [x[1], x[2], x[3], x[4], x[5], 0, 0]) }
}

/// PSCI functions of a partition's vCPUs (DEN0022).
pub mod psci {
    /// CPU_OFF.
    pub const CPU_OFF: u32 = 0x8400_0002;
    /// CPU_ON (64-bit).
    pub const CPU_ON: u32 = 0xC400_0003;
}

/// Calls PSCI, or whatever else a function identifier means that touches no memory; returns x0.
pub fn psci(function: u32, arguments: [u64; 3]) -> u64 {
    let [a, b, c] = arguments;
    // SAFETY: PSCI of a partition changes no memory; a vCPU that it starts has a stack of its own.
    let x = unsafe { call(function, [a, b, c, 0, 0, 0, 0]) };
    x[0]
}

/// Starts vCPU `target`; whether it will run is the host's choice. False if it is not there or is on.
pub fn start_vcpu(target: usize) -> bool {
    psci(psci::CPU_ON, [target as u64, arch::secondary_entry(), arch::endpoint_id()]) == 0
}

/// Turns this vCPU off.
pub fn stop_vcpu() -> ! {
    psci(psci::CPU_OFF, [0; 3]);
    arch::halt()
}

/// Ends the partition; 0 is success.
pub fn exit(code: u64) -> ! {
    // SAFETY: does not return, so no reference is used again.
    let _ = unsafe { service(op::EXIT, [code, 0, 0, 0]) };
    arch::halt()
}

/// Ends the partition and reports where it panicked: a hash of the file's name (see [`crate::fnv1a`]) and the line.
pub fn panicked(file: u64, line: u64) -> ! {
    // SAFETY: does not return, so no reference is used again.
    let _ = unsafe { service(op::PANIC, [file, line, 0, 0]) };
    arch::halt()
}
