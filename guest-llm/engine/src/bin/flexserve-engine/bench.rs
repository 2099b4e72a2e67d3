//! Speed and memory of a model: prefill of so many tokens into an empty context, and decoding of so many, as
//! llama-bench measures them.

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::time::{Duration, Instant};

use flexserve_engine::session::{Operation, Profile};
use flexserve_engine::{Error, Flow, Model, Parallel, Session, SessionConfig, TokenId};

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Tokens of prefill.
    pub prompt: usize,
    /// Tokens to decode.
    pub decode: usize,
    /// How often; the fastest counts.
    pub repetitions: usize,
    /// Whether a further run tells where the time goes.
    pub profile: bool,
}

/// What was measured.
#[derive(Debug)]
pub struct Figures {
    request: Request,
    threads: usize,
    prefill: Duration,
    decode: Duration,
    memory: Memory,
    profiles: Option<[Times; 2]>,
}

/// Bytes beyond the file.
#[derive(Clone, Copy, Debug)]
struct Memory {
    /// Tables of the model: tensors, vocabulary.
    model: usize,
    /// All that the session allocates.
    session: usize,
    /// Keys and values of the whole context.
    kv: usize,
    /// Activations of one batch: what the transformer's definition has at the same time, in F32.
    activations: usize,
}

impl Memory {
    fn of(model: &Model<'_>, config: &SessionConfig) -> Result<Self, Error> {
        let memory = Session::memory(model, config)?;
        Ok(Memory {
            model: model.memory_bytes(),
            session: memory.total(),
            kv: memory.kv,
            activations: memory.activations,
        })
    }

    /// What the session takes, relative to keys and values and one batch of activations.
    fn ratio(&self) -> f64 {
        self.session as f64 / (self.kv + self.activations) as f64
    }
}

/// Time by operation.
#[derive(Debug)]
struct Times {
    last: Cell<Instant>,
    sums: RefCell<Vec<(Operation, Duration)>>,
}

impl Times {
    fn new() -> Self {
        Times { last: Cell::new(Instant::now()), sums: RefCell::new(Vec::new()) }
    }

    /// Names and shares of the whole, greatest first.
    fn shares(&self) -> Vec<(String, Duration, f64)> {
        let mut sums = self.sums.borrow().clone();
        sums.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        let whole: f64 = sums.iter().map(|(_, time)| time.as_secs_f64()).sum();
        let name = |operation| match operation {
            Operation::Multiply(ty) => format!("multiply {ty:?}"),
            other => other.name().to_owned(),
        };
        sums.into_iter()
            .map(|(operation, time)| (name(operation), time, time.as_secs_f64() / whole))
            .collect()
    }
}

impl Profile for Times {
    fn begin(&self) {
        self.last.set(Instant::now());
    }

    fn end(&self, operation: Operation) {
        let now = Instant::now();
        let time = now - self.last.replace(now);
        let mut sums = self.sums.borrow_mut();
        match sums.iter_mut().find(|(other, _)| *other == operation) {
            Some((_, sum)) => *sum += time,
            None => sums.push((operation, time)),
        }
    }
}

/// Measures.
pub fn run(
    model: &Model<'_>,
    config: &SessionConfig,
    parallel: &dyn Parallel,
    request: Request,
) -> Result<Figures, Error> {
    let count = model.tokenizer().token_count() as u32;
    let tokens: Vec<TokenId> = (0..request.prompt.max(request.decode) as u32)
        .map(|i| i.wrapping_mul(2_654_435_761) % count)
        .collect();
    let prompt = &tokens[..request.prompt];
    let decoded = &tokens[..request.decode];
    let prefill = |session: &mut Session<'_>| -> Result<Duration, Error> {
        session.reset();
        let start = Instant::now();
        session.prefill(prompt, &mut |_, _| Flow::Continue)?;
        Ok(start.elapsed())
    };
    let decode = |session: &mut Session<'_>, tokens: &[TokenId]| -> Result<Duration, Error> {
        session.reset();
        let start = Instant::now();
        tokens.iter().try_for_each(|token| session.decode(*token))?;
        Ok(start.elapsed())
    };

    let mut session = Session::new(model, config)?;
    session.share_work(parallel);
    let mut best = [Duration::MAX; 2];
    // Once without the clock, so that the weights are in memory and the threads awake.
    prefill(&mut session)?;
    decode(&mut session, decoded.get(..1).unwrap_or_default())?;
    for _ in 0..request.repetitions {
        best[0] = best[0].min(prefill(&mut session)?);
        best[1] = best[1].min(decode(&mut session, decoded)?);
    }
    let profiles = [Times::new(), Times::new()];
    if request.profile {
        let mut session = Session::new(model, config)?;
        session.share_work(parallel);
        session.report_to(&profiles[0]);
        prefill(&mut session)?;
        session.report_to(&profiles[1]);
        decode(&mut session, decoded)?;
    }
    Ok(Figures {
        request,
        threads: parallel.width(),
        prefill: best[0],
        decode: best[1],
        memory: Memory::of(model, config)?,
        profiles: request.profile.then_some(profiles),
    })
}

impl Figures {
    fn parts(&self) -> [(&'static str, usize, Duration); 2] {
        [("prefill", self.request.prompt, self.prefill), ("decode", self.request.decode, self.decode)]
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, tokens, time) in self.parts() {
            let seconds = time.as_secs_f64();
            let speed = tokens as f64 / seconds;
            let _ = writeln!(
                text,
                "{name}: {tokens} tokens, {seconds:.3} s, {speed:.2} tokens/s, {} threads",
                self.threads
            );
        }
        let Memory { model, session, kv, activations } = self.memory;
        let _ = writeln!(
            text,
            "memory beyond the file: model {} KiB, session {} KiB; keys and values {} KiB, a batch of activations {} KiB: {:.3} of these",
            model / 1024,
            session / 1024,
            kv / 1024,
            activations / 1024,
            self.memory.ratio()
        );
        for (name, times) in ["prefill", "decode"].iter().zip(self.profiles.iter().flatten()) {
            for (operation, time, share) in times.shares() {
                let _ = writeln!(
                    text,
                    "{name}: {:5.1} % {:9.3} ms {operation}",
                    share * 100.0,
                    time.as_secs_f64() * 1e3
                );
            }
        }
        text
    }

    /// One JSON object on a line. No text in it comes from the model.
    pub fn json(&self) -> String {
        let mut json = format!("{{\"schema\":1,\"threads\":{}", self.threads);
        for (index, (name, tokens, time)) in self.parts().into_iter().enumerate() {
            let seconds = time.as_secs_f64();
            let speed = tokens as f64 / seconds;
            let _ = write!(
                json,
                ",\"{name}\":{{\"tokens\":{tokens},\"seconds\":{seconds},\"tokens_per_second\":{speed}"
            );
            if let Some(profiles) = &self.profiles {
                let shares: Vec<String> = profiles[index]
                    .shares()
                    .iter()
                    .map(|(name, time, share)| {
                        let seconds = time.as_secs_f64();
                        format!("{{\"operation\":\"{name}\",\"seconds\":{seconds},\"share\":{share}}}")
                    })
                    .collect();
                let _ = write!(json, ",\"profile\":[{}]", shares.join(","));
            }
            json.push('}');
        }
        let Memory { model, session, kv, activations } = self.memory;
        let _ = write!(
            json,
            ",\"memory\":{{\"model\":{model},\"session\":{session},\"kv\":{kv},\"activations\":{activations},\"ratio\":{}}}}}",
            self.memory.ratio()
        );
        json
    }
}
