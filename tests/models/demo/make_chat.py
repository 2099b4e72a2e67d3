"""Makes `tiny-chat.gguf` out of `tiny-f16.gguf`: another random model, with ChatML's special tokens and template.

    python3 make_chat.py --out ..

Needs nothing but Python. Random weights stay random when their order is reversed, so that is how this model differs. The two
special tokens take the places of the vocabulary's last two pieces.
"""

import argparse
import math
import pathlib
import struct

TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>"]
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
CONTROL = 3
F32, F16 = 0, 1
ALIGNMENT = 32


class Reader:
    """Reads the parts of a GGUF file in order."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def scalar(self, code):
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self):
        length = self.scalar("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            element, count = self.scalar("I"), self.scalar("Q")
            return element, [self.value(element) for _ in range(count)]
        return self.scalar(SCALARS[kind])


def put_string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def put_value(kind, value):
    if kind == STRING:
        return put_string(value)
    if kind == ARRAY:
        element, values = value
        return struct.pack("<IQ", element, len(values)) + b"".join(put_value(element, v) for v in values)
    return struct.pack("<" + SCALARS[kind], value)


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=here.parent)
    args = parser.parse_args()

    reader = Reader((here.parent / "tiny-f16.gguf").read_bytes())
    head = reader.data[:8]
    reader.at = 8
    tensor_count, key_count = reader.scalar("Q"), reader.scalar("Q")
    keys = {}
    for _ in range(key_count):
        name, kind = reader.string(), reader.scalar("I")
        keys[name] = (kind, reader.value(kind))
    tensors = []
    for _ in range(tensor_count):
        name = reader.string()
        dimensions = [reader.scalar("Q") for _ in range(reader.scalar("I"))]
        tensors.append((name, dimensions, reader.scalar("I"), reader.scalar("Q")))
    start = -(-reader.at // ALIGNMENT) * ALIGNMENT

    for name in [name for name in keys if name.startswith("flexserve.request.")]:
        del keys[name]
    keys["general.name"] = (STRING, "tiny-chat")
    keys["tokenizer.chat_template"] = (STRING, TEMPLATE)
    for i, text in enumerate(SPECIAL):
        keys["tokenizer.ggml.tokens"][1][1][-1 - i] = text
        keys["tokenizer.ggml.token_type"][1][1][-1 - i] = CONTROL

    out = head + struct.pack("<QQ", tensor_count, len(keys))
    out += b"".join(put_string(name) + struct.pack("<I", kind) + put_value(kind, value) for name, (kind, value) in keys.items())
    for name, dimensions, kind, offset in tensors:
        out += put_string(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)
    out += bytes(-len(out) % ALIGNMENT)
    data = bytearray(reader.data[start:])
    for name, dimensions, kind, offset in tensors:
        if kind == F16:
            count = math.prod(dimensions)
            data[offset : offset + 2 * count] = struct.pack(f"<{count}H", *reversed(struct.unpack_from(f"<{count}H", data, offset)))
    (args.out / "tiny-chat.gguf").write_bytes(out + data)


if __name__ == "__main__":
    main()
