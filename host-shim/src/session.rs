//! The host's side of the session: runs the vCPU, and between two entries moves frames between the stream and the front.
//!
//! The thread that runs the vCPU also looks after the devices and reads the stream, right after the partition came out, so
//! that no frame is lost when the partition ends. It touches the virtio pages only once the hypervisor counts enough shared
//! pages: before that a touch is a bus error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;

use guest_abi::session::{self, Channel, Done, Failure, MAX_FRAME, Ready, RingError, frame};
use guest_abi::virtio::VIRTIO_PAGES;
use hyp_abi::service::crash;
use zerocopy::FromBytes;

use crate::error::{Code, Error, Result};
use crate::machine::{Exit, Line, Machine};

/// The longest stay in a vCPU before this program looks whether it is to stop.
const SLICE_NS: u64 = 50_000_000;
/// The same for vCPUs that only compute.
const LONG_SLICE_NS: u64 = 1_000_000_000;
/// Entries that a partition gets to end itself when it was asked to; then it is stopped.
const SHUTDOWN_ENTRIES: u32 = 200;
/// Entries after which a partition comes out waiting although the next move is its own.
const IDLE_ENTRIES: u32 = 64;

/// What the front asks of the partition.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// The payload of a REQUEST frame. The partition answers with [`Message::Done`] or [`Message::Refused`].
    Ask(Vec<u8>),
    /// Forget the conversation.
    Forget,
    /// The heap has more pages.
    Grow,
    /// End.
    Shutdown,
}

/// What the partition said.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The model is loaded; requests are welcome.
    Ready(Ready),
    /// The prompt is read.
    Prefilled,
    /// A piece of the answer.
    Token(String),
    /// A piece of what the model thinks before it answers.
    Thought(String),
    /// The answer is whole.
    Done(Done),
    /// The request was refused; others are welcome.
    Refused {
        /// Why.
        error: Error,
        /// If memory is what it lacks: so many bytes more of heap would do. 0: not known, or not the reason.
        missing: u64,
    },
}

/// Runs vCPU 0 of a started partition, and carries the session: `commands` to the partition, what it says to `tell`.
///
/// When `cancel` turns true, the answer ends early; before the model is
/// loaded, all ends with [`Code::Interrupted`]. Between requests the vCPU is not entered. Returns when the partition has
/// ended itself or was stopped, which [`Command::Shutdown`] or the end of `commands` brings about.
///
/// # Errors
/// 5 when the partition crashed, was stopped, ended early, refused the model or broke the session.
pub fn converse<M: Machine>(
    machine: &M,
    id: u16,
    commands: &Receiver<Command>,
    cancel: &AtomicBool,
    tell: &mut dyn FnMut(Message),
) -> Result<()> {
    let mut talk =
        Talk { cancel, cancel_sent: false, phase: Phase::Loading, tell, buffer: vec![0; MAX_FRAME] };
    let mut line: Option<M::Line> = None;
    let (mut idle, mut ending) = (0, 0);
    loop {
        match (talk.phase, &mut line) {
            (Phase::Loading, _) if cancel.load(Ordering::Relaxed) => return Err(interrupted()),
            // Only a session says that it is ready.
            (Phase::Idle, Some(line)) => {
                talk.command(commands.recv().unwrap_or(Command::Shutdown), line)?;
                // So that the partition finds it when it is entered.
                line.service()?;
                continue;
            }
            _ => {}
        }
        let exit = machine.run(0, SLICE_NS)?;
        match exit {
            Exit::Finished(_) if talk.phase == Phase::Ending => return Ok(()),
            Exit::Unknown(reason) => {
                return Err(Error::protocol(format!("the vCPU came out for unknown reason {reason}")));
            }
            Exit::Kick | Exit::Waiting | Exit::Sleep | Exit::Slice => {}
            exit => return Err(end(exit)),
        }
        let looks = matches!(exit, Exit::Kick | Exit::Waiting);
        if line.is_none() && looks && machine.partition_stats(id)?.pages_shared >= VIRTIO_PAGES {
            line = Some(machine.connect()?);
        }
        let mut moved = false;
        if let Some(line) = &mut line {
            moved = looks && line.service()?;
            moved |= talk.exchange(line)?;
            if moved {
                // What was sent, and room for more, as well.
                line.service()?;
            }
        }
        if talk.phase == Phase::Ending {
            ending += 1;
            if ending > SHUTDOWN_ENTRIES {
                machine.stop()?;
                return Ok(());
            }
        }
        // A partition that waits while it owes something would be entered for ever. One that sleeps waits for its own
        // vCPUs.
        if exit == Exit::Waiting && !moved {
            idle += 1;
            if idle > IDLE_ENTRIES {
                return Err(Error::protocol("it waits although the next move is its own"));
            }
        } else {
            idle = 0;
        }
    }
}

/// Runs another vCPU until `is_over` or the partition's end, which it returns if it is the one who saw it.
pub fn compute<M: Machine>(machine: &M, vcpu: u32, is_over: &AtomicBool) -> Option<Exit> {
    while !is_over.load(Ordering::Relaxed) {
        match machine.run(vcpu, LONG_SLICE_NS) {
            Ok(exit @ (Exit::Finished(_) | Exit::Crashed(..) | Exit::Stopped)) => return Some(exit),
            Ok(_) => {}
            // It ended, on another vCPU; or this one cannot run, which harms nobody but the partition.
            Err(_) => return None,
        }
    }
    None
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Loading,
    Idle,
    Answering,
    Ending,
}

struct Talk<'a> {
    cancel: &'a AtomicBool,
    cancel_sent: bool,
    phase: Phase,
    tell: &'a mut dyn FnMut(Message),
    buffer: Vec<u8>,
}

impl Talk<'_> {
    /// Passes a command on, while the partition is idle.
    fn command(&mut self, command: Command, channel: &mut impl Channel<Error = RingError>) -> Result<()> {
        let (kind, payload, phase) = match &command {
            Command::Ask(request) => (frame::REQUEST, request.as_slice(), Phase::Answering),
            Command::Forget => (frame::RESET, &[][..], Phase::Idle),
            Command::Grow => (frame::GROW, &[][..], Phase::Idle),
            Command::Shutdown => (frame::SHUTDOWN, &[][..], Phase::Ending),
        };
        // An idle partition empties the stream when it runs; one that does not end is stopped.
        if !channel.send(kind, payload, &[]).map_err(broken)? && phase != Phase::Ending {
            return Err(Error::protocol("the stream of requests is full although it is idle"));
        }
        self.phase = phase;
        self.cancel_sent = false;
        Ok(())
    }

    /// Reads all frames that are there, and sends what is due. Returns whether anything moved.
    fn exchange(&mut self, channel: &mut impl Channel<Error = RingError>) -> Result<bool> {
        let mut moved = false;
        while let Some((kind, length)) = channel.receive(&mut self.buffer).map_err(broken)? {
            let payload = self.buffer.get(..length).unwrap_or(&[]).to_vec();
            self.take(kind, &payload)?;
            moved = true;
        }
        if self.phase == Phase::Answering && !self.cancel_sent && self.cancel.load(Ordering::Relaxed) {
            self.cancel_sent = channel.send(frame::CANCEL, &[], &[]).map_err(broken)?;
            moved = true;
        }
        Ok(moved)
    }

    fn take(&mut self, kind: u32, payload: &[u8]) -> Result<()> {
        let message = match (self.phase, kind) {
            (Phase::Loading, frame::READY) => {
                let ready = fixed::<Ready>(payload)?;
                self.phase = Phase::Idle;
                Message::Ready(ready)
            }
            (Phase::Answering, frame::PREFILLED) => {
                fixed::<[u8; 0]>(payload)?;
                Message::Prefilled
            }
            (Phase::Answering, frame::TOKEN | frame::THOUGHT) => {
                let text = String::from_utf8(payload.to_vec());
                let text = text.map_err(|_| Error::protocol("a piece of the answer is not UTF-8"))?;
                if kind == frame::TOKEN { Message::Token(text) } else { Message::Thought(text) }
            }
            (Phase::Answering, frame::DONE) => {
                let done = fixed::<Done>(payload)?;
                self.phase = Phase::Idle;
                Message::Done(done)
            }
            (Phase::Loading, frame::ERROR) => return Err(refused(payload)?.0),
            (Phase::Answering, frame::ERROR) => {
                let (error, missing) = refused(payload)?;
                self.phase = Phase::Idle;
                Message::Refused { error, missing }
            }
            (phase, kind) => {
                return Err(Error::protocol(format!("frame {kind:#x} while {phase:?}")));
            }
        };
        (self.tell)(message);
        Ok(())
    }
}

fn fixed<T: FromBytes>(payload: &[u8]) -> Result<T> {
    T::read_from_bytes(payload).map_err(|_| Error::protocol(format!("a frame has {} bytes", payload.len())))
}

fn broken(error: RingError) -> Error {
    Error::protocol(match error {
        RingError::Corrupt => "a position in the stream is impossible",
        RingError::TooLong => "a frame is too long",
    })
}

/// What an ERROR frame means, and the bytes of heap that it asks for.
fn refused(payload: &[u8]) -> Result<(Error, u64)> {
    let malformed = || Error::protocol("an error frame is malformed");
    let (failure, text) = Failure::read_from_prefix(payload).map_err(|_| malformed())?;
    let text = std::str::from_utf8(text).map_err(|_| malformed())?;
    let error = match failure.code {
        session::failure::MODEL => Error::new(
            Code::Partition,
            format!("the partition refuses the model: {text}"),
            "the model file's",
            "use a GGUF file of a supported model",
        ),
        session::failure::MEMORY => memory_does_not_suffice(text),
        session::failure::REQUEST => Error::usage(
            format!("the partition refuses the request: {text}"),
            "shorten the prompt, clear the conversation, or change the options",
        ),
        code => return Err(Error::protocol(format!("error code {code} is unknown"))),
    };
    Ok((error, if failure.code == session::failure::MEMORY { failure.bytes } else { 0 }))
}

fn memory_does_not_suffice(text: &str) -> Error {
    Error::new(
        Code::Partition,
        format!("the partition's memory does not suffice: {text}"),
        "the caller's",
        "give it more with --mem-heap, or use a shorter context (-c)",
    )
}

/// The error that an end of the partition is, when nobody asked for it.
pub fn end(exit: Exit) -> Error {
    match exit {
        Exit::Finished(session::EXIT_NO_MEMORY) => {
            memory_does_not_suffice("the heap does not hold what a session begins with")
        }
        Exit::Finished(code) => ended(&format!("ended itself early with code {code}")),
        Exit::Crashed(cause, detail) => crashed(cause, detail),
        _ => ended("was stopped"),
    }
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
    use guest_abi::session::{RING_SIZE, failure};
    use hyp_abi::service::run_exit;
    use std::sync::mpsc::channel;
    use zerocopy::IntoBytes;

    /// Runs a script against commands; returns what was said and the end.
    fn talk_of(
        fake: &Fake,
        commands: impl IntoIterator<Item = Command>,
        cancel: &AtomicBool,
        hear: &mut dyn FnMut(&Message),
    ) -> (Vec<Message>, Result<()>) {
        let (sender, receiver) = channel();
        commands.into_iter().for_each(|command| sender.send(command).unwrap());
        drop(sender);
        let mut said = Vec::new();
        let mut tell = |message| {
            hear(&message);
            said.push(message);
        };
        let end = converse(fake, Fake::ID, &receiver, cancel, &mut tell);
        (said, end)
    }

    /// The same with one request.
    fn talk(script: impl Script + 'static, cancel: bool) -> (Vec<Message>, Result<()>) {
        let cancel = AtomicBool::new(cancel);
        talk_of(&Fake::started(script), [Command::Ask(b"hello".to_vec())], &cancel, &mut |_| {})
    }

    fn ready() -> Ready {
        Ready { load_ticks: 1, model_bytes: 2, heap_used: 3, features: 0 }
    }

    fn done() -> Done {
        Done { prompt_tokens: 4, tokens: 2, prefill_ticks: 10, decode_ticks: 20, stop: 0, reused_tokens: 0 }
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
    fn requests_follow_each_other_and_one_that_is_refused_ends_nothing() {
        let fake = Fake::started(|fake: &Fake| {
            fake.share_session();
            fake.say(frame::READY, ready().as_bytes());
            assert_eq!(fake.wait_for_frame(), (frame::REQUEST, b"first".to_vec()));
            let failure = Failure { code: failure::MEMORY, reserved: 0, bytes: 77 };
            fake.say(frame::ERROR, &[failure.as_bytes(), b"too little"].concat());
            assert_eq!(fake.wait_for_frame(), (frame::GROW, vec![]));
            assert_eq!(fake.wait_for_frame(), (frame::RESET, vec![]));
            assert_eq!(fake.wait_for_frame(), (frame::REQUEST, b"second".to_vec()));
            fake.say(frame::TOKEN, b"yes");
            fake.say(frame::DONE, done().as_bytes());
            assert_eq!(fake.wait_for_frame(), (frame::SHUTDOWN, vec![]));
            Exit::Finished(0)
        });
        let commands = [
            Command::Ask(b"first".to_vec()),
            Command::Grow,
            Command::Forget,
            Command::Ask(b"second".to_vec()),
            Command::Shutdown,
        ];
        let (said, end) = talk_of(&fake, commands, &AtomicBool::new(false), &mut |_| {});
        assert_eq!(end, Ok(()));
        assert_eq!(said[2..], [Message::Token("yes".into()), Message::Done(done())]);
        let Message::Refused { error, missing } = &said[1] else { panic!("{said:?}") };
        assert_eq!((error.code, *missing), (Code::Partition, 77));
    }

    #[test]
    fn a_vcpu_that_computes_comes_back_with_the_end_or_when_all_is_over() {
        let fake = Fake::started(|fake: &Fake| {
            (0..3).for_each(|_| fake.come_out(Exit::Sleep));
            Exit::Crashed(crash::ABORT, [0x4000, 0])
        });
        let over = AtomicBool::new(false);
        assert_eq!(compute(&fake, 0, &over), Some(Exit::Crashed(crash::ABORT, [0x4000, 0])));
        assert_eq!(compute(&fake, 0, &over), None);
        over.store(true, Ordering::Relaxed);
        assert_eq!(compute(&Fake::started(|_: &Fake| unreachable!()), 0, &over), None);
    }

    #[test]
    fn devices_are_looked_after_when_the_partition_asks() {
        let fake = Fake::started(|fake: &Fake| {
            fake.share_session();
            for exit in [Exit::Kick, Exit::Slice, Exit::Sleep, Exit::Waiting, Exit::Kick, Exit::Kick] {
                fake.come_out(exit);
            }
            unreachable!("the device gave up");
        });
        fake.break_devices_after(3);
        let (_, end) = talk_of(&fake, [], &AtomicBool::new(false), &mut |_| {});
        assert!(end.unwrap_err().what.contains("enough"));
        assert_eq!(fake.services(), 4);
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
        let (said, end) = talk_of(&fake, [Command::Ask(b"hello".to_vec())], &cancel, &mut |message| {
            if *message == Message::Token("two".into()) {
                cancel.store(true, Ordering::Relaxed);
            }
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
                    let mut payload = Failure { code, ..Failure::default() }.as_bytes().to_vec();
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
        let acts: [(&str, Act); 10] = [
            ("not UTF-8", |fake| fake.say(frame::TOKEN, &[0xFF])),
            ("not UTF-8", |fake| fake.say(frame::THOUGHT, &[0xFF])),
            ("has 3 bytes", |fake| fake.say(frame::DONE, &[1, 2, 3])),
            ("has 1 bytes", |fake| fake.say(frame::PREFILLED, &[0])),
            ("malformed", |fake| fake.say(frame::ERROR, &[0; 15])),
            ("malformed", |fake| fake.say(frame::ERROR, &[&[1][..], &[0; 15], &[0xFF]].concat())),
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
        let commands = [Command::Ask(b"hello".to_vec())];
        let (_, end) = talk_of(&fake, commands, &AtomicBool::new(false), &mut |_| {});
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
            (Exit::Finished(session::EXIT_NO_MEMORY), "memory does not suffice"),
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
