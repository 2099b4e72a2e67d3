"""Small vocabularies of our own for the tokenizers of llama-bpe, qwen2, gpt-2 and SentencePiece models.

They are trained on whole texts, not on words: so tokens exist that reach over every kind of boundary, and a boundary that
is drawn elsewhere than llama.cpp draws it shows in the tokens.
"""

from collections import Counter

from gguf import GGUFWriter

TEXTS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\n", " \n", "\n ", "\r\n", "\r\n\r\n", " \r\n \t ", "a", " a", "a ", "  a  b   c    d",
    "Hello world", " Hello World!", "Hello, y'all! How are you 😁 ?", "The quick brown fox jumps over the lazy dog.",
    "I'm sure they'll say we've it; he'd, she's, it's, can't. I'M SURE THEY'LL SAY WE'VE IT; HE'D, SHE'S, CAN'T.",
    "'s 't 're 've 'm 'll 'd 'S 'T 'RE 'VE 'M 'LL 'D 'x ''s '''", "it's’s ’ll ‘quoted’ “double”",
    "0 1 12 123 1234 12345 123456 1234567 12345678", "3.14159 -2.5e+10 0x7fff 1,000,000 50% $9.99 №5 ½ ² ⅷ ٣٤٥ १२३ 一二三 ௧௨",
    "v1.2.3-beta+build.45 user@example.org https://example.org/path?query=1&x=[y]#z", "/usr/local/lib/libc.so.6 C:\\Windows\\System32",
    "fn main() {\n    let x: Vec<u32> = (0..10).map(|i| i * i).collect();\n\tprintln!(\"{x:?}\");\n}\n\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] & 0xff; } // done\n", "{\"tool\": \"set_alarm\", \"args\": {\"time\": \"06:30\", \"days\": [1, 2, 3]}}",
    "# Title\n\n* item one\n* item two\n\n> quote\n\n```\ncode\n```\n", "a_b __init__ CamelCase snake_case SCREAMING_CASE kebab-case",
    "....... ... !!! ??? ?!?! --- === ### @@@ %%% &&& *** ((())) [[]] {{}} <<>> ~~~ ``` ||| \\\\\\", "!a.b,c;d:e", "=.=+=-=*=/=<=>=!=",
    "Café naïve façade Ünïcödé crème brûlée", "Cafe\u0301 nai\u0308ve (decomposed)", "Zażółć gęślą jaźń", "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "Быстрая бурая лиса прыгает через ленивую собаку.", "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "Η γρήγορη καφέ αλεπού πηδά πάνω από το σκυλί", "Ο Ὀδυσσεύς ἦν πολύτροπος", "快速的棕色狐狸跳过懒狗。", "我在2024年5月1日买了3本书，共花费¥128.50。",
    "素早い茶色の狐がのろまな犬を飛び越える。カタカナ、ひらがな、漢字。", "ｆｕｌｌ　ｗｉｄｔｈ　１２３！", "빠른 갈색 여우가 게으른 개를 뛰어넘는다. 한국어 문장.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول", "שועל חום מהיר קופץ מעל כלב עצלן", "नमस्ते दुनिया, यह एक परीक्षण है।", "বাংলা ভাষা এবং தமிழ் மொழி",
    "สวัสดีชาวโลก นี่คือการทดสอบ", "ខ្មែរ ភាសា ລາວ မြန်မာ", "ქართული ენა Հայերեն լեզու ትግርኛ አማርኛ", "ᏣᎳᎩ ᓄᓇᕗᑦ ᚠᚢᚦᚨᚱᚲ 𐍂𐌿𐌽𐌰 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛",
    "😀😃😄 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ ☎︎ ♂♀ ✅✔️ 🦙🚀", "e😀f 1😀2 .😀. 😀😀", "zero\u200bwidth\u200djoin\u2060er\ufeff bom", "nbsp\u00a0here\u2003em\u3000ideographic\u2028line\u2029para\u0085next",
    "soft\u00adhyphen \u0301combining at start a\u0301\u0302\u0303", "ﬁ ﬂ ﬀ ß ẞ ŉ ǆ İ ı ſ K Å", "ª º ʰ ˈ ʼ ⁿ ₓ ⓐ Ⅻ ↉ 〇 〡 ㊀ ꜀", "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, ∑ᵢ aᵢ² ≤ ∞ → ∂f/∂x ≈ √2 ± π",
    "€100 £50 ¥2000 ₹300 ₿0.5 ¢99", "← ↑ → ↓ ⇒ ⟶ █▓▒░ ┌─┐ ● ■ ★ ♠", "\ue000private\U000f0000use\U0010ffff", "\x00\x01\x02\x1b[31mred\x1b[0m\x7f\x80\x9f",
    "mixed中文English日本語한국어русский123العربية", "١٢٣abc٤٥٦ १२३४५६७", "\u00a0\u00a0 x", "x \u00a0y", "x\u3000\u3000y", "a\n \n  \n   \nb", "a  \n\n\n  b", "   leading", "trailing   ", "tab\ttab\t\ttab",
    "one two  three   four    five     six      seven", "word\nword\n\nword\n\n\nword\r\nword", "a.\nb!\n\nc?\r\n", "x;\n\n\ty", "1\n2\n3", " 1 2 3", "1 a 2 b", "a1b2c3 4d5e6f", "don't1can't2", "@user #tag $var %20 ^ &amp; *", "'", "''", " '", "' '", "'a", "a'", "_", "__", "-", "--", "·", "…", "—", "–",
    "<|begin_of_text|>Hello<|eot_id|>", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<s>x</s> <unk>", "<think>hm</think> <tool_call>{}</tool_call>",
    "<|im_start|", "|im_end|>", "<<|im_end|>>", " <|im_end|> ", "<|endoftext|><|endoftext|>", "<0x41> <0x0A>", "▁lower▁one▁eighth",
]
# More text to train on, so that common words are tokens. Special tokens must not be learnt as text.
TRAINING = [text for text in TEXTS if not any(mark in text for mark in ["<|", "|>", "<s>", "<think>", "<0x"])] + [
    "In the beginning there was a hypervisor, and the hypervisor was small. It gave pages to a partition, and took them back when the "
    "partition had ended; nobody else could read what was in them. The model answers questions, sets alarms and timers, sends messages, "
    "and looks up the weather. ",
    "Am Anfang war der Hypervisor, und er war klein. Er gab der Partition Seiten und nahm sie zurück, sobald sie endete. ",
    "Au commencement était l'hyperviseur, et il était petit. Il donnait des pages à la partition. ",
    "В начале был гипервизор, и он был мал. Он давал страницы разделу и забирал их обратно. ", "一开始有一个虚拟机监控器，它很小。它把页面给分区，然后收回。",
    "0123456789 2024-05-01 12:34:56 1999 2000 2001 100000 123123123 ", "the the the and and of of to to in in is is that it was for on are as with his they at be this from I have or by ",
]


def bytes_to_stand_ins():
    """What byte-level vocabularies write for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}


def train(words, count):
    """Merges the most frequent pair, `count` times; of equals the first in order."""
    words = [list(word) for word in words]
    merges = []
    for _ in range(count):
        pairs = Counter(pair for word in words for pair in zip(word, word[1:]))
        if not pairs:
            break
        (a, b), frequency = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if frequency < 2:
            break
        merges.append((a, b))
        for word in words:
            i = 0
            while i + 1 < len(word):
                if word[i] == a and word[i + 1] == b:
                    word[i:i + 2] = [a + b]
                i += 1
    return merges


CONTROL, USER_DEFINED = 3, 4
SPECIAL = {
    "gpt-2": [("<|endoftext|>", CONTROL)],
    "llama-bpe": [("<|begin_of_text|>", CONTROL), ("<|end_of_text|>", CONTROL), ("<|start_header_id|>", CONTROL), ("<|end_header_id|>", CONTROL), ("<|eot_id|>", CONTROL)],
    "qwen2": [("<|endoftext|>", CONTROL), ("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL), ("<think>", USER_DEFINED), ("</think>", USER_DEFINED), ("<tool_call>", USER_DEFINED), ("</tool_call>", USER_DEFINED)],
}


def write_bpe(path, pre):
    stand_ins = bytes_to_stand_ins()
    merges = train(["".join(stand_ins[byte] for byte in text.encode()) for text in TRAINING], 900)
    tokens = [stand_ins[byte] for byte in range(256)]
    tokens += [token for token in dict.fromkeys(a + b for a, b in merges) if token not in tokens]
    types = [1] * len(tokens) + [kind for _, kind in SPECIAL[pre]]
    tokens += [token for token, _ in SPECIAL[pre]]
    writer = GGUFWriter(path, "llama")
    writer.add_string("general.name", f"a small vocabulary for {pre}")
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", pre)
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", types)
    writer.add_array("tokenizer.ggml.merges", [f"{a} {b}" for a, b in merges])
    ids = {token: id for id, token in enumerate(tokens)}
    writer.add_uint32("tokenizer.ggml.bos_token_id", ids[SPECIAL[pre][0][0]])
    writer.add_uint32("tokenizer.ggml.eos_token_id", ids[SPECIAL[pre][-1][0] if pre == "llama-bpe" else SPECIAL[pre][0][0]])
    finish(writer)


def write_spm(path):
    merges = train([text.replace(" ", "\u2581") for text in TRAINING], 900)
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [2, 3, 3] + [6] * 256
    pieces = list(dict.fromkeys(a + b for a, b in merges))
    scores = [0.0] * len(tokens) + [-float(rank) for rank in range(len(pieces))]
    tokens += pieces
    # Characters that are common; the rest is spelled in bytes.
    common = [char for char, _ in Counter("".join(TRAINING).replace(" ", "\u2581")).most_common(300) if char not in tokens]
    scores += [-float(len(pieces) + rank) for rank in range(len(common))]
    tokens += common
    types += [1] * (len(tokens) - len(types))
    writer = GGUFWriter(path, "llama")
    writer.add_string("general.name", "a small SentencePiece vocabulary")
    writer.add_string("tokenizer.ggml.model", "llama")
    writer.add_string("tokenizer.ggml.pre", "default")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.scores", scores)
    writer.add_array("tokenizer.ggml.token_type", types)
    writer.add_uint32("tokenizer.ggml.bos_token_id", 1)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    writer.add_uint32("tokenizer.ggml.unknown_token_id", 0)
    finish(writer)


def finish(writer):
    # llama.cpp wants to know a model's sizes even for a vocabulary alone.
    for key, value in [("block_count", 1), ("context_length", 64), ("embedding_length", 64), ("feed_forward_length", 64), ("attention.head_count", 1)]:
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
