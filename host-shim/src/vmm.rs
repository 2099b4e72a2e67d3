//! The life of a partition: create, give, measure, start, converse, recall, destroy.
//!
//! Contents pass through one buffer of 2 MiB, are hashed there and given from there, so that what is measured is what was
//! given even if the file changes, and memory is needed for the partition only.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use hyp_abi::PAGE_SIZE;
use hyp_abi::manifest::{Region, kind, layout};
use hyp_abi::service::{MEASUREMENT_SIZE, STEP_PAGES};
use hyp_abi::session::{self, Done, MAX_FRAME, SESSION_PAGES};
use zerocopy::IntoBytes;

use crate::error::{Code, Error, Result};
use crate::events::Event;
use crate::image::Image;
use crate::machine::{Contents, Machine};
use crate::measure::Measurer;
use crate::report::{Report, hex, milliseconds, rate};
use crate::session::{Message, converse, interrupted};

/// Bytes given at a time.
const STEP: usize = (STEP_PAGES * PAGE_SIZE) as usize;
/// Messages of the partition that wait for the front; then the vCPU waits.
const BACKLOG: usize = 64;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The prompt.
    pub prompt: String,
    /// Most tokens of the answer.
    pub max_tokens: u32,
    /// Context length in tokens; 0: the model's own.
    pub context: u32,
    /// Temperature; 0 is greedy.
    pub temperature: f32,
    /// Sampler seed.
    pub seed: u64,
    /// Raw completion, no request template.
    pub raw: bool,
}

impl Request {
    /// The payload of a REQUEST frame.
    ///
    /// # Errors
    /// Code 2 if the prompt does not fit.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let head = session::Request {
            max_tokens: self.max_tokens,
            context: self.context,
            temperature: self.temperature.to_bits(),
            flags: if self.raw { session::REQUEST_RAW } else { 0 },
            seed: self.seed,
        };
        let bytes = [head.as_bytes(), self.prompt.as_bytes()].concat();
        if bytes.len() > MAX_FRAME {
            let limit = MAX_FRAME - size_of::<session::Request>();
            return Err(Error::usage(
                format!("the prompt has {} bytes of at most {limit}", self.prompt.len()),
                "shorten it",
            ));
        }
        Ok(bytes)
    }
}

/// What runs: an image with its model.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// The image.
    pub image: &'a Image,
    /// The model file.
    pub model: &'a [u8],
    /// Bytes of heap.
    pub heap_bytes: u64,
}

/// Pages to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece<'a> {
    ipa: u64,
    pages: u64,
    /// Given and measured; none: zero pages.
    contents: Option<&'a [u8]>,
    mappable: bool,
}

impl<'a> Piece<'a> {
    fn zero(region: &Region, pages: u64) -> Self {
        Piece { ipa: region.ipa, pages, contents: None, mappable: region.kind == kind::SHARED }
    }

    fn contents(ipa: u64, bytes: &'a [u8]) -> Self {
        let pages = (bytes.len() as u64).div_ceil(PAGE_SIZE);
        Piece { ipa, pages, contents: Some(bytes), mappable: false }
    }
}

impl<'a> Load<'a> {
    /// What to give, at ascending IPAs.
    fn pieces(&self) -> Result<Vec<Piece<'a>>> {
        let image = self.image;
        let mut pieces: Vec<_> =
            image.pages().iter().map(|pages| Piece::contents(pages.ipa, &pages.bytes)).collect();
        let mut session = false;
        for region in image.regions() {
            match region.kind {
                kind::ZERO if region.ipa == layout::HEAP => {
                    let pages = self.heap_bytes.div_ceil(PAGE_SIZE);
                    if pages > region.page_count {
                        let most = region.page_count.saturating_mul(PAGE_SIZE) >> 20;
                        return Err(Error::usage(
                            format!("the heap of {} MiB exceeds the image's {most}", self.heap_bytes >> 20),
                            "use a smaller --mem-heap or context (-c)",
                        ));
                    }
                    pieces.push(Piece::zero(region, pages));
                }
                kind::ZERO => pieces.push(Piece::zero(region, region.page_count)),
                kind::SHARED if region.ipa == layout::SESSION && region.page_count >= SESSION_PAGES => {
                    session = true;
                    pieces.push(Piece::zero(region, SESSION_PAGES));
                }
                _ => {}
            }
        }
        if !session {
            return Err(Error::image("it has no region for the session"));
        }
        let Some(region) = image.region(kind::MODEL, layout::MODEL) else {
            return Err(Error::image("it has no region for a model"));
        };
        let model = Piece::contents(region.ipa, self.model);
        if model.pages > region.page_count {
            return Err(Error::new(
                Code::Partition,
                format!("the model of {} MiB does not fit the image's region", self.model.len() >> 20),
                "the caller's",
                "use a smaller model",
            ));
        }
        pieces.push(model);
        pieces.retain(|piece| piece.pages > 0);
        pieces.sort_by_key(|piece| piece.ipa);
        Ok(pieces)
    }
}

/// Runs one request in a new partition, and takes every page back.
///
/// `tell` gets events as they happen, the report excepted. `cancel` ends the answer early. `ticks_per_second` is that of
/// the partition's clock.
///
/// # Errors
/// As the module says of each step; 7 when the hypervisor's measurement is not the one expected. The partition is
/// destroyed all the same.
pub fn run<M: Machine>(
    machine: &M,
    load: &Load<'_>,
    request: &Request,
    ticks_per_second: u64,
    cancel: &AtomicBool,
    tell: &mut dyn FnMut(&Event<'_>),
) -> Result<Report> {
    let start = Instant::now();
    let pieces = load.pieces()?;
    let request = request.to_bytes()?;
    let before = machine.system_stats()?;
    let id = machine.create(load.image.manifest_bytes())?;
    let mut front = Front { start, ready_ms: 0.0, first_ms: None, answer: String::new(), done: None, tell };

    let result = (|| {
        let expected = give(machine, load.image, &pieces, cancel, front.tell)?;
        let measurement = machine.measure()?;
        if measurement != expected {
            return Err(Error::new(
                Code::Integrity,
                format!("the hypervisor measures {}, expected {}", hex(&measurement), hex(&expected)),
                "the host's",
                "something changed the pages while they were given: do not use this host",
            ));
        }
        machine.start()?;
        (front.tell)(&Event::Status { text: "measured and started; the model is being loaded" });
        follow(machine, id, &request, cancel, &mut front)?;
        Ok(measurement)
    })();
    let ended = result.and_then(|measurement| {
        let stats = machine.partition_stats(id)?;
        // Piece by piece, as a host does that wants its memory back from a partition that is over.
        for piece in &pieces {
            machine.recall(piece.ipa, piece.pages)?;
        }
        Ok((measurement, stats))
    });
    // In every case: pages must not stay with a partition that nobody runs.
    let destroyed = machine.destroy();
    let (measurement, stats) = ended?;
    destroyed?;

    let after = machine.system_stats()?;
    let done = front.done.ok_or_else(|| Error::protocol("it ended without an answer"))?;
    let (prompt_tokens, tokens) = (u64::from(done.prompt_tokens), u64::from(done.tokens));
    let prefill_ms = milliseconds(done.prefill_ticks, ticks_per_second);
    let decode_ms = milliseconds(done.decode_ticks, ticks_per_second);
    Ok(Report {
        stop: match done.stop {
            0 => "end",
            1 => "length",
            _ => "cancelled",
        },
        prompt_tokens,
        tokens,
        prefill_ms,
        decode_ms,
        prefill_tokens_per_s: rate(prompt_tokens, prefill_ms),
        tokens_per_s: rate(tokens, decode_ms),
        load_ms: front.ready_ms,
        ttft_ms: front.first_ms.unwrap_or_else(|| elapsed(start)),
        pages_given: stats.pages_given,
        pages_recalled: after.pages_recalled.wrapping_sub(before.pages_recalled),
        bytes_loaded: pieces.iter().filter_map(|piece| piece.contents).map(|bytes| bytes.len() as u64).sum(),
        world_switches: stats.world_switches,
        blocked_accesses: after.blocked_accesses.wrapping_sub(before.blocked_accesses),
        npu_jobs: 0,
        measurement: hex(&measurement),
        answer: front.answer,
    })
}

fn elapsed(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

/// Gives all pieces; returns the measurement to expect.
fn give<M: Machine>(
    machine: &M,
    image: &Image,
    pieces: &[Piece<'_>],
    cancel: &AtomicBool,
    tell: &mut dyn FnMut(&Event<'_>),
) -> Result<[u8; MEASUREMENT_SIZE]> {
    let mut measurer = Measurer::new(image.manifest_bytes());
    let total = pieces.iter().filter_map(|piece| piece.contents).map(|bytes| bytes.len() as u64).sum();
    let (mut done, mut buffer) = (0, Vec::with_capacity(STEP));
    for piece in pieces {
        let Some(contents) = piece.contents else {
            machine.give(piece.ipa, Contents::Zero(piece.pages), piece.mappable)?;
            continue;
        };
        for (index, bytes) in contents.chunks(STEP).enumerate() {
            if cancel.load(Ordering::Relaxed) {
                return Err(interrupted());
            }
            let ipa = piece.ipa + (index * STEP) as u64;
            buffer.clear();
            buffer.extend_from_slice(bytes);
            buffer.resize(bytes.len().next_multiple_of(PAGE_SIZE as usize), 0);
            measurer.pages(ipa, &buffer);
            machine.give(ipa, Contents::Bytes(&buffer), piece.mappable)?;
            done += bytes.len() as u64;
            tell(&Event::Progress { what: "load", done, total });
        }
    }
    Ok(measurer.finish())
}

/// What the front knows of the answer.
struct Front<'a> {
    start: Instant,
    ready_ms: f64,
    first_ms: Option<f64>,
    answer: String,
    done: Option<Done>,
    tell: &'a mut dyn FnMut(&Event<'_>),
}

impl Front<'_> {
    fn hear(&mut self, message: Message) {
        match message {
            Message::Ready(_) => {
                self.ready_ms = elapsed(self.start);
                (self.tell)(&Event::Status { text: "the model is loaded" });
            }
            Message::Prefilled => {}
            Message::Token(text) => {
                self.first_ms.get_or_insert_with(|| elapsed(self.start));
                (self.tell)(&Event::Token { text: &text });
                self.answer.push_str(&text);
            }
            Message::Done(done) => self.done = Some(done),
        }
    }
}

/// Runs the vCPU in a thread of its own, so that a slow terminal does not hold up the partition.
fn follow<M: Machine>(
    machine: &M,
    id: u16,
    request: &[u8],
    cancel: &AtomicBool,
    front: &mut Front<'_>,
) -> Result<()> {
    let (sender, receiver) = sync_channel(BACKLOG);
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(move || {
            // The front listens until this thread ends.
            converse(machine, id, layout::SESSION, request, cancel, &mut |message| drop(sender.send(message)))
        });
        receiver.iter().for_each(|message| front.hear(message));
        vcpu.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use crate::image::tests::{elf, manifest};
    use crate::machine::Exit;
    use hyp_abi::session::{Ready, frame};
    use nix::errno::Errno;

    fn image() -> Image {
        let segments =
            [(layout::IMAGE, 5000, &[0xAA; 100][..]), (layout::IMAGE + (4 << 20), 4096, &[0xBB; 7])];
        Image::parse(&elf(manifest().as_bytes(), &segments)).unwrap()
    }

    fn request() -> Request {
        Request { prompt: "wake me".into(), max_tokens: 9, context: 0, temperature: 0.5, seed: 3, raw: true }
    }

    fn answering(fake: &Fake) -> Exit {
        fake.share_session();
        fake.say(frame::READY, Ready::default().as_bytes());
        let (kind, payload) = fake.wait_for_frame();
        assert_eq!((kind, payload), (frame::REQUEST, request().to_bytes().unwrap()));
        fake.say(frame::PREFILLED, &[]);
        fake.say(frame::TOKEN, b"at ");
        fake.say(frame::TOKEN, b"six");
        let done = Done {
            prompt_tokens: 30,
            tokens: 2,
            prefill_ticks: 500,
            decode_ticks: 100,
            stop: 1,
            reserved: 0,
        };
        fake.say(frame::DONE, done.as_bytes());
        assert_eq!(fake.wait_for_frame().0, frame::SHUTDOWN);
        Exit::Finished(0)
    }

    fn run_with(fake: &Fake, model: &[u8], cancel: bool) -> (Result<Report>, Vec<String>) {
        let image = image();
        let load = Load { image: &image, model, heap_bytes: 100_000 };
        let mut events = Vec::new();
        let result = run(fake, &load, &request(), 1000, &AtomicBool::new(cancel), &mut |event| {
            events.push(String::from_utf8(event.line()).unwrap());
        });
        (result, events)
    }

    #[test]
    fn a_run_gives_measures_answers_and_takes_everything_back() {
        let fake = Fake::new(answering);
        let model: Vec<u8> = (0..3 * STEP + 5000).map(|i| (i / 999) as u8).collect();
        let (report, events) = run_with(&fake, &model, false);
        let report = report.unwrap();
        assert_eq!((report.answer.as_str(), report.stop), ("at six", "length"));
        assert_eq!((report.prompt_tokens, report.tokens), (30, 2));
        assert_eq!((report.prefill_ms, report.decode_ms), (500.0, 100.0));
        assert_eq!((report.prefill_tokens_per_s, report.tokens_per_s), (60.0, 20.0));
        let pages = 2 + 1 + 25 + SESSION_PAGES + 3 * STEP_PAGES + 2;
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
            run(&fake, load, request, 1000, &cancel, &mut |_| {}).unwrap_err()
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
        none.regions[3].page_count = SESSION_PAGES - 1;
        let none = Image::parse(&elf(none.as_bytes(), &[(layout::IMAGE, 64, &[])])).unwrap();
        assert!(run(&Load { image: &none, ..load }, &request()).what.contains("session"));
        assert!(!fake.was_created());
    }
}
