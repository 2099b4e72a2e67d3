//! Which instruction set there is, and the kernels for it.

use super::activations::Input;
use super::attention::{self, Step};
use super::matrix::{Part, RowScratch};
use super::portable;

macro_rules! dots {
    ($($(#[$doc:meta])* $name:ident($row:ty);)*) => {$(
        $(#[$doc])*
        pub fn $name(row: &[$row], x: &[f32]) -> f32 {
            #[cfg(target_arch = "x86_64")]
            if let Some(dot) = super::x86::$name(row, x) {
                return dot;
            }
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            return super::neon::$name(row, x);
            #[allow(unreachable_code, reason = "where there are instructions that help")]
            portable::$name(row, x)
        }
    )*};
}

dots! {
    /// Dot product of two slices, over the shorter of both.
    dot_slices(f32);
}

/// Multiplies by the definition.
pub fn multiply_portable(part: &Part<'_, '_>, input: &Input<'_>) {
    for (r, row) in part.rows().chunks_exact(part.row_bytes()).enumerate() {
        for token in 0..input.tokens() {
            part.set(token, r, portable::dot_row(part.ty(), row, input, token));
        }
    }
}

/// Multiplies with the best instructions of this CPU.
pub fn multiply(part: &Part<'_, '_>, input: &Input<'_>, scratch: &mut RowScratch) {
    #[cfg(target_arch = "x86_64")]
    if super::x86::multiply(part, input, scratch) {
        return;
    }
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    if super::neon::multiply(part, input, scratch) {
        return;
    }
    let _ = scratch;
    multiply_portable(part, input);
}

/// Attention over a chunk with the best instructions of this CPU.
pub fn attend(step: &mut Step<'_, '_>) {
    #[cfg(target_arch = "x86_64")]
    if super::x86::attend(step) {
        return;
    }
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    return super::neon::attend(step);
    #[allow(unreachable_code, reason = "where there are instructions that help")]
    attention::attend_portable(step);
}
