//! Hyperparameters and tensors of a model file.

use core::marker::PhantomData;

use crate::{Limits, Result, Tokenizer};

/// A model file, checked and ready to run; borrows the file's bytes.
#[derive(Debug)]
pub struct Model<'a>(PhantomData<&'a [u8]>);

impl<'a> Model<'a> {
    /// Checks a GGUF file and indexes its tensors and vocabulary.
    pub fn load(_bytes: &'a [u8], _limits: &Limits) -> Result<Self> {
        todo!()
    }

    /// The file's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer<'a> {
        todo!()
    }

    /// The longest context it was trained for, in tokens.
    pub fn context_length(&self) -> usize {
        todo!()
    }

    /// Bytes allocated by [`Model::load`].
    pub fn memory_bytes(&self) -> usize {
        todo!()
    }
}
