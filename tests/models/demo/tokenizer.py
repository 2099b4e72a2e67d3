"""The demo model's SentencePiece-style BPE vocabulary: training, encoding, decoding.

Encoding is llama.cpp's SPM algorithm (`llm_tokenizer_spm`): split into UTF-8 characters, merge the adjacent pair whose
piece has the highest score (leftmost on ties) until none is left, spell what is not in the vocabulary with byte tokens.
Training is byte-pair encoding over *units* that never cross a boundary between letters, digits, spaces and
punctuation; so a word is cut into the same pieces wherever it stands (after a space in the request, after a quote in
the answer), and copying a name is copying token by token. The punctuation of a tool call is merged in a second stage.
"""

import collections
import heapq
import json
import re

UNK, BOS, EOS = 0, 1, 2
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # llama_token_type
SPACE = "\u2581"
BYTE0 = 3  # id of <0x00>

# Pieces that cross a boundary: each is the concatenation of two that exist before it.
JOINTS = [('{"', "tool"), ('{"tool', '":"'), ('","', "args"), ('","args', '":{"')]


class Tokenizer:
    """Vocabulary and SPM encoder. `pieces[i]`, `scores[i]`, `types[i]` describe token `i`."""

    def __init__(self, pieces, scores, types):
        self.pieces, self.scores, self.types = pieces, scores, types
        self.cache = {}
        self.id_of = {piece: i for i, piece in enumerate(pieces)}

    @classmethod
    def load(cls, path):
        with open(path, encoding="utf-8") as file:
            return cls.from_merged(json.load(file)["pieces"])

    def save(self, path):
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"pieces": self.pieces[BYTE0 + 256 :]}, file, ensure_ascii=True, indent=0)
            file.write("\n")

    @classmethod
    def from_merged(cls, normal):
        """Builds the vocabulary from its normal pieces, best score first."""
        pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + list(normal)
        scores = [0.0] * (BYTE0 + 256) + [-float(i) for i in range(len(normal))]
        types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(normal)
        return cls(pieces, scores, types)

    def encode(self, text, bos=True):
        """Token ids of `text`, after `<s>` if `bos`."""
        out = [BOS] if bos else []
        symbols = list(text.replace(" ", SPACE))
        prev = list(range(-1, len(symbols) - 1))
        follow = list(range(1, len(symbols))) + [-1]
        queue = []

        def push(left, right):
            if left >= 0 and right >= 0:
                token = self.id_of.get(symbols[left] + symbols[right])
                if token is not None:
                    heapq.heappush(queue, (-self.scores[token], left, right, symbols[left] + symbols[right]))

        for i in range(1, len(symbols)):
            push(i - 1, i)
        while queue:
            _, left, right, merged = heapq.heappop(queue)
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != merged:
                continue
            symbols[left], symbols[right] = merged, ""
            follow[left] = follow[right]
            if follow[right] >= 0:
                prev[follow[right]] = left
            push(prev[left], left)
            push(left, follow[left])
        for symbol in symbols:
            if symbol:
                token = self.id_of.get(symbol)
                out += [token] if token is not None else [BYTE0 + b for b in symbol.encode()]
        return out

    def encode_cached(self, text, bos=True):
        """As `encode`, for many texts: nothing merges across the boundaries that `units` cuts at, except the joints."""
        out = [BOS] if bos else []
        for unit in re.findall(r'\{"tool":"|","args":\{"|[a-z]+(?:_[a-z]+)+|[A-Za-z]+|[{}":,]+|.|\n', text):
            if unit not in self.cache:
                self.cache[unit] = self.encode(unit, bos=False)
            out += self.cache[unit]
        return out

    def decode(self, ids):
        """Text of `ids`; control tokens are left out, invalid UTF-8 is replaced."""
        data = b""
        for i in ids:
            if self.types[i] == BYTE:
                data += bytes([i - BYTE0])
            elif self.types[i] == NORMAL:
                data += self.pieces[i].replace(SPACE, " ").encode()
        return data.decode(errors="replace")


def units(text):
    """Cuts `text` where no piece may cross: runs of ASCII letters, runs of JSON punctuation, single other characters."""
    return re.findall(r'[A-Za-z]+|[{}":,]+|.', text.replace(" ", SPACE).replace("\n", ""))


def train(counts, size, whole=()):
    """Learns a vocabulary of `size` tokens from `counts` (unit -> occurrences).

    `whole` lists words that must end up as one piece; names with `_` are joined from their parts in the second stage.
    """
    joints = list(JOINTS)
    counts = collections.Counter(counts)
    heavy = sum(counts.values())
    for word in whole:
        parts = re.findall(r"[A-Za-z]+|.", word)
        joined = parts[0]
        for part in parts:
            if part != "_":
                counts[part] += heavy
        for part in parts[1:]:
            joints.append((joined, part))
            joined += part
    for run in ['{"', '":"', '":{"', '":', '","', ',"', '"}}', "}}", "tool", "args"]:
        counts[run] += heavy
    joints = list(dict.fromkeys(joints))
    chars = [chr(c) for c in range(33, 127)] + [SPACE]
    merged_count = size - BYTE0 - 256 - len(chars) - len(joints)

    words = [(list(word), n) for word, n in counts.items() if word.isascii() and len(word) > 1]
    merges = []
    while len(merges) < merged_count:
        pairs = collections.Counter()
        for symbols, n in words:
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += n
        if not pairs:
            break
        (left, right), _ = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if left + right not in merges:
            merges.append(left + right)
        kept = []
        for symbols, n in words:
            i = 0
            while i < len(symbols) - 1:
                if symbols[i] == left and symbols[i + 1] == right:
                    symbols[i : i + 2] = [left + right]
                i += 1
            if len(symbols) > 1:
                kept.append((symbols, n))
        words = kept
    merges += [left + right for left, right in joints]
    return Tokenizer.from_merged(merges + chars)
