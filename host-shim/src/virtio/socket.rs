//! A socket device (Virtio 1.2, 5.10) with one listening port, the session's stream.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use guest_abi::virtio::{CONFIG_SIZE, ID_SOCKET, STREAM_PORT};
use virtio_queue::{Queue, QueueT};
use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};

use super::{Device, Memory, broken};
use crate::error::Result;

/// Bytes that wait at each end, at most: the credit that the partition has.
pub const WINDOW: usize = 64 * 1024;
/// CID of the partition: it has a socket device of its own, so there is nothing to tell it from.
const GUEST_CID: u64 = 3;
const HOST_CID: u64 = 2;
const STREAM: u16 = 1;
const RX: usize = 0;
const TX: usize = 1;

/// Operations (Virtio 1.2, 5.10.6).
mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

#[derive(Debug, Default)]
struct Pipe {
    connected: bool,
    /// From the partition.
    incoming: VecDeque<u8>,
    /// To the partition.
    outgoing: VecDeque<u8>,
    /// Bytes of the partition that were read, wrapping.
    forwarded: u32,
    /// What of that the partition knows.
    reported: u32,
    hang_up: bool,
}

impl Pipe {
    fn room(&self) -> usize {
        if self.connected { WINDOW.saturating_sub(self.outgoing.len()) } else { 0 }
    }
}

/// This process's end of the stream. It stays when the device goes.
#[derive(Clone, Debug, Default)]
pub struct StreamEnd(Arc<Mutex<Pipe>>);

impl StreamEnd {
    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        // Nothing that holds the lock can leave it in between.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether the partition is connected.
    pub fn is_connected(&self) -> bool {
        self.pipe().connected
    }

    /// Bytes that can be read.
    pub fn available(&self) -> usize {
        self.pipe().incoming.len()
    }

    /// Copies what can be read, without taking it; returns how much.
    pub fn peek(&self, buffer: &mut [u8]) -> usize {
        let pipe = self.pipe();
        buffer.iter_mut().zip(&pipe.incoming).map(|(to, from)| *to = *from).count()
    }

    /// Reads what is there; returns how much.
    pub fn read(&self, buffer: &mut [u8]) -> usize {
        let mut pipe = self.pipe();
        let count = buffer.len().min(pipe.incoming.len());
        buffer.iter_mut().zip(pipe.incoming.drain(..count)).for_each(|(to, from)| *to = from);
        pipe.forwarded = pipe.forwarded.wrapping_add(count as u32);
        count
    }

    /// Room for bytes to the partition; none while it is not connected.
    pub fn room(&self) -> usize {
        self.pipe().room()
    }

    /// Takes as many bytes as there is room for; returns how many.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let mut pipe = self.pipe();
        let room = pipe.room();
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or(&[]);
        pipe.outgoing.extend(taken);
        taken.len()
    }

    /// Ends the stream once everything is sent.
    pub fn hang_up(&self) {
        self.pipe().hang_up = true;
    }
}

/// The device.
#[derive(Debug, Default)]
pub struct Socket {
    end: StreamEnd,
    /// The partition's port, while it is connected.
    port: u32,
    /// Operations to send, with the port of this end and of the other.
    control: VecDeque<(u16, u32, u32)>,
    /// What the partition said of its buffer, and bytes sent to it, wrapping.
    window: u32,
    forwarded: u32,
    sent: u32,
    shut: bool,
}

impl Socket {
    /// A device, and this process's end of its stream.
    pub fn new() -> (Self, StreamEnd) {
        let socket = Socket::default();
        let end = socket.end.clone();
        (socket, end)
    }

    /// Takes one packet of the partition.
    fn take(&mut self, packet: &VsockPacket<'_, ()>) -> Result<()> {
        let (port, peer) = (packet.dst_port(), packet.src_port());
        let known = packet.type_() == STREAM && packet.src_cid() == GUEST_CID && packet.dst_cid() == HOST_CID;
        let connected = self.end.is_connected();
        let mine = known && connected && port == STREAM_PORT && peer == self.port;
        if mine {
            (self.window, self.forwarded) = (packet.buf_alloc(), packet.fwd_cnt());
        }
        match packet.op() {
            op::REQUEST if known && port == STREAM_PORT && !connected => {
                *self.end.pipe() = Pipe { connected: true, ..Pipe::default() };
                (self.port, self.sent, self.shut) = (peer, 0, false);
                (self.window, self.forwarded) = (packet.buf_alloc(), packet.fwd_cnt());
                self.answer(op::RESPONSE, port, peer)
            }
            op::RW if mine => {
                let mut pipe = self.end.pipe();
                let mut bytes = vec![0; packet.data_slice().map_or(0, |data| data.len())];
                if let Some(data) = packet.data_slice() {
                    data.copy_to(&mut bytes);
                }
                if bytes.len() > WINDOW.saturating_sub(pipe.incoming.len()) {
                    return Err(broken("it sends more than it has credit for"));
                }
                pipe.incoming.extend(&bytes);
                Ok(())
            }
            op::CREDIT_REQUEST if mine => self.answer(op::CREDIT_UPDATE, port, peer),
            op::CREDIT_UPDATE if mine => Ok(()),
            op::SHUTDOWN | op::RST if mine => {
                self.end.pipe().connected = false;
                if packet.op() == op::SHUTDOWN { self.answer(op::RST, port, peer) } else { Ok(()) }
            }
            op::RST => Ok(()),
            _ => self.answer(op::RST, port, peer),
        }
    }

    /// Queues a packet without data; a partition that never takes its answers is not served without end.
    fn answer(&mut self, op: u16, port: u32, peer: u32) -> Result<()> {
        if self.control.len() >= 64 {
            return Err(broken("it does not take the answers to its packets"));
        }
        self.control.push_back((op, port, peer));
        Ok(())
    }

    /// What is to be sent next: operation, ports, bytes of data.
    fn next(&mut self) -> Option<(u16, u32, u32, usize)> {
        if let Some((op, port, peer)) = self.control.pop_front() {
            return Some((op, port, peer, 0));
        }
        let pipe = self.end.pipe();
        if !pipe.connected {
            return None;
        }
        let pending = self.sent.wrapping_sub(self.forwarded);
        let credit = self.window.saturating_sub(pending) as usize;
        let data = pipe.outgoing.len().min(credit);
        if data > 0 {
            return Some((op::RW, STREAM_PORT, self.port, data));
        }
        if pipe.hang_up && pipe.outgoing.is_empty() && !self.shut {
            self.shut = true;
            return Some((op::SHUTDOWN, STREAM_PORT, self.port, 0));
        }
        let unreported = pipe.forwarded.wrapping_sub(pipe.reported) as usize;
        (unreported >= WINDOW / 2).then_some((op::CREDIT_UPDATE, STREAM_PORT, self.port, 0))
    }

    /// Fills one of the partition's packets; returns its bytes.
    fn fill(&mut self, packet: &mut VsockPacket<'_, ()>, next: (u16, u32, u32, usize)) -> Result<u32> {
        let (op, port, peer, data) = next;
        let room = packet.data_slice().map_or(0, |slice| slice.len());
        let mut pipe = self.end.pipe();
        let bytes: Vec<u8> =
            if op == op::RW { pipe.outgoing.drain(..data.min(room)).collect() } else { Vec::new() };
        if let Some(slice) = packet.data_slice() {
            slice.copy_from(&bytes);
        }
        let is_stream = port == STREAM_PORT && peer == self.port && pipe.connected;
        pipe.reported = pipe.forwarded;
        packet.set_header_from_raw(&[0; PKT_HEADER_SIZE]).map_err(broken)?;
        packet
            .set_src_cid(HOST_CID)
            .set_dst_cid(GUEST_CID)
            .set_src_port(port)
            .set_dst_port(peer)
            .set_type(STREAM)
            .set_op(op)
            .set_len(bytes.len() as u32)
            .set_flags(if op == op::SHUTDOWN { 3 } else { 0 })
            .set_buf_alloc(if is_stream { WINDOW as u32 } else { 0 })
            .set_fwd_cnt(if is_stream { pipe.forwarded } else { 0 });
        self.sent = self.sent.wrapping_add(bytes.len() as u32);
        Ok((PKT_HEADER_SIZE + bytes.len()) as u32)
    }
}

impl Device for Socket {
    fn id(&self) -> u32 {
        ID_SOCKET
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> [u8; CONFIG_SIZE] {
        let mut config = [0; CONFIG_SIZE];
        config.iter_mut().zip(GUEST_CID.to_le_bytes()).for_each(|(to, from)| *to = from);
        config
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[16, 16, 16]
    }

    fn reset(&mut self) {
        let mut pipe = self.end.pipe();
        // What came stays readable.
        *pipe = Pipe { incoming: std::mem::take(&mut pipe.incoming), ..Pipe::default() };
        self.control.clear();
    }

    fn serve(&mut self, queues: &mut [Queue], memory: &Memory) -> Result<bool> {
        let mut moved = false;
        if let Some(queue) = queues.get_mut(TX) {
            for _ in 0..queue.size() {
                let Some(mut chain) = queue.pop_descriptor_chain(memory) else { break };
                let packet = VsockPacket::from_tx_virtq_chain(memory, &mut chain, WINDOW as u32);
                self.take(&packet.map_err(broken)?)?;
                queue.add_used(memory, chain.head_index(), 0).map_err(broken)?;
                moved = true;
            }
        }
        if let Some(queue) = queues.get_mut(RX) {
            for _ in 0..queue.size() {
                let Some(next) = self.next() else { break };
                let Some(mut chain) = queue.pop_descriptor_chain(memory) else {
                    // No buffer now: answers wait for the next one.
                    if next.3 == 0 && next.0 != op::CREDIT_UPDATE && next.0 != op::SHUTDOWN {
                        self.control.push_front((next.0, next.1, next.2));
                    }
                    self.shut &= next.0 != op::SHUTDOWN;
                    break;
                };
                let packet = VsockPacket::from_rx_virtq_chain(memory, &mut chain, WINDOW as u32);
                let written = self.fill(&mut packet.map_err(broken)?, next)?;
                queue.add_used(memory, chain.head_index(), written).map_err(broken)?;
                moved = true;
            }
        }
        Ok(moved)
    }
}
