//! What a run prints at its end: where time and pages went, what is protected now and what is not yet.

use std::fmt::Write;
use std::path::Path;

use super::report::Report;

/// What the hypervisor enforces in this version.
const PROTECTED: &[&str] = &[
    "partition memory against the host's CPUs: reads, writes and execution are refused",
    "partition memory against DMA: the SMMU aborts every stream, and devices that bypass it are hidden",
    "what was measured is what runs: contents cannot change after the measurement",
    "pages that come back to the host are zero",
];
/// What it does not yet do.
const NOT_YET: &[&str] = &[
    "prompts and answers: they pass through the host in the clear",
    "model files: the host reads them before it gives them",
    "attestation: the measurement is reported by the host, without evidence",
    "physical attacks and side channels of the microarchitecture are out of scope",
];

/// Prints the summary on standard error.
pub fn print(report: &Report, trusted_log: &Path) {
    eprint!("{}", text(report, trusted_log));
}

fn text(report: &Report, trusted_log: &Path) -> String {
    let number = |value: Option<u64>| value.map_or("?".to_owned(), |value| value.to_string());
    let rate = |value: Option<f64>| value.map_or("?".to_owned(), |value| format!("{value:.1}"));
    let mut text = String::from("\n");
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:<10} {value}");
    };
    line(
        "time",
        format!(
            "boot {} ms, load {} ms, first token {} ms after the request (all emulated)",
            number(report.boot_ms),
            number(report.load_ms),
            number(report.ttft_ms)
        ),
    );
    line(
        "tokens",
        format!(
            "{} in at {}/s, {} out at {}/s (emulated)",
            number(report.prompt_tokens),
            rate(report.prefill_tokens_per_s),
            number(report.tokens),
            rate(report.tokens_per_s)
        ),
    );
    line(
        "pages",
        format!(
            "{} given by the host, {} returned; {} bytes loaded",
            number(report.pages_given),
            number(report.pages_recalled),
            number(report.bytes_loaded)
        ),
    );
    line(
        "worlds",
        format!(
            "{} entries into the partition, {} host accesses blocked, {} NPU jobs",
            number(report.world_switches),
            number(report.blocked_accesses),
            number(report.npu_jobs)
        ),
    );
    line("measured", report.measurement.clone().unwrap_or_else(|| "?".into()));
    line("log", trusted_log.display().to_string());
    for (name, items) in [("protected", PROTECTED), ("not yet", NOT_YET)] {
        for (index, item) in items.iter().enumerate() {
            line(if index == 0 { name } else { "" }, (*item).to_owned());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_called_emulated_and_gaps_are_shown() {
        let report = Report { boot_ms: Some(1234), ..Report::default() };
        let text = text(&report, Path::new("log"));
        let time = text.lines().find(|line| line.contains("boot 1234 ms")).unwrap();
        assert!(time.contains("emulated") && time.contains("load ? ms"));
        assert!(text.contains("not yet"));
    }
}
