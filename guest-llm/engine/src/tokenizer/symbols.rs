//! Merging neighbouring symbols in order of rank: what SentencePiece's and byte-level encoding have in common.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::cmp::{Ordering, Reverse};
use core::ops::Range;

use crate::{Error, Result};

/// A piece of the text, in a doubly linked list of those that are left. Empty once merged into its left neighbour.
#[derive(Clone, Debug)]
struct Symbol {
    start: u32,
    end: u32,
    previous: u32,
    next: u32,
}

impl Symbol {
    fn range(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// No neighbour.
const NONE: u32 = u32::MAX;

/// Two neighbours that may be merged. The greatest goes first: the lowest rank, then the leftmost.
#[derive(Debug, PartialEq, Eq)]
struct Pair<R> {
    rank: R,
    left: u32,
    right: u32,
    /// Bytes of both when the pair was found; it is outdated when they differ.
    length: u32,
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
        let too_long =
            |_| Error::TooMany { what: "bytes of text", count: text.len() as u64, limit: NONE.into() };
        u32::try_from(text.len()).map_err(too_long)?;
        let count = text.chars().count();
        self.symbols.clear();
        self.queue.clear();
        // Each pair is found once at the start or after a merge, which finds two and removes a symbol.
        let pairs = count.saturating_mul(3);
        let bytes = count.saturating_mul(size_of::<Symbol>()).saturating_add(pairs * size_of::<Pair<R>>());
        let reserved =
            self.symbols.try_reserve_exact(count).and_then(|()| self.queue.try_reserve_exact(pairs));
        reserved.map_err(|_| Error::OutOfMemory { bytes })?;

        for (index, (start, c)) in (0u32..).zip(text.char_indices()) {
            let (start, end) = (start as u32, (start + c.len_utf8()) as u32);
            let next = if end as usize == text.len() { NONE } else { index + 1 };
            self.symbols.push(Symbol { start, end, previous: index.wrapping_sub(1), next });
        }
        for right in 1..count as u32 {
            self.find_pair(right - 1, right, &rank);
        }
        while let Some(pair) = self.queue.pop() {
            self.merge_pair(&pair, &rank);
        }
        Ok(self.symbols.iter().map(Symbol::range).filter(|range| !range.is_empty()))
    }

    /// Queues two symbols, if they are neighbours and have a rank.
    fn find_pair(&mut self, left: u32, right: u32, rank: &impl Fn(Range<usize>, Range<usize>) -> Option<R>) {
        let (Some(a), Some(b)) = (self.symbols.get(left as usize), self.symbols.get(right as usize)) else {
            return;
        };
        if let Some(rank) = rank(a.range(), b.range()) {
            self.queue.push(Pair { rank, left, right, length: b.end - a.start });
        }
    }

    fn merge_pair(&mut self, pair: &Pair<R>, rank: &impl Fn(Range<usize>, Range<usize>) -> Option<R>) {
        let indices = [pair.left as usize, pair.right as usize];
        let Ok([left, right]) = self.symbols.get_disjoint_mut(indices) else { return };
        // Merged symbols leave no gaps: that both are as long as they were means that neither has changed.
        if left.range().is_empty() || right.range().is_empty() || right.end - left.start != pair.length {
            return;
        }
        left.end = right.end;
        right.start = right.end;
        left.next = right.next;
        let (previous, next) = (left.previous, left.next);
        if let Some(next) = self.symbols.get_mut(next as usize) {
            next.previous = pair.left;
        }
        self.find_pair(previous, pair.left, rank);
        self.find_pair(pair.left, next, rank);
    }
}
