//! One request from prompt to answer; the same for the command line and the partition.

use alloc::vec::Vec;

use crate::filter::Filter;
use crate::grammar::{Constraint, Matcher};
use crate::stop::{self, Stops};
use crate::thought::Thoughts;
use crate::{Conversation, Detokenizer, Error, Result, Sampler, Sampling, Session, TokenId};

/// What a user asks of a model. [`Request::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct Request<'r> {
    /// The user's text.
    pub prompt: &'r str,
    /// Completes `prompt` as it is, special tokens included. Otherwise it is put into the file's `flexserve.request.prefix` and
    /// `.suffix`, or else into its chat template if that is known; special tokens in the prompt itself stay plain text.
    pub raw: bool,
    /// What the model is told before the conversation begins. Needs a chat template; without, the template's own counts.
    pub system: Option<&'r str>,
    /// Whether a model that can do so thinks before it answers; without, as its template does by itself: yes.
    pub think: Option<bool>,
    /// Most tokens to generate, thoughts included; the context may end earlier.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the answer, and are not part of it: at most [`stop::STOP_COUNT_MAX`] of [`stop::STOP_BYTES_MAX`] bytes.
    pub stop: &'r [&'r str],
    /// What the answer must be like. A model that can think does not, then.
    pub constraint: Option<Constraint<'r>>,
}

impl<'r> Request<'r> {
    /// Asks for an answer to `prompt`, greedily, as long as the context allows.
    pub fn new(prompt: &'r str) -> Self {
        Request {
            prompt,
            raw: false,
            system: None,
            think: None,
            max_tokens: usize::MAX,
            sampling: Sampling::default(),
            stop: &[],
            constraint: None,
        }
    }

    /// Checks what does not depend on the model.
    pub(crate) fn check(&self) -> Result<()> {
        self.sampling.check()?;
        stop::check(self.stop)
    }
}

/// Progress of a request. The engine has no clock: callers take times when events arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'e> {
    /// A batch of the prompt has been processed; `done` of `total` tokens by now, those that were there included.
    Prefill {
        /// Prompt tokens processed.
        done: usize,
        /// Prompt tokens in all.
        total: usize,
    },
    /// The whole prompt, of that many tokens, has been processed; decoding begins.
    Prefilled {
        /// Prompt tokens in all.
        tokens: usize,
    },
    /// The next piece of the answer: never empty, never part of a character.
    Text(&'e str),
    /// The next piece of what the model thinks before it answers, likewise. The marks around it are left out.
    Thought(&'e str),
}

/// The caller's answer to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Goes on.
    Continue,
    /// Ends the request with [`StopReason::Cancelled`].
    Stop,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The model said so.
    EndOfGeneration,
    /// [`Request::max_tokens`] were generated.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// One of [`Request::stop`] came.
    StopString,
    /// The caller returned [`Flow::Stop`].
    Cancelled,
}

/// What a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Tokens of the prompt, with what was put around it.
    pub prompt_tokens: usize,
    /// Of these, the first ones whose keys and values the session still had, so that they were not computed again.
    pub reused_tokens: usize,
    /// Tokens generated, without the one that ends generation.
    pub tokens: usize,
    /// Why the answer ended.
    pub stop: StopReason,
}

/// Answers `request` in a context of its own, reporting through `on_event`. Of what `session` held before, the tokens that the
/// prompt begins with are used again ([`Session::keep_prefix`]), which changes no bit of the answer; the rest is forgotten.
///
/// # Errors
/// [`Error::EmptyPrompt`], [`Error::ContextFull`] when the prompt leaves no room for a token, [`Error::Parameter`] for
/// bad parameters and what the model cannot do, [`Error::Logits`] for a broken model, and what allocation returns.
pub fn generate(
    session: &mut Session<'_>,
    request: &Request<'_>,
    on_event: &mut dyn FnMut(Event<'_>) -> Flow,
) -> Result<Report> {
    request.check()?;
    let tokenizer = session.model().tokenizer();
    if !request.raw && tokenizer.chat_template().is_some() && !tokenizer.has_request_template() {
        return Conversation::new().answer(session, request, on_event);
    }
    let refuse =
        |name| Err(Error::Parameter { name, fault: "only for models with a chat template, and not raw" });
    if request.system.is_some() {
        return refuse("system");
    }
    if request.think == Some(true) {
        return refuse("think");
    }
    let prompt = tokenizer.encode_request(request.prompt, request.raw)?;
    if prompt.len() >= session.context() {
        return Err(Error::ContextFull { tokens: prompt.len() + 1, left: session.context() });
    }
    let thoughts = Thoughts::new(false, false, false, piece_bytes(session))?;
    let reused = session.keep_prefix(&prompt);
    decode(session, &prompt, reused, request, thoughts, on_event).map(|outcome| outcome.report)
}

/// What an answer left behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub report: Report,
    /// The answer's last token, when it is not in the context.
    pub unsaid: Option<TokenId>,
    /// The answer's tokens without thoughts, in models that may think; none if it is longer than a context.
    pub answer: Option<Vec<TokenId>>,
}

/// Longest piece of text that a token completes.
pub(crate) fn piece_bytes(session: &Session<'_>) -> usize {
    // Every byte may become a replacement character, and a few come from tokens before.
    (session.model().tokenizer().longest_text() + 4) * char::REPLACEMENT_CHARACTER.len_utf8()
}

/// Appends `prompt`, which leaves room for a token, but its first `reused` tokens, which are there, and generates.
pub(crate) fn decode(
    session: &mut Session<'_>,
    prompt: &[TokenId],
    reused: usize,
    request: &Request<'_>,
    thoughts: Thoughts,
    on_event: &mut dyn FnMut(Event<'_>) -> Flow,
) -> Result<Outcome> {
    let tokenizer = session.model().tokenizer();
    let mut outcome = Outcome {
        report: Report {
            prompt_tokens: prompt.len(),
            reused_tokens: reused,
            tokens: 0,
            stop: StopReason::Cancelled,
        },
        unsaid: None,
        answer: None,
    };
    if thoughts.template_has_them() {
        let count = request.max_tokens.min(session.context());
        let bytes = count * size_of::<TokenId>();
        let mut answer = Vec::new();
        answer.try_reserve_exact(count).map_err(|_| Error::OutOfMemory { bytes })?;
        outcome.answer = Some(answer);
    }
    let report = &mut outcome.report;
    let mut sampler = Sampler::new(&request.sampling, tokenizer.token_count())?;
    let mut matcher = match request.constraint {
        Some(constraint) => {
            sampler.prepare_for_sets(tokenizer.token_count())?;
            Some(Matcher::new(constraint.grammar, constraint.index)?)
        }
        None => None,
    };
    let mut filter = Filter::new(Stops::new(request.stop, piece_bytes(session))?, thoughts);
    let mut detokenizer = Detokenizer::new(tokenizer);

    let rest = prompt.get(reused..).unwrap_or_default();
    let flow = session.prefill(rest, &mut |done, _| {
        on_event(Event::Prefill { done: done + reused, total: prompt.len() })
    })?;
    if flow == Flow::Stop || on_event(Event::Prefilled { tokens: prompt.len() }) == Flow::Stop {
        return Ok(outcome);
    }
    prompt.iter().for_each(|token| sampler.accept(*token));

    report.stop = loop {
        if report.tokens == request.max_tokens {
            break StopReason::MaxTokens;
        }
        let allowed = matcher.as_mut().map(Matcher::allowed);
        if allowed.is_some_and(|allowed| allowed.is_empty()) {
            return Err(Error::Parameter {
                name: "grammar",
                fault: "no token of the model goes on with the text",
            });
        }
        let token = sampler.sample_from(session.logits(), allowed)?;
        if tokenizer.is_end_of_generation(token) {
            break StopReason::EndOfGeneration;
        }
        sampler.accept(token);
        if let Some(matcher) = &mut matcher {
            matcher.accept(tokenizer, token)?;
        }
        report.tokens += 1;
        outcome.unsaid = Some(token);
        if filter.push(detokenizer.push(token)?, on_event)? == Flow::Stop {
            return Ok(outcome);
        }
        // In a context that is shifted the answer may outgrow it; then what is there of it stays.
        outcome.answer = outcome.answer.filter(|answer| answer.len() < answer.capacity());
        if let Some(answer) = &mut outcome.answer {
            answer.push(token);
            if detokenizer.is_empty() && filter.is_before_answer() {
                answer.clear();
            }
        }
        if filter.is_stopped() {
            break StopReason::StopString;
        }
        // A text that is complete needs no token to say so.
        if matcher.as_ref().is_some_and(Matcher::is_closed) {
            break StopReason::EndOfGeneration;
        }
        // The last token's logits would go unused.
        if report.tokens == request.max_tokens {
            break StopReason::MaxTokens;
        }
        if session.room() == 0 {
            break StopReason::ContextFull;
        }
        session.decode(token)?;
        outcome.unsaid = None;
    };
    if report.stop != StopReason::StopString && filter.finish(detokenizer.finish(), on_event)? == Flow::Stop {
        report.stop = StopReason::Cancelled;
    }
    Ok(outcome)
}
