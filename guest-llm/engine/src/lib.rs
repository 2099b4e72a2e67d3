//! Inference engine: GGUF parser, tokenizers, quantised kernels, KV cache, sampling.
//!
//! `no_std` + `alloc`; runs in the confidential partition and, as the command `flexserve-engine`, on the development
//! machine. It knows nothing of hypervisors, files or clocks: the caller brings the model's bytes, a memory limit and,
//! by [`Parallel`], threads if there are any, and gets text.
//!
//! ```no_run
//! use flexserve_engine::{Event, Flow, Limits, Model, Request, Session, SessionConfig, generate};
//!
//! # fn demo(bytes: &[u8]) -> Result<(), flexserve_engine::Error> {
//! let model = Model::load(bytes, &Limits::default())?;
//! let config = SessionConfig::for_model(&model);
//! let _needed = Session::required_bytes(&model, &config)?; // exact, before anything is allocated
//! let mut session = Session::new(&model, &config)?;
//! let request = Request { max_tokens: 128, ..Request::new("wake me at six") };
//! let mut answer = String::new();
//! let _report = generate(&mut session, &request, &mut |event| {
//!     if let Event::Text(text) = event {
//!         answer.push_str(text);
//!     }
//!     Flow::Continue
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! [`generate`] is made of public steps, for callers that want more control: [`Tokenizer::encode_request`],
//! [`Session::prefill`], [`Sampler::sample`], [`Detokenizer::push`], [`Session::decode`]. [`Conversation`] does the same for
//! turns that follow each other.
//!
//! # Properties
//! - **In place.** [`Model`] borrows the file's bytes. Weights are read where they lie, in their stored format; they are
//!   never copied or expanded, and need no alignment. Any page of them may be refetched behind the engine's back.
//! - **Hostile input.** File and prompt are untrusted. Counts, lengths, dimensions, offsets and alignment are checked
//!   before any allocation; allocations are fallible and within [`Limits::memory_bytes`] and
//!   [`SessionConfig::memory_limit`]; nothing panics; work is bounded by the size of file, prompt and context. Errors
//!   name the guilty key, tensor or token.
//! - **No allocation while decoding.** [`Session::new`] and [`Sampler::new`] allocate all that decoding uses.
//! - **Determinism.** The same file, prompt, parameters and seed give the same tokens and *bit-identical logits* on
//!   every target, for every batch size and every number of threads: kernels define their order of summation and where
//!   multiplications and additions are fused, every instruction set keeps to that, and transcendental functions come from `libm`. The caller must leave the
//!   floating point mode at its default (round to nearest, no flush to zero).
//! - **Unsafe** lives in `kernels::neon` and `kernels::x86`, the primitives of an instruction set (the kernels over them are
//!   safe and have a portable twin that tests compare bit by bit), and in [`pool`], which lends its caller's work to other
//!   threads.
//!
//! # Modules
//! [`gguf`] parses, [`model`] gives hyperparameters and tensors their meaning, [`tokenizer`] turns text to tokens and
//! back, `kernels` compute, [`kv`] stores keys and values in chunks of 16 tokens, [`session`] runs the transformer,
//! `parallel` splits work over threads, [`pool`] has them at hand, [`offload`] hands it to an accelerator, which may compute with [`accelerate`], [`sampler`] chooses tokens, [`grammar`] says which there are to
//! choose from, [`stop`] ends answers, [`generate`](mod@generate) joins them to a request. Dependencies point from right to left.

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod accelerate;
mod budget;
mod conversation;
pub mod error;
mod filter;
pub mod generate;
pub mod gguf;
pub mod grammar;
mod kernels;
pub mod kv;
pub mod model;
pub mod offload;
mod parallel;
#[allow(unsafe_code)]
pub mod pool;
pub mod sampler;
pub mod session;
pub mod stop;
mod thought;
pub mod tokenizer;

pub use budget::Limits;
pub use conversation::Conversation;
pub use error::{Error, Result};
pub use generate::{Event, Flow, Report, Request, StopReason, generate};
pub use grammar::{Constraint, Grammar, TokenIndex};
pub use kernels::{Activations, Multiplier};
pub use kv::{KvFormat, UnknownKvFormat};
pub use model::Model;
pub use offload::{NoOffload, Offload};
pub use parallel::{Parallel, Serial};
pub use sampler::{Sampler, Sampling};
pub use session::{Session, SessionConfig, SessionMemory};
pub use tokenizer::{ChatTemplate, Detokenizer, Thinking, TokenId, Tokenizer, Turn};
