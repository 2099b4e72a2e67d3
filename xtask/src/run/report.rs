//! The object that `run --json` prints; its keys are stable.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::failure::Failure;

/// What failed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReportError {
    /// Exit code.
    pub code: u8,
    /// One line.
    pub message: String,
}

/// The report of one run. A value that was not reached is null. Times are emulated.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Version of this object: 1.
    pub schema: u32,
    /// Whether the prompt was answered.
    pub ok: bool,
    /// Why not.
    pub error: Option<ReportError>,
    /// The model's text, verbatim.
    pub answer: Option<String>,
    /// `el2` or `s-el2`.
    pub deployment: String,
    /// `own` or `tf-a`.
    pub firmware: String,
    /// CPU model.
    pub cpu: String,
    /// Model file name.
    pub model: String,
    /// Start of the machine to the host's `/init`, in milliseconds.
    pub boot_ms: Option<u64>,
    /// Loading of partition and model, in milliseconds.
    pub load_ms: Option<u64>,
    /// Request to first token, loading included, in milliseconds.
    pub ttft_ms: Option<u64>,
    /// Tokens of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Tokens generated.
    pub tokens: Option<u64>,
    /// Prompt tokens per second.
    pub prefill_tokens_per_s: Option<f64>,
    /// Generated tokens per second.
    pub tokens_per_s: Option<f64>,
    /// Pages that the host gave to partitions.
    pub pages_given: Option<u64>,
    /// Pages that came back.
    pub pages_recalled: Option<u64>,
    /// Bytes of model and image that were loaded.
    pub bytes_loaded: Option<u64>,
    /// Entries into partitions.
    pub world_switches: Option<u64>,
    /// Host accesses to memory that is not its own, refused.
    pub blocked_accesses: Option<u64>,
    /// Jobs of the NPU.
    pub npu_jobs: Option<u64>,
    /// The partition's measurement, in hexadecimal.
    pub measurement: Option<String>,
}

impl Report {
    /// Takes the counters that the host reported.
    pub fn take_counters(&mut self, counters: &Map<String, Value>) {
        let number = |key: &str| counters.get(key).and_then(Value::as_u64);
        // Durations may come with a fraction.
        let rounded = |key: &str| {
            counters.get(key).and_then(Value::as_f64).filter(|v| *v >= 0.0).map(|v| v.round() as u64)
        };
        let real = |key: &str| counters.get(key).and_then(Value::as_f64).filter(|value| value.is_finite());
        self.load_ms = rounded("load_ms");
        self.ttft_ms = rounded("ttft_ms");
        self.prompt_tokens = number("prompt_tokens");
        self.tokens = number("tokens");
        self.prefill_tokens_per_s = real("prefill_tokens_per_s");
        self.tokens_per_s = real("tokens_per_s");
        self.pages_given = number("pages_given");
        self.pages_recalled = number("pages_recalled");
        self.bytes_loaded = number("bytes_loaded");
        self.world_switches = number("world_switches");
        self.blocked_accesses = number("blocked_accesses");
        self.npu_jobs = number("npu_jobs").or(Some(0));
        self.measurement = counters.get("measurement").and_then(Value::as_str).map(str::to_owned);
    }

    /// Records a failure.
    pub fn fail(&mut self, failure: &Failure) {
        self.ok = false;
        self.error = Some(ReportError { code: failure.code as u8, message: failure.to_string() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Code;
    use serde_json::json;

    #[test]
    fn keys_and_their_order_are_stable() {
        let text = serde_json::to_string(&Report { schema: 1, ..Report::default() }).unwrap();
        let keys = [
            "schema",
            "ok",
            "error",
            "answer",
            "deployment",
            "firmware",
            "cpu",
            "model",
            "boot_ms",
            "load_ms",
            "ttft_ms",
            "prompt_tokens",
            "tokens",
            "prefill_tokens_per_s",
            "tokens_per_s",
            "pages_given",
            "pages_recalled",
            "bytes_loaded",
            "world_switches",
            "blocked_accesses",
            "npu_jobs",
            "measurement",
        ];
        let places: Vec<usize> = keys.iter().map(|key| text.find(&format!("\"{key}\":")).unwrap()).collect();
        assert!(places.is_sorted());
        assert_eq!(text.matches("\":").count(), keys.len(), "no further keys");
    }

    #[test]
    fn counters_of_the_wrong_type_are_null() {
        let mut report = Report::default();
        let counters = json!({"load_ms": 12.6, "tokens": "many", "pages_given": -1, "tokens_per_s": 1.5, "measurement": 5});
        report.take_counters(counters.as_object().unwrap());
        assert_eq!(report.load_ms, Some(13));
        assert_eq!((report.tokens, report.pages_given, report.tokens_per_s), (None, None, Some(1.5)));
        assert_eq!(report.measurement, None);
    }

    #[test]
    fn a_failure_is_recorded_with_its_code() {
        let mut report = Report { ok: true, ..Report::default() };
        report.fail(&Failure::of(&Failure::new(Code::HostMemory, "no pages", "the host", "add --mem")));
        assert!(!report.ok);
        assert_eq!(report.error.unwrap().code, 6);
    }
}
