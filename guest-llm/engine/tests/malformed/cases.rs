//! The files: a name, what the error must say, and what is changed.

use crate::support::{self, F16, F32, File, Tensor, Value, strings};

const QUERY: &str = "blk.0.attn_q.weight";

/// Changes a valid file in one way.
pub type Change = fn(&mut File);

pub const CASES: &[(&str, &str, Change)] = &[
    // The container.
    ("another magic number", "not a GGUF file", |f| f.magic = *b"GGML"),
    ("the first version", "GGUF version 1 is not supported (2 and 3 are)", |f| f.version = 1),
    ("a version to come", "GGUF version 4 is not supported (2 and 3 are)", |f| f.version = 4),
    ("big-endian", "big-endian GGUF files are not supported", |f| f.version = 3u32.swap_bytes()),
    ("as many keys as can be counted", "18446744073709551615 keys, at most 4096 are allowed", |f| {
        f.key_count = Some(u64::MAX)
    }),
    ("as many tensors as can be counted", "18446744073709551615 tensors, at most 2312 are allowed", |f| {
        f.tensor_count = Some(u64::MAX)
    }),
    ("more tensors than the file can hold", "65537 tensors, at most", |f| f.tensor_count = Some(65537)),
    ("alignment zero", "key general.alignment: value 0 is out of range", |f| {
        f.set("general.alignment", Value::U32(0))
    }),
    ("alignment no power of two", "key general.alignment: value 48 is out of range", |f| {
        f.set("general.alignment", Value::U32(48))
    }),
    ("alignment too small", "key general.alignment: value 4 is out of range", |f| {
        f.set("general.alignment", Value::U32(4))
    }),
    ("alignment of the wrong type", "key general.alignment: value has the wrong type", |f| {
        f.set("general.alignment", "32")
    }),
    // Keys.
    ("no architecture", "key general.architecture: missing", |f| f.remove("general.architecture")),
    (
        "an unknown architecture that would paint a terminal",
        "architecture mamba\\x1b[2J is not supported",
        |f| f.set("general.architecture", "mamba\x1b[2J"),
    ),
    ("an architecture that is no text", "key general.architecture: not UTF-8", |f| {
        f.set("general.architecture", Value::Str(vec![0xff]))
    }),
    ("a key twice", "key llama.block_count: occurs twice", |f| {
        f.keys.push((b"llama.block_count".to_vec(), Value::U32(1)))
    }),
    ("a key that is no text", "key \\xff: not UTF-8", |f| f.keys.push((vec![0xff], Value::U32(1)))),
    ("an undefined type of value", "key odd: value type 13 is not defined", |f| {
        f.set("odd", Value::Raw(13, vec![0; 8]))
    }),
    ("a truth value of two", "key odd: value 2 is out of range", |f| f.set("odd", Value::Bool(2))),
    ("an undefined type of array", "key odd: value type 77 is not defined", |f| {
        f.set("odd", array(77, 0, &[]))
    }),
    ("nested arrays", "key odd: nested arrays are not supported", |f| f.set("odd", array(9, 1, &[0; 32]))),
    ("an array as long as half of memory", "file ends inside a metadata array at byte", |f| {
        f.set("odd", array(4, u64::MAX / 2, &[]))
    }),
    ("an array of as many strings as can be counted", "file ends inside a metadata array at byte", |f| {
        f.set("odd", array(8, u64::MAX, &[]))
    }),
    ("a string as long as memory", "file ends inside a metadata value at byte", |f| {
        f.set("odd", Value::Raw(8, (u64::MAX - 7).to_le_bytes().into()));
    }),
    ("a key as long as memory", "18446744073709551615 bytes in a name, at most 65535 are allowed", |f| {
        f.set("odd", Value::Raw(4, [&[0; 4][..], &[0xff; 8]].concat()));
        f.key_count = Some(f.keys.len() as u64 + 1);
    }),
    // Hyperparameters.
    ("no width", "key llama.embedding_length: missing", |f| f.remove("llama.embedding_length")),
    ("a width that is text", "key llama.embedding_length: value has the wrong type", |f| {
        f.set("llama.embedding_length", "64")
    }),
    ("a negative width", "key llama.embedding_length: value has the wrong type", |f| {
        f.set("llama.embedding_length", Value::Raw(5, (-64i32).to_le_bytes().into()));
    }),
    ("a width of zero", "key llama.embedding_length: value 0 is out of range", |f| {
        f.set("llama.embedding_length", Value::U32(0))
    }),
    ("a width beyond measure", "key llama.embedding_length: value 4294967295 is out of range", |f| {
        f.set("llama.embedding_length", Value::U32(u32::MAX));
    }),
    ("a million layers", "key llama.block_count: value 1000000 is out of range", |f| {
        f.set("llama.block_count", Value::U32(1_000_000));
    }),
    ("more layers than tensors", "tensor blk.1.attn_norm.weight: missing", |f| {
        f.set("llama.block_count", Value::U32(4096))
    }),
    (
        "a context beyond measure",
        "key llama.context_length: value 18446744073709551615 is out of range",
        |f| {
            f.set("llama.context_length", Value::Raw(10, vec![0xff; 8]));
        },
    ),
    (
        "query heads no multiple of key heads",
        "key llama.attention.head_count_kv: value 3 is out of range",
        |f| {
            f.set("llama.attention.head_count_kv", Value::U32(3));
        },
    ),
    ("key heads by layer", "key llama.attention.head_count_kv: value has the wrong type", |f| {
        f.set("llama.attention.head_count_kv", Value::I32s(vec![2, 2]));
    }),
    ("a width that heads do not divide", "key llama.attention.head_count: value 5 is out of range", |f| {
        f.set("llama.attention.head_count", Value::U32(5));
        f.set("llama.attention.head_count_kv", Value::U32(5));
        f.remove("llama.attention.key_length");
    }),
    ("an odd number of rotated elements", "key llama.rope.dimension_count: value 15 is out of range", |f| {
        f.set("llama.rope.dimension_count", Value::U32(15));
    }),
    (
        "more rotated elements than a head has",
        "key llama.rope.dimension_count: value 18 is out of range",
        |f| {
            f.set("llama.rope.dimension_count", Value::U32(18));
        },
    ),
    ("a base that is no number", "key llama.rope.freq_base: value is not a usable number", |f| {
        f.set("llama.rope.freq_base", Value::F32(f32::NAN));
    }),
    ("an unknown scaling", "RoPE scaling longrope is not supported", |f| {
        f.set("llama.rope.scaling.type", "longrope")
    }),
    ("YaRN without a factor", "key llama.rope.scaling.factor: missing", |f| {
        f.set("llama.rope.scaling.type", "yarn")
    }),
    ("a mixture of experts", "key llama.expert_count: value 8 is out of range", |f| {
        f.set("llama.expert_count", Value::U32(8))
    }),
    ("linear scaling without a factor", "key llama.rope.scaling.factor: missing", |f| {
        f.set("llama.rope.scaling.type", "linear")
    }),
    ("a negative epsilon", "key llama.attention.layer_norm_rms_epsilon: value is not a usable number", |f| {
        f.set("llama.attention.layer_norm_rms_epsilon", Value::F32(-1.0));
    }),
    ("an array of nested arrays of nothing", "key odd: nested arrays are not supported", |f| {
        f.set("odd", array(9, 0, &[]))
    }),
    ("an array whose bytes overflow", "file ends inside a metadata array at byte", |f| {
        f.set("odd", array(10, 1 << 61, &[]))
    }),
    ("alignment too large", "key general.alignment: value 2097152 is out of range", |f| {
        f.set("general.alignment", Value::U32(1 << 21));
    }),
    ("alignment negative", "key general.alignment: value has the wrong type", |f| {
        f.set("general.alignment", Value::Raw(5, (-32i32).to_le_bytes().into()));
    }),
    ("an architecture that is a number", "key general.architecture: value has the wrong type", |f| {
        f.set("general.architecture", Value::U32(0));
    }),
    ("a relative of an architecture", "architecture qwen3moe is not supported", |f| {
        f.set("general.architecture", "qwen3moe");
    }),
    ("keys of another architecture", "key qwen2.embedding_length: missing", |f| {
        f.set("general.architecture", "qwen2");
    }),
    ("no heads", "key llama.attention.head_count: value 0 is out of range", |f| {
        f.set("llama.attention.head_count", Value::U32(0));
    }),
    ("no elements in a head", "key llama.attention.key_length: value 0 is out of range", |f| {
        f.set("llama.attention.key_length", Value::U32(0));
    }),
    ("values beyond measure", "key llama.attention.value_length: value 2097152 is out of range", |f| {
        f.set("llama.attention.value_length", Value::U32(1 << 21));
    }),
    ("hidden layers by layer", "key llama.feed_forward_length: value has the wrong type", |f| {
        f.set("llama.feed_forward_length", Value::I32s(vec![96]));
    }),
    ("no epsilon", "key llama.attention.layer_norm_rms_epsilon: missing", |f| {
        f.remove("llama.attention.layer_norm_rms_epsilon");
    }),
    ("scaling by infinity", "key llama.rope.scaling.factor: value is not a usable number", |f| {
        f.set("llama.rope.scaling.type", "linear");
        f.set("llama.rope.scaling.factor", Value::F32(f32::INFINITY));
    }),
    (
        "scaling by zero, by the key's old name",
        "key llama.rope.scale_linear: value is not a usable number",
        |f| {
            f.set("llama.rope.scale_linear", Value::F32(0.0));
        },
    ),
    ("YaRN of no context", "key llama.rope.scaling.original_context_length: value 0 is out of range", |f| {
        f.set("llama.rope.scaling.type", "yarn");
        f.set("llama.rope.scaling.factor", Value::F32(4.0));
        f.set("llama.rope.scaling.original_context_length", Value::U32(0));
    }),
    (
        "YaRN with a factor of attention that is no number",
        "key llama.rope.scaling.attn_factor: value is not",
        |f| {
            f.set("llama.rope.scaling.type", "yarn");
            f.set("llama.rope.scaling.factor", Value::F32(4.0));
            f.set("llama.rope.scaling.attn_factor", Value::F32(f32::NAN));
        },
    ),
    ("experts that are no number", "key llama.expert_count: value has the wrong type", |f| {
        f.set("llama.expert_count", "8")
    }),
    // Tensors.
    ("a tensor missing", "tensor blk.0.attn_q.weight: missing", |f| {
        f.tensors.retain(|t| t.name != QUERY.as_bytes())
    }),
    ("a tensor twice", "tensor blk.0.attn_q.weight: occurs twice", |f| {
        let mut twin = f.tensor(QUERY).clone();
        twin.offset = None;
        f.tensors.push(twin);
    }),
    (
        "a tensor of another architecture",
        "tensor blk.0.attn_q_norm.weight: not part of this architecture",
        |f| {
            let mut norm = f.tensor("output_norm.weight").clone();
            norm.name = b"blk.0.attn_q_norm.weight".to_vec();
            f.tensors.push(norm);
        },
    ),
    ("an unknown type", "tensor blk.0.attn_q.weight: type 99 is not supported", |f| f.tensor(QUERY).ty = 99),
    ("a known type that is not supported", "tensor blk.0.attn_q.weight: type Q2_K is not supported", |f| {
        f.tensor(QUERY).ty = 10
    }),
    ("another such type", "tensor blk.0.attn_q.weight: type IQ4_XS is not supported", |f| {
        f.tensor(QUERY).ty = 23
    }),
    ("no dimensions", "tensor blk.0.attn_q.weight: 0 dimensions instead of 1 to 4", |f| {
        f.tensor(QUERY).dimensions.clear()
    }),
    ("five dimensions", "tensor blk.0.attn_q.weight: 5 dimensions instead of 1 to 4", |f| {
        f.tensor(QUERY).dimensions = vec![1; 5]
    }),
    ("a dimension of zero", "tensor blk.0.attn_q.weight: dimensions are zero or too large", |f| {
        f.tensor(QUERY).dimensions[1] = 0
    }),
    (
        "dimensions whose product overflows",
        "tensor blk.0.attn_q.weight: dimensions are zero or too large",
        |f| {
            f.tensor(QUERY).dimensions = vec![32, u64::MAX, u64::MAX];
        },
    ),
    (
        "dimensions whose size overflows",
        "tensor blk.0.attn_q.weight: dimensions are zero or too large",
        |f| {
            f.tensor(QUERY).dimensions = vec![1 << 60, 1 << 4];
        },
    ),
    (
        "dimensions whose size is half of memory",
        "tensor blk.0.attn_q.weight: 9223372036854775808 bytes at offset 18688 reach past the end",
        |f| {
            f.tensor(QUERY).ty = F16;
            f.tensor(QUERY).dimensions = vec![1 << 60, 1 << 2];
        },
    ),
    (
        "rows of no whole block",
        "tensor token_embd.weight: row of 63 elements is not a multiple of the block of 32",
        |f| {
            f.tensor("token_embd.weight").dimensions[0] = 63;
        },
    ),
    ("a matrix with too few rows", "tensor blk.0.attn_q.weight: shape 64x32 instead of 64x64", |f| {
        f.tensor(QUERY).dimensions[1] = 32
    }),
    ("an embedding with too few tokens", "tensor token_embd.weight: shape 64x270 instead of 64x271", |f| {
        f.tensor("token_embd.weight").dimensions[1] = 270;
    }),
    ("a vector in half precision", "tensor output_norm.weight: not F32, as vectors must be", |f| {
        let norm = f.tensor("output_norm.weight");
        norm.ty = F16;
        norm.data.truncate(128);
    }),
    ("an offset that is not aligned", "tensor blk.0.attn_q.weight: offset 33 is not aligned", |f| {
        f.tensor(QUERY).offset = Some(33)
    }),
    (
        "an offset half of memory away",
        "tensor blk.0.attn_q.weight: 8192 bytes at offset 9223372036854775808 reach past the end",
        |f| {
            f.tensor(QUERY).offset = Some(1 << 63);
        },
    ),
    (
        "an offset whose end overflows",
        "tensor blk.0.attn_q.weight: 8192 bytes at offset 18446744073709551584 reach past the end",
        |f| {
            f.tensor(QUERY).offset = Some(u64::MAX - 31);
        },
    ),
    ("a tensor within another", "overlaps another tensor at offset 32", |f| {
        f.tensor(QUERY).offset = Some(32)
    }),
    ("two tensors at one place", "overlaps another tensor at offset 0", |f| f.tensor(QUERY).offset = Some(0)),
    ("a tensor without a name", "tensor : bad name", |f| f.tensor(QUERY).name.clear()),
    ("a tensor whose name is no text", "tensor \\xff: bad name", |f| f.tensor(QUERY).name = vec![0xff]),
    ("a tensor whose name is too long", "bad name", |f| f.tensor(QUERY).name = vec![b'a'; 65]),
    ("no tensors", "tensor token_embd.weight: missing", |f| f.tensors.clear()),
    ("fewer tensors than there are", "tensor output_norm.weight: missing", |f| {
        f.tensor_count = Some(f.tensors.len() as u64 - 1);
    }),
    ("a bias of another length", "tensor blk.0.attn_q.bias: shape 32x1 instead of 64x1", |f| {
        add_vector(f, "blk.0.attn_q.bias", 32);
    }),
    ("a bias in half precision", "tensor blk.0.attn_k.bias: not F32, as vectors must be", |f| {
        add_vector(f, "blk.0.attn_k.bias", 32).ty = F16;
    }),
    ("a bias of a layer that is not", "tensor blk.1.attn_q.bias: not part of this architecture", |f| {
        add_vector(f, "blk.1.attn_q.bias", 64);
    }),
    ("a bias of logits where there is none", "tensor output.bias: not part of this architecture", |f| {
        add_vector(f, "output.bias", 271);
    }),
    ("divisors of too many frequencies", "tensor rope_freqs.weight: shape 16x1 instead of 8x1", |f| {
        add_vector(f, "rope_freqs.weight", 16);
    }),
    ("an expert's tensor", "tensor blk.0.ffn_gate_inp.weight: not part of this architecture", |f| {
        add_vector(f, "blk.0.ffn_gate_inp.weight", 64);
    }),
    // Vocabulary.
    ("no tokenizer", "key tokenizer.ggml.model: missing", |f| f.remove("tokenizer.ggml.model")),
    ("an unknown tokenizer", "tokenizer bert is not supported", |f| f.set("tokenizer.ggml.model", "bert")),
    ("no tokens", "key tokenizer.ggml.tokens: missing", |f| f.remove("tokenizer.ggml.tokens")),
    ("tokens that are numbers", "key tokenizer.ggml.tokens: value has the wrong type", |f| {
        f.set("tokenizer.ggml.tokens", Value::I32s(vec![0; 271]));
    }),
    ("no token at all", "key tokenizer.ggml.tokens: 0 elements instead of 1", |f| {
        f.set("tokenizer.ggml.tokens", Value::Strings(vec![]));
    }),
    ("too few scores", "key tokenizer.ggml.scores: 270 elements instead of 271", |f| {
        f.set("tokenizer.ggml.scores", Value::F32s(vec![0.0; 270]));
    }),
    ("scores that are whole numbers", "key tokenizer.ggml.scores: value has the wrong type", |f| {
        f.set("tokenizer.ggml.scores", Value::I32s(vec![0; 271]));
    }),
    ("a score that is no number", "token 0: its score is not a number", |f| {
        f.set("tokenizer.ggml.scores", Value::F32s(vec![f32::NAN; 271]))
    }),
    ("too many types of tokens", "key tokenizer.ggml.token_type: 272 elements instead of 271", |f| {
        f.set("tokenizer.ggml.token_type", Value::I32s(vec![1; 272]));
    }),
    ("a byte token that names no byte", "token 0: a byte token not written <0xXX>", |f| {
        f.set("tokenizer.ggml.token_type", Value::I32s(vec![6; 271]));
    }),
    ("a token's text twice", "token 270: its text occurs twice", |f| replace_token(f, 270, b"ab".to_vec())),
    ("a token's text too long", "token 270: its text is too long", |f| {
        replace_token(f, 270, vec![b'z'; 70000])
    }),
    (
        "a token of beginnings beyond the vocabulary",
        "key tokenizer.ggml.bos_token_id: value 271 is out of range",
        |f| {
            f.set("tokenizer.ggml.bos_token_id", Value::U32(271));
        },
    ),
    ("a prefix that is no text", "key flexserve.request.prefix: not UTF-8", |f| {
        f.set("flexserve.request.prefix", Value::Str(vec![0xc3]));
    }),
    ("no pre-tokenizer", "key tokenizer.ggml.pre: missing", |f| f.set("tokenizer.ggml.model", "gpt2")),
    ("an unknown pre-tokenizer", "pre-tokenizer other is not supported", |f| {
        f.set("tokenizer.ggml.model", "gpt2");
        f.set("tokenizer.ggml.pre", "other");
    }),
    ("no merges", "key tokenizer.ggml.merges: missing", |f| {
        f.set("tokenizer.ggml.model", "gpt2");
        f.set("tokenizer.ggml.pre", "gpt-2");
    }),
    ("no token of beginnings where there must be one", "key tokenizer.ggml.bos_token_id: missing", |f| {
        f.set("tokenizer.ggml.model", "gpt2");
        f.set("tokenizer.ggml.pre", "llama-bpe");
        f.set("tokenizer.ggml.merges", strings(&[]));
    }),
];

/// The same for models of other architectures, which are named first.
pub const ARCHITECTURES: &[(&str, &str, &str, Change)] = &[
    ("qwen2", "a bias missing", "tensor blk.0.attn_v.bias: missing", |f| {
        f.tensors.retain(|t| t.name != b"blk.0.attn_v.bias")
    }),
    ("qwen2", "a bias that is a matrix", "tensor blk.0.attn_q.bias: shape 32x2 instead of 64x1", |f| {
        f.tensor("blk.0.attn_q.bias").dimensions = vec![32, 2];
    }),
    (
        "qwen2",
        "a bias of the feed-forward network",
        "tensor blk.0.ffn_up.bias: not part of this architecture",
        |f| {
            add_vector(f, "blk.0.ffn_up.bias", 96);
        },
    ),
    ("qwen2", "a bias of logits that is too long", "tensor output.bias: shape 272x1 instead of 271x1", |f| {
        add_vector(f, "output.bias", 272);
    }),
    ("qwen2", "divisors of frequencies", "tensor rope_freqs.weight: not part of this architecture", |f| {
        add_vector(f, "rope_freqs.weight", 8);
    }),
    ("qwen2", "norms of heads", "tensor blk.0.attn_k_norm.weight: not part of this architecture", |f| {
        add_vector(f, "blk.0.attn_k_norm.weight", 16);
    }),
    ("qwen3", "a norm of heads missing", "tensor blk.0.attn_q_norm.weight: missing", |f| {
        f.tensors.retain(|t| t.name != b"blk.0.attn_q_norm.weight");
    }),
    (
        "qwen3",
        "a norm of all heads at once",
        "tensor blk.0.attn_k_norm.weight: shape 8x1 instead of 16x1",
        |f| {
            f.tensor("blk.0.attn_k_norm.weight").dimensions = vec![8];
        },
    ),
    (
        "qwen3",
        "a norm of heads in half precision",
        "tensor blk.0.attn_q_norm.weight: not F32, as vectors must be",
        |f| {
            f.tensor("blk.0.attn_q_norm.weight").ty = F16;
        },
    ),
    (
        "qwen3",
        "heads of a length that the tensors do not have",
        "tensor blk.0.attn_q_norm.weight: shape 16x1 instead of 24x1",
        |f| {
            f.set("qwen3.attention.key_length", Value::U32(24));
        },
    ),
    ("qwen3", "a head for rerankers", "tensor cls.output.weight: not part of this architecture", |f| {
        add_vector(f, "cls.output.weight", 64);
    }),
];

/// Adds a vector of ones.
fn add_vector<'f>(file: &'f mut File, name: &str, length: usize) -> &'f mut Tensor {
    let data = [1f32; 512][..length].iter().flat_map(|one| one.to_le_bytes()).collect();
    file.tensors.push(Tensor {
        name: name.into(),
        dimensions: vec![length as u64],
        ty: F32,
        data,
        offset: None,
    });
    file.tensors.last_mut().unwrap()
}

pub fn array(ty: u32, count: u64, bytes: &[u8]) -> Value {
    Value::Raw(9, [&ty.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat())
}

fn replace_token(file: &mut File, id: usize, text: Vec<u8>) {
    let (mut texts, _, _) = support::vocabulary();
    texts[id] = text;
    file.set("tokenizer.ggml.tokens", Value::Strings(texts));
}
