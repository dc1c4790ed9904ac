"""PRISM at its real size: seconds and memory to prepare it, tokens to embed it, one step of its regularised sweep.

    python benchmarks/prism.py                  everything, against the targets; 3 GB of memory
    python benchmarks/prism.py --users 100      the steps with fewer people

8,011 dialogues with the published numbers of replies and people, the texts made up: 480 characters a reply and 70 a
question, which gives files of about the public ones' size. The step is measured on random embeddings, 15,000 pairs of
1,029 people, d = 4096, against logits of every pair for every person, rank by rank; every ratio is the median over
rounds in which both ways run in turn in this process.
"""

import json
import random
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fit import every_user_steps
from measure import ROOT, flags, in_turn, judge, load_module, ratio, run_alone, seconds

from lore.common import start
from lore.fit.comparisons import Comparisons
from lore.text.packing import pack_trees
from utils import LoRe_regularized

people = load_module("PRISM/people.py")

RANKS = [1, 5, 10, 15, 20, 25, 50]
PULL = 1e4  # alpha: how strongly V is held to the reference head
PEOPLE_OF_DIALOGUES = {1: 25, 2: 28, 3: 34, 4: 10, 5: 11} | people.PEOPLE_OF_DIALOGUES
QUESTION_TOKENS = 18  # of the made-up texts
REPLY_TOKENS = 110
TURN_TOKENS = 5  # for the template's marks around each


# ------------------------------------------------------------------------------------------------
# Preparing and tokens
# ------------------------------------------------------------------------------------------------


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


def measure_tokens():
    """Tokens of one pass per dialogue, of one pass per distinct conversation, and of two passes per pair."""
    rng = np.random.default_rng(0)
    shared, apart, published = 0, 0, 0

    def draw(mean):
        size = TURN_TOKENS + max(1, int(rng.gamma(2, mean / 2)))
        return rng.integers(0, 30000, size).astype(np.int32)

    for sizes in dialogues():
        before = np.zeros(1, np.int32)
        paths = []
        for size in sizes:
            asked = np.concatenate([before, draw(QUESTION_TOKENS)])
            replies = [np.concatenate([asked, draw(REPLY_TOKENS)]) for _ in range(size)]
            published += (size - 1) * len(replies[0]) + sum(map(len, replies[1:]))
            paths += replies if size > 1 else []  # a turn with one reply has no pair
            before = replies[0]
        apart += sum(map(len, paths))
        shared += sum(len(tree.tokens) for tree in pack_trees(range(len(paths)), paths))
    print(f"tokens to embed PRISM, millions: as trees {shared / 1e6:.1f}")
    print(f"a pass for each distinct conversation {apart / 1e6:.1f} ({apart / shared:.1f} x)")
    print(f"two passes for each pair {published / 1e6:.1f} ({published / shared:.1f} x)")


# ------------------------------------------------------------------------------------------------
# One step of the regularised sweep
# ------------------------------------------------------------------------------------------------


def our_steps(data, V_ref, steps):
    size = len(data.user_ids), data.num_features
    models = [LoRe_regularized(V_ref, PULL, *size, rank, steps, 0.5) for rank in RANKS]
    LoRe_regularized.fit_together(models, data)


def measure_step(data, rounds):
    """Seconds against the plain way."""
    V_ref = torch.randn(data.num_features, 1)

    def plain():
        pull = lambda V: PULL * (1 - F.cosine_similarity(V, V_ref, dim=0)).mean()
        return sum(seconds(every_user_steps, data, rank, 1, pull) for rank in RANKS)

    ours = lambda: seconds(our_steps, data, V_ref, 5) / 5
    ours()  # warm up
    spent = in_turn(rounds, plain, ours)
    slow, fast = map(statistics.median, spent)
    median, told = ratio(*spent)
    way = f"{slow:.1f} s rank by rank, {fast:.3f} s here: {told}"
    judge(f"one step of the sweep: {way}, target 40 x", median >= 40)


def main():
    parser = flags(__doc__)
    parser.add_argument("--users", type=int, default=1029)
    parser.add_argument("--pairs", type=int, default=15000)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    measure_prepare()  # first of all: see run_alone
    measure_tokens()

    torch.manual_seed(0)
    C, n, d = args.users, args.pairs, args.features
    user = torch.arange(n) * C // n
    data = Comparisons(torch.randn(n, d), user, tuple(map(str, range(C))))
    here = f"{torch.get_num_threads()} threads"
    print(f"{n} pairs of {C} people, d = {d}, K = {RANKS}, {here}")
    measure_step(data, args.rounds)


if __name__ == "__main__":
    start(main)
