//! The server of one front end.

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use flexserve_npu_abi::{Config, QUEUES};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use zerocopy::IntoBytes;

use crate::device::{Device, Options, State};
use crate::iotlb::Memory;
use crate::protocol::{self, FDS_MAX, HEADER, Malformed, Message, NEED_REPLY, REPLY};

const FEATURES: u64 = protocol::F_VERSION_1 | protocol::F_ACCESS_PLATFORM | protocol::F_PROTOCOL_FEATURES;
/// Longest configuration that is asked for.
const CONFIG_MAX: u32 = 256;

/// Serves a front end until it goes away, with a device of its own.
///
/// # Errors
/// The connection failed, or the front end sent what is no message.
pub fn serve(stream: UnixStream, options: &Options) -> std::io::Result<()> {
    connect(stream, &Device::new(options.clone())?)
}

/// Connects a device to a front end until that goes away, which ends the device.
///
/// # Errors
/// As [`serve`].
pub fn connect(stream: UnixStream, device: &Device) -> std::io::Result<()> {
    std::thread::scope(|scope| {
        for queue in 0..QUEUES {
            scope.spawn(move || device.serve(queue));
        }
        let result = converse(stream, device);
        device.end();
        result
    })
}

fn converse(mut stream: UnixStream, device: &Device) -> std::io::Result<()> {
    let mut server = Server { device, status: 0 };
    while let Some((number, flags, message)) = receive(&mut stream)? {
        device.tell(|| format!("{message:x?}"));
        let answer = message.and_then(|message| server.handle(message));
        let reply = match answer {
            Ok(Answer::Payload(payload)) => Some(payload),
            Ok(Answer::Done) => (flags & NEED_REPLY != 0).then(|| 0u64.to_le_bytes().into()),
            Err(Malformed) => {
                device.tell(|| format!("message {number} is refused"));
                (flags & NEED_REPLY != 0).then(|| 1u64.to_le_bytes().into())
            }
        };
        if let Some(payload) = reply {
            stream.write_all(&protocol::message(number, REPLY, &payload))?;
        }
    }
    Ok(())
}

/// A message, with its number and flags.
type Received = (u32, u32, Result<Message, Malformed>);

/// Receives a message; none at the end.
fn receive(stream: &mut UnixStream) -> std::io::Result<Option<Received>> {
    let mut header = [0; HEADER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(&*stream, &mut [IoSliceMut::new(&mut header)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    stream.read_exact(header.get_mut(received.bytes..).unwrap_or_default())?;
    let invalid = || std::io::Error::other("the front end sent what is no message");
    let (number, flags, size) = protocol::parse_header(&header).ok_or_else(invalid)?;
    let mut payload = vec![0; size];
    stream.read_exact(&mut payload)?;
    Ok(Some((number, flags, Message::parse(number, &payload, fds))))
}

/// What to answer.
#[derive(Debug)]
pub enum Answer {
    /// This.
    Payload(Vec<u8>),
    /// That it is done, if somebody wants to know.
    Done,
}

/// The front end's view of the device.
#[derive(Debug)]
pub struct Server<'d> {
    /// The device.
    pub device: &'d Device,
    /// Device status, as the front end set it.
    pub status: u64,
}

impl Server<'_> {
    /// Acts on a message.
    ///
    /// # Errors
    /// [`Malformed`]: it cannot be done.
    pub fn handle(&mut self, message: Message) -> Result<Answer, Malformed> {
        let number = |value: u64| Ok(Answer::Payload(value.to_le_bytes().into()));
        match message {
            Message::GetFeatures => return number(FEATURES),
            Message::GetProtocolFeatures => return number(protocol::PROTOCOL_FEATURES),
            Message::GetQueueNum => return number(QUEUES as u64),
            Message::GetStatus => return number(self.status),
            Message::GetConfig { offset, size } => return config(self.device.jobs(), offset, size),
            Message::GetVringBase { queue } => {
                let base = self.change(queue, |state| {
                    state.kick = None;
                    state.served
                })?;
                let payload = [(queue as u32).to_le_bytes(), u32::from(base).to_le_bytes()];
                return Ok(Answer::Payload(payload.concat()));
            }
            Message::SetFeatures(features) => {
                // Without translation the device would reach all memory: it does not work then.
                let wanted = protocol::F_VERSION_1 | protocol::F_ACCESS_PLATFORM;
                self.device.set_translated(features & wanted == wanted && features & !FEATURES == 0);
            }
            Message::SetMemTable(regions) => {
                let mut memory = Memory::default();
                for region in regions {
                    let added = memory.add(region.address, region.size, region.offset, region.fd);
                    added.map_err(|_| Malformed)?;
                }
                self.device.set_memory(memory);
            }
            Message::SetVringNum { queue, size } => {
                let size = u16::try_from(size).map_err(|_| Malformed)?;
                self.change(queue, |state| state.ring.size = size)?;
            }
            Message::SetVringAddr { queue, descriptors, used, available } => {
                self.change(queue, |state| {
                    let size = state.ring.size;
                    state.ring = crate::queue::Ring { size, descriptors, available, used };
                })?;
            }
            Message::SetVringBase { queue, base } => self.change(queue, |state| state.served = base)?,
            Message::SetVringKick { queue, fd } => self.change(queue, |state| {
                state.kick = fd.map(Arc::new);
                state.renew();
            })?,
            Message::SetVringCall { queue, fd } => {
                self.change(queue, |state| state.call = fd.map(Arc::new))?
            }
            Message::SetVringEnable { queue, enable } => self.change(queue, |state| {
                state.enabled = enable;
                state.renew();
            })?,
            Message::SetBackendReqFd(fd) => self.device.grants.set_channel(fd),
            Message::IotlbUpdate { iova, size, address, read, write } => {
                if !self.device.grant(iova, size, address, (read, write)) {
                    return Err(Malformed);
                }
            }
            Message::IotlbInvalidate { iova, size } => self.device.invalidate(iova, size),
            Message::ResetDevice => self.device.reset(),
            Message::SetStatus(status) => {
                self.status = status;
                if status == 0 {
                    self.device.reset();
                }
            }
            // The driver has nothing to configure.
            Message::SetConfig => return Err(Malformed),
            Message::SetOwner | Message::ResetOwner | Message::SetProtocolFeatures(_) => {}
            Message::SetVringErr { .. } => {}
        }
        Ok(Answer::Done)
    }

    fn change<R>(&self, queue: usize, change: impl FnOnce(&mut State) -> R) -> Result<R, Malformed> {
        self.device.change(queue, change).ok_or(Malformed)
    }
}

/// Answers with a part of the configuration after so many jobs; zeros beyond it.
fn config(jobs: u32, offset: u32, size: u32) -> Result<Answer, Malformed> {
    if size > CONFIG_MAX || offset > CONFIG_MAX {
        return Err(Malformed);
    }
    let config = Config::after(jobs);
    let mut bytes = vec![0; size as usize];
    let from = config.as_bytes().get(offset as usize..).unwrap_or_default();
    bytes.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    Ok(Answer::Payload([&offset.to_le_bytes()[..], &size.to_le_bytes(), &[0; 4], &bytes].concat()))
}
