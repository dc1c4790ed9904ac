"""People whose rewards are known, to try a method on: --synthetic."""

from typing import NamedTuple

import numpy as np
import torch

from lore.common import require
from lore.splits import Split

BISECTIONS = 100  # of log T: more than float64 can tell apart
WIDEST = 1e6  # T lies within this factor of the size of the rewards


class Planted(NamedTuple):
    """What planted people like: the hidden rewards, and how each person mixes them."""

    V: torch.Tensor  # (d, directions)
    W: dict  # user id -> (directions,)

    @classmethod
    def of(cls, V, user_ids, W):
        return cls(float32(V), dict(zip(user_ids, float32(W))))

    def split(self, table, frame, head):
        """Split of the choices that they made; arrays as NumPy has them."""
        return Split(float32(table), frame, float32(head), planted=self)


def float32(array):
    return torch.from_numpy(array.astype(np.float32))


def planted_population(num_users, pairs, args):
    """Users who mix a few hidden reward directions and judge shared prompts with noise: {side: Split}.

    pairs: side -> comparisons per user; every side has twice as many prompts of its own, two
    replies each, embeddings N(0, I). Whom a user prefers is drawn as `draw_choices` says, which for two
    replies is the Bradley-Terry model; rewards and head are those of `planted_rewards`. args: the
    settings planted_features, planted_directions, planted_concentration, planted_accuracy, seed.
    """
    import pandas as pd

    rng = np.random.default_rng(args.seed)
    sizes = (num_users, args.planted_features, args.planted_directions)
    V, W, head = planted_rewards(*sizes, args.planted_concentration, rng)
    user_ids = [f"planted{i:04d}" for i in range(num_users)]
    sides = {side: shared_prompts(count, V, W, rng) for side, count in pairs.items()}
    rewards = np.concatenate([rewards for _, _, rewards in sides.values()])
    T = temperature(rewards, args.planted_accuracy)
    planted = Planted.of(V, user_ids, W)
    splits = {}
    for side, (table, replies, rewards) in sides.items():
        choice = draw_choices(rewards, T, rng)
        every = np.arange(len(choice))
        frame = pd.DataFrame({"user_id": np.repeat(user_ids, pairs[side])})
        frame["prompt"] = [f"{side}{row // 2}" for row in replies[:, 0]]
        frame["chosen"] = replies[every, choice]
        frame["rejected"] = replies[every, 1 - choice]
        splits[side] = planted.split(table, frame, head)
    return splits


def shared_prompts(count, V, W, rng):
    """`count` of 2 * count prompts for each user, two replies each, in an order of their own.

    -> embeddings (4 * count, d), rows 2p and 2p + 1 of prompt p; table rows of the replies and
    what they are worth to the user, (C * count, 2) each.
    """
    table = rng.standard_normal((4 * count, len(V))).astype(np.float32)
    prompt = np.stack([rng.permutation(2 * count)[:count] for _ in W])  # (C, count)
    first = 2 * prompt + rng.integers(0, 2, prompt.shape)
    replies = np.stack([first, first ^ 1], axis=2)  # (C, count, 2)
    scores = table @ V  # (rows, d) @ (d, directions)
    rewards = (scores[replies] * W[:, None, None]).sum(axis=3)  # (C, count, 2, directions) -> ..
    return table, replies.reshape(-1, 2), rewards.reshape(-1, 2)


def planted_turns(owners, sizes, V, W, best_accuracy, rng):
    """Turns in which a person chooses one of several replies of their own, embeddings N(0, I).

    owners, sizes: whose each turn is and how many replies it has, (turns,) each
    -> embeddings (replies, d), turn by turn, and (turn, chosen, rejected), a row per reply that is
    not chosen: (replies - turns, 3)
    """
    first = np.cumsum(sizes) - sizes  # table row of each turn's first reply
    table = rng.standard_normal((sizes.sum(), len(V))).astype(np.float32)
    rewards = table @ V  # (rows, d) @ (d, directions) -> (rows, directions)
    scores = (rewards * W[np.repeat(owners, sizes)]).sum(axis=1)  # (rows,)
    number = np.arange(sizes.max())
    there = number < sizes[:, None]  # (turns, replies)
    rewards = np.full(there.shape, -np.inf)
    rewards[there] = scores
    chosen = draw_choices(rewards, temperature(rewards, best_accuracy), rng)
    turn, rejected = np.nonzero(there & (number != chosen[:, None]))
    return table, np.stack([turn, first[turn] + chosen[turn], first[turn] + rejected], axis=1)


def drawn_from(counts, size, rng):
    """Keys of a {key: count}, drawn as often as they occur."""
    weights = np.array(list(counts.values()))
    return rng.choice(np.array(list(counts)), size, p=weights / weights.sum())


def planted_rewards(num_users, num_features, num_directions, concentration, rng):
    """V (d, directions) orthonormal, W (C, directions) ~ Dirichlet(concentration), head (d, 1).

    The head is the mean direction, blurred: it knows roughly what people like, as a reward model
    does.
    """
    require(
        1 <= num_directions <= num_features and concentration > 0 and num_users > 1,
        "planted: at least 2 people, directions between 1 and the width, a concentration above 0",
    )
    V = np.linalg.qr(rng.standard_normal((num_features, num_directions)))[0]
    W = rng.dirichlet(np.full(num_directions, concentration), num_users)
    return V, W, blurred(V.mean(axis=1, keepdims=True), rng)


def blurred(direction, rng):
    """A (d, 1) direction with as much noise as signal."""
    noise = np.linalg.norm(direction) * rng.standard_normal(direction.shape)
    return direction + noise / np.sqrt(len(direction))


def draw_choices(rewards, T, rng):
    """Number of the reply that is preferred, drawn with probability softmax(reward / T).

    (turns, replies) -> (turns,); a reward of -inf stands where a turn has no such reply.
    """
    likely = choice_probability(rewards, T)
    drawn = rng.random((len(likely), 1)) * likely.sum(axis=1, keepdims=True)
    return (likely.cumsum(axis=1) < drawn).sum(axis=1)


def choice_probability(rewards, T):
    odds = np.exp((rewards - rewards.max(axis=1, keepdims=True)) / T)
    return odds / odds.sum(axis=1, keepdims=True)


def temperature(rewards, accuracy):
    """T at which pairs (chosen, one not chosen) agree with the rewards with this probability."""
    there = np.isfinite(rewards)  # (turns, replies)
    below = rewards[:, None, :] < rewards[:, :, None]  # (turns, reply, other)
    beaten = (below & there[:, None, :]).sum(axis=2)  # (turns, replies): others worth less
    pairs = (there.sum(axis=1) - 1).sum()

    def accuracy_at(T):
        return (choice_probability(rewards, T) * beaten).sum() / pairs

    return solve_temperature(accuracy_at, accuracy, np.abs(rewards[there]).mean())


def solve_temperature(accuracy_at, accuracy, scale):
    """T with accuracy_at(T) = accuracy, by bisection of log T around `scale`."""
    words = f"planted accuracy {accuracy:g}: above 0.5, which is chance, and below 1"
    require(0.5 < accuracy < 1, words)
    low = np.log(scale / WIDEST)
    high = np.log(scale * WIDEST)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if accuracy_at(np.exp(middle)) > accuracy:  # more noise makes it smaller
            low = middle
        else:
            high = middle
    return np.exp(middle)
