//! A hostile vocabulary, and a hostile prompt for it.

use arbitrary::{Arbitrary, Result, Unstructured};
use flexserve_engine::gguf::Gguf;
use flexserve_engine::{Detokenizer, Limits, Tokenizer};

/// Makes a vocabulary and a text; whatever they are, tokens come out and go in again, and streaming gives what the tokens' bytes
/// do.
pub fn tokenizer(data: &[u8]) {
    let _ = run(&mut Unstructured::new(data));
}

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let is_spm = bool::arbitrary(input)?;
    let has_bytes = input.ratio(3, 4)?;
    let mut texts: Vec<Vec<u8>> = Vec::new();
    let mut kinds = Vec::new();
    if has_bytes {
        for byte in 0..=255u8 {
            texts.push(if is_spm { format!("<0x{byte:02X}>").into_bytes() } else { stand_in(byte) });
            kinds.push(if is_spm { 6 } else { 1 });
        }
    }
    for _ in 0..input.int_in_range(0..=40)? {
        let length = input.int_in_range(0..=8)?.min(input.len());
        texts.push(input.bytes(length)?.to_vec());
        kinds.push(if input.ratio(3, 4)? { 1 } else { i32::from(u8::arbitrary(input)? % 8) });
    }
    let mut merges_are_tokens = true;
    let mut file = File::default();
    file.text("tokenizer.ggml.model", if is_spm { b"llama" } else { b"gpt2" });
    file.text("tokenizer.ggml.pre", input.choose(&[&b"gpt-2"[..], b"llama-bpe", b"qwen2"])?);
    file.bool("tokenizer.ggml.add_space_prefix", bool::arbitrary(input)?);
    if !input.ratio(7, 8)? {
        file.bool("tokenizer.ggml.add_bos_token", bool::arbitrary(input)?);
    }
    if is_spm {
        let scores: Vec<f32> =
            (0..texts.len()).map(|_| i8::arbitrary(input).map(f32::from)).collect::<Result<_>>()?;
        file.array(
            "tokenizer.ggml.scores",
            6,
            scores.len(),
            &scores.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<_>>(),
        );
    } else {
        let mut merges = Vec::new();
        for _ in 0..input.int_in_range(0..=20)? {
            let (a, b) = (
                input.choose(&texts).cloned().unwrap_or_default(),
                input.choose(&texts).cloned().unwrap_or_default(),
            );
            // As in llama.cpp, a merge without a token of its own loses what is not ASCII in it.
            merges_are_tokens &= texts.contains(&[&a[..], &b].concat());
            merges.push([&a[..], b" ", &b].concat());
        }
        file.strings("tokenizer.ggml.merges", &merges);
    }
    file.strings("tokenizer.ggml.tokens", &texts);
    file.array(
        "tokenizer.ggml.token_type",
        5,
        kinds.len(),
        &kinds.iter().flat_map(|k| k.to_le_bytes()).collect::<Vec<_>>(),
    );
    let bytes = file.bytes();
    let limits = Limits::default();
    let gguf = Gguf::parse(&bytes, &limits).expect("the file is well-formed");
    let Ok(tokenizer) = Tokenizer::load(&gguf, &limits) else { return Ok(()) };

    let parse_special = bool::arbitrary(input)?;
    let text = String::from_utf8_lossy(input.bytes(input.len())?).into_owned();
    let tokens = tokenizer.encode(&text, true, parse_special).expect("a text of this length is encoded");
    let mut detokenizer = Detokenizer::new(&tokenizer);
    let (mut streamed, mut whole, mut piece) = (String::new(), Vec::new(), Vec::new());
    for token in &tokens {
        streamed.push_str(detokenizer.push(*token).expect("it is a token"));
        tokenizer.token_bytes(*token, &mut piece).expect("it is a token");
        whole.extend(&piece);
    }
    streamed.push_str(detokenizer.finish());
    assert_eq!(streamed, String::from_utf8_lossy(&whole), "streaming differs");
    // With a token for every byte, and none that stands for something else, nothing is lost.
    let is_plain = kinds.iter().all(|kind| matches!(kind, 1 | 6)) && !tokenizer_ends(&tokenizer, &tokens);
    if has_bytes
        && is_plain
        && merges_are_tokens
        && !is_spm
        && texts[256..].iter().all(|text| is_stand_ins(text))
    {
        assert_eq!(streamed, text, "the text is another one");
    }
    Ok(())
}

/// Whether a token ends answers: it stands for no text then, whatever is written in it.
fn tokenizer_ends(tokenizer: &Tokenizer<'_>, tokens: &[u32]) -> bool {
    tokens.iter().any(|token| tokenizer.is_end_of_generation(*token) || Some(*token) == tokenizer.bos())
}

/// The character that stands for a byte in byte-level vocabularies.
fn stand_in(byte: u8) -> Vec<u8> {
    let code = match byte {
        0..=0x20 => 0x100 + u32::from(byte),
        0x7f..=0xa0 => 0x121 + u32::from(byte - 0x7f),
        0xad => 0x143,
        printable => printable.into(),
    };
    char::from_u32(code).unwrap_or_default().to_string().into_bytes()
}

/// Whether a token's text is made of such characters only: another means itself, and may so mean a byte twice.
fn is_stand_ins(text: &[u8]) -> bool {
    let is_one = |c: char| matches!(u32::from(c), 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff | 0x100..=0x143);
    core::str::from_utf8(text).is_ok_and(|text| text.chars().all(is_one))
}

/// A GGUF file without tensors.
#[derive(Default)]
struct File {
    keys: Vec<u8>,
    count: u64,
}

impl File {
    fn key(&mut self, name: &str, ty: u32) {
        self.count += 1;
        string(&mut self.keys, name.as_bytes());
        self.keys.extend(ty.to_le_bytes());
    }

    fn text(&mut self, name: &str, value: &[u8]) {
        self.key(name, 8);
        string(&mut self.keys, value);
    }

    fn bool(&mut self, name: &str, value: bool) {
        self.key(name, 7);
        self.keys.push(value.into());
    }

    fn array(&mut self, name: &str, ty: u32, count: usize, values: &[u8]) {
        self.key(name, 9);
        self.keys.extend(ty.to_le_bytes());
        self.keys.extend((count as u64).to_le_bytes());
        self.keys.extend(values);
    }

    fn strings(&mut self, name: &str, values: &[Vec<u8>]) {
        let mut bytes = Vec::new();
        values.iter().for_each(|value| string(&mut bytes, value));
        self.array(name, 8, values.len(), &bytes);
    }

    fn bytes(&self) -> Vec<u8> {
        [b"GGUF", &3u32.to_le_bytes()[..], &0u64.to_le_bytes(), &self.count.to_le_bytes(), &self.keys]
            .concat()
    }
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}
