//! The life of a partition: create, give, measure, start, any number of requests, recall, destroy.
//!
//! Each vCPU has a thread. That of vCPU 0 also carries the session, so that no frame is lost when the partition ends; the
//! caller's thread is the front, so that a slow terminal does not hold up the partition.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use guest_abi::session::READY_CHAT;
use hyp_abi::PAGE_SIZE;
use hyp_abi::manifest::{kind, layout};
use hyp_abi::service::{MEASUREMENT_SIZE, STEP_PAGES};

use crate::error::{Code, Error, Result};
use crate::events::Event;
use crate::image::Image;
use crate::load::{Load, Piece, give};
use crate::machine::{Contents, Machine, Measured};
use crate::report::{Report, hex, milliseconds};
pub use crate::request::{Form, Request};
use crate::session::{Command, Message, compute, converse, end, interrupted};

/// Messages of the partition that wait for the front; then the vCPU waits.
const BACKLOG: usize = 64;

/// How a partition is run.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Of the partition's clock.
    pub ticks_per_second: u64,
    /// Most vCPUs to run; the image may have fewer.
    pub threads: u32,
    /// Whether the heap may get more pages while the partition runs.
    pub heap_grows: bool,
    /// Ends the answer early, or the loading.
    pub cancel: &'a AtomicBool,
}

/// Gets events as they happen.
pub type Tell<'a> = &'a mut dyn FnMut(&Event<'_>);

/// The answer to a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The model's text, verbatim.
    pub text: String,
    /// What it thought before, verbatim; mostly nothing.
    pub thoughts: String,
    /// Why it ended: `end`, `length`, `stop` (a stop string) or `cancelled`.
    pub stop: &'static str,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Of these, those that the partition had not to compute again.
    pub reused_tokens: u64,
    /// Tokens of the answer.
    pub tokens: u64,
    /// Milliseconds of the prompt phase (partition).
    pub prefill_ms: f64,
    /// Milliseconds of the answer phase (partition).
    pub decode_ms: f64,
    /// Milliseconds to the first piece of text, or to the end if there was none.
    pub first_ms: f64,
}

/// A partition that is loaded and takes requests.
pub struct Live<'a, M> {
    machine: &'a M,
    commands: Sender<Command>,
    messages: Receiver<Message>,
    tell: Tell<'a>,
    options: Options<'a>,
    /// IPA of the heap's next page, and how many pages there may yet be.
    heap_end: u64,
    heap_room: u64,
    chats: bool,
    report: Report,
}

/// Runs one request in a new partition, and takes every page back.
///
/// `tell` gets events as they happen, the report excepted.
///
/// # Errors
/// As [`with_partition`]; 2 when the request is refused.
pub fn run<M: Machine>(
    machine: &M,
    load: &Load<'_>,
    request: &Request,
    options: &Options<'_>,
    tell: Tell<'_>,
) -> Result<Report> {
    // Before anything exists.
    request.to_bytes()?;
    let (answer, report) = with_partition(machine, load, options, tell, |live| live.ask(request)?)?;
    Ok(Report { answer: answer.text, thoughts: answer.thoughts, stop: answer.stop, ..report })
}

/// Loads a partition, has `body` use it, ends it, and takes every page back. Returns what `body` did, and the figures.
///
/// # Errors
/// 6 when the host's memory does not suffice, 7 when the hypervisor's measurement is not the one expected, 5 when the
/// partition fails, and those of `body`. The partition is destroyed all the same.
pub fn with_partition<M: Machine, T>(
    machine: &M,
    load: &Load<'_>,
    options: &Options<'_>,
    tell: Tell<'_>,
    body: impl FnOnce(&mut Live<'_, M>) -> Result<T>,
) -> Result<(T, Report)> {
    let start = Instant::now();
    let mut pieces = load.pieces()?;
    let before = machine.system_stats()?;
    let id = machine.create(load.image.manifest_bytes())?;
    let result = (|| {
        let measurement = prepare(machine, load.image, &pieces, options, tell)?;
        let (commands, receiver) = channel();
        let (sender, messages) = sync_channel(BACKLOG);
        let heap = load.image.region(kind::ZERO, layout::HEAP);
        let heap_pages = load.heap_bytes.div_ceil(PAGE_SIZE);
        let heap_end = layout::HEAP + heap_pages * PAGE_SIZE;
        let heap_room = heap.map_or(0, |heap| heap.page_count.saturating_sub(heap_pages));
        let is_over = AtomicBool::new(false);
        let vcpus = load.image.manifest().vcpu_count.min(options.threads).max(1);
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..vcpus)
                .map(|vcpu| {
                    scope.spawn({
                        let is_over = &is_over;
                        move || compute(machine, vcpu, is_over)
                    })
                })
                .collect();
            let is_over = &is_over;
            let first = scope.spawn(move || {
                // The front listens until this thread ends, or does not care any more.
                let mut pass_on = |message| drop(sender.send(message));
                let talked = converse(machine, id, &receiver, options.cancel, &mut pass_on);
                is_over.store(true, Ordering::Relaxed);
                talked
            });
            let report = Report::default();
            let mut live = Live {
                machine,
                commands,
                messages,
                tell,
                options: *options,
                heap_end,
                heap_room,
                chats: false,
                report,
            };
            let done = live.wait_until_ready(start).and_then(|()| body(&mut live));
            // No more commands: it shuts down.
            let Live { report, heap_end: grown, commands, messages, .. } = live;
            drop((commands, messages));
            let talked = join(first);
            // What ended the partition is known to the vCPU that saw it.
            let seen = others.into_iter().filter_map(join).next();
            let talked = match (talked, seen) {
                (Err(error), Some(exit)) if error.code == Code::Partition => Err(end(exit)),
                (talked, _) => talked,
            };
            talked
                .and(done)
                .map(|done| (done, report, measurement, (heap_end, (grown - heap_end) / PAGE_SIZE)))
        })
    })();
    let ended = result.and_then(|(done, report, measurement, (ipa, pages))| {
        let stats = machine.partition_stats(id)?;
        pieces.push(Piece { ipa, pages, contents: None, mappable: false });
        // Piece by piece, as a host does that wants its memory back from a partition that is over.
        for piece in pieces.iter().filter(|piece| piece.pages > 0) {
            machine.recall(piece.ipa, piece.pages)?;
        }
        Ok((done, report, measurement, stats))
    });
    // In every case: pages must not stay with a partition that nobody runs.
    let destroyed = machine.destroy();
    let (done, report, measurement, stats) = ended?;
    destroyed?;

    let after = machine.system_stats()?;
    let report = Report {
        pages_given: stats.pages_given,
        pages_recalled: after.pages_recalled.wrapping_sub(before.pages_recalled),
        bytes_loaded: pieces.iter().filter_map(|piece| piece.contents).map(|bytes| bytes.len() as u64).sum(),
        world_switches: stats.world_switches,
        blocked_accesses: after.blocked_accesses.wrapping_sub(before.blocked_accesses),
        npu_jobs: after.npu.jobs.wrapping_sub(before.npu.jobs),
        measurement: hex(&measurement),
        ..report
    };
    Ok((done, report))
}

/// Gives everything, measures and starts. Returns the measurement.
fn prepare<M: Machine>(
    machine: &M,
    image: &Image,
    pieces: &[Piece<'_>],
    options: &Options<'_>,
    tell: &mut dyn FnMut(&Event<'_>),
) -> Result<[u8; MEASUREMENT_SIZE]> {
    let expected = give(machine, image, pieces, options.cancel, tell)?;
    let total: u64 = pieces.iter().filter(|piece| piece.contents.is_some()).map(|piece| piece.pages).sum();
    let measurement = loop {
        match machine.measure()? {
            Measured::Whole(measurement) => break measurement,
            Measured::Left(left) => {
                if options.cancel.load(Ordering::Relaxed) {
                    return Err(interrupted());
                }
                // The hypervisor counts; what it says is only shown.
                tell(&Event::Progress { what: "measure", done: total.saturating_sub(left), total });
            }
        }
    };
    tell(&Event::Progress { what: "measure", done: total, total });
    if measurement != expected {
        return Err(Error::new(
            Code::Integrity,
            format!("the hypervisor measures {}, expected {}", hex(&measurement), hex(&expected)),
            "the host's",
            "something changed the pages while they were given: do not use this host",
        ));
    }
    machine.start()?;
    tell(&Event::Status { text: "measured and started; the model is being loaded" });
    Ok(measurement)
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn elapsed(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

/// The vCPU's thread has ended; what it returns says why.
fn gone() -> Error {
    Error::protocol("it ended without an answer")
}

impl<M: Machine> Live<'_, M> {
    fn wait_until_ready(&mut self, start: Instant) -> Result<()> {
        let Ok(Message::Ready(ready)) = self.messages.recv() else { return Err(gone()) };
        self.report.load_ms = elapsed(start);
        self.chats = ready.features & READY_CHAT != 0;
        (self.tell)(&Event::Status { text: "the model is loaded" });
        Ok(())
    }

    /// Whether [`Form::Turn`] works: the model has a chat template that the partition knows.
    pub fn chats(&self) -> bool {
        self.chats
    }

    /// Tells an event.
    pub fn tell(&mut self, event: &Event<'_>) {
        (self.tell)(event);
    }

    /// Forgets the conversation.
    ///
    /// # Errors
    /// 5 when the partition has ended.
    pub fn forget(&mut self) -> Result<()> {
        self.command(Command::Forget)
    }

    /// Has a request answered. If the heap is too small for it and may grow, it grows.
    ///
    /// # Errors
    /// The outer error ends the partition; the inner one is the request's, and others may follow.
    pub fn ask(&mut self, request: &Request) -> Result<Result<Answer>> {
        let bytes = match request.to_bytes() {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(error)),
        };
        match self.attempt(bytes.clone())? {
            Err((error, missing)) if missing > 0 && self.options.heap_grows => match self.grow(missing)? {
                Ok(true) => Ok(self.attempt(bytes)?.map_err(|(error, _)| error)),
                Ok(false) => Ok(Err(error)),
                Err(error) => Ok(Err(error)),
            },
            result => Ok(result.map_err(|(error, _)| error)),
        }
    }

    fn command(&mut self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| gone())
    }

    fn attempt(&mut self, request: Vec<u8>) -> Result<std::result::Result<Answer, (Error, u64)>> {
        let start = Instant::now();
        self.command(Command::Ask(request))?;
        let (mut text, mut thoughts) = (String::new(), String::new());
        let mut first_ms = None;
        loop {
            match self.messages.recv().map_err(|_| gone())? {
                Message::Ready(_) | Message::Prefilled => {}
                Message::Token(piece) => {
                    first_ms.get_or_insert_with(|| elapsed(start));
                    (self.tell)(&Event::Token { text: &piece });
                    text.push_str(&piece);
                }
                Message::Thought(piece) => {
                    first_ms.get_or_insert_with(|| elapsed(start));
                    (self.tell)(&Event::Thought { text: &piece });
                    thoughts.push_str(&piece);
                }
                Message::Refused { error, missing } => return Ok(Err((error, missing))),
                Message::Done(done) => {
                    let ticks = self.options.ticks_per_second;
                    let answer = Answer {
                        text,
                        thoughts,
                        stop: match done.stop {
                            0 => "end",
                            1 => "length",
                            3 => "stop",
                            _ => "cancelled",
                        },
                        prompt_tokens: done.prompt_tokens.into(),
                        reused_tokens: done.reused_tokens.into(),
                        tokens: done.tokens.into(),
                        prefill_ms: milliseconds(done.prefill_ticks, ticks),
                        decode_ms: milliseconds(done.decode_ticks, ticks),
                        first_ms: first_ms.unwrap_or_else(|| elapsed(start)),
                    };
                    self.report.add(&answer);
                    return Ok(Ok(answer));
                }
            }
        }
    }

    /// Gives the heap at least so many bytes more. False: the image does not allow as much.
    fn grow(&mut self, bytes: u64) -> Result<Result<bool>> {
        // A whole step: the next lack costs a request of its own.
        let pages = bytes.div_ceil(PAGE_SIZE).next_multiple_of(STEP_PAGES).min(self.heap_room);
        if pages < bytes.div_ceil(PAGE_SIZE) {
            return Ok(Ok(false));
        }
        if let Err(error) = self.machine.give(self.heap_end, Contents::Zero(pages), false) {
            // What was given before it failed comes back when the partition is destroyed.
            self.heap_room = 0;
            return Ok(Err(error.into()));
        }
        self.heap_end += pages * PAGE_SIZE;
        self.heap_room -= pages;
        self.command(Command::Grow)?;
        Ok(Ok(true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use crate::image::tests::{elf, manifest};
    use crate::load::STEP;
    use crate::machine::Exit;
    use flexserve_engine::KvFormat;
    use flexserve_engine::Sampling;
    use guest_abi::session::MAX_FRAME;
    use guest_abi::session::{Done, Failure, Ready, failure, frame};
    use guest_abi::virtio::VIRTIO_PAGES;
    use nix::errno::Errno;
    use zerocopy::IntoBytes;

    fn image() -> Image {
        let segments =
            [(layout::IMAGE, 5000, &[0xAA; 100][..]), (layout::IMAGE + (4 << 20), 4096, &[0xBB; 7])];
        Image::parse(&elf(manifest().as_bytes(), &segments)).unwrap()
    }

    fn request() -> Request {
        let sampling = Sampling { temperature: 0.5, seed: 3, ..Sampling::default() };
        Request {
            max_tokens: 9,
            sampling,
            cache: Some(KvFormat::Q8_0),
            shift: Some(7),
            ..Request::new("wake me", Form::Raw)
        }
    }

    fn answering(fake: &Fake) -> Exit {
        fake.share_session();
        fake.say(frame::READY, Ready::default().as_bytes());
        let (kind, payload) = fake.wait_for_frame();
        assert_eq!((kind, payload), (frame::REQUEST, request().to_bytes().unwrap()));
        fake.say(frame::PREFILLED, &[]);
        fake.say(frame::THOUGHT, b"hm");
        fake.say(frame::TOKEN, b"at ");
        fake.say(frame::TOKEN, b"six");
        fake.say(frame::DONE, done(2).as_bytes());
        assert_eq!(fake.wait_for_frame().0, frame::SHUTDOWN);
        Exit::Finished(0)
    }

    fn run_with(fake: &Fake, model: &[u8], cancel: bool) -> (Result<Report>, Vec<String>) {
        let image = image();
        let load = Load { image: &image, model, heap_bytes: 100_000 };
        let mut events = Vec::new();
        let cancel = AtomicBool::new(cancel);
        let result = run(fake, &load, &request(), &options(&cancel), &mut |event| {
            events.push(String::from_utf8(event.line()).unwrap());
        });
        (result, events)
    }

    fn options(cancel: &AtomicBool) -> Options<'_> {
        Options { ticks_per_second: 1000, threads: 1, heap_grows: true, cancel }
    }

    fn done(tokens: u32) -> Done {
        Done { prompt_tokens: 30, tokens, prefill_ticks: 500, decode_ticks: 100, stop: 1, reused_tokens: 5 }
    }

    #[test]
    fn a_session_answers_many_requests_and_its_figures_are_theirs_together() {
        let fake = Fake::new(|fake: &Fake| {
            fake.share_session();
            fake.say(frame::READY, Ready { features: READY_CHAT, ..Ready::default() }.as_bytes());
            for text in ["one", "two"] {
                assert_eq!(fake.wait_for_frame().0, frame::REQUEST);
                fake.say(frame::TOKEN, text.as_bytes());
                fake.say(frame::DONE, done(2).as_bytes());
            }
            assert_eq!(fake.wait_for_frame().0, frame::RESET);
            assert_eq!(fake.wait_for_frame().0, frame::REQUEST);
            let failure = Failure { code: failure::REQUEST, ..Failure::default() };
            fake.say(frame::ERROR, &[failure.as_bytes(), b"no"].concat());
            assert_eq!(fake.wait_for_frame().0, frame::SHUTDOWN);
            Exit::Finished(0)
        });
        let (image, cancel) = (image(), AtomicBool::new(false));
        let load = Load { image: &image, model: &[1; 5000], heap_bytes: 100_000 };
        let (answers, report) = with_partition(&fake, &load, &options(&cancel), &mut |_| {}, |live| {
            assert!(live.chats());
            let answers = [live.ask(&request())?.unwrap().text, live.ask(&request())?.unwrap().text];
            live.forget()?;
            assert_eq!(live.ask(&request())?.unwrap_err().code, Code::Usage);
            let long = Request { prompt: "x".repeat(MAX_FRAME), ..request() };
            assert_eq!(live.ask(&long)?.unwrap_err().code, Code::Usage);
            Ok(answers)
        })
        .unwrap();
        assert_eq!(answers, ["one", "two"]);
        assert_eq!((report.requests, report.prompt_tokens, report.tokens), (2, 60, 4));
        assert_eq!((report.decode_ms, report.tokens_per_s), (200.0, 20.0));
        assert_eq!(report.pages_given, report.pages_recalled);
        assert!(fake.is_gone());
    }

    /// A partition that lacks `missing` bytes for its request, and what becomes of it.
    fn growing(missing: u64, heap_grows: bool, refuse_give: bool) -> (Result<Report>, Fake) {
        let fake = Fake::new(move |fake: &Fake| {
            fake.share_session();
            fake.say(frame::READY, Ready::default().as_bytes());
            assert_eq!(fake.wait_for_frame().0, frame::REQUEST);
            let failure = Failure { code: failure::MEMORY, reserved: 0, bytes: missing };
            fake.say(frame::ERROR, &[failure.as_bytes(), b"too little"].concat());
            let (kind, _) = fake.wait_for_frame();
            if kind == frame::SHUTDOWN {
                return Exit::Finished(0);
            }
            assert_eq!(kind, frame::GROW);
            assert_eq!(fake.wait_for_frame().0, frame::REQUEST);
            fake.say(frame::DONE, done(0).as_bytes());
            assert_eq!(fake.wait_for_frame().0, frame::SHUTDOWN);
            Exit::Finished(0)
        });
        if refuse_give {
            fake.fail_give(layout::HEAP + 25 * PAGE_SIZE, Errno::ENOMEM);
        }
        let (image, cancel) = (image(), AtomicBool::new(false));
        let load = Load { image: &image, model: &[1; 5000], heap_bytes: 100_000 };
        let options = Options { heap_grows, ..options(&cancel) };
        let result = run(&fake, &load, &request(), &options, &mut |_| {});
        assert!(fake.is_gone());
        (result, fake)
    }

    #[test]
    fn the_heap_grows_while_the_partition_runs() {
        let (report, _) = growing(1 << 20, true, false);
        let report = report.unwrap();
        assert_eq!(report.pages_given, 2 + 1 + 25 + VIRTIO_PAGES + 2 + 512);
        assert_eq!(report.pages_recalled, report.pages_given);
        // A fixed heap, more than the region holds, a lack that is not known.
        for (missing, grows) in [(1 << 20, false), (5 << 30, true), (0, true)] {
            assert_eq!(growing(missing, grows, false).0.unwrap_err().code, Code::Partition);
        }
        assert_eq!(growing(1 << 20, true, true).0.unwrap_err().code, Code::HostMemory);
    }

    #[test]
    fn every_vcpu_has_a_thread_and_a_crash_of_any_ends_the_run() {
        let mut several = manifest();
        several.vcpu_count = 4;
        let image = Image::parse(&elf(several.as_bytes(), &[(layout::IMAGE, 64, &[])])).unwrap();
        let cancel = AtomicBool::new(false);
        let load = Load { image: &image, model: &[1; 5000], heap_bytes: 4096 };
        let go = |fake: &Fake, threads| {
            let options = Options { threads, ..options(&cancel) };
            run(fake, &load, &request(), &options, &mut |_| {})
        };
        for (threads, vcpus) in [(3, 3), (9, 4), (0, 1)] {
            let fake = Fake::new(move |fake: &Fake| {
                while fake.vcpus_seen() < vcpus {
                    fake.come_out(Exit::Slice);
                }
                answering(fake)
            });
            assert!(go(&fake, threads).is_ok());
            assert_eq!(fake.vcpus_seen(), vcpus);
        }
        let fake = Fake::new(|fake: &Fake| {
            loop {
                fake.come_out(Exit::Slice);
            }
        });
        fake.crash_other(Exit::Crashed(4, [0, 0]));
        assert!(go(&fake, 2).unwrap_err().what.contains("SError"));
        assert!(fake.is_gone());
    }

    #[test]
    fn a_run_gives_measures_answers_and_takes_everything_back() {
        let fake = Fake::new(answering);
        let model: Vec<u8> = (0..3 * STEP + 5000).map(|i| (i / 999) as u8).collect();
        let (report, events) = run_with(&fake, &model, false);
        let report = report.unwrap();
        assert_eq!((report.answer.as_str(), report.stop), ("at six", "length"));
        assert_eq!((report.prompt_tokens, report.reused_tokens, report.tokens), (30, 5, 2));
        assert_eq!((report.prefill_ms, report.decode_ms), (500.0, 100.0));
        assert_eq!((report.prefill_tokens_per_s, report.tokens_per_s), (50.0, 20.0));
        // The model ends with a whole step.
        let pages = 2 + 1 + 25 + VIRTIO_PAGES + 4 * STEP_PAGES;
        assert_eq!((report.pages_given, report.pages_recalled), (pages, pages));
        assert_eq!(report.bytes_loaded, 3 * 4096 + model.len() as u64);
        assert_eq!(report.measurement, hex(&fake.measurement()));
        assert!(report.load_ms <= report.ttft_ms);
        assert!(fake.is_gone());
        let tokens: Vec<_> = events.iter().filter(|event| event.contains("token")).collect();
        assert_eq!(tokens.len(), 2);
        assert!(
            events
                .iter()
                .any(|event| event.contains(&format!("\"done\":{0},\"total\":{0}", report.bytes_loaded)))
        );
    }

    #[test]
    fn a_wrong_measurement_ends_the_run_before_it_starts() {
        let fake = Fake::new(|_: &Fake| unreachable!("it is not started"));
        fake.corrupt_measurement();
        let (report, _) = run_with(&fake, &[1; 5000], false);
        assert_eq!(report.unwrap_err().code, Code::Integrity);
        assert!(fake.is_gone());
    }

    #[test]
    fn when_the_host_is_out_of_memory_the_partition_is_destroyed() {
        let fake = Fake::new(|_: &Fake| unreachable!("it is not started"));
        fake.fail_give(layout::MODEL, Errno::ENOMEM);
        let (report, _) = run_with(&fake, &[1; 5000], false);
        assert_eq!(report.unwrap_err().code, Code::HostMemory);
        assert!(fake.is_gone());
    }

    #[test]
    fn a_crash_ends_the_run_and_the_partition() {
        let fake = Fake::new(|_: &Fake| Exit::Crashed(1, [2, 3]));
        let (report, _) = run_with(&fake, &[1; 5000], false);
        assert_eq!(report.unwrap_err().code, Code::Partition);
        assert!(fake.is_gone());
    }

    #[test]
    fn an_interrupted_load_stops_and_leaves_nothing() {
        let fake = Fake::new(|_: &Fake| unreachable!("it is not started"));
        let (report, _) = run_with(&fake, &[1; 5000], true);
        assert_eq!(report.unwrap_err().code, Code::Interrupted);
        assert!(fake.is_gone());
    }

    #[test]
    fn what_does_not_fit_is_refused_before_a_partition_exists() {
        let image = image();
        let fake = Fake::new(|_: &Fake| unreachable!("it is not created"));
        let cancel = AtomicBool::new(false);
        let run = |load: &Load<'_>, request: &Request| {
            run(&fake, load, request, &options(&cancel), &mut |_| {}).unwrap_err()
        };
        let load = Load { image: &image, model: &[1], heap_bytes: 4096 };
        let error = run(&Load { heap_bytes: (4 << 30) + 1, ..load }, &request());
        assert_eq!(error.code, Code::Usage);
        let long = Request { prompt: "x".repeat(MAX_FRAME), ..request() };
        assert_eq!(run(&load, &long).code, Code::Usage);

        let mut small = manifest();
        small.regions[4].page_count = 1;
        let small = Image::parse(&elf(small.as_bytes(), &[(layout::IMAGE, 64, &[])])).unwrap();
        assert!(
            run(&Load { image: &small, model: &[1; 4097], ..load }, &request()).what.contains("does not fit")
        );
        let mut none = manifest();
        none.regions[3].page_count = VIRTIO_PAGES - 1;
        let none = Image::parse(&elf(none.as_bytes(), &[(layout::IMAGE, 64, &[])])).unwrap();
        assert!(run(&Load { image: &none, ..load }, &request()).what.contains("session"));
        assert!(!fake.was_created());
    }
}
