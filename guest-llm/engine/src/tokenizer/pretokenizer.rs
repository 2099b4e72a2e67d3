//! Cutting text into the words that byte-pair encoding works on.
//!
//! Each pre-tokenizer is a regular expression; the words are its matches from left to right. It is hand-written here,
//! for no regular expression engine knows `(?!\S)` within bounded time and without a standard library. The expressions
//! are those of the models' `tokenizer.json`.

use super::classes::{is_letter, is_number};

/// The pre-tokenizers, by the family that brought them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pretokenizer {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Llama3,
    /// As [`Pretokenizer::Llama3`], with `\p{N}` for `\p{N}{1,3}`.
    Qwen2,
}

/// Class of a character; each character has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

fn class(c: char) -> Class {
    if c.is_whitespace() {
        Class::Space
    } else if is_number(c) {
        Class::Number
    } else if is_letter(c) {
        Class::Letter
    } else {
        Class::Other
    }
}

impl Pretokenizer {
    /// Finds the pre-tokenizer that `tokenizer.ggml.pre` names: all names for which llama.cpp uses one of these expressions,
    /// and nothing else that would matter.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "gpt-2" | "phi-2" | "gigachat" | "a.x-4.0" | "mellum" | "exaone4" | "mpt" | "olmo"
            | "trillion" => Some(Pretokenizer::Gpt2),
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0"
            | "lfm2" => Some(Pretokenizer::Llama3),
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "stablelm2" | "hunyuan"
            | "solar-open" => Some(Pretokenizer::Qwen2),
            _ => None,
        }
    }

    /// Tells whether a word that is a token is that token, whatever the merges say.
    pub fn keeps_known_words(self) -> bool {
        self == Pretokenizer::Llama3
    }

    /// Cuts `text` into words; together they are the text.
    pub fn words(self, text: &str) -> impl Iterator<Item = &str> {
        let mut rest = text;
        core::iter::from_fn(move || {
            let (word, after) =
                rest.split_at_checked(self.word_length(rest)).filter(|(word, _)| !word.is_empty())?;
            rest = after;
            Some(word)
        })
    }

    /// Bytes of the first word of `text`.
    fn word_length(self, text: &str) -> usize {
        let Some(first) = text.chars().next() else { return 0 };
        if let Some(length) = contraction(text, self != Pretokenizer::Gpt2) {
            return length;
        }
        let after_first = text.get(first.len_utf8()..).unwrap_or_default();
        let second = after_first.chars().next().map(class);
        // The optional character before a run: any but a line break, letter or number; or a space.
        let leads_letters = match self {
            Pretokenizer::Gpt2 => first == ' ',
            _ => !matches!(first, '\r' | '\n') && matches!(class(first), Class::Space | Class::Other),
        };
        let run = |text: &str, wanted| span(text, |c| class(c) == wanted);
        match class(first) {
            Class::Letter => return run(text, Class::Letter),
            _ if leads_letters && second == Some(Class::Letter) => {
                return first.len_utf8() + run(after_first, Class::Letter);
            }
            Class::Number => return self.number_length(text),
            _ if self == Pretokenizer::Gpt2 && first == ' ' && second == Some(Class::Number) => {
                return 1 + run(after_first, Class::Number);
            }
            Class::Other => return self.with_line_breaks(text, run(text, Class::Other)),
            _ if first == ' ' && second == Some(Class::Other) => {
                return self.with_line_breaks(text, 1 + run(after_first, Class::Other));
            }
            Class::Space => {}
        }
        let spaces = run(text, Class::Space);
        let run = text.get(..spaces).unwrap_or_default();
        if self != Pretokenizer::Gpt2
            && let Some(last) = run.rfind(['\r', '\n'])
        {
            return last + 1;
        }
        // All but the last space, if a word follows that may take it.
        match run.char_indices().next_back() {
            Some((last, _)) if last > 0 && spaces < text.len() => last,
            _ => spaces,
        }
    }

    fn number_length(self, text: &str) -> usize {
        let most = match self {
            Pretokenizer::Gpt2 => usize::MAX,
            Pretokenizer::Llama3 => 3,
            Pretokenizer::Qwen2 => 1,
        };
        text.chars().take_while(|c| class(*c) == Class::Number).take(most).map(char::len_utf8).sum()
    }

    /// Adds the line breaks that follow a run of `length` bytes.
    fn with_line_breaks(self, text: &str, length: usize) -> usize {
        let rest = text.get(length..).unwrap_or_default();
        match self {
            Pretokenizer::Gpt2 => length,
            _ => length + span(rest, |c| matches!(c, '\r' | '\n')),
        }
    }
}

/// Bytes of the characters at the start of `text` that `f` holds for.
fn span(text: &str, f: impl Fn(char) -> bool) -> usize {
    text.find(|c| !f(c)).unwrap_or(text.len())
}

/// Length of an English contraction at the start of `text`.
fn contraction(text: &str, ignore_case: bool) -> Option<usize> {
    let rest = text.strip_prefix('\'')?.as_bytes();
    ["s", "t", "re", "ve", "m", "ll", "d"]
        .iter()
        .find(|ending| {
            let start = rest.get(..ending.len()).unwrap_or_default();
            if ignore_case {
                start.eq_ignore_ascii_case(ending.as_bytes())
            } else {
                start == ending.as_bytes()
            }
        })
        .map(|ending| 1 + ending.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;
    use std::vec::Vec;

    fn words(pretokenizer: Pretokenizer, text: &str) -> Vec<&str> {
        pretokenizer.words(text).collect()
    }

    #[test]
    fn gpt2() {
        let cut = |text| words(Pretokenizer::Gpt2, text);
        assert_eq!(
            cut("I've  got 12345 $5!\n\n ok "),
            ["I", "'ve", " ", " got", " 12345", " $", "5", "!", "\n\n", " ok", " "]
        );
        assert_eq!(cut("DON'T"), ["DON", "'", "T"]);
        assert_eq!(cut("   "), ["   "]);
        assert_eq!(cut("\u{3000}水 é²"), ["\u{3000}", "水", " é", "²"]);
    }

    #[test]
    fn llama3() {
        let cut = |text| words(Pretokenizer::Llama3, text);
        assert_eq!(
            cut("DON'T 12345 (ok)\n\n \n x"),
            ["DON", "'T", " ", "123", "45", " (", "ok", ")\n\n", " \n", " x"]
        );
        assert_eq!(cut("a\tb .c"), ["a", "\tb", " .", "c"]);
        assert_eq!(cut("  \r\n  x"), ["  \r\n", " ", " x"]);
        assert_eq!(cut("x  "), ["x", "  "]);
        assert_eq!(cut("'S'x 's"), ["'S", "'x", " '", "s"]);
    }

    #[test]
    fn qwen2_takes_digits_one_by_one() {
        assert_eq!(words(Pretokenizer::Qwen2, "a 123"), ["a", " ", "1", "2", "3"]);
    }

    /// What each expression says, tried alternative by alternative at every place, as a backtracking engine does.
    fn by_expression(pretokenizer: Pretokenizer, text: &str) -> Vec<String> {
        let characters: Vec<char> = text.chars().collect();
        let is = |at: usize, wanted: Class| characters.get(at).is_some_and(|c| class(*c) == wanted);
        let run = |from: usize, f: &dyn Fn(char) -> bool| {
            from + characters[from.min(characters.len())..].iter().take_while(|c| f(**c)).count()
        };
        let letters = |from| run(from, &|c| class(c) == Class::Letter);
        let others = |from| run(from, &|c| class(c) == Class::Other);
        let spaces = |from| run(from, &char::is_whitespace);
        let breaks = |from| run(from, &|c| matches!(c, '\r' | '\n'));
        let is_gpt2 = pretokenizer == Pretokenizer::Gpt2;
        let mut words = Vec::new();
        let mut at = 0;
        while at < characters.len() {
            let contraction = ["s", "t", "re", "ve", "m", "ll", "d"].iter().find_map(|ending| {
                let end = at + 1 + ending.len();
                let found: String = characters.get(at + 1..end)?.iter().collect();
                let same = if is_gpt2 { found == **ending } else { found.eq_ignore_ascii_case(ending) };
                (characters[at] == '\'' && same).then_some(end)
            });
            // An optional character: with it first, then without.
            let led = |leads: bool, run: &dyn Fn(usize) -> usize| {
                let with = if leads { run(at + 1) } else { at };
                if with > at + 1 { Some(with) } else { Some(run(at)).filter(|end| *end > at) }
            };
            let c = characters[at];
            let leads_letters = if is_gpt2 {
                c == ' '
            } else {
                !matches!(c, '\r' | '\n') && !is(at, Class::Letter) && !is(at, Class::Number)
            };
            let most = match pretokenizer {
                Pretokenizer::Gpt2 => usize::MAX,
                Pretokenizer::Llama3 => 3,
                Pretokenizer::Qwen2 => 1,
            };
            let numbers =
                |from: usize| run(from, &|c| class(c) == Class::Number).min(from.saturating_add(most));
            let word = led(leads_letters, &letters);
            let number = led(is_gpt2 && c == ' ', &numbers);
            let other = led(c == ' ', &others).map(|end| if is_gpt2 { end } else { breaks(end) });
            let end_of_spaces = spaces(at);
            // `\s*[\r\n]+`: as far as a break ends it.
            let line =
                (at..end_of_spaces).rev().find(|i| matches!(characters[*i], '\r' | '\n')).map(|i| i + 1);
            let line = line.filter(|_| !is_gpt2);
            // `\s+(?!\S)`: all of them at the end, else all but one.
            let not_before =
                if end_of_spaces == characters.len() { end_of_spaces } else { end_of_spaces.max(1) - 1 };
            let trailing = Some(not_before).filter(|end| *end > at);
            let any = Some(end_of_spaces).filter(|end| *end > at);
            let end = contraction.or(word).or(number).or(other).or(line).or(trailing).or(any);
            let end = end.unwrap_or_else(|| panic!("nothing matches {c:?}"));
            words.push(characters[at..end].iter().collect());
            at = end;
        }
        words
    }

    #[test]
    fn words_are_the_matches_of_the_expressions() {
        let alphabet: Vec<char> =
            "aZé水'sStTrReEvVmMlLdD019²٣ \t\r\n\u{a0}\u{3000}.,!_\u{300}🦙\u{17f}\u{212a}".chars().collect();
        let mut seed = 1u64;
        for round in 0..60_000 {
            let mut text = String::new();
            for _ in 0..round % 12 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                text.push(alphabet[(seed >> 33) as usize % alphabet.len()]);
            }
            for pretokenizer in [Pretokenizer::Gpt2, Pretokenizer::Llama3, Pretokenizer::Qwen2] {
                assert_eq!(
                    words(pretokenizer, &text),
                    by_expression(pretokenizer, &text),
                    "{pretokenizer:?} {text:?}"
                );
            }
        }
    }
}
