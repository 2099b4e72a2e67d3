//! Products of a few tokens with rows in place, eight rows at a time.

use super::activations::{Quantised, SuperQuantised};
use super::blocks::{Block, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, SUBS, SuperBlock};
use super::simd::{Lanes, ROWS, Simd};

/// A block's quants in a register.
pub trait Quants: Block {
    /// Unpacks them.
    fn load<S: Simd>(&self, s: S) -> S::Bytes;

    /// The scale as it is stored.
    fn stored_scale(&self) -> u16;

    /// The minimum as it is stored.
    fn stored_min(&self) -> u16 {
        0
    }
}

macro_rules! quants {
    ($($name:ident: |$s:ident, $block:ident| $load:expr $(, $min:ident)?;)*) => {$(
        impl Quants for $name {
            #[inline(always)]
            fn load<S: Simd>(&self, $s: S) -> S::Bytes {
                let $block = self;
                $load
            }

            #[inline(always)]
            fn stored_scale(&self) -> u16 {
                u16::from_le_bytes(self.d)
            }

            $(#[inline(always)]
            fn stored_min(&self) -> u16 {
                u16::from_le_bytes(self.$min)
            })?
        }
    )*};
}

quants! {
    Q4_0: |s, block| s.nibbles(&block.qs);
    Q4_1: |s, block| s.nibbles(&block.qs), m;
    Q5_0: |s, block| s.or(s.nibbles(&block.qs), s.spread(u32::from_le_bytes(block.qh), 16));
    Q5_1: |s, block| s.or(s.nibbles(&block.qs), s.spread(u32::from_le_bytes(block.qh), 16)), m;
    Q8_0: |s, block| s.bytes(&block.qs);
}

/// A super-block's quants, 32 at a time, in registers.
pub trait SuperQuants: SuperBlock {
    /// Adds up the products with `x`, each sub-block's times its scale.
    fn dot<S: Simd>(&self, s: S, x: &SuperQuantised) -> S::Sums;

    /// The scale as it is stored.
    fn stored_scale(&self) -> u16;

    /// The scale of the minimums as it is stored.
    fn stored_min_scale(&self) -> u16 {
        0
    }
}

/// Scales of eight sub-blocks of 32, each twice, as for sixteen of 16.
#[inline(always)]
fn twice(scales: [i8; SUBS]) -> [i8; SUBS] {
    let [a, b, c, d, e, f, g, h, ..] = scales;
    [a, a, b, b, c, c, d, d, e, e, f, f, g, g, h, h]
}

impl SuperQuants for Q4K {
    #[inline(always)]
    fn dot<S: Simd>(&self, s: S, x: &SuperQuantised) -> S::Sums {
        let scales = twice(self.scales());
        let (x, w) = (x.quants.as_chunks::<32>().0, self.qs.as_chunks::<32>().0);
        let mut sums = s.nothing();
        for part in 0..4 {
            let w = s.bytes(&w[part]);
            sums = s.dot_scaled(sums, s.and(w, 15), &x[2 * part], &scales, 2 * part);
            sums = s.dot_scaled(sums, s.high(w), &x[2 * part + 1], &scales, 2 * part + 1);
        }
        sums
    }

    #[inline(always)]
    fn stored_scale(&self) -> u16 {
        u16::from_le_bytes(self.d)
    }

    #[inline(always)]
    fn stored_min_scale(&self) -> u16 {
        u16::from_le_bytes(self.dmin)
    }
}

impl SuperQuants for Q5K {
    #[inline(always)]
    fn dot<S: Simd>(&self, s: S, x: &SuperQuantised) -> S::Sums {
        let scales = twice(self.scales());
        let (x, w) = (x.quants.as_chunks::<32>().0, self.qs.as_chunks::<32>().0);
        let fifth = s.bytes(&self.qh);
        let mut sums = s.nothing();
        for part in 0..4 {
            let w = s.bytes(&w[part]);
            let low = s.or(s.and(w, 15), s.test(fifth, 1 << (2 * part), 16));
            let high = s.or(s.high(w), s.test(fifth, 2 << (2 * part), 16));
            sums = s.dot_scaled(sums, low, &x[2 * part], &scales, 2 * part);
            sums = s.dot_scaled(sums, high, &x[2 * part + 1], &scales, 2 * part + 1);
        }
        sums
    }

    #[inline(always)]
    fn stored_scale(&self) -> u16 {
        u16::from_le_bytes(self.d)
    }

    #[inline(always)]
    fn stored_min_scale(&self) -> u16 {
        u16::from_le_bytes(self.dmin)
    }
}

impl SuperQuants for Q6K {
    #[inline(always)]
    fn dot<S: Simd>(&self, s: S, x: &SuperQuantised) -> S::Sums {
        let scales = self.scales();
        let x = x.quants.as_chunks::<32>().0;
        let (low, high) = (self.ql.as_chunks::<32>().0, self.qh.as_chunks::<32>().0);
        let mut sums = s.nothing();
        for half in 0..2 {
            let (a, b, high) = (s.bytes(&low[2 * half]), s.bytes(&low[2 * half + 1]), s.bytes(&high[half]));
            let quants = [
                s.or(s.and(a, 15), s.left::<4>(s.and(high, 0x03))),
                s.or(s.and(b, 15), s.left::<2>(s.and(high, 0x0c))),
                s.or(s.high(a), s.and(high, 0x30)),
                s.or(s.high(b), s.right::<2>(s.and(high, 0xc0))),
            ];
            for (part, quants) in quants.into_iter().enumerate() {
                let part = 4 * half + part;
                sums = s.dot_scaled(sums, quants, &x[part], &scales, part);
            }
        }
        sums
    }

    #[inline(always)]
    fn stored_scale(&self) -> u16 {
        u16::from_le_bytes(self.d)
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
            total = v.fma(s.halves(mins), v.splat_float(x.sum as f32 * x.scale), total);
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
            sums[r] = w.dot(s, x);
            if B::HAS_MIN {
                least[r] = s.dot_small(&w.mins(), &sums32);
                min_scales[r] = w.stored_min_scale();
            }
            if B::OFFSET != 0 {
                least[r] = s.dot_small(&w.scales(), &x.sums16);
            }
            scales[r] = w.stored_scale();
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
