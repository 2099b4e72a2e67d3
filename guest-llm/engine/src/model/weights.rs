//! The tensors of an architecture, by role.

use alloc::vec::Vec;

use super::{Architecture, Hyperparameters};
use crate::budget::Budget;
use crate::error::{Name, TensorFault};
use crate::gguf::{Gguf, TensorInfo, TensorType};
use crate::kernels::Matrix;
use crate::{Error, Result};

/// All weights of a model, in place.
#[derive(Debug)]
pub(crate) struct Weights<'a> {
    /// A row per token.
    pub token_embedding: Matrix<'a>,
    /// In order of execution.
    pub layers: Vec<Layer<'a>>,
    /// F32 vector.
    pub output_norm: &'a [u8],
    /// A row per token; the embedding again where the file has no `output.weight`.
    pub output: Linear<'a>,
    /// Divisors of the rotation's frequencies, F32 (Llama 3's scaling); may be absent.
    pub rope_factors: Option<&'a [u8]>,
}

/// The weights of one layer. Norms and biases are F32 vectors.
#[derive(Debug)]
pub(crate) struct Layer<'a> {
    pub attention_norm: &'a [u8],
    pub query: Linear<'a>,
    pub key: Linear<'a>,
    pub value: Linear<'a>,
    /// For each query head alike; may be absent.
    pub query_norm: Option<&'a [u8]>,
    /// For each key head alike; may be absent.
    pub key_norm: Option<&'a [u8]>,
    pub attention_output: Linear<'a>,
    pub feed_forward_norm: &'a [u8],
    pub gate: Linear<'a>,
    pub up: Linear<'a>,
    pub down: Linear<'a>,
}

/// A matrix, and what is added to its products.
#[derive(Debug)]
pub(crate) struct Linear<'a> {
    pub matrix: Matrix<'a>,
    /// F32 vector; may be absent.
    pub bias: Option<&'a [u8]>,
}

/// Whether an architecture's matrices have biases.
#[derive(Clone, Copy, PartialEq)]
enum Bias {
    Never,
    Optional,
    Always,
}

/// Tensors that distinguish the architectures.
struct Parts {
    /// Biases of queries, keys and values.
    attention_bias: Bias,
    /// Biases of the other matrices of a layer.
    other_bias: Bias,
    /// Bias of the logits.
    output_bias: Bias,
    /// Norms of queries and keys.
    head_norms: bool,
    /// Divisors of the rotation's frequencies.
    rope_factors: bool,
}

impl Parts {
    fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::Llama => Parts {
                attention_bias: Bias::Optional,
                other_bias: Bias::Optional,
                output_bias: Bias::Never,
                head_norms: false,
                rope_factors: true,
            },
            Architecture::Qwen2 => Parts {
                attention_bias: Bias::Always,
                other_bias: Bias::Never,
                output_bias: Bias::Optional,
                head_norms: false,
                rope_factors: false,
            },
            Architecture::Qwen3 => Parts {
                attention_bias: Bias::Optional,
                other_bias: Bias::Never,
                output_bias: Bias::Never,
                head_norms: true,
                rope_factors: false,
            },
        }
    }
}

impl<'a> Weights<'a> {
    /// Finds every tensor, checks its shape and type, and refuses files with others.
    pub fn load(
        gguf: &Gguf<'a>,
        h: &Hyperparameters,
        token_count: usize,
        budget: &mut Budget,
    ) -> Result<Self> {
        let parts = Parts::of(h.architecture);
        let mut finder = Finder { gguf, used: budget.filled(false, gguf.tensors().len())? };
        let token_embedding = finder.matrix("token_embd.weight".into(), h.embedding_length, token_count)?;
        let output = finder.optional_matrix("output.weight".into(), h.embedding_length, token_count)?;
        let output_norm = finder.vector("output_norm.weight".into(), h.embedding_length)?;
        let output_bias = finder.bias("output.bias".into(), parts.output_bias, token_count)?;
        let rope_factors = if parts.rope_factors {
            finder.optional_vector("rope_freqs.weight".into(), h.rope_dimension_count / 2)?
        } else {
            None
        };
        // Every layer has tensors of its own, so their number bounds what is allocated.
        let mut layers = budget.reserve(h.block_count.min(gguf.tensors().len()))?;
        for index in 0..h.block_count {
            layers.push(Layer::load(&mut finder, index, h, &parts)?);
        }
        finder.refuse_unused()?;
        let output = Linear { matrix: output.unwrap_or(token_embedding), bias: output_bias };
        Ok(Weights { token_embedding, layers, output_norm, output, rope_factors })
    }
}

impl<'a> Layer<'a> {
    fn load(finder: &mut Finder<'_, 'a>, index: usize, h: &Hyperparameters, parts: &Parts) -> Result<Self> {
        let (width, hidden) = (h.embedding_length, h.feed_forward_length);
        let mut norm = |part, length, present: bool| {
            let name = Name::format(format_args!("blk.{index}.{part}.weight"));
            present.then(|| finder.vector(name, length)).transpose()
        };
        let query_norm = norm("attn_q_norm", h.key_length, parts.head_norms)?;
        let key_norm = norm("attn_k_norm", h.key_length, parts.head_norms)?;
        let mut norm = |part| finder.vector(Name::format(format_args!("blk.{index}.{part}.weight")), width);
        let (attention_norm, feed_forward_norm) = (norm("attn_norm")?, norm("ffn_norm")?);
        let mut linear = |part, columns, rows, bias| {
            let name = |kind| Name::format(format_args!("blk.{index}.{part}.{kind}"));
            Ok(Linear {
                matrix: finder.matrix(name("weight"), columns, rows)?,
                bias: finder.bias(name("bias"), bias, rows)?,
            })
        };
        Ok(Layer {
            attention_norm,
            query: linear("attn_q", width, h.query_length(), parts.attention_bias)?,
            key: linear("attn_k", width, h.keys_length(), parts.attention_bias)?,
            value: linear("attn_v", width, h.values_length(), parts.attention_bias)?,
            query_norm,
            key_norm,
            attention_output: linear("attn_output", h.attention_length(), width, parts.other_bias)?,
            feed_forward_norm,
            gate: linear("ffn_gate", width, hidden, parts.other_bias)?,
            up: linear("ffn_up", width, hidden, parts.other_bias)?,
            down: linear("ffn_down", hidden, width, parts.other_bias)?,
        })
    }
}

/// Looks tensors up and remembers which were asked for.
struct Finder<'g, 'a> {
    gguf: &'g Gguf<'a>,
    used: Vec<bool>,
}

impl<'a> Finder<'_, 'a> {
    fn find(&mut self, name: &Name, columns: usize, rows: usize) -> Result<Option<TensorInfo<'a>>> {
        let Some((index, tensor)) = self.gguf.tensor(name.as_str()) else { return Ok(None) };
        if let Some(used) = self.used.get_mut(index) {
            *used = true;
        }
        if (tensor.row_length, tensor.row_count) != (columns, rows) {
            let fault = TensorFault::Shape {
                found: [tensor.row_length as u64, tensor.row_count as u64],
                expected: [columns as u64, rows as u64],
            };
            return Err(Error::Tensor { name: *name, fault });
        }
        Ok(Some(*tensor))
    }

    fn optional_matrix(&mut self, name: Name, columns: usize, rows: usize) -> Result<Option<Matrix<'a>>> {
        Ok(self.find(&name, columns, rows)?.map(|tensor| Matrix::new(&tensor)))
    }

    fn matrix(&mut self, name: Name, columns: usize, rows: usize) -> Result<Matrix<'a>> {
        self.optional_matrix(name, columns, rows)?.ok_or(missing(name))
    }

    fn optional_vector(&mut self, name: Name, length: usize) -> Result<Option<&'a [u8]>> {
        match self.find(&name, length, 1)? {
            Some(tensor) if tensor.ty != TensorType::F32 => {
                Err(Error::Tensor { name, fault: TensorFault::VectorType })
            }
            tensor => Ok(tensor.map(|tensor| tensor.data)),
        }
    }

    fn vector(&mut self, name: Name, length: usize) -> Result<&'a [u8]> {
        self.optional_vector(name, length)?.ok_or(missing(name))
    }

    fn bias(&mut self, name: Name, bias: Bias, length: usize) -> Result<Option<&'a [u8]>> {
        match bias {
            Bias::Never => Ok(None),
            Bias::Optional => self.optional_vector(name, length),
            Bias::Always => self.vector(name, length).map(Some),
        }
    }

    fn refuse_unused(&self) -> Result<()> {
        match self.gguf.tensors().iter().zip(&self.used).find(|(_, used)| !**used) {
            Some((tensor, _)) => Err(Error::Tensor { name: tensor.name.into(), fault: TensorFault::Unused }),
            None => Ok(()),
        }
    }
}

fn missing(name: Name) -> Error {
    Error::Tensor { name, fault: TensorFault::Missing }
}
