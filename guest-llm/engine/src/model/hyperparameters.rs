//! Sizes and constants of an architecture, from the file's metadata.

use crate::error::{KeyFault, Name};
use crate::gguf::Gguf;
use crate::{Error, Result};

/// A model architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 1 to 3 and what has its shape.
    Llama,
    /// Qwen 2 and 2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen 3: queries and keys are normalised, head by head.
    Qwen3,
}

impl Architecture {
    /// Every architecture.
    pub const ALL: [Architecture; 3] = [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3];

    /// The architecture's name in `general.architecture`, and the prefix of its keys.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
        }
    }

    /// Which elements of a head are rotated together.
    pub fn rope_pairs(self) -> RopePairs {
        match self {
            Architecture::Llama => RopePairs::Neighbours,
            Architecture::Qwen2 | Architecture::Qwen3 => RopePairs::Halves,
        }
    }
}

/// Which two elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// 2i and 2i + 1.
    Neighbours,
    /// i and i + n/2 of the n elements that are rotated (the order of GPT-NeoX).
    Halves,
}

/// How positions beyond the original context are made familiar to the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Positions are divided by a factor; 1 leaves them alone.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Low frequencies are divided by a factor, high ones are not (Peng et al.: "YaRN: Efficient Context Window
    /// Extension of Large Language Models", 2023).
    Yarn {
        /// The factor.
        factor: f32,
        /// Tokens of the context before it was extended.
        original_context: usize,
        /// Factor of queries and keys, beside the one that follows from `factor`.
        attention_factor: f32,
    },
}

/// Sizes and constants of a model. All counts and lengths are at least 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyperparameters {
    /// The architecture.
    pub architecture: Architecture,
    /// Layers.
    pub block_count: usize,
    /// Tokens that the model was trained to attend to.
    pub context_length: usize,
    /// Elements of a token's state.
    pub embedding_length: usize,
    /// Elements of the hidden layer of the feed-forward network.
    pub feed_forward_length: usize,
    /// Query heads; a multiple of `head_count_kv`.
    pub head_count: usize,
    /// Key and value heads.
    pub head_count_kv: usize,
    /// Elements of a query or key head.
    pub key_length: usize,
    /// Elements of a value head.
    pub value_length: usize,
    /// Added to the mean square before its root is taken.
    pub rms_epsilon: f32,
    /// Elements of a head that are rotated by position; even, at most `key_length`.
    pub rope_dimension_count: usize,
    /// Base of the rotation's frequencies.
    pub rope_freq_base: f32,
    /// How positions are scaled.
    pub rope_scaling: RopeScaling,
}

/// Bounds that keep every product of sizes far below 2^64, and refuse nonsense early.
const BLOCKS_MAX: u64 = 1 << 12;
const LENGTH_MAX: u64 = 1 << 20;
const CONTEXT_MAX: u64 = 1 << 24;

impl Hyperparameters {
    /// Reads and checks the metadata of `gguf`.
    pub(crate) fn load(gguf: &Gguf<'_>) -> Result<Self> {
        const ARCHITECTURE: &str = "general.architecture";
        let name = gguf.str(ARCHITECTURE)?.ok_or(missing(ARCHITECTURE.into()))?;
        let architecture = Architecture::ALL
            .into_iter()
            .find(|architecture| architecture.name() == name)
            .ok_or(Error::Unsupported { what: "architecture", name: name.into() })?;
        let keys = Keys { gguf, prefix: architecture.name() };
        let embedding_length = keys.count("embedding_length", LENGTH_MAX)?;
        let head_count = keys.count("attention.head_count", LENGTH_MAX)?;
        let head_count_kv = keys.optional_count("attention.head_count_kv", LENGTH_MAX)?.unwrap_or(head_count);
        if !head_count.is_multiple_of(head_count_kv) {
            return Err(keys.error("attention.head_count_kv", KeyFault::OutOfRange(head_count_kv as u64)));
        }
        let head_length = || {
            let whole = embedding_length.is_multiple_of(head_count);
            let fault = KeyFault::OutOfRange(head_count as u64);
            whole.then(|| embedding_length / head_count).ok_or(keys.error("attention.head_count", fault))
        };
        let key_length =
            keys.optional_count("attention.key_length", LENGTH_MAX)?.map_or_else(head_length, Ok)?;
        let value_length =
            keys.optional_count("attention.value_length", LENGTH_MAX)?.map_or_else(head_length, Ok)?;
        let rope_dimension_count =
            keys.optional_count("rope.dimension_count", key_length as u64)?.unwrap_or(key_length);
        if !rope_dimension_count.is_multiple_of(2) {
            let fault = KeyFault::OutOfRange(rope_dimension_count as u64);
            return Err(keys.error("rope.dimension_count", fault));
        }
        keys.refuse_experts()?;
        let context_length = keys.count("context_length", CONTEXT_MAX)?;
        Ok(Hyperparameters {
            architecture,
            block_count: keys.count("block_count", BLOCKS_MAX)?,
            context_length,
            embedding_length,
            feed_forward_length: keys.count("feed_forward_length", LENGTH_MAX)?,
            head_count,
            head_count_kv,
            key_length,
            value_length,
            rms_epsilon: keys
                .positive("attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| keys.error("attention.layer_norm_rms_epsilon", KeyFault::Missing))?,
            rope_dimension_count,
            rope_freq_base: keys.positive("rope.freq_base")?.unwrap_or(10000.0),
            rope_scaling: keys.rope_scaling(context_length)?,
        })
    }

    /// Elements of all query heads.
    pub fn query_length(&self) -> usize {
        self.head_count * self.key_length
    }

    /// Elements of all key heads.
    pub fn keys_length(&self) -> usize {
        self.head_count_kv * self.key_length
    }

    /// Elements of all value heads.
    pub fn values_length(&self) -> usize {
        self.head_count_kv * self.value_length
    }

    /// Elements that attention gives: a value for each query head.
    pub fn attention_length(&self) -> usize {
        self.head_count * self.value_length
    }
}

fn missing(key: Name) -> Error {
    Error::Key { key, fault: KeyFault::Missing }
}

/// The keys of one architecture.
struct Keys<'g> {
    gguf: &'g Gguf<'g>,
    prefix: &'static str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> Name {
        Name::format(format_args!("{}.{key}", self.prefix))
    }

    fn error(&self, key: &str, fault: KeyFault) -> Error {
        Error::Key { key: self.name(key), fault }
    }

    /// Reads a number between 1 and `max`.
    fn optional_count(&self, key: &str, max: u64) -> Result<Option<usize>> {
        match self.gguf.unsigned(self.name(key).as_str())? {
            Some(value) if value == 0 || value > max => Err(self.error(key, KeyFault::OutOfRange(value))),
            value => Ok(value.map(|value| value as usize)),
        }
    }

    fn count(&self, key: &str, max: u64) -> Result<usize> {
        self.optional_count(key, max)?.ok_or_else(|| self.error(key, KeyFault::Missing))
    }

    fn positive(&self, key: &str) -> Result<Option<f32>> {
        match self.gguf.float(self.name(key).as_str())? {
            Some(value) if !(value > 0.0 && value.is_finite()) => Err(self.error(key, KeyFault::BadNumber)),
            value => Ok(value),
        }
    }

    /// Refuses mixtures of experts, which share the name of an architecture with dense models.
    fn refuse_experts(&self) -> Result<()> {
        match self.gguf.unsigned(self.name("expert_count").as_str())? {
            None | Some(0) => Ok(()),
            Some(count) => Err(self.error("expert_count", KeyFault::OutOfRange(count))),
        }
    }

    fn rope_scaling(&self, context_length: usize) -> Result<RopeScaling> {
        // The second is the first one's name in old files.
        let [factor, old] = ["rope.scaling.factor", "rope.scale_linear"].map(|key| self.positive(key));
        let factor = factor?.or(old?);
        let needed = || factor.ok_or_else(|| self.error("rope.scaling.factor", KeyFault::Missing));
        match self.gguf.str(self.name("rope.scaling.type").as_str())? {
            // A factor without a type is a linear one.
            None => Ok(RopeScaling::Linear { factor: factor.unwrap_or(1.0) }),
            Some("none") => Ok(RopeScaling::Linear { factor: 1.0 }),
            Some("linear") => Ok(RopeScaling::Linear { factor: needed()? }),
            Some("yarn") => Ok(RopeScaling::Yarn {
                factor: needed()?,
                original_context: self
                    .optional_count("rope.scaling.original_context_length", CONTEXT_MAX)?
                    .unwrap_or(context_length),
                attention_factor: self.positive("rope.scaling.attn_factor")?.unwrap_or(1.0),
            }),
            Some(other) => Err(Error::Unsupported { what: "RoPE scaling", name: other.into() }),
        }
    }
}
