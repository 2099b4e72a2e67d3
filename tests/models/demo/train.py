"""Trains the demo model on generated data and writes `demo.gguf` (Q8_0).

    python3 train.py --work WORK --out ../demo.gguf

Keeps the tokenised data and the last checkpoint in WORK. Runs on one CPU thread; needs torch, numpy and gguf.
"""

import argparse
import collections
import itertools
import json
import pathlib
import random
import time

import numpy as np
import torch
from torch.nn import functional

import gguf_file
import tokenizer as tok
from generate import DAYS, ONES, TENS, Sampler, normal
from lexicon import LANGUAGE, SETTING
from model import Model
from templates import ARGUMENTS

VALUES = DAYS + ONES + TENS[2:] + LANGUAGE + list(SETTING) + "today tomorrow seconds minutes hours true on off front back walking driving cycling transit daily weekdays weekends".split()


def make_tokenizer(path, size, seed):
    """Trains the vocabulary on the training split's words and what tool calls consist of."""
    sampler, counts = Sampler(seed, "train"), collections.Counter()
    for _ in range(40000):
        prompt, answer = sampler.sample()
        counts.update(unit for unit in tok.units(prompt) if unit.isalpha())
        counts.update(unit for unit in tok.units(answer) if unit.isalpha())
    # Rare words are mostly the invented ones: they are for copying, not for the vocabulary.
    counts = {unit: n for unit, n in counts.items() if n >= 12}
    keys = [key for keys in ARGUMENTS.values() for key in keys]
    tok.train(counts, size, list(dict.fromkeys(list(ARGUMENTS) + keys + VALUES))).save(path)


def make_data(path, tokenizer, count, seed):
    """Tokenises `count` training samples: ids one after another, and per sample its start, prompt length and length."""
    here, tests = pathlib.Path(__file__).parent, set()
    for name in ("heldout.jsonl", "probe.jsonl"):
        with open(here / name, encoding="utf-8") as file:
            tests |= {normal(json.loads(line)["prompt"]) for line in file}
    sampler, ids, index = Sampler(seed, "train"), [], []
    while len(index) < count:
        prompt, answer = sampler.sample()
        if normal(prompt) in tests:  # a request written by hand may be one that training happens on
            continue
        question, reply = tokenizer.encode_cached(prompt + "\n"), tokenizer.encode_cached(answer, bos=False) + [tok.EOS]
        # The answer is decoded after the prompt: both must be cut alike on their own and together.
        index.append((len(ids), len(question), len(question) + len(reply)))
        ids += question + reply
    np.savez(path, ids=np.array(ids, np.int16), index=np.array(index, np.int64))


def batches(index, tokens, rng):
    """Endless batches of sample numbers of similar length, about `tokens` tokens each."""
    while True:
        order = rng.permutation(len(index))
        for chunk in np.array_split(order, max(1, len(order) // 8192)):
            chunk = chunk[np.argsort(index[chunk, 2] + rng.random(len(chunk)), kind="stable")]
            groups, start = [], 0
            while start < len(chunk):
                end = start
                while end < len(chunk) and (end - start + 1) * index[chunk[end], 2] <= tokens:
                    end += 1
                # A short rest would make a noisy step: let it wait for another epoch.
                if (end - start) * index[chunk[end - 1], 2] > tokens * 3 // 4:
                    groups.append(chunk[start:end])
                start = end
            rng.shuffle(groups)
            yield from groups


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz iterations; for the matrices inside the blocks."""

    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p)
                state["m"].lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(state["m"], group["momentum"])
                tall = x.shape[0] > x.shape[1]
                x = x.t() if tall else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    a = x @ x.t()
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                x = x.t() if tall else x
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(x, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def load(path, vocabulary):
    """The model of a checkpoint, or of a GGUF file: its weights, dequantised."""
    if str(path).endswith(".gguf"):
        config, _, tensors = gguf_file.read(path)
        state = {name: torch.from_numpy(array) for name, array in tensors.items()}
    else:
        checkpoint = torch.load(path)
        config, state = checkpoint["config"], checkpoint["model"]
    model = Model(config, vocabulary)
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model


def export(path, model, tokenizer):
    """Writes the model as Q8_0."""
    gguf_file.write(path, model.config, tokenizer, model.gguf_tensors(), "Q8_0", "flexserve demo phone assistant",
                    "One English request in, one JSON tool call out")


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for data and checkpoints")
    parser.add_argument("--out", default=here.parent / "demo.gguf")
    parser.add_argument("--tokenizer", type=pathlib.Path, default=here / "tokenizer.json", help="made if it does not exist")
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=300000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--minutes", type=float, help="let the schedule follow the clock and end then, instead of after --steps")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens in a batch")
    parser.add_argument("--lr", type=float, default=0.02, help="of Muon; AdamW, for embedding and norms, uses 0.2 times it")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--hard", type=float, default=1, help="learn from this share of the samples, those with the highest loss")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", help="checkpoint or GGUF file to start from; it decides the shape")
    parser.add_argument("--export-only", action="store_true", help="write the checkpoint of --start, train nothing")
    parser.add_argument("--average", help="with --export-only: take the mean of the weights of --start and of this checkpoint, which"
                        " was trained from it; it forgets less and its noise is smaller")
    parser.add_argument("--part", type=float, default=0.5, help="weight of --average in the mean")
    parser.add_argument("--checkpoint-every", type=int, default=200)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.tokenizer.exists():
        make_tokenizer(args.tokenizer, args.vocabulary, args.seed)
    tokenizer = tok.Tokenizer.load(args.tokenizer)
    if args.export_only:
        model = load(args.start, len(tokenizer.pieces))
        if args.average:
            other, part = load(args.average, len(tokenizer.pieces)).state_dict(), args.part
            model.load_state_dict({name: (1 - part) * value + part * other[name] for name, value in model.state_dict().items()})
            torch.save({"model": model.state_dict(), "config": model.config}, args.work / "checkpoint.pt")
        return export(args.out, model, tokenizer)
    data_path = args.work / f"data-{args.samples}-{args.seed}.npz"
    if not data_path.exists():
        make_data(data_path, tokenizer, args.samples, args.seed + 1000)
    data = np.load(data_path)
    ids, index = data["ids"].astype(np.int64), data["index"]
    print(f"{len(index)} samples, {len(ids)} tokens, longest {index[:, 2].max()}", flush=True)

    config = {"block_count": args.layers, "context_length": 256, "embedding_length": args.width, "feed_forward_length": args.hidden,
              "head_count": args.heads, "head_count_kv": args.kv_heads, "rms_epsilon": 1e-5, "rope_freq_base": 10000.0}
    model = load(args.start, len(tokenizer.pieces)) if args.start else Model(config, len(tokenizer.pieces))
    config = model.config
    print(json.dumps(config), sum(p.numel() for p in model.parameters()), "parameters", flush=True)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "token_embd" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "token_embd" in name]
    optimizers = [Muon(matrices, lr=args.lr, weight_decay=0.02), torch.optim.AdamW(others, lr=0.2 * args.lr, betas=(0.9, 0.98), weight_decay=0.0)]
    base = [[group["lr"] for group in o.param_groups] for o in optimizers]

    def save(name):
        torch.save({"model": model.state_dict(), "config": config}, args.work / "checkpoint.pt")
        export(name, model, tokenizer)

    def batch(chosen):
        """Token ids, targets, and where in them the answers of the samples `chosen` stand."""
        length = int(chosen[:, 2].max())
        column = np.arange(length)
        inside = column < chosen[:, 2:3]
        block = np.where(inside, ids[np.minimum(chosen[:, :1] + column, len(ids) - 1)], 0)
        rows, columns = np.nonzero((column >= chosen[:, 1:2] - 1) & (column < chosen[:, 2:3] - 1))
        target = torch.from_numpy(np.roll(block, -1, axis=1)[rows, columns])
        return torch.from_numpy(block), target, torch.from_numpy(rows), torch.from_numpy(columns)

    def hardest(chosen):
        """The share of `chosen` that the model knows least. Most samples it knows by heart soon: to look is cheaper than to learn."""
        with torch.no_grad():
            block, target, rows, columns = batch(chosen)
            losses = functional.cross_entropy(model(block, (rows, columns)), target, reduction="none")
            total = torch.zeros(len(chosen)).index_add_(0, rows, losses).numpy()
        return chosen[np.argsort(-total, kind="stable")[: max(1, round(len(chosen) * args.hard))]], total.mean()

    rng, start, seen, running = np.random.default_rng(args.seed), time.time(), 0, None
    stream = batches(index, round(args.tokens / args.hard), rng)
    for step in itertools.count():
        part = (time.time() - start) / 60 / args.minutes if args.minutes else step / args.steps
        if part >= 1:
            break
        chosen = index[next(stream)]
        seen += int(chosen[:, 2].sum())
        if args.hard < 1:
            chosen, mean = hardest(chosen)
        block, target, rows, columns = batch(chosen)
        loss = functional.cross_entropy(model(block, (rows, columns)), target)
        if args.hard == 1:
            mean = loss.item() * len(rows) / len(chosen)
        for o in optimizers:
            o.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scale = min(1, (step + 1) / 50) * max(0.01, 1 - part)
        for o, rates in zip(optimizers, base):
            for group, rate in zip(o.param_groups, rates):
                group["lr"] = rate * scale
            o.step()
        running = mean if running is None else 0.95 * running + 0.05 * mean
        if step % 20 == 0:
            now = time.time() - start
            print(f"step {step} loss/sample {running:.4f} samples/batch {len(chosen)} tokens/s {seen / now:.0f} {now:.0f} s", flush=True)
        if (step + 1) % args.checkpoint_every == 0:
            save(args.work / "checkpoint.gguf")
    save(args.out)


if __name__ == "__main__":
    main()
