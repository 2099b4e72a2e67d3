#!/usr/bin/env python3
"""Writes the fixtures of `cargo xtask parity`: what llama.cpp makes of the same models and texts. See README.md."""

import argparse
import pathlib
import random
import shutil
import struct
import tempfile
from importlib.metadata import version

import numpy as np

import model
import oracle
import vocabulary

FOLDER = pathlib.Path(__file__).parent
PROMPTS, STEPS = 50, 64
VOCABULARY, CONTEXT = 384, 256
# How far below the best logit another may be to be recorded; more than any bound.
REACH = 0.75
# Prompts whose logits are kept whole, before the first step and after the last.
WHOLE = [0, 1, 2, 3]


def spec(architecture, format, **changes):
    shape = dict(layers=2, width=256, hidden=256, heads=8, kv_heads=2, head_length=32, vocabulary=VOCABULARY, context=CONTEXT, seed=1)
    if architecture == "qwen3":
        # Heads whose length does not follow from the width.
        shape |= dict(heads=4, head_length=128)
    return model.Spec(architecture, format, **(shape | changes))


def pairs():
    """Every architecture in every format, then what else the architectures may have."""
    for architecture in ["llama", "qwen2", "qwen3"]:
        for format in [*model.FORMATS, "Q4_K_M"]:
            yield f"{architecture}-{format}", spec(architecture, format)
    yield "llama-tied", spec("llama", "Q8_0", tied=1, layers=3)
    yield "llama-llama3", spec("llama", "F32", rope_freqs=1, kv_heads=8)
    yield "llama-linear", spec("llama", "F16", scaling="linear:4", kv_heads=1)
    yield "llama-yarn", spec("llama", "F32", scaling="yarn:4:64")
    yield "llama-biases", spec("llama", "Q4_K", biases=1)
    yield "qwen2-tied", spec("qwen2", "Q6_K", tied=1, biases=1, layers=3)
    yield "qwen2-yarn", spec("qwen2", "F32", scaling="yarn:8:32", kv_heads=1)
    yield "qwen3-tied", spec("qwen3", "Q8_0", tied=1, biases=1, heads=8, head_length=64)
    yield "qwen3-yarn", spec("qwen3", "F32", scaling="yarn:2:128")


def prompts():
    """Token ids, of lengths around multiples of 16 and 32 and between."""
    numbers = np.random.default_rng(2)
    lengths = [1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 128]
    lengths += numbers.integers(1, 80, PROMPTS - len(lengths)).tolist()
    return [numbers.integers(0, VOCABULARY, length).tolist() for length in lengths]


def best(logits):
    """The best token, and those within reach of it: how many, each with its distance."""
    first = int(np.argmax(logits))
    gaps = (logits[first] - logits).astype(np.float32)
    others = [token for token in np.flatnonzero(gaps < REACH).tolist() if token != first]
    entry = struct.pack("<HB", first, len(others))
    return first, entry + b"".join(struct.pack("<He", token, gaps[token]) for token in others)


def make_pair(name, spec, prompts, folder):
    path = folder / f"{name}.gguf"
    model.write(path, spec)
    data = path.read_bytes()
    llama = oracle.Oracle(path, CONTEXT)
    steps, whole = [], []
    for index, prompt in enumerate(prompts):
        llama.reset()
        logits = llama.append(prompt)
        if index in WHOLE:
            whole.append(struct.pack("<HH", index, 0) + logits.astype("<f4").tobytes())
        for step in range(STEPS):
            first, entry = best(logits)
            steps.append(entry)
            if step + 1 < STEPS or index in WHOLE:
                logits = llama.append([first])
        if index in WHOLE:
            whole.append(struct.pack("<HH", index, STEPS) + logits.astype("<f4").tobytes())
    llama.close()
    path.unlink()
    head = (
        f"parity 1\nllama-cpp-python {version('llama-cpp-python')}, gguf {version('gguf')}\nmodel {spec.line()}\n"
        f"file {len(data)} {model.fnv(data):016x}\ncounts {len(prompts)} {STEPS} {len(whole)}\n\n"
    )
    (FOLDER / f"{name}.bin").write_bytes(head.encode() + b"".join(steps) + b"".join(whole))
    print(name, flush=True)


def mixtures():
    """Texts out of pieces that meet in every order."""
    numbers = random.Random(3)
    pieces = list("aZé水ж٣1२ \t\n\r'.,!-_😀\u0301\u00a0\u3000\u200dªǅ") + ["'s", "'LL", "  ", "\r\n", "the", " the", "12", "1234", "ﬁ", "<|im_end|>", "𝟙", "ก็"]
    return ["".join(numbers.choice(pieces) for _ in range(numbers.randrange(1, 24))) for _ in range(300)]


def make_tokens(name, path, out):
    tokenizer = oracle.Tokenizer(path)
    lines = []
    for text in dict.fromkeys([*vocabulary.TEXTS, *mixtures()]):
        plain, parsed = (tokenizer.encode(text, special) for special in [False, True])
        for special, tokens in [("any", plain)] if plain == parsed else [("plain", plain), ("parsed", parsed)]:
            lines.append(f"{special} {text.encode().hex() or '-'} {' '.join(map(str, tokens))}".rstrip())
    (out / f"tokens-{name}.txt").write_text("\n".join(lines) + "\n")
    print(f"tokens-{name}", flush=True)


def make_real(vocabularies, out):
    """The same texts with the vocabularies that llama.cpp's sources bring, which are too large to commit."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "prompts.txt").write_text("")
    for name in ["gpt-2", "llama-bpe", "qwen2", "llama-spm"]:
        path = out / f"tokens-real-{name}.gguf"
        shutil.copyfile(vocabularies / f"ggml-vocab-{name}.gguf", path)
        make_tokens(f"real-{name}", path, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these fixtures")
    parser.add_argument("--vocabularies", type=pathlib.Path, help="the folder `models` of llama.cpp's sources")
    parser.add_argument("--real", type=pathlib.Path, help="where fixtures of those vocabularies go")
    arguments = parser.parse_args()
    oracle.start()
    if arguments.vocabularies:
        make_real(arguments.vocabularies, arguments.real)
    asked = lambda name: not arguments.names or name in arguments.names
    lists = prompts()
    (FOLDER / "prompts.txt").write_text("".join(" ".join(map(str, prompt)) + "\n" for prompt in lists))
    for name in ["gpt-2", "llama-bpe", "qwen2", "spm"]:
        path = FOLDER / f"tokens-{name}.gguf"
        if asked(f"tokens-{name}"):
            vocabulary.write_spm(path) if name == "spm" else vocabulary.write_bpe(path, name)
            make_tokens(name, path, FOLDER)
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in pairs():
            if asked(name):
                make_pair(name, shape, lists, pathlib.Path(folder))


main()
