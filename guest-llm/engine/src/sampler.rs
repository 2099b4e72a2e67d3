//! Choosing the next token from logits.

use alloc::vec::Vec;
use core::cmp::Ordering;

use crate::budget::Budget;
use crate::grammar::TokenSet;
use crate::{Error, Result, TokenId};

/// How tokens are chosen. The steps come in the order of llama.cpp: what a grammar forbids is left out, then the repetition
/// penalty, top-k, top-p, min-p, temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the most probable token (greedy, the seed is unused).
    pub temperature: f32,
    /// Keeps the most probable tokens only; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens that are at least this fraction as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Makes tokens that occurred lately less probable, the greedy choice included: their logits are divided by it, or
    /// multiplied with it if they are negative. 1 changes nothing.
    pub repeat_penalty: f32,
    /// How many tokens back, prompt included, `repeat_penalty` looks; 0 turns it off.
    pub repeat_last_n: usize,
    /// Start of the random sequence.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Sampling {
    /// Greedy; the rest is as in llama.cpp should a temperature be set.
    pub const DEFAULT: Sampling = Sampling {
        temperature: 0.0,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.05,
        repeat_penalty: 1.0,
        repeat_last_n: 64,
        seed: 0,
    };
    /// The most that [`Sampling::repeat_last_n`] may be: no context is longer.
    pub const REPEAT_LAST_N_MAX: usize = 1 << 20;

    /// Checks every parameter.
    ///
    /// # Errors
    /// [`Error::Parameter`] naming the first that is out of range.
    pub fn check(&self) -> Result<()> {
        let not_negative = |value: f32| value >= 0.0 && value.is_finite();
        let refuse = |name, fault| Err(Error::Parameter { name, fault });
        if !not_negative(self.temperature) {
            return refuse("temperature", "not a number of at least 0");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top-p", "not above 0 and at most 1");
        }
        if !(self.min_p >= 0.0 && self.min_p <= 1.0) {
            return refuse("min-p", "not from 0 to 1");
        }
        if !(self.repeat_penalty > 0.0 && self.repeat_penalty.is_finite()) {
            return refuse("repeat-penalty", "not a number above 0");
        }
        if self.repeat_last_n > Self::REPEAT_LAST_N_MAX {
            return refuse("repeat-last-n", "larger than any context");
        }
        Ok(())
    }

    /// Tells whether earlier tokens matter.
    fn penalises(&self) -> bool {
        self.repeat_penalty != 1.0 && self.repeat_last_n > 0
    }
}

/// Chooses tokens; holds the state of the random sequence, the tokens to penalise and room for the candidates.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: Random,
    candidates: Vec<(f32, TokenId)>,
    /// Logits after the grammar and the penalty.
    adjusted: Vec<f32>,
    /// The last tokens, in a ring: the next one comes to `recent_next`.
    recent: Vec<TokenId>,
    recent_next: usize,
}

impl Sampler {
    /// Checks the parameters and allocates for a vocabulary of `token_count`.
    ///
    /// # Errors
    /// [`Error::Parameter`] as [`Sampling::check`]; [`Error::OutOfMemory`].
    pub fn new(sampling: &Sampling, token_count: usize) -> Result<Self> {
        sampling.check()?;
        let mut budget = Budget::new(usize::MAX);
        let is_greedy = sampling.temperature == 0.0;
        let recent = if sampling.penalises() { sampling.repeat_last_n } else { 0 };
        Ok(Sampler {
            sampling: sampling.clone(),
            random: Random::new(sampling.seed),
            candidates: budget.reserve(if is_greedy { 0 } else { token_count })?,
            adjusted: budget.reserve(if sampling.penalises() { token_count } else { 0 })?,
            recent: budget.reserve(recent)?,
            recent_next: 0,
        })
    }

    /// Allocates what [`Sampler::sample_from`] needs for a set of tokens, which it does itself otherwise.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn prepare_for_sets(&mut self, token_count: usize) -> Result<()> {
        self.adjusted.clear();
        let bytes = token_count.saturating_mul(size_of::<f32>());
        self.adjusted.try_reserve_exact(token_count).map_err(|_| Error::OutOfMemory { bytes })
    }

    /// Notes that `token` is now part of the text, for the repetition penalty: each token of the prompt, and each that was
    /// chosen.
    pub fn accept(&mut self, token: TokenId) {
        let room = if self.sampling.penalises() { self.sampling.repeat_last_n } else { return };
        if self.recent.len() < room {
            self.recent.push(token);
        } else if let Some(oldest) = self.recent.get_mut(self.recent_next) {
            *oldest = token;
            self.recent_next = (self.recent_next + 1) % room;
        }
    }

    /// Chooses a token. Equal logits are ordered by id, the lower one first.
    ///
    /// # Errors
    /// [`Error::Logits`] when there is no logit, the greatest is not finite, or any is NaN.
    pub fn sample(&mut self, logits: &[f32]) -> Result<TokenId> {
        self.sample_from(logits, None)
    }

    /// Chooses one of the tokens in `allowed`, if there is such a set; otherwise as [`Sampler::sample`].
    ///
    /// # Errors
    /// As [`Sampler::sample`], also when the set is empty; [`Error::OutOfMemory`].
    pub fn sample_from(&mut self, logits: &[f32], allowed: Option<&TokenSet>) -> Result<TokenId> {
        if allowed.is_none() && self.recent.is_empty() {
            let (best, max) = greatest(logits)?;
            return if self.sampling.temperature == 0.0 { Ok(best) } else { self.choose(logits, best, max) };
        }
        // What is forbidden must not hide that the model is broken.
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::Logits);
        }
        self.prepare_for_sets(logits.len())?;
        let mut adjusted = core::mem::take(&mut self.adjusted);
        adjusted.extend_from_slice(logits);
        let penalty = self.sampling.repeat_penalty;
        for token in &self.recent {
            let index = *token as usize;
            // From the logit itself, so that a token that occurred twice is penalised once.
            if let (Some(to), Some(logit)) = (adjusted.get_mut(index), logits.get(index)) {
                *to = if *logit <= 0.0 { logit * penalty } else { logit / penalty };
            }
        }
        if let Some(allowed) = allowed {
            for (logit, token) in adjusted.iter_mut().zip(0..) {
                if !allowed.contains(token) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        let chosen = greatest(&adjusted).and_then(|(best, max)| {
            if self.sampling.temperature == 0.0 { Ok(best) } else { self.choose(&adjusted, best, max) }
        });
        self.adjusted = adjusted;
        chosen
    }

    /// Chooses at random after the filters; `best` is the first of the greatest logits, of value `max`.
    fn choose(&mut self, logits: &[f32], best: TokenId, max: f32) -> Result<TokenId> {
        let candidates = &mut self.candidates;
        candidates.clear();
        let capacity = candidates.capacity();
        let possible = logits.iter().copied().zip(0..).filter(|(logit, _)| *logit != f32::NEG_INFINITY);
        candidates.extend(possible.take(capacity));
        let by_rank =
            |a: &(f32, TokenId), b: &(f32, TokenId)| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1));
        let k = self.sampling.top_k;
        if k != 0 && k < candidates.len() {
            candidates.select_nth_unstable_by(k - 1, by_rank);
            candidates.truncate(k);
        }
        candidates.sort_unstable_by(by_rank);

        if self.sampling.top_p < 1.0 {
            let total: f32 = candidates.iter().map(|(logit, _)| libm::expf(logit - max)).sum();
            let mut sum = 0.0;
            let reached = candidates.iter().position(|(logit, _)| {
                sum += libm::expf(logit - max) / total;
                sum >= self.sampling.top_p
            });
            candidates.truncate(reached.map_or(candidates.len(), |last| last + 1));
        }
        if self.sampling.min_p > 0.0 {
            // The most probable token always stays.
            let least = max + libm::logf(self.sampling.min_p);
            let kept = candidates.iter().skip(1).position(|(logit, _)| *logit < least);
            candidates.truncate(kept.map_or(candidates.len(), |index| index + 1));
        }

        let mut total = 0.0;
        for (logit, _) in candidates.iter_mut() {
            *logit = libm::expf((*logit - max) / self.sampling.temperature);
            total += *logit;
        }
        let mut left = self.random.next_unit() * total;
        let chosen = candidates.iter().find(|(weight, _)| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a rest after the last candidate.
        let likely = || candidates.iter().rev().find(|(weight, _)| *weight > 0.0);
        Ok(chosen.or_else(likely).map_or(best, |(_, id)| *id))
    }
}

/// Returns the first of the greatest logits and its value.
fn greatest(logits: &[f32]) -> Result<(TokenId, f32)> {
    let mut best: Option<(TokenId, f32)> = None;
    for (&logit, id) in logits.iter().zip(0..) {
        if logit.is_nan() {
            return Err(Error::Logits);
        }
        if best.is_none_or(|(_, max)| logit.partial_cmp(&max) == Some(Ordering::Greater)) {
            best = Some((id, logit));
        }
    }
    best.filter(|(_, max)| max.is_finite()).ok_or(Error::Logits)
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), in steps of 2^-24.
    fn next_unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 * (1.0 / (1u64 << 24) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    /// Without the filters that are not named.
    fn plain() -> Sampling {
        Sampling { top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() }
    }

    fn sampler(temperature: f32, top_k: usize, top_p: f32, seed: u64) -> Sampler {
        Sampler::new(&Sampling { temperature, top_k, top_p, seed, ..plain() }, 4).unwrap()
    }

    /// Which of the tokens come in many rounds.
    fn seen(mut s: Sampler, logits: &[f32], allowed: Option<&TokenSet>) -> vec::Vec<bool> {
        let mut seen = vec![false; logits.len()];
        (0..500).for_each(|_| seen[s.sample_from(logits, allowed).unwrap() as usize] = true);
        seen
    }

    #[test]
    fn greedy_takes_the_first_of_the_greatest() {
        assert_eq!(sampler(0.0, 0, 1.0, 1).sample(&[1.0, 3.0, 3.0, 2.0]), Ok(1));
    }

    #[test]
    fn splitmix64_gives_the_published_sequence() {
        let mut random = Random::new(1234567);
        let expected = [6457827717110365317, 3203168211198807973, 9817491932198370423];
        assert_eq!([random.next(), random.next(), random.next()], expected);
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        // softmax(ln 1, ln 2, ln 4, ln 1) = 1/8, 2/8, 4/8, 1/8
        let logits = [0.0, 2f32.ln(), 4f32.ln(), 0.0];
        let mut counts = [0u32; 4];
        let mut s = sampler(1.0, 0, 1.0, 42);
        for _ in 0..8000 {
            counts[s.sample(&logits).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([1000, 2000, 4000, 1000u32]) {
            assert!(count.abs_diff(expected) < 150, "{counts:?}");
        }
    }

    #[test]
    fn the_filters_keep_what_they_say() {
        let logits = [0.0, 2f32.ln(), 4f32.ln(), 0.0];
        let seen = |s: Sampler| seen(s, &logits, None);
        assert_eq!(seen(sampler(1.0, 1, 1.0, 7)), [false, false, true, false]);
        assert_eq!(seen(sampler(1.0, 2, 1.0, 7)), [false, true, true, false]);
        assert_eq!(seen(sampler(1.0, 3, 1.0, 7)), [true, true, true, false], "ties: lower id first");
        assert_eq!(seen(sampler(1.0, 0, 0.5, 7)), [false, false, true, false]);
        assert_eq!(seen(sampler(1.0, 0, 0.51, 7)), [false, true, true, false]);
        let min_p = |min_p, temperature| {
            Sampler::new(&Sampling { min_p, temperature, seed: 7, ..plain() }, 4).unwrap()
        };
        assert_eq!(seen(min_p(1.0, 1.0)), [false, false, true, false]);
        assert_eq!(seen(min_p(0.5, 1.0)), [false, true, true, false]);
        assert_eq!(seen(min_p(0.51, 1.0)), [false, false, true, false]);
        assert_eq!(seen(min_p(0.25, 1.0)), [true; 4]);
        // Before the temperature, which would otherwise flatten the difference.
        assert_eq!(seen(min_p(0.3, 50.0)), [false, true, true, false]);
        assert_eq!(seen(sampler(1.0, 0, 1.0, 7)), [true; 4]);
        assert_eq!(seen(sampler(0.01, 0, 1.0, 7)), [false, false, true, false]);
    }

    #[test]
    fn what_occurred_lately_is_penalised_once() {
        let logits = [4.0, 3.9, -1.0, -1.1];
        let after = |tokens: &[TokenId], repeat_penalty, repeat_last_n| {
            let sampling = Sampling { repeat_penalty, repeat_last_n, ..plain() };
            let mut s = Sampler::new(&sampling, 4).unwrap();
            tokens.iter().for_each(|token| s.accept(*token));
            s.sample(&logits).unwrap()
        };
        assert_eq!(after(&[], 2.0, 64), 0);
        assert_eq!(after(&[0, 0, 0], 1.0, 64), 0, "a penalty of 1 is none");
        assert_eq!(after(&[0], 2.0, 64), 1);
        assert_eq!(after(&[0, 1], 2.0, 64), 0, "4 / 2 and 3.9 / 2");
        assert_eq!(after(&[0, 0, 0, 1], 2.0, 64), 0, "not once for each time");
        assert_eq!(after(&[0, 1], 2.0, 1), 0, "only the last token counts");
        assert_eq!(after(&[1, 0, 3, 3, 3], 2.0, 3), 0, "the window moves on");
        assert_eq!(after(&[1, 0, 3, 3], 2.0, 3), 1);
        assert_eq!(after(&[0], 2.0, 0), 0);
        // A negative logit sinks.
        let sampling = Sampling { repeat_penalty: 1.5, ..plain() };
        let mut s = Sampler::new(&sampling, 4).unwrap();
        s.accept(2);
        assert_eq!(s.sample(&[-9.0, -9.0, -1.0, -1.1]), Ok(3));
        // A token that is none changes nothing.
        s.accept(TokenId::MAX);
        assert_eq!(s.sample(&logits), Ok(0));
    }

    #[test]
    fn only_allowed_tokens_are_chosen() {
        let logits = [0.0, 1.0, 2.0, f32::NEG_INFINITY];
        let mut allowed = TokenSet::new(4).unwrap();
        let greedy = |allowed: &TokenSet| sampler(0.0, 0, 1.0, 1).sample_from(&logits, Some(allowed));
        assert_eq!(greedy(&allowed), Err(Error::Logits));
        allowed.insert(0);
        allowed.insert(1);
        assert_eq!(greedy(&allowed), Ok(1));
        assert_eq!(seen(sampler(1.0, 0, 1.0, 3), &logits, Some(&allowed)), [true, true, false, false]);
        assert_eq!(seen(sampler(1.0, 1, 1.0, 3), &logits, Some(&allowed)), [false, true, false, false]);
        allowed.clear();
        allowed.insert(3);
        assert_eq!(greedy(&allowed), Err(Error::Logits), "the model rules it out");
        let broken = [f32::NAN, 1.0, 1.0, 1.0];
        assert_eq!(sampler(0.0, 0, 1.0, 1).sample_from(&broken, Some(&allowed)), Err(Error::Logits));
    }

    #[test]
    fn the_seed_decides_the_sequence() {
        let run = |seed| {
            let mut s = sampler(1.0, 0, 1.0, seed);
            (0..32).map(|_| s.sample(&[0.1, 0.2, 0.3, 0.4]).unwrap()).collect::<vec::Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn broken_logits_and_parameters_are_refused() {
        for temperature in [0.0, 1.0] {
            let mut s = sampler(temperature, 0, 1.0, 1);
            assert_eq!(s.sample(&[]), Err(Error::Logits));
            assert_eq!(s.sample(&[1.0, f32::NAN]), Err(Error::Logits));
            assert_eq!(s.sample(&[f32::NAN, 1.0]), Err(Error::Logits));
            assert_eq!(s.sample(&[1.0, f32::INFINITY]), Err(Error::Logits));
            assert_eq!(s.sample(&[f32::NEG_INFINITY; 3]), Err(Error::Logits));
            assert_eq!(s.sample(&[f32::NEG_INFINITY, 1.0]), Ok(1));
        }
        let good = Sampling::default();
        assert!(Sampler::new(&good, 4).is_ok());
        let bad = |sampling: Sampling| matches!(Sampler::new(&sampling, 4), Err(Error::Parameter { .. }));
        for value in [-1.0, f32::NAN, f32::INFINITY] {
            assert!(bad(Sampling { temperature: value, ..good.clone() }));
            assert!(bad(Sampling { top_p: value, ..good.clone() }));
            assert!(bad(Sampling { min_p: value, ..good.clone() }));
            assert!(bad(Sampling { repeat_penalty: value, ..good.clone() }));
        }
        assert!(bad(Sampling { top_p: 0.0, ..good.clone() }) && bad(Sampling { top_p: 1.1, ..good.clone() }));
        assert!(bad(Sampling { min_p: 1.1, ..good.clone() }));
        assert!(bad(Sampling { repeat_penalty: 0.0, ..good.clone() }));
        assert!(bad(Sampling { repeat_last_n: usize::MAX, ..good }));
    }
}
