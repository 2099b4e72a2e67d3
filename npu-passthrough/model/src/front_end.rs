//! A front end for tests, in place of QEMU: memory, an IOMMU, and its half of vhost-user.
//!
//! It behaves as QEMU does where that matters: grants claim both rights whatever the page allows; they come over the main
//! socket before the answer to the question; while a request waits for its answer, no question is answered.

use std::collections::BTreeMap;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use flexserve_npu_abi::QUEUES;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::Options;
use crate::device::{Device, lock, quiet, ring};
use crate::dma::Access;
use crate::protocol::{self, HEADER, MISS, NEED_REPLY, request};
use crate::queue::Ring;
use crate::server::connect;

/// Where the device is told that memory lies.
const ADDRESS: u64 = 0x7f00_0000_0000;
/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// What the IOMMU does.
#[derive(Debug, Default)]
pub struct Iommu {
    /// By IOVA of the page: where in memory it is, and whether it may be written.
    pub pages: BTreeMap<u64, (u64, bool)>,
    /// How long a question takes.
    pub delay: Duration,
    /// Questions that were asked.
    pub asked: Vec<(u64, Access)>,
}

/// The front end, connected to a device that runs in threads of this process.
#[derive(Debug)]
pub struct FrontEnd {
    socket: Arc<Mutex<UnixStream>>,
    /// The memory, from address 0.
    pub memory: MmapRegion,
    /// The IOMMU.
    pub iommu: Arc<Mutex<Iommu>>,
    kicks: [OwnedFd; QUEUES],
    calls: [OwnedFd; QUEUES],
    /// The device, to look into.
    pub device: Arc<Device>,
    server: Option<JoinHandle<std::io::Result<()>>>,
    questions: Option<JoinHandle<()>>,
}

fn send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Sends a request and waits for the answer's payload.
fn ask(
    mut socket: &UnixStream,
    number: u32,
    payload: &[u8],
    fds: &[BorrowedFd<'_>],
) -> std::io::Result<Vec<u8>> {
    send(socket, &protocol::message(number, NEED_REPLY, payload), fds)?;
    let mut header = [0; HEADER];
    socket.read_exact(&mut header)?;
    let size = protocol::parse_header(&header).map_or(0, |(_, _, size)| size);
    let mut payload = vec![0; size];
    socket.read_exact(&mut payload)?;
    Ok(payload)
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The payload of an IOTLB message.
fn iotlb(words_before: [u64; 3], permission: u8, kind: u8) -> Vec<u8> {
    let mut payload = words(&words_before);
    payload.extend([permission, kind, 0, 0, 0, 0, 0, 0]);
    payload
}

impl FrontEnd {
    /// Starts a device with so many bytes of memory, of which nothing is mapped.
    ///
    /// # Errors
    /// The host's.
    pub fn new(bytes: usize, options: Options) -> std::io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let (questions, asked) = UnixStream::pair()?;
        let device = Arc::new(Device::new(options)?);
        let thread = {
            let device = device.clone();
            std::thread::spawn(move || connect(theirs, &device))
        };
        let memfd = memfd_create("memory", MemfdFlags::CLOEXEC)?;
        ftruncate(&memfd, bytes as u64)?;
        let file = FileOffset::new(memfd.try_clone()?.into(), 0);
        let memory = MmapRegion::from_file(file, bytes).map_err(std::io::Error::other)?;
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let socket = Arc::new(Mutex::new(ours));
        let iommu = Arc::new(Mutex::new(Iommu::default()));
        let answers = {
            let (socket, iommu) = (socket.clone(), iommu.clone());
            std::thread::spawn(move || answer_questions(questions, &socket, &iommu))
        };
        let front_end = FrontEnd {
            socket,
            memory,
            iommu,
            kicks: [event()?, event()?],
            calls: [event()?, event()?],
            device,
            server: Some(thread),
            questions: Some(answers),
        };
        let features = protocol::F_VERSION_1 | protocol::F_ACCESS_PLATFORM | protocol::F_PROTOCOL_FEATURES;
        front_end.request(request::SET_PROTOCOL_FEATURES, &words(&[protocol::PROTOCOL_FEATURES]), &[])?;
        front_end.request(request::SET_BACKEND_REQ_FD, &[], &[asked.as_fd()])?;
        front_end.request(request::SET_FEATURES, &words(&[features]), &[])?;
        front_end.request(
            request::SET_MEM_TABLE,
            &words(&[1, 0, bytes as u64, ADDRESS, 0]),
            &[memfd.as_fd()],
        )?;
        Ok(front_end)
    }

    /// Sends a request and waits for the answer.
    ///
    /// # Errors
    /// The device is gone.
    pub fn request(&self, number: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<Vec<u8>> {
        ask(&lock(&self.socket), number, payload, fds)
    }

    /// Maps `pages` from `iova` on to memory from `offset` on.
    pub fn map(&self, iova: u64, offset: u64, pages: u64, writable: bool) {
        let mut iommu = lock(&self.iommu);
        for page in 0..pages {
            iommu.pages.insert(iova + page * PAGE, (offset + page * PAGE, writable));
        }
    }

    /// Unmaps `pages` from `iova` on; returns when the device cannot access them any more.
    ///
    /// # Errors
    /// The device is gone.
    pub fn unmap(&self, iova: u64, pages: u64) -> std::io::Result<()> {
        lock(&self.iommu).pages.retain(|at, _| *at < iova || *at >= iova + pages * PAGE);
        self.invalidate(iova, pages * PAGE)
    }

    /// Takes back what the device was granted; sizes are as in messages, so that (0, 0) is everything.
    ///
    /// # Errors
    /// The device is gone.
    pub fn invalidate(&self, iova: u64, size: u64) -> std::io::Result<()> {
        self.request(request::IOTLB_MSG, &iotlb([iova, size, 0], 0, 3), &[]).map(|_| ())
    }

    /// Unmaps everything; the device is told as QEMU tells of `TLBI_S12_VMALL`.
    ///
    /// # Errors
    /// The device is gone.
    pub fn unmap_all(&self) -> std::io::Result<()> {
        lock(&self.iommu).pages.clear();
        self.invalidate(0, 0)
    }

    /// Starts a queue.
    ///
    /// # Errors
    /// The device is gone.
    pub fn start(&self, queue: usize, ring: Ring, base: u16) -> std::io::Result<()> {
        let index = queue as u64;
        let state = |value: u64| words(&[index | value << 32]);
        self.request(request::SET_VRING_NUM, &state(ring.size.into()), &[])?;
        self.request(request::SET_VRING_BASE, &state(base.into()), &[])?;
        let address = words(&[index, ring.descriptors, ring.used, ring.available, 0]);
        self.request(request::SET_VRING_ADDR, &address, &[])?;
        let (kick, call) = (self.kicks.get(queue), self.calls.get(queue));
        let fd = |fd: Option<&'_ OwnedFd>| fd.map(|fd| fd.try_clone()).transpose();
        if let (Some(kick), Some(call)) = (fd(kick)?, fd(call)?) {
            self.request(request::SET_VRING_KICK, &words(&[index]), &[kick.as_fd()])?;
            self.request(request::SET_VRING_CALL, &words(&[index]), &[call.as_fd()])?;
        }
        self.request(request::SET_VRING_ENABLE, &state(1), &[])?;
        Ok(())
    }

    /// Stops a queue; returns how many chains it has served.
    ///
    /// # Errors
    /// The device is gone.
    pub fn stop(&self, queue: usize) -> std::io::Result<u16> {
        let answer = self.request(request::GET_VRING_BASE, &words(&[queue as u64]), &[])?;
        Ok(answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_le_bytes))
    }

    /// Notifies a queue.
    pub fn kick(&self, queue: usize) {
        self.kicks.get(queue).into_iter().for_each(ring);
    }

    /// Whether the device has notified of used buffers, since this was asked last.
    pub fn was_called(&self, queue: usize) -> bool {
        self.calls.get(queue).is_some_and(|call| rustix::io::read(call, &mut [0u8; 8]).is_ok())
    }

    /// Copies out of memory.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        if let Ok(slice) = self.memory.get_slice(offset, bytes.len()) {
            slice.copy_to(bytes);
        }
    }

    /// Copies into memory.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        if let Ok(slice) = self.memory.get_slice(offset, bytes.len()) {
            slice.copy_from(bytes);
        }
    }

    /// Goes away; returns how the connection ended.
    ///
    /// # Errors
    /// That.
    pub fn disconnect(mut self) -> std::io::Result<()> {
        self.hang_up().unwrap_or(Ok(()))
    }

    fn hang_up(&mut self) -> Option<std::io::Result<()>> {
        let _ = lock(&self.socket).shutdown(std::net::Shutdown::Both);
        let result = self.server.take()?.join().ok();
        self.questions.take()?.join().ok()?;
        result
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        self.kicks.iter().for_each(quiet);
        self.hang_up();
    }
}

/// Answers questions for grants until the device is gone.
fn answer_questions(mut questions: UnixStream, socket: &Mutex<UnixStream>, iommu: &Mutex<Iommu>) {
    let mut question = [0; MISS];
    while questions.read_exact(&mut question).is_ok() {
        let Some(iova) = question.get(HEADER..HEADER + 8).and_then(|bytes| bytes.try_into().ok()) else {
            return;
        };
        let iova = u64::from_le_bytes(iova);
        let access = if question[HEADER + 24] == 1 { Access::Read } else { Access::Write };
        let delay = lock(iommu).delay;
        std::thread::sleep(delay);
        // As QEMU's big lock: no request is under way, nor does a translation change, from the look at it to the grant.
        let socket = lock(socket);
        let page = {
            let mut iommu = lock(iommu);
            iommu.asked.push((iova, access));
            iommu.pages.get(&(iova - iova % PAGE)).copied()
        };
        let granted = page.filter(|(_, writable)| access == Access::Read || *writable);
        if let Some((offset, _)) = granted {
            let update = iotlb([iova - iova % PAGE, PAGE, ADDRESS + offset], 3, 2);
            if ask(&socket, request::IOTLB_MSG, &update, &[]).is_err() {
                return;
            }
        }
        drop(socket);
        let answer = protocol::message(
            protocol::BACKEND_IOTLB_MSG,
            protocol::REPLY,
            &words(&[granted.is_none().into()]),
        );
        if questions.write_all(&answer).is_err() {
            return;
        }
    }
}
