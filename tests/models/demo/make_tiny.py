"""Makes `tiny-f16.gguf`, a random two-layer model with the demo tokenizer, and `tiny-f16.json`, its golden logits.

    python3 make_tiny.py --out ..
"""

import argparse
import json
import pathlib

import numpy as np

import gguf_file
from reference import Reference
from tokenizer import Tokenizer

CONFIG = {
    "block_count": 2,
    "context_length": 128,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "head_count": 4,
    "head_count_kv": 2,
    "rms_epsilon": 1e-5,
    "rope_freq_base": 10000.0,
}
TEXTS = ["wake me at half past six tomorrow\n", '{"tool":"set_alarm"}', "Zo\u00eb \u6c34 don't  "]


def random_tensors(config, vocabulary, seed):
    """Random weights, large enough that logits differ clearly between tokens and between positions."""
    rng = np.random.default_rng(seed)
    width, hidden = config["embedding_length"], config["feed_forward_length"]
    kv = width // config["head_count"] * config["head_count_kv"]
    shapes = {"attn_q": (width, width), "attn_k": (kv, width), "attn_v": (kv, width), "attn_output": (width, width)}
    shapes |= {"ffn_gate": (hidden, width), "ffn_up": (hidden, width), "ffn_down": (width, hidden)}
    tensors = {}
    for name in gguf_file.tensor_names(config):
        part = name.split(".")[-2]
        if part.endswith("norm"):
            tensors[name] = (1 + 0.2 * rng.standard_normal(width)).astype(np.float32)
        else:
            rows, columns = shapes.get(part, (vocabulary, width))
            scale = 0.5 if part == "token_embd" else 1.5 / np.sqrt(columns)
            tensors[name] = (scale * rng.standard_normal((rows, columns))).astype(np.float32)
    return tensors


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default=here / "tokenizer.json")
    parser.add_argument("--out", type=pathlib.Path, default=here.parent)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    tokenizer = Tokenizer.load(args.tokenizer)
    path = args.out / "tiny-f16.gguf"
    tensors = random_tensors(CONFIG, len(tokenizer.pieces), args.seed)
    gguf_file.write(path, CONFIG, tokenizer, tensors, "F16", "tiny-f16", "Random weights for engine tests")

    model = Reference(path)
    cases = []
    for text in TEXTS:
        ids = model.tokenizer.encode(text)
        model.reset()
        logits = model.forward(ids)
        argmax = [int(i) for i in logits.argmax(axis=1)]
        last = [round(float(v), 5) for v in logits[-1]]
        sums = [round(float(v), 4) for v in logits.astype(np.float64).sum(axis=1)]
        greedy, step = [], argmax[-1]
        while len(greedy) < 12:
            greedy.append(step)
            step = int(model.forward([step])[-1].argmax())
        cases.append({"text": text, "ids": ids, "argmax": argmax, "row_sums": sums, "last": last, "greedy": greedy})
    with open(args.out / "tiny-f16.json", "w", encoding="utf-8") as file:
        note = "ids include <s>; argmax and row_sums per position; last: logits after the last id; greedy: continuation"
        json.dump({"note": note, "tolerance": 0.002, "cases": cases}, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
