//! Questions to the front end for grants, over the channel that it gave for requests of the device.
//!
//! Questions are asked one at a time. A thread that waits for an answer holds no lock, and gives up when its queue is to be
//! stopped: the front end may be waiting for that, and not answer before. The answer then comes later; it is recognised by
//! its turn, and whatever is granted meanwhile is refused, since nobody wants it.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::device::{lock, quiet, wait_for};
use crate::dma::{Access, Fault};
use crate::protocol::{self, HEADER};

/// How long to wait for one's turn before looking whether to stop.
const LOOK: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
struct Channel {
    socket: Option<Arc<UnixStream>>,
    /// Whether somebody asks.
    busy: bool,
    /// Answers to questions that were given up.
    stale: u32,
}

/// The channel for questions.
#[derive(Debug, Default)]
pub struct Grants {
    channel: Mutex<Channel>,
    freed: Condvar,
    wanted: Mutex<Option<(u64, Access)>>,
}

impl Grants {
    /// Uses a channel from now on.
    pub fn set_channel(&self, fd: OwnedFd) {
        let mut channel = lock(&self.channel);
        (channel.socket, channel.stale) = (Some(Arc::new(UnixStream::from(fd))), 0);
    }

    /// Closes the channel.
    pub fn close(&self) {
        *lock(&self.channel) = Channel::default();
    }

    /// What is asked for now.
    pub fn wanted(&self) -> Option<(u64, Access)> {
        *lock(&self.wanted)
    }

    /// Asks for a grant; returns whether the front end says that it gave one.
    ///
    /// # Errors
    /// [`Fault::Stopped`], soon after `wake` became readable because of that.
    pub fn ask(
        &self,
        iova: u64,
        access: Access,
        wake: &OwnedFd,
        is_stopping: &dyn Fn() -> bool,
    ) -> Result<bool, Fault> {
        let mut channel = lock(&self.channel);
        while channel.busy {
            if is_stopping() {
                return Err(Fault::Stopped);
            }
            let waited = self.freed.wait_timeout(channel, LOOK);
            channel = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let Some(socket) = channel.socket.clone() else { return Ok(false) };
        channel.busy = true;
        let mut stale = channel.stale;
        drop(channel);

        let answer =
            self.exchange(&socket, (iova, access), &mut stale, &|| answer(&socket, wake, is_stopping));
        *lock(&self.wanted) = None;

        let mut channel = lock(&self.channel);
        channel.busy = false;
        if channel.socket.as_ref().is_some_and(|present| Arc::ptr_eq(present, &socket)) {
            channel.stale = stale;
            if answer.is_err() {
                channel.socket = None;
            }
        }
        self.freed.notify_all();
        match answer {
            Ok(Some(granted)) => Ok(granted),
            Ok(None) => Err(Fault::Stopped),
            Err(_) => Ok(false),
        }
    }

    /// Asks and waits for the answer; none if the wait was given up.
    fn exchange(
        &self,
        mut socket: &UnixStream,
        question: (u64, Access),
        stale: &mut u32,
        answer: &dyn Fn() -> std::io::Result<Option<bool>>,
    ) -> std::io::Result<Option<bool>> {
        // Nothing is wanted until no grant for an older question, of maybe another kind of access, can come any more.
        while *stale > 0 {
            if answer()?.is_none() {
                return Ok(None);
            }
            *stale -= 1;
        }
        *lock(&self.wanted) = Some(question);
        socket.write_all(&protocol::miss(question.0, question.1 == Access::Write))?;
        let granted = answer()?;
        *stale += u32::from(granted.is_none());
        Ok(granted)
    }
}

/// Waits for an answer; none if the wait was given up.
fn answer(
    mut socket: &UnixStream,
    wake: &OwnedFd,
    is_stopping: &dyn Fn() -> bool,
) -> std::io::Result<Option<bool>> {
    loop {
        if is_stopping() {
            return Ok(None);
        }
        let [answered, woken] = wait_for(socket, Some(wake), None);
        if answered {
            let mut answer = [0; HEADER + 8];
            socket.read_exact(&mut answer)?;
            return Ok(Some(answer.ends_with(&[0; 8])));
        }
        if woken {
            // Whoever stops the queue says so before it rings, so that a ring for that is not lost here.
            quiet(wake);
        }
    }
}
