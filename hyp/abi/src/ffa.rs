//! FF-A 1.2 function identifiers, error codes and fixed endpoint numbers (Arm DEN0077A).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

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
/// FFA_MEM_DONATE (32-bit); w1 = bytes of the descriptor, w2 = bytes of them in TX. See [`crate::memory`].
pub const MEM_DONATE_32: u32 = 0x8400_0071;
/// FFA_MEM_DONATE (64-bit).
pub const MEM_DONATE_64: u32 = 0xC400_0071;
/// FFA_MEM_LEND (32-bit).
pub const MEM_LEND_32: u32 = 0x8400_0072;
/// FFA_MEM_LEND (64-bit).
pub const MEM_LEND_64: u32 = 0xC400_0072;
/// FFA_MEM_SHARE (32-bit).
pub const MEM_SHARE_32: u32 = 0x8400_0073;
/// FFA_MEM_SHARE (64-bit).
pub const MEM_SHARE_64: u32 = 0xC400_0073;
/// FFA_MEM_RETRIEVE_REQ (32-bit).
pub const MEM_RETRIEVE_REQ_32: u32 = 0x8400_0074;
/// FFA_MEM_RETRIEVE_REQ (64-bit).
pub const MEM_RETRIEVE_REQ_64: u32 = 0xC400_0074;
/// FFA_MEM_RETRIEVE_RESP; w1 = bytes of the descriptor, w2 = bytes of them in RX.
pub const MEM_RETRIEVE_RESP: u32 = 0x8400_0075;
/// FFA_MEM_RELINQUISH.
pub const MEM_RELINQUISH: u32 = 0x8400_0076;
/// FFA_MEM_RECLAIM; w1 and w2 = handle, w3 = flags.
pub const MEM_RECLAIM: u32 = 0x8400_0077;
/// FFA_MEM_FRAG_RX; w1 and w2 = handle, w3 = offset of the fragment that is wanted.
pub const MEM_FRAG_RX: u32 = 0x8400_007A;
/// FFA_MEM_FRAG_TX; w1 and w2 = handle, w3 = bytes of the fragment.
pub const MEM_FRAG_TX: u32 = 0x8400_007B;
/// FFA_NOTIFICATION_BITMAP_CREATE.
pub const NOTIFICATION_BITMAP_CREATE: u32 = 0x8400_007D;
/// FFA_NOTIFICATION_BITMAP_DESTROY.
pub const NOTIFICATION_BITMAP_DESTROY: u32 = 0x8400_007E;
/// FFA_NOTIFICATION_BIND.
pub const NOTIFICATION_BIND: u32 = 0x8400_007F;
/// FFA_NOTIFICATION_UNBIND.
pub const NOTIFICATION_UNBIND: u32 = 0x8400_0080;
/// FFA_NOTIFICATION_SET.
pub const NOTIFICATION_SET: u32 = 0x8400_0081;
/// FFA_NOTIFICATION_GET.
pub const NOTIFICATION_GET: u32 = 0x8400_0082;
/// FFA_NOTIFICATION_INFO_GET (32-bit).
pub const NOTIFICATION_INFO_GET_32: u32 = 0x8400_0083;
/// FFA_NOTIFICATION_INFO_GET (64-bit).
pub const NOTIFICATION_INFO_GET_64: u32 = 0xC400_0083;
/// FFA_RX_ACQUIRE.
pub const RX_ACQUIRE: u32 = 0x8400_0084;
/// FFA_NORMAL_WORLD_RESUME: the SPMC handled a secure interrupt.
pub const NORMAL_WORLD_RESUME: u32 = 0x8400_007C;
/// FFA_SPM_ID_GET.
pub const SPM_ID_GET: u32 = 0x8400_0085;
/// FFA_MSG_SEND2: an indirect message, with a [`MessageHeader`] in TX.
pub const MSG_SEND2: u32 = 0x8400_0086;
/// FFA_SECONDARY_EP_REGISTER; x1 = where further CPUs enter the SPMC.
pub const SECONDARY_EP_REGISTER: u32 = 0xC400_0087;
/// FFA_CONSOLE_LOG (32-bit): up to [`CONSOLE_LOG_32_SIZE`] characters in w2-w7. FF-A 1.2.
pub const CONSOLE_LOG_32: u32 = 0x8400_008A;
/// FFA_CONSOLE_LOG (64-bit): up to [`CONSOLE_LOG_64_SIZE`] characters in x2-x17. FF-A 1.2.
pub const CONSOLE_LOG_64: u32 = 0xC400_008A;
/// FFA_PARTITION_INFO_GET_REGS. FF-A 1.2.
pub const PARTITION_INFO_GET_REGS: u32 = 0xC400_008B;
/// FFA_MSG_SEND_DIRECT_REQ2: x2, x3 = UUID of the service that is meant, x4-x17 = message. FF-A 1.2.
pub const MSG_SEND_DIRECT_REQ2: u32 = 0xC400_008D;
/// FFA_MSG_SEND_DIRECT_RESP2: x4-x17 = message. FF-A 1.2.
pub const MSG_SEND_DIRECT_RESP2: u32 = 0xC400_008E;

/// FFA_FEATURES: notification pending interrupt, of partitions.
pub const FEATURE_NPI: u32 = 1;
/// FFA_FEATURES: schedule receiver interrupt, of the host.
pub const FEATURE_SRI: u32 = 2;
/// FFA_FEATURES: managed exit interrupt.
pub const FEATURE_ME: u32 = 3;
/// The virtual interrupt that tells a partition's vCPU 0 of notifications.
pub const NPI: u32 = 8;
/// The SGI that asks the host to run who has notifications: a hint that may be lost.
pub const SRI: u32 = 8;

/// Notification flag (SET): the receiver need not be scheduled at once.
pub const NOTIFICATION_DELAY_SRI: u32 = 1 << 1;
/// MSG_SEND2 flag: as [`NOTIFICATION_DELAY_SRI`].
pub const SEND2_DELAY_SRI: u32 = 1 << 1;
/// MSG_WAIT flag: the caller keeps its RX buffer. FF-A 1.2.
pub const MSG_WAIT_RETAIN_RX: u32 = 1;
/// NOTIFICATION_GET flag: those that partitions set.
pub const NOTIFICATIONS_FROM_PARTITIONS: u32 = 1;
/// NOTIFICATION_GET flag: those that the host set.
pub const NOTIFICATIONS_FROM_HOST: u32 = 1 << 1;
/// NOTIFICATION_GET flag: those of the SPMC itself.
pub const NOTIFICATIONS_FRAMEWORK: u32 = 1 << 2;
/// Framework notification: there is a message in RX.
pub const RX_BUFFER_FULL: u32 = 1;

/// Characters of a 32-bit CONSOLE_LOG.
pub const CONSOLE_LOG_32_SIZE: usize = 24;
/// Characters of a 64-bit CONSOLE_LOG.
pub const CONSOLE_LOG_64_SIZE: usize = 128;

/// Properties of a partition: it receives direct requests.
pub const RECEIVES_DIRECT_REQUESTS: u32 = 1;
/// It sends direct requests.
pub const SENDS_DIRECT_REQUESTS: u32 = 1 << 1;
/// It sends and receives indirect messages.
pub const INDIRECT_MESSAGES: u32 = 1 << 2;
/// It receives notifications.
pub const RECEIVES_NOTIFICATIONS: u32 = 1 << 3;
/// It runs in AArch64 state.
pub const AARCH64: u32 = 1 << 8;
/// It receives direct requests of the second kind. FF-A 1.2.
pub const RECEIVES_DIRECT_REQUESTS_2: u32 = 1 << 9;
/// It sends direct requests of the second kind. FF-A 1.2.
pub const SENDS_DIRECT_REQUESTS_2: u32 = 1 << 10;

/// Header of an indirect message (DEN0077A table 7.3). Senders and receivers of version 1.1 know the first
/// [`MESSAGE_HEADER_SIZE_1_1`] bytes of it only. 40 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MessageHeader {
    /// Must be 0.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Offset of the payload from the start of the buffer, past the header.
    pub offset: u32,
    /// Sender << 16 | receiver.
    pub route: u32,
    /// Bytes of the payload.
    pub size: u32,
    /// Must be 0.
    pub reserved_2: u32,
    /// The receiver's service that is meant; nil: any.
    pub uuid: [u8; 16],
}
const _: () = assert!(size_of::<MessageHeader>() == 40);
/// Bytes of a message's header in version 1.1.
pub const MESSAGE_HEADER_SIZE_1_1: usize = 20;

/// Version 1.2 as FFA_VERSION encodes it.
pub const VERSION_1_2: u32 = 0x0001_0002;
/// Version 1.1, which callers may negotiate down to.
pub const VERSION_1_1: u32 = 0x0001_0001;

/// Endpoint id of the host.
pub const HOST_ID: u16 = 0;
/// Endpoint id of the hypervisor as the SPMC.
pub const SPMC_ID: u16 = 0x8000;
/// x1 of framework messages from the SPMD, which has the id 0xffff, to the SPMC.
pub const SPMD_ROUTE: u64 = 0xFFFF_0000 | SPMC_ID as u64;
/// x1 of the SPMC's answers to them.
pub const SPMD_ANSWER_ROUTE: u64 = (SPMC_ID as u64) << 16 | 0xFFFF;
/// Endpoint id of the vendor service, a logical partition inside the hypervisor.
pub const SERVICE_ID: u16 = 0x8001;
/// Endpoint id of partition slot 0; slot n is this plus n.
pub const PARTITION_ID_BASE: u16 = 0x8002;

/// Framework messages between SPMD and SPMC (DEN0077A 18.2), w2 of direct messages.
pub mod framework {
    /// PSCI tells of a CPU; w3 = the PSCI function.
    pub const PSCI: u64 = 1 << 31;
    /// Its answer; w3 = status.
    pub const PSCI_ANSWER: u64 = 1 << 31 | 2;
    /// FFA_VERSION of the normal world; w3 = version.
    pub const VERSION: u64 = 1 << 31 | 8;
    /// Its answer; w3 = version.
    pub const VERSION_ANSWER: u64 = 1 << 31 | 9;
}

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
