"""Seconds per step of this code and of a loop over users written plainly from Eq. 10, side by side, at d = 4096.

    python benchmarks/fit.py                 1,000 users x 47 pairs, ratios against the targets; 5 GB of memory
    python benchmarks/fit.py --users 100     smaller

Every ratio is the median over rounds in which both ways run one after the other in this process. Peak memory is that of
a process of its own for each way. Data are random numbers: nothing here says anything about accuracy.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from lore.comparisons import Comparisons
from utils import LoRe, LoRe_regularized, PersonalizeBatch, run_few_shot_vary_shots

K = 5
SWEEP = [1, 2, 3, 4, 5, 6]
WAYS = (
    "data alone",
    "loop",
    "step",
    "sweep",
    "logits for every user",
    "regularised step",
)  # whose peak is measured


# ------------------------------------------------------------------------------------------------------------------
# The plain ways
# ------------------------------------------------------------------------------------------------------------------


def loop_loss(users, V, W):
    """Eq. 10: the reward vectors V w_i of all users first, then user by user, as the published code does."""
    loss, rewards = 0, V @ W.softmax(1).T  # (d, K) @ (K, C) -> (d, C)
    for i, x in enumerate(users):
        loss = loss - F.logsigmoid(x @ rewards[:, i] / 100).mean()
    return loss


def thrifty_loop_loss(users, V, W):
    """The same, each V w_i where it is used: its backward pass then fills no (d, C) matrix for every user."""
    loss = 0
    for x, w in zip(users, W):
        loss = loss - F.logsigmoid(x @ (V @ w.softmax(0)) / 100).mean()
    return loss


def loop_steps(loss, users, rank, steps):
    """Joint fit: Adam steps on V and W."""
    d = users[0].shape[1]
    V, W = (
        torch.randn(d, rank, requires_grad=True),
        torch.randn(len(users), rank, requires_grad=True),
    )
    optimizer = torch.optim.Adam([W, V], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(users, V, W).backward()
        optimizer.step()


def every_user_steps(X, y, users, steps):
    """Regularised fit: logits of every pair for every user, of which one column is kept; W, then V."""
    V, W = torch.randn(X.shape[1], K, requires_grad=True), torch.rand(users, K, requires_grad=True)
    adam_W, adam_V = torch.optim.Adam([W], lr=0.5), torch.optim.Adam([V], lr=0.5)
    for _ in range(steps):
        for optimizer in (adam_W, adam_V):
            optimizer.zero_grad()
            logits = X @ (V @ W.softmax(1).T) / 100  # (n, d) @ (d, C) -> (n, C)
            (-F.logsigmoid(logits.gather(1, y.unsqueeze(1)))).mean().backward()
            optimizer.step()


def loop_few_shot_steps(users, V, steps):
    """New users: Adam on their mixtures, V frozen."""
    w = [torch.randn(V.shape[1], requires_grad=True) for _ in users]
    optimizer = torch.optim.Adam(w, lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        thrifty_loop_loss(users, V, w).backward()
        optimizer.step()


# ------------------------------------------------------------------------------------------------------------------
# Side by side
# ------------------------------------------------------------------------------------------------------------------


def random_comparisons(users, pairs, d):
    user = torch.arange(users).repeat_interleave(pairs)
    return Comparisons(torch.randn(users * pairs, d), user, tuple(map(str, range(users))))


def our_steps(model_class, data, ranks, steps):
    C, d = len(data.user_ids), data.num_features
    model_class.fit_together(
        [model_class(None, 0.0, C, d, rank, steps, 0.5) for rank in ranks], data
    )


def few_shot_sweep(shots, count, train, few, unseen):
    run_few_shot_vary_shots(20, [0.0], [K], shots, train, few, unseen, None, count, count, "cpu")


def seconds(function, *arguments):
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def verdict(reached):
    return "reached" if reached else "MISSED"


def compare(name, plain, ours, rounds, target=None):
    """One line: median seconds of both ways, median and range of their ratio. plain, ours: () -> seconds."""
    ours()  # warm up
    pairs = [(plain(), ours()) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    slow, fast, ratio = (statistics.median(values) for values in (*zip(*pairs), ratios))
    line = f"{name:30} {slow:9.3f} s {fast:9.4f} s {ratio:7.1f} x  ({min(ratios):.1f} .. {max(ratios):.1f})"
    print(line + (f"  target {target} x: {verdict(ratio >= target)}" if target else ""), flush=True)


def peak_memory(way, arguments):
    """Peak resident GB of a fresh process that takes two steps one way."""
    size = [f"--{name}={getattr(arguments, name)}" for name in ("users", "pairs", "features")]
    done = subprocess.run(
        [sys.executable, __file__, "--only", way, *size], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def two_steps(way, arguments):
    data = random_comparisons(arguments.users, arguments.pairs, arguments.features)
    if way == "loop":
        loop_steps(loop_loss, data.table.split(arguments.pairs), K, 2)
    elif way == "logits for every user":
        every_user_steps(data.table, data.user, arguments.users, 2)
    elif way != "data alone":
        our_steps(
            LoRe_regularized if way == "regularised step" else LoRe,
            data,
            SWEEP if way == "sweep" else [K],
            2,
        )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=47)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        return two_steps(arguments.only, arguments)
    # first of all, because a process starts with the peak of the one that started it
    print("peak memory of two steps, GB:")
    for way in WAYS:
        print(f"  {way:22} {peak_memory(way, arguments):5.2f}", flush=True)

    torch.manual_seed(0)
    users, pairs, d, rounds = arguments.users, arguments.pairs, arguments.features, arguments.rounds
    data = random_comparisons(users, pairs, d)
    X, lists = data.table, data.table.split(pairs)
    print(
        f"{users} users x {pairs} pairs, d = {d}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    floor = min(seconds(torch.mv, X, torch.randn(d)) for _ in range(5))
    print(f"floor: one X @ v {floor:.4f} s; a step reads X twice")

    def loops(loss, ranks):
        return lambda: sum(seconds(loop_steps, loss, lists, rank, 1) for rank in ranks)

    def ours(model_class, ranks, steps=5):
        return lambda: seconds(our_steps, model_class, data, ranks, steps) / steps

    print(f"{'':30} {'plain':>11} {'this code':>11}")
    compare("step", loops(loop_loss, [K]), ours(LoRe, [K]), rounds, target=6)
    compare("step, against a thrifty loop", loops(thrifty_loop_loss, [K]), ours(LoRe, [K]), rounds)
    compare("sweep K = 1..6", loops(loop_loss, SWEEP), ours(LoRe, SWEEP), rounds, target=15)
    compare(
        "sweep, against thrifty loops", loops(thrifty_loop_loss, SWEEP), ours(LoRe, SWEEP), rounds
    )
    every_user = lambda: seconds(every_user_steps, X, data.user, users, 1)
    compare("regularised step", every_user, ours(LoRe_regularized, [K]), rounds, target=30)

    few, V = random_comparisons(users // 2, 9, d), torch.randn(d, K)
    plain = lambda: (
        seconds(loop_few_shot_steps, few.table.split(9), V, 25) * 20
    )  # every step costs the same
    batch = lambda: seconds(PersonalizeBatch(users // 2, d, K, 500, 0.1).fit, few, V)
    compare("few-shot fit, 500 steps", plain, batch, rounds, target=100)

    for count in (20, 100):
        groups = [random_comparisons(count, m, d) for m in (150, 50, 50)]
        spent = seconds(few_shot_sweep, range(5, 55, 5), count, *groups)
        note = f"; target 10 s: {verdict(spent < 10)}" if count == 20 else ""
        print(
            f"few-shot sweep, 20 trials x 10 shots, {count} users, with its joint fit: {spent:.1f} s{note}"
        )


if __name__ == "__main__":
    main()
