//! A byte stream to the host: one connection of a socket device (Virtio 1.2, 5.10).
//!
//! virtio-drivers' connection manager is not used: its credit arithmetic overflows, which here is a panic, on counters that
//! a hostile device sends, and after 4 GiB. This keeps the counters itself and shows virtio-drivers only those that are
//! possible. A stream carries less than 4 GiB each way.

use alloc::collections::VecDeque;
use alloc::rc::Rc;

use guest_abi::virtio::DevicePage;
use virtio_drivers::device::socket::{
    ConnectionInfo, VMADDR_CID_HOST, VirtIOSocket, VsockAddr, VsockEvent, VsockEventType,
};
use virtio_drivers::transport::DeviceType;

use super::block::blame;
use super::pool::{Access, Bounce};
use super::transport::{Device, SlotTransport};
use super::{Doorbell, Fault, PATIENCE};

/// Bytes that wait to be read, at most: the credit that the device has.
pub const WINDOW: usize = 64 * 1024;
/// Bytes of a received packet with its header: a page of the pool each.
const PACKET: usize = 4096;
/// Most bytes of a sent packet.
const SEND_MAX: usize = 16 * 1024;
/// This end's port.
const LOCAL_PORT: u32 = 1024;
const RECEIVE: usize = 0;
/// Packets taken in one look, so that a device that sends without end is left for other work.
const PACKETS_AT_A_TIME: u32 = 64;

/// A connected stream.
pub struct Stream<A: Access, D: Doorbell> {
    socket: VirtIOSocket<Bounce<A>, SlotTransport<A, D>, PACKET>,
    device: Rc<Device<A, D>>,
    info: ConnectionInfo,
    counters: Counters,
    incoming: VecDeque<u8>,
    /// Bytes read since the device was told last.
    unreported: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Open,
    Closed,
}

/// Credit: what was sent and received, and what the device says of it.
#[derive(Debug, Default)]
struct Counters {
    sent: u32,
    received: u32,
    peer_window: u32,
    peer_forwarded: u32,
}

impl Counters {
    /// Takes what a packet says about the other end's buffer, if it is possible.
    fn update(&mut self, window: u32, forwarded: u32) -> Result<(), Fault> {
        let pending = self.sent.checked_sub(forwarded).ok_or(Fault::Protocol)?;
        if forwarded < self.peer_forwarded || pending > window {
            return Err(Fault::Protocol);
        }
        (self.peer_window, self.peer_forwarded) = (window, forwarded);
        Ok(())
    }

    /// Bytes that the other end has room for.
    fn room(&self) -> usize {
        self.peer_window.saturating_sub(self.sent.saturating_sub(self.peer_forwarded)) as usize
    }
}

impl<A: Access, D: Doorbell> Stream<A, D> {
    /// Connects to a port of the host through the socket device of a slot.
    ///
    /// # Errors
    /// As [`Device::find`]; [`Fault::Closed`] if nobody listens; [`Fault::Memory`] if the heap does not hold the window.
    pub fn connect(page: &'static DevicePage, port: u32, doorbell: D) -> Result<Self, Fault> {
        let device = Device::find(page, DeviceType::Socket, doorbell)?;
        let cid = device.config_u64(0);
        // Reserved ones, and those that do not exist.
        if cid <= VMADDR_CID_HOST || cid >= u32::MAX.into() {
            return Err(device.give_up(Fault::Config));
        }
        let mut incoming = VecDeque::new();
        incoming.try_reserve_exact(WINDOW).map_err(|_| device.give_up(Fault::Memory))?;
        let socket = VirtIOSocket::new(SlotTransport(device.clone()));
        device.health()?;
        let socket = socket.map_err(|error| device.give_up(blame(error)))?;
        let mut info = ConnectionInfo::new(VsockAddr { cid: VMADDR_CID_HOST, port }, LOCAL_PORT);
        info.buf_alloc = WINDOW as u32;
        let mut stream = Stream {
            socket,
            device,
            info,
            counters: Counters::default(),
            incoming,
            unreported: 0,
            state: State::Connecting,
        };
        let asked = stream.socket.connect(&stream.info);
        stream.finish(asked)?;
        for _ in 0..PATIENCE {
            stream.look()?;
            match stream.state {
                State::Connecting => stream.device.ring(),
                State::Open => return Ok(stream),
                State::Closed => return Err(Fault::Closed),
            }
        }
        Err(stream.device.give_up(Fault::Silent))
    }

    /// Whether the other end has not closed it.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Bytes that can be read now.
    pub fn available(&self) -> usize {
        self.incoming.len()
    }

    fn finish(&self, result: virtio_drivers::Result<()>) -> Result<(), Fault> {
        self.device.health()?;
        result.map_err(|error| self.device.give_up(blame(error)))
    }

    /// Takes the packets that have come. Returns whether there were any.
    ///
    /// # Errors
    /// Why the device is given up.
    pub fn look(&mut self) -> Result<bool, Fault> {
        let mut any = false;
        for _ in 0..PACKETS_AT_A_TIME {
            self.device.collect(RECEIVE)?;
            let Self { socket, incoming, state, .. } = self;
            let mut overflow = false;
            let event = socket.poll(|event, body| {
                if *state == State::Open && body.len() <= WINDOW.saturating_sub(incoming.len()) {
                    incoming.extend(body);
                } else {
                    overflow = !body.is_empty();
                }
                Ok(Some(event))
            });
            self.device.health()?;
            match event {
                Ok(None) => return Ok(any),
                Ok(Some(_)) if overflow => return Err(self.device.give_up(Fault::Protocol)),
                Ok(Some(event)) => self.take(&event)?,
                Err(error) => return Err(self.device.give_up(blame(error))),
            }
            any = true;
        }
        Ok(any)
    }

    fn take(&mut self, event: &VsockEvent) -> Result<(), Fault> {
        if !event.matches_connection(&self.info, self.socket.guest_cid()) {
            return Err(self.device.give_up(Fault::Protocol));
        }
        // An end's counters mean nothing.
        if let VsockEventType::Disconnected { .. } = event.event_type {
            self.state = State::Closed;
            return Ok(());
        }
        let status = &event.buffer_status;
        let known = self.counters.update(status.buffer_allocation, status.forward_count);
        known.map_err(|fault| self.device.give_up(fault))?;
        self.info.update_for_event(event);
        match (&event.event_type, self.state) {
            (VsockEventType::Connected, State::Connecting) => self.state = State::Open,
            (VsockEventType::Received { length }, State::Open) => {
                let received =
                    u32::try_from(*length).ok().and_then(|n| self.counters.received.checked_add(n));
                self.counters.received = received.ok_or_else(|| self.device.give_up(Fault::Closed))?;
            }
            (VsockEventType::CreditRequest, State::Open) => self.report()?,
            (VsockEventType::CreditUpdate, _) => {}
            _ => return Err(self.device.give_up(Fault::Protocol)),
        }
        Ok(())
    }

    /// Tells the device how much was read.
    fn report(&mut self) -> Result<(), Fault> {
        self.unreported = 0;
        let told = self.socket.credit_update(&self.info);
        self.finish(told)
    }

    /// Reads what is there, up to the buffer's length; returns how much. After the end of the stream: 0.
    ///
    /// # Errors
    /// Why the device is given up.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        let count = buffer.len().min(self.incoming.len());
        buffer.iter_mut().zip(self.incoming.drain(..count)).for_each(|(to, from)| *to = from);
        if count > 0 && self.state == State::Open {
            // Cannot overflow: no more is read than was received, which was counted.
            self.info.done_forwarding(count);
            self.unreported += count;
            if self.unreported >= WINDOW / 2 {
                self.report()?;
            }
        }
        Ok(count)
    }

    /// Sends as much as the other end has room for; returns how much.
    ///
    /// # Errors
    /// [`Fault::Closed`]; why the device is given up.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        self.device.health()?;
        if self.state != State::Open {
            return Err(Fault::Closed);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let (packet, later) = rest.split_at(rest.len().min(SEND_MAX).min(self.counters.room()));
            if packet.is_empty() {
                break;
            }
            let sent = self.counters.sent.checked_add(packet.len() as u32);
            let sent = sent.ok_or_else(|| self.device.give_up(Fault::Closed))?;
            let result = self.socket.send(packet, &mut self.info);
            self.finish(result)?;
            self.counters.sent = sent;
            self.unreported = 0;
            rest = later;
        }
        Ok(bytes.len() - rest.len())
    }

    /// Sends all, waiting for room a bounded time.
    ///
    /// # Errors
    /// As [`Self::write`]; [`Fault::Silent`].
    pub fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        let mut patience = PATIENCE;
        while !bytes.is_empty() {
            let sent = self.write(bytes)?;
            bytes = bytes.get(sent..).unwrap_or(&[]);
            if sent > 0 {
                patience = PATIENCE;
            } else {
                patience = patience.checked_sub(1).ok_or_else(|| self.device.give_up(Fault::Silent))?;
                self.device.ring();
            }
            self.look()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_that_is_impossible_is_refused() {
        let mut counters = Counters { sent: 100, received: 0, peer_window: 200, peer_forwarded: 40 };
        assert_eq!(counters.room(), 140);
        assert_eq!(counters.update(200, 101), Err(Fault::Protocol));
        assert_eq!(counters.update(200, 39), Err(Fault::Protocol));
        assert_eq!(counters.update(49, 51 - 1), Err(Fault::Protocol));
        assert_eq!(counters.update(u32::MAX, 100), Ok(()));
        assert_eq!(counters.room(), u32::MAX as usize);
    }
}
