"""Seconds per step of this code and of a loop over users written plainly from Eq. 10, side by side, at d = 4096.

    python benchmarks/fit.py                 1,000 users x 47 pairs, ratios against the targets; 5 GB of memory
    python benchmarks/fit.py --users 100     smaller
    python benchmarks/fit.py --before PATH   only the fits, against another checkout of this repository; 1 GB of disk

Every ratio is the median over rounds in which both ways run one after the other, in this process or, of two checkouts,
each in its own. Peak memory is that of a process of its own for each way. Data are random numbers: nothing here says
anything about accuracy.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

HERE = str(Path(__file__).resolve().parent.parent)
sys.path.insert(0, os.environ.get("LORE_CHECKOUT", HERE))  # that a process of --before times

import pandas as pd
import torch
import torch.nn.functional as F

from lore.fit import rows
from lore.fit.comparisons import Comparisons
from lore.fit.ridge_model import JointProblem
from lore.splits import Split, load_split, save_split
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
BETTER = {  # of --before: how many times as fast the fits should be
    "step, K = 5": 1.5,
    "sweep K = 1..6": 1.35,
    "regularised step": None,
    "ridge pass, K = 2..6": 1.3,
    "from disk: step, K = 5": 1.7,
    "from disk: sweep K = 1..6": 1.7,
}


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


def processor():
    """Its name, where the system tells."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().split("\n\n")[0].splitlines() if told.exists() else []
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines)
    named = (
        f"{name}{facts[name]}" for name in ("model name", "cpu family", "model") if name in facts
    )
    return ", ".join(named) or "an unnamed processor"


def verdict(reached):
    return "reached" if reached else "MISSED"


def compare(name, plain, ours, rounds, target=None):
    """One line: median seconds of both ways, median and range of their ratio. plain, ours: () -> seconds."""
    ours()  # warm up
    tell(name, [(plain(), ours()) for _ in range(rounds)], target)


def tell(name, pairs, target):
    """One line of pairs (slow, fast) of seconds."""
    ratios = [a / b for a, b in pairs]
    slow, fast, ratio = (statistics.median(values) for values in (*zip(*pairs), ratios))
    line = f"{name:30} {slow:9.3f} s {fast:9.4f} s {ratio:7.3g} x  ({min(ratios):.3g} .. {max(ratios):.3g})"
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


# ------------------------------------------------------------------------------------------------------------------
# Against another checkout
# ------------------------------------------------------------------------------------------------------------------


def table_on_disk(folder, users, pairs, d):
    """Comparisons of embeddings in bfloat16, as prepare.py writes them, of which each is chosen once."""
    n = users * pairs
    order = torch.randperm(n).tolist()
    frame = pd.DataFrame({"user_id": [f"{i // pairs}" for i in range(n)], "chosen": order})
    frame["rejected"] = (frame["chosen"] + 1) % n
    save_split(Path(folder) / "made_up", Split(torch.randn(n, d).bfloat16(), frame, None))
    split = load_split(Path(folder) / "made_up", "")
    return Comparisons.from_frame(split.table, split.frame)


def ridge_passes(problem, ranks, passes):
    """Passes of the joint problem (R1) of all ranks, three fits of each as for three folds."""
    generator = torch.Generator().manual_seed(0)
    thetas = {K: [] for K in sorted(ranks)}
    for K, of_rank in thetas.items():
        for _ in range(3):
            theta = torch.randn(sum(problem.sizes(K)), generator=generator)
            of_rank.append(theta.double())
    problem.descend(thetas, 1.0, dict.fromkeys(thetas, 1.0), [problem.everything] * 3, passes)


def seconds_each(function, *arguments):
    """Of one step or pass: nine of them less one, so that what comes before the first does not count."""
    function(*arguments, 1)  # warm up
    times = []
    for _ in range(3):
        one = seconds(function, *arguments, 1)
        times.append((seconds(function, *arguments, 9) - one) / 8)
    return statistics.median(times)


def time_the_fits(arguments):
    """Prints the seconds of each name of BETTER, in this checkout."""
    torch.manual_seed(0)
    size = arguments.users, arguments.pairs, arguments.features
    data = random_comparisons(*size)
    problem = JointProblem(data, None, "cpu", "pairs")
    spent = [
        seconds_each(our_steps, LoRe, data, [K]),
        seconds_each(our_steps, LoRe, data, SWEEP),
        seconds_each(our_steps, LoRe_regularized, data, [K]),
        seconds_each(ridge_passes, problem, SWEEP[1:]),
    ]
    with tempfile.TemporaryDirectory() as folder, patch.object(rows, "memory", lambda _: 0):
        read = table_on_disk(folder, *size)
        with redirect_stdout(sys.stderr):  # says each time that rows are not held
            spent.append(seconds_each(our_steps, LoRe, read, [K]))
            spent.append(seconds_each(our_steps, LoRe, read, SWEEP))
    print(json.dumps(spent))


def compare_checkouts(arguments):
    """A process of each checkout in turn, round by round."""
    flags = ["--timed"]
    flags += [f"--{name}={getattr(arguments, name)}" for name in ("users", "pairs", "features")]
    found = {checkout: [] for checkout in (arguments.before, HERE)}
    for _ in range(arguments.rounds):
        for checkout, rounds in found.items():
            environment = {**os.environ, "LORE_CHECKOUT": str(Path(checkout).resolve())}
            command = [sys.executable, __file__, *flags]
            done = subprocess.run(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            rounds.append(json.loads(done.stdout))
    print(processor())
    print(f"{'':30} {'before':>11} {'now':>11}")
    before, now = (zip(*rounds) for rounds in found.values())
    for (name, target), *times in zip(BETTER.items(), before, now):
        tell(name, list(zip(*times)), target)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=47)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", metavar="PATH")
    parser.add_argument("--timed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        return two_steps(arguments.only, arguments)
    if arguments.timed:
        return time_the_fits(arguments)
    if arguments.before:
        return compare_checkouts(arguments)
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
    print(processor())
    floor = min(seconds(torch.mv, X, torch.randn(d)) for _ in range(5))
    print(f"floor: one X @ v {floor:.4f} s; a regularised step reads X twice, the others once")

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
