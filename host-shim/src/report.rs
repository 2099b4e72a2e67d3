//! What a run reports.

use serde::Serialize;

use crate::vmm::Answer;

/// Figures of one run. Times are of the host's clock, or of the partition's where it says so; under emulation they are
/// emulated times.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The model's text, verbatim; of a session: nothing.
    pub answer: String,
    /// What the model thought before it answered, verbatim; of a session: nothing.
    pub thoughts: String,
    /// Why it ended: `end`, `length`, `stop` (a stop string) or `cancelled`.
    pub stop: &'static str,
    /// Requests that were answered.
    pub requests: u64,
    /// Tokens of the prompts.
    pub prompt_tokens: u64,
    /// Of these, those that a request before had in common, so that they were not computed again.
    pub reused_tokens: u64,
    /// Tokens of the answers.
    pub tokens: u64,
    /// Milliseconds of the prompt phase (partition).
    pub prefill_ms: f64,
    /// Milliseconds of the answer phase (partition).
    pub decode_ms: f64,
    /// Prompt tokens per second, of those that were computed.
    pub prefill_tokens_per_s: f64,
    /// Answer tokens per second.
    pub tokens_per_s: f64,
    /// Milliseconds from the request to a loaded model.
    pub load_ms: f64,
    /// Milliseconds from the request to the first token, loading included; in a session, of the first request.
    pub ttft_ms: f64,
    /// Pages given to the partition (hypervisor).
    pub pages_given: u64,
    /// Pages that came back, read after it was destroyed (hypervisor).
    pub pages_recalled: u64,
    /// Bytes of image and model that were loaded and measured.
    pub bytes_loaded: u64,
    /// Entries into the partition (hypervisor).
    pub world_switches: u64,
    /// Accesses of the host to memory that is not its own, refused during the run (hypervisor).
    pub blocked_accesses: u64,
    /// Jobs that the NPU ended during the run (hypervisor).
    pub npu_jobs: u64,
    /// SHA-384 of manifest, image and model, in hexadecimal (hypervisor).
    pub measurement: String,
}

impl Report {
    /// Adds the figures of an answer.
    pub fn add(&mut self, answer: &Answer) {
        if self.requests == 0 {
            self.ttft_ms = self.load_ms + answer.first_ms;
        }
        self.requests += 1;
        self.prompt_tokens += answer.prompt_tokens;
        self.reused_tokens += answer.reused_tokens;
        self.tokens += answer.tokens;
        self.prefill_ms += answer.prefill_ms;
        self.decode_ms += answer.decode_ms;
        self.prefill_tokens_per_s =
            rate(self.prompt_tokens.saturating_sub(self.reused_tokens), self.prefill_ms);
        self.tokens_per_s = rate(self.tokens, self.decode_ms);
    }
}

/// Tokens per second; 0 when there was no time.
pub fn rate(tokens: u64, milliseconds: f64) -> f64 {
    if milliseconds > 0.0 { tokens as f64 * 1000.0 / milliseconds } else { 0.0 }
}

/// Milliseconds of ticks; 0 without a clock.
pub fn milliseconds(ticks: u64, ticks_per_second: u64) -> f64 {
    if ticks_per_second > 0 { ticks as f64 * 1000.0 / ticks_per_second as f64 } else { 0.0 }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_and_no_clock_give_no_infinity() {
        assert_eq!((rate(3, 0.0), rate(3, 1500.0)), (0.0, 2.0));
        assert_eq!((milliseconds(5, 0), milliseconds(5, 1000)), (0.0, 5.0));
        assert_eq!(hex(&[0, 0xAB]), "00ab");
    }
}
