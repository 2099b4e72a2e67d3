//! The host's side of the session: runs the vCPU, and between two entries moves frames between the rings and the front.
//!
//! The thread that runs the vCPU also reads the rings, right after the partition came out, so that no frame is lost when
//! the partition ends. It touches the session pages only once the hypervisor counts enough shared pages: before that a
//! touch is a bus error.

use std::sync::atomic::{AtomicBool, Ordering};

use hyp_abi::service::crash;
use hyp_abi::session::{self, Done, Failure, MAX_FRAME, Ready, Ring, RingError, SESSION_PAGES, frame};
use zerocopy::FromBytes;

use crate::error::{Code, Error, Result};
use crate::machine::{Exit, Machine};

/// The longest stay in a vCPU before this program looks whether it is to stop.
const SLICE_NS: u64 = 50_000_000;
/// Entries that a partition gets to end itself when it was asked to; then it is stopped.
const SHUTDOWN_ENTRIES: u32 = 200;
/// Entries after which a partition comes out waiting although the next move is its own.
const IDLE_ENTRIES: u32 = 64;

/// What the partition said.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The model is loaded.
    Ready(Ready),
    /// The prompt is read.
    Prefilled,
    /// A piece of the answer.
    Token(String),
    /// The answer is whole.
    Done(Done),
}

/// Runs a started partition through one request.
///
/// `request` is the payload of a REQUEST frame; `session_ipa` where the session pages lie. What the partition says goes
/// to `tell`. When `cancel` turns true, the answer ends early; before there is an answer, the run ends with
/// [`Code::Interrupted`]. Returns when the partition has ended itself or was stopped.
///
/// # Errors
/// 5 when the partition crashed, was stopped, ended early, refused the model or broke the session; 2 when it refused the
/// request.
pub fn converse<M: Machine>(
    machine: &M,
    id: u16,
    session_ipa: u64,
    request: &[u8],
    cancel: &AtomicBool,
    tell: &mut dyn FnMut(Message),
) -> Result<()> {
    let mut talk =
        Talk { request, cancel, cancel_sent: false, phase: Phase::Loading, tell, buffer: vec![0; MAX_FRAME] };
    let mut session = None;
    let (mut idle, mut ending) = (0, 0);
    loop {
        if talk.phase == Phase::Loading && cancel.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        let exit = machine.run(0, SLICE_NS)?;
        match exit {
            Exit::Finished(_) if talk.phase == Phase::Ending => return Ok(()),
            Exit::Finished(code) => return Err(ended(&format!("ended itself early with code {code}"))),
            Exit::Crashed(cause, detail) => return Err(crashed(cause, detail)),
            Exit::Stopped => return Err(ended("was stopped")),
            Exit::Unknown(reason) => {
                return Err(Error::protocol(format!("the vCPU came out for unknown reason {reason}")));
            }
            Exit::Kick | Exit::Waiting | Exit::Sleep | Exit::Slice => {}
        }
        if session.is_none() && matches!(exit, Exit::Kick | Exit::Waiting) {
            let shared = machine.partition_stats(id)?.pages_shared;
            if shared >= SESSION_PAGES {
                session = Some(machine.map_session(session_ipa)?);
            }
        }
        let moved = match &session {
            Some(session) => talk.exchange(session)?,
            None => false,
        };
        if talk.phase == Phase::Ending {
            ending += 1;
            if ending > SHUTDOWN_ENTRIES {
                machine.stop()?;
                return Ok(());
            }
        }
        // A partition that waits while it owes something would be entered for ever.
        if matches!(exit, Exit::Waiting | Exit::Sleep) && !moved {
            idle += 1;
            if idle > IDLE_ENTRIES {
                return Err(Error::protocol("it waits although the next move is its own"));
            }
        } else {
            idle = 0;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Loading,
    Answering,
    Ending,
}

struct Talk<'a> {
    request: &'a [u8],
    cancel: &'a AtomicBool,
    cancel_sent: bool,
    phase: Phase,
    tell: &'a mut dyn FnMut(Message),
    buffer: Vec<u8>,
}

impl Talk<'_> {
    /// Reads all frames that are there, and sends what is due. Returns whether anything moved.
    fn exchange(&mut self, session: &session::Session) -> Result<bool> {
        let mut moved = false;
        while let Some((kind, length)) = session.to_host.receive(&mut self.buffer).map_err(broken)? {
            let payload = self.buffer.get(..length).unwrap_or(&[]).to_vec();
            self.take(kind, &payload, &session.to_partition)?;
            moved = true;
        }
        if self.phase == Phase::Answering && !self.cancel_sent && self.cancel.load(Ordering::Relaxed) {
            self.cancel_sent = send(&session.to_partition, frame::CANCEL, &[])?;
            moved = true;
        }
        Ok(moved)
    }

    fn take(&mut self, kind: u32, payload: &[u8], answers: &Ring) -> Result<()> {
        let message = match (self.phase, kind) {
            (Phase::Loading, frame::READY) => {
                let ready = fixed::<Ready>(payload)?;
                if !send(answers, frame::REQUEST, self.request)? {
                    return Err(Error::protocol("the ring of requests is full before the first"));
                }
                self.phase = Phase::Answering;
                Message::Ready(ready)
            }
            (Phase::Answering, frame::PREFILLED) => {
                fixed::<[u8; 0]>(payload)?;
                Message::Prefilled
            }
            (Phase::Answering, frame::TOKEN) => {
                let text = String::from_utf8(payload.to_vec());
                Message::Token(text.map_err(|_| Error::protocol("a piece of the answer is not UTF-8"))?)
            }
            (Phase::Answering, frame::DONE) => {
                let done = fixed::<Done>(payload)?;
                self.phase = Phase::Ending;
                // If the ring is full, the partition ends by being stopped.
                send(answers, frame::SHUTDOWN, &[])?;
                Message::Done(done)
            }
            (Phase::Loading | Phase::Answering, frame::ERROR) => return Err(refused(payload)?),
            (phase, kind) => {
                return Err(Error::protocol(format!("frame {kind:#x} while {phase:?}")));
            }
        };
        (self.tell)(message);
        Ok(())
    }
}

fn send(ring: &Ring, kind: u32, payload: &[u8]) -> Result<bool> {
    ring.send(kind, payload, &[]).map_err(broken)
}

fn fixed<T: FromBytes>(payload: &[u8]) -> Result<T> {
    T::read_from_bytes(payload).map_err(|_| Error::protocol(format!("a frame has {} bytes", payload.len())))
}

fn broken(error: RingError) -> Error {
    Error::protocol(match error {
        RingError::Corrupt => "a position in the ring is impossible",
        RingError::TooLong => "a frame is too long",
    })
}

fn refused(payload: &[u8]) -> Result<Error> {
    let malformed = || Error::protocol("an error frame is malformed");
    let (failure, text) = Failure::read_from_prefix(payload).map_err(|_| malformed())?;
    let text = std::str::from_utf8(text).map_err(|_| malformed())?;
    Ok(match failure.code {
        session::failure::MODEL => Error::new(
            Code::Partition,
            format!("the partition refuses the model: {text}"),
            "the model file's",
            "use a GGUF file of a supported model",
        ),
        session::failure::MEMORY => Error::new(
            Code::Partition,
            format!("the partition's memory does not suffice: {text}"),
            "the caller's",
            "give it more with --mem-heap, or use a shorter context (-c)",
        ),
        session::failure::REQUEST => Error::usage(
            format!("the partition refuses the request: {text}"),
            "shorten the prompt or change the options",
        ),
        code => Error::protocol(format!("error code {code} is unknown")),
    })
}

fn ended(how: &str) -> Error {
    Error::new(
        Code::Partition,
        format!("the partition {how}"),
        "the image's or the host's",
        "read the trusted log",
    )
}

fn crashed(cause: u64, [first, second]: [u64; 2]) -> Error {
    ended(&match cause {
        crash::PANIC => format!("crashed: panic in file {first:#018x}, line {second}"),
        crash::ABORT => format!("crashed: it touched memory that it was not given, at IPA {first:#x}"),
        crash::UNDEFINED => format!("crashed: forbidden instruction or register, exception class {first:#x}"),
        crash::SERROR => "crashed: SError".into(),
        cause => format!("crashed: cause {cause}"),
    })
}

/// The user gave up before there was an answer.
pub fn interrupted() -> Error {
    Error::new(Code::Interrupted, "interrupted before there was an answer", "nobody's", "run it again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, Script};
    use hyp_abi::manifest::layout;
    use hyp_abi::service::run_exit;
    use hyp_abi::session::{RING_SIZE, failure};
    use zerocopy::IntoBytes;

    /// Runs a script against a request; returns what was said and the end.
    fn talk(script: impl Script + 'static, cancel: bool) -> (Vec<Message>, Result<()>) {
        let fake = Fake::started(script);
        let cancel = AtomicBool::new(cancel);
        let mut said = Vec::new();
        let end =
            converse(&fake, Fake::ID, layout::SESSION, b"hello", &cancel, &mut |message| said.push(message));
        (said, end)
    }

    fn ready() -> Ready {
        Ready { load_ticks: 1, model_bytes: 2, heap_used: 3 }
    }

    fn done() -> Done {
        Done { prompt_tokens: 4, tokens: 2, prefill_ticks: 10, decode_ticks: 20, stop: 0, reserved: 0 }
    }

    #[test]
    fn a_request_is_answered() {
        let (said, end) = talk(
            |fake: &Fake| {
                fake.share_session();
                fake.say(frame::READY, ready().as_bytes());
                assert_eq!(fake.wait_for_frame(), (frame::REQUEST, b"hello".to_vec()));
                fake.say(frame::PREFILLED, &[]);
                fake.say(frame::TOKEN, "wéke".as_bytes());
                fake.say(frame::TOKEN, " me".as_bytes());
                fake.say(frame::DONE, done().as_bytes());
                assert_eq!(fake.wait_for_frame(), (frame::SHUTDOWN, vec![]));
                Exit::Finished(0)
            },
            false,
        );
        assert_eq!(end, Ok(()));
        let expected = [
            Message::Ready(ready()),
            Message::Prefilled,
            Message::Token("wéke".into()),
            Message::Token(" me".into()),
            Message::Done(done()),
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn kicks_before_the_pages_are_shared_touch_nothing() {
        // The fake panics when the session is mapped while its pages are not shared.
        let (said, end) = talk(
            |fake: &Fake| {
                (0..10).for_each(|_| fake.come_out(Exit::Kick));
                Exit::Finished(1)
            },
            false,
        );
        assert!(said.is_empty());
        assert_eq!(end.unwrap_err().what, "the partition ended itself early with code 1");
    }

    #[test]
    fn an_answer_can_be_cancelled() {
        let fake = Fake::started(|fake: &Fake| {
            fake.share_session();
            fake.say(frame::READY, ready().as_bytes());
            assert_eq!(fake.wait_for_frame().0, frame::REQUEST);
            fake.say(frame::TOKEN, b"one");
            fake.say(frame::TOKEN, b"two");
            assert_eq!(fake.wait_for_frame(), (frame::CANCEL, vec![]));
            fake.say(frame::DONE, Done { stop: 2, ..done() }.as_bytes());
            assert_eq!(fake.wait_for_frame(), (frame::SHUTDOWN, vec![]));
            Exit::Finished(0)
        });
        let cancel = AtomicBool::new(false);
        let mut said = Vec::new();
        let end = converse(&fake, Fake::ID, layout::SESSION, b"hello", &cancel, &mut |message| {
            cancel.store(
                message == Message::Token("two".into()) || cancel.load(Ordering::Relaxed),
                Ordering::Relaxed,
            );
            said.push(message);
        });
        assert_eq!(end, Ok(()));
        assert_eq!(said.last(), Some(&Message::Done(Done { stop: 2, ..done() })));
    }

    #[test]
    fn before_the_answer_a_cancelled_run_ends_at_once() {
        let (said, end) = talk(|_: &Fake| unreachable!("it is not entered"), true);
        assert!(said.is_empty());
        assert_eq!(end.unwrap_err().code, Code::Interrupted);
    }

    #[test]
    fn refusals_name_the_guilty() {
        for (code, expected) in [
            (failure::MODEL, Code::Partition),
            (failure::MEMORY, Code::Partition),
            (failure::REQUEST, Code::Usage),
            (99, Code::Partition),
        ] {
            let (_, end) = talk(
                move |fake: &Fake| {
                    fake.share_session();
                    let mut payload = Failure { code, reserved: 0 }.as_bytes().to_vec();
                    payload.extend(b"because");
                    fake.say(frame::ERROR, &payload);
                    Exit::Finished(1)
                },
                false,
            );
            let error = end.unwrap_err();
            assert_eq!(error.code, expected);
            assert!(code == 99 || error.what.ends_with("because"), "{error}");
        }
    }

    #[test]
    fn a_hostile_partition_is_found_out() {
        type Act = fn(&Fake);
        let acts: [(&str, Act); 9] = [
            ("not UTF-8", |fake| fake.say(frame::TOKEN, &[0xFF])),
            ("has 3 bytes", |fake| fake.say(frame::DONE, &[1, 2, 3])),
            ("has 1 bytes", |fake| fake.say(frame::PREFILLED, &[0])),
            ("malformed", |fake| fake.say(frame::ERROR, &[0; 7])),
            ("malformed", |fake| fake.say(frame::ERROR, &[1, 0, 0, 0, 0, 0, 0, 0, 0xFF])),
            ("frame 0x101 while Answering", |fake| fake.say(frame::READY, ready().as_bytes())),
            ("frame 0x7 while Answering", |fake| fake.say(7, &[])),
            ("a frame is too long", |fake| {
                fake.poke_to_host(4, &u32::MAX.to_le_bytes(), 8);
                fake.come_out(Exit::Kick);
            }),
            ("impossible", |fake| {
                fake.poke_to_host(0, &[], RING_SIZE as u32 + 1);
                fake.come_out(Exit::Kick);
            }),
        ];
        for (expected, act) in acts {
            let (said, end) = talk(
                move |fake: &Fake| {
                    fake.share_session();
                    fake.say(frame::READY, ready().as_bytes());
                    assert_eq!(fake.wait_for_frame().0, frame::REQUEST);
                    act(fake);
                    Exit::Finished(0)
                },
                false,
            );
            assert_eq!(said, [Message::Ready(ready())]);
            let error = end.unwrap_err();
            assert_eq!(error.code, Code::Partition);
            assert!(error.what.contains(expected), "{error}, expected {expected}");
        }
    }

    #[test]
    fn a_partition_that_never_answers_is_given_up() {
        let (_, end) = talk(
            |fake: &Fake| {
                fake.share_session();
                loop {
                    fake.come_out(Exit::Waiting);
                }
            },
            false,
        );
        assert!(end.unwrap_err().what.contains("the next move is its own"));
    }

    #[test]
    fn a_partition_that_does_not_end_is_stopped() {
        let fake = Fake::started(|fake: &Fake| {
            fake.share_session();
            fake.say(frame::READY, ready().as_bytes());
            assert_eq!(fake.wait_for_frame().0, frame::REQUEST);
            fake.say(frame::DONE, done().as_bytes());
            loop {
                fake.come_out(Exit::Slice);
            }
        });
        let end = converse(&fake, Fake::ID, layout::SESSION, b"hello", &AtomicBool::new(false), &mut |_| {});
        assert_eq!(end, Ok(()));
        assert!(fake.stopped());
    }

    #[test]
    fn ends_are_told_apart() {
        for (exit, expected) in [
            (Exit::Crashed(crash::PANIC, [0xAB, 12]), "panic in file 0x00000000000000ab, line 12"),
            (Exit::Crashed(crash::ABORT, [0x4000, 0]), "IPA 0x4000"),
            (Exit::Crashed(crash::UNDEFINED, [0x18, 0]), "class 0x18"),
            (Exit::Crashed(crash::SERROR, [0, 0]), "SError"),
            (Exit::Crashed(9, [0, 0]), "cause 9"),
            (Exit::Stopped, "was stopped"),
            (Exit::Finished(3), "code 3"),
            (Exit::Unknown(run_exit::INTERRUPT), "reason 0"),
        ] {
            let (said, end) = talk(move |_: &Fake| exit, false);
            assert!(said.is_empty());
            let error = end.unwrap_err();
            assert_eq!(error.code, Code::Partition);
            assert!(error.what.contains(expected), "{error}");
        }
    }
}
