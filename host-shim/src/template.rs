//! Conversations rendered by the host, for models whose chat template the partition does not know. Whoever renders sees the
//! conversation: only for those who ask for it (`--host-template`).

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use flexserve_engine::{Limits, Model};
use flexserve_template::{Input, Message, render};
use nix::sys::resource::{Resource, setrlimit};

use crate::error::{Code, Error, Result};
use crate::request::{Form, Request};

/// The command of this program that renders one template.
pub const COMMAND: &str = "render-template";
/// What is said before the first prompt.
pub const WARNING: &str = "the host renders the chat template (--host-template): it sees prompts and answers";
/// Address space and CPU seconds of the process that renders.
const MEMORY: u64 = 1 << 30;
const SECONDS: u64 = 10;

/// A conversation, and how it is written.
#[derive(Clone, Debug)]
pub struct HostTemplate {
    input: Input,
    /// The partition begins texts with this by itself.
    added: String,
    render: fn(&Input) -> Result<String>,
}

impl HostTemplate {
    /// Takes the template out of a model file.
    ///
    /// # Errors
    /// Code 5 if the engine refuses the file, 2 if it has no template.
    pub fn new(model: &[u8], system: Option<&str>, think: Option<bool>) -> Result<Self> {
        let refused = |error: flexserve_engine::Error| {
            let what = format!("the model is refused: {error}");
            Error::new(Code::Partition, what, "the model file's", "use a GGUF file of a supported model")
        };
        let model = Model::load(model, &Limits::default()).map_err(refused)?;
        let template = model.gguf().str("tokenizer.chat_template").map_err(refused)?.ok_or_else(|| {
            Error::usage("the model file has no chat template", "leave --host-template out")
        })?;
        let tokenizer = model.tokenizer();
        let text = |token: Option<u32>| {
            let text = token.and_then(|token| tokenizer.token_text(token)).unwrap_or_default();
            String::from_utf8_lossy(text).into_owned()
        };
        let bos_token = text(tokenizer.bos());
        let mut chat = HostTemplate {
            added: if tokenizer.adds_bos() { bos_token.clone() } else { String::new() },
            input: Input {
                template: template.to_owned(),
                messages: Vec::new(),
                bos_token,
                eos_token: text(tokenizer.eos()),
                enable_thinking: think,
            },
            render: render_apart,
        };
        if let Some(system) = system {
            chat.push("system", system);
        }
        Ok(chat)
    }

    fn push(&mut self, role: &str, content: &str) {
        self.input.messages.push(Message { role: role.into(), content: content.into() });
    }

    /// Makes a request of the user's next turn: raw, for it holds all turns before.
    ///
    /// # Errors
    /// Code 5 if the template fails; the turn never was.
    pub fn request(&mut self, prompt: &str, base: &Request) -> Result<Request> {
        self.push("user", prompt);
        match (self.render)(&self.input) {
            Ok(text) => {
                let prompt = text.strip_prefix(&self.added).unwrap_or(&text).to_owned();
                Ok(Request { prompt, form: Form::Raw, system: None, think: None, ..base.clone() })
            }
            Err(error) => {
                self.refused();
                Err(error)
            }
        }
    }

    /// The turn was answered.
    pub fn answered(&mut self, text: &str) {
        self.push("assistant", text);
    }

    /// The turn was refused.
    pub fn refused(&mut self) {
        self.input.messages.pop();
    }

    /// Forgets all turns.
    pub fn forget(&mut self) {
        self.input.messages.retain(|message| message.role == "system");
    }
}

fn failed(why: impl std::fmt::Display) -> Error {
    let remedy = "leave --host-template out, or use another model file";
    Error::new(Code::Partition, format!("the chat template fails: {why}"), "the model file's", remedy)
}

/// Renders in a process of its own, whose memory and time have limits.
fn render_apart(input: &Input) -> Result<String> {
    let text = serde_json::to_vec(input).map_err(failed)?;
    let mut child = Command::new("/proc/self/exe")
        .arg(COMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    // It reads all before it writes.
    let sent = child.stdin.take().map(|mut stdin| stdin.write_all(&text));
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        return Err(failed("it takes too much memory or time"));
    }
    sent.transpose().map_err(failed)?;
    let result: std::result::Result<String, String> =
        serde_json::from_slice(&output.stdout).map_err(failed)?;
    result.map_err(failed)
}

/// The process that renders: reads an input, writes the text or why there is none.
///
/// # Errors
/// Code 2 when it is not used so.
pub fn render_limited() -> Result<()> {
    let wrong =
        |error: &dyn std::fmt::Display| Error::usage(error.to_string(), "this command is not for people");
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY).map_err(|error| wrong(&error))?;
    setrlimit(Resource::RLIMIT_CPU, SECONDS, SECONDS).map_err(|error| wrong(&error))?;
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).map_err(|error| wrong(&error))?;
    let input: Input = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
    let result = render(&input).map_err(|error| error.to_string());
    serde_json::to_writer(std::io::stdout(), &result).map_err(|error| wrong(&error))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const CHAT: &[u8] = include_bytes!("../../tests/models/tiny-chat.gguf");
    const TINY: &[u8] = include_bytes!("../../tests/models/tiny-f16.gguf");

    /// A conversation in a template of this text, rendered here.
    pub fn of_text(template: &str) -> HostTemplate {
        HostTemplate {
            input: Input { template: template.into(), bos_token: "<s>".into(), ..Input::default() },
            added: "<s>".into(),
            render: |input| render(input).map_err(failed),
        }
    }

    #[test]
    fn turns_follow_each_other() {
        let mut chat =
            of_text("{{ bos_token }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}");
        let base = Request {
            system: Some("s".into()),
            think: Some(true),
            max_tokens: 7,
            ..Request::new("", Form::Turn)
        };
        let first = chat.request("one", &base).unwrap();
        // The partition adds the first token itself, and knows neither system text nor thoughts.
        assert_eq!(first, Request { max_tokens: 7, ..Request::new("u:one;", Form::Raw) });
        chat.answered("yes");
        assert_eq!(chat.request("two", &base).unwrap().prompt, "u:one;a:yes;u:two;");
        chat.refused();
        assert_eq!(chat.request("three", &base).unwrap().prompt, "u:one;a:yes;u:three;");
        chat.forget();
        assert_eq!(chat.request("four", &base).unwrap().prompt, "u:four;");
        let mut broken = of_text("{{ raise_exception('no') }}");
        assert_eq!(broken.request("x", &base).unwrap_err().code, Code::Partition);
        assert!(broken.input.messages.is_empty());
    }

    #[test]
    fn the_template_is_the_files() {
        let mut chat = HostTemplate::new(CHAT, Some("be kind"), None).unwrap();
        chat.render = |input| render(input).map_err(failed);
        let prompt = chat.request("hi", &Request::new("", Form::Turn)).unwrap().prompt;
        let [system, user] = ["be kind", "hi"].map(|text| prompt.find(text).unwrap());
        assert!(system < user && prompt.contains("<|im_start|>"), "{prompt}");
        assert_eq!(HostTemplate::new(TINY, None, None).unwrap_err().code, Code::Usage);
        assert_eq!(HostTemplate::new(&CHAT[..1000], None, None).unwrap_err().code, Code::Partition);
    }
}
