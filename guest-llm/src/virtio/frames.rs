//! Session frames over a stream.

use arrayvec::ArrayVec;
use guest_abi::session::{Channel, HEADER, RingError, frame_header, parse_frame_header};

use super::pool::Access;
use super::stream::Stream;
use super::{Doorbell, Fault};

/// Most bytes of a frame that is sent in one piece: each piece is a turn of the host's.
const SMALL: usize = 512;

/// A stream that carries frames, each a header and its payload.
pub struct Frames<A: Access, D: Doorbell> {
    stream: Stream<A, D>,
    /// The header that was read, while its payload is not all there.
    header: Option<(u32, usize)>,
}

impl<A: Access, D: Doorbell> Frames<A, D> {
    /// Uses a connected stream.
    pub fn new(stream: Stream<A, D>) -> Self {
        Frames { stream, header: None }
    }
}

impl From<RingError> for Fault {
    fn from(_: RingError) -> Self {
        Fault::Protocol
    }
}

impl<A: Access, D: Doorbell> Channel for Frames<A, D> {
    type Error = Fault;

    /// Waits for room a bounded time, so that it is never false.
    fn send(&mut self, kind: u32, first: &[u8], second: &[u8]) -> Result<bool, Fault> {
        let header = frame_header(kind, first.len().saturating_add(second.len()))?;
        let parts = [&header, first, second];
        let mut whole = ArrayVec::<u8, SMALL>::new();
        if parts.iter().all(|part| whole.try_extend_from_slice(part).is_ok()) {
            self.stream.write_all(&whole)?;
        } else {
            for part in parts {
                self.stream.write_all(part)?;
            }
        }
        Ok(true)
    }

    /// After the end of the stream: [`Fault::Closed`].
    fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<(u32, usize)>, Fault> {
        self.stream.look()?;
        if self.header.is_none() && self.stream.available() >= HEADER {
            let mut header = [0; HEADER];
            self.stream.read(&mut header)?;
            self.header = Some(parse_frame_header(header)?);
        }
        match self.header {
            Some((kind, length)) if self.stream.available() >= length => {
                let payload = buffer.get_mut(..length).ok_or(Fault::Protocol)?;
                self.stream.read(payload)?;
                self.header = None;
                Ok(Some((kind, length)))
            }
            // What is missing will not come any more.
            _ if !self.stream.is_open() => Err(Fault::Closed),
            _ => Ok(None),
        }
    }
}
