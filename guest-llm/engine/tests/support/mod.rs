//! Builds GGUF files and small models in memory.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod reference;

/// A metadata value as it is written.
#[derive(Clone, Debug)]
pub enum Value {
    U32(u32),
    F32(f32),
    Bool(u8),
    Str(Vec<u8>),
    Strings(Vec<Vec<u8>>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    /// Any type number and bytes.
    Raw(u32, Vec<u8>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Str(text.as_bytes().to_vec())
    }
}

pub fn strings(texts: &[&str]) -> Value {
    Value::Strings(texts.iter().map(|text| text.as_bytes().to_vec()).collect())
}

fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

fn put_array(out: &mut Vec<u8>, ty: u32, count: usize) {
    out.extend(9u32.to_le_bytes());
    out.extend(ty.to_le_bytes());
    out.extend((count as u64).to_le_bytes());
}

impl Value {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Value::U32(v) => {
                out.extend(4u32.to_le_bytes());
                out.extend(v.to_le_bytes());
            }
            Value::F32(v) => {
                out.extend(6u32.to_le_bytes());
                out.extend(v.to_le_bytes());
            }
            Value::Bool(v) => {
                out.extend(7u32.to_le_bytes());
                out.push(*v);
            }
            Value::Str(v) => {
                out.extend(8u32.to_le_bytes());
                put_string(out, v);
            }
            Value::Strings(v) => {
                put_array(out, 8, v.len());
                v.iter().for_each(|text| put_string(out, text));
            }
            Value::F32s(v) => {
                put_array(out, 6, v.len());
                out.extend(v.iter().flat_map(|v| v.to_le_bytes()));
            }
            Value::I32s(v) => {
                put_array(out, 5, v.len());
                out.extend(v.iter().flat_map(|v| v.to_le_bytes()));
            }
            Value::Raw(ty, bytes) => {
                out.extend(ty.to_le_bytes());
                out.extend(bytes);
            }
        }
    }
}

/// A tensor as it is written; nothing is checked.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: Vec<u8>,
    pub dimensions: Vec<u64>,
    pub ty: u32,
    pub data: Vec<u8>,
    /// Overrides where the description says the data is.
    pub offset: Option<u64>,
}

/// A GGUF file as it is written; nothing is checked.
#[derive(Clone, Debug)]
pub struct File {
    pub magic: [u8; 4],
    pub version: u32,
    pub alignment: usize,
    /// Override the counts in the header.
    pub key_count: Option<u64>,
    pub tensor_count: Option<u64>,
    pub keys: Vec<(Vec<u8>, Value)>,
    pub tensors: Vec<Tensor>,
}

impl File {
    pub fn new() -> Self {
        File {
            magic: *b"GGUF",
            version: 3,
            alignment: 32,
            key_count: None,
            tensor_count: None,
            keys: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// Sets a key, in place of one of that name if there is one.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.remove(key);
        self.keys.push((key.into(), value.into()));
    }

    pub fn remove(&mut self, key: &str) {
        self.keys.retain(|(name, _)| name != key.as_bytes());
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name.as_bytes()).expect("no such tensor")
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            put_string(&mut out, key);
            value.put(&mut out);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            put_string(&mut out, &tensor.name);
            out.extend((tensor.dimensions.len() as u32).to_le_bytes());
            tensor.dimensions.iter().for_each(|dimension| out.extend(dimension.to_le_bytes()));
            out.extend(tensor.ty.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }
}

/// Type numbers of ggml.
pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const Q8_0: u32 = 8;

/// A reproducible sequence of numbers in [-1, 1).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Stores `values` in format `ty`; returns the bytes and the values they stand for.
pub fn store(ty: u32, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    match ty {
        F32 => (values.iter().flat_map(|v| v.to_le_bytes()).collect(), values.to_vec()),
        F16 => {
            let halves: Vec<u16> = values.iter().map(|v| half(*v)).collect();
            (
                halves.iter().flat_map(|h| h.to_le_bytes()).collect(),
                halves.iter().map(|h| unhalf(*h)).collect(),
            )
        }
        Q8_0 => {
            let (mut bytes, mut stored) = (Vec::new(), Vec::new());
            for block in values.chunks_exact(32) {
                let scale = half(block.iter().fold(0.0f32, |max, v| max.max(v.abs())) / 127.0);
                bytes.extend(scale.to_le_bytes());
                for value in block {
                    let quant = (value / unhalf(scale)).round().clamp(-127.0, 127.0) as i8;
                    bytes.push(quant as u8);
                    stored.push(f32::from(quant) * unhalf(scale));
                }
            }
            (bytes, stored)
        }
        other => panic!("no writer for type {other}"),
    }
}

/// To half precision, toward zero; normal numbers only.
fn half(value: f32) -> u16 {
    let bits = value.to_bits();
    let exponent = (bits >> 23 & 0xff) as i32 - 112;
    if exponent <= 0 {
        return 0;
    }
    assert!(exponent < 31);
    ((bits >> 16 & 0x8000) | (exponent as u32) << 10 | (bits >> 13 & 0x3ff)) as u16
}

/// From half precision; normal numbers and zero only.
fn unhalf(half: u16) -> f32 {
    if half & 0x7c00 == 0 {
        return 0.0;
    }
    let magnitude = (u32::from(half & 0x7fff) << 13) + (112 << 23);
    f32::from_bits(u32::from(half & 0x8000) << 16 | magnitude)
}

/// The vocabulary of test models: three special tokens, bytes, and pieces whose scores are their order.
pub const PIECES: [&str; 12] =
    ["\u{2581}the", "\u{2581}t", "he", "\u{2581}", "t", "h", "e", "a", "b", "ab", "aab", "\u{e9}"];

pub fn vocabulary() -> (Vec<Vec<u8>>, Vec<f32>, Vec<i32>) {
    let mut texts: Vec<Vec<u8>> = ["<unk>", "<s>", "</s>"].iter().map(|t| t.as_bytes().to_vec()).collect();
    texts.extend((0..256).map(|byte| format!("<0x{byte:02X}>").into_bytes()));
    let mut scores = vec![0.0; texts.len()];
    let mut kinds = vec![6; texts.len()];
    kinds[..3].copy_from_slice(&[2, 3, 3]);
    for (rank, piece) in PIECES.iter().enumerate() {
        texts.push(piece.as_bytes().to_vec());
        scores.push(-(rank as f32));
        kinds.push(1);
    }
    (texts, scores, kinds)
}

/// Puts the test vocabulary into `file`.
pub fn set_vocabulary(file: &mut File) -> usize {
    let (texts, scores, kinds) = vocabulary();
    let count = texts.len();
    file.set("tokenizer.ggml.model", "llama");
    file.set("tokenizer.ggml.tokens", Value::Strings(texts));
    file.set("tokenizer.ggml.scores", Value::F32s(scores));
    file.set("tokenizer.ggml.token_type", Value::I32s(kinds));
    count
}
