"""Rivals of LoRe over fixed embeddings, one module each, written from the equations of their papers.

    fit(groups, head, seed) -> Rival        groups: lore.fit.comparisons.Groups; head: (d, 1) or None

All use what the published code does by default; where one departs from it, its first lines say how and why.
InputError: a rival that cannot take the data, or whose fit diverges.
"""

import time
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lore.common import InputError


class Rival(NamedTuple):
    """What a rival makes of all pairs, and what that took."""

    log_odds: dict  # group -> (n,) of the reply that was preferred over the other
    seconds: float  # to fit the seen people
    seconds_new: float  # to take in all the unseen ones
    numbers: int  # stored of each person


class Clock:
    """Seconds between calls."""

    def __init__(self):
        self.last = time.perf_counter()

    def __call__(self):
        before, self.last = self.last, time.perf_counter()
        return self.last - before


def differences(group):
    """X (n, d) = e(chosen) - e(rejected), float32, and whose each is (n,)."""
    return group.differences(torch.zeros(())), group.user


def replies(group):
    """e(chosen), e(rejected), (n, d) each. InputError: only their differences are known."""
    if group.chosen is None:
        raise InputError("only differences of embeddings are known, and both are needed")
    return group.table[group.chosen].float(), group.table[group.rejected].float()


def rows_by_user(user):
    """The rows of each person, as a list of (m_i,) tensors; user (n,) ascending."""
    return torch.arange(len(user)).split(torch.bincount(user).tolist())


def bradley_terry(log_odds):
    """Mean of -log P. (n,) -> scalar"""
    return -F.logsigmoid(log_odds).mean()


def require_finite(name, log_odds):
    for group, values in log_odds.items():
        if not values.isfinite().all():
            raise InputError(f"{name} diverged ({group})")
