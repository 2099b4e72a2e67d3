#!/usr/bin/env python3
"""Writes `tests/models/formats.json`: random blocks of every tensor format, and the values that the reference
implementation of the formats (the `gguf` Python package of the llama.cpp project) reads from them.

    pip install gguf==0.19.0 && python3 tests/models/parity/formats.py
"""

import json
import pathlib
from importlib.metadata import version

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize

ROOT = pathlib.Path(__file__).parent.parent
ELEMENTS = 1024
# Where the F16 scales are in a block, in bytes.
SCALES = {
    Type.F32: [], Type.F16: [], Type.BF16: [],
    Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2],
    Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}


def blocks(ty, random):
    """Random bytes, so that every bit of a block matters somewhere; only scales are made to be reasonable numbers."""
    length, size = GGML_QUANT_SIZES[ty]
    if ty in (Type.F32, Type.F16, Type.BF16):
        values = random.standard_normal(ELEMENTS).astype(np.float32)
        if ty == Type.F32:
            return values.view(np.uint8)
        if ty == Type.F16:
            return values.astype(np.float16).view(np.uint8)
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    data = random.integers(0, 256, (ELEMENTS // length, size), dtype=np.uint8)
    for at in SCALES[ty]:
        scale = random.uniform(-0.1, 0.1, len(data)).astype(np.float16)
        data[:, at:at + 2] = scale.view(np.uint8).reshape(-1, 2)
    return data.reshape(-1)


def main():
    random = np.random.default_rng(4)
    formats = []
    for ty in SCALES:
        data = blocks(ty, random)
        values = dequantize(data, ty).astype("<f4")
        assert values.shape == (ELEMENTS,) and np.isfinite(values).all()
        length, size = GGML_QUANT_SIZES[ty]
        formats.append({
            "name": ty.name,
            "number": int(ty),
            "block_length": length,
            "block_bytes": size,
            "data": data.tobytes().hex(),
            "values": values.tobytes().hex(),
        })
    document = {
        "comment": "Made by tests/models/parity/formats.py. data: blocks; values: little-endian F32; both in hexadecimal.",
        "gguf": version("gguf"),
        "formats": formats,
    }
    (ROOT / "formats.json").write_text(json.dumps(document, indent=1) + "\n")


main()
