//! Models of random weights in any format: what counts for speed and memory is their shape.

use std::io::{BufWriter, Write};

/// A tensor format: its name, ggml's number, elements and bytes per block.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Format(&'static str, u32, usize, usize);

const F32: Format = Format("F32", 0, 1, 4);
const Q6_K: Format = Format("Q6_K", 14, 256, 210);
const FORMATS: [Format; 11] = [
    F32,
    Format("F16", 1, 1, 2),
    Format("BF16", 30, 1, 2),
    Format("Q8_0", 8, 32, 34),
    Format("Q4_0", 2, 32, 18),
    Format("Q4_1", 3, 32, 20),
    Format("Q5_0", 6, 32, 22),
    Format("Q5_1", 7, 32, 24),
    Format("Q4_K", 12, 256, 144),
    Format("Q5_K", 13, 256, 176),
    Q6_K,
];

/// What is asked for on the command line.
#[derive(Clone, Debug)]
pub struct Request {
    /// `llama`, `qwen2` or `qwen3`.
    pub architecture: String,
    /// A format's name, or that of a mixture: `Q4_K_M` or `Q5_K_M`.
    pub format: String,
    /// Layers are added until the file has at least so many bytes.
    pub size: u64,
    /// Elements of a token's state; a multiple of 256.
    pub width: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Decides all weights.
    pub seed: u64,
}

impl Default for Request {
    fn default() -> Self {
        Request {
            architecture: "llama".into(),
            format: "Q4_K_M".into(),
            size: 128 << 20,
            width: 1024,
            vocabulary: 32000,
            seed: 1,
        }
    }
}

/// All that decides a model, to the bit.
#[derive(Clone, Debug)]
pub struct Spec {
    pub architecture: String,
    pub format: String,
    pub layers: usize,
    pub width: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_length: usize,
    pub vocabulary: usize,
    pub context: usize,
    pub seed: u64,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
    /// Whether there are biases beyond those that the architecture demands.
    pub biases: bool,
    /// Whether the rotation's frequencies have divisors of their own.
    pub rope_freqs: bool,
    pub scaling: Scaling,
}

/// Scaling of positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    None,
    /// Factor.
    Linear(f32),
    /// Factor, and context before it.
    Yarn(f32, usize),
}

impl Request {
    fn spec(&self, layers: usize) -> Spec {
        let heads = self.width / 64;
        Spec {
            architecture: self.architecture.clone(),
            format: self.format.clone(),
            layers,
            width: self.width,
            hidden: (self.width * 11 / 4).next_multiple_of(256),
            heads,
            kv_heads: (heads / 4).max(1),
            // In qwen3 models a head's length does not follow from the width.
            head_length: if self.architecture == "qwen3" { 128 } else { 64 },
            vocabulary: self.vocabulary,
            context: 4096,
            seed: self.seed,
            tied: false,
            biases: false,
            rope_freqs: false,
            scaling: Scaling::None,
        }
    }
}

/// Reads `200M`: bytes, or with a suffix K, M or G.
pub fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 1 << 10),
        b'M' => (&text[..text.len() - 1], 1 << 20),
        b'G' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

struct Tensor {
    name: String,
    columns: usize,
    /// None for a vector.
    rows: Option<usize>,
    format: Format,
}

impl Tensor {
    fn bytes(&self) -> u64 {
        (self.columns / self.format.2 * self.format.3 * self.rows.unwrap_or(1)) as u64
    }
}

/// Formats of the matrices, as llama.cpp mixes them.
struct Mixture {
    common: Format,
    /// Whether some matrices get six bits.
    some_more: bool,
}

impl Mixture {
    fn named(name: &str) -> Option<Self> {
        let common = name.strip_suffix("_M").unwrap_or(name);
        let some_more = common != name;
        let is_mixture = matches!(name, "Q4_K_M" | "Q5_K_M");
        let common = *FORMATS.iter().find(|format| format.0 == common)?;
        (is_mixture == some_more).then_some(Mixture { common, some_more })
    }

    fn of(&self, part: &str, layer: usize, layers: usize) -> Format {
        let eighth = layers / 8;
        let is_lucky = layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
        match part {
            "output" if self.some_more => Q6_K,
            "attn_v" | "ffn_down" if self.some_more && is_lucky => Q6_K,
            _ => self.common,
        }
    }
}

fn tensors(spec: &Spec, mixture: &Mixture) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    let mut add = |name: String, columns, rows, format| tensors.push(Tensor { name, columns, rows, format });
    add(
        "token_embd.weight".into(),
        spec.width,
        Some(spec.vocabulary),
        mixture.of("token_embd", 0, spec.layers),
    );
    let (queries, keys) = (spec.heads * spec.head_length, spec.kv_heads * spec.head_length);
    for layer in 0..spec.layers {
        let name = |part, kind| format!("blk.{layer}.{part}.{kind}");
        let mut vector = |part, kind, length| add(name(part, kind), length, None, F32);
        vector("attn_norm", "weight", spec.width);
        vector("ffn_norm", "weight", spec.width);
        if spec.architecture == "qwen3" {
            vector("attn_q_norm", "weight", spec.head_length);
            vector("attn_k_norm", "weight", spec.head_length);
        }
        if spec.architecture == "qwen2" || spec.biases {
            vector("attn_q", "bias", queries);
            vector("attn_k", "bias", keys);
            vector("attn_v", "bias", keys);
        }
        if spec.architecture == "llama" && spec.biases {
            vector("attn_output", "bias", spec.width);
            vector("ffn_gate", "bias", spec.hidden);
            vector("ffn_up", "bias", spec.hidden);
            vector("ffn_down", "bias", spec.width);
        }
        let mut matrix = |part, columns, rows| {
            add(name(part, "weight"), columns, Some(rows), mixture.of(part, layer, spec.layers));
        };
        matrix("attn_q", spec.width, queries);
        matrix("attn_k", spec.width, keys);
        matrix("attn_v", spec.width, keys);
        matrix("attn_output", queries, spec.width);
        matrix("ffn_gate", spec.width, spec.hidden);
        matrix("ffn_up", spec.width, spec.hidden);
        matrix("ffn_down", spec.hidden, spec.width);
    }
    add("output_norm.weight".into(), spec.width, None, F32);
    if spec.rope_freqs {
        add("rope_freqs.weight".into(), spec.head_length / 2, None, F32);
    }
    if spec.architecture == "qwen2" && spec.biases {
        add("output.bias".into(), spec.vocabulary, None, F32);
    }
    if !spec.tied {
        add("output.weight".into(), spec.width, Some(spec.vocabulary), mixture.of("output", 0, spec.layers));
    }
    tensors
}

/// A reproducible sequence (Steele, Lea and Flood's SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.bits().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// To half precision, toward zero; at most 1 in magnitude.
fn half(value: f32) -> [u8; 2] {
    let sign = (value.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = value.abs();
    let bits = if magnitude < 2f32.powi(-14) {
        (magnitude * 2f32.powi(24)) as u16
    } else {
        ((magnitude.to_bits() - (112 << 23)) >> 13) as u16
    };
    (sign | bits).to_le_bytes()
}

/// Writes one block whose elements have a mean of about zero and a standard deviation of about `deviation`.
fn block(format: Format, deviation: f32, numbers: &mut Numbers, out: &mut [u8]) {
    numbers.fill(out);
    let uniform = numbers.float() * 3f32.sqrt() * deviation;
    // Scales vary a little, and their signs, which centres quants that are not symmetrical.
    let varied = deviation * (1.0 + numbers.float() / 4.0) * if numbers.bits() & 1 == 0 { 1.0 } else { -1.0 };
    let mut put = |at: usize, value: f32| out[at..at + 2].copy_from_slice(&half(value));
    // The divisors are the standard deviations of blocks of scale 1 with quants (and inner scales) of all values alike.
    match format.0 {
        "F32" => out.copy_from_slice(&uniform.to_le_bytes()),
        "F16" => put(0, uniform),
        "BF16" => out.copy_from_slice(&uniform.to_le_bytes()[2..]),
        "Q8_0" => put(0, varied / 73.9),
        "Q4_0" => put(0, varied / 4.6),
        "Q5_0" => put(0, varied / 9.2),
        "Q4_1" => {
            put(0, varied / 4.6);
            put(2, varied / 4.6 * -7.5);
        }
        "Q5_1" => {
            put(0, varied / 9.2);
            put(2, varied / 9.2 * -15.5);
        }
        "Q4_K" => {
            put(0, varied / 258.0);
            put(2, varied / 258.0 * 7.5);
        }
        "Q5_K" => {
            put(0, varied / 527.0);
            put(2, varied / 527.0 * 15.5);
        }
        "Q6_K" => {
            put(208, varied / 170.0);
            out[192..208].iter_mut().for_each(|scale| *scale = (*scale & 0x1f).wrapping_sub(16));
        }
        other => unreachable!("no format {other}"),
    }
}

/// Mean and greatest deviation of a vector's elements.
fn spread(name: &str) -> (f32, f32) {
    match name.rsplit('.').nth(1) {
        _ if name.ends_with(".bias") => (0.0, 0.25),
        Some("attn_q_norm" | "attn_k_norm") => (1.5, 0.25),
        Some("rope_freqs") => (4.5, 3.5),
        _ => (1.0, 0.25),
    }
}

/// Standard deviation of a matrix' elements. Attention is to choose, not to average; tokens are to decide little beside what
/// layers make of them, so that the next token depends on the whole context.
fn deviation(name: &str, columns: usize) -> f32 {
    let gain = match name.rsplit('.').nth(1) {
        Some("token_embd" | "output") => 3.2,
        Some("attn_q" | "attn_k" | "attn_output" | "ffn_gate") => 1.5,
        _ => 1.0,
    };
    gain / (columns as f32).sqrt()
}

/// The tensor's bytes. Each has a sequence of numbers of its own.
fn data(tensor: &Tensor, seed: u64, index: usize) -> Vec<u8> {
    let mut numbers = Numbers(seed << 32 | index as u64);
    let Some(rows) = tensor.rows else {
        let (centre, range) = spread(&tensor.name);
        return (0..tensor.columns).flat_map(|_| (centre + numbers.float() * range).to_le_bytes()).collect();
    };
    let deviation = deviation(&tensor.name, tensor.columns);
    let mut bytes = vec![0; tensor.bytes() as usize];
    debug_assert_eq!(bytes.len(), rows * (tensor.columns / tensor.format.2) * tensor.format.3);
    for out in bytes.chunks_exact_mut(tensor.format.3) {
        block(tensor.format, deviation, &mut numbers, out);
    }
    bytes
}

/// Metadata as it is written.
#[derive(Default)]
struct Keys {
    count: u64,
    bytes: Vec<u8>,
}

impl Keys {
    fn put_string(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }

    fn key(&mut self, key: &str, ty: u32) -> &mut Vec<u8> {
        self.count += 1;
        Self::put_string(&mut self.bytes, key);
        self.bytes.extend(ty.to_le_bytes());
        &mut self.bytes
    }

    fn u32(&mut self, key: &str, value: usize) {
        self.key(key, 4).extend((value as u32).to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6).extend(value.to_le_bytes());
    }

    fn string(&mut self, key: &str, value: &str) {
        Self::put_string(self.key(key, 8), value);
    }

    fn array(&mut self, key: &str, ty: u32, count: usize) -> &mut Vec<u8> {
        let bytes = self.key(key, 9);
        bytes.extend(ty.to_le_bytes());
        bytes.extend((count as u64).to_le_bytes());
        bytes
    }
}

/// Tokens: three special ones, a byte each, and as many short words as it takes, each with and without a space.
fn vocabulary(count: usize) -> Vec<String> {
    let mut texts: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    texts.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let mut number = 0u32;
    while texts.len() < count {
        let mut word = Vec::new();
        let mut rest = number / 2 + 1;
        while rest > 0 {
            rest -= 1;
            word.push(char::from(b'a' + (rest % 26) as u8));
            rest /= 26;
        }
        let space = if number.is_multiple_of(2) { "\u{2581}" } else { "" };
        texts.push(format!("{space}{}", word.iter().rev().collect::<String>()));
        number += 1;
    }
    texts.truncate(count);
    texts
}

fn metadata(spec: &Spec) -> Keys {
    let mut keys = Keys::default();
    let architecture = &spec.architecture;
    keys.string("general.architecture", architecture);
    keys.string("general.name", "random weights");
    for (key, value) in [
        ("block_count", spec.layers),
        ("context_length", spec.context),
        ("embedding_length", spec.width),
        ("feed_forward_length", spec.hidden),
        ("attention.head_count", spec.heads),
        ("attention.head_count_kv", spec.kv_heads),
        ("attention.key_length", spec.head_length),
        ("attention.value_length", spec.head_length),
        ("rope.dimension_count", spec.head_length),
    ] {
        keys.u32(&format!("{architecture}.{key}"), value);
    }
    keys.f32(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-5);
    let (kind, factor) = match spec.scaling {
        Scaling::None => ("none", 1.0),
        Scaling::Linear(factor) => ("linear", factor),
        Scaling::Yarn(factor, _) => ("yarn", factor),
    };
    if spec.scaling != Scaling::None {
        keys.string(&format!("{architecture}.rope.scaling.type"), kind);
        keys.f32(&format!("{architecture}.rope.scaling.factor"), factor);
    }
    if let Scaling::Yarn(_, context) = spec.scaling {
        keys.u32(&format!("{architecture}.rope.scaling.original_context_length"), context);
    }
    let texts = vocabulary(spec.vocabulary);
    keys.string("tokenizer.ggml.model", "llama");
    let bytes = keys.array("tokenizer.ggml.tokens", 8, texts.len());
    texts.iter().for_each(|text| Keys::put_string(bytes, text));
    let bytes = keys.array("tokenizer.ggml.scores", 6, texts.len());
    (0..texts.len()).for_each(|rank| bytes.extend((-(rank as f32)).to_le_bytes()));
    let bytes = keys.array("tokenizer.ggml.token_type", 5, texts.len());
    for id in 0..texts.len() {
        let kind: i32 = match id {
            0 => 2,
            1 | 2 => 3,
            3..259 => 6,
            _ => 1,
        };
        bytes.extend(kind.to_le_bytes());
    }
    keys.u32("tokenizer.ggml.bos_token_id", 1);
    keys.u32("tokenizer.ggml.eos_token_id", 2);
    keys.u32("tokenizer.ggml.unknown_token_id", 0);
    keys
}

/// Writes the model to `path`; tells its layers and bytes.
pub fn write(path: &str, request: &Request) -> Result<(usize, u64), String> {
    let mixture = Mixture::named(&request.format).ok_or(format!("no format {}", request.format))?;
    if !["llama", "qwen2", "qwen3"].contains(&request.architecture.as_str()) {
        return Err(format!("no architecture {}", request.architecture));
    }
    if request.width == 0 || !request.width.is_multiple_of(256) || request.width > 1 << 16 {
        return Err("the width is no multiple of 256 up to 65536".into());
    }
    if !(259..=1 << 20).contains(&request.vocabulary) {
        return Err("a vocabulary has 259 to 1048576 tokens".into());
    }
    let bytes = |layers| tensors(&request.spec(layers), &mixture).iter().map(Tensor::bytes).sum::<u64>();
    // A layer takes as many bytes as another, or nearly so.
    let (one, two) = (bytes(1), bytes(2));
    let guess = request.size.saturating_sub(one) / (two - one);
    let layers = (guess.saturating_sub(guess / 4 + 1) as usize..4096)
        .find(|layers| *layers > 0 && bytes(*layers) >= request.size)
        .ok_or("the size takes too many layers")?;
    let failed = |error: std::io::Error| format!("{path}: {error}");
    let file = std::fs::File::create(path).map_err(failed)?;
    let size = put(&request.spec(layers), &mut BufWriter::with_capacity(1 << 20, file)).map_err(failed)?;
    Ok((layers, size))
}

/// Writes a model; tells its bytes.
///
/// # Panics
/// When the format is unknown.
pub fn put(spec: &Spec, out: &mut impl Write) -> std::io::Result<u64> {
    let mixture = Mixture::named(&spec.format).expect("a format's name");
    let tensors = tensors(spec, &mixture);
    let keys = metadata(spec);
    let mut head = b"GGUF".to_vec();
    head.extend(3u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend(keys.count.to_le_bytes());
    head.extend(&keys.bytes);
    let mut offset = 0;
    for tensor in &tensors {
        Keys::put_string(&mut head, &tensor.name);
        let dimensions: Vec<usize> = std::iter::once(tensor.columns).chain(tensor.rows).collect();
        head.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|dimension| head.extend((*dimension as u64).to_le_bytes()));
        head.extend(tensor.format.1.to_le_bytes());
        head.extend(u64::to_le_bytes(offset));
        offset += tensor.bytes().next_multiple_of(32);
    }
    head.resize(head.len().next_multiple_of(32), 0);
    out.write_all(&head)?;
    let mut embedding = Vec::new();
    for (index, tensor) in tensors.iter().enumerate() {
        // A token's state speaks for the next one in the vocabulary: that spreads the two best logits, so that rounding
        // seldom decides between them, and a tied matrix' tendency to repeat a token does not arise.
        let mut bytes = if tensor.name == "output.weight" && tensor.format == tensors[0].format {
            embedding.rotate_right((tensor.bytes() / spec.vocabulary as u64) as usize);
            std::mem::take(&mut embedding)
        } else {
            data(tensor, spec.seed, index)
        };
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        out.write_all(&bytes)?;
        if index == 0 {
            bytes.truncate(tensor.bytes() as usize);
            embedding = bytes;
        }
    }
    out.flush()?;
    Ok(head.len() as u64 + offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flexserve_engine::gguf::TensorType;
    use flexserve_engine::{Flow, Limits, Model, Session, SessionConfig};

    #[test]
    fn models_of_every_format_that_the_engine_reads_load_and_give_numbers() {
        let path = std::env::temp_dir().join(format!("flexserve-random-{}.gguf", std::process::id()));
        let path = path.to_str().unwrap();
        let mut ran = 0;
        let mixtures = [Format("Q4_K_M", 12, 0, 0), Format("Q5_K_M", 13, 0, 0)];
        for format in FORMATS.into_iter().chain(mixtures) {
            let architecture = ["llama", "qwen2", "qwen3"][ran % 3];
            let request = Request {
                architecture: architecture.into(),
                format: format.0.into(),
                size: 1 << 20,
                width: 256,
                vocabulary: 300,
                seed: 7,
            };
            let (_, size) = write(path, &request).unwrap();
            let bytes = std::fs::read(path).unwrap();
            assert!(bytes.len() as u64 == size && size >= request.size, "{format:?}");
            if TensorType::from_number(format.1).is_none() {
                continue;
            }
            ran += 1;
            let model = Model::load(&bytes, &Limits::default()).unwrap();
            assert_eq!(model.hyperparameters().architecture.name(), architecture);
            let mut session = Session::new(&model, &SessionConfig::for_model(&model)).unwrap();
            session.prefill(&[1, 270, 280, 290], &mut |_, _| Flow::Continue).unwrap();
            let logits = session.logits();
            let deviation = (logits.iter().map(|l| l * l).sum::<f32>() / logits.len() as f32).sqrt();
            assert!((0.2..5.0).contains(&deviation), "{format:?}: logits deviate by {deviation}");
        }
        assert!(ran >= 3);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn vocabularies_have_no_word_twice() {
        let mut texts = vocabulary(32000);
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), 32000);
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(
            [size("12"), size("2K"), size("200M"), size("1G")],
            [Some(12), Some(2048), Some(200 << 20), Some(1 << 30)]
        );
        assert_eq!([size(""), size("M"), size("1T"), size("99999999999G")], [None; 4]);
    }
}
