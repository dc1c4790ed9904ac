"""The responses of PersonalLLM: their scores by ten reward models, and who prefers which of them."""

from typing import NamedTuple

import numpy as np
import torch

from lore.common import require
from lore.fit.comparisons import Comparisons, content

PREPARE = "python PersonalLLM/prepare.py"
PLACE = ["prompt", "response", "reply"]  # columns of a prepared file beside the scores
REWARD_MODELS = (  # whose scores a person mixes, in the order of the published code
    "gemma_2b", "gemma_7b", "mistral_raft", "llama3_sfairx", "oasst_deberta_v3", "beaver_7b",
    "oasst_pythia_7b", "oasst_pythia_1b", "mistral_ray", "mistral_weqweasdas",
)  # fmt: skip


class Prompts(NamedTuple):
    table: torch.Tensor  # (rows, d) embeddings
    reply: np.ndarray  # (P, R) table row of each response
    scores: np.ndarray  # (P, R, M) of each response by each reward model


def prompts_of(split, path):
    """A prepared side, whose rows are every response to every prompt in any order, as arrays."""
    import pandas as pd

    frame = split.frame.sort_values(["prompt", "response"])
    P = frame["prompt"].nunique()  # those that were too long are not among them
    R = frame["response"].nunique()
    complete = len(frame) == P * R and not frame.duplicated(["prompt", "response"]).any()
    require(P and complete, f"{path}: {len(frame)} rows are not {R} responses to each of {P} prompts")
    scores = frame[[*REWARD_MODELS]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    require(np.isfinite(scores).all(), f"{path}: a score that is no number; make it again with: {PREPARE}")
    return Prompts(split.table, frame["reply"].to_numpy().reshape(P, R), scores.reshape(P, R, -1))


def best_against_worst(table, replies, scores, W, orders, count, names):
    """Each person's best against worst response to the first `count` prompts that tell two apart.

    replies: (P, R) rows of the table; scores: (P, R, M) of theirs by M reward models, which people
    weigh by W (C, M); orders: C orders of prompt numbers; count 0 = all that do.
    -> (Comparisons, how many prompts were passed over: scores all equal, or best and worst one text)
    """
    parts = []  # of each person: numbers, chosen rows, rejected rows, prompts
    passed = 0
    every = np.arange(len(scores))
    for user, (w, order) in enumerate(zip(W, orders)):
        score = scores @ w  # (P, R, M) @ (M,) -> (P, R)
        best = score.argmax(axis=1)  # (P,)
        worst = score.argmin(axis=1)
        chosen = replies[every, best]
        rejected = replies[every, worst]
        told = (score[every, best] > score[every, worst]) & (chosen != rejected)
        usable = np.flatnonzero(told[order])[: count or None]  # places in the order
        there = f"{len(usable)} prompts tell responses apart"
        require(len(usable) >= count, f"{names[user]}: {there}, {count} were asked for")
        looked_at = usable[-1] + 1 if count else len(order)
        passed += int((~told[order[:looked_at]]).sum())
        asked = order[usable]
        parts.append((np.full(len(usable), user), chosen[asked], rejected[asked], asked))
    user, chosen, rejected, prompt = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts))
    item = content(table[torch.from_numpy(replies[:, 0])])  # (P,) prompt 3 of a side is one of it
    return Comparisons(table, user, names, chosen, rejected, prompt=item[prompt]), passed
