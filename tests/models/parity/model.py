"""Random models in every format, written with the `gguf` Python package.

`guest-llm/engine/src/bin/flexserve-engine/random.rs` is the same in Rust, to the bit: so that a model need not be committed,
only a hash of its file. What each number is for is said there.
"""

from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, GGUFWriter

FORMATS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]


@dataclass
class Spec:
    """All that decides a model; written to fixtures as `key=value`."""

    architecture: str
    format: str
    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_length: int
    vocabulary: int
    context: int
    seed: int
    tied: int = 0
    biases: int = 0
    rope_freqs: int = 0
    scaling: str = "none"

    def line(self):
        return " ".join(f"{key}={value}" for key, value in vars(self).items())


def matrix_format(spec, part, layer=0):
    common, more = (spec.format[:-2], True) if spec.format.endswith("_M") else (spec.format, False)
    eighth = spec.layers // 8
    lucky = layer < eighth or layer >= 7 * spec.layers // 8 or (layer - eighth) % 3 == 2
    if more and (part == "output" or (part in ("attn_v", "ffn_down") and lucky)):
        return Type.Q6_K
    return Type[common]


def tensors(spec):
    """Name, columns, rows (None for a vector) and format."""
    yield "token_embd.weight", spec.width, spec.vocabulary, matrix_format(spec, "token_embd")
    queries, keys = spec.heads * spec.head_length, spec.kv_heads * spec.head_length
    for layer in range(spec.layers):
        def vector(part, kind, length):
            return f"blk.{layer}.{part}.{kind}", length, None, Type.F32

        yield vector("attn_norm", "weight", spec.width)
        yield vector("ffn_norm", "weight", spec.width)
        if spec.architecture == "qwen3":
            yield vector("attn_q_norm", "weight", spec.head_length)
            yield vector("attn_k_norm", "weight", spec.head_length)
        if spec.architecture == "qwen2" or spec.biases:
            yield vector("attn_q", "bias", queries)
            yield vector("attn_k", "bias", keys)
            yield vector("attn_v", "bias", keys)
        if spec.architecture == "llama" and spec.biases:
            yield vector("attn_output", "bias", spec.width)
            yield vector("ffn_gate", "bias", spec.hidden)
            yield vector("ffn_up", "bias", spec.hidden)
            yield vector("ffn_down", "bias", spec.width)
        for part, columns, rows in [
            ("attn_q", spec.width, queries),
            ("attn_k", spec.width, keys),
            ("attn_v", spec.width, keys),
            ("attn_output", queries, spec.width),
            ("ffn_gate", spec.width, spec.hidden),
            ("ffn_up", spec.width, spec.hidden),
            ("ffn_down", spec.hidden, spec.width),
        ]:
            yield f"blk.{layer}.{part}.weight", columns, rows, matrix_format(spec, part, layer)
    yield "output_norm.weight", spec.width, None, Type.F32
    if spec.rope_freqs:
        yield "rope_freqs.weight", spec.head_length // 2, None, Type.F32
    if spec.architecture == "qwen2" and spec.biases:
        yield "output.bias", spec.vocabulary, None, Type.F32
    if not spec.tied:
        yield "output.weight", spec.width, spec.vocabulary, matrix_format(spec, "output")


def bits(seed, first, count):
    """SplitMix64: numbers `first..first + count` of a sequence."""
    with np.errstate(over="ignore"):
        index = np.arange(first + 1, first + count + 1, dtype=np.uint64)
        z = np.uint64(seed) + index * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def floats(numbers):
    """In [-1, 1), single precision."""
    return (numbers >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)


def half(values):
    """Half precision, toward zero; at most 1 in magnitude."""
    magnitude = np.abs(values)
    pattern = magnitude.view(np.uint32)
    small = (magnitude * np.float32(2.0**24)).astype(np.uint32)
    normal = (pattern - np.uint32(112 << 23)) >> np.uint32(13)
    result = np.where(magnitude < np.float32(2.0**-14), small, normal).astype(np.uint16)
    return result | ((values.view(np.uint32) >> np.uint32(16)) & np.uint32(0x8000)).astype(np.uint16)


def blocks(ty, deviation, seed, count):
    """`count` blocks of random bytes, scales apart: an array of bytes per block."""
    size = GGML_QUANT_SIZES[ty][1]
    filling = -(-size // 8)
    draws = bits(seed, 0, count * (filling + 3)).reshape(count, filling + 3)
    out = draws[:, :filling].astype("<u8").view(np.uint8).reshape(count, filling * 8)[:, :size].copy()
    uniform = floats(draws[:, filling]) * np.sqrt(np.float32(3)) * deviation
    sign = np.where(draws[:, filling + 2] & np.uint64(1), np.float32(-1), np.float32(1))
    varied = deviation * (np.float32(1) + floats(draws[:, filling + 1]) / np.float32(4)) * sign

    def put(at, values):
        out[:, at:at + 2] = half(values.astype(np.float32)).astype("<u2").view(np.uint8).reshape(count, 2)

    def scales(divisor, centre):
        put(0, varied / np.float32(divisor))
        if centre:
            put(2, varied / np.float32(divisor) * np.float32(centre))

    match ty:
        case Type.F32:
            out[:] = uniform.astype("<f4").view(np.uint8).reshape(count, 4)
        case Type.F16:
            put(0, uniform)
        case Type.BF16:
            out[:] = uniform.astype("<f4").view(np.uint8).reshape(count, 4)[:, 2:]
        case Type.Q8_0:
            scales(73.9, None)
        case Type.Q4_0:
            scales(4.6, None)
        case Type.Q5_0:
            scales(9.2, None)
        case Type.Q4_1:
            scales(4.6, -7.5)
        case Type.Q5_1:
            scales(9.2, -15.5)
        case Type.Q4_K:
            scales(258.0, 7.5)
        case Type.Q5_K:
            scales(527.0, 15.5)
        case Type.Q6_K:
            put(208, varied / np.float32(170.0))
            out[:, 192:208] = (out[:, 192:208] & 0x1F) - np.uint8(16)
    return out


def spread(name):
    part = name.split(".")[-2]
    if name.endswith(".bias"):
        return 0.0, 0.25
    return {"attn_q_norm": (1.5, 0.25), "attn_k_norm": (1.5, 0.25), "rope_freqs": (4.5, 3.5)}.get(part, (1.0, 0.25))


def deviation(name, columns):
    gains = {"token_embd": 3.2, "output": 3.2, "attn_q": 1.5, "attn_k": 1.5, "attn_output": 1.5, "ffn_gate": 1.5}
    return np.float32(gains.get(name.split(".")[-2], 1.0)) / np.sqrt(np.float32(columns))


def vocabulary(count):
    """Texts, scores and types of a small SentencePiece vocabulary."""
    texts = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    number = 0
    while len(texts) < count:
        word, rest = "", number // 2 + 1
        while rest > 0:
            rest -= 1
            word = chr(ord("a") + rest % 26) + word
            rest //= 26
        texts.append(("" if number % 2 else "\u2581") + word)
        number += 1
    types = [2, 3, 3] + [6] * 256 + [1] * (count - 259)
    return texts, [-float(rank) for rank in range(count)], types


def write(path, spec):
    writer = GGUFWriter(path, spec.architecture)
    writer.add_string("general.name", "random weights")
    for key, value in [
        ("block_count", spec.layers),
        ("context_length", spec.context),
        ("embedding_length", spec.width),
        ("feed_forward_length", spec.hidden),
        ("attention.head_count", spec.heads),
        ("attention.head_count_kv", spec.kv_heads),
        ("attention.key_length", spec.head_length),
        ("attention.value_length", spec.head_length),
        ("rope.dimension_count", spec.head_length),
    ]:
        writer.add_uint32(f"{spec.architecture}.{key}", value)
    writer.add_float32(f"{spec.architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    kind, *numbers = spec.scaling.split(":")
    if kind != "none":
        writer.add_string(f"{spec.architecture}.rope.scaling.type", kind)
        writer.add_float32(f"{spec.architecture}.rope.scaling.factor", float(numbers[0]))
    if kind == "yarn":
        writer.add_uint32(f"{spec.architecture}.rope.scaling.original_context_length", int(numbers[1]))
    texts, scores, types = vocabulary(spec.vocabulary)
    writer.add_string("tokenizer.ggml.model", "llama")
    writer.add_array("tokenizer.ggml.tokens", texts)
    writer.add_array("tokenizer.ggml.scores", scores)
    writer.add_array("tokenizer.ggml.token_type", types)
    writer.add_uint32("tokenizer.ggml.bos_token_id", 1)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    writer.add_uint32("tokenizer.ggml.unknown_token_id", 0)

    embedding = None
    for index, (name, columns, rows, ty) in enumerate(tensors(spec)):
        seed = spec.seed << 32 | index
        if rows is None:
            centre, reach = spread(name)
            values = np.float32(centre) + floats(bits(seed, 0, columns)) * np.float32(reach)
            writer.add_tensor(name, values.astype(np.float32))
            continue
        if name == "output.weight" and ty == embedding[0]:
            data = np.roll(embedding[1], 1, axis=0)
        else:
            length, size = GGML_QUANT_SIZES[ty]
            count = rows * (columns // length)
            data = blocks(ty, deviation(name, columns), seed, count).reshape(rows, columns // length * size)
        if index == 0:
            embedding = ty, data
        if ty == Type.F32:
            writer.add_tensor(name, data.view(np.float32))
        elif ty == Type.F16:
            writer.add_tensor(name, data.view(np.float16))
        else:
            writer.add_tensor(name, data, raw_dtype=ty)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def fnv(data):
    """FNV-1a, 64 bit, over little-endian words of 8 bytes."""
    words = np.frombuffer(data + bytes(-len(data) % 8), dtype="<u8").tolist()
    hash = 0xCBF29CE484222325
    for word in words:
        hash = (hash ^ word) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return hash
