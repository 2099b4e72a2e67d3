"""Exact match of a model on a held-out file, decoded greedily by the numpy reference; optionally the golden file.

    python3 evaluate.py --model ../demo.gguf --data heldout.jsonl
    python3 evaluate.py --model ../demo.gguf --golden golden.json
"""

import argparse
import collections
import json
import pathlib

from generate import README_PROMPT
from reference import Reference

# Paraphrases and look-alikes of the README's prompt, and one request per kind of argument.
GOLDEN_PROMPTS = [
    README_PROMPT,
    "please wake me up at half past six tomorrow",
    "Wake me tomorrow at half past six.",
    "set an alarm for 6:30 tomorrow",
    "wake me at quarter to seven on friday",
    "set a timer for twenty five minutes",
    "text Ophelia I'm running late",
    "send a message to Björn saying the train is late",
    "call Natasha Gupta on speaker",
    "schedule a lunch with Thomas on tuesday at noon",
    "remind me to buy spinach tomorrow at 5 pm",
    "play Crystal Horizon by Violet Ito",
    "set the volume to forty percent",
    "turn the brightness down to 15%",
    "turn off bluetooth",
    "navigate to the cathedral by bike",
    "what's the weather in Helsinki on sunday?",
    "open the Stopwatch app",
    "search for homemade pancakes recipe",
    "how do you say good morning in Spanish?",
    "add two jars of mustard to my picnic list",
    "take a selfie in ten seconds",
]


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=here.parent / "demo.gguf")
    parser.add_argument("--data", help="lines of {prompt, answer}")
    parser.add_argument("--golden", help="write prompts, token ids and greedy answers to this file")
    parser.add_argument("--limit", type=int, help="only the first so many")
    parser.add_argument("--show", type=int, default=0, help="print so many failures of each tool")
    args = parser.parse_args()
    model = Reference(args.model)

    if args.data:
        with open(args.data, encoding="utf-8") as file:
            samples = [json.loads(line) for line in file][: args.limit]
        right, total = collections.Counter(), collections.Counter()
        for sample in samples:
            tool = json.loads(sample["answer"])["tool"]
            answer, _, _ = model.answer(sample["prompt"])
            total[tool] += 1
            right[tool] += answer == sample["answer"]
            if answer != sample["answer"] and total[tool] - right[tool] <= args.show:
                print(f"{sample['prompt']}\n  want {sample['answer']}\n  got  {answer}")
        for tool in total:
            print(f"| `{tool}` | {right[tool]} | {total[tool]} | {100 * right[tool] / total[tool]:.1f} % |")
        print(json.dumps({"exact_match": round(right.total() / total.total(), 4), "n": total.total()}))

    if args.golden:
        cases = []
        for prompt in GOLDEN_PROMPTS:
            answer, out, margin = model.answer(prompt)
            cases.append({"prompt": prompt, "prompt_ids": model.prompt_ids(prompt), "answer": answer, "answer_ids": out, "margin": round(margin, 4)})
            print(f"{prompt} -> {answer}   (margin {margin:.2f})")
        with open(args.golden, "w", encoding="utf-8") as file:
            note = ("prompt_ids: the wrapped prompt with <s>; answer_ids: greedy, without </s>; margin: smallest difference of the two best"
                    " logits, </s> included")
            json.dump({"note": note, "cases": cases}, file, ensure_ascii=False, separators=(",", ":"))
            file.write("\n")


if __name__ == "__main__":
    main()
