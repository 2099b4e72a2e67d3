//! Computation on tensors.
//!
//! Every kernel defines the order in which it rounds and sums, so that all variants and batch sizes agree bit by bit:
//! - dot products of floats: eight partial sums (element `i` goes to sum `i % 8`), added as
//!   `((s0+s4)+(s1+s5)) + ((s2+s6)+(s3+s7))`, then the elements after the last multiple of eight, in order;
//! - dot products of Q8_0: exact integer sums per block of 32, converted, times the product of both scales, added in
//!   block order;
//! - no fused multiply-add anywhere.
//!
//! [`portable`] holds all kernels; `neon` replaces the dot products on aarch64. Nothing here panics on any input of the
//! right length, NaN and infinity included. Unsafe lives in `neon` only.

mod elementwise;
mod half;
mod kv_row;
mod matrix;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
#[allow(unsafe_code)]
mod neon;
#[allow(dead_code, reason = "compiled always, as the twin that SIMD variants are compared with")]
mod portable;
#[cfg(test)]
mod tests;

pub use elementwise::{add_assign, rms_norm, rope_rotate, scale, silu_mul, softmax_step};
pub use kv_row::KvFormat;
pub use matrix::{InputBuffer, Matrix, RowScratch, Workers, matmul};

#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
use neon as simd;
#[cfg(not(all(target_arch = "aarch64", target_feature = "neon")))]
use portable as simd;
