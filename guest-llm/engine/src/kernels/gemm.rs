//! Products of many tokens with a panel of rows.
//!
//! A panel is a part of some rows, unpacked: the quants as bytes, four columns of every row side by side, followed by what a
//! block's scales are. It fits into the first-level cache. All tokens go over it, some at a time, one vector lane for each
//! row, so that nothing has to be added up across lanes; their sums so far wait in `totals`. Then comes the next part of the
//! rows. The sums are those of the definition in `portable`, bit by bit.
//!
//! Panel of a [`Block`] format, in words of 32 bits: for each block eight times `R` quads of quants, `R` scales, `R`
//! minimums if there are any. Of a [`SuperBlock`] format: for each block 64 times `R` quads, `R` scales for each
//! sub-block, `R` pairs of 16-bit minimums (or scales, where there is an offset) for each pair of sub-blocks, `R` scales,
//! `R` scales of the minimums if there are any.

use super::activations::{Quantised, Rows, SuperQuantised};
use super::blocks::{BLOCK, Block, SUPER, SuperBlock, view};
use super::simd::Lanes;

/// Columns of a panel.
const COLUMNS: usize = 2 * SUPER;
/// Most words of a panel for each row: Q6_K has 89 for 256 columns.
const WORDS: usize = 89 * COLUMNS / SUPER;

/// Words that a panel takes.
pub const fn panel_words(rows: usize) -> usize {
    WORDS * rows
}

const fn block_words<B: Block>(rows: usize) -> usize {
    rows * (BLOCK / 4 + 1 + B::HAS_MIN as usize)
}

const fn super_words<B: SuperBlock>(rows: usize) -> usize {
    let subs = SUPER / B::SUB;
    rows * (SUPER / 4 + subs + subs / 2 + 1 + B::HAS_MIN as usize)
}

/// What is taken off the quants of a panel.
const fn offset<L: Lanes, B: Block>() -> i32 {
    if B::SIGNED && !L::SIGNED { 128 } else { B::OFFSET }
}

/// Unpacks the blocks from `from` on, as many as there is room for, of `rows`, of which the last is repeated where there are
/// too few.
#[inline(always)]
fn pack_blocks<L: Lanes, B: Block>(rows: &[&[u8]], from: usize, panel: &mut [u32]) {
    let Some(last) = rows.len().checked_sub(1) else { return };
    // Two's complement to unsigned with an offset of 128.
    let flip = if B::SIGNED && !L::SIGNED { 0x8080_8080 } else { 0 };
    for r in 0..L::ROWS {
        let blocks = view::<B>(rows[r.min(last)]).get(from..).unwrap_or_default();
        for (block, words) in blocks.iter().zip(panel.chunks_exact_mut(block_words::<B>(L::ROWS))) {
            let quants = block.quants();
            for (quad, words) in quants.as_chunks::<4>().0.iter().zip(words.chunks_exact_mut(L::ROWS)) {
                words[r] = u32::from_le_bytes(*quad) ^ flip;
            }
            words[BLOCK / 4 * L::ROWS + r] = block.scale().to_bits();
            if B::HAS_MIN {
                words[(BLOCK / 4 + 1) * L::ROWS + r] = block.min().to_bits();
            }
        }
    }
}

/// As [`pack_blocks`].
#[inline(always)]
fn pack_supers<L: Lanes, B: SuperBlock>(rows: &[&[u8]], from: usize, panel: &mut [u32]) {
    let Some(last) = rows.len().checked_sub(1) else { return };
    for r in 0..L::ROWS {
        let blocks = view::<B>(rows[r.min(last)]).get(from..).unwrap_or_default();
        for (block, words) in blocks.iter().zip(panel.chunks_exact_mut(super_words::<B>(L::ROWS))) {
            let (quants, scales, mins) = (block.quants(), block.scales(), block.mins());
            let mut words = words.chunks_exact_mut(L::ROWS);
            for (quad, words) in quants.as_chunks::<4>().0.iter().zip(&mut words) {
                words[r] = u32::from_le_bytes(*quad);
            }
            for (scale, words) in scales.iter().take(SUPER / B::SUB).zip(&mut words) {
                words[r] = i32::from(*scale) as u32;
            }
            let small = if B::OFFSET == 0 { mins } else { scales };
            for (pair, words) in small.as_chunks::<2>().0.iter().take(SUPER / B::SUB / 2).zip(&mut words) {
                words[r] = u32::from(i16::from(pair[0]) as u16) | u32::from(i16::from(pair[1]) as u16) << 16;
            }
            for (scale, words) in [block.scale(), block.min_scale()].into_iter().zip(&mut words) {
                words[r] = scale.to_bits();
            }
        }
    }
}

/// Multiplies all tokens with `rows` (at most `L::ROWS`); `out` gets each token and its products. `panel` and `totals` are
/// scratch of at least [`panel_words`] and `L::ROWS` for each token.
#[inline(always)]
pub fn blocks<L: Lanes, B: Block>(
    v: L,
    rows: &[&[u8]],
    tokens: Rows<'_, Quantised>,
    (panel, totals): (&mut [u32], &mut [f32]),
    out: &mut impl FnMut(usize, &[f32]),
) {
    let totals = totals.get_mut(..tokens.count() * L::ROWS).unwrap_or_default();
    totals.fill(0.0);
    let (all, each) = (tokens.length(), COLUMNS / BLOCK);
    for from in (0..all).step_by(each) {
        let count = each.min(all - from);
        let panel = panel.get_mut(..count * block_words::<B>(L::ROWS)).unwrap_or_default();
        pack_blocks::<L, B>(rows, from, panel);
        let mut first = 0;
        while L::MANY && first + 8 <= tokens.count() {
            blocks_tile::<L, B, 8>(v, panel, tokens, (first, from), totals);
            first += 8;
        }
        while first + 4 <= tokens.count() {
            blocks_tile::<L, B, 4>(v, panel, tokens, (first, from), totals);
            first += 4;
        }
        while first < tokens.count() {
            blocks_tile::<L, B, 1>(v, panel, tokens, (first, from), totals);
            first += 1;
        }
    }
    for (token, products) in totals.chunks_exact(L::ROWS).enumerate() {
        out(token, products);
    }
}

#[inline(always)]
fn blocks_tile<L: Lanes, B: Block, const T: usize>(
    v: L,
    panel: &[u32],
    tokens: Rows<'_, Quantised>,
    (first, from): (usize, usize),
    totals: &mut [f32],
) {
    let mut xs = [&[][..]; T];
    for (t, x) in xs.iter_mut().enumerate() {
        *x = tokens.get(first + t).get(from..).unwrap_or_default();
    }
    let count = xs[0].len();
    let parts = &mut totals[first * L::ROWS..(first + T) * L::ROWS];
    let mut totals = [v.splat_float(0.0); T];
    for t in 0..T {
        totals[t] = v.load(&parts[t * L::ROWS..]);
    }
    for (b, words) in panel.chunks_exact(block_words::<B>(L::ROWS)).take(count).enumerate() {
        let mut x = [&xs[0][b]; T];
        for t in 1..T {
            x[t] = &xs[t][b];
        }
        let mut sums = [v.splat(0); T];
        if offset::<L, B>() != 0 {
            for t in 0..T {
                sums[t] = v.splat(x[t].sum.wrapping_mul(-offset::<L, B>()));
            }
        }
        let (quads, scales) = words.split_at(BLOCK / 4 * L::ROWS);
        for (q, words) in quads.chunks_exact(L::ROWS).enumerate() {
            let w = v.ints(words);
            for t in 0..T {
                let x = v.splat(i32::from_le_bytes(quad(&x[t].quants, q)));
                sums[t] =
                    if B::SIGNED { v.dot::<true>(sums[t], w, x) } else { v.dot::<false>(sums[t], w, x) };
            }
        }
        let scale = v.floats(scales);
        for t in 0..T {
            let scale = v.multiply(scale, v.splat_float(x[t].scale));
            totals[t] = v.fma(v.convert(sums[t]), scale, totals[t]);
        }
        if B::HAS_MIN {
            let min = v.floats(&scales[L::ROWS..]);
            for t in 0..T {
                let least = x[t].total;
                totals[t] = v.fma(min, v.splat_float(least), totals[t]);
            }
        }
    }
    for t in 0..T {
        v.store(totals[t], &mut parts[t * L::ROWS..]);
    }
}

/// As [`blocks`].
#[inline(always)]
pub fn supers<L: Lanes, B: SuperBlock>(
    v: L,
    rows: &[&[u8]],
    tokens: Rows<'_, SuperQuantised>,
    (panel, totals): (&mut [u32], &mut [f32]),
    out: &mut impl FnMut(usize, &[f32]),
) {
    let totals = totals.get_mut(..tokens.count() * L::ROWS).unwrap_or_default();
    totals.fill(0.0);
    let (all, each) = (tokens.length(), COLUMNS / SUPER);
    for from in (0..all).step_by(each) {
        let count = each.min(all - from);
        let panel = panel.get_mut(..count * super_words::<B>(L::ROWS)).unwrap_or_default();
        pack_supers::<L, B>(rows, from, panel);
        let mut first = 0;
        while L::MANY && first + 8 <= tokens.count() {
            supers_tile::<L, B, 8>(v, panel, tokens, (first, from), totals);
            first += 8;
        }
        while first + 4 <= tokens.count() {
            supers_tile::<L, B, 4>(v, panel, tokens, (first, from), totals);
            first += 4;
        }
        while first < tokens.count() {
            supers_tile::<L, B, 1>(v, panel, tokens, (first, from), totals);
            first += 1;
        }
    }
    for (token, products) in totals.chunks_exact(L::ROWS).enumerate() {
        out(token, products);
    }
}

#[inline(always)]
fn supers_tile<L: Lanes, B: SuperBlock, const T: usize>(
    v: L,
    panel: &[u32],
    tokens: Rows<'_, SuperQuantised>,
    (first, from): (usize, usize),
    totals: &mut [f32],
) {
    let subs = SUPER / B::SUB;
    let mut xs = [&[][..]; T];
    for (t, x) in xs.iter_mut().enumerate() {
        *x = tokens.get(first + t).get(from..).unwrap_or_default();
    }
    let count = xs[0].len();
    let parts = &mut totals[first * L::ROWS..(first + T) * L::ROWS];
    let mut totals = [v.splat_float(0.0); T];
    for t in 0..T {
        totals[t] = v.load(&parts[t * L::ROWS..]);
    }
    for (b, words) in panel.chunks_exact(super_words::<B>(L::ROWS)).take(count).enumerate() {
        let mut x = [&xs[0][b]; T];
        for t in 1..T {
            x[t] = &xs[t][b];
        }
        let (quads, words) = words.split_at(SUPER / 4 * L::ROWS);
        let (scales, words) = words.split_at(subs * L::ROWS);
        let (small, words) = words.split_at(subs / 2 * L::ROWS);
        let mut dots = [v.splat(0); T];
        let subs = quads.chunks_exact(B::SUB / 4 * L::ROWS).zip(scales.chunks_exact(L::ROWS));
        for (j, (quads, scale)) in subs.enumerate() {
            let mut sums = [v.splat(0); T];
            for (q, words) in quads.chunks_exact(L::ROWS).enumerate() {
                let w = v.ints(words);
                for t in 0..T {
                    let x = v.splat(i32::from_le_bytes(quad(&x[t].quants, j * (B::SUB / 4) + q)));
                    sums[t] = v.dot::<false>(sums[t], w, x);
                }
            }
            let scale = v.ints(scale);
            for t in 0..T {
                dots[t] = v.multiply_add(dots[t], sums[t], scale);
            }
        }
        let mut least = [v.splat(0); T];
        if B::HAS_MIN || B::OFFSET != 0 {
            for (p, words) in small.chunks_exact(L::ROWS).enumerate() {
                let w = v.ints(words);
                for t in 0..T {
                    let pair = if B::SUB == 16 { pair(&x[t].sums16, p) } else { pair(&x[t].sums32, p) };
                    least[t] = v.dot_pairs(least[t], w, v.splat(pair));
                }
            }
        }
        let scale = v.floats(words);
        for t in 0..T {
            let mut dot = dots[t];
            if B::OFFSET != 0 {
                dot = v.multiply_add(dot, least[t], v.splat(-B::OFFSET));
            }
            let scale = v.multiply(scale, v.splat_float(x[t].scale));
            totals[t] = v.fma(v.convert(dot), scale, totals[t]);
        }
        if B::HAS_MIN {
            let min_scale = v.floats(&words[L::ROWS..]);
            for t in 0..T {
                let scale = v.multiply(min_scale, v.splat_float(x[t].scale));
                totals[t] = v.fnma(v.convert(least[t]), scale, totals[t]);
            }
        }
    }
    for t in 0..T {
        v.store(totals[t], &mut parts[t * L::ROWS..]);
    }
}

#[inline(always)]
fn quad(quants: &[i8], index: usize) -> [u8; 4] {
    let quad = quants.as_chunks::<4>().0[index];
    [quad[0] as u8, quad[1] as u8, quad[2] as u8, quad[3] as u8]
}

#[inline(always)]
fn pair(sums: &[i16], index: usize) -> i32 {
    let [low, high] = sums.as_chunks::<2>().0[index];
    i32::from(low as u16) | i32::from(high) << 16
}

/// The bytes of each of a panel's rows.
pub fn split_rows<const R: usize>(bytes: &[u8], row_bytes: usize) -> ([&[u8]; R], usize) {
    let mut rows = [&[][..]; R];
    let mut count = 0;
    for (row, bytes) in rows.iter_mut().zip(bytes.chunks_exact(row_bytes.max(1))) {
        *row = bytes;
        count += 1;
    }
    (rows, count)
}
