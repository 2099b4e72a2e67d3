//! Parity with llama.cpp: the same models and texts, and what it made of them (`tests/models/parity`, whose README
//! describes the files).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use flexserve_engine::gguf::Gguf;
use flexserve_engine::{Flow, KvFormat, Limits, Model, Session, SessionConfig, Tokenizer};

use crate::random::{self, Scaling, Spec};

/// How far results may lie from llama.cpp's. Logits of these models have a standard deviation of about 3.3.
#[derive(Clone, Copy, Debug)]
struct Bound {
    /// Root mean square of the difference of all logits at one place.
    rms: f64,
    /// The same with keys and values in half precision, which llama.cpp had in single precision.
    half: f64,
    /// Greatest difference of a logit.
    max: f64,
    /// Where the two best logits of llama.cpp are closer than this, either may be chosen.
    gap: f64,
}

/// Both round activations to eight bits before a product with quantised weights; a rounding that goes the other way, since
/// what came before differs in its last bits, moves all that follows. Before a product with F16 or BF16 weights, llama.cpp
/// rounds activations to that, the engine does not. From one of its settings to another (fused attention, keys and values in half precision,
/// repacked matrices) llama.cpp's own results move by up to 0.08 rms on quantised models, and by 0.007 on F32 ones.
fn bound(format: &str) -> Bound {
    match format {
        "F32" => Bound { rms: 0.001, half: 0.005, max: 0.005, gap: 0.005 },
        "F16" => Bound { rms: 0.01, half: 0.01, max: 0.05, gap: 0.05 },
        "BF16" => Bound { rms: 0.05, half: 0.05, max: 0.2, gap: 0.2 },
        _ => Bound { rms: 0.08, half: 0.15, max: 0.3, gap: 0.3 },
    }
}

/// What came of one fixture.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    name: String,
    /// Tokens or texts compared.
    compared: usize,
    /// Prompts all of whose tokens are the same, of how many.
    exact: (usize, usize),
    /// Tokens that differ.
    divergences: usize,
    /// How far below the best one the worst of them is, for llama.cpp.
    gap: f64,
    rms: f64,
    max: f64,
    /// With keys and values in half precision.
    rms_half: f64,
    /// Why it failed.
    failure: Option<String>,
}

/// Runs all fixtures in `folder` whose name contains `filter`, several at a time.
pub fn run(folder: &str, filter: &str, threads: usize) -> Result<Vec<Verdict>, String> {
    let folder = Path::new(folder);
    let listed = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut names: Vec<String> = listed
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".bin") || (name.starts_with("tokens-") && name.ends_with(".txt")))
        .filter(|name| name.contains(filter))
        .collect();
    names.sort();
    let prompts = numbers(&read_text(&folder.join("prompts.txt"))?)?;
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let path = folder.join(name);
                    let mut verdict = Verdict {
                        name: name.rsplit_once('.').map_or(name.as_str(), |(name, _)| name).into(),
                        ..Verdict::default()
                    };
                    let result = if name.ends_with(".bin") {
                        pair(&path, &prompts, &mut verdict)
                    } else {
                        tokens(&path, &mut verdict)
                    };
                    verdict.failure = result.err();
                    if let Ok(mut verdicts) = verdicts.lock() {
                        verdicts.insert(name.clone(), verdict);
                    }
                }
            });
        }
    });
    Ok(verdicts.into_inner().map_err(|_| "a comparison panicked")?.into_values().collect())
}

fn read_text(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Lists of numbers, one a line.
fn numbers(text: &str) -> Result<Vec<Vec<u32>>, String> {
    text.lines().map(|line| line.split_whitespace().map(parsed).collect()).collect()
}

fn parsed<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("`{word}` is no number"))
}

/// A fixture of a model.
struct Fixture<'f> {
    spec: Spec,
    bytes: usize,
    hash: u64,
    prompts: usize,
    steps: usize,
    /// Prompt by prompt, step by step: the best token, and those within reach of it with their distance.
    best: Vec<(u32, Vec<(u32, f64)>)>,
    /// Prompt, step and all logits.
    whole: Vec<(usize, usize, Vec<f32>)>,
    rest: &'f [u8],
}

impl<'f> Fixture<'f> {
    fn parse(bytes: &'f [u8]) -> Result<Self, String> {
        let end = bytes.windows(2).position(|two| two == b"\n\n").ok_or("no end of the head")?;
        let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "the head is no text")?;
        let mut lines = BTreeMap::new();
        for line in head.lines() {
            let (key, value) = line.split_once(' ').ok_or("a line without a value")?;
            lines.insert(key, value);
        }
        let line = |key: &str| lines.get(key).copied().ok_or(format!("no line `{key}`"));
        if line("parity")? != "1" {
            return Err("the fixture is of another version".into());
        }
        let (size, hash) = line("file")?.split_once(' ').ok_or("the line `file` has no hash")?;
        let counts: Vec<usize> = line("counts")?.split(' ').map(parsed).collect::<Result<_, _>>()?;
        let [prompts, steps, whole] = counts[..] else { return Err("not three counts".into()) };
        let mut fixture = Fixture {
            spec: spec(line("model")?)?,
            bytes: parsed(size)?,
            hash: u64::from_str_radix(hash, 16).map_err(|_| "the hash is no number")?,
            prompts,
            steps,
            best: Vec::new(),
            whole: Vec::new(),
            rest: &bytes[end + 2..],
        };
        for _ in 0..prompts * steps {
            let best = fixture.u16()?.into();
            let [count] = fixture.take()?;
            let other = |_| Ok::<_, String>((fixture.u16()?.into(), from_half(fixture.u16()?)));
            let others = (0..count).map(other).collect::<Result<_, _>>()?;
            fixture.best.push((best, others));
        }
        for _ in 0..whole {
            let (prompt, step) = (fixture.u16()?, fixture.u16()?);
            let logits = (0..fixture.spec.vocabulary).map(|_| fixture.f32()).collect::<Result<_, _>>()?;
            fixture.whole.push((prompt.into(), step.into(), logits));
        }
        if fixture.rest.is_empty() { Ok(fixture) } else { Err("the fixture has more than it says".into()) }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or("the fixture is cut")?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn u16(&mut self) -> Result<u16, String> {
        self.take().map(u16::from_le_bytes)
    }

    fn f32(&mut self) -> Result<f32, String> {
        self.take().map(f32::from_le_bytes)
    }
}

/// From half precision; positive numbers only.
fn from_half(bits: u16) -> f64 {
    let fraction = f64::from(bits & 0x3ff) / 1024.0;
    match i32::from(bits >> 10) {
        0 => fraction * 2f64.powi(-14),
        exponent @ 1..31 => (1.0 + fraction) * 2f64.powi(exponent - 15),
        _ => f64::INFINITY,
    }
}

/// Reads `architecture=llama format=F32 ...`.
fn spec(line: &str) -> Result<Spec, String> {
    let values: BTreeMap<&str, &str> = line.split(' ').filter_map(|word| word.split_once('=')).collect();
    let text = |key: &str| values.get(key).copied().ok_or(format!("the model has no `{key}`"));
    let number = |key: &str| parsed::<usize>(text(key)?);
    let flag = |key: &str| Ok::<_, String>(number(key)? != 0);
    let parts: Vec<&str> = text("scaling")?.split(':').collect();
    let scaling = match parts[..] {
        ["none"] => Scaling::None,
        ["linear", factor] => Scaling::Linear(parsed(factor)?),
        ["yarn", factor, context] => Scaling::Yarn(parsed(factor)?, parsed(context)?),
        _ => return Err("an unknown scaling".into()),
    };
    Ok(Spec {
        architecture: text("architecture")?.into(),
        format: text("format")?.into(),
        layers: number("layers")?,
        width: number("width")?,
        hidden: number("hidden")?,
        heads: number("heads")?,
        kv_heads: number("kv_heads")?,
        head_length: number("head_length")?,
        vocabulary: number("vocabulary")?,
        context: number("context")?,
        seed: parsed(text("seed")?)?,
        tied: flag("tied")?,
        biases: flag("biases")?,
        rope_freqs: flag("rope_freqs")?,
        scaling,
    })
}

/// FNV-1a, 64 bit, over little-endian words of eight bytes.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0xcbf2_9ce4_8422_2325, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x100_0000_01b3)
    })
}

fn pair(path: &Path, prompts: &[Vec<u32>], verdict: &mut Verdict) -> Result<(), String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let fixture = Fixture::parse(&bytes)?;
    if fixture.prompts != prompts.len() {
        return Err("there are other prompts than when the fixture was made".into());
    }
    let mut file = Vec::new();
    random::put(&fixture.spec, &mut file).map_err(|e| e.to_string())?;
    if (file.len(), fnv(&file)) != (fixture.bytes, fixture.hash) {
        return Err("the model is not the one that llama.cpp was asked about".into());
    }
    let model = Model::load(&file, &Limits::default()).map_err(|e| e.to_string())?;
    let bound = bound(&fixture.spec.format);
    let defaults = SessionConfig::for_model(&model);
    let config = SessionConfig { kv: KvFormat::F32, ..defaults.clone() };
    let mut session = Session::new(&model, &config).map_err(|e| e.to_string())?;
    let mut failures = Vec::new();
    let mut greatest = Difference::default();
    for (index, prompt) in prompts.iter().enumerate() {
        start(&mut session, prompt)?;
        let mut is_exact = true;
        for step in 0..=fixture.steps {
            if let Some((.., expected)) = fixture.whole.iter().find(|(p, s, _)| (*p, *s) == (index, step)) {
                greatest.add(session.logits(), expected);
            }
            if step == fixture.steps {
                break;
            }
            let Some((best, others)) = fixture.best.get(index * fixture.steps + step) else { break };
            let found = argmax(session.logits());
            verdict.compared += 1;
            if found != *best {
                is_exact = false;
                verdict.divergences += 1;
                let gap =
                    others.iter().find(|(token, _)| *token == found).map_or(f64::INFINITY, |other| other.1);
                verdict.gap = verdict.gap.max(gap);
                if gap >= bound.gap {
                    failures.push(format!(
                        "prompt {index}, token {step}: {found} instead of {best}, {gap:.4} below it"
                    ));
                }
            }
            // Even after a difference llama.cpp's token goes on, so that every later one is compared, too.
            session.decode(*best).map_err(|e| e.to_string())?;
        }
        verdict.exact.0 += usize::from(is_exact);
        verdict.exact.1 += 1;
    }
    (verdict.rms, verdict.max) = (greatest.rms, greatest.max);
    let mut half = Difference::default();
    let mut session =
        Session::new(&model, &SessionConfig { kv: KvFormat::F16, ..defaults }).map_err(|e| e.to_string())?;
    for (index, _, expected) in fixture.whole.iter().filter(|(_, step, _)| *step == 0) {
        start(&mut session, &prompts[*index])?;
        half.add(session.logits(), expected);
    }
    verdict.rms_half = half.rms;
    if fixture.whole.is_empty() {
        failures.push("no logits to compare".into());
    }
    if !is_within(greatest.rms, bound.rms) || !is_within(greatest.max, bound.max) {
        failures.push(format!(
            "logits differ by {:.4} rms, {:.4} at most: {bound:?}",
            greatest.rms, greatest.max
        ));
    }
    if !is_within(half.rms, bound.half) {
        failures.push(format!("with keys and values in half precision logits differ by {:.4} rms", half.rms));
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

/// Whether a difference is no greater than `bound`; NaN is not.
fn is_within(difference: f64, bound: f64) -> bool {
    difference <= bound
}

fn start(session: &mut Session<'_>, prompt: &[u32]) -> Result<(), String> {
    session.reset();
    session.prefill(prompt, &mut |_, _| Flow::Continue).map_err(|e| e.to_string())?;
    Ok(())
}

fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best as u32
}

/// The greatest differences so far.
#[derive(Default)]
struct Difference {
    rms: f64,
    max: f64,
}

impl Difference {
    fn add(&mut self, logits: &[f32], expected: &[f32]) {
        if logits.len() != expected.len() {
            self.max = f64::INFINITY;
            return;
        }
        let mut squares = 0.0;
        for (logit, expected) in logits.iter().zip(expected) {
            let difference = f64::from(*logit) - f64::from(*expected);
            squares += difference * difference;
            // Not max(), which ignores NaN.
            if !is_within(difference.abs(), self.max) {
                self.max = difference.abs();
            }
        }
        let rms = (squares / logits.len() as f64).sqrt();
        if !is_within(rms, self.rms) {
            self.rms = rms;
        }
    }
}

/// Compares the tokens of texts.
fn tokens(path: &Path, verdict: &mut Verdict) -> Result<(), String> {
    let bytes = std::fs::read(path.with_extension("gguf")).map_err(|e| e.to_string())?;
    let limits = Limits::default();
    let gguf = Gguf::parse(&bytes, &limits).map_err(|e| e.to_string())?;
    let tokenizer = Tokenizer::load(&gguf, &limits).map_err(|e| e.to_string())?;
    let mut failures = Vec::new();
    for line in read_text(path)?.lines() {
        let mut words = line.split(' ');
        let modes: &[bool] = match words.next() {
            Some("any") => &[false, true],
            Some("plain") => &[false],
            Some("parsed") => &[true],
            _ => return Err(format!("`{line}` is neither any, plain nor parsed")),
        };
        let text = unhex(words.next().unwrap_or_default()).ok_or(format!("`{line}` has no text"))?;
        let expected: Vec<u32> = words.map(parsed).collect::<Result<_, _>>()?;
        for special in modes {
            verdict.compared += 1;
            let found = tokenizer.encode(&text, false, *special).map_err(|e| e.to_string())?;
            if found != expected {
                failures
                    .push(format!("{text:?} (special tokens {special}): {found:?} instead of {expected:?}"));
            }
        }
    }
    verdict.exact = (verdict.compared - failures.len(), verdict.compared);
    match failures.len() {
        0 if verdict.compared > 0 => Ok(()),
        count => Err(format!("{count} texts differ, among them {}", failures.first().map_or("", |f| f))),
    }
}

fn unhex(text: &str) -> Option<String> {
    let digits = if text == "-" { "" } else { text };
    let bytes: Option<Vec<u8>> = (0..digits.len() / 2)
        .map(|index| u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok())
        .collect();
    String::from_utf8(bytes?).ok().filter(|_| digits.len().is_multiple_of(2))
}

/// Whether all is well.
pub fn passed(verdicts: &[Verdict]) -> bool {
    !verdicts.is_empty() && verdicts.iter().all(|verdict| verdict.failure.is_none())
}

/// A table for people.
pub fn table(verdicts: &[Verdict]) -> String {
    let mut text = format!(
        "{:<18} {:>8} {:>9} {:>11} {:>8} {:>9} {:>9} {:>9}  verdict\n",
        "fixture", "compared", "exact", "divergences", "gap", "rms", "max", "rms kv16"
    );
    for v in verdicts {
        let exact = format!("{}/{}", v.exact.0, v.exact.1);
        let state = if v.failure.is_none() { "passed" } else { "FAILED" };
        let _ = if v.name.starts_with("tokens-") {
            writeln!(text, "{:<18} {:>8} {exact:>9} {:>50}  {state}", v.name, v.compared, "")
        } else {
            writeln!(
                text,
                "{:<18} {:>8} {exact:>9} {:>11} {:>8.4} {:>9.5} {:>9.5} {:>9.5}  {state}",
                v.name, v.compared, v.divergences, v.gap, v.rms, v.max, v.rms_half
            )
        };
    }
    for verdict in verdicts {
        if let Some(failure) = &verdict.failure {
            let _ = writeln!(text, "{}: {failure}", verdict.name);
        }
    }
    text
}

/// One JSON object.
pub fn json(verdicts: &[Verdict]) -> String {
    let pairs: Vec<String> = verdicts
        .iter()
        .map(|v| {
            let number = |value: f64| if value.is_finite() { value.to_string() } else { "null".into() };
            format!(
                "{{\"name\":{},\"compared\":{},\"exact\":{},\"of\":{},\"divergences\":{},\"gap\":{},\"rms\":{},\"max\":{},\
                 \"rms_kv_f16\":{},\"ok\":{},\"failure\":{}}}",
                quoted(&v.name),
                v.compared,
                v.exact.0,
                v.exact.1,
                v.divergences,
                number(v.gap),
                number(v.rms),
                number(v.max),
                number(v.rms_half),
                v.failure.is_none(),
                v.failure.as_deref().map_or("null".into(), quoted)
            )
        })
        .collect();
    format!("{{\"schema\":1,\"ok\":{},\"fixtures\":[{}]}}", passed(verdicts), pairs.join(","))
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixtures() -> String {
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/models/parity").into()
    }

    #[test]
    fn a_fixture_that_says_otherwise_fails() {
        let folder = std::env::temp_dir().join(format!("flexserve-parity-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let copy = |name: &str| std::fs::read(format!("{}/{name}", fixtures())).unwrap();
        std::fs::write(folder.join("prompts.txt"), copy("prompts.txt")).unwrap();
        let whole = copy("llama-F32.bin");
        let data = whole.windows(2).position(|two| two == b"\n\n").unwrap() + 2;
        let verdict = |bytes: &[u8]| {
            std::fs::write(folder.join("x.bin"), bytes).unwrap();
            run(folder.to_str().unwrap(), "", 1).unwrap().remove(0)
        };
        let right = verdict(&whole);
        assert!(right.failure.is_none() && right.compared == 3200, "{right:?}");
        let change = |at: usize, by: u8| {
            let mut bytes = whole.clone();
            bytes[at] ^= by;
            verdict(&bytes).failure.unwrap_or_default()
        };
        assert!(change(data, 1).contains("token 0"), "another token");
        assert!(change(whole.len() - 1, 0x80).contains("logits differ"), "another sign of a logit");
        let seed = whole.windows(6).position(|bytes| bytes == b"seed=1").unwrap();
        assert!(change(seed + 5, 3).contains("is not the one"), "another model");
        assert!(verdict(&whole[..whole.len() - 1]).failure.unwrap().contains("cut"));
        assert!(verdict(&[&whole[..], b"x"].concat()).failure.unwrap().contains("more than it says"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn differences_are_the_greatest_and_nan_is_one() {
        let mut difference = Difference::default();
        difference.add(&[1.0, 2.0], &[1.0, 2.5]);
        difference.add(&[1.0, 2.0], &[1.0, 2.0]);
        assert_eq!((difference.rms, difference.max), (0.125f64.sqrt(), 0.5));
        difference.add(&[f32::NAN], &[1.0]);
        assert!(difference.rms.is_nan() && difference.max.is_nan());
    }

    #[test]
    fn strings_are_quoted_and_hexadecimal_is_read() {
        assert_eq!(quoted("a\"\\\n"), "\"a\\\"\\\\\\u000a\"");
        assert_eq!(
            [unhex("-"), unhex("c3a9"), unhex("c3"), unhex("6"), unhex("zz")],
            [Some("".into()), Some("é".into()), None, None, None]
        );
    }
}
