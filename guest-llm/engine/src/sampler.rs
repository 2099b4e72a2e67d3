//! Choosing the next token from logits.

use alloc::vec::Vec;
use core::cmp::Ordering;

use crate::budget::Budget;
use crate::{Error, Result, TokenId};

/// How tokens are chosen. The filters apply in the order of llama.cpp: top-k, top-p, temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the most probable token (greedy, the seed is unused).
    pub temperature: f32,
    /// Keeps the most probable tokens only; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Start of the random sequence.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy; the filters are those of llama.cpp should a temperature be set.
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 40, top_p: 0.95, seed: 0 }
    }
}

/// Chooses tokens; holds the state of the random sequence and room for the candidates.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: Random,
    candidates: Vec<(f32, TokenId)>,
}

impl Sampler {
    /// Checks the parameters and allocates for a vocabulary of `token_count`.
    ///
    /// # Errors
    /// [`Error::Parameter`] when the temperature is negative or not finite or top-p is outside (0, 1];
    /// [`Error::OutOfMemory`].
    pub fn new(sampling: &Sampling, token_count: usize) -> Result<Self> {
        if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
            return Err(Error::Parameter { name: "temperature", fault: "not a number of at least 0" });
        }
        if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            return Err(Error::Parameter { name: "top-p", fault: "not above 0 and at most 1" });
        }
        let candidates = if sampling.temperature == 0.0 {
            Vec::new()
        } else {
            Budget::new(usize::MAX).reserve(token_count)?
        };
        Ok(Sampler { sampling: sampling.clone(), random: Random::new(sampling.seed), candidates })
    }

    /// Chooses a token. Equal logits are ordered by id, the lower one first.
    ///
    /// # Errors
    /// [`Error::Logits`] when there is no logit, the greatest is not finite, or any is NaN.
    pub fn sample(&mut self, logits: &[f32]) -> Result<TokenId> {
        let (best, max) = greatest(logits)?;
        if self.sampling.temperature == 0.0 {
            return Ok(best);
        }
        let candidates = &mut self.candidates;
        candidates.clear();
        let capacity = candidates.capacity();
        candidates.extend(logits.iter().copied().zip(0..).take(capacity));
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
        Ok(chosen.or(candidates.last()).map_or(best, |(_, id)| *id))
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

    fn sampler(temperature: f32, top_k: usize, top_p: f32, seed: u64) -> Sampler {
        Sampler::new(&Sampling { temperature, top_k, top_p, seed }, 4).unwrap()
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
        let seen = |mut s: Sampler| {
            let mut seen = [false; 4];
            (0..500).for_each(|_| seen[s.sample(&logits).unwrap() as usize] = true);
            seen
        };
        assert_eq!(seen(sampler(1.0, 1, 1.0, 7)), [false, false, true, false]);
        assert_eq!(seen(sampler(1.0, 2, 1.0, 7)), [false, true, true, false]);
        assert_eq!(seen(sampler(1.0, 3, 1.0, 7)), [true, true, true, false], "ties: lower id first");
        assert_eq!(seen(sampler(1.0, 0, 0.5, 7)), [false, false, true, false]);
        assert_eq!(seen(sampler(1.0, 0, 0.51, 7)), [false, true, true, false]);
        assert_eq!(seen(sampler(1.0, 0, 1.0, 7)), [true; 4]);
        assert_eq!(seen(sampler(0.01, 0, 1.0, 7)), [false, false, true, false]);
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
        let bad = |temperature, top_p| {
            let sampling = Sampling { temperature, top_p, ..Sampling::default() };
            matches!(Sampler::new(&sampling, 4), Err(Error::Parameter { .. }))
        };
        assert!(bad(-1.0, 1.0) && bad(f32::NAN, 1.0) && bad(f32::INFINITY, 1.0));
        assert!(bad(1.0, 0.0) && bad(1.0, 1.1) && bad(1.0, f32::NAN));
    }
}
