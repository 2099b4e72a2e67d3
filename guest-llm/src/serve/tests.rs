//! The session against a scripted host, with the random test model.

use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::string::String;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use guest_abi::session::{REQUEST_SYSTEM, Session};
use zerocopy::FromBytes;

use super::*;

/// A frame: kind and payload.
type Frame = (u32, Vec<u8>);

/// A host that says one thing whenever the partition waits, and SHUTDOWN at last.
struct Host {
    session: Box<Session>,
    script: RefCell<VecDeque<Frame>>,
    heard: RefCell<Vec<Frame>>,
    logged: RefCell<Vec<String>>,
    /// Said as soon as that many tokens were heard.
    interruption: RefCell<Option<(usize, Frame)>>,
    /// Kicks that the host ignores.
    deaf: Cell<usize>,
    heap_free: Cell<usize>,
    /// What the host gives between the requests: the partition finds it when it looks.
    growth: Cell<usize>,
    shut_down: Cell<bool>,
    clock: Cell<u64>,
    /// Breaks the ring instead of saying SHUTDOWN.
    vandal: bool,
}

impl Host {
    fn new(script: impl IntoIterator<Item = Frame>) -> Self {
        Host {
            // SAFETY: zeros are a valid session.
            session: unsafe { Box::<Session>::new_zeroed().assume_init() },
            script: RefCell::new(script.into_iter().collect()),
            heard: RefCell::default(),
            logged: RefCell::default(),
            interruption: RefCell::default(),
            deaf: Cell::new(0),
            heap_free: Cell::new(256 << 20),
            growth: Cell::new(0),
            shut_down: Cell::new(false),
            clock: Cell::new(1000),
            vandal: false,
        }
    }

    fn say(&self, frame: &Frame) {
        assert_eq!(self.session.to_partition.send(frame.0, &frame.1, &[]), Ok(true));
    }

    /// Writes a length into the next frame that no frame has.
    fn vandalise(&self) {
        let ring = core::ptr::from_ref(&self.session.to_partition).cast::<core::sync::atomic::AtomicU32>();
        // SAFETY: the head is the ring's first field.
        unsafe { &*ring }.fetch_add(1 << 20, core::sync::atomic::Ordering::Relaxed);
    }

    fn listen(&self) {
        let mut buffer = vec![0; MAX_FRAME];
        while let Some((kind, length)) =
            self.session.to_host.receive(&mut buffer).expect("partition broke its ring")
        {
            self.heard.borrow_mut().push((kind, buffer[..length].to_vec()));
        }
    }

    fn serve(&self, model: &[u8]) -> End {
        let end = serve(Rings(self), model, 500, self);
        self.listen();
        end
    }

    fn heard(&self, wanted: u32) -> Vec<Vec<u8>> {
        self.heard
            .borrow()
            .iter()
            .filter(|(kind, _)| *kind == wanted)
            .map(|(_, payload)| payload.clone())
            .collect()
    }

    fn kinds(&self) -> Vec<u32> {
        let mut kinds: Vec<u32> = self.heard.borrow().iter().map(|(kind, _)| *kind).collect();
        kinds.dedup();
        kinds
    }

    fn text(&self) -> String {
        self.heard(frame::TOKEN)
            .into_iter()
            .map(|piece| String::from_utf8(piece).expect("not UTF-8"))
            .collect()
    }

    fn done(&self) -> Vec<Done> {
        self.heard(frame::DONE).iter().map(|payload| Done::read_from_bytes(payload).unwrap()).collect()
    }

    /// Codes and texts of the ERROR frames.
    fn errors(&self) -> Vec<(u32, String)> {
        let split = |payload: &Vec<u8>| {
            let (failure, text) = Failure::read_from_prefix(payload).unwrap();
            (failure.code, String::from_utf8(text.to_vec()).unwrap())
        };
        self.heard(frame::ERROR).iter().map(split).collect()
    }
}

/// The rings as a channel that has the host look at what is sent.
struct Rings<'h>(&'h Host);

impl Channel for Rings<'_> {
    type Error = RingError;

    fn send(&mut self, kind: u32, first: &[u8], second: &[u8]) -> Result<bool, RingError> {
        let sent = self.0.session.to_host.send(kind, first, second)?;
        if sent {
            self.0.kick();
        }
        Ok(sent)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<(u32, usize)>, RingError> {
        self.0.session.to_partition.receive(buffer)
    }
}

impl Platform for Host {
    fn kick(&self) {
        if self.deaf.get() > 0 {
            self.deaf.set(self.deaf.get() - 1);
            return;
        }
        self.listen();
        let tokens = self.heard(frame::TOKEN).len();
        if let Some((_, frame)) = self.interruption.borrow_mut().take_if(|(after, _)| *after <= tokens) {
            if frame.0 == VANDALISM {
                self.vandalise();
            } else {
                self.say(&frame);
            }
        }
    }

    fn wait(&self) {
        assert!(!self.shut_down.get(), "waited after the end");
        match self.script.borrow_mut().pop_front() {
            Some(frame) => self.say(&frame),
            None => {
                self.shut_down.set(true);
                if self.vandal { self.vandalise() } else { self.say(&(frame::SHUTDOWN, vec![])) }
            }
        }
    }

    fn ticks(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    fn heap_used(&self) -> usize {
        4242
    }

    fn heap_free(&self) -> usize {
        self.heap_free.get()
    }

    fn grow(&self) {
        self.heap_free.set(self.heap_free.get() + self.growth.get());
    }

    fn log(&self, line: core::fmt::Arguments<'_>) {
        self.logged.borrow_mut().push(std::format!("{line}"));
    }
}

/// Stands for breaking the ring in [`Host::interruption`].
const VANDALISM: u32 = u32::MAX;
const PROMPT: &str = "wake me at half past six tomorrow";

fn model() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/tiny-f16.gguf");
    let mut bytes = std::fs::read(path).unwrap();
    // As in the partition, where the file ends inside a page.
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    bytes
}

fn request(parameters: Request, prompt: &[u8]) -> Frame {
    (frame::REQUEST, [parameters.as_bytes(), prompt].concat())
}

fn good(max_tokens: u32) -> Frame {
    request(Request { max_tokens, ..Request::default() }, PROMPT.as_bytes())
}

#[test]
fn an_answer_streams_exactly_what_the_engine_says() {
    let bytes = model();
    let model = Model::load(&bytes, &Limits::default()).unwrap();
    let mut session = engine::Session::new(&model, &SessionConfig::for_model(&model)).unwrap();
    let request = engine::Request { max_tokens: 12, ..engine::Request::new(PROMPT) };
    let mut expected = String::new();
    let report = generate(&mut session, &request, &mut |event| {
        if let Event::Text(text) = event {
            expected.push_str(text);
        }
        Flow::Continue
    })
    .unwrap();
    assert!(report.tokens >= 2, "the model says too little for this test");

    let host = Host::new([good(12), good(12)]);
    assert_eq!(host.serve(&bytes), End::Shutdown);
    assert_eq!(End::Shutdown.exit_code(), 0);
    let answer = [frame::PREFILLED, frame::TOKEN, frame::DONE];
    assert_eq!(host.kinds(), [&[frame::READY][..], &answer, &answer].concat());
    assert_eq!(host.text(), expected.clone() + &expected, "the second answer must not depend on the first");
    let ready = Ready::read_from_bytes(&host.heard(frame::READY)[0]).unwrap();
    assert_eq!((ready.model_bytes, ready.heap_used), (bytes.len() as u64, 4242));
    assert_eq!(ready.load_ticks, 501);
    for done in host.done() {
        assert_eq!(done.prompt_tokens as usize, report.prompt_tokens);
        assert_eq!(done.tokens as usize, report.tokens);
        assert!(done.prefill_ticks > 0 && done.decode_ticks > 0);
        assert_eq!(done.stop, u32::from(report.stop != StopReason::EndOfGeneration));
    }
}

#[test]
fn parameters_reach_the_engine() {
    let warm = |seed| Request { max_tokens: 12, temperature: 1.5_f32.to_bits(), seed, ..Request::default() };
    let text = |frame: Frame| {
        let host = Host::new([frame]);
        assert_eq!(host.serve(&model()), End::Shutdown);
        assert_eq!(host.done().len(), 1, "{:?}", host.errors());
        (host.text(), host.done()[0])
    };
    let (greedy, plain) = text(good(12));
    let (first, _) = text(request(warm(1), PROMPT.as_bytes()));
    let (again, _) = text(request(warm(1), PROMPT.as_bytes()));
    let (other, _) = text(request(warm(2), PROMPT.as_bytes()));
    assert_eq!(first, again);
    assert!(first != greedy && first != other);
    let (_, raw) = text(request(
        Request { max_tokens: 12, flags: REQUEST_RAW, ..Request::default() },
        PROMPT.as_bytes(),
    ));
    assert_ne!(raw.prompt_tokens, plain.prompt_tokens);
    let room = plain.prompt_tokens + 2;
    let (_, short) =
        text(request(Request { max_tokens: 12, context: room, ..Request::default() }, PROMPT.as_bytes()));
    assert!(short.tokens < plain.tokens && short.stop == 1, "{short:?}");
    let (_, none) = text(good(0));
    assert_eq!((none.tokens, none.stop), (0, 1));
}

#[test]
fn requests_with_a_beginning_in_common_compute_it_once() {
    let ask = |text: &str| request(Request { max_tokens: 3, ..Request::default() }, text.as_bytes());
    let prompts = ["wake me at six", "wake me at seven", "wake me at seven"];
    let host = Host::new(prompts.map(ask));
    assert_eq!(host.serve(&model()), End::Shutdown);
    let alone = prompts.map(|prompt| {
        let host = Host::new([ask(prompt)]);
        assert_eq!(host.serve(&model()), End::Shutdown);
        (host.text(), host.done()[0].prompt_tokens)
    });
    assert_eq!(host.text(), alone.clone().map(|(text, _)| text).concat());
    let done = host.done();
    assert_eq!(done.iter().map(|done| done.prompt_tokens).collect::<Vec<_>>(), alone.map(|(_, count)| count));
    let reused: Vec<_> = done.iter().map(|done| done.reused_tokens).collect();
    assert!(reused[0] == 0 && reused[1] > 0 && reused[2] == done[2].prompt_tokens - 1, "{reused:?}");
}

#[test]
fn every_format_of_keys_and_values_is_accepted_and_has_a_context_of_its_own() {
    let with = |cache| request(Request { max_tokens: 8, cache, ..Request::default() }, PROMPT.as_bytes());
    let host = Host::new([with(cache::F32), with(cache::F16), with(cache::DEFAULT), with(cache::F32)]);
    assert_eq!(host.serve(&model()), End::Shutdown);
    let done = host.done();
    assert_eq!(done.len(), 4, "{:?}", host.errors());
    assert!(done.iter().all(|done| done.reused_tokens == 0), "{done:?}");
}

#[test]
fn a_context_that_shifts_ends_no_answer() {
    let base = Request { max_tokens: 100, context: 48, ..Request::default() };
    let shifting = Request { flags: REQUEST_SHIFT, keep: 2, ..base };
    let host = Host::new([request(base, PROMPT.as_bytes()), request(shifting, PROMPT.as_bytes())]);
    assert_eq!(host.serve(&model()), End::Shutdown);
    let done = host.done();
    assert!(done[0].tokens < 48, "{done:?}");
    assert!(done[1].tokens > 48 || done[1].stop == 0, "{done:?}");
}

#[test]
fn cancel_stops_the_answer_and_only_that_one() {
    let host = Host::new([(frame::CANCEL, vec![]), good(20), good(3)]);
    host.interruption.replace(Some((2, (frame::CANCEL, vec![]))));
    assert_eq!(host.serve(&model()), End::Shutdown);
    let done = host.done();
    assert_eq!(done.iter().map(|done| done.stop).collect::<Vec<_>>(), [2, 1]);
    assert!(done[0].tokens < 20);
    assert_eq!(done[1].tokens, 3);
}

#[test]
fn a_request_during_an_answer_is_answered_after_it() {
    let host = Host::new([good(8)]);
    host.interruption.replace(Some((2, good(3))));
    assert_eq!(host.serve(&model()), End::Shutdown);
    assert_eq!(host.done().iter().map(|done| done.tokens).collect::<Vec<_>>(), [8, 3]);
}

#[test]
fn shutdown_ends_an_answer_at_once() {
    let host = Host::new([good(20)]);
    host.interruption.replace(Some((2, (frame::SHUTDOWN, vec![]))));
    assert_eq!(host.serve(&model()), End::Shutdown);
    assert_eq!(host.done(), []);
    assert!(host.heard(frame::TOKEN).len() < 5);
}

#[test]
fn malformed_requests_are_refused_without_a_word_of_the_prompt_and_the_session_goes_on() {
    let secret = b"SECRET words";
    let with = |parameters: Request| request(parameters, secret);
    let base = Request { max_tokens: 4, ..Request::default() };
    let bad = [
        (frame::REQUEST, vec![]),
        (frame::REQUEST, secret[..].to_vec()),
        with(Request { flags: REQUEST_RAW | REQUEST_CHAT, ..base }),
        with(Request { flags: 128, ..base }),
        with(Request { keep: 1, ..base }),
        with(Request { cache: 4, ..base }),
        // This model's heads are shorter than a block of this format.
        with(Request { cache: cache::Q8_0, ..base }),
        with(Request { flags: REQUEST_SYSTEM, system_bytes: 6, ..base }),
        with(Request { flags: REQUEST_THINK, ..base }),
        with(Request { version: 1, ..base }),
        with(Request { schema_bytes: 6, ..base }),
        with(Request { schema_bytes: u32::MAX, ..base }),
        with(Request { stop_bytes: 6, ..base }),
        with(Request { top_p: 0, ..base }),
        with(Request { min_p: 2f32.to_bits(), ..base }),
        with(Request { repeat_penalty: 0, ..base }),
        with(Request { repeat_last_n: u32::MAX, ..base }),
        request(Request { schema_bytes: 14, ..base }, b"{\"SECRET\":123}x"),
        request(Request { stop_bytes: 2, ..base }, b"\0\0SECRET"),
        // This model has no template.
        with(Request { flags: REQUEST_CHAT, ..base }),
        with(Request { temperature: f32::NAN.to_bits(), ..base }),
        with(Request { temperature: f32::INFINITY.to_bits(), ..base }),
        with(Request { temperature: (-1.0_f32).to_bits(), ..base }),
        with(Request { context: 1, ..base }),
        with(Request { context: u32::MAX, ..base }),
        request(base, b"SECRET \xFF\xFE"),
        request(base, &b"SECRET ".repeat(4000)),
        (0, secret[..].to_vec()),
        (frame::READY, secret[..].to_vec()),
        (0x205, secret[..].to_vec()),
    ];
    let count = bad.len();
    let host = Host::new(bad.into_iter().chain([good(4)]));
    assert_eq!(host.serve(&model()), End::Shutdown);
    let errors = host.errors();
    assert_eq!(errors.len(), count, "{errors:?}");
    for (code, text) in &errors {
        assert_eq!(*code, failure::REQUEST, "{text}");
        assert!(!text.is_empty() && !text.contains("SECRET"), "{text}");
    }
    assert_eq!(host.done().len(), 1);
    assert!(!host.text().contains("SECRET"));
}

#[test]
fn the_log_has_fixed_words_and_numbers_only() {
    let host = Host::new([good(3), request(Request::default(), b"SECRET \xff"), good(2)]);
    host.serve(&model());
    let logged = host.logged.take();
    let words =
        ["ready", "model", "of", "bytes", "heap", "ticks", "request", "done", "refused", "stop", "code"];
    for line in &logged {
        let mut parts = line.split([' ', ':', ',']).filter(|part| !part.is_empty());
        assert!(parts.all(|part| words.contains(&part) || part.parse::<u64>().is_ok()), "{line}");
    }
    assert_eq!(logged.len(), 4, "{logged:?}");
    let host = Host::new([]);
    host.serve(&[0; 4096]);
    assert_eq!(host.logged.take(), ["model refused, code 1"]);
}

#[test]
fn missing_memory_is_an_error_frame() {
    let host = Host::new([]);
    host.heap_free.set(1000);
    assert_eq!(host.serve(&model()), End::Refused);
    assert_eq!(End::Refused.exit_code(), 1);
    assert_eq!(host.kinds(), [frame::ERROR]);
    assert_eq!(host.errors()[0].0, failure::MEMORY);

    // Enough for the model, not for a context.
    let host = Host::new([good(4), good(4)]);
    host.heap_free.set(RESERVE);
    assert_eq!(host.serve(&model()), End::Shutdown);
    assert_eq!(host.kinds(), [frame::READY, frame::ERROR]);
    assert_eq!(host.errors().iter().map(|(code, _)| *code).collect::<Vec<_>>(), [failure::MEMORY; 2]);
}

#[test]
fn memory_that_comes_while_it_runs_is_used() {
    let host = Host::new([good(4), good(4), good(4)]);
    // Half of what is missing comes before each request.
    let needed = {
        let bytes = model();
        let model = Model::load(&bytes, &Limits::default()).unwrap();
        engine::Session::required_bytes(&model, &SessionConfig::for_model(&model)).unwrap()
    };
    host.heap_free.set(RESERVE);
    host.growth.set(needed.div_ceil(2));
    assert_eq!(host.serve(&model()), End::Shutdown);
    assert_eq!(host.errors().iter().map(|(code, _)| *code).collect::<Vec<_>>(), [failure::MEMORY]);
    assert_eq!(host.done().len(), 2);
}

#[test]
fn a_lack_of_memory_says_how_much_would_do() {
    let bytes = model();
    let model = Model::load(&bytes, &Limits::default()).unwrap();
    let needed = engine::Session::required_bytes(&model, &SessionConfig::for_model(&model)).unwrap();
    // GROW, which brings nothing here, changes nothing.
    let host = Host::new([good(4), (frame::GROW, vec![]), good(4)]);
    host.heap_free.set(RESERVE);
    assert_eq!(host.serve(&bytes), End::Shutdown);
    let asked = |payload: &Vec<u8>| Failure::read_from_prefix(payload).unwrap().0.bytes as usize;
    let asked: Vec<_> = host.heard(frame::ERROR).iter().map(asked).collect();
    assert_eq!(asked, [needed + RESERVE; 2]);
}

/// The test model with a chat template.
fn chat_model() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/tiny-chat.gguf");
    std::fs::read(path).unwrap()
}

#[test]
fn a_conversation_remembers_until_it_is_reset() {
    let turn = |text: &str| {
        let flags = REQUEST_CHAT;
        request(Request { max_tokens: 6, flags, ..Request::default() }, text.as_bytes())
    };
    let reset = (frame::RESET, vec![]);
    // What each request of a script is answered with.
    let answers = |script: Vec<Frame>| {
        let host = Host::new(script);
        assert_eq!(host.serve(&chat_model()), End::Shutdown);
        let ready = Ready::read_from_bytes(&host.heard(frame::READY)[0]).unwrap();
        assert_eq!(ready.features, READY_CHAT);
        let mut answers: Vec<Vec<u8>> = vec![];
        for (kind, payload) in &*host.heard.borrow() {
            match *kind {
                frame::PREFILLED => answers.push(vec![]),
                frame::TOKEN => answers.last_mut().unwrap().extend(payload),
                _ => {}
            }
        }
        (answers, host.done())
    };
    let (remembered, done) = answers(vec![turn("wake me"), turn("at six")]);
    let (fresh, fresh_done) = answers(vec![turn("at six")]);
    assert_ne!(remembered[1], fresh[0], "the second answer does not depend on the first turn");
    // Only the turn itself was computed, and what ends the answer before it.
    assert!(done[1].prompt_tokens < fresh_done[0].prompt_tokens + 8, "{done:?}");
    let (after_reset, _) = answers(vec![turn("wake me"), reset.clone(), turn("at six")]);
    assert_eq!(after_reset[1], fresh[0]);
    // An independent request, and another context length, end it too.
    let (after_request, _) = answers(vec![turn("wake me"), good(3), turn("at six")]);
    assert_eq!(after_request[2], fresh[0]);
    let other = Request { max_tokens: 6, flags: REQUEST_CHAT, context: 64, ..Request::default() };
    let (after_length, _) = answers(vec![turn("wake me"), request(other, b"at six")]);
    assert_eq!(after_length[1], fresh[0]);
}

#[test]
fn a_system_text_is_seen_and_a_stop_string_ends_the_answer() {
    let turn = |flags, texts: &[&[u8]], stop_bytes| {
        let system_bytes = if flags & REQUEST_SYSTEM == 0 { 0 } else { texts[0].len() as u32 };
        let base = Request { max_tokens: 12, flags: REQUEST_CHAT | flags, ..Request::default() };
        let host = Host::new([request(Request { system_bytes, stop_bytes, ..base }, &texts.concat())]);
        assert_eq!(host.serve(&chat_model()), End::Shutdown);
        assert_eq!(host.errors(), []);
        (host.text(), host.done()[0])
    };
    let (plain, done) = turn(0, &[b"wake me"], 0);
    let (told, told_done) = turn(REQUEST_SYSTEM, &[b"be brief", b"wake me"], 0);
    assert!(told != plain && told_done.prompt_tokens > done.prompt_tokens, "{told}");
    let stop = plain.chars().skip(3).take(2).collect::<String>();
    let list = [&(stop.len() as u16).to_le_bytes(), stop.as_bytes()].concat();
    let (stopped, done) = turn(0, &[&list, b"wake me"], list.len() as u32);
    assert_eq!((stopped.as_str(), done.stop), (&plain[..plain.find(&stop).unwrap()], 3));
}

#[test]
fn an_answer_follows_the_schema() {
    let schema = br#"{"properties":{"tool":{"enum":["set_alarm","set_timer"]},"level":{"type":"integer","minimum":0,"maximum":9}},
        "required":["tool","level"]}"#;
    let head = Request { max_tokens: 60, schema_bytes: schema.len() as u32, ..Request::default() };
    let ask = || request(head, &[&schema[..], PROMPT.as_bytes()].concat());
    let host = Host::new([ask(), good(3), ask()]);
    assert_eq!(host.serve(&model()), End::Shutdown);
    assert_eq!(host.errors(), []);
    assert_eq!(host.done().iter().map(|done| done.stop).collect::<Vec<_>>(), [0, 1, 0]);
    let text = host.text();
    let valid = ["set_alarm", "set_timer"]
        .iter()
        .flat_map(|tool| (0..10).map(move |level| std::format!("{{\"tool\":\"{tool}\",\"level\":{level}}}")));
    let valid: Vec<String> = valid.collect();
    assert!(
        valid.iter().any(|valid| text.starts_with(valid)) && valid.iter().any(|valid| text.ends_with(valid)),
        "{text}"
    );
}

#[test]
fn a_full_conversation_says_so_and_can_be_reset() {
    let turn = request(
        Request { max_tokens: 40, context: 48, flags: REQUEST_CHAT, ..Request::default() },
        b"wake me at half past six",
    );
    let host = Host::new([turn.clone(), turn.clone(), (frame::RESET, vec![]), turn]);
    assert_eq!(host.serve(&chat_model()), End::Shutdown);
    let errors = host.errors();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].0 == failure::REQUEST && errors[0].1.contains("left of the context"), "{errors:?}");
    assert_eq!(host.done().len(), 2);
}

#[test]
fn a_bad_model_is_refused() {
    for bytes in [&model()[..4096], &[0; 4096], &[]] {
        let host = Host::new([good(4)]);
        assert_eq!(host.serve(bytes), End::Refused);
        assert_eq!(host.kinds(), [frame::ERROR]);
        assert_eq!(host.errors()[0].0, failure::MODEL);
    }
}

#[test]
fn a_broken_channel_ends_the_partition() {
    let mut host = Host::new([good(2)]);
    host.vandal = true;
    assert_eq!(host.serve(&model()), End::Broken);
    assert_eq!(host.done().len(), 1);
    assert_eq!(End::Broken.exit_code(), 2);

    let host = Host::new([good(20)]);
    host.interruption.replace(Some((2, (VANDALISM, vec![]))));
    assert_eq!(host.serve(&model()), End::Broken);
    assert_eq!(host.done(), []);
}

#[test]
fn a_full_ring_loses_nothing() {
    let expected = Host::new([good(12)]);
    assert_eq!(expected.serve(&model()), End::Shutdown);

    let host = Host::new([good(12)]);
    // Frames that the host does not look at for long fill the ring, up to a few bytes.
    let filler = [0; MAX_FRAME - 24];
    assert_eq!(host.session.to_host.send(1, &filler, &[]), Ok(true));
    assert_eq!(host.session.to_host.send(1, &filler, &[]), Ok(true));
    host.deaf.set(1000);
    assert_eq!(host.serve(&model()), End::Shutdown);
    assert_eq!(host.deaf.get(), 0);
    assert_eq!(host.heard.borrow()[2..], *expected.heard.borrow());
}

#[test]
fn text_longer_than_a_frame_is_cut_between_characters() {
    let host = Host::new([]);
    let mut link = Link { channel: Rings(&host), platform: &host, buffer: vec![], held: None };
    let text = String::from("x") + &"\u{20AC}".repeat(MAX_FRAME);
    link.send_text(frame::TOKEN, &text).unwrap();
    assert_eq!(host.heard(frame::TOKEN).len(), 4);
    assert_eq!(host.text(), text);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever comes is answered frame by frame, or ends the session; nothing panics.
    #[test]
    fn any_frames_are_survived(
        frames in prop::collection::vec((0..7_u32, prop::collection::vec(any::<u8>(), 0..80), 0..6_u32), 1..6),
    ) {
        let frames = frames.into_iter().map(|(kind, mut payload, max_tokens)| {
            // Keeps the time short: otherwise every answer is as long as the context.
            if kind == frame::REQUEST && payload.len() > 20 {
                payload.splice(..20, Request { max_tokens, ..Request::default() }.as_bytes()[..20].iter().copied());
            }
            (kind, payload)
        });
        let frames: Vec<Frame> = frames.collect();
        let commands = frames.iter().take_while(|(kind, _)| *kind != frame::SHUTDOWN);
        let answers = commands.filter(|(kind, _)| ![frame::CANCEL, frame::RESET, frame::GROW].contains(kind)).count();
        let host = Host::new(frames);
        prop_assert_eq!(host.serve(&model()), End::Shutdown);
        prop_assert_eq!(host.done().len() + host.errors().len(), answers);
    }
}
