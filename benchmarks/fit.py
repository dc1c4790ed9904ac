"""Seconds per step of this code and of a loop over users written plainly from Eq. 10, side by side, at d = 4096.

    python benchmarks/fit.py                 1,000 users x 47 pairs, ratios against the targets; 5 GB of memory
    python benchmarks/fit.py --users 100     smaller

Every ratio is the median over rounds in which both ways run one after the other in this process. Peak memory is that of
a process of its own for each way. Data are random numbers: nothing here says anything about accuracy.
"""

import statistics

import torch
import torch.nn.functional as F
from measure import flags, in_turn, processor, ratio, run_alone, seconds, verdict

from lore.common import start
from lore.fit.comparisons import Comparisons
from utils import LoRe, LoRe_regularized, PersonalizeBatch, run_few_shot_vary_shots

K = 5
SWEEP = [1, 2, 3, 4, 5, 6]


# ------------------------------------------------------------------------------------------------
# The plain ways
# ------------------------------------------------------------------------------------------------


def loop_loss(users, V, W):
    """Eq. 10: the reward vectors V w_i of all users first, then user by user, as the published code does."""
    loss = 0
    rewards = V @ W.softmax(1).T  # (d, K) @ (K, C) -> (d, C)
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
    V = torch.randn(users[0].shape[1], rank, requires_grad=True)
    W = torch.randn(len(users), rank, requires_grad=True)
    optimizer = torch.optim.Adam([W, V], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(users, V, W).backward()
        optimizer.step()


def every_user_steps(data, rank, steps, pull=None):
    """Regularised fit: logits of every pair for every user, of which one column is kept; W, then V.

    pull: V -> what is added to the loss.
    """
    V = torch.randn(data.num_features, rank, requires_grad=True)
    W = torch.rand(len(data.user_ids), rank, requires_grad=True)
    optimizers = [torch.optim.Adam([W], lr=0.5), torch.optim.Adam([V], lr=0.5)]
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
            logits = data.table @ (V @ W.softmax(1).T) / 100  # (n, d) @ (d, C) -> (n, C)
            loss = -F.logsigmoid(logits.gather(1, data.user.unsqueeze(1))).mean()
            (loss if pull is None else loss + pull(V)).backward()
            optimizer.step()


def loop_few_shot_steps(users, V, steps):
    """New users: Adam on their mixtures, V frozen."""
    w = [torch.randn(V.shape[1], requires_grad=True) for _ in users]
    optimizer = torch.optim.Adam(w, lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        thrifty_loop_loss(users, V, w).backward()
        optimizer.step()


# ------------------------------------------------------------------------------------------------
# Side by side
# ------------------------------------------------------------------------------------------------


def random_comparisons(users, pairs, d):
    user = torch.arange(users).repeat_interleave(pairs)
    return Comparisons(torch.randn(users * pairs, d), user, tuple(map(str, range(users))))


def by_user(data):
    """X of each user, as the plain ways take it."""
    return data.table.split(data.counts.tolist())


def our_steps(model_class, data, ranks, steps):
    C = len(data.user_ids)
    d = data.num_features
    models = [model_class(None, 0.0, C, d, rank, steps, 0.5) for rank in ranks]
    model_class.fit_together(models, data)


TWO_STEPS = {  # whose peak is measured
    "data alone": lambda data: None,
    "loop": lambda data: loop_steps(loop_loss, by_user(data), K, 2),
    "step": lambda data: our_steps(LoRe, data, [K], 2),
    "sweep": lambda data: our_steps(LoRe, data, SWEEP, 2),
    "logits for every user": lambda data: every_user_steps(data, K, 2),
    "regularised step": lambda data: our_steps(LoRe_regularized, data, [K], 2),
}


def compare(name, rounds, plain, ours, target=None):
    """One line: median seconds of both ways, median and range of their ratio. plain, ours: () -> seconds."""
    ours()  # warm up
    slow, fast = in_turn(rounds, plain, ours)
    median, told = ratio(slow, fast)
    both = f"{statistics.median(slow):9.3f} s {statistics.median(fast):9.4f} s"
    aim = f"  target {target} x: {verdict(median >= target)}" if target else ""
    print(f"{name:30} {both}  {told}{aim}", flush=True)


def compare_joint_fits(data, rounds):
    lists = by_user(data)

    def loops(loss, ranks):
        return lambda: sum(seconds(loop_steps, loss, lists, rank, 1) for rank in ranks)

    def ours(model_class, ranks, steps=5):
        return lambda: seconds(our_steps, model_class, data, ranks, steps) / steps

    step = ours(LoRe, [K])
    compare("step", rounds, loops(loop_loss, [K]), step, target=6)
    compare("step, against a thrifty loop", rounds, loops(thrifty_loop_loss, [K]), step)
    sweep = ours(LoRe, SWEEP)
    compare("sweep K = 1..6", rounds, loops(loop_loss, SWEEP), sweep, target=15)
    compare("sweep, against thrifty loops", rounds, loops(thrifty_loop_loss, SWEEP), sweep)
    every_user = lambda: seconds(every_user_steps, data, K, 1)
    compare("regularised step", rounds, every_user, ours(LoRe_regularized, [K]), target=30)


def compare_few_shot_fits(few, rounds):
    C = len(few.user_ids)
    V = torch.randn(few.num_features, K)
    model = lambda: PersonalizeBatch(C, few.num_features, K, 500, 0.1)
    plain = lambda: 20 * seconds(loop_few_shot_steps, by_user(few), V, 25)  # all steps cost alike
    ours = lambda: seconds(model().fit, few, V)
    compare("few-shot fit, 500 steps", rounds, plain, ours, target=100)


def time_few_shot_sweep(count, d):
    train, few, unseen = (random_comparisons(count, pairs, d) for pairs in (150, 50, 50))
    shots = range(5, 55, 5)
    spent = seconds(
        run_few_shot_vary_shots, 20, [0.0], [K], shots, train, few, unseen, None, count, count, "cpu"
    )  # fmt: skip
    told = f"; target 10 s: {verdict(spent < 10)}" if count == 20 else ""
    what = f"few-shot sweep, 20 trials x 10 shots, {count} users, with its joint fit"
    print(f"{what}: {spent:.1f} s{told}")


def main():
    parser = flags(__doc__)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=47)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=TWO_STEPS, help="two steps one way, to measure their peak")
    args = parser.parse_args()
    users, pairs, d = args.users, args.pairs, args.features
    if args.only:
        TWO_STEPS[args.only](random_comparisons(users, pairs, d))
        return
    print("peak memory of two steps, GB:")
    for way in TWO_STEPS:
        size = f"--users={users}", f"--pairs={pairs}", f"--features={d}"
        _, peak = run_alone(__file__, "--only", way, *size)
        print(f"  {way:22} {peak:5.2f}", flush=True)

    torch.manual_seed(0)
    data = random_comparisons(users, pairs, d)
    here = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{users} users x {pairs} pairs, d = {d}, {here}")
    print(processor())
    floor = min(seconds(torch.mv, data.table, torch.randn(d)) for _ in range(5))
    print(f"floor: one X @ v {floor:.4f} s; a regularised step reads X twice, the others once")
    print(f"{'':30} {'plain':>11} {'this code':>11}")
    compare_joint_fits(data, args.rounds)
    compare_few_shot_fits(random_comparisons(users // 2, 9, d), args.rounds)
    for count in (20, 100):
        time_few_shot_sweep(count, d)


if __name__ == "__main__":
    start(main)
