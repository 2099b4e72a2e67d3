//! Merging neighbouring symbols in order of rank: what SentencePiece's and byte-level encoding have in common.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::cmp::{Ordering, Reverse};
use core::ops::Range;

use crate::{Error, Result};

/// A piece of the text, in a doubly linked list of those that are left. Empty once merged into its left neighbour.
#[derive(Clone, Debug)]
struct Symbol {
    range: Range<usize>,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that may be merged. The greatest goes first: the lowest rank, then the leftmost.
#[derive(Debug, PartialEq, Eq)]
struct Pair<R> {
    rank: R,
    left: usize,
    right: usize,
    /// Bytes of both when the pair was found; it is outdated when they differ.
    length: usize,
}

impl<R: Ord> Ord for Pair<R> {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |pair: &Self| Reverse(pair.left);
        other.rank.cmp(&self.rank).then_with(|| key(self).cmp(&key(other)))
    }
}

impl<R: Ord> PartialOrd for Pair<R> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Merges symbols; keeps its memory from one text to the next.
#[derive(Debug)]
pub struct Merger<R> {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Pair<R>>,
}

impl<R: Ord> Merger<R> {
    /// Starts without memory.
    pub fn new() -> Self {
        Merger { symbols: Vec::new(), queue: BinaryHeap::new() }
    }

    /// Splits `text` into characters and merges neighbours, the lowest rank first, the leftmost of equals, until none is
    /// left that `rank` knows. `rank` gets two neighbouring ranges of the text. Returns the ranges that result, in order.
    pub fn merge<'s>(
        &'s mut self,
        text: &str,
        rank: impl Fn(Range<usize>, Range<usize>) -> Option<R>,
    ) -> Result<impl Iterator<Item = Range<usize>> + 's> {
        let count = text.chars().count();
        self.symbols.clear();
        self.queue.clear();
        // Each pair is found once at the start or after a merge, which finds two and removes a symbol.
        let pairs = count.saturating_mul(3);
        let bytes = count.saturating_mul(size_of::<Symbol>()).saturating_add(pairs * size_of::<Pair<R>>());
        let reserved =
            self.symbols.try_reserve_exact(count).and_then(|()| self.queue.try_reserve_exact(pairs));
        reserved.map_err(|_| Error::OutOfMemory { bytes })?;

        for (index, (start, c)) in text.char_indices().enumerate() {
            let range = start..start + c.len_utf8();
            let next = (index + 1 < count).then_some(index + 1);
            self.symbols.push(Symbol { range, previous: index.checked_sub(1), next });
        }
        for right in 1..count {
            self.find_pair(Some(right - 1), Some(right), &rank);
        }
        while let Some(pair) = self.queue.pop() {
            self.merge_pair(&pair, &rank);
        }
        Ok(self.symbols.iter().map(|symbol| symbol.range.clone()).filter(|range| !range.is_empty()))
    }

    fn find_pair(
        &mut self,
        left: Option<usize>,
        right: Option<usize>,
        rank: &impl Fn(Range<usize>, Range<usize>) -> Option<R>,
    ) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let (Some(a), Some(b)) = (self.symbols.get(left), self.symbols.get(right)) else { return };
        if let Some(rank) = rank(a.range.clone(), b.range.clone()) {
            let length = a.range.len() + b.range.len();
            self.queue.push(Pair { rank, left, right, length });
        }
    }

    fn merge_pair(&mut self, pair: &Pair<R>, rank: &impl Fn(Range<usize>, Range<usize>) -> Option<R>) {
        let Ok([left, right]) = self.symbols.get_disjoint_mut([pair.left, pair.right]) else { return };
        let length = left.range.len() + right.range.len();
        if left.range.is_empty() || right.range.is_empty() || length != pair.length {
            return;
        }
        left.range.end = right.range.end;
        right.range = right.range.end..right.range.end;
        left.next = right.next;
        let (previous, next) = (left.previous, left.next);
        if let Some(next) = next.and_then(|next| self.symbols.get_mut(next)) {
            next.previous = Some(pair.left);
        }
        self.find_pair(previous, Some(pair.left), rank);
        self.find_pair(Some(pair.left), next, rank);
    }
}
