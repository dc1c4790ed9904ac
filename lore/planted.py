"""People whose rewards are known, to try a method on: --synthetic."""

from typing import NamedTuple

import numpy as np
import torch

from lore.common import InputError
from lore.tables import Split


class Planted(NamedTuple):
    splits: dict  # side -> Split
    V: torch.Tensor  # (d, directions) the hidden rewards
    W: dict  # user id -> (directions,) hidden mixture


def planted_population(
    num_users, pairs, *, num_features, num_directions, concentration, best_accuracy, seed
):
    """Users who mix a few hidden reward directions, w ~ Dirichlet(concentration), and judge shared prompts with noise.

    pairs: side -> comparisons per user; every side has twice as many prompts of its own, two replies each, embeddings
    N(0, I). User i prefers reply a with probability sigmoid((e_a - e_b) @ V @ w_i / T), the Bradley-Terry model; T is
    solved so that the true V and w are right with probability best_accuracy. The head that comes with the embeddings is
    the mean direction, blurred: it knows roughly what people like, as a reward model does.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    V, W, head = planted_rewards(num_users, num_features, num_directions, concentration, rng)
    user_ids = [f"planted{i:04d}" for i in range(num_users)]
    tables, frames = {}, {}
    for side, count in pairs.items():
        tables[side] = rng.standard_normal((4 * count, num_features)).astype(
            np.float32
        )  # rows 2p and 2p + 1: prompt p
        prompt = np.stack(
            [rng.permutation(2 * count)[:count] for _ in user_ids]
        )  # (C, count), each user's own choice
        first = 2 * prompt + rng.integers(0, 2, prompt.shape)
        scores = tables[side] @ V  # (rows, d) @ (d, directions)
        margin = ((scores[first] - scores[first ^ 1]) * W[:, None]).sum(
            -1
        )  # (C, count, directions) -> (C, count)
        frames[side] = pd.DataFrame(
            {
                "user_id": np.repeat(user_ids, count),
                "prompt": [f"{side}{p}" for p in prompt.ravel()],
                "first": first.ravel(),
                "margin": margin.ravel(),
            }
        )
    margin = np.abs(np.concatenate([f["margin"] for f in frames.values()]))
    temperature = solve_temperature(
        lambda T: np.mean(1 / (1 + np.exp(-margin / T))), best_accuracy, margin.mean()
    )
    splits = {}
    for side, frame in frames.items():
        prefers_first = rng.random(len(frame)) < 1 / (1 + np.exp(-frame["margin"] / temperature))
        frame["chosen"] = np.where(prefers_first, frame["first"], frame["first"] ^ 1)
        frame["rejected"] = frame["chosen"] ^ 1
        columns = frame[["user_id", "prompt", "chosen", "rejected"]]
        splits[side] = Split(
            torch.from_numpy(tables[side]), columns, torch.from_numpy(head.astype(np.float32))
        )
    mixture = {user: torch.from_numpy(w.astype(np.float32)) for user, w in zip(user_ids, W)}
    return Planted(splits, torch.from_numpy(V.astype(np.float32)), mixture)


def planted_rewards(num_users, num_features, num_directions, concentration, rng):
    """V (d, directions) orthonormal, W (C, directions) ~ Dirichlet, head (d, 1): the mean direction, blurred."""
    if not (1 <= num_directions <= num_features and concentration > 0 and num_users > 1):
        raise InputError(
            "planted: at least 2 people, directions between 1 and the width, a concentration above 0"
        )
    V = np.linalg.qr(rng.standard_normal((num_features, num_directions)))[0]
    W = rng.dirichlet(np.full(num_directions, concentration), num_users)
    direction = V.mean(axis=1, keepdims=True)
    return (
        V,
        W,
        direction
        + np.linalg.norm(direction)
        * rng.standard_normal((num_features, 1))
        / np.sqrt(num_features),
    )


def solve_temperature(accuracy_at, accuracy, scale):
    """T with accuracy_at(T) = accuracy, by bisection of log T around `scale`; more noise, less accuracy."""
    if not 0.5 < accuracy < 1:
        raise InputError(f"planted accuracy {accuracy:g}: above 0.5, which is chance, and below 1")
    low, high = np.log(1e-6 * scale), np.log(1e6 * scale)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if accuracy_at(np.exp(middle)) > accuracy else (low, middle)
    return np.exp(middle)
