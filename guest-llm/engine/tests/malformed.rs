//! Files that must be refused, with the error that names what is wrong.

#[path = "malformed/cases.rs"]
mod cases;
#[allow(dead_code, reason = "the command uses the rest")]
#[path = "../src/bin/flexserve-engine/random.rs"]
mod random;
mod support;

use cases::{ARCHITECTURES, CASES, Change, array};
use flexserve_engine::gguf::Gguf;
use flexserve_engine::{
    Error, Event, Flow, Limits, Model, Request, Sampling, Session, SessionConfig, generate,
};
use support::reference::{Random, Shape};
use support::{F16, File, Numbers, Q8_0, Value};

fn valid() -> File {
    Random::new(&Shape { layers: 1, ..Shape::tiny(&[Q8_0, F16]) }, 1).file
}

fn load(bytes: &[u8]) -> Result<(), Error> {
    Model::load(bytes, &Limits::default()).map(drop)
}

#[test]
fn every_malformed_file_is_refused_by_name() {
    let of = |architecture| {
        let shape = Shape { layers: 1, architecture, ..Shape::tiny(&[Q8_0, F16]) };
        Random::new(&shape, 1).file
    };
    let llama = CASES.iter().map(|(name, expected, change)| ("llama", *name, *expected, *change));
    let mut wrong = Vec::new();
    let mut names = std::collections::BTreeSet::new();
    for (architecture, name, expected, change) in llama.chain(ARCHITECTURES.iter().copied()) {
        assert!(names.insert((architecture, name)), "two files are {architecture}, {name}");
        let mut file = of(architecture);
        assert_eq!(load(&file.bytes()), Ok(()));
        change(&mut file);
        match load(&file.bytes()) {
            Ok(()) => wrong.push(format!("{architecture}, {name}: accepted")),
            Err(error) if error.to_string().contains(expected) => {}
            Err(error) => wrong.push(format!("{architecture}, {name}: {error} instead of {expected}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(names.len() >= 120, "{} files", names.len());
}

/// Where a file is cut, and what the error says, in the order of the file.
#[test]
fn a_file_cut_in_a_section_is_refused_by_its_name() {
    let mut file = valid();
    // So long that the counts in the header stay possible, however short the rest.
    file.set("last", Value::Str(vec![b'x'; 64]));
    let tensors_start = File { tensors: Vec::new(), ..file.clone() }.bytes().len();
    let whole = file.bytes();
    let last = file.tensors.last().unwrap();
    let described = 8 + last.name.len() + 4 + 8 * last.dimensions.len() + 4 + 8;
    let data: usize = file.tensors.iter().map(|t| t.data.len().next_multiple_of(32)).sum();
    let name = whole.windows(last.name.len()).rposition(|bytes| bytes == last.name).unwrap();
    let end = name - 8 + described;
    let key = whole.windows(4).position(|bytes| bytes == b"last").unwrap();
    assert!(key + 4 + 4 + 8 + 64 <= tensors_start && end <= whole.len() - data);
    for (length, expected) in [
        (0, "file ends inside the header at byte 0"),
        (3, "file ends inside the header at byte 0"),
        (7, "file ends inside the header at byte 4"),
        (15, "file ends inside the header at byte 8"),
        (23, "file ends inside the header at byte 16"),
        (24, "keys, at most 0 are allowed"),
        (name - 4, "file ends inside a tensor description at byte"),
        (name + 3, "file ends inside a tensor description at byte"),
        (name + last.name.len() + 2, "file ends inside a tensor description at byte"),
        (name + last.name.len() + 4 + 5, "file ends inside a tensor description at byte"),
        (end - 9, "file ends inside a tensor description at byte"),
        (end - 1, "file ends inside a tensor description at byte"),
        (end, "file ends inside the padding before the tensor data at byte"),
        (whole.len() - data, "reach past the end of the file"),
        (whole.len() - 32, "reach past the end of the file"),
    ] {
        let error = load(&whole[..length]).unwrap_err().to_string();
        assert!(error.contains(expected), "{length} of {} bytes: {error}", whole.len());
    }
    // Within the metadata, with no tensors to be counted against what is left.
    let alone = File { tensors: Vec::new(), ..file }.bytes();
    for (length, expected) in [
        (key - 1, "file ends inside a key at byte"),
        (key + 2, "file ends inside a key at byte"),
        (key + 5, "file ends inside a metadata value at byte"),
        (key + 4 + 4 + 3, "file ends inside a metadata value at byte"),
        (key + 4 + 4 + 8 + 63, "file ends inside a metadata value at byte"),
    ] {
        let mut cut = alone[..length].to_vec();
        // The number of keys is that of those before, and one.
        let error = Gguf::parse(&cut, &Limits::default()).unwrap_err().to_string();
        assert!(error.contains(expected), "{length}: {error}");
        cut.truncate(key - 8);
        cut[16..24].copy_from_slice(&(alone_keys(&alone) - 1).to_le_bytes());
        assert!(Gguf::parse(&cut, &Limits::default()).is_ok(), "what comes before is whole");
    }
}

fn alone_keys(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[16..24].try_into().unwrap())
}

/// Weights of any bytes whatever, NaN and infinite scales among them: numbers or an error, and no harm.
#[test]
fn broken_weights_of_every_format_do_no_harm() {
    for format in
        ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "Q4_K_M"]
    {
        for (index, architecture) in ["llama", "qwen2", "qwen3"].into_iter().enumerate() {
            let spec = random::Spec { architecture: architecture.into(), ..spec(format) };
            let mut file = Vec::new();
            random::put(&spec, &mut file).unwrap();
            let gguf = Gguf::parse(&file, &Limits::default()).unwrap();
            let data: usize = gguf.tensors().iter().map(|tensor| tensor.data.len()).sum();
            let start = file.len() - data;
            let mut broken = 0;
            for (round, pattern) in [0xffu8, 0x7f, 0x7c, 0x80, 0xfc].into_iter().enumerate() {
                let mut file = file.clone();
                let step = 7 + 13 * round + index;
                file[start..].iter_mut().step_by(step).for_each(|byte| *byte = pattern);
                let model = Model::load(&file, &Limits::default()).unwrap();
                let mut session = Session::new(&model, &SessionConfig::for_model(&model)).unwrap();
                session.prefill(&[1, 270, 280, 290, 3], &mut |_, _| Flow::Continue).unwrap();
                session.decode(299).unwrap();
                let mut sampler =
                    flexserve_engine::Sampler::new(&Default::default(), session.logits().len()).unwrap();
                match sampler.sample(session.logits()) {
                    Ok(token) => assert!(token < 300),
                    Err(error) => {
                        assert_eq!(error, Error::Logits);
                        broken += 1;
                    }
                }
            }
            assert!(broken > 0, "{architecture} {format}: nothing was broken");
        }
    }
}

fn spec(format: &str) -> random::Spec {
    random::Spec {
        architecture: String::new(),
        format: format.into(),
        layers: 1,
        width: 256,
        hidden: 256,
        heads: 4,
        kv_heads: 2,
        head_length: 64,
        vocabulary: 300,
        context: 16,
        seed: 1,
        tied: true,
        biases: false,
        rope_freqs: false,
        scaling: random::Scaling::None,
    }
}

#[test]
fn what_the_format_allows_is_accepted() {
    let changes: [Change; 6] = [
        |f| f.version = 2,
        |f| {
            f.alignment = 64;
            f.set("general.alignment", Value::U32(64));
        },
        // Data in another order than descriptions.
        |f| {
            let mut offset = f.tensors.iter().map(|t| t.data.len().next_multiple_of(32) as u64).sum();
            let datas: Vec<_> = f.tensors.iter().map(|t| t.data.clone()).collect();
            for tensor in &mut f.tensors {
                offset -= tensor.data.len().next_multiple_of(32) as u64;
                tensor.offset = Some(offset);
            }
            for (tensor, data) in f.tensors.iter_mut().zip(datas.into_iter().rev()) {
                tensor.data = data;
            }
        },
        |f| f.tensors.reverse(),
        |f| f.set("llama.block_count", Value::Raw(0, vec![1])),
        |f| f.set("unknown.key", array(8, 2, &[0; 16])),
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut file = valid();
        change(&mut file);
        assert_eq!(load(&file.bytes()), Ok(()), "change {index}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = valid().bytes();
    let last = valid().tensors.last().unwrap().data.len();
    assert_eq!(last % 32, 0, "the last byte belongs to a tensor");
    for length in
        (0..bytes.len()).filter(|length| *length < 200 || *length % 23 == 0 || length + 100 > bytes.len())
    {
        assert!(load(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
}

#[test]
fn the_memory_limit_holds_before_anything_is_allocated() {
    let bytes = valid().bytes();
    let model = Model::load(&bytes, &Limits::default()).unwrap();
    let needed = model.memory_bytes();
    let with_limit = |memory_bytes| Model::load(&bytes, &Limits { memory_bytes, ..Limits::default() });
    assert!(with_limit(needed).is_ok());
    for limit in [0, 100, needed / 2, needed - 1] {
        assert!(matches!(with_limit(limit), Err(Error::MemoryLimit { limit: l, .. }) if l == limit));
    }
    let config = SessionConfig::for_model(&model);
    let needed = Session::required_bytes(&model, &config).unwrap();
    let with_limit =
        |memory_limit| Session::new(&model, &SessionConfig { memory_limit, ..config.clone() }).map(drop);
    assert_eq!(with_limit(needed), Ok(()));
    assert_eq!(with_limit(needed - 1), Err(Error::MemoryLimit { bytes: needed, limit: needed - 1 }));
    for limits in [
        Limits { key_count: 5, ..Limits::default() },
        Limits { tensor_count: 5, ..Limits::default() },
        Limits { token_count: 270, ..Limits::default() },
        Limits { special_token_count: 2, ..Limits::default() },
    ] {
        assert!(matches!(Model::load(&bytes, &limits), Err(Error::TooMany { .. })), "{limits:?}");
    }
}

#[test]
fn a_context_as_long_as_a_file_may_ask_for_is_refused_by_size() {
    let mut file = valid();
    file.set("llama.context_length", Value::U32(1 << 24));
    let bytes = file.bytes();
    let model = Model::load(&bytes, &Limits::default()).unwrap();
    let defaults = SessionConfig::for_model(&model);
    assert_eq!(defaults.context, 4096);
    let config = SessionConfig { context: 1 << 24, batch: 1 << 24, memory_limit: 1 << 20, ..defaults };
    assert!(matches!(Session::new(&model, &config), Err(Error::MemoryLimit { .. })));
}

/// Whatever a changed byte makes of a file, it is refused or runs; it does not panic.
#[test]
fn no_changed_byte_of_the_metadata_does_harm() {
    let bytes = valid().bytes();
    let header =
        bytes.len() - valid().tensors.iter().map(|t| t.data.len().next_multiple_of(32)).sum::<usize>();
    let mut numbers = Numbers(11);
    let mut accepted = 0;
    for round in 0..2000 {
        let mut bytes = bytes.clone();
        for _ in 0..1 + round % 3 {
            let position = ((numbers.next() + 1.0) / 2.0 * header as f32) as usize;
            let value = [0, 1, 0x7f, 0x80, 0xff, (numbers.next() * 128.0) as i8 as u8][round % 6];
            bytes[position.min(header - 1)] = value;
        }
        let limits = Limits { memory_bytes: 1 << 20, ..Limits::default() };
        let Ok(model) = Model::load(&bytes, &limits) else {
            // The parser alone must hold, too.
            let _ = Gguf::parse(&bytes, &limits);
            continue;
        };
        accepted += 1;
        let defaults = SessionConfig::for_model(&model);
        let config = SessionConfig { context: 16.min(defaults.context), memory_limit: 1 << 24, ..defaults };
        let Ok(mut session) = Session::new(&model, &config) else { continue };
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        let request = Request { raw: round % 2 == 0, max_tokens: 2, sampling, ..Request::new("the é") };
        let mut text = String::new();
        let _ = generate(&mut session, &request, &mut |event| {
            if let Event::Text(piece) = event {
                text.push_str(piece);
            }
            Flow::Continue
        });
    }
    assert!(accepted > 50, "{accepted} files ran");
}
