//! Fault knobs: defences that an image built for tests can leave out.

use anyhow::Result;
use hyp_abi::service::op;

use crate::host::call_service;
use crate::sys::AttackModule;

macro_rules! knobs {
    ($($name:ident = $number:literal,)*) => {
        /// A knob, by the name that `--without` and `docs` use. Its meaning: `hyp/core/src/knob.rs`, `stage2/src/knobs.rs`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "they are documented where they act")]
        pub enum Knob { $($name = $number,)* }

        impl Knob {
            /// All.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}

knobs! {
    SkipHostUnmap = 0x00,
    SkipScrubOnGive = 0x02,
    SkipScrubOnRecall = 0x03,
    SkipClean = 0x04,
    SkipOwnershipCheck = 0x05,
    SkipOverlapCheck = 0x06,
    SkipScrubAll = 0x0A,
    SkipSendOwnershipCheck = 12,
    SkipSendPinCheck = 13,
    SkipLendUnmap = 14,
    SkipRelinquishUnmap = 15,
    SkipBorrowedCheck = 16,
    SkipScrubOnReclaim = 17,
    SkipWindowUnmap = 19,
    RxtxOwnership = 0x40,
    CpuOnEntry = 0x41,
    ContentsAfterMeasure = 0x42,
    RecallState = 0x43,
    RegionAccess = 0x45,
    PartitionAbort = 0x46,
    RangeForm = 0x47,
    SmcAllowList = 0x48,
    DeviceAllowList = 0x49,
    SimdSwitch = 0x4A,
    RegisterTraps = 0x4B,
    InterruptRouting = 0x4C,
    HandleReceiver = 0x50,
    DescriptorBounds = 0x52,
    GuestMailbox = 0x58,
    NotificationBinding = 0x59,
    SenderId = 0x5A,
    RxOwnership = 0x5B,
    LogCharacters = 0x5C,
    VcpuInside = 0x60,
    VcpuCount = 0x61,
    NpuReset = 0x62,
    NpuInvalidate = 0x63,
    SmmuInvalidate = 0x64,
    BarMove = 0x65,
    BusNumbers = 0x66,
    NpuConfig = 0x67,
    Msi = 0x68,
    GicrTables = 0x69,
    StreamRoot = 0x6A,
    NpuInterrupt = 0x6B,
    NpuStream = 0x6C,
    DmaReports = 0x6D,
    PauthSwitch = 0x70,
    DebugOff = 0x71,
    CountersStop = 0x72,
    HiddenFeatures = 0x73,
    Serror = 0x74,
    GuardName = 0x75,
    NormalSpace = 0x76,
    PrivateMemory = 0x77,
}

/// Makes the hypervisor panic.
const PANIC: u64 = 0xFF;

impl Knob {
    /// Leaves the defence out, or puts it back.
    pub fn turn(self, module: &AttackModule, leave_out: bool) -> Result<()> {
        // The allow-list of devices is turned by the attack itself, which knows the device.
        if self == Self::DeviceAllowList {
            return Ok(());
        }
        let arguments = [self as u64, leave_out.into(), 0, 0];
        call_service(module, op::KNOB, arguments)?.ok(self.name()).map(drop)
    }
}

/// Lets the host have a page of devices; it keeps it.
pub fn allow_device(module: &AttackModule, page: u64) -> Result<()> {
    let arguments = [Knob::DeviceAllowList as u64, 1, page, 0];
    call_service(module, op::KNOB, arguments)?.ok("DeviceAllowList").map(drop)
}

/// Makes the hypervisor panic; does not come back.
pub fn panic(module: &AttackModule) -> Result<()> {
    call_service(module, op::KNOB, [PANIC, 1, 0, 0])?.ok("PANIC").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `SkipHostUnmap` is `SKIP_HOST_UNMAP` and `RxtxOwnership` is `RXTX_OWNERSHIP`.
    fn constant_name(name: &str) -> String {
        let mut out = String::new();
        for c in name.chars() {
            if c.is_ascii_uppercase() && !out.is_empty() {
                out.push('_');
            }
            out.push(c.to_ascii_uppercase());
        }
        out
    }

    #[test]
    fn numbers_are_those_of_the_hypervisor() {
        let stage2 = include_str!("../../stage2/src/knobs.rs");
        let core = include_str!("../../hyp/core/src/knob.rs");
        for knob in Knob::ALL {
            let number = *knob as u64;
            let found = match number {
                0..0x40 => stage2.contains(&format!("    {} = {number},\n", knob.name())),
                _ => core.contains(
                    &format!("    {} = {number:#04X},\n", constant_name(knob.name())).replace("0X", "0x"),
                ),
            };
            assert!(found, "{}", knob.name());
        }
        assert!(core.contains("    PANIC = 0xFF,\n"));
    }
}
