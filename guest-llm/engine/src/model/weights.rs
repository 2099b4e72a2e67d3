//! The tensors of an architecture, by role.

use alloc::vec::Vec;

use super::Hyperparameters;
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
    pub output: Matrix<'a>,
    /// Divisors of the rotation's frequencies, F32 (Llama 3's scaling); may be absent.
    pub rope_factors: Option<&'a [u8]>,
}

/// The weights of one layer.
#[derive(Debug)]
pub(crate) struct Layer<'a> {
    /// F32 vector.
    pub attention_norm: &'a [u8],
    pub query: Matrix<'a>,
    pub key: Matrix<'a>,
    pub value: Matrix<'a>,
    pub attention_output: Matrix<'a>,
    /// F32 vector.
    pub feed_forward_norm: &'a [u8],
    pub gate: Matrix<'a>,
    pub up: Matrix<'a>,
    pub down: Matrix<'a>,
}

impl<'a> Weights<'a> {
    /// Finds every tensor, checks its shape and type, and refuses files with others.
    pub fn load(
        gguf: &Gguf<'a>,
        h: &Hyperparameters,
        token_count: usize,
        budget: &mut Budget,
    ) -> Result<Self> {
        let mut finder = Finder { gguf, used: budget.filled(false, gguf.tensors().len())? };
        let token_embedding = finder.matrix("token_embd.weight".into(), h.embedding_length, token_count)?;
        let output = finder.optional_matrix("output.weight".into(), h.embedding_length, token_count)?;
        let output_norm = finder.vector("output_norm.weight".into(), h.embedding_length)?;
        let rope_factors = finder.optional_vector("rope_freqs.weight".into(), h.rope_dimension_count / 2)?;
        // Every layer has tensors of its own, so their number bounds what is allocated.
        let mut layers = budget.reserve(h.block_count.min(gguf.tensors().len()))?;
        for index in 0..h.block_count {
            layers.push(Layer::load(&mut finder, index, h)?);
        }
        finder.refuse_unused()?;
        let output = output.unwrap_or(token_embedding);
        Ok(Weights { token_embedding, layers, output_norm, output, rope_factors })
    }
}

impl<'a> Layer<'a> {
    fn load(finder: &mut Finder<'_, 'a>, index: usize, h: &Hyperparameters) -> Result<Self> {
        let name = |part| Name::format(format_args!("blk.{index}.{part}.weight"));
        let width = h.embedding_length;
        Ok(Layer {
            attention_norm: finder.vector(name("attn_norm"), width)?,
            query: finder.matrix(name("attn_q"), width, h.query_length())?,
            key: finder.matrix(name("attn_k"), width, h.keys_length())?,
            value: finder.matrix(name("attn_v"), width, h.values_length())?,
            attention_output: finder.matrix(name("attn_output"), h.attention_length(), width)?,
            feed_forward_norm: finder.vector(name("ffn_norm"), width)?,
            gate: finder.matrix(name("ffn_gate"), width, h.feed_forward_length)?,
            up: finder.matrix(name("ffn_up"), width, h.feed_forward_length)?,
            down: finder.matrix(name("ffn_down"), h.feed_forward_length, width)?,
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
