"""People who are asked, chosen questions or random ones, and how well they are then known: planted or real people."""

from functools import partial
from typing import NamedTuple

import torch

from questions import RANDOM, Posterior, mixtures_of, most_telling, rewards_by


class Interviewee(NamedTuple):
    """Somebody whose answers to the n pairs of a Pool are known, and what they think of other pairs."""

    answers: torch.Tensor  # (n, 2) rows of each pair, the preferred reply first
    order: torch.Tensor  # (asked,) pairs that they may be asked about, in a random order
    test: torch.Tensor  # (t, 2) rows of the other pairs
    first: torch.Tensor  # (t,) probability that they prefer the first reply of each


def agreement_after_each(pool, people, count, way):
    """Agreement with each of some people after 0, 1, .. count answers, each question following from the answers.

    (people, count + 1)
    """
    numbers = [[] for _ in people]
    agreed = []
    for step in range(count + 1):
        known = [person.answers[asked] for person, asked in zip(people, numbers)]
        fits = mixtures_of(pool, known)
        rewards = map(partial(rewards_by, pool), known, fits)
        agreed.append([*map(agreement, rewards, people)])
        if step == count:
            return torch.tensor(agreed).T
        for person, asked, pairs, mixtures in zip(people, numbers, known, fits):
            if way == RANDOM:
                asked += person.order[step : step + 1].tolist()
                continue
            allowed = torch.zeros(len(pool.pairs), dtype=torch.bool)
            allowed[person.order] = True
            chosen, _ = most_telling(pool, Posterior.of(pool, pairs, mixtures), allowed=allowed)
            asked += chosen


def agreement(rewards, person):
    """Mean probability that a person agrees with predictions by rewards (rows,) on their other pairs."""
    margin = rewards[person.test[:, 0]] - rewards[person.test[:, 1]]  # (t,)
    return torch.where(margin > 0, person.first, 1 - person.first).mean().item()
