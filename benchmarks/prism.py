"""PRISM at its real size: seconds and memory to prepare it, tokens to embed it, one step of its regularised sweep.

    python benchmarks/prism.py                  everything, against the targets; 3 GB of memory
    python benchmarks/prism.py --users 100      the steps with fewer people

8,011 dialogues with the published numbers of replies and people, the texts made up: 480 characters a reply and 70 a
question, which gives files of about the public ones' size. The step is measured on random embeddings, 15,000 pairs of
1,029 people, d = 4096, against logits of every pair for every person, rank by rank; the ratio is the median over
rounds in which both ways run in turn in this process.
"""

import json
import random
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fit import every_user_steps, seconds_of_a_step
from measure import ROOT, compare, flags, judge, load_module, run_alone, seconds

from lore.common import start
from lore.fit.comparisons import Comparisons
from utils import LoRe_regularized

people = load_module("PRISM/people.py")

RANKS = [1, 5, 10, 15, 20, 25, 50]
PULL = 1e4  # alpha: how strongly V is held to the reference head
PEOPLE_OF_DIALOGUES = {1: 25, 2: 28, 3: 34, 4: 10, 5: 11} | people.PEOPLE_OF_DIALOGUES
QUESTION_TOKENS = 18  # of the made-up texts
REPLY_TOKENS = 110
TURN_TOKENS = 5  # for the template's marks around each


def repeated(counts):
    """Each value as often as it was counted. counts: {value: how often}"""
    return np.repeat([*counts], [*counts.values()]).tolist()


def dialogues():
    """Replies per turn of all 8,011 dialogues, in an order of its own."""
    sizes = [*map(people.replies_per_turn, repeated(people.DIALOGUES_OF_REPLIES))]
    random.Random(0).shuffle(sizes)
    return sizes


def history(sizes, text):
    """The turns of a dialogue as upstream writes them. text: characters -> a text of about that size"""
    turns = []
    for turn, size in enumerate(sizes):
        turns.append({"turn": turn, "role": "user", "content": text(70)})
        for number in range(size):
            reply = {"turn": turn, "role": "model", "content": text(480), "if_chosen": number == 0}
            reply |= {"model_name": "a/model", "model_provider": "a provider", "score": 50}
            turns.append(reply | {"within_turn_id": number})
    return turns


def write_upstream(folder):
    """survey.jsonl and conversations.jsonl of the real size."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(rng.choices(letters, k=rng.randint(2, 10))) for _ in range(5000)]
    text = lambda characters: " ".join(rng.choices(vocabulary, k=characters // 7))
    counts = repeated(PEOPLE_OF_DIALOGUES)
    with open(folder / "survey.jsonl", "w") as file:
        for user in range(1500):
            row = {"user_id": f"user{user}", "num_completed_conversations": int(user < len(counts))}
            file.write(json.dumps(row) + "\n")
    owners = repeated(dict(enumerate(counts)))
    with open(folder / "conversations.jsonl", "w") as file:
        for number, (owner, sizes) in enumerate(zip(owners, dialogues())):
            row = {"conversation_id": f"c{number}", "user_id": f"user{owner}"}
            row |= {"conversation_turns": len(sizes), "conversation_history": history(sizes, text)}
            file.write(json.dumps(row | {"open_feedback": text(1500)}) + "\n")


def measure_prepare():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_upstream(folder)
        size = (folder / "conversations.jsonl").stat().st_size / 1e6
        script = ROOT / "PRISM/prepare.py"
        spent, peak = run_alone(script, "--source", folder, "--data", folder / "data")
    told = f"prepare.py, 8,011 dialogues, {size:.0f} MB: {spent:.1f} s, peak {peak:.2f} GB; 60 s, 2 GB"
    judge(told, spent < 60 and peak < 2)


def print_tokens():
    """Of all that is said, of each conversation up to a reply by itself, and of two for each pair, at mean lengths."""
    asked = QUESTION_TOKENS + TURN_TOKENS
    reply = REPLY_TOKENS + TURN_TOKENS
    once = apart = in_pairs = 0
    for sizes in dialogues():
        for turn, size in enumerate(sizes, start=1):
            once += asked + size * reply
            apart += size * turn * (asked + reply) * (size > 1)  # a turn with one reply has no pair
            in_pairs += 2 * (size - 1) * turn * (asked + reply)
    print(f"tokens to embed PRISM, millions: each once {once / 1e6:.1f}", end=", ")
    print(f"a pass for each conversation {apart / 1e6:.1f}, two for each pair {in_pairs / 1e6:.1f}")


def main():
    args = flags(__doc__, users=1029, pairs=15000, features=4096, rounds=3).parse_args()
    measure_prepare()  # first of all: see run_alone
    print_tokens()

    torch.manual_seed(0)
    C, n, d = args.users, args.pairs, args.features
    user = torch.arange(n) * C // n
    data = Comparisons(torch.randn(n, d), user, tuple(map(str, range(C))))
    V_ref = torch.randn(d, 1)
    pull = lambda V: PULL * (1 - F.cosine_similarity(V, V_ref, dim=0)).mean()
    plain = lambda: sum(seconds(every_user_steps, data, rank, pull) for rank in RANKS)
    ours = lambda: seconds_of_a_step(LoRe_regularized, data, RANKS, V_ref, PULL)
    print(f"{n} pairs of {C} people, d = {d}, K = {RANKS}, {torch.get_num_threads()} threads")
    compare("one step, rank by rank and here", args.rounds, plain, ours, target=40)


if __name__ == "__main__":
    start(main)
