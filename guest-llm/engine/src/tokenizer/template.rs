//! Chat templates: how the turns of a conversation are written for the model.
//!
//! The file's `tokenizer.chat_template` is a program in a language of its own (Jinja). It is not run: the formats in
//! circulation are few, and are recognised by the marks that they contain, as llama.cpp does without Jinja. A template counts as
//! known only if its marks are special tokens of the vocabulary, so that a user cannot spell them in a prompt.

use super::TokenKind;
use super::vocabulary::Vocabulary;

/// A chat template that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChatTemplate {
    /// `<|im_start|>user … <|im_end|>` (Qwen2 and many others).
    ChatMl,
    /// ChatML, with an empty thought before every answer: Qwen3 with `enable_thinking` off.
    ChatMlWithoutThought,
    /// `<|start_header_id|>user<|end_header_id|> … <|eot_id|>`.
    Llama3,
    /// `[INST] … [/INST]`.
    Llama2,
}

/// The text around a user's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    /// Before it.
    pub prefix: &'static str,
    /// After it, up to where the answer begins.
    pub suffix: &'static str,
    /// After an answer, before the next turn.
    pub close: &'static str,
    /// Those of them that must be special tokens.
    special: &'static [&'static str],
    /// Whether white space around the user's text is dropped.
    pub trims: bool,
}

const CHAT_ML: Marks = Marks {
    prefix: "<|im_start|>user\n",
    suffix: "<|im_end|>\n<|im_start|>assistant\n",
    close: "<|im_end|>\n",
    special: &["<|im_start|>", "<|im_end|>"],
    trims: false,
};

impl ChatTemplate {
    /// Recognises a template's text.
    pub(super) fn recognise(text: &str, vocabulary: &Vocabulary<'_>) -> Option<Self> {
        let has = |mark: &str| text.contains(mark);
        let template = if has("<|im_start|>") {
            // Templates of models that always think lack the switch.
            if has("enable_thinking") && has("<think>") { Self::ChatMlWithoutThought } else { Self::ChatMl }
        } else if has("<|start_header_id|>") && has("<|end_header_id|>") {
            Self::Llama3
        } else if has("[INST]") && has("<<SYS>>") {
            Self::Llama2
        } else {
            return None;
        };
        let is_special = |mark: &&str| {
            let kind = vocabulary.find(mark.as_bytes()).and_then(|token| vocabulary.kind(token));
            matches!(kind, Some(TokenKind::Control | TokenKind::UserDefined))
        };
        template.marks().special.iter().all(is_special).then_some(template)
    }

    pub(super) fn marks(self) -> Marks {
        match self {
            Self::ChatMl => CHAT_ML,
            Self::ChatMlWithoutThought => {
                Marks { suffix: "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", ..CHAT_ML }
            }
            Self::Llama3 => Marks {
                prefix: "<|start_header_id|>user<|end_header_id|>\n\n",
                suffix: "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
                close: "<|eot_id|>",
                special: &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
                trims: true,
            },
            Self::Llama2 => Marks {
                prefix: "[INST] ",
                suffix: " [/INST]",
                close: "</s><s>",
                special: &["<s>", "</s>"],
                trims: true,
            },
        }
    }
}
