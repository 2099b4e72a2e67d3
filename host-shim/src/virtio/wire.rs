//! The session over a partition's devices.

use guest_abi::session::{Channel, RingError};
use guest_abi::virtio::SLOT_STREAM;

use super::Devices;
use super::frames::Frames;
use super::socket::Socket;
use crate::error::Result;
use crate::machine::Line;

/// A partition's devices, and the frames on the stream of one of them.
pub struct Wire {
    devices: Devices,
    frames: Frames,
}

impl Wire {
    /// Adds the socket device of the session to these devices.
    pub fn new(mut devices: Devices) -> Self {
        let (socket, end) = Socket::new();
        devices.add(SLOT_STREAM, socket);
        Wire { devices, frames: Frames(end) }
    }
}

impl Line for Wire {
    fn service(&mut self) -> Result<bool> {
        self.devices.service()
    }
}

impl Channel for Wire {
    type Error = RingError;

    fn send(&mut self, kind: u32, first: &[u8], second: &[u8]) -> std::result::Result<bool, RingError> {
        self.frames.send(kind, first, second)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> std::result::Result<Option<(u32, usize)>, RingError> {
        self.frames.receive(buffer)
    }
}
