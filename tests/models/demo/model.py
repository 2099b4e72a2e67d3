"""The demo model in PyTorch (training only): RMSNorm, rotary pairs (2i, 2i+1), grouped queries, SwiGLU, tied output."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from gguf_file import tensor_names


class Norm(nn.Module):
    def __init__(self, width, epsilon):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.weight


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        width, hidden, self.heads, self.kv_heads = (
            c["embedding_length"], c["feed_forward_length"], c["head_count"], c["head_count_kv"])
        self.size = width // self.heads
        kv = self.size * self.kv_heads
        self.attn_norm, self.ffn_norm = Norm(width, c["rms_epsilon"]), Norm(width, c["rms_epsilon"])
        self.attn_q, self.attn_k = nn.Linear(width, width, bias=False), nn.Linear(width, kv, bias=False)
        self.attn_v, self.attn_output = nn.Linear(width, kv, bias=False), nn.Linear(width, width, bias=False)
        self.ffn_gate, self.ffn_up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.ffn_down = nn.Linear(hidden, width, bias=False)
        for linear in (self.attn_output, self.ffn_down):
            nn.init.zeros_(linear.weight)

    def forward(self, x, cos, sin, mask):
        batch, length, width = x.shape
        h = self.attn_norm(x)
        q = rope(self.attn_q(h).view(batch, length, self.heads, self.size), cos, sin)
        k = rope(self.attn_k(h).view(batch, length, self.kv_heads, self.size), cos, sin)
        v = self.attn_v(h).view(batch, length, self.kv_heads, self.size)
        group = self.heads // self.kv_heads
        # Queries of one group share keys and values: fold the group into the query rows.
        q = q.view(batch, length, self.kv_heads, group, self.size).permute(0, 2, 3, 1, 4)
        q = q.reshape(batch * self.kv_heads, group * length, self.size)
        k = k.permute(0, 2, 3, 1).reshape(batch * self.kv_heads, self.size, length)
        v = v.permute(0, 2, 1, 3).reshape(batch * self.kv_heads, length, self.size)
        score = torch.bmm(q, k).view(-1, group, length, length) * self.size**-0.5 + mask
        mixed = torch.bmm(score.softmax(-1).view(-1, group * length, length), v)
        mixed = mixed.view(batch, self.kv_heads, group, length, self.size).permute(0, 3, 1, 2, 4)
        x = x + self.attn_output(mixed.reshape(batch, length, width))
        h = self.ffn_norm(x)
        return x + self.ffn_down(functional.silu(self.ffn_gate(h)) * self.ffn_up(h))


def rope(x, cos, sin):
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Model(nn.Module):
    def __init__(self, config, vocabulary):
        super().__init__()
        self.config = config
        self.token_embd = nn.Embedding(vocabulary, config["embedding_length"])
        nn.init.normal_(self.token_embd.weight, std=0.05)
        self.blk = nn.ModuleList(Block(config) for _ in range(config["block_count"]))
        self.output_norm = Norm(config["embedding_length"], config["rms_epsilon"])
        size = config["embedding_length"] // config["head_count"]
        frequency = config["rope_freq_base"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angle = torch.arange(config["context_length"], dtype=torch.float64)[:, None] * frequency
        self.register_buffer("cos", angle.cos().float()[:, None, :], persistent=False)
        self.register_buffer("sin", angle.sin().float()[:, None, :], persistent=False)

    def hidden(self, ids):
        """Normalised hidden states; sequences are padded on the right, where the causal mask hides them."""
        length = ids.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        x = self.token_embd(ids)
        for block in self.blk:
            x = block(x, self.cos[:length], self.sin[:length], mask)
        return self.output_norm(x)

    def forward(self, ids, positions):
        """Logits at the (row, column) `positions` only."""
        return functional.linear(self.hidden(ids)[positions], self.token_embd.weight)

    def gguf_tensors(self):
        state = self.state_dict()
        return {name: state[name].numpy().astype(np.float32) for name in tensor_names(self.config)}
