"""PRISM at its real size: seconds and memory to prepare it, tokens to embed it, one step of its regularised sweep.

    python benchmarks/prism.py                  everything, against the targets; 3 GB of memory
    python benchmarks/prism.py --users 100      the steps with fewer people

8,011 dialogues with the published numbers of replies and people, the texts made up: 480 characters a reply and 70 a
question, which gives files of about the public ones' size. The step is measured on random embeddings, 15,000 pairs of
1,029 people, d = 4096, against logits of every pair for every person, rank by rank; every ratio is the median over
rounds in which both ways run in turn in this process.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "PRISM"))

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lore.fit.comparisons import Comparisons
from lore.fit.product import TallProduct
from lore.text.packing import pack_trees
from people import DIALOGUES_OF_REPLIES, replies_per_turn
from utils import LoRe_regularized

PREPARE = Path(__file__).resolve().parent.parent / "PRISM/prepare.py"
RANKS = [1, 5, 10, 15, 20, 25, 50]
DIALOGUES_OF_PEOPLE = {
    1: 25,
    2: 28,
    3: 34,
    4: 10,
    5: 11,
    6: 1283,
    7: 5,
}  # all of PRISM, counted as in people.py
QUESTION_TOKENS, REPLY_TOKENS, TURN_TOKENS = (
    18,
    110,
    5,
)  # of the made-up texts; 5 for the template's marks around each


def verdict(reached):
    return "reached" if reached else "MISSED"


# ------------------------------------------------------------------------------------------------------------------
# Preparing and tokens
# ------------------------------------------------------------------------------------------------------------------


def dialogues():
    """Replies per turn of all 8,011 dialogues, in an order of its own."""
    sizes = [
        replies_per_turn(replies)
        for replies, count in DIALOGUES_OF_REPLIES.items()
        for _ in range(count)
    ]
    random.Random(0).shuffle(sizes)
    return sizes


def write_upstream(folder):
    """survey.jsonl and conversations.jsonl of the real size."""
    rng = random.Random(0)
    words = [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 10)))
        for _ in range(5000)
    ]
    text = lambda characters: " ".join(rng.choices(words, k=characters // 7))
    counts = [count for count, people in DIALOGUES_OF_PEOPLE.items() for _ in range(people)]
    owners = [user for user, count in enumerate(counts) for _ in range(count)]
    with open(folder / "survey.jsonl", "w") as file:
        for user in range(1500):
            file.write(
                json.dumps(
                    {
                        "user_id": f"user{user}",
                        "num_completed_conversations": int(user < len(counts)),
                    }
                )
                + "\n"
            )
    with open(folder / "conversations.jsonl", "w") as file:
        for number, (owner, sizes) in enumerate(zip(owners, dialogues())):
            history = []
            for turn, size in enumerate(sizes):
                history.append({"turn": turn, "role": "user", "content": text(70)})
                for reply in range(size):
                    about = {
                        "model_name": "a/model",
                        "model_provider": "a provider",
                        "score": 50,
                        "within_turn_id": reply,
                    }
                    history.append(
                        {
                            "turn": turn,
                            "role": "model",
                            "content": text(480),
                            "if_chosen": reply == 0,
                            **about,
                        }
                    )
            row = {
                "conversation_id": f"c{number}",
                "user_id": f"user{owner}",
                "conversation_turns": len(sizes),
            }
            file.write(
                json.dumps({**row, "conversation_history": history, "open_feedback": text(1500)})
                + "\n"
            )


def measure_prepare():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_upstream(folder)
        size = (folder / "conversations.jsonl").stat().st_size / 1e6
        begin = time.perf_counter()
        command = [sys.executable, PREPARE, "--source", folder, "--data", folder / "data"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"prepare.py, 8,011 dialogues, {size:.0f} MB: {seconds:.1f} s, target 60 s: {verdict(seconds < 60)};",
        end=" ",
    )
    print(f"peak {peak:.2f} GB, target 2 GB: {verdict(peak < 2)}", flush=True)


def measure_tokens():
    """Tokens of one pass per dialogue, of one pass per distinct conversation, and of two passes per pair."""
    rng, shared, apart, published = np.random.default_rng(0), 0, 0, 0
    draw = lambda mean: rng.integers(
        0, 30000, TURN_TOKENS + max(1, int(rng.gamma(2, mean / 2)))
    ).astype(np.int32)
    for sizes in dialogues():
        history, ids = np.zeros(1, np.int32), []
        for size in sizes:
            asked = np.concatenate([history, draw(QUESTION_TOKENS)])
            replies = [np.concatenate([asked, draw(REPLY_TOKENS)]) for _ in range(size)]
            published += (size - 1) * len(replies[0]) + sum(map(len, replies[1:]))
            ids += replies if size > 1 else []  # a turn with one reply has no pair
            history = replies[0]
        apart += sum(map(len, ids))
        shared += sum(len(tree.tokens) for tree in pack_trees(range(len(ids)), ids))
    ratios = f"({apart / shared:.1f} x); with two for each pair {published / 1e6:.1f} ({published / shared:.1f} x)"
    print(f"tokens to embed PRISM, millions: as trees {shared / 1e6:.1f};", end=" ")
    print(f"with a pass for each distinct conversation {apart / 1e6:.1f} {ratios}")


# ------------------------------------------------------------------------------------------------------------------
# One step of the regularised sweep
# ------------------------------------------------------------------------------------------------------------------


def every_user_step(X, y, users, rank, V_ref):
    """W, then V with its pull; logits of every pair for every user, of which one column is kept."""
    V, W = (
        torch.randn(X.shape[1], rank, requires_grad=True),
        torch.rand(users, rank, requires_grad=True),
    )
    adam_W, adam_V = torch.optim.Adam([W], lr=0.5), torch.optim.Adam([V], lr=0.5)
    begin = time.perf_counter()
    for optimizer in (adam_W, adam_V):
        optimizer.zero_grad()
        logits = X @ (V @ W.softmax(1).T) / 100  # (n, d) @ (d, C) -> (n, C)
        pull = (1 - F.cosine_similarity(V, V_ref, dim=0)).mean()
        (-F.logsigmoid(logits.gather(1, y.unsqueeze(1))).mean() + 1e4 * pull).backward()
        optimizer.step()
    return time.perf_counter() - begin


def our_models(users, d, V_ref, steps):
    return [LoRe_regularized(V_ref, 1e4, users, d, rank, steps, 0.5) for rank in RANKS]


def our_step(data, V_ref, steps=5):
    models = our_models(len(data.user_ids), data.num_features, V_ref, steps)
    begin = time.perf_counter()
    LoRe_regularized.fit_together(models, data)
    return (time.perf_counter() - begin) / steps


class Traffic(TorchDispatchMode):
    """Bytes that every operation reads and writes, each tensor of it once; views cost nothing."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view and "detach" not in str(function) and "expand" not in str(function):
            seen = {}
            for tensor in torch.utils._pytree.tree_leaves((args, kwargs, result)):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    seen[storage.data_ptr()] = min(
                        storage.nbytes(), tensor.numel() * tensor.element_size()
                    )
            self.bytes += sum(seen.values())
        return result


def traffic(function):
    with Traffic() as count:
        function()
    return count.bytes


def one_pass(X, Vs):
    Zs = TallProduct.apply(X, *Vs)
    torch.autograd.grad(Zs, Vs, [torch.ones_like(Z) for Z in Zs])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=1029)
    parser.add_argument("--pairs", type=int, default=15000)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    measure_prepare()  # first of all, because a process starts with the peak of the one that started it
    measure_tokens()

    torch.manual_seed(0)
    users, d = arguments.users, arguments.features
    user = torch.arange(arguments.pairs) * users // arguments.pairs
    data = Comparisons(torch.randn(arguments.pairs, d), user, tuple(map(str, range(users))))
    X, V_ref = data.table, torch.randn(d, 1)
    print(
        f"{len(data)} pairs of {users} people, d = {d}, K = {RANKS}, {torch.get_num_threads()} threads"
    )
    Vs = [torch.randn(rank, d).T.requires_grad_() for rank in RANKS]
    our_step(data, V_ref)  # warm up
    rounds = []
    for _ in range(arguments.rounds):
        plain = sum(every_user_step(X, user, users, rank, V_ref) for rank in RANKS)
        ours, begin = our_step(data, V_ref), time.perf_counter()
        for _ in range(5):
            one_pass(X, Vs)
        rounds.append((plain, ours, (time.perf_counter() - begin) / 5))
    plain, ours, bare = (statistics.median(values) for values in zip(*rounds))
    ratios = [plain / ours for plain, ours, _ in rounds]
    ratio = statistics.median(ratios)
    print(
        f"one step of the sweep: {plain:.1f} s rank by rank, {ours:.3f} s here: {ratio:.0f} x",
        end=" ",
    )
    print(f"({min(ratios):.0f} .. {max(ratios):.0f}), target 40 x: {verdict(ratio >= 40)}")
    print(f"one forward and backward pass over X: {bare:.3f} s")

    steps = lambda count: traffic(
        lambda: LoRe_regularized.fit_together(our_models(users, d, V_ref, count), data)
    )
    step, least = (steps(6) - steps(1)) / 5, traffic(lambda: one_pass(X, Vs))
    print(
        f"memory traffic of a step {step / 1e6:.0f} MB, of that pass {least / 1e6:.0f} MB: {step / least:.2f} x,",
        end=" ",
    )
    print(f"target 1.3 x: {verdict(step / least <= 1.3)}")


if __name__ == "__main__":
    main()
