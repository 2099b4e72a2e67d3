//! Files that must be refused, with the error that names what is wrong.

mod support;

use flexserve_engine::gguf::Gguf;
use flexserve_engine::{
    Error, Event, Flow, Limits, Model, Request, Sampling, Session, SessionConfig, generate,
};
use support::reference::{Random, Shape};
use support::{F16, File, Numbers, Q8_0, Value, strings};

fn valid() -> File {
    Random::new(&Shape { layers: 1, ..Shape::tiny(&[Q8_0, F16]) }, 1).file
}

fn load(bytes: &[u8]) -> Result<(), Error> {
    Model::load(bytes, &Limits::default()).map(drop)
}

const QUERY: &str = "blk.0.attn_q.weight";

/// Each changes a valid file in one way.
type Change = fn(&mut File);

const CASES: &[(&str, Change)] = &[
    // The container.
    ("not a GGUF file", |f| f.magic = *b"GGML"),
    ("GGUF version 1 is not supported (2 and 3 are)", |f| f.version = 1),
    ("GGUF version 4 is not supported (2 and 3 are)", |f| f.version = 4),
    ("big-endian GGUF files are not supported", |f| f.version = 3u32.swap_bytes()),
    ("18446744073709551615 keys, at most 4096 are allowed", |f| f.key_count = Some(u64::MAX)),
    ("18446744073709551615 tensors, at most 2312 are allowed", |f| f.tensor_count = Some(u64::MAX)),
    ("65537 tensors, at most", |f| f.tensor_count = Some(65537)),
    ("key general.alignment: value 0 is out of range", |f| f.set("general.alignment", Value::U32(0))),
    ("key general.alignment: value 48 is out of range", |f| f.set("general.alignment", Value::U32(48))),
    ("key general.alignment: value 4 is out of range", |f| f.set("general.alignment", Value::U32(4))),
    ("key general.alignment: value has the wrong type", |f| f.set("general.alignment", "32")),
    // Keys.
    ("key general.architecture: missing", |f| f.remove("general.architecture")),
    ("architecture mamba\\x1b[2J is not supported", |f| f.set("general.architecture", "mamba\x1b[2J")),
    ("key general.architecture: not UTF-8", |f| f.set("general.architecture", Value::Str(vec![0xff]))),
    ("key llama.block_count: occurs twice", |f| f.keys.push((b"llama.block_count".to_vec(), Value::U32(1)))),
    ("key \\xff: not UTF-8", |f| f.keys.push((vec![0xff], Value::U32(1)))),
    ("key odd: value type 13 is not defined", |f| f.set("odd", Value::Raw(13, vec![0; 8]))),
    ("key odd: value 2 is out of range", |f| f.set("odd", Value::Bool(2))),
    ("key odd: value type 77 is not defined", |f| f.set("odd", array(77, 0, &[]))),
    ("key odd: nested arrays are not supported", |f| f.set("odd", array(9, 1, &[0; 32]))),
    ("file ends inside a metadata array at byte", |f| f.set("odd", array(4, u64::MAX / 2, &[]))),
    ("file ends inside a metadata array at byte", |f| f.set("odd", array(8, u64::MAX, &[]))),
    ("file ends inside a metadata value at byte", |f| {
        f.set("odd", Value::Raw(8, (u64::MAX - 7).to_le_bytes().into()));
    }),
    ("18446744073709551615 bytes in a name, at most 65535 are allowed", |f| {
        f.set("odd", Value::Raw(4, [&[0; 4][..], &[0xff; 8]].concat()));
        f.key_count = Some(f.keys.len() as u64 + 1);
    }),
    // Hyperparameters.
    ("key llama.embedding_length: missing", |f| f.remove("llama.embedding_length")),
    ("key llama.embedding_length: value has the wrong type", |f| f.set("llama.embedding_length", "64")),
    ("key llama.embedding_length: value has the wrong type", |f| {
        f.set("llama.embedding_length", Value::Raw(5, (-64i32).to_le_bytes().into()));
    }),
    ("key llama.embedding_length: value 0 is out of range", |f| {
        f.set("llama.embedding_length", Value::U32(0))
    }),
    ("key llama.embedding_length: value 4294967295 is out of range", |f| {
        f.set("llama.embedding_length", Value::U32(u32::MAX));
    }),
    ("key llama.block_count: value 1000000 is out of range", |f| {
        f.set("llama.block_count", Value::U32(1_000_000));
    }),
    ("tensor blk.1.attn_norm.weight: missing", |f| f.set("llama.block_count", Value::U32(4096))),
    ("key llama.context_length: value 18446744073709551615 is out of range", |f| {
        f.set("llama.context_length", Value::Raw(10, vec![0xff; 8]));
    }),
    ("key llama.attention.head_count_kv: value 3 is out of range", |f| {
        f.set("llama.attention.head_count_kv", Value::U32(3));
    }),
    ("key llama.attention.head_count_kv: value has the wrong type", |f| {
        f.set("llama.attention.head_count_kv", Value::I32s(vec![2, 2]));
    }),
    ("key llama.attention.head_count: value 5 is out of range", |f| {
        f.set("llama.attention.head_count", Value::U32(5));
        f.set("llama.attention.head_count_kv", Value::U32(5));
        f.remove("llama.attention.key_length");
    }),
    ("key llama.rope.dimension_count: value 15 is out of range", |f| {
        f.set("llama.rope.dimension_count", Value::U32(15));
    }),
    ("key llama.rope.dimension_count: value 18 is out of range", |f| {
        f.set("llama.rope.dimension_count", Value::U32(18));
    }),
    ("key llama.rope.freq_base: value is not a usable number", |f| {
        f.set("llama.rope.freq_base", Value::F32(f32::NAN));
    }),
    ("RoPE scaling longrope is not supported", |f| f.set("llama.rope.scaling.type", "longrope")),
    ("key llama.rope.scaling.factor: missing", |f| f.set("llama.rope.scaling.type", "yarn")),
    ("key llama.expert_count: value 8 is out of range", |f| f.set("llama.expert_count", Value::U32(8))),
    ("key llama.rope.scaling.factor: missing", |f| f.set("llama.rope.scaling.type", "linear")),
    ("key llama.attention.layer_norm_rms_epsilon: value is not a usable number", |f| {
        f.set("llama.attention.layer_norm_rms_epsilon", Value::F32(-1.0));
    }),
    // Tensors.
    ("tensor blk.0.attn_q.weight: missing", |f| f.tensors.retain(|t| t.name != QUERY.as_bytes())),
    ("tensor blk.0.attn_q.weight: occurs twice", |f| {
        let mut twin = f.tensor(QUERY).clone();
        twin.offset = None;
        f.tensors.push(twin);
    }),
    ("tensor blk.0.attn_q_norm.weight: not part of this architecture", |f| {
        let mut norm = f.tensor("output_norm.weight").clone();
        norm.name = b"blk.0.attn_q_norm.weight".to_vec();
        f.tensors.push(norm);
    }),
    ("tensor blk.0.attn_q.weight: type 99 is not supported", |f| f.tensor(QUERY).ty = 99),
    ("tensor blk.0.attn_q.weight: type Q2_K is not supported", |f| f.tensor(QUERY).ty = 10),
    ("tensor blk.0.attn_q.weight: type IQ4_XS is not supported", |f| f.tensor(QUERY).ty = 23),
    ("tensor blk.0.attn_q.weight: 0 dimensions instead of 1 to 4", |f| f.tensor(QUERY).dimensions.clear()),
    ("tensor blk.0.attn_q.weight: 5 dimensions instead of 1 to 4", |f| {
        f.tensor(QUERY).dimensions = vec![1; 5]
    }),
    ("tensor blk.0.attn_q.weight: dimensions are zero or too large", |f| f.tensor(QUERY).dimensions[1] = 0),
    ("tensor blk.0.attn_q.weight: dimensions are zero or too large", |f| {
        f.tensor(QUERY).dimensions = vec![32, u64::MAX, u64::MAX];
    }),
    ("tensor blk.0.attn_q.weight: dimensions are zero or too large", |f| {
        f.tensor(QUERY).dimensions = vec![1 << 60, 1 << 4];
    }),
    ("tensor blk.0.attn_q.weight: 9223372036854775808 bytes at offset 18688 reach past the end", |f| {
        f.tensor(QUERY).ty = F16;
        f.tensor(QUERY).dimensions = vec![1 << 60, 1 << 2];
    }),
    ("tensor token_embd.weight: row of 63 elements is not a multiple of the block of 32", |f| {
        f.tensor("token_embd.weight").dimensions[0] = 63;
    }),
    ("tensor blk.0.attn_q.weight: shape 64x32 instead of 64x64", |f| f.tensor(QUERY).dimensions[1] = 32),
    ("tensor token_embd.weight: shape 64x270 instead of 64x271", |f| {
        f.tensor("token_embd.weight").dimensions[1] = 270;
    }),
    ("tensor output_norm.weight: not F32, as vectors must be", |f| {
        let norm = f.tensor("output_norm.weight");
        norm.ty = F16;
        norm.data.truncate(128);
    }),
    ("tensor blk.0.attn_q.weight: offset 33 is not aligned", |f| f.tensor(QUERY).offset = Some(33)),
    ("tensor blk.0.attn_q.weight: 8192 bytes at offset 9223372036854775808 reach past the end", |f| {
        f.tensor(QUERY).offset = Some(1 << 63);
    }),
    ("tensor blk.0.attn_q.weight: 8192 bytes at offset 18446744073709551584 reach past the end", |f| {
        f.tensor(QUERY).offset = Some(u64::MAX - 31);
    }),
    ("overlaps another tensor at offset 32", |f| f.tensor(QUERY).offset = Some(32)),
    ("overlaps another tensor at offset 0", |f| f.tensor(QUERY).offset = Some(0)),
    ("tensor : bad name", |f| f.tensor(QUERY).name.clear()),
    ("tensor \\xff: bad name", |f| f.tensor(QUERY).name = vec![0xff]),
    ("bad name", |f| f.tensor(QUERY).name = vec![b'a'; 65]),
    // Vocabulary.
    ("key tokenizer.ggml.model: missing", |f| f.remove("tokenizer.ggml.model")),
    ("tokenizer bert is not supported", |f| f.set("tokenizer.ggml.model", "bert")),
    ("key tokenizer.ggml.tokens: missing", |f| f.remove("tokenizer.ggml.tokens")),
    ("key tokenizer.ggml.tokens: value has the wrong type", |f| {
        f.set("tokenizer.ggml.tokens", Value::I32s(vec![0; 271]));
    }),
    ("key tokenizer.ggml.tokens: 0 elements instead of 1", |f| {
        f.set("tokenizer.ggml.tokens", Value::Strings(vec![]));
    }),
    ("key tokenizer.ggml.scores: 270 elements instead of 271", |f| {
        f.set("tokenizer.ggml.scores", Value::F32s(vec![0.0; 270]));
    }),
    ("key tokenizer.ggml.scores: value has the wrong type", |f| {
        f.set("tokenizer.ggml.scores", Value::I32s(vec![0; 271]));
    }),
    ("token 0: its score is not a number", |f| {
        f.set("tokenizer.ggml.scores", Value::F32s(vec![f32::NAN; 271]))
    }),
    ("key tokenizer.ggml.token_type: 272 elements instead of 271", |f| {
        f.set("tokenizer.ggml.token_type", Value::I32s(vec![1; 272]));
    }),
    ("token 0: a byte token not written <0xXX>", |f| {
        f.set("tokenizer.ggml.token_type", Value::I32s(vec![6; 271]));
    }),
    ("token 270: its text occurs twice", |f| replace_token(f, 270, b"ab".to_vec())),
    ("token 270: its text is too long", |f| replace_token(f, 270, vec![b'z'; 70000])),
    ("key tokenizer.ggml.bos_token_id: value 271 is out of range", |f| {
        f.set("tokenizer.ggml.bos_token_id", Value::U32(271));
    }),
    ("key flexserve.request.prefix: not UTF-8", |f| {
        f.set("flexserve.request.prefix", Value::Str(vec![0xc3]));
    }),
    ("key tokenizer.ggml.pre: missing", |f| f.set("tokenizer.ggml.model", "gpt2")),
    ("pre-tokenizer other is not supported", |f| {
        f.set("tokenizer.ggml.model", "gpt2");
        f.set("tokenizer.ggml.pre", "other");
    }),
    ("key tokenizer.ggml.merges: missing", |f| {
        f.set("tokenizer.ggml.model", "gpt2");
        f.set("tokenizer.ggml.pre", "gpt-2");
    }),
    ("key tokenizer.ggml.bos_token_id: missing", |f| {
        f.set("tokenizer.ggml.model", "gpt2");
        f.set("tokenizer.ggml.pre", "llama-bpe");
        f.set("tokenizer.ggml.merges", strings(&[]));
    }),
];

fn array(ty: u32, count: u64, bytes: &[u8]) -> Value {
    Value::Raw(9, [&ty.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat())
}

fn replace_token(file: &mut File, id: usize, text: Vec<u8>) {
    let (mut texts, _, _) = support::vocabulary();
    texts[id] = text;
    file.set("tokenizer.ggml.tokens", Value::Strings(texts));
}

#[test]
fn every_malformed_file_is_refused_by_name() {
    assert_eq!(load(&valid().bytes()), Ok(()));
    let mut wrong = Vec::new();
    for (index, (expected, change)) in CASES.iter().enumerate() {
        let mut file = valid();
        change(&mut file);
        let error = load(&file.bytes()).expect_err(expected).to_string();
        if !error.contains(expected) {
            wrong.push(format!("case {index}: {error:?} instead of {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
        let request = Request { prompt: "the é", raw: round % 2 == 0, max_tokens: 2, sampling };
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
