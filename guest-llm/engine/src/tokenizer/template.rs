//! Chat templates: how the turns of a conversation are written for the model.
//!
//! The file's `tokenizer.chat_template` is a program in a language of its own (Jinja). It is not run: the formats in
//! circulation are few, and are recognised by the marks that they contain, as llama.cpp does without Jinja. A template counts as
//! known only if its marks are special tokens of the vocabulary, so that a user cannot spell them in a prompt.

use alloc::vec::Vec;

use super::TokenKind;
use super::vocabulary::Vocabulary;
use crate::budget::Budget;
use crate::{Error, Result};

/// A chat template that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChatTemplate {
    /// `<|im_start|>user … <|im_end|>` (Qwen2 and many others).
    ChatMl,
    /// ChatML with thoughts: the model thinks before it answers, unless an empty thought is written for it (`enable_thinking`
    /// off).
    Qwen3,
    /// ChatML where every answer begins with a thought.
    Qwen3Thinking,
    /// `<|start_header_id|>user<|end_header_id|> … <|eot_id|>`.
    Llama3,
    /// `[INST] … [/INST]`.
    Llama2,
}

/// Whether a model thinks before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// It does not.
    Never,
    /// As the request says.
    Optional,
    /// It does.
    Always,
}

impl ChatTemplate {
    /// Whether models with this template think.
    pub fn thinking(self) -> Thinking {
        match self {
            Self::Qwen3 => Thinking::Optional,
            Self::Qwen3Thinking => Thinking::Always,
            Self::ChatMl | Self::Llama3 | Self::Llama2 => Thinking::Never,
        }
    }
}

/// A user's turn.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'t> {
    /// The user's text.
    pub prompt: &'t str,
    /// Whether the conversation begins with it.
    pub is_first: bool,
    /// What the model is told first, before the first turn; without, the template's own text.
    pub system: Option<&'t str>,
    /// Whether the model is to think; without, as [`ChatTemplate::thinking`] says, [`Thinking::Optional`] being yes.
    pub think: Option<bool>,
    /// Leaves no room for thoughts, even if the model always thinks.
    pub thoughtless: bool,
}

impl<'t> Turn<'t> {
    /// A turn with the template's own system text, if it is the first.
    pub fn new(prompt: &'t str, is_first: bool) -> Self {
        Turn { prompt, is_first, system: None, think: None, thoughtless: false }
    }
}

/// The text around a conversation's parts.
struct Marks {
    /// Before and after the system text.
    system: [&'static str; 2],
    /// Before the user's text; behind a system text, where that differs.
    prefix: &'static str,
    prefix_after_system: &'static str,
    /// After it, up to where the answer begins.
    suffix: &'static str,
    /// After an answer, before the next turn.
    close: &'static str,
    /// Those of them that must be special tokens.
    special: &'static [&'static str],
    /// Whether white space around texts is dropped.
    trims: bool,
}

const CHAT_ML: Marks = Marks {
    system: ["<|im_start|>system\n", "<|im_end|>\n"],
    prefix: "<|im_start|>user\n",
    prefix_after_system: "<|im_start|>user\n",
    suffix: "<|im_end|>\n<|im_start|>assistant\n",
    close: "<|im_end|>\n",
    special: &["<|im_start|>", "<|im_end|>"],
    trims: false,
};
const LLAMA3: Marks = Marks {
    system: ["<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"],
    prefix: "<|start_header_id|>user<|end_header_id|>\n\n",
    prefix_after_system: "<|start_header_id|>user<|end_header_id|>\n\n",
    suffix: "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    close: "<|eot_id|>",
    special: &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    trims: true,
};
const LLAMA2: Marks = Marks {
    system: ["[INST] <<SYS>>\n", "\n<</SYS>>\n\n"],
    prefix: "[INST] ",
    prefix_after_system: "",
    suffix: " [/INST]",
    close: "</s><s>",
    special: &["<s>", "</s>"],
    trims: true,
};

/// What an answer begins with where the model is not to think.
const EMPTY_THOUGHT: &str = "<think>\n\n</think>\n\n";
/// What it begins with where the model always does.
const BEGUN_THOUGHT: &str = "<think>\n";
/// What Llama 3.1 and later ones are told before any system text; the date is the template's own where nobody gives one, for
/// the partition has no clock.
const LLAMA3_PREAMBLE: &str = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";

/// A template that is known, with what the file's text adds to it.
#[derive(Debug)]
pub(super) struct Chat<'a> {
    template: ChatTemplate,
    /// Told before the system text; if it is not empty there is a system text always.
    preamble: &'static str,
    /// The system text where the user gives none.
    default_system: &'a str,
}

impl<'a> Chat<'a> {
    /// Recognises a template's text.
    pub fn recognise(text: &'a str, vocabulary: &Vocabulary<'_>) -> Option<Self> {
        let has = |mark: &str| text.contains(mark);
        let template = if has("<|im_start|>") {
            if has("enable_thinking") && has("<think>") {
                ChatTemplate::Qwen3
            } else if has("<|im_start|>assistant\\n<think>") || has("<|im_start|>assistant\n<think>") {
                ChatTemplate::Qwen3Thinking
            } else {
                ChatTemplate::ChatMl
            }
        } else if has("<|start_header_id|>") && has("<|end_header_id|>") {
            ChatTemplate::Llama3
        } else if has("[INST]") && has("<<SYS>>") {
            ChatTemplate::Llama2
        } else {
            return None;
        };
        let is_special = |mark: &&str| {
            let kind = vocabulary.find(mark.as_bytes()).and_then(|token| vocabulary.kind(token));
            matches!(kind, Some(TokenKind::Control | TokenKind::UserDefined))
        };
        let is_llama3 = template == ChatTemplate::Llama3;
        let preamble =
            if is_llama3 && has("Cutting Knowledge Date: December 2023") { LLAMA3_PREAMBLE } else { "" };
        let default_system =
            if marks(template).special == CHAT_ML.special { default_system(text) } else { "" };
        let chat = Chat { template, preamble, default_system };
        marks(template).special.iter().all(is_special).then_some(chat)
    }

    pub fn template(&self) -> ChatTemplate {
        self.template
    }

    /// The parts of a turn, each with whether its control tokens count; then the beginning of a thought.
    pub fn parts<'p>(&'p self, turn: &Turn<'p>) -> Result<(Vec<(&'p str, bool)>, &'static str)> {
        let marks = marks(self.template);
        let trim = |text: &'p str| if marks.trims { text.trim() } else { text };
        let prompt = trim(turn.prompt);
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let thinking = self.template.thinking();
        let thought = match (thinking, turn.think) {
            (Thinking::Never, Some(true)) => {
                return Err(Error::Parameter { name: "think", fault: "the model does not think" });
            }
            (Thinking::Always, Some(false)) if !turn.thoughtless => {
                return Err(Error::Parameter { name: "think", fault: "the model always thinks" });
            }
            (Thinking::Optional | Thinking::Always, Some(true)) if turn.thoughtless => {
                let fault = "an answer that must follow a grammar leaves no room for thoughts";
                return Err(Error::Parameter { name: "think", fault });
            }
            (Thinking::Never, _) => "",
            (Thinking::Optional | Thinking::Always, _) if turn.thoughtless => EMPTY_THOUGHT,
            (Thinking::Optional, Some(false)) => EMPTY_THOUGHT,
            (Thinking::Optional, _) => "",
            (Thinking::Always, _) => BEGUN_THOUGHT,
        };
        let mut parts: Vec<(&str, bool)> = Budget::new(usize::MAX).reserve(6)?;
        let mut prefix = marks.prefix;
        if !turn.is_first {
            parts.push((marks.close, true));
        } else {
            let system = trim(turn.system.unwrap_or(self.default_system));
            if !system.is_empty() || !self.preamble.is_empty() {
                let [before, after] = marks.system;
                parts.extend([(before, true), (self.preamble, true), (system, false), (after, true)]);
                prefix = marks.prefix_after_system;
            }
        }
        parts.extend([(prefix, true), (prompt, false)]);
        parts.push((marks.suffix, true));
        Ok((parts, thought))
    }
}

fn marks(template: ChatTemplate) -> &'static Marks {
    match template {
        ChatTemplate::ChatMl | ChatTemplate::Qwen3 | ChatTemplate::Qwen3Thinking => &CHAT_ML,
        ChatTemplate::Llama3 => &LLAMA3,
        ChatTemplate::Llama2 => &LLAMA2,
    }
}

/// Finds the system text that a ChatML template writes where the user gives none, spelled out in one piece: as Qwen2 and Qwen2.5
/// do. (Those that put it together from variables show no such piece.)
fn default_system(text: &str) -> &str {
    const BEFORE: &str = "<|im_start|>system";
    let pieces = text.match_indices(BEFORE).filter_map(|(at, _)| text.get(at + BEFORE.len()..));
    pieces
        .filter_map(|rest| {
            let rest = rest.strip_prefix("\\n").or(rest.strip_prefix('\n'))?;
            let system = rest.get(..rest.find("<|im_end|>")?)?;
            let is_plain = !system.is_empty() && !system.contains(['\'', '"', '{', '}', '\\']);
            is_plain.then_some(system)
        })
        .next()
        .unwrap_or_default()
}
