//! A plain transformer in double precision, and random models to compare the engine on.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{F32, File, Numbers, Q8_0, Tensor, Value, set_vocabulary, store};

/// What a test model looks like.
#[derive(Clone, Debug)]
pub struct Shape {
    pub architecture: &'static str,
    pub layers: usize,
    pub width: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub key_length: usize,
    pub value_length: usize,
    pub rope_dimensions: usize,
    /// Scaling of positions.
    pub rope_scaling: Scaling,
    /// Whether the frequencies have divisors of their own (Llama 3).
    pub rope_freqs: bool,
    pub context: usize,
    /// Formats of matrices, taken in turn.
    pub types: Vec<u32>,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
    /// Biases beyond those that the architecture demands.
    pub biases: bool,
}

/// Scaling of positions.
#[derive(Clone, Copy, Debug)]
pub enum Scaling {
    None,
    /// Factor, and whether the file says that it is linear.
    Linear(f32, bool),
    /// Factor, original context, and the factor of attention.
    Yarn(f32, u32, f32),
}

impl Shape {
    pub fn tiny(types: &[u32]) -> Self {
        Shape {
            architecture: "llama",
            layers: 2,
            width: 64,
            hidden: 96,
            heads: 4,
            kv_heads: 2,
            key_length: 16,
            value_length: 16,
            rope_dimensions: 16,
            rope_scaling: Scaling::None,
            rope_freqs: false,
            context: 64,
            types: types.to_vec(),
            tied: true,
            biases: false,
        }
    }

    /// With keys and values of this length.
    pub fn with_heads_of(self, length: usize) -> Self {
        Shape { key_length: length, value_length: length, rope_dimensions: length, ..self }
    }

    fn is_halved(&self) -> bool {
        self.architecture != "llama"
    }

    fn has_head_norms(&self) -> bool {
        self.architecture == "qwen3"
    }

    /// The parts of a layer that have a bias.
    fn biased(&self) -> &'static [&'static str] {
        match (self.architecture, self.biases) {
            ("llama", true) => {
                &["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
            }
            ("qwen2", _) | ("qwen3", true) => &["attn_q", "attn_k", "attn_v"],
            _ => &[],
        }
    }

    fn has_output_bias(&self) -> bool {
        self.architecture == "qwen2" && self.biases
    }
}

#[derive(Clone)]
struct Weight {
    ty: u32,
    columns: usize,
    values: Vec<f32>,
}

/// A random model: its file, and the values its tensors stand for.
pub struct Random {
    shape: Shape,
    pub file: File,
    weights: BTreeMap<String, Weight>,
}

const EPSILON: f32 = 1e-5;

impl Random {
    pub fn new(shape: &Shape, seed: u64) -> Self {
        let mut file = File::new();
        let tokens = set_vocabulary(&mut file);
        let s = shape;
        let architecture = s.architecture;
        file.set("general.architecture", architecture);
        for (key, value) in [
            ("block_count", s.layers),
            ("context_length", s.context),
            ("embedding_length", s.width),
            ("feed_forward_length", s.hidden),
            ("attention.head_count", s.heads),
            ("attention.head_count_kv", s.kv_heads),
            ("attention.key_length", s.key_length),
            ("attention.value_length", s.value_length),
            ("rope.dimension_count", s.rope_dimensions),
        ] {
            file.set(&format!("{architecture}.{key}"), Value::U32(value as u32));
        }
        file.set(&format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::F32(EPSILON));
        let mut scaling =
            |key: &str, value: Value| file.set(&format!("{architecture}.rope.scaling.{key}"), value);
        match s.rope_scaling {
            Scaling::None => {}
            Scaling::Linear(factor, named) => {
                scaling("factor", Value::F32(factor));
                if named {
                    scaling("type", "linear".into());
                }
            }
            Scaling::Yarn(factor, context, attention) => {
                scaling("factor", Value::F32(factor));
                scaling("type", "yarn".into());
                scaling("original_context_length", Value::U32(context));
                scaling("attn_factor", Value::F32(attention));
            }
        }
        let mut random = Random { shape: shape.clone(), file, weights: BTreeMap::new() };
        let mut numbers = Numbers(seed);
        let mut matrix = 0;
        let mut add = |name: &str, columns: usize, rows: usize| {
            let is_vector = rows == 1;
            let ty = if is_vector { F32 } else { s.types[matrix % s.types.len()] };
            matrix += usize::from(!is_vector);
            let scale = if name == "token_embd.weight" { 1.0 } else { 2.0 / (columns as f32).sqrt() };
            let centre = if name.ends_with(".bias") { 0.0 } else { 1.0 };
            let value = |n: f32| if is_vector { centre + 0.3 * n } else { scale * n };
            let values: Vec<f32> = (0..columns * rows).map(|_| value(numbers.next())).collect();
            let (data, values) = store(ty, &values);
            let dimensions = if is_vector { vec![columns as u64] } else { vec![columns as u64, rows as u64] };
            random.file.tensors.push(Tensor { name: name.into(), dimensions, ty, data, offset: None });
            random.weights.insert(name.into(), Weight { ty, columns, values });
        };
        add("token_embd.weight", s.width, tokens);
        for layer in 0..s.layers {
            let mut add =
                |part: &str, columns, rows| add(&format!("blk.{layer}.{part}.weight"), columns, rows);
            add("attn_norm", s.width, 1);
            add("attn_q", s.width, s.heads * s.key_length);
            add("attn_k", s.width, s.kv_heads * s.key_length);
            add("attn_v", s.width, s.kv_heads * s.value_length);
            add("attn_output", s.heads * s.value_length, s.width);
            add("ffn_norm", s.width, 1);
            add("ffn_gate", s.width, s.hidden);
            add("ffn_up", s.width, s.hidden);
            add("ffn_down", s.hidden, s.width);
            if s.has_head_norms() {
                add("attn_q_norm", s.key_length, 1);
                add("attn_k_norm", s.key_length, 1);
            }
        }
        for layer in 0..s.layers {
            for part in s.biased() {
                let length = match *part {
                    "attn_q" => s.heads * s.key_length,
                    "attn_k" => s.kv_heads * s.key_length,
                    "attn_v" => s.kv_heads * s.value_length,
                    "ffn_gate" | "ffn_up" => s.hidden,
                    _ => s.width,
                };
                add(&format!("blk.{layer}.{part}.bias"), length, 1);
            }
        }
        if s.has_output_bias() {
            add("output.bias", tokens, 1);
        }
        add("output_norm.weight", s.width, 1);
        if !s.tied {
            add("output.weight", s.width, tokens);
        }
        if s.rope_freqs {
            add("rope_freqs.weight", s.rope_dimensions / 2, 1);
        }
        random
    }

    /// Logits after each of `tokens`.
    pub fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        self.logits_with_shifts(tokens, &[])
    }

    /// The same, where before token number `.0` keys and values of the positions `.1` are forgotten, and those behind move
    /// up: their keys are rotated to where they come to be.
    pub fn logits_with_shifts(&self, tokens: &[u32], shifts: &[(usize, Range<usize>)]) -> Vec<Vec<f64>> {
        let s = &self.shape;
        let mut keys: Vec<Vec<Vec<f64>>> = vec![Vec::new(); s.layers];
        let mut values = keys.clone();
        let mut all = Vec::new();
        for (number, token) in tokens.iter().enumerate() {
            for (_, range) in shifts.iter().filter(|(before, _)| *before == number) {
                for (keys, values) in keys.iter_mut().zip(&mut values) {
                    keys.drain(range.clone());
                    values.drain(range.clone());
                    let moved: &mut [Vec<f64>] = &mut keys[range.start..];
                    moved.iter_mut().for_each(|key| self.turn(key, -(range.len() as f64), false));
                }
            }
            let position = keys[0].len();
            let embedding = &self.weights["token_embd.weight"];
            let mut x: Vec<f64> = embedding.values[*token as usize * s.width..][..s.width]
                .iter()
                .map(|v| f64::from(*v))
                .collect();
            for layer in 0..s.layers {
                let name = |part: &str| format!("blk.{layer}.{part}");
                let h = self.norm(&x, &name("attn_norm"));
                let mut q = self.multiply(&name("attn_q"), &h);
                let mut k = self.multiply(&name("attn_k"), &h);
                if s.has_head_norms() {
                    q = self.norm_heads(&q, &name("attn_q_norm"));
                    k = self.norm_heads(&k, &name("attn_k_norm"));
                }
                self.rotate(&mut q, position as f64);
                self.rotate(&mut k, position as f64);
                keys[layer].push(k);
                values[layer].push(self.multiply(&name("attn_v"), &h));
                let attended = self.attend(&q, &keys[layer], &values[layer]);
                add(&mut x, &self.multiply(&name("attn_output"), &attended));
                let h = self.norm(&x, &name("ffn_norm"));
                let gate = self.multiply(&name("ffn_gate"), &h);
                let up = self.multiply(&name("ffn_up"), &h);
                let gated: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                add(&mut x, &self.multiply(&name("ffn_down"), &gated));
            }
            let h = self.norm(&x, "output_norm");
            let mut logits = self.multiply(if s.tied { "token_embd" } else { "output" }, &h);
            if s.tied
                && let Some(bias) = self.weights.get("output.bias")
            {
                logits.iter_mut().zip(&bias.values).for_each(|(logit, bias)| *logit += f64::from(*bias));
            }
            all.push(logits);
        }
        all
    }

    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let factor = 1.0 / (mean + f64::from(EPSILON)).sqrt();
        let weight = &self.weights[&format!("{name}.weight")].values;
        x.iter().zip(weight).map(|(x, w)| x * factor * f64::from(*w)).collect()
    }

    fn norm_heads(&self, x: &[f64], name: &str) -> Vec<f64> {
        x.chunks_exact(self.shape.key_length).flat_map(|head| self.norm(head, name)).collect()
    }

    fn multiply(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = &self.weights[&format!("{name}.weight")];
        assert_eq!(weight.columns, x.len());
        let quantised = quantise(x);
        let x = if weight.ty == Q8_0 { &quantised } else { x };
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
        let mut products: Vec<f64> = weight.values.chunks_exact(weight.columns).map(dot).collect();
        if let Some(bias) = self.weights.get(&format!("{name}.bias")) {
            products.iter_mut().zip(&bias.values).for_each(|(product, bias)| *product += f64::from(*bias));
        }
        products
    }

    fn rotate(&self, x: &mut [f64], position: f64) {
        self.turn(x, position, true);
    }

    /// Rotates; a factor that belongs to the rotation of fresh keys is left out unless `fresh`.
    fn turn(&self, x: &mut [f64], position: f64, fresh: bool) {
        let s = &self.shape;
        let count = s.rope_dimensions / 2;
        for head in x.chunks_exact_mut(s.key_length) {
            for i in 0..count {
                let exponent = -2.0 * i as f64 / s.rope_dimensions as f64;
                let mut angle = position * 10000f64.powf(exponent);
                if s.rope_freqs {
                    angle /= f64::from(self.weights["rope_freqs.weight"].values[i]);
                }
                let mut magnitude = 1.0;
                match s.rope_scaling {
                    Scaling::None => {}
                    Scaling::Linear(factor, _) => angle /= f64::from(factor),
                    Scaling::Yarn(factor, context, attention) => {
                        // Where a pair turns `turns` times in the original context, by solving for its exponent.
                        let turning = |turns: f64| {
                            let wave = f64::from(context) / turns / std::f64::consts::TAU;
                            wave.ln() / 10000f64.ln() * count as f64
                        };
                        let (low, high) = (turning(32.0).floor().max(0.0), turning(1.0).ceil());
                        let high = high.min(s.rope_dimensions as f64 - 1.0);
                        let share = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                        angle = angle * (1.0 - share) + angle / f64::from(factor) * share;
                        magnitude = (1.0 + 0.1 * f64::from(factor).ln()) * f64::from(attention);
                    }
                }
                let (first, second) = if s.is_halved() { (i, i + count) } else { (2 * i, 2 * i + 1) };
                if !fresh {
                    magnitude = 1.0;
                }
                let (a, b) = (head[first] * magnitude, head[second] * magnitude);
                head[first] = a * angle.cos() - b * angle.sin();
                head[second] = a * angle.sin() + b * angle.cos();
            }
        }
    }

    fn attend(&self, q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
        let s = &self.shape;
        let mut out = Vec::new();
        for (head, q) in q.chunks_exact(s.key_length).enumerate() {
            let kv = head / (s.heads / s.kv_heads);
            let score = |k: &Vec<f64>| {
                let k = &k[kv * s.key_length..][..s.key_length];
                q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (s.key_length as f64).sqrt()
            };
            let weights: Vec<f64> = keys.iter().map(|k| score(k).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..s.value_length).map(|i| {
                let terms = weights.iter().zip(values).map(|(w, v)| w * v[kv * s.value_length + i]);
                terms.sum::<f64>() / total
            }));
        }
        out
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Rounds activations as the engine does before multiplying them with Q8_0 weights.
fn quantise(x: &[f64]) -> Vec<f64> {
    let block = |block: &[f64]| {
        let scale = block.iter().fold(0.0f64, |max, x| max.max(x.abs())) / 127.0;
        let quant = |x: &f64| if scale == 0.0 { 0.0 } else { (x / scale).round() * half(scale) };
        block.iter().map(quant).collect::<Vec<_>>()
    };
    x.chunks(32).flat_map(block).collect()
}

/// Rounds a positive number to half precision.
fn half(x: f64) -> f64 {
    let step = x.log2().floor().max(-14.0).exp2() / 1024.0;
    (x / step).round_ties_even() * step
}
