"""Intervals over users and paired differences."""

from math import comb

import numpy as np
import pytest
from populations import cell

from lore.fit.evaluation import Outcomes
from lore.report import statistics
from lore.report.statistics import summarise


def around(values, half):
    return pytest.approx([values.mean() - half, values.mean() + half], abs=0.03 * half)


def test_differences_are_paired_by_user_whatever_the_order():
    rng = np.random.default_rng(1)
    base = rng.uniform(0.2, 0.9, 400)  # users differ by far more than the two fits do
    gain = rng.normal(0.02, 0.01, 400)
    order = rng.permutation(400)
    better = cell((base + gain)[order], users=[f"u{i}" for i in order])
    one, two = summarise([cell(base, K=1), better])
    error = gain.std() / 20
    assert two["unseen_gain"][0] == pytest.approx(gain.mean())
    assert two["unseen_gain"][1:] == around(gain, 1.96 * error)
    assert two["unseen_detectable"] == pytest.approx(2.8 * error, rel=0.05)  # of the text book
    assert one["unseen"] == pytest.approx(base.mean()) and "unseen_gain" not in one


def test_repeats_of_a_user_are_drawn_together():
    """Ten repeats of the same twenty users tell no more about people than one does."""
    accuracies = np.random.default_rng(2).uniform(0.4, 1, 20)
    (once,) = summarise([cell(accuracies)])
    (often,) = summarise([cell(accuracies, seed=seed) for seed in range(10)])
    assert often["unseen_interval"] == pytest.approx(once["unseen_interval"])
    assert often["unseen_std_seeds"] == 0 and "unseen_std_seeds" not in once
    half = 2.093 * accuracies.std(ddof=1) / 20**0.5  # Student's
    assert once["unseen_interval"] == around(accuracies, half)


def test_splits_of_different_users_average_over_splits():
    few, many = cell([0.0, 1.0], users=["a", "b"]), cell([1.0] * 8, seed=1, users=list("bcdefghi"))
    (row,) = summarise([few, many], over="splits")
    assert row["unseen"] == pytest.approx(0.75) and row["unseen_std_splits"] == pytest.approx(0.25)
    low, high = row["unseen_interval"]  # nine users: Student's, around the mean
    assert (low + high) / 2 == pytest.approx(0.75) and row["interval"] == "users, Student's t"


def crossed(users, prompts, seed, share=1.0):
    """A cell of users who all judged the same prompts, some harder than others; 50 % right on average."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0, 1, (users, 1)) + rng.normal(0, 2, (1, prompts))
    right = (rng.normal(0, 1, level.shape) + level > 0) * 1.0
    there = rng.random(right.shape) < share
    there[:, 0] = True
    user, item = np.nonzero(there)
    outcomes = Outcomes(user, item, right[there], np.full(len(user), 0.7), 0.0)
    by_user = np.bincount(user, right[there]) / np.bincount(user)
    return cell(by_user)._replace(outcomes={"unseen": outcomes})


def test_where_prompts_are_shared_the_interval_is_over_them_as_well():
    """Of such studies 95 % of the intervals hold the truth; those over users alone hold far fewer."""
    held = {"users and prompts": 0, "users": 0}
    for seed in range(60):
        both = crossed(40, 25, seed, share=0.7)
        for one in (both, both._replace(outcomes=None)):
            (row,) = summarise([one])
            low, high = row["unseen_interval"]
            held[row["interval"]] += low <= 0.5 <= high
    assert held["users and prompts"] >= 52 and held["users"] < 40


def test_pairs_drawn_by_user_and_prompt_are_those_of_a_loop(monkeypatch):
    one = crossed(5, 4, 0, share=0.6)
    outcomes = one.outcomes["unseen"]
    drawn = statistics.accuracies_drawn(one, "unseen")
    monkeypatch.setattr(statistics, "NUMBERS", 8)  # two users at a time
    assert np.allclose(statistics.accuracies_drawn(one, "unseen"), drawn, equal_nan=True)
    counts = next(iter(statistics.drawn_items(len(np.unique(outcomes.item)))))
    for draw in (0, 7):
        for user in range(5):
            mine = outcomes.user == user
            weight = counts[outcomes.item[mine], draw]
            expected = np.average(outcomes.right[mine], weights=weight) if weight.sum() else np.nan
            assert drawn[user, draw] == pytest.approx(expected, nan_ok=True)


def test_a_draw_in_which_nobody_judged_a_drawn_prompt_does_not_count():
    few = crossed(3, 4, 0, share=0.4)
    assert not np.isfinite(statistics.resampled([few], "unseen")).all()
    (row,) = summarise([few])
    assert np.isfinite(row["unseen_interval"]).all()
    difference, error = statistics.compared([few], [few], "unseen")
    assert np.isfinite([*difference, error]).all()


def test_the_worst_tenth_is_set_against_chance():
    """Thirty users of one pair each: of ten per cent, three, some chance alone makes wrong."""
    accuracy = np.repeat([0.0, 1.0], [3, 27])
    each = Outcomes(np.arange(30), np.arange(30), accuracy, np.ones(30), 0.0)
    worst, chance = statistics.worst_tenth(accuracy, each)
    probability = [comb(30, w) * 0.1**w * 0.9 ** (30 - w) for w in range(31)]
    expected = sum(p * (1 - min(w, 3) / 3) for w, p in enumerate(probability))
    assert worst == 0 and chance == pytest.approx(expected, abs=0.02)
    # three pairs that are right or wrong together tell no more than one
    three = [np.repeat(np.arange(30), 3)] * 2
    together = Outcomes(*three, accuracy.repeat(3), np.ones(90), 0.0, three[0])
    assert statistics.worst_tenth(accuracy, together)[1] == pytest.approx(expected, abs=0.02)
    apart = statistics.worst_tenth(accuracy, together._replace(choice=None))[1]
    assert apart > expected + 0.1
