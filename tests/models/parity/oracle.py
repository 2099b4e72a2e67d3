"""llama.cpp, through the C interface of the Python package `llama-cpp-python`."""

import ctypes

import llama_cpp as lc
import numpy as np

GGML_TYPE_F32 = 0
GGML_TYPE_F16 = 1


@lc.llama_log_callback
def _quiet(level, text, data):
    pass


def start():
    lc.llama_log_set(_quiet, ctypes.c_void_p(0))
    lc.llama_backend_init()


class Oracle:
    """A model in llama.cpp, computing as plainly as it can: keys and values in single precision, no fused attention, no
    matrices repacked."""

    def __init__(self, path, context, kv=GGML_TYPE_F32, ubatch=512, flash=False, repack=False, threads=1):
        params = lc.llama_model_default_params()
        params.use_extra_bufts = repack
        self.model = lc.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp refuses {path}")
        params = lc.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = params.n_ubatch = ubatch
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = kv
        params.flash_attn_type = 1 if flash else 0
        self.context = lc.llama_init_from_model(self.model, params)
        self.batch_length = ubatch
        self.vocabulary = lc.llama_model_get_vocab(self.model)
        self.token_count = lc.llama_vocab_n_tokens(self.vocabulary)

    def close(self):
        lc.llama_free(self.context)
        lc.llama_model_free(self.model)

    def reset(self):
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)

    def append(self, tokens):
        """Logits after the last of `tokens`."""
        for start in range(0, len(tokens), self.batch_length):
            part = tokens[start:start + self.batch_length]
            array = (lc.llama_token * len(part))(*part)
            if lc.llama_decode(self.context, lc.llama_batch_get_one(array, len(part))) != 0:
                raise RuntimeError("llama_decode failed")
        logits = lc.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(logits, shape=(self.token_count,)).copy()


class Tokenizer:
    """A vocabulary in llama.cpp."""

    def __init__(self, path):
        params = lc.llama_model_default_params()
        params.vocab_only = True
        self.model = lc.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp refuses {path}")
        self.vocabulary = lc.llama_model_get_vocab(self.model)

    def encode(self, text, special):
        data = text.encode()
        tokens = (lc.llama_token * (len(data) + 16))()
        count = lc.llama_tokenize(self.vocabulary, data, len(data), tokens, len(tokens), False, special)
        assert count >= 0
        return list(tokens[:count])
