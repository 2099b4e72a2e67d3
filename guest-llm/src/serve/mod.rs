//! The session: requests from the host, answers of the inference engine.
//!
//! All that comes from the host is hostile: lengths (the channel checks them), kinds, parameters, and the prompt, which is
//! copied out once and then checked. A request can fail in three ways, by ERROR, and the session goes on: it is malformed,
//! memory does not suffice, or the model turns out broken. A broken channel ends the partition. A host that does not take
//! what is sent denies itself the answer, nothing else.
//!
//! No prompt or answer byte leaves but in TOKEN and THOUGHT frames; error texts are made of the engine's words, numbers and names of
//! the model file.

// Errors of the engine carry names out of the file without allocating, and are rare.
#![allow(clippy::result_large_err)]

use alloc::vec::Vec;
use core::fmt::Write;

use arrayvec::{ArrayString, ArrayVec};
use flexserve_engine::{
    self as engine, Constraint, Conversation, Event, Flow, Grammar, KvFormat, Limits, Model, Offload,
    Parallel, Sampling, Serial, SessionConfig, StopReason, TokenIndex, generate,
};
use guest_abi::session::{
    Channel, Done, Failure, MAX_FRAME, READY_CHAT, REQUEST_CHAT, REQUEST_NO_NPU, REQUEST_NO_THINK,
    REQUEST_RAW, REQUEST_SHIFT, REQUEST_THINK, Ready, Request, RingError, STOP_COUNT_MAX, cache, failure,
    frame, parse_request,
};
use zerocopy::IntoBytes;

use crate::virtio::{Fault, stream};

/// What the session needs of the world.
pub trait Platform {
    /// Has the host take what it was sent, when the channel is full; returns when the partition runs again.
    fn kick(&self);
    /// Waits for a message of the host.
    fn wait(&self);
    /// Reads the system counter.
    fn ticks(&self) -> u64;
    /// Bytes of the heap in use.
    fn heap_used(&self) -> usize;
    /// Bytes of the heap that are free.
    fn heap_free(&self) -> usize;
    /// Takes the memory that the host gave since the last look. A host that lies about it changes nothing.
    fn grow(&self) {}
    /// The threads that share the engine's work.
    fn parallel(&self) -> &'static dyn Parallel {
        &Serial
    }
    /// The accelerator that the engine may use.
    fn offload(&self) -> Option<&'static dyn Offload> {
        None
    }
    /// Says whether the accelerator is to be used from here on. If not, it may be lent to others.
    fn use_offload(&self, _wanted: bool) {}
    /// The most threads that these will ever be.
    fn threads(&self) -> usize {
        1
    }
    /// Writes a line to the partition's log, which is no secret: fixed words and numbers only.
    fn log(&self, _line: core::fmt::Arguments<'_>) {}
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The host ended it.
    Shutdown,
    /// The model was refused, or no memory was left to start; an ERROR frame says why.
    Refused,
    /// The host broke the channel: nothing more can be said.
    Broken,
}

impl End {
    /// Exit code when there was no session to begin with: the hypervisor refused what every partition may do, or virtio
    /// pages are missing.
    pub const NO_SESSION: u64 = 3;

    /// The partition's exit code.
    pub fn exit_code(self) -> u64 {
        match self {
            End::Shutdown => 0,
            End::Refused => 1,
            End::Broken => 2,
        }
    }
}

impl From<RingError> for End {
    fn from(_: RingError) -> Self {
        End::Broken
    }
}

impl From<Fault> for End {
    fn from(_: Fault) -> Self {
        End::Broken
    }
}

/// Least bytes of heap to begin a session with: the stream's window, two frame buffers, and as much again.
pub const LEAST_HEAP: usize = 2 * (stream::WINDOW + 2 * MAX_FRAME);

/// Heap bytes that a context may not take: for the tokens of the prompt, the sampler's candidates and the allocator's own
/// use.
const RESERVE: usize = 1 << 20;

/// Bytes that reading a schema may take, beside what is kept of it.
const SCHEMA_MEMORY: usize = RESERVE;

/// Runs a session to its end over a channel that has the host look at what is sent, with the GGUF file at the start of
/// `model` (what follows it is ignored). `start` is when the partition started, in ticks.
pub fn serve<C>(channel: C, model: &[u8], start: u64, platform: &impl Platform) -> End
where
    C: Channel<Error: Into<End>>,
{
    let Err(end) = run(model, start, &mut Link { channel, platform, buffer: Vec::new(), held: None });
    end
}

fn run<C: Channel<Error: Into<End>>, P: Platform>(
    bytes: &[u8],
    start: u64,
    link: &mut Link<'_, C, P>,
) -> Result<core::convert::Infallible, End> {
    let platform = link.platform;
    let buffers = frame_buffer().and_then(|first| Some((first, frame_buffer()?)));
    let Some((mut payload, next)) = buffers else {
        link.fail(failure::MEMORY, 0, format_args!("the heap does not hold the frame buffers"))?;
        return Err(End::Refused);
    };
    link.buffer = next;

    let limits = Limits { memory_bytes: platform.heap_free(), ..Limits::default() };
    let model = match Model::load(bytes, &limits) {
        Ok(model) => model,
        Err(error) => {
            platform.log(format_args!("model refused, code {}", blame(&error, false)));
            link.fail(blame(&error, false), 0, format_args!("{error}"))?;
            return Err(End::Refused);
        }
    };
    let ready = Ready {
        load_ticks: platform.ticks().wrapping_sub(start),
        model_bytes: bytes.len() as u64,
        heap_used: platform.heap_used() as u64,
        features: if model.tokenizer().chat_template().is_some() { READY_CHAT } else { 0 },
    };
    let Ready { load_ticks, model_bytes, heap_used, .. } = ready;
    platform.log(format_args!(
        "ready: model of {model_bytes} bytes, {heap_used} bytes of heap, {load_ticks} ticks"
    ));
    link.send(frame::READY, ready.as_bytes(), &[])?;

    let mut context =
        Context { model: &model, session: None, conversation: Conversation::new(), index: None };
    loop {
        let (kind, length) = link.wait_for(&mut payload)?;
        let payload = payload.get(..length).unwrap_or(&[]);
        match kind {
            frame::REQUEST => {
                match answer(&mut context, payload, link).inspect(|_| platform.use_offload(false))? {
                    Ok(done) => {
                        platform.log(format_args!("request done, stop {}", done.stop));
                        link.send(frame::DONE, done.as_bytes(), &[])?;
                    }
                    Err(Refusal::Malformed(what)) => {
                        platform.log(format_args!("request refused, code {}", failure::REQUEST));
                        link.fail(failure::REQUEST, 0, format_args!("{what}"))?;
                    }
                    Err(Refusal::Engine(error)) => {
                        platform.log(format_args!("request refused, code {}", blame(&error, true)));
                        let missing = missing(&error, platform.heap_free());
                        link.fail(blame(&error, true), missing, format_args!("{error}"))?;
                    }
                }
            }
            // It crossed the end of the answer that it was to stop.
            frame::CANCEL => {}
            frame::RESET => context.conversation = Conversation::new(),
            frame::GROW => platform.grow(),
            frame::SHUTDOWN => return Err(End::Shutdown),
            _ => link.fail(failure::REQUEST, 0, format_args!("frame kind {kind:#x} is unknown"))?,
        }
    }
}

fn frame_buffer() -> Option<Vec<u8>> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(MAX_FRAME).ok()?;
    buffer.resize(MAX_FRAME, 0);
    Some(buffer)
}

/// Why a request failed.
#[derive(Debug)]
enum Refusal {
    /// What is wrong with the frame.
    Malformed(&'static str),
    /// What the engine says.
    Engine(engine::Error),
}

impl From<engine::Error> for Refusal {
    fn from(error: engine::Error) -> Self {
        Refusal::Engine(error)
    }
}

/// Returns the failure code of an engine error: whose fault it is.
fn blame(error: &engine::Error, is_request: bool) -> u32 {
    match error {
        engine::Error::MemoryLimit { .. } | engine::Error::OutOfMemory { .. } => failure::MEMORY,
        engine::Error::Parameter { .. }
        | engine::Error::Schema { .. }
        | engine::Error::EmptyPrompt
        | engine::Error::ContextFull { .. } => failure::REQUEST,
        // Texts and counts of a request; the model was checked when it was loaded.
        engine::Error::TooMany { .. } if is_request => failure::REQUEST,
        _ => failure::MODEL,
    }
}

/// Returns the bytes of heap that the request lacked, with so many bytes free; 0 if that is not known or not the reason.
fn missing(error: &engine::Error, free: usize) -> u64 {
    match error {
        engine::Error::MemoryLimit { bytes, .. } | engine::Error::OutOfMemory { bytes } => {
            // What else there is to allocate is little, and the reserve covers it.
            bytes.checked_add(2 * RESERVE).map_or(0, |needed| needed.saturating_sub(free) as u64)
        }
        _ => 0,
    }
}

/// What a request says of the context that it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    /// In tokens; 0: the model's own.
    length: u32,
    /// How keys and values are stored; none: as the engine does by default.
    kv: Option<KvFormat>,
    /// Tokens to keep when it is full and goes on.
    shift: Option<usize>,
}

impl Wanted {
    fn of(request: &Request) -> Self {
        let kv = match request.cache {
            cache::F32 => Some(KvFormat::F32),
            cache::F16 => Some(KvFormat::F16),
            cache::Q8_0 => Some(KvFormat::Q8_0),
            _ => None,
        };
        let shift = (request.flags & REQUEST_SHIFT != 0).then_some(request.keep as usize);
        Wanted { length: request.context, kv, shift }
    }
}

/// The engine's session, kept from one request to the next that wants the same of it, the conversation in it, and the
/// vocabulary as grammars need it, made when the first comes.
struct Context<'m> {
    model: &'m Model<'m>,
    session: Option<(Wanted, engine::Session<'m>)>,
    conversation: Conversation,
    index: Option<TokenIndex>,
}

impl<'m> Context<'m> {
    fn prepare(
        &mut self,
        wanted: Wanted,
        platform: &impl Platform,
    ) -> Result<(&mut engine::Session<'m>, &mut Conversation, Option<&TokenIndex>), Refusal> {
        let kept = self.session.take_if(|(kept, _)| *kept == wanted);
        // Drops another session before memory for this one is counted.
        self.session = None;
        let session = match kept {
            Some((_, session)) => session,
            None => {
                let mut config = SessionConfig::for_model(self.model);
                if platform.offload().is_some() {
                    config = config.with_offload();
                }
                if wanted.length != 0 {
                    config.context = wanted.length as usize;
                }
                config.kv = wanted.kv.unwrap_or(config.kv);
                config.context_shift = wanted.shift;
                config.memory_limit = platform.heap_free().saturating_sub(RESERVE);
                config.threads = platform.threads();
                self.conversation = Conversation::new();
                let mut session = engine::Session::new(self.model, &config)?;
                session.share_work(platform.parallel());
                if let Some(offload) = platform.offload() {
                    session.offload_to(offload);
                }
                session
            }
        };
        let session = &mut self.session.insert((wanted, session)).1;
        Ok((session, &mut self.conversation, self.index.as_ref()))
    }

    /// Compiles a schema, and indexes the vocabulary if that was not done yet.
    fn compile(&mut self, schema: &str, platform: &impl Platform) -> Result<Grammar, Refusal> {
        let grammar = Grammar::from_schema(schema, SCHEMA_MEMORY)?;
        if self.index.is_none() {
            let memory = platform.heap_free().saturating_sub(RESERVE);
            self.index = Some(TokenIndex::new(self.model.tokenizer(), memory)?);
        }
        Ok(grammar)
    }
}

/// Answers one request, up to but without its last frame. The outer error ends the session.
fn answer<C: Channel<Error: Into<End>>, P: Platform>(
    context: &mut Context<'_>,
    payload: &[u8],
    link: &mut Link<'_, C, P>,
) -> Result<Result<Done, Refusal>, End> {
    let platform = link.platform;
    let start = platform.ticks();
    let mut prefilled = start;
    let mut end = None;

    let report = (|| {
        let parts = parse_request(payload).map_err(Refusal::Malformed)?;
        let head = &parts.request;
        let stop: ArrayVec<&str, STOP_COUNT_MAX> = parts.stops().take(STOP_COUNT_MAX).collect();
        platform.grow();
        platform.use_offload(head.flags & REQUEST_NO_NPU == 0);
        let grammar = match parts.schema {
            Some(schema) => Some(context.compile(schema, platform)?),
            None => None,
        };
        let (session, conversation, index) = context.prepare(Wanted::of(head), platform)?;
        let is_turn = head.flags & REQUEST_CHAT != 0;
        let request = engine::Request {
            prompt: parts.prompt,
            raw: head.flags & REQUEST_RAW != 0,
            system: parts.system,
            think: match head.flags & (REQUEST_THINK | REQUEST_NO_THINK) {
                REQUEST_THINK => Some(true),
                REQUEST_NO_THINK => Some(false),
                _ => None,
            },
            max_tokens: head.max_tokens as usize,
            sampling: sampling(head),
            stop: &stop,
            constraint: grammar.as_ref().zip(index).map(|(grammar, index)| Constraint { grammar, index }),
        };
        let mut on_event = |event: Event<'_>| {
            let sent = match event {
                Event::Prefilled { .. } => {
                    prefilled = platform.ticks();
                    link.send(frame::PREFILLED, &[], &[])
                }
                Event::Text(text) => link.send_text(frame::TOKEN, text),
                Event::Thought(text) => link.send_text(frame::THOUGHT, text),
                _ => Ok(()),
            };
            match sent.and_then(|()| link.cancelled()) {
                Ok(false) => Flow::Continue,
                Ok(true) => Flow::Stop,
                Err(why) => {
                    end = Some(why);
                    Flow::Stop
                }
            }
        };
        if is_turn {
            return Ok(conversation.answer(session, &request, &mut on_event)?);
        }
        *conversation = Conversation::new();
        Ok(generate(session, &request, &mut on_event)?)
    })();

    match (end, report) {
        (Some(end), _) => Err(end),
        (None, Err(refusal)) => Ok(Err(refusal)),
        (None, Ok(report)) => Ok(Ok(Done {
            prompt_tokens: report.prompt_tokens as u32,
            tokens: report.tokens as u32,
            prefill_ticks: prefilled.wrapping_sub(start),
            decode_ticks: platform.ticks().wrapping_sub(prefilled),
            stop: match report.stop {
                StopReason::EndOfGeneration => 0,
                StopReason::Cancelled => 2,
                StopReason::StopString => 3,
                _ => 1,
            },
            reused_tokens: report.reused_tokens as u32,
        })),
    }
}

/// How a request has tokens chosen; the engine checks it.
fn sampling(request: &Request) -> Sampling {
    Sampling {
        temperature: f32::from_bits(request.temperature),
        top_k: request.top_k as usize,
        top_p: f32::from_bits(request.top_p),
        min_p: f32::from_bits(request.min_p),
        repeat_penalty: f32::from_bits(request.repeat_penalty),
        repeat_last_n: request.repeat_last_n as usize,
        seed: request.seed,
    }
}

/// Frames to and from the host.
struct Link<'a, C, P> {
    channel: C,
    platform: &'a P,
    /// [`MAX_FRAME`] bytes.
    buffer: Vec<u8>,
    /// Kind and length of a frame in `buffer` that came during an answer and is to be served after it.
    held: Option<(u32, usize)>,
}

impl<C: Channel<Error: Into<End>>, P: Platform> Link<'_, C, P> {
    /// Sends one frame; has the host look as often as it takes for the frame to fit.
    fn send(&mut self, kind: u32, first: &[u8], second: &[u8]) -> Result<(), End> {
        while !self.channel.send(kind, first, second).map_err(Into::into)? {
            self.platform.kick();
        }
        Ok(())
    }

    /// Sends text, in several frames if a model's token is longer than a frame.
    fn send_text(&mut self, kind: u32, mut text: &str) -> Result<(), End> {
        loop {
            let (frame, rest) = text.split_at(text.floor_char_boundary(MAX_FRAME));
            self.send(kind, frame.as_bytes(), &[])?;
            if rest.is_empty() {
                return Ok(());
            }
            text = rest;
        }
    }

    fn fail(&mut self, code: u32, bytes: u64, text: core::fmt::Arguments<'_>) -> Result<(), End> {
        // On the stack, since the heap may be what is missing. What does not fit is cut off, by `write_fmt`'s error.
        let mut buffer = ArrayString::<512>::new();
        let _ = buffer.write_fmt(text);
        self.send(frame::ERROR, Failure { code, reserved: 0, bytes }.as_bytes(), buffer.as_bytes())
    }

    fn receive(&mut self) -> Result<Option<(u32, usize)>, End> {
        self.channel.receive(&mut self.buffer).map_err(Into::into)
    }

    /// Returns the next frame, with its payload in `payload`, whose place in the link the old one takes.
    fn wait_for(&mut self, payload: &mut Vec<u8>) -> Result<(u32, usize), End> {
        loop {
            let frame = match self.held.take() {
                Some(frame) => Some(frame),
                None => self.receive()?,
            };
            if let Some(frame) = frame {
                core::mem::swap(&mut self.buffer, payload);
                return Ok(frame);
            }
            self.platform.wait();
        }
    }

    /// Tells whether the host wants the answer to stop.
    fn cancelled(&mut self) -> Result<bool, End> {
        if self.held.is_some() {
            return Ok(false);
        }
        match self.receive()? {
            None => Ok(false),
            Some((frame::CANCEL, _)) => Ok(true),
            Some((frame::SHUTDOWN, _)) => Err(End::Shutdown),
            Some(other) => {
                self.held = Some(other);
                Ok(false)
            }
        }
    }
}

#[cfg(test)]
mod tests;
