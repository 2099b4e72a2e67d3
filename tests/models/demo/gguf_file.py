"""Writes and reads the demo model's GGUF files (architecture `llama`)."""

import gguf
import numpy as np

LAYER = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]


def tensor_names(config):
    """GGUF tensor names in file order; without `output.weight`, the embedding is used for it."""
    names = ["token_embd.weight"]
    names += [f"blk.{i}.{part}.weight" for i in range(config["block_count"]) for part in LAYER]
    return names + ["output_norm.weight"]


def write(path, config, tokenizer, tensors, quantisation, name, description):
    """Writes `tensors` (GGUF name -> float32 array, rows as in `torch.nn.Linear`) as `Q8_0` or `F16`; norms stay F32."""
    kind = gguf.GGMLQuantizationType[quantisation]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_description(description)
    writer.add_license("MIT OR Apache-2.0")
    writer.add_file_type({"Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "F16": gguf.LlamaFileType.MOSTLY_F16}[quantisation])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config["block_count"])
    writer.add_context_length(config["context_length"])
    writer.add_embedding_length(config["embedding_length"])
    writer.add_feed_forward_length(config["feed_forward_length"])
    writer.add_head_count(config["head_count"])
    writer.add_head_count_kv(config["head_count_kv"])
    writer.add_layer_norm_rms_eps(config["rms_epsilon"])
    writer.add_rope_dimension_count(config["embedding_length"] // config["head_count"])
    writer.add_rope_freq_base(config["rope_freq_base"])
    writer.add_vocab_size(len(tokenizer.pieces))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokenizer.pieces)
    writer.add_token_scores(tokenizer.scores)
    writer.add_token_types(tokenizer.types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    # The engine wraps a request in these two, unless asked for raw completion. (`add_string` drops empty strings.)
    for key, value in (("prefix", ""), ("suffix", "\n")):
        writer.add_key_value(f"flexserve.request.{key}", value, gguf.GGUFValueType.STRING)
    for tensor_name in tensor_names(config):
        array = np.ascontiguousarray(tensors[tensor_name], dtype=np.float32)
        if array.ndim == 1:
            writer.add_tensor(tensor_name, array)
        else:
            writer.add_tensor(tensor_name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path):
    """Returns (config, metadata, tensors): tensors dequantised to float32, shaped (rows, columns)."""
    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    config = {
        "block_count": metadata["llama.block_count"],
        "context_length": metadata["llama.context_length"],
        "embedding_length": metadata["llama.embedding_length"],
        "feed_forward_length": metadata["llama.feed_forward_length"],
        "head_count": metadata["llama.attention.head_count"],
        "head_count_kv": metadata["llama.attention.head_count_kv"],
        "rms_epsilon": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_freq_base": metadata["llama.rope.freq_base"],
    }
    tensors = {}
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        tensors[tensor.name] = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
    return config, metadata, tensors
