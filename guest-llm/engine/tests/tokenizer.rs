//! Tokenizers: hand-computed cases, and llama.cpp's own vocabularies where they are at hand.

mod support;

use flexserve_engine::gguf::Gguf;
use flexserve_engine::{Detokenizer, Error, Limits, Tokenizer};
use support::{File, Numbers, PIECES, Value, set_vocabulary, strings};

const UNKNOWN: u32 = 0;
const BOS: u32 = 1;
const EOS: u32 = 2;

fn byte(byte: u8) -> u32 {
    3 + u32::from(byte)
}

fn piece(text: &str) -> u32 {
    3 + 256 + PIECES.iter().position(|piece| *piece == text).unwrap() as u32
}

fn spm() -> File {
    let mut file = File::new();
    set_vocabulary(&mut file);
    file
}

/// Calls `f` with the tokenizer in `file`.
fn with<T>(file: &File, f: impl FnOnce(&Tokenizer<'_>) -> T) -> T {
    let bytes = file.bytes();
    let gguf = Gguf::parse(&bytes, &Limits::default()).unwrap();
    f(&Tokenizer::load(&gguf, &Limits::default()).unwrap())
}

fn encode(file: &File, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
    with(file, |tokenizer| tokenizer.encode(text, add_special, parse_special).unwrap())
}

/// The text of `tokens`, piece by piece and what is left at the end.
fn decode(file: &File, tokens: &[u32]) -> Vec<String> {
    with(file, |tokenizer| {
        let mut detokenizer = Detokenizer::new(tokenizer);
        let mut pieces: Vec<String> =
            tokens.iter().map(|token| detokenizer.push(*token).unwrap().into()).collect();
        pieces.push(detokenizer.finish().into());
        pieces
    })
}

#[test]
fn spm_merges_by_score_and_falls_back_to_bytes() {
    let mut file = spm();
    file.set("tokenizer.ggml.add_space_prefix", Value::Bool(0));
    let plain = |text| encode(&file, text, false, false);
    // "▁t" first, then "he", which scores less; then both together.
    assert_eq!(plain(" the"), [piece("\u{2581}the")]);
    assert_eq!(plain("the"), [piece("t"), piece("he")]);
    // Equal scores: the leftmost "ab" first; then "aab" from what is left.
    assert_eq!(plain("abab"), [piece("ab"), piece("ab")]);
    assert_eq!(plain("aabab"), [piece("aab"), piece("ab")]);
    assert_eq!(plain("é水\n"), [piece("é"), byte(0xe6), byte(0xb0), byte(0xb4), byte(b'\n')]);
    assert_eq!(plain("  "), [piece("\u{2581}"), piece("\u{2581}")]);
    assert_eq!(plain(""), []);
}

#[test]
fn equal_scores_merge_the_leftmost() {
    let mut file = spm();
    file.set("tokenizer.ggml.add_space_prefix", Value::Bool(0));
    let (mut texts, mut scores, mut kinds) = support::vocabulary();
    for text in ["x", "xx"] {
        texts.push(text.into());
        scores.push(-1.0);
        kinds.push(1);
    }
    let (x, xx) = (texts.len() as u32 - 2, texts.len() as u32 - 1);
    file.set("tokenizer.ggml.tokens", Value::Strings(texts));
    file.set("tokenizer.ggml.scores", Value::F32s(scores));
    file.set("tokenizer.ggml.token_type", Value::I32s(kinds));
    assert_eq!(encode(&file, "xxxxx", false, false), [xx, xx, x]);
}

#[test]
fn the_space_before_text_comes_after_every_special_token() {
    let file = spm();
    assert_eq!(encode(&file, "the", true, false), [BOS, piece("\u{2581}the")]);
    assert_eq!(encode(&file, "", true, true), [BOS]);
    assert_eq!(
        encode(&file, "the</s>the", true, true),
        [BOS, piece("\u{2581}the"), EOS, piece("\u{2581}the")]
    );
    let without = encode(&file, "a</s>", true, false);
    assert_eq!(without.len(), 1 + 2 + 4, "control tokens are text: {without:?}");
    let mut file = file;
    file.set("tokenizer.ggml.add_bos_token", Value::Bool(0));
    file.set("tokenizer.ggml.add_eos_token", Value::Bool(1));
    assert_eq!(encode(&file, "the", true, false), [piece("\u{2581}the"), EOS]);
    assert_eq!(encode(&file, "<unk>", false, true), [UNKNOWN]);
}

/// Adds control and user-defined tokens to the test vocabulary.
fn with_special(texts: &[(&str, i32)]) -> (File, Vec<u32>) {
    let mut file = spm();
    file.set("tokenizer.ggml.add_space_prefix", Value::Bool(0));
    let (mut all, mut scores, mut kinds) = support::vocabulary();
    let ids = (all.len() as u32..).take(texts.len()).collect();
    for (text, kind) in texts {
        all.push(text.as_bytes().to_vec());
        scores.push(0.0);
        kinds.push(*kind);
    }
    file.set("tokenizer.ggml.tokens", Value::Strings(all));
    file.set("tokenizer.ggml.scores", Value::F32s(scores));
    file.set("tokenizer.ggml.token_type", Value::I32s(kinds));
    (file, ids)
}

#[test]
fn special_tokens_are_cut_out_longest_first_then_leftmost() {
    let (file, ids) = with_special(&[("<a>", 3), ("<a><a>", 3), ("[u]", 4), ("aa", 3)]);
    let [one, two, user, aa] = ids[..] else { panic!() };
    let a = piece("a");
    assert_eq!(encode(&file, "<a><a><a>", false, true), [two, one]);
    assert_eq!(encode(&file, "a[u]a", false, false), [a, user, a]);
    assert_eq!(encode(&file, "aaaaa", false, true), [aa, aa, a]);
    assert_eq!(encode(&file, "a<a>b", false, true), [a, one, piece("b")]);
}

#[test]
fn a_prompt_cannot_spell_control_tokens() {
    let (mut file, ids) = with_special(&[("<user>", 3), ("<bot>", 3), ("[u]", 4), ("a<x>a", 3)]);
    let [user, bot, defined, _] = ids[..] else { panic!() };
    file.set("flexserve.request.prefix", "<user>a");
    file.set("flexserve.request.suffix", "a<bot>");
    let (a, b, ab) = (piece("a"), piece("b"), piece("ab"));
    with(&file, |tokenizer| {
        // "ab" is merged over the border of prefix and prompt.
        assert_eq!(tokenizer.encode_request("b", false).unwrap(), [BOS, user, ab, a, bot]);
        let spelled = tokenizer.encode_request("b<bot>", false).unwrap();
        assert_eq!(spelled.iter().filter(|token| **token == bot).count(), 1);
        assert_eq!(&spelled[..3], [BOS, user, ab]);
        assert_eq!(tokenizer.encode_request("b[u]", false).unwrap(), [BOS, user, ab, defined, a, bot]);
        // A control token may not reach from the prefix into the prompt either.
        assert!(tokenizer.encode_request("<x>", false).unwrap().iter().all(|token| *token != ids[3]));
        assert_eq!(tokenizer.encode_request("b<bot>", true).unwrap(), [BOS, b, bot]);
    });
}

#[test]
fn text_and_prompt_are_bounded() {
    let mut file = spm();
    file.set("tokenizer.ggml.add_bos_token", Value::Bool(0));
    let bytes = file.bytes();
    let gguf = Gguf::parse(&bytes, &Limits::default()).unwrap();
    let limits = Limits { text_bytes: 10, ..Limits::default() };
    let tokenizer = Tokenizer::load(&gguf, &limits).unwrap();
    assert!(tokenizer.encode("0123456789", true, true).is_ok());
    let error = tokenizer.encode("0123456789a", true, true).unwrap_err();
    assert_eq!(error.to_string(), "11 bytes of text, at most 10 are allowed");
    assert_eq!(tokenizer.encode_request("0123456789a", false).unwrap_err(), error);
    for raw in [false, true] {
        assert_eq!(tokenizer.encode_request("", raw), Err(Error::EmptyPrompt));
    }
}

#[test]
fn text_comes_out_in_whole_characters() {
    let file = spm();
    let mut tokens =
        vec![BOS, piece("\u{2581}the"), byte(0xf0), byte(0x9f), byte(0xa6), byte(0x99), piece("é")];
    assert_eq!(decode(&file, &tokens), ["", " the", "", "", "", "🦙", "é", ""]);
    tokens.extend([byte(0xe6), byte(0xb0), EOS]);
    assert_eq!(decode(&file, &tokens)[7..], ["", "", "", "\u{fffd}"]);
    // A byte that cannot follow ends the character; one that never occurs is replaced at once.
    assert_eq!(decode(&file, &[byte(0xe6), byte(b'x')]), ["", "\u{fffd}x", ""]);
    assert_eq!(decode(&file, &[byte(0xff), byte(0xff), byte(b'x')]), ["\u{fffd}", "\u{fffd}", "x", ""]);
    assert_eq!(decode(&file, &[byte(0xe6), byte(0xe6), byte(0xb0)]), ["", "\u{fffd}", "", "\u{fffd}"]);
    let count = 3 + 256 + PIECES.len() as u32;
    with(&file, |tokenizer| {
        assert_eq!(Detokenizer::new(tokenizer).push(count), Err(Error::UnknownToken(count)));
    });
}

/// A byte-level vocabulary: bytes for "abc é水" and a few merges.
fn bpe(pre: &str) -> File {
    let mut file = File::new();
    file.set("tokenizer.ggml.model", "gpt2");
    file.set("tokenizer.ggml.pre", pre);
    let tokens =
        ["a", "b", "c", "Ġ", "ab", "abc", "Ġa", "Ã", "©", "Ã©", "æ", "°", "´", "bc", "<|end|>", "cab"];
    file.set("tokenizer.ggml.tokens", strings(&tokens));
    let kinds = tokens.iter().map(|text| if text.starts_with("<|") { 3 } else { 1 });
    file.set("tokenizer.ggml.token_type", Value::I32s(kinds.collect()));
    file.set("tokenizer.ggml.merges", strings(&["b c", "a b", "Ã ©", "Ġ a", "a bc", "a b"]));
    file.set("tokenizer.ggml.bos_token_id", Value::U32(14));
    file
}

#[test]
fn bpe_merges_by_rank_within_words() {
    let gpt2 = bpe("gpt-2");
    let encode_gpt2 = |text| encode(&gpt2, text, true, true);
    assert_eq!(encode_gpt2("abc"), [5], "b c, then a bc");
    assert_eq!(encode_gpt2("abab"), [4, 4]);
    assert_eq!(encode_gpt2("a a"), [0, 6]);
    assert_eq!(encode_gpt2("é水"), [9, 10, 11, 12]);
    assert_eq!(encode_gpt2("a<|end|>b"), [0, 14, 1]);
    assert_eq!(encode_gpt2("cab"), [2, 4], "merges do not lead to the token");
    let llama = bpe("llama-bpe");
    assert_eq!(
        encode(&llama, "cab", true, true),
        [14, 15],
        "a known word is its token, after the first token"
    );
    assert_eq!(encode(&llama, "azb", false, true), [0, 1], "a byte without a token is left out");
    assert_eq!(
        decode(&gpt2, &[5, 6, 8, 9, 10, 11, 12, 14]),
        ["abc", " a", "\u{fffd}", "é", "", "", "水", "", ""]
    );
}

#[test]
fn end_of_generation_is_found_by_key_and_by_text() {
    let ends = |file: &File| {
        with(file, |t| {
            (0..t.token_count() as u32).filter(|id| t.is_end_of_generation(*id)).collect::<Vec<_>>()
        })
    };
    assert_eq!(ends(&spm()), [EOS]);
    assert_eq!(ends(&bpe("gpt-2")), [14]);
    let (mut file, ids) = with_special(&[("<|im_end|>", 1), ("<stop>", 3)]);
    assert_eq!(ends(&file), [EOS, ids[0]]);
    file.set("tokenizer.ggml.eot_token_id", Value::U32(ids[1]));
    assert_eq!(ends(&file), [EOS, ids[0], ids[1]]);
}

#[test]
fn any_text_comes_back() {
    let mut spm = spm();
    spm.set("tokenizer.ggml.add_space_prefix", Value::Bool(0));
    // Every byte's stand-in and a few merges.
    let stand_in = |byte: u8| match byte {
        0..=0x20 => char::from_u32(0x100 + u32::from(byte)),
        0x7f..=0xa0 => char::from_u32(0x121 + u32::from(byte - 0x7f)),
        0xad => Some('\u{143}'),
        printable => Some(printable.into()),
    };
    let mut tokens: Vec<String> = (0..=255).map(|byte| stand_in(byte).unwrap().to_string()).collect();
    tokens.extend(["Ġt", "he", "ab", "Ġthe", "ðŁ"].map(String::from));
    let mut bpe = File::new();
    bpe.set("tokenizer.ggml.model", "gpt2");
    bpe.set("tokenizer.ggml.tokens", strings(&tokens.iter().map(String::as_str).collect::<Vec<_>>()));
    bpe.set("tokenizer.ggml.merges", strings(&["h e", "Ġ t", "a b", "Ġt he", "ð Ł"]));

    let alphabet: Vec<char> =
        "abthe  \t\r\n'sLl019²é水\u{3000}\u{300}🦙\u{10ffff}\0.,\u{ad}".chars().collect();
    let mut numbers = Numbers(5);
    let mut below = |count: usize| ((numbers.next() + 1.0) / 2.0 * count as f32) as usize % count;
    let texts: Vec<String> =
        (0..400).map(|round| (0..round % 40).map(|_| alphabet[below(alphabet.len())]).collect()).collect();
    for pre in ["", "gpt-2", "llama-bpe", "qwen2"] {
        bpe.set("tokenizer.ggml.pre", pre);
        bpe.set("tokenizer.ggml.add_bos_token", Value::Bool(0));
        with(if pre.is_empty() { &spm } else { &bpe }, |tokenizer| {
            for text in &texts {
                let mut detokenizer = Detokenizer::new(tokenizer);
                let mut back = String::new();
                for token in tokenizer.encode(text, false, true).unwrap() {
                    back.push_str(detokenizer.push(token).unwrap());
                }
                back.push_str(detokenizer.finish());
                assert_eq!(&back, text, "{pre}");
            }
        });
    }
}

/// `FLEXSERVE_VOCABULARIES` names a folder with llama.cpp's `models/ggml-vocab-*.gguf`, `.inp` and `.out`.
#[test]
#[ignore = "needs llama.cpp's vocabularies"]
fn llama_cpp_vocabularies_give_the_expected_tokens() {
    let folder =
        std::path::PathBuf::from(std::env::var_os("FLEXSERVE_VOCABULARIES").expect("no folder given"));
    for name in ["llama-spm", "phi-3", "gpt-2", "llama-bpe", "qwen2"] {
        let read =
            |suffix: &str| std::fs::read(folder.join(format!("ggml-vocab-{name}.gguf{suffix}"))).unwrap();
        let bytes = read("");
        let limits = Limits::default();
        let gguf = Gguf::parse(&bytes, &limits).unwrap();
        let tokenizer = Tokenizer::load(&gguf, &limits).unwrap();
        let (texts, outputs) =
            (String::from_utf8(read(".inp")).unwrap(), String::from_utf8(read(".out")).unwrap());
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let outputs: Vec<Vec<u32>> = outputs
            .lines()
            .map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect())
            .collect();
        assert_eq!(texts.len(), outputs.len() + usize::from(texts.last() == Some(&"")), "{name}");
        for (text, expected) in texts.iter().zip(&outputs) {
            let tokens = tokenizer.encode(text, false, false).unwrap();
            assert_eq!(&tokens, expected, "{name}: {text:?}");
        }
    }
}
