//! The channel to the outside, over the console: verdicts, and requests that only the outside can fulfil.
//!
//! A record is byte 0x1e, one JSON object, line feed. An answer is one line of JSON on standard input.

use std::io::{self, BufRead, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// First byte of a record.
const RECORD_SEPARATOR: u8 = 0x1E;

/// Where the job lies.
const JOB_PATH: &str = "/etc/flexserve/job.json";

fn emit(record: &Value) -> Result<()> {
    let mut line = vec![RECORD_SEPARATOR];
    serde_json::to_writer(&mut line, record)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    // In one piece, so that the kernel's log does not come in between more than it must.
    out.write_all(&line).and_then(|()| out.flush()).context("the console is gone")
}

/// Reports a test's verdict.
pub fn verdict(name: &str, ok: bool, detail: &str) -> Result<()> {
    emit(&json!({"event": "test", "name": name, "ok": ok, "detail": detail}))
}

/// Asks the outside; `request` has `ask` and its arguments.
pub fn ask(mut request: Value) -> Result<Value> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    request["event"] = "ask".into();
    request["id"] = id.into();
    emit(&request)?;
    loop {
        let mut line = String::new();
        if io::stdin().lock().read_line(&mut line).context("the console is gone")? == 0 {
            bail!("the console is gone");
        }
        let Ok(mut answer) = serde_json::from_str::<Value>(&line) else { continue };
        if answer["id"] != id {
            continue;
        }
        if answer["ok"] != true {
            bail!("the outside refuses: {}", answer["error"]);
        }
        return Ok(answer["answer"].take());
    }
}

/// The tests that are wanted.
pub fn wanted_tests() -> Result<Vec<String>> {
    let job: Value = serde_json::from_slice(&std::fs::read(JOB_PATH).context(JOB_PATH)?)?;
    serde_json::from_value(job["tests"].clone()).context("the job names no tests")
}

/// Lower-case hexadecimal.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
