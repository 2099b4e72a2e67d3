//! Products of a few tokens with rows in place, eight rows at a time.

use super::activations::{Quantised, SuperQuantised};
use super::blocks::{Block, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, SUBS, SuperBlock, scales_and_mins};
use super::simd::{Lanes, ROWS, Simd};

/// A block's quants in a register.
pub trait Quants: Block {
    /// Unpacks them.
    fn load<S: Simd>(&self, s: S) -> S::Bytes;
}

macro_rules! quants {
    ($($name:ident: |$s:ident, $block:ident| $load:expr;)*) => {$(
        impl Quants for $name {
            #[inline(always)]
            fn load<S: Simd>(&self, $s: S) -> S::Bytes {
                let $block = self;
                $load
            }
        }
    )*};
}

quants! {
    Q4_0: |s, block| s.nibbles(&block.qs);
    Q4_1: |s, block| s.nibbles(&block.qs);
    Q5_0: |s, block| s.or(s.nibbles(&block.qs), s.spread(u32::from_le_bytes(block.qh), 16));
    Q5_1: |s, block| s.or(s.nibbles(&block.qs), s.spread(u32::from_le_bytes(block.qh), 16));
    Q8_0: |s, block| s.bytes(&block.qs);
}

/// A super-block's quants, 32 at a time, in registers.
pub trait SuperQuants: SuperBlock {
    /// Adds up the products with `x`, each sub-block's times its scale; and those of the minimums, or of the scales where
    /// there is an offset, with the sums of `x`.
    fn dot<S: Simd>(&self, s: S, x: &SuperQuantised, sums32: &[i16; SUBS]) -> (S::Sums, S::Sums);
}

impl SuperQuants for Q4K {
    #[inline(always)]
    fn dot<S: Simd>(&self, s: S, x: &SuperQuantised, sums32: &[i16; SUBS]) -> (S::Sums, S::Sums) {
        let (scales, mins) = scales_and_mins(&self.scales);
        let scales = s.eight_scales(scales);
        let (x, w) = (x.quants.as_chunks::<32>().0, self.qs.as_chunks::<32>().0);
        let mut sums = s.nothing();
        macro_rules! part {
            ($($part:literal: $low:literal $high:literal),*) => {$(
                let packed = s.bytes(&w[$part]);
                sums = s.dot_scaled::<$low>(sums, s.and(packed, 15), &x[$low], scales);
                sums = s.dot_scaled::<$high>(sums, s.high(packed), &x[$high], scales);
            )*};
        }
        part!(0: 0 1, 1: 2 3, 2: 4 5, 3: 6 7);
        (sums, s.dot_small(s.eight_scales(mins), sums32))
    }
}

impl SuperQuants for Q5K {
    #[inline(always)]
    fn dot<S: Simd>(&self, s: S, x: &SuperQuantised, sums32: &[i16; SUBS]) -> (S::Sums, S::Sums) {
        let (scales, mins) = scales_and_mins(&self.scales);
        let scales = s.eight_scales(scales);
        let (x, w) = (x.quants.as_chunks::<32>().0, self.qs.as_chunks::<32>().0);
        let fifth = s.bytes(&self.qh);
        let mut sums = s.nothing();
        macro_rules! part {
            ($($part:literal: $low:literal $high:literal),*) => {$(
                let packed = s.bytes(&w[$part]);
                let low = s.or(s.and(packed, 15), s.test(fifth, 1 << $low, 16));
                let high = s.or(s.high(packed), s.test(fifth, 1 << $high, 16));
                sums = s.dot_scaled::<$low>(sums, low, &x[$low], scales);
                sums = s.dot_scaled::<$high>(sums, high, &x[$high], scales);
            )*};
        }
        part!(0: 0 1, 1: 2 3, 2: 4 5, 3: 6 7);
        (sums, s.dot_small(s.eight_scales(mins), sums32))
    }
}

impl SuperQuants for Q6K {
    #[inline(always)]
    fn dot<S: Simd>(&self, s: S, x: &SuperQuantised, _: &[i16; SUBS]) -> (S::Sums, S::Sums) {
        let scales = s.scales(&self.scales);
        let least = s.dot_small(scales, &x.sums16);
        let x = x.quants.as_chunks::<32>().0;
        let (low, high) = (self.ql.as_chunks::<32>().0, self.qh.as_chunks::<32>().0);
        let mut sums = s.nothing();
        macro_rules! half {
            ($($half:literal: $a:literal $b:literal $c:literal $d:literal),*) => {$(
                let (a, b) = (s.bytes(&low[2 * $half]), s.bytes(&low[2 * $half + 1]));
                let both = s.bytes(&high[$half]);
                let first = s.or(s.and(a, 15), s.left::<4>(s.and(both, 0x03)));
                let second = s.or(s.and(b, 15), s.left::<2>(s.and(both, 0x0c)));
                let third = s.or(s.high(a), s.and(both, 0x30));
                let fourth = s.or(s.high(b), s.right::<2>(s.and(both, 0xc0)));
                sums = s.dot_scaled_halves::<$a>(sums, first, &x[$a], scales);
                sums = s.dot_scaled_halves::<$b>(sums, second, &x[$b], scales);
                sums = s.dot_scaled_halves::<$c>(sums, third, &x[$c], scales);
                sums = s.dot_scaled_halves::<$d>(sums, fourth, &x[$d], scales);
            )*};
        }
        half!(0: 0 1 2 3, 1: 4 5 6 7);
        (sums, least)
    }
}

/// Products of eight rows of equal length with one token.
#[inline(always)]
pub fn blocks<S: Simd, B: Quants>(s: S, rows: [&[B]; ROWS], x: &[Quantised], out: &mut [f32; ROWS]) {
    let v = s.eight();
    let mut total = v.splat_float(0.0);
    let count = rows.iter().fold(x.len(), |count, row| count.min(row.len()));
    for (b, x) in x.iter().enumerate().take(count) {
        let mut sums = [s.nothing(); ROWS];
        let (mut scales, mut mins) = ([0; ROWS], [0; ROWS]);
        for r in 0..ROWS {
            let Some(w) = rows[r].get(b) else { return };
            sums[r] = if B::SIGNED {
                s.dot::<true>(w.load(s), &x.quants)
            } else {
                s.dot::<false>(w.load(s), &x.quants)
            };
            scales[r] = w.stored_scale();
            mins[r] = w.stored_min();
        }
        let mut dots = s.rows(sums);
        if B::OFFSET != 0 {
            dots = v.subtract(dots, v.splat(B::OFFSET.wrapping_mul(x.sum)));
        }
        total = v.fma(v.convert(dots), v.multiply(s.halves(scales), v.splat_float(x.scale)), total);
        if B::HAS_MIN {
            total = v.fma(s.halves(mins), v.splat_float(x.total), total);
        }
    }
    v.store(total, out);
}

/// Products of eight rows of equal length with one token.
#[inline(always)]
pub fn supers<S: Simd, B: SuperQuants>(
    s: S,
    rows: [&[B]; ROWS],
    x: &[SuperQuantised],
    out: &mut [f32; ROWS],
) {
    let v = s.eight();
    let mut total = v.splat_float(0.0);
    let count = rows.iter().fold(x.len(), |count, row| count.min(row.len()));
    for (b, x) in x.iter().enumerate().take(count) {
        let (mut sums, mut least) = ([s.nothing(); ROWS], [s.nothing(); ROWS]);
        let (mut scales, mut min_scales) = ([0; ROWS], [0; ROWS]);
        let mut sums32 = [0; SUBS];
        sums32[..SUBS / 2].copy_from_slice(&x.sums32);
        for r in 0..ROWS {
            let Some(w) = rows[r].get(b) else { return };
            (sums[r], least[r]) = w.dot(s, x, &sums32);
            scales[r] = w.stored_scale();
            min_scales[r] = w.stored_min_scale();
        }
        let mut dots = s.rows(sums);
        if B::OFFSET != 0 {
            dots = v.multiply_add(dots, s.rows(least), v.splat(-B::OFFSET));
        }
        let scale = v.splat_float(x.scale);
        total = v.fma(v.convert(dots), v.multiply(s.halves(scales), scale), total);
        if B::HAS_MIN {
            let least = v.convert(s.rows(least));
            total = v.fnma(least, v.multiply(s.halves(min_scales), scale), total);
        }
    }
    v.store(total, out);
}
