//! Computation on tensors.
//!
//! Every kernel defines the order in which it rounds and sums, so that all instruction sets, batch sizes and numbers of
//! threads agree bit by bit; [`portable`] says what the order is, by example. The kernels for matrices are written once,
//! over the primitives that [`simd`] lists: `gemv` multiplies few tokens with rows in place, `gemm` many tokens with
//! panels of unpacked rows, `floats` rows of floats; `multiply` chooses; `multiplier` offers that to devices; `attention` is written likewise. `x86` and `neon` implement the primitives, and
//! [`cpu`] finds out which there are. Nothing here panics on any input of the right length, NaN and infinity included.
//! Unsafe lives in `x86` and `neon` only.

mod activations;
mod attention;
mod blocks;
mod cpu;
mod elementwise;
mod floats;
mod gemm;
mod gemv;
mod half;
mod kv_row;
mod matrix;
mod multiplier;
mod multiply;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
#[allow(unsafe_code)]
mod neon;
#[allow(dead_code, reason = "compiled always, as the twin that SIMD variants are compared with")]
mod portable;
mod simd;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86;

pub use activations::{Forms, InputBuffer, Quantised};
pub use attention::{Query, Step, TILE};
pub use blocks::BLOCK;
pub use cpu::attend;
pub use elementwise::{
    add_assign, add_bias, rms_norm, rms_norm_heads, rope_rotate_halves, rope_rotate_neighbours, silu_mul,
    softmax_step,
};
pub use kv_row::{KvFormat, UnknownKvFormat};
pub use matrix::{Matrix, RowScratch, Workers, matmul};
pub use multiplier::{Activations, Multiplier};
