"""Chosen against random questions, from what people answered: SESSIONS of --rule both."""

from math import sqrt

import numpy as np
from rater import BOTH, Rater

from lore.report.statistics import quantile
from lore.report.text_tables import Table
from questions import CHOSEN, RANDOM, mixtures_of, rewards_by

KNOWN = (3, 5, 10)  # answers of each way that people are known by


def accuracies(rater, known):
    """Share of a person's later random questions that is foretold rightly by the first `known` answers
    to chosen questions, to random ones, and by the population: (3,). None: too few answers.

    The rest is the same for all three: no answer that the chosen questions were found by, no prompt
    that one of the fits has seen.
    """
    asked = {CHOSEN: [], RANDOM: []}
    for number, row in enumerate(rater.rows):
        asked[row["rule"]].append(number)
    ways = [asked[CHOSEN][:known], asked[RANDOM][:known], []]
    seen = {rater.judgements[number].prompt_id for number in (*ways[0], *ways[1])}
    rest = [number for number in asked[RANDOM][known:] if rater.judgements[number].prompt_id not in seen]
    if len(ways[0]) < known or not rest:
        return None
    shares = []
    for numbers in ways:
        pairs = rater.known[numbers]
        rewards = rewards_by(rater.pool, pairs, *mixtures_of(rater.pool, [pairs]))
        preferred, rejected = rewards[rater.known[rest]].T
        shares.append((preferred > rejected).double().mean().item())
    return shares


def arms_table(rows, pool, basis, seed):
    """Table of the rows of SESSIONS."""
    people = {}
    for row in rows:
        people.setdefault(row["user_id"], []).append(row)
    raters = [Rater(user, pool, basis, rows, [], BOTH, seed) for user, rows in people.items()]
    lines = []
    for known in KNOWN:
        measured = [accuracies(rater, known) for rater in raters]
        shares = 100 * np.array([each for each in measured if each is not None])  # (people, 3)
        texts = [""] * 4
        if len(shares) > 1:
            chosen, at_random, population = shares.T
            gained = with_interval(chosen - at_random, "+")
            texts = [*map(with_interval, (population, at_random, chosen)), gained]
        lines.append([str(known), str(len(shares)), *texts])
    head = ["answers known", "people", "population", "random", "chosen", "chosen - random"]
    notes = [
        "accuracy (%) on each person's later random questions, mean over people [95 %, Student's t]",
        "people with fewer answers of either way, or none later, are not in a line",
    ]
    return Table(head, lines, notes)


def with_interval(values, sign=""):
    """Mean and interval of a number for each person (people,)."""
    mean = values.mean()
    half = quantile(len(values)) * values.std(ddof=1) / sqrt(len(values))
    return f"{mean:{sign}.1f} [{mean - half:{sign}.1f}, {mean + half:{sign}.1f}]"
