//! Messages of vhost-user, as far as the device takes part (QEMU, "Vhost-user Protocol").

use std::os::fd::OwnedFd;

use flexserve_npu_abi::QUEUES;

/// Bytes of a header: request, flags, size.
pub const HEADER: usize = 12;
/// Most bytes of a payload.
pub const PAYLOAD_MAX: usize = 4096;
/// Most file descriptors beside a message.
pub const FDS_MAX: usize = 8;

/// Flags: the version, 1, in the low two bits.
pub const VERSION: u32 = 1;
/// Flags: this answers a request.
pub const REPLY: u32 = 1 << 2;
/// Flags: an answer is wanted.
pub const NEED_REPLY: u32 = 1 << 3;

/// VIRTIO_F_VERSION_1.
pub const F_VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_ACCESS_PLATFORM.
pub const F_ACCESS_PLATFORM: u64 = 1 << 33;
/// VHOST_USER_F_PROTOCOL_FEATURES.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// VHOST_USER_PROTOCOL_F_: MQ, REPLY_ACK, BACKEND_REQ, CONFIG, RESET_DEVICE, STATUS.
pub const PROTOCOL_FEATURES: u64 = 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13 | 1 << 16;

/// The bit that says that a message has no file descriptor for a queue.
const NO_FD: u64 = 1 << 8;
/// Most regions of memory.
const REGIONS_MAX: usize = FDS_MAX;

/// Requests by their numbers.
pub mod request {
    #![allow(missing_docs, reason = "names of the specification")]
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const IOTLB_MSG: u32 = 22;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const RESET_DEVICE: u32 = 34;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
}

/// The number, in a header, and kind of messages that the device sends: an IOTLB message, a miss.
pub const BACKEND_IOTLB_MSG: u32 = 1;
const IOTLB_MISS: u8 = 1;
const IOTLB_UPDATE: u8 = 2;
const IOTLB_INVALIDATE: u8 = 3;
/// Bytes of a miss, header included.
pub const MISS: usize = HEADER + 32;

/// Memory that the front end shares.
#[derive(Debug)]
pub struct MemoryRegion {
    /// Bytes.
    pub size: u64,
    /// Its address in the front end.
    pub address: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// The file.
    pub fd: OwnedFd,
}

/// What the front end wants.
#[derive(Debug)]
#[allow(missing_docs, reason = "names of the specification")]
pub enum Message {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<MemoryRegion>),
    SetVringNum { queue: usize, size: u32 },
    SetVringAddr { queue: usize, descriptors: u64, used: u64, available: u64 },
    SetVringBase { queue: usize, base: u16 },
    GetVringBase { queue: usize },
    SetVringKick { queue: usize, fd: Option<OwnedFd> },
    SetVringCall { queue: usize, fd: Option<OwnedFd> },
    SetVringErr { queue: usize },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable { queue: usize, enable: bool },
    SetBackendReqFd(OwnedFd),
    IotlbUpdate { iova: u64, size: u64, address: u64, read: bool, write: bool },
    IotlbInvalidate { iova: u64, size: u64 },
    GetConfig { offset: u32, size: u32 },
    SetConfig,
    ResetDevice,
    SetStatus(u64),
    GetStatus,
}

/// A message that makes no sense, or that the device does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Takes fields off the front of a payload.
struct Fields<'p>(&'p [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.take().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_le_bytes)
    }

    fn queue(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.u32()?).ok().filter(|queue| *queue < QUEUES).ok_or(Malformed)
    }
}

/// A queue and, unless a bit says that there is none, its file descriptor.
fn queue_fd(bits: u64, mut fds: Vec<OwnedFd>) -> Result<(usize, Option<OwnedFd>), Malformed> {
    let queue = usize::try_from(bits & 0xff).ok().filter(|queue| *queue < QUEUES).ok_or(Malformed)?;
    if bits & NO_FD != 0 {
        return Ok((queue, None));
    }
    fds.pop().map(|fd| (queue, Some(fd))).ok_or(Malformed)
}

impl Message {
    /// Parses a message.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(number: u32, payload: &[u8], mut fds: Vec<OwnedFd>) -> Result<Self, Malformed> {
        let mut fields = Fields(payload);
        let p = &mut fields;
        Ok(match number {
            request::GET_FEATURES => Self::GetFeatures,
            request::SET_FEATURES => Self::SetFeatures(p.u64()?),
            request::SET_OWNER => Self::SetOwner,
            request::RESET_OWNER => Self::ResetOwner,
            request::SET_MEM_TABLE => {
                let count = p.u32()? as usize;
                let _padding = p.u32()?;
                if count > REGIONS_MAX || count != fds.len() {
                    return Err(Malformed);
                }
                let mut regions = Vec::new();
                for fd in fds {
                    let (_guest, size, address, offset) = (p.u64()?, p.u64()?, p.u64()?, p.u64()?);
                    regions.push(MemoryRegion { size, address, offset, fd });
                }
                Self::SetMemTable(regions)
            }
            request::SET_VRING_NUM => Self::SetVringNum { queue: p.queue()?, size: p.u32()? },
            request::SET_VRING_ADDR => {
                let (queue, _flags) = (p.queue()?, p.u32()?);
                let (descriptors, used, available) = (p.u64()?, p.u64()?, p.u64()?);
                Self::SetVringAddr { queue, descriptors, used, available }
            }
            request::SET_VRING_BASE => {
                Self::SetVringBase { queue: p.queue()?, base: p.u32()?.try_into().map_err(|_| Malformed)? }
            }
            request::GET_VRING_BASE => Self::GetVringBase { queue: p.queue()? },
            request::SET_VRING_KICK => {
                let (queue, fd) = queue_fd(p.u64()?, fds)?;
                Self::SetVringKick { queue, fd }
            }
            request::SET_VRING_CALL => {
                let (queue, fd) = queue_fd(p.u64()?, fds)?;
                Self::SetVringCall { queue, fd }
            }
            request::SET_VRING_ERR => Self::SetVringErr { queue: queue_fd(p.u64()?, fds)?.0 },
            request::GET_PROTOCOL_FEATURES => Self::GetProtocolFeatures,
            request::SET_PROTOCOL_FEATURES => Self::SetProtocolFeatures(p.u64()?),
            request::GET_QUEUE_NUM => Self::GetQueueNum,
            request::SET_VRING_ENABLE => Self::SetVringEnable { queue: p.queue()?, enable: p.u32()? != 0 },
            request::SET_BACKEND_REQ_FD => Self::SetBackendReqFd(fds.pop().ok_or(Malformed)?),
            request::IOTLB_MSG => {
                let (iova, size, address) = (p.u64()?, p.u64()?, p.u64()?);
                let (permission, kind) = (p.u8()?, p.u8()?);
                match kind {
                    IOTLB_UPDATE => Self::IotlbUpdate {
                        iova,
                        size,
                        address,
                        read: permission & 1 != 0,
                        write: permission & 2 != 0,
                    },
                    IOTLB_INVALIDATE => Self::IotlbInvalidate { iova, size },
                    _ => return Err(Malformed),
                }
            }
            request::GET_CONFIG => Self::GetConfig { offset: p.u32()?, size: p.u32()? },
            request::SET_CONFIG => Self::SetConfig,
            request::RESET_DEVICE => Self::ResetDevice,
            request::SET_STATUS => Self::SetStatus(p.u64()?),
            request::GET_STATUS => Self::GetStatus,
            _ => return Err(Malformed),
        })
    }
}

/// Builds a message.
pub fn message(number: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = payload.len() as u32;
    [&number.to_le_bytes(), &(VERSION | flags).to_le_bytes(), &size.to_le_bytes(), payload].concat()
}

/// Builds the question for a grant.
pub fn miss(iova: u64, write: bool) -> Vec<u8> {
    let mut payload = [0; MISS - HEADER];
    for (to, from) in payload.iter_mut().zip(iova.to_le_bytes()) {
        *to = from;
    }
    // VHOST_ACCESS_RO or VHOST_ACCESS_WO.
    payload[24] = if write { 2 } else { 1 };
    payload[25] = IOTLB_MISS;
    message(BACKEND_IOTLB_MSG, NEED_REPLY, &payload)
}

/// Request, flags and size of a header.
pub fn parse_header(header: &[u8; HEADER]) -> Option<(u32, u32, usize)> {
    let mut fields = Fields(header);
    let (number, flags, size) = (fields.u32().ok()?, fields.u32().ok()?, fields.u32().ok()? as usize);
    (flags & 3 == VERSION && size <= PAYLOAD_MAX).then_some((number, flags, size))
}
