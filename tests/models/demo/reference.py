"""Reference inference in numpy: reads a GGUF file, dequantises it, and decodes greedily, one sequence at a time.

The oracle of `golden.json` and `tiny-f16.json`; independent of the training code. Arithmetic is float32 on the
dequantised weights; activations are never quantised.
"""

import numpy as np

from gguf_file import read
from tokenizer import EOS, Tokenizer


class Reference:
    """A model with its key/value cache."""

    def __init__(self, path):
        self.config, self.metadata, self.tensors = read(path)
        self.tokenizer = Tokenizer(
            self.metadata["tokenizer.ggml.tokens"],
            self.metadata["tokenizer.ggml.scores"],
            self.metadata["tokenizer.ggml.token_type"],
        )
        c = self.config
        self.head_size = c["embedding_length"] // c["head_count"]
        half = self.head_size // 2
        frequency = c["rope_freq_base"] ** (-np.arange(half, dtype=np.float64) * 2 / self.head_size)
        angle = np.arange(c["context_length"], dtype=np.float64)[:, None] * frequency
        self.cos, self.sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        self.output = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        self.reset()

    def reset(self):
        """Forgets the sequence."""
        c = self.config
        shape = (c["block_count"], c["context_length"], c["head_count_kv"], self.head_size)
        self.keys, self.values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.position = 0

    def norm(self, x, name):
        scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self.config["rms_epsilon"]))
        return x * scale * self.tensors[name]

    def rope(self, x, start):
        """Rotates the pairs (2i, 2i+1) of each head: ggml's `NORM` convention, used by the architecture `llama`."""
        cos, sin = (t[start : start + len(x), None, :] for t in (self.cos, self.sin))
        out = np.empty_like(x)
        out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
        out[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
        return out

    def forward(self, ids):
        """Appends `ids` to the sequence; returns the logits of each position, shape (len(ids), vocabulary)."""
        c, t, start, n = self.config, self.tensors, self.position, len(ids)
        heads, kv_heads, size = c["head_count"], c["head_count_kv"], self.head_size
        x = t["token_embd.weight"][ids]
        end = start + n
        mask = np.where(np.arange(end)[None, :] <= np.arange(start, end)[:, None], 0, -np.inf).astype(np.float32)
        for i in range(c["block_count"]):
            b = f"blk.{i}."
            h = self.norm(x, b + "attn_norm.weight")
            q = self.rope((h @ t[b + "attn_q.weight"].T).reshape(n, heads, size), start)
            self.keys[i, start:end] = self.rope((h @ t[b + "attn_k.weight"].T).reshape(n, kv_heads, size), start)
            self.values[i, start:end] = (h @ t[b + "attn_v.weight"].T).reshape(n, kv_heads, size)
            k = np.repeat(self.keys[i, :end], heads // kv_heads, axis=1)
            v = np.repeat(self.values[i, :end], heads // kv_heads, axis=1)
            score = np.matmul(q.transpose(1, 0, 2), k.transpose(1, 2, 0)) / np.sqrt(np.float32(size)) + mask
            score = np.exp(score - score.max(axis=-1, keepdims=True))
            score /= score.sum(axis=-1, keepdims=True)
            mixed = np.matmul(score, v.transpose(1, 0, 2)).transpose(1, 0, 2).reshape(n, heads * size)
            x = x + mixed @ t[b + "attn_output.weight"].T
            h = self.norm(x, b + "ffn_norm.weight")
            gate = h @ t[b + "ffn_gate.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ t[b + "ffn_up.weight"].T)) @ t[b + "ffn_down.weight"].T
        self.position = end
        return self.norm(x, "output_norm.weight") @ self.output.T

    def prompt_ids(self, request):
        """Token ids of a request as the engine wraps it."""
        wrapped = self.metadata["flexserve.request.prefix"] + request + self.metadata["flexserve.request.suffix"]
        return self.tokenizer.encode(wrapped)

    def answer(self, request, limit=128):
        """Greedy answer: (text, token ids without `</s>`, smallest gap between the best and the second logit)."""
        self.reset()
        ids = self.prompt_ids(request)
        limit = min(limit, self.config["context_length"] - len(ids))
        out, margin = [], np.inf
        while len(out) < limit:
            logits = self.forward(ids)[-1]
            best, second = np.argsort(-logits, kind="stable")[:2]
            margin = min(margin, float(logits[best] - logits[second]))
            if best == EOS:
                break
            out.append(int(best))
            ids = [int(best)]
        return self.tokenizer.decode(out), out, margin
