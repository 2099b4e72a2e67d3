//! Running the transformer: prefill in batches, decode token by token.
//!
//! Memory: keys and values for the whole context, and scratch for one batch; both are allocated by [`Session::new`], in
//! the amount that [`Session::required_bytes`] tells beforehand. Time per token is linear in the weights and in the
//! context so far.

mod attention;
mod context;
mod offload;
mod profile;
mod rope;
mod scratch;

use alloc::vec::Vec;

use crate::budget::Budget;
use crate::kernels::{
    InputBuffer, Workers, add_assign, add_bias, matmul, rms_norm, rms_norm_heads, silu_mul,
};
use crate::kv::{KvCache, KvShape};
use crate::model::{Hyperparameters, Layer, Linear};
use crate::offload::{NoOffload, Offload, Place, Step};
use crate::{Error, Flow, KvFormat, Model, Parallel, Result, Serial, TokenId};
pub(crate) use attention::AttentionScratch;
use attention::Batch;
use offload::Plan;
use profile::Profiler;
pub use profile::{Operation, Profile};
use rope::Rope;
use scratch::Scratch;
use zerocopy::IntoBytes;

/// Size and format of a session's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// Most tokens, of prompt and answer together; at most the model's own context length.
    pub context: usize,
    /// Prompt tokens processed at once, at most the context; each batch reads every weight once.
    pub batch: usize,
    /// How keys and values are stored.
    pub kv: KvFormat,
    /// What happens when the context is full: nothing more fits (`None`), or the oldest half of its tokens is forgotten, all
    /// but this many first ones ([`Session::shift`]), as llama.cpp's `--context-shift --keep N`.
    pub context_shift: Option<usize>,
    /// Threads that [`Session::share_work`] may bring, for each of which there is scratch memory; at least 1.
    pub threads: usize,
    /// Prompt tokens that an accelerator ([`Session::offload_to`]) gets at once, as many as the context has at most; 0: there is no
    /// memory for what it writes, so that it gets products alone.
    pub offload: usize,
    /// Most bytes that the session may allocate.
    pub memory_limit: usize,
}

impl SessionConfig {
    /// Returns defaults for `model`: its context length, at most 4096; batches of 32; F16; no shift; one
    /// thread; no memory limit.
    pub fn for_model(model: &Model<'_>) -> Self {
        SessionConfig {
            context: model.context_length().min(4096),
            batch: 32,
            kv: KvFormat::F16,
            context_shift: None,
            threads: 1,
            offload: 0,
            memory_limit: usize::MAX,
        }
    }

    /// Returns the configuration for an accelerator, which takes longer batches: they cost it, and those who wait for it, less.
    pub fn with_offload(self) -> Self {
        const BATCH: usize = 128;
        SessionConfig { offload: BATCH, ..self }
    }

    /// Returns the configuration with a batch no longer than the context, if `model` allows it.
    fn checked(&self, model: &Model<'_>) -> Result<Self> {
        if !(1..=model.context_length()).contains(&self.context) {
            let fault = "not between 1 and the model's context length";
            return Err(Error::Parameter { name: "context", fault });
        }
        if self.batch == 0 {
            return Err(Error::Parameter { name: "batch", fault: "zero" });
        }
        if self.threads == 0 {
            return Err(Error::Parameter { name: "threads", fault: "zero" });
        }
        let h = model.hyperparameters();
        let block = self.kv.block_length();
        if !h.key_length.is_multiple_of(block) || !h.value_length.is_multiple_of(block) {
            let fault = "its blocks are not a whole part of the model's heads";
            return Err(Error::Parameter { name: "format of keys and values", fault });
        }
        let (batch, offload) = (self.batch.min(self.context), self.offload.min(self.context));
        Ok(SessionConfig { batch, offload, ..self.clone() })
    }

    /// Most tokens that are processed at once.
    fn rows(&self) -> usize {
        self.batch.max(self.offload)
    }
}

/// Bytes of a session, by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionMemory {
    /// Keys and values of the whole context.
    pub kv: usize,
    /// Activations of one batch, and the logits: what the definition of the transformer has at the same time, as F32; and those
    /// that matrices are multiplied with quantised.
    pub activations: usize,
    /// The rest: scratch of each thread, rotations, and the numbers of the context's tokens.
    pub scratch: usize,
}

impl SessionMemory {
    /// All of it.
    pub fn total(&self) -> usize {
        self.kv + self.activations + self.scratch
    }
}

/// A context of tokens with its keys and values, and the scratch memory to extend it.
#[derive(Debug)]
pub struct Session<'m> {
    model: &'m Model<'m>,
    config: SessionConfig,
    kv: KvCache,
    rope: Rope,
    scratch: Scratch,
    parallel: &'m dyn Parallel,
    offload: &'m dyn Offload,
    plan: Plan<'m>,
    profiler: Profiler<'m>,
    /// The tokens whose keys and values the context holds.
    tokens: Vec<TokenId>,
    /// How many of them, from the first on, are as if nothing had ever been forgotten.
    exact: usize,
    /// Tokens forgotten by shifting.
    forgotten: usize,
}

impl<'m> Session<'m> {
    /// Returns the bytes that [`Session::new`] allocates, allocating nothing.
    ///
    /// # Errors
    /// [`Error::Parameter`] when `config` does not fit `model`; [`Error::MemoryLimit`] when the number is not
    /// representable.
    pub fn required_bytes(model: &Model<'_>, config: &SessionConfig) -> Result<usize> {
        Self::memory(model, config).map(|memory| memory.total())
    }

    /// Returns the same by purpose.
    ///
    /// # Errors
    /// As [`Session::required_bytes`].
    pub fn memory(model: &Model<'_>, config: &SessionConfig) -> Result<SessionMemory> {
        let config = config.checked(model)?;
        let h = model.hyperparameters();
        let shape = kv_shape(h, config.kv);
        let memory = || {
            let scratch = Scratch::required_bytes(model, &shape, &config)?;
            let activations = Scratch::activation_bytes(model, config.rows())?;
            let tokens = config.context.checked_mul(size_of::<TokenId>())?;
            let rope = Rope::required_bytes(h, config.rows())?;
            let steps = Plan::required_bytes(model, &config)?;
            let memory = SessionMemory {
                kv: KvCache::required_bytes(&shape, config.context)?,
                activations,
                scratch: scratch
                    .checked_sub(activations)?
                    .checked_add(tokens)?
                    .checked_add(rope)?
                    .checked_add(steps)?,
            };
            memory.kv.checked_add(activations)?.checked_add(memory.scratch)?;
            Some(memory)
        };
        memory().ok_or(Error::MemoryLimit { bytes: usize::MAX, limit: config.memory_limit })
    }

    /// Allocates keys, values and scratch.
    ///
    /// # Errors
    /// [`Error::Parameter`] when `config` does not fit `model`, [`Error::MemoryLimit`], [`Error::OutOfMemory`].
    pub fn new(model: &'m Model<'_>, config: &SessionConfig) -> Result<Self> {
        let bytes = Self::required_bytes(model, config)?;
        if bytes > config.memory_limit {
            return Err(Error::MemoryLimit { bytes, limit: config.memory_limit });
        }
        let config = config.checked(model)?;
        let mut budget = Budget::new(config.memory_limit);
        let h = model.hyperparameters();
        let shape = kv_shape(h, config.kv);
        Ok(Session {
            model,
            kv: KvCache::new(shape, config.context, &mut budget)?,
            rope: Rope::new(h, model.weights().rope_factors, config.rows(), &mut budget)?,
            scratch: Scratch::new(model, &shape, &config, &mut budget)?,
            parallel: &Serial,
            offload: &NoOffload,
            plan: Plan::new(model, &config, &mut budget)?,
            profiler: Profiler::default(),
            tokens: budget.reserve(config.context)?,
            exact: 0,
            forgotten: 0,
            config,
        })
    }

    /// Shares work with threads from here on, if they are no more than [`SessionConfig::threads`]. They change no result.
    pub fn share_work(&mut self, parallel: &'m dyn Parallel) {
        self.parallel = if parallel.width() <= self.config.threads { parallel } else { &Serial };
    }

    /// Hands work to an accelerator from here on. It changes no result.
    pub fn offload_to(&mut self, offload: &'m dyn Offload) {
        self.offload = offload;
    }

    /// Tells `profile` of every operation that ends from here on.
    pub fn report_to(&mut self, profile: &'m dyn Profile) {
        self.profiler = Profiler::new(profile);
    }

    /// The model it runs.
    pub fn model(&self) -> &'m Model<'m> {
        self.model
    }

    /// Appends `tokens` to the context, batch by batch; `progress` gets the tokens done and in all after each batch.
    /// Afterwards [`Session::logits`] are those that follow the last one. When `progress` returns [`Flow::Stop`] the
    /// rest is left out, and that is returned. Room is made first, if [`SessionConfig::context_shift`] allows it.
    ///
    /// # Errors
    /// [`Error::ContextFull`] and [`Error::UnknownToken`], before anything is computed.
    pub fn prefill(
        &mut self,
        tokens: &[TokenId],
        progress: &mut dyn FnMut(usize, usize) -> Flow,
    ) -> Result<Flow> {
        self.admit(tokens)?;
        let mut done = 0;
        let most = if self.offload.is_ready() { self.config.rows() } else { self.config.batch };
        for batch in tokens.chunks(most) {
            done += batch.len();
            self.forward(batch, done == tokens.len())?;
            if progress(done, tokens.len()) == Flow::Stop {
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::Continue)
    }

    /// Appends one token. Afterwards [`Session::logits`] are those that follow it. Allocates nothing. In a full context
    /// room is made first, if [`SessionConfig::context_shift`] allows it.
    ///
    /// # Errors
    /// [`Error::ContextFull`] and [`Error::UnknownToken`], before anything is computed.
    pub fn decode(&mut self, token: TokenId) -> Result<()> {
        self.admit(&[token])?;
        self.forward(&[token], true)
    }

    /// Logits of the token that follows the context, one per vocabulary entry; empty before the first token.
    pub fn logits(&self) -> &[f32] {
        if self.tokens.is_empty() { &[] } else { &self.scratch.logits }
    }

    /// Checks tokens, and makes room for them.
    fn admit(&mut self, tokens: &[TokenId]) -> Result<()> {
        let count = self.model.tokenizer().token_count();
        match tokens.iter().find(|token| **token as usize >= count) {
            Some(token) => Err(Error::UnknownToken(*token)),
            None => self.make_room(tokens.len()),
        }
    }

    /// Runs at most a batch of tokens through all layers; `want_logits` for the last of them.
    fn forward(&mut self, tokens: &[TokenId], want_logits: bool) -> Result<()> {
        let weights = self.model.weights();
        let width = self.model.hyperparameters().embedding_length;
        let position = self.tokens.len();
        self.kv.extend_to(position + tokens.len())?;
        self.profiler.begin();
        self.rope.set_positions(position, tokens.len());
        self.profiler.end(Operation::Rope);
        for (state, token) in self.scratch.state.chunks_exact_mut(width).zip(tokens) {
            weights.token_embedding.expand_row(*token as usize, state);
        }
        self.profiler.end(Operation::Embedding);
        // After the last layer's keys and values only the last token matters, and that only for its logits.
        let first_of_last = tokens.len() - usize::from(want_logits);
        let offloaded = self.offload_layers(tokens.len(), first_of_last);
        for (index, layer) in weights.layers.iter().enumerate().skip(offloaded) {
            let first = if index + 1 == weights.layers.len() { first_of_last } else { 0 };
            self.attend(index, layer, tokens.len(), first);
            self.feed_forward(layer, first, tokens.len());
        }
        if self.exact == position {
            self.exact += tokens.len();
        }
        self.tokens.extend_from_slice(tokens);
        if want_logits {
            self.finish(tokens.len());
        }
        Ok(())
    }

    /// Adds attention's output to the states of tokens `first..count` of the batch, and stores keys and values of all.
    fn attend(&mut self, index: usize, layer: &Layer<'_>, count: usize, first: usize) {
        let h = self.model.hyperparameters();
        let position = self.tokens.len();
        let s = &mut self.scratch;
        let workers = Workers { parallel: self.parallel, scratch: &s.rows };
        let work = Work { workers, offload: self.offload, profiler: self.profiler };
        let width = h.embedding_length;
        normalise(&s.state, layer.attention_norm, h, 0..count, &mut s.normed);
        work.profiler.end(Operation::Norm);
        let keys = &mut s.keys[..count * h.keys_length()];
        let values = &mut s.values[..count * h.values_length()];
        let queries = &mut s.queries[..(count - first) * h.query_length()];
        let products = [
            Product { linear: &layer.key, skip: 0, out: &mut *keys },
            Product { linear: &layer.value, skip: 0, out: &mut *values },
            Product { linear: &layer.query, skip: first, out: &mut *queries },
        ];
        work.multiply(&mut s.input, &mut s.normed[..count * width], width, products);
        for (x, norm) in [(&mut *keys, layer.key_norm), (&mut *queries, layer.query_norm)] {
            if let Some(norm) = norm {
                rms_norm_heads(x, norm, h.rms_epsilon);
                work.profiler.end(Operation::Norm);
            }
        }

        let rotations = self.rope.rotations();
        for (keys, rotation) in keys.chunks_exact_mut(h.keys_length()).zip(rotations) {
            self.rope.rotate(keys, rotation);
        }
        let rotations = self.rope.rotations().skip(first);
        for (query, rotation) in queries.chunks_exact_mut(h.query_length()).zip(rotations) {
            self.rope.rotate(query, rotation);
        }
        work.profiler.end(Operation::Rope);
        let keys = keys.chunks_exact(h.keys_length());
        let values = values.chunks_exact(h.values_length());
        for (i, (keys, values)) in keys.zip(values).enumerate() {
            self.kv.store(index, position + i, keys, values);
        }
        work.profiler.end(Operation::Store);
        let length = position + first + 1;
        let outputs = &mut s.attended[..(count - first) * h.attention_length()];
        let heads = h.query_length() / h.key_length.max(1);
        let batch = Batch { heads, length, queries, outputs };
        attention::attend(&self.kv, index, batch, &s.attention, self.parallel);
        work.profiler.end(Operation::Attention);

        let attended = &mut s.attended[..(count - first) * h.attention_length()];
        let output = &mut s.normed[..(count - first) * width];
        let product = Product { linear: &layer.attention_output, skip: 0, out: &mut *output };
        work.multiply(&mut s.input, attended, h.attention_length(), [product]);
        add_assign(&mut s.state[first * width..count * width], output);
        work.profiler.end(Operation::Add);
    }

    /// Adds the feed-forward network's output to the states of tokens `first..count` of the batch.
    fn feed_forward(&mut self, layer: &Layer<'_>, first: usize, count: usize) {
        let h = self.model.hyperparameters();
        let s = &mut self.scratch;
        let workers = Workers { parallel: self.parallel, scratch: &s.rows };
        let work = Work { workers, offload: self.offload, profiler: self.profiler };
        let width = h.embedding_length;
        let tokens = count - first;
        normalise(&s.state, layer.feed_forward_norm, h, first..count, &mut s.normed);
        work.profiler.end(Operation::Norm);
        let gate = &mut s.gate[..tokens * h.feed_forward_length];
        let up = &mut s.up[..tokens * h.feed_forward_length];
        let products = [
            Product { linear: &layer.gate, skip: 0, out: &mut *gate },
            Product { linear: &layer.up, skip: 0, out: &mut *up },
        ];
        work.multiply(&mut s.input, &mut s.normed[..tokens * width], width, products);
        silu_mul(gate, up);
        work.profiler.end(Operation::Activation);
        let output = &mut s.normed[..tokens * width];
        let product = Product { linear: &layer.down, skip: 0, out: &mut *output };
        work.multiply(&mut s.input, gate, h.feed_forward_length, [product]);
        add_assign(&mut s.state[first * width..count * width], output);
        work.profiler.end(Operation::Add);
    }

    /// Computes the logits from the state of the batch's last token.
    fn finish(&mut self, count: usize) {
        let h = self.model.hyperparameters();
        let weights = self.model.weights();
        let s = &mut self.scratch;
        let workers = Workers { parallel: self.parallel, scratch: &s.rows };
        let work = Work { workers, offload: self.offload, profiler: self.profiler };
        let width = h.embedding_length;
        normalise(&s.state, weights.output_norm, h, count - 1..count, &mut s.normed);
        work.profiler.end(Operation::Norm);
        let product = Product { linear: &weights.output, skip: 0, out: &mut s.logits };
        work.multiply(&mut s.input, &mut s.normed[..width], width, [product]);
    }
}

/// Buffers of the products of one input.
const MOST_BUFFERS: usize = 4;

/// A product of a matrix with an input that others may share.
struct Product<'p> {
    linear: &'p Linear<'p>,
    /// Rows of the input that are left out.
    skip: usize,
    out: &'p mut [f32],
}

/// Who computes, and who is told.
struct Work<'w> {
    workers: Workers<'w>,
    offload: &'w dyn Offload,
    profiler: Profiler<'w>,
}

impl Work<'_> {
    /// Multiplies `values`, rows of `columns`, by matrices, and adds their biases.
    fn multiply<const N: usize>(
        &self,
        buffer: &mut InputBuffer,
        values: &mut [f32],
        columns: usize,
        mut products: [Product<'_>; N],
    ) {
        if self.offload(values, columns, &mut products) {
            self.profiler.end(Operation::Offload);
        } else {
            let input = buffer.prepare(values, columns, &products.each_ref().map(|p| &p.linear.matrix));
            self.profiler.end(Operation::Quantise);
            for Product { linear, skip, out } in &mut products {
                matmul(&linear.matrix, &input.skip(*skip), &self.workers, out);
                self.profiler.end(Operation::Multiply(linear.matrix.ty()));
            }
        }
        for Product { linear, out, .. } in products {
            if let Some(bias) = linear.bias {
                add_bias(out, bias);
                self.profiler.end(Operation::Add);
            }
        }
    }

    /// Has the accelerator multiply; returns whether it did.
    fn offload<const N: usize>(
        &self,
        values: &mut [f32],
        columns: usize,
        products: &mut [Product<'_>; N],
    ) -> bool {
        let tokens = values.len() / columns.max(1);
        let stride = columns * size_of::<f32>();
        let steps: [_; N] = core::array::from_fn(|i| {
            let Product { linear, skip, .. } = &products[i];
            let matrix = &linear.matrix;
            Step::Multiply {
                ty: matrix.ty(),
                matrix: matrix.data(),
                rows: matrix.rows(),
                columns,
                tokens: tokens.saturating_sub(*skip),
                bias: None,
                input: Place { buffer: 0, offset: skip * stride, stride },
                output: Place { buffer: i + 1, offset: 0, stride: matrix.rows() * size_of::<f32>() },
            }
        });
        let mut buffers: [&mut [u8]; MOST_BUFFERS] = Default::default();
        let rows = core::iter::once(values).chain(products.iter_mut().map(|product| &mut *product.out));
        buffers.iter_mut().zip(rows).for_each(|(buffer, rows)| *buffer = rows.as_mut_bytes());
        let used = buffers.get_mut(..=N).unwrap_or_default();
        self.offload.run(used, &steps, &[N]) == 1
    }
}

/// Normalises the states of the tokens in `range` into the first rows of `out`.
fn normalise(
    state: &[f32],
    weight: &[u8],
    h: &Hyperparameters,
    range: core::ops::Range<usize>,
    out: &mut [f32],
) {
    let width = h.embedding_length;
    let states = state.chunks_exact(width).skip(range.start).take(range.len());
    for (state, out) in states.zip(out.chunks_exact_mut(width)) {
        rms_norm(state, weight, h.rms_epsilon, out);
    }
}

fn kv_shape(h: &Hyperparameters, format: KvFormat) -> KvShape {
    KvShape {
        format,
        layers: h.block_count,
        heads: h.head_count_kv,
        key_length: h.key_length,
        value_length: h.value_length,
    }
}
