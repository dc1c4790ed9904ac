"""Seconds per step of this code and of a loop over users written plainly from Eq. 10, side by side, at d = 4096.

    python benchmarks/fit.py                 1,000 users x 47 pairs, ratios against the targets; 5 GB of memory
    python benchmarks/fit.py --users 100     smaller

Every ratio is the median over rounds in which both ways run one after the other in this process. Peak memory is that of
a process of its own for each way. Data are random numbers: nothing here says anything about accuracy.
"""

import torch
import torch.nn.functional as F
from measure import compare, flags, processor, run_alone, seconds

from lore.common import start
from lore.fit.comparisons import Comparisons
from utils import LoRe, LoRe_regularized, PersonalizeBatch

K = 5
SWEEP = [1, 2, 3, 4, 5, 6]
STEPS = 5  # of this code, of which one is told


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
    adam_steps(lambda: loss(users, V, W), [W, V], 0.5, steps)


def loop_few_shot_steps(users, V, steps):
    """New users: Adam on their mixtures, V frozen."""
    w = [torch.randn(V.shape[1], requires_grad=True) for _ in users]
    adam_steps(lambda: thrifty_loop_loss(users, V, w), w, 0.1, steps)


def adam_steps(loss, parameters, rate, steps):
    optimizer = torch.optim.Adam(parameters, lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def every_user_steps(data, rank, pull=None):
    """A regularised step: logits of every pair for every user, of which one column is kept; W, then V.

    pull: V -> what is added to the loss.
    """
    V = torch.randn(data.num_features, rank, requires_grad=True)
    W = torch.rand(len(data.user_ids), rank, requires_grad=True)

    def loss():
        logits = data.table @ (V @ W.softmax(1).T) / 100  # (n, d) @ (d, C) -> (n, C)
        nll = -F.logsigmoid(logits.gather(1, data.user.unsqueeze(1))).mean()
        return nll if pull is None else nll + pull(V)

    for parameter in (W, V):
        adam_steps(loss, [parameter], 0.5, 1)


# ------------------------------------------------------------------------------------------------
# Side by side
# ------------------------------------------------------------------------------------------------


def random_comparisons(users, pairs, d):
    user = torch.arange(users).repeat_interleave(pairs)
    return Comparisons(torch.randn(users * pairs, d), user, tuple(map(str, range(users))))


def by_user(data):
    """X of each user, as the plain ways take it."""
    return data.table.split(data.counts.tolist())


def seconds_of_a_step(model_class, data, ranks, V_ref=None, alpha=0.0):
    """Of one step of this code for all ranks at once."""
    size = len(data.user_ids), data.num_features
    models = [model_class(V_ref, alpha, *size, rank, STEPS, 0.5) for rank in ranks]
    return seconds(model_class.fit_together, models, data) / STEPS


FEW_STEPS = {  # whose peak is measured
    "data alone": lambda data: None,
    "loop": lambda data: loop_steps(loop_loss, by_user(data), K, 2),
    "sweep": lambda data: seconds_of_a_step(LoRe, data, SWEEP),
    "logits for every user": lambda data: every_user_steps(data, K),
    "regularised step": lambda data: seconds_of_a_step(LoRe_regularized, data, [K]),
}


def compare_joint_fits(data, rounds):
    lists = by_user(data)

    def loops(loss, ranks):
        return lambda: sum(seconds(loop_steps, loss, lists, rank, 1) for rank in ranks)

    step = lambda: seconds_of_a_step(LoRe, data, [K])
    sweep = lambda: seconds_of_a_step(LoRe, data, SWEEP)
    compare("step", rounds, loops(loop_loss, [K]), step, target=6)
    compare("sweep K = 1..6", rounds, loops(loop_loss, SWEEP), sweep, target=15)
    compare("sweep, against thrifty loops", rounds, loops(thrifty_loop_loss, SWEEP), sweep)
    every_user = lambda: seconds(every_user_steps, data, K)
    regularised = lambda: seconds_of_a_step(LoRe_regularized, data, [K])
    compare("regularised step", rounds, every_user, regularised, target=30)


def compare_few_shot_fits(few, rounds):
    V = torch.randn(few.num_features, K)
    model = lambda: PersonalizeBatch(len(few.user_ids), few.num_features, K, 500, 0.1)
    plain = lambda: 20 * seconds(loop_few_shot_steps, by_user(few), V, 25)  # all steps cost alike
    ours = lambda: seconds(model().fit, few, V)
    compare("few-shot fit, 500 steps", rounds, plain, ours, target=100)


def main():
    parser = flags(__doc__, users=1000, pairs=47, features=4096, rounds=3)
    parser.add_argument("--only", choices=FEW_STEPS, help="a few steps one way, to measure their peak")
    args = parser.parse_args()
    users, pairs, d = args.users, args.pairs, args.features
    if args.only:
        FEW_STEPS[args.only](random_comparisons(users, pairs, d))
        return
    print("peak memory of a few steps, GB:")
    for way in FEW_STEPS:
        size = f"--users={users}", f"--pairs={pairs}", f"--features={d}"
        _, peak = run_alone(__file__, "--only", way, *size)
        print(f"  {way:22} {peak:5.2f}", flush=True)

    torch.manual_seed(0)
    data = random_comparisons(users, pairs, d)
    here = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{users} users x {pairs} pairs, d = {d}, {here}")
    print(processor())
    print(f"{'':30} {'plain':>11} {'this code':>11}")
    compare_joint_fits(data, args.rounds)
    compare_few_shot_fits(random_comparisons(users // 2, 9, d), args.rounds)


if __name__ == "__main__":
    start(main)
