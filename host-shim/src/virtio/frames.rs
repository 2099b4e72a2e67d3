//! Session frames over a stream.

use guest_abi::session::{Channel, HEADER, RingError, frame_header, parse_frame_header};

use super::socket::StreamEnd;

/// This process's end of a stream that carries frames, each a header and its payload.
#[derive(Clone, Debug)]
pub struct Frames(pub StreamEnd);

impl Channel for Frames {
    type Error = RingError;

    fn send(&mut self, kind: u32, first: &[u8], second: &[u8]) -> Result<bool, RingError> {
        let header = frame_header(kind, first.len().saturating_add(second.len()))?;
        if self.0.room() < HEADER + first.len() + second.len() {
            return Ok(false);
        }
        for part in [&header, first, second] {
            self.0.write(part);
        }
        Ok(true)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<(u32, usize)>, RingError> {
        let mut header = [0; HEADER];
        if self.0.peek(&mut header) < HEADER {
            return Ok(None);
        }
        let (kind, length) = parse_frame_header(header)?;
        let payload = buffer.get_mut(..length).ok_or(RingError::TooLong)?;
        if self.0.available() < HEADER + length {
            return Ok(None);
        }
        self.0.read(&mut header);
        self.0.read(payload);
        Ok(Some((kind, length)))
    }
}
