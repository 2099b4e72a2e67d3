//! FF-A 1.2 function identifiers, error codes and fixed endpoint numbers (Arm DEN0077A).

/// FFA_ERROR (32-bit); w2 holds the error code.
pub const ERROR: u32 = 0x8400_0060;
/// FFA_SUCCESS (32-bit).
pub const SUCCESS_32: u32 = 0x8400_0061;
/// FFA_SUCCESS (64-bit).
pub const SUCCESS_64: u32 = 0xC400_0061;
/// FFA_INTERRUPT: an FFA_RUN ended because an interrupt of the host is pending.
pub const INTERRUPT: u32 = 0x8400_0062;
/// FFA_VERSION.
pub const VERSION: u32 = 0x8400_0063;
/// FFA_FEATURES.
pub const FEATURES: u32 = 0x8400_0064;
/// FFA_RX_RELEASE.
pub const RX_RELEASE: u32 = 0x8400_0065;
/// FFA_RXTX_MAP (32-bit).
pub const RXTX_MAP_32: u32 = 0x8400_0066;
/// FFA_RXTX_MAP (64-bit).
pub const RXTX_MAP_64: u32 = 0xC400_0066;
/// FFA_RXTX_UNMAP.
pub const RXTX_UNMAP: u32 = 0x8400_0067;
/// FFA_PARTITION_INFO_GET.
pub const PARTITION_INFO_GET: u32 = 0x8400_0068;
/// FFA_ID_GET.
pub const ID_GET: u32 = 0x8400_0069;
/// FFA_MSG_WAIT: from a partition "I wait for a message"; as the return of FFA_RUN, "it waits".
pub const MSG_WAIT: u32 = 0x8400_006B;
/// FFA_YIELD: as the return of FFA_RUN, the partition gave the CPU away; w2/w3 hold a time-out in ns (0: none).
pub const YIELD: u32 = 0x8400_006C;
/// FFA_RUN; w1 = partition id << 16 | vCPU index.
pub const RUN: u32 = 0x8400_006D;
/// FFA_MSG_SEND_DIRECT_REQ (32-bit).
pub const MSG_SEND_DIRECT_REQ_32: u32 = 0x8400_006F;
/// FFA_MSG_SEND_DIRECT_REQ (64-bit).
pub const MSG_SEND_DIRECT_REQ_64: u32 = 0xC400_006F;
/// FFA_MSG_SEND_DIRECT_RESP (32-bit).
pub const MSG_SEND_DIRECT_RESP_32: u32 = 0x8400_0070;
/// FFA_MSG_SEND_DIRECT_RESP (64-bit).
pub const MSG_SEND_DIRECT_RESP_64: u32 = 0xC400_0070;
/// FFA_SPM_ID_GET.
pub const SPM_ID_GET: u32 = 0x8400_0085;

/// Version 1.2 as FFA_VERSION encodes it.
pub const VERSION_1_2: u32 = 0x0001_0002;
/// Version 1.1, which callers may negotiate down to.
pub const VERSION_1_1: u32 = 0x0001_0001;

/// Endpoint id of the host.
pub const HOST_ID: u16 = 0;
/// Endpoint id of the hypervisor as the SPMC.
pub const SPMC_ID: u16 = 0x8000;
/// Endpoint id of the vendor service, a logical partition inside the hypervisor.
pub const SERVICE_ID: u16 = 0x8001;
/// Endpoint id of partition slot 0; slot n is this plus n.
pub const PARTITION_ID_BASE: u16 = 0x8002;

/// UUID of the vendor service for FFA_PARTITION_INFO_GET: addccef7-55b8-4d58-a004-67b54c6e91df, in that byte order.
pub const SERVICE_UUID: [u8; 16] =
    [0xAD, 0xDC, 0xCE, 0xF7, 0x55, 0xB8, 0x4D, 0x58, 0xA0, 0x04, 0x67, 0xB5, 0x4C, 0x6E, 0x91, 0xDF];
/// UUID of every partition that CREATE made: 9e979a1e-e91d-4fa7-9b06-e8bb816a37f1, in that byte order.
pub const PARTITION_UUID: [u8; 16] =
    [0x9E, 0x97, 0x9A, 0x1E, 0xE9, 0x1D, 0x4F, 0xA7, 0x9B, 0x06, 0xE8, 0xBB, 0x81, 0x6A, 0x37, 0xF1];

/// Error codes (DEN0077A table 13.2), as they travel in w2 of FFA_ERROR and in the status word of the vendor service.
pub mod error {
    /// The function or the feature does not exist.
    pub const NOT_SUPPORTED: i32 = -1;
    /// A parameter is malformed.
    pub const INVALID_PARAMETERS: i32 = -2;
    /// Memory for page tables is missing; the vendor service says how many pages to give.
    pub const NO_MEMORY: i32 = -3;
    /// The resource is in use; try again.
    pub const BUSY: i32 = -4;
    /// The call was interrupted.
    pub const INTERRUPTED: i32 = -5;
    /// The caller may not do this, or not in the present state.
    pub const DENIED: i32 = -6;
    /// Try again.
    pub const RETRY: i32 = -7;
    /// The partition ended: crashed, stopped or destroyed.
    pub const ABORTED: i32 = -8;
    /// There is no data.
    pub const NO_DATA: i32 = -9;
}
