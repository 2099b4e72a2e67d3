//! A session at a terminal, or with a program that speaks JSON lines: each line is a request, or the next turn of a
//! conversation when the model has a chat template.
//!
//! As in ollama: Ctrl-C stops the answer, at the prompt it says how to end; Ctrl-D or `/bye` ends.

use std::io::{BufRead, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use nix::sys::termios::{InputFlags, LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use serde::Deserialize;

use crate::error::Result;
use crate::events::Event;
use crate::machine::Machine;
use crate::template::HostTemplate;
use crate::vmm::{Answer, Form, Live, Request};

/// What a terminal shows when a line is wanted.
pub const PROMPT: &str = "> ";
/// What Ctrl-C says at the prompt.
pub const HOW_TO_END: &str = "Ctrl-D or /bye ends the session.";
/// Lines that are read ahead.
const BACKLOG: usize = 64;

const HELP: [&str; 5] = [
    "/clear   forget the conversation",
    "/bye     end the session (also Ctrl-D)",
    "/help    this list",
    "Ctrl-C   stop the answer",
    "Any other line is sent to the model.",
];

/// Signals between the session and whoever may interrupt it.
#[derive(Debug, Default)]
pub struct Interrupts {
    /// The answer, or the loading, is to end.
    pub cancel: AtomicBool,
    /// A line is wanted: there is nothing to end.
    pub is_waiting: AtomicBool,
    /// Nobody reads the answers any more.
    pub is_deaf: AtomicBool,
}

impl Interrupts {
    /// None set.
    pub const fn new() -> Self {
        Interrupts {
            cancel: AtomicBool::new(false),
            is_waiting: AtomicBool::new(false),
            is_deaf: AtomicBool::new(false),
        }
    }
}

/// A line of JSON for a session.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    /// A line as a user types it.
    Line(String),
    /// Stop the answer.
    Cancel,
    /// End.
    End,
}

/// Answers lines until they end or one says so. What a request is refused for is told, and ends nothing. Requests are like
/// `base`, whose form counts unless the model chats, or the host writes the conversation in its `template`.
///
/// # Errors
/// 5 when the partition ended.
pub fn converse<M: Machine>(
    live: &mut Live<'_, M>,
    base: &Request,
    mut template: Option<&mut HostTemplate>,
    lines: &Receiver<String>,
    interrupts: &Interrupts,
) -> Result<()> {
    let form = if live.chats() && base.form == Form::Independent { Form::Turn } else { base.form };
    loop {
        interrupts.is_waiting.store(true, Ordering::Relaxed);
        // What was to be stopped has ended by itself.
        interrupts.cancel.store(false, Ordering::Relaxed);
        if interrupts.is_deaf.load(Ordering::Relaxed) {
            return Ok(());
        }
        live.tell(&Event::Prompt { chat: form == Form::Turn || template.is_some() });
        let line = lines.recv();
        interrupts.is_waiting.store(false, Ordering::Relaxed);
        let Ok(line) = line else { return Ok(()) };
        match line.trim() {
            "" => {}
            "/bye" | "/exit" => return Ok(()),
            "/clear" => {
                live.forget()?;
                template.iter_mut().for_each(|template| template.forget());
                live.tell(&Event::Status { text: "the conversation is forgotten" });
            }
            "/help" | "/?" => HELP.iter().for_each(|text| live.tell(&Event::Status { text })),
            command if command.starts_with('/') => {
                live.tell(&Event::Status { text: "there is no such command; /help lists them" });
            }
            _ => {
                let answer = match &mut template {
                    None => live.ask(&Request { prompt: line, form, ..base.clone() })?,
                    Some(template) => ask_rendered(live, base, template, &line)?,
                };
                match answer {
                    Ok(answer) => live.tell(&Event::Answer {
                        stop: answer.stop,
                        prompt_tokens: answer.prompt_tokens,
                        reused_tokens: answer.reused_tokens,
                        tokens: answer.tokens,
                        prefill_ms: answer.prefill_ms,
                        decode_ms: answer.decode_ms,
                    }),
                    Err(error) => {
                        let (code, kind) = (error.code as u8, error.code.kind());
                        live.tell(&Event::Refusal { code, kind, message: &error.to_string() });
                    }
                }
            }
        }
    }
}

/// Asks for the answer to the next turn of a conversation that the host writes.
fn ask_rendered<M: Machine>(
    live: &mut Live<'_, M>,
    base: &Request,
    template: &mut HostTemplate,
    line: &str,
) -> Result<Result<Answer>> {
    let request = match template.request(line, base) {
        Ok(request) => request,
        Err(error) => return Ok(Err(error)),
    };
    let answer = live.ask(&request)?;
    match &answer {
        Ok(answer) => template.answered(&answer.text),
        Err(_) => template.refused(),
    }
    Ok(answer)
}

/// Reads lines of standard input in a thread of its own, until they end.
pub fn lines_of_text() -> Receiver<String> {
    let (sender, receiver) = sync_channel(BACKLOG);
    std::thread::spawn(move || {
        while let Some(line) = next_line(&mut std::io::stdin().lock()) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The same for lines of JSON; CANCEL takes effect at once.
pub fn lines_of_json(interrupts: &'static Interrupts) -> Receiver<String> {
    let (sender, receiver) = sync_channel(BACKLOG);
    std::thread::spawn(move || {
        while let Some(line) = next_line(&mut std::io::stdin().lock()) {
            if !obey(&line, &sender, interrupts) {
                return;
            }
        }
    });
    receiver
}

/// False: there will be no more lines.
fn obey(line: &str, lines: &SyncSender<String>, interrupts: &Interrupts) -> bool {
    match serde_json::from_str(line) {
        Ok(Order::Line(line)) => lines.send(line).is_ok(),
        Ok(Order::Cancel) => {
            // What comes while a line is wanted crossed the end of the answer.
            if !interrupts.is_waiting.load(Ordering::Relaxed) {
                interrupts.cancel.store(true, Ordering::Relaxed);
            }
            true
        }
        Ok(Order::End) => false,
        // The console may carry more than our orders.
        Err(_) => true,
    }
}

/// The next line without its end; none at the end, or when it cannot be read.
fn next_line(input: &mut impl BufRead) -> Option<String> {
    let mut bytes = Vec::new();
    if input.read_until(b'\n', &mut bytes).ok()? == 0 {
        return None;
    }
    let text = String::from_utf8_lossy(&bytes);
    Some(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// Standard input, if it is a terminal, without line editing, whose lines have at most 4095 bytes, and without echo. Restored
/// when dropped.
pub struct RawInput(Option<Termios>);

impl RawInput {
    /// Takes the settings.
    pub fn new() -> Self {
        let input = std::io::stdin();
        let Some(before) = input.is_terminal().then(|| tcgetattr(&input).ok()).flatten() else {
            return RawInput(None);
        };
        let mut settings = before.clone();
        settings.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG);
        settings.input_flags.remove(InputFlags::IXON | InputFlags::ISTRIP);
        let set = tcsetattr(&input, SetArg::TCSANOW, &settings);
        RawInput(set.is_ok().then_some(before))
    }
}

impl Default for RawInput {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for RawInput {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use crate::image::Image;
    use crate::image::tests::{elf, manifest};
    use crate::load::Load;
    use crate::machine::Exit;
    use crate::vmm::{Options, with_partition};
    use guest_abi::session::{Done, Failure, Parts, READY_CHAT, Ready, failure, frame, parse_request};
    use hyp_abi::manifest::layout;
    use std::sync::mpsc::channel;
    use zerocopy::IntoBytes;

    /// A partition that says what it hears: the flags and the text of each request.
    fn parrot(features: u64) -> Fake {
        Fake::new(move |fake: &Fake| {
            fake.share_session();
            fake.say(frame::READY, Ready { features, ..Ready::default() }.as_bytes());
            loop {
                match fake.wait_for_frame() {
                    (frame::SHUTDOWN, _) => return Exit::Finished(0),
                    (frame::REQUEST, payload) => {
                        let Parts { request, prompt, .. } = parse_request(&payload).unwrap();
                        if prompt == "refuse" {
                            let failure = Failure { code: failure::REQUEST, ..Failure::default() };
                            fake.say(frame::ERROR, failure.as_bytes());
                            continue;
                        }
                        fake.say(frame::TOKEN, format!("{} ", request.flags).as_bytes());
                        fake.say(frame::TOKEN, prompt.as_bytes());
                        fake.say(frame::DONE, Done::default().as_bytes());
                    }
                    (kind, _) => assert_eq!(kind, frame::RESET),
                }
            }
        })
    }

    /// The events of a session with these lines, as JSON.
    fn session(features: u64, form: Form, lines: &[&str]) -> Vec<serde_json::Value> {
        session_with(features, form, None, lines)
    }

    fn session_with(
        features: u64,
        form: Form,
        template: Option<&mut HostTemplate>,
        lines: &[&str],
    ) -> Vec<serde_json::Value> {
        let image = Image::parse(&elf(manifest().as_bytes(), &[(layout::IMAGE, 64, &[])])).unwrap();
        let load = Load { image: &image, model: &[1; 100], heap_bytes: 4096 };
        let interrupts = Interrupts::new();
        let options =
            Options { ticks_per_second: 1000, threads: 1, heap_grows: true, cancel: &interrupts.cancel };
        let base = Request::new("", form);
        let (sender, receiver) = channel();
        lines.iter().for_each(|line| sender.send((*line).to_owned()).unwrap());
        drop(sender);
        let mut events = Vec::new();
        let fake = parrot(features);
        with_partition(
            &fake,
            &load,
            &options,
            &mut |event| events.push(serde_json::from_slice(&event.line()[1..]).unwrap()),
            |live| converse(live, &base, template, &receiver, &interrupts),
        )
        .unwrap();
        assert!(fake.is_gone());
        events.retain(|event: &serde_json::Value| event["event"] != "progress");
        events
    }

    fn texts(events: &[serde_json::Value]) -> String {
        let tokens = events.iter().filter(|event| event["event"] == "token");
        tokens.filter_map(|event| event["text"].as_str()).collect()
    }

    fn count(events: &[serde_json::Value], name: &str) -> usize {
        events.iter().filter(|event| event["event"] == name).count()
    }

    #[test]
    fn each_line_is_a_request_or_a_turn() {
        let lines = ["one", "", "  ", "two"];
        let events = session(0, Form::Independent, &lines);
        assert_eq!(texts(&events), "0 one0 two");
        assert_eq!((count(&events, "prompt"), count(&events, "answer")), (5, 2));
        assert_eq!(texts(&session(READY_CHAT, Form::Independent, &lines)), "2 one2 two");
        assert_eq!(texts(&session(READY_CHAT, Form::Raw, &lines)), "1 one1 two");
    }

    #[test]
    fn the_host_writes_the_conversation_if_it_is_asked_to() {
        let mut chat = crate::template::tests::of_text(
            "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no') }}{% endif %}[{{ m.content }}]{% endfor %}",
        );
        let lines = ["one", "bad", "two", "/clear", "three"];
        let events = session_with(READY_CHAT, Form::Independent, Some(&mut chat), &lines);
        assert_eq!(texts(&events), "1 [one]1 [one][1 [one]][two]1 [three]");
        assert_eq!((count(&events, "refusal"), count(&events, "answer")), (1, 3));
        assert!(events.iter().filter(|event| event["event"] == "prompt").all(|event| event["chat"] == true));
    }

    #[test]
    fn commands_are_not_sent_to_the_model_and_refusals_end_nothing() {
        let events =
            session(READY_CHAT, Form::Independent, &["/help", "/clear", "/no", "refuse", "ok", "/bye", "no"]);
        assert_eq!(texts(&events), "2 ok");
        assert_eq!((count(&events, "refusal"), count(&events, "answer")), (1, 1));
        let refusal = events.iter().find(|event| event["event"] == "refusal").unwrap();
        assert_eq!(refusal["code"], 2);
        let status: Vec<_> = events.iter().filter_map(|event| event["text"].as_str()).collect();
        assert!(HELP.iter().all(|line| status.contains(line)), "{status:?}");
        assert!(status.iter().any(|text| text.contains("forgotten")));
        assert!(status.iter().any(|text| text.contains("no such command")));
    }

    #[test]
    fn orders_in_json() {
        let (sender, receiver) = sync_channel(9);
        let interrupts = Interrupts::new();
        let obey = |line| super::obey(line, &sender, &interrupts);
        assert!(obey(r#"{"line":"wake \u0003 me\n"}"#) && obey("noise") && obey("{}"));
        assert_eq!(receiver.try_recv().unwrap(), "wake \u{3} me\n");
        interrupts.is_waiting.store(true, Ordering::Relaxed);
        assert!(obey(r#""cancel""#));
        assert!(!interrupts.cancel.load(Ordering::Relaxed));
        interrupts.is_waiting.store(false, Ordering::Relaxed);
        assert!(obey(r#""cancel""#));
        assert!(interrupts.cancel.load(Ordering::Relaxed));
        assert!(!obey(r#""end""#));
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn lines_are_read_whatever_they_hold() {
        let mut input = &b"one\r\n\ntw\xFFo"[..];
        let lines: Vec<_> = std::iter::from_fn(|| next_line(&mut input)).collect();
        assert_eq!(lines, ["one", "", "tw\u{FFFD}o"]);
    }
}
