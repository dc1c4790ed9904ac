"""Intervals over users and paired differences."""

import numpy as np
import pytest
from populations import cell

from lore.statistics import summarise


def test_interval_of_a_mean_over_users_is_that_of_the_normal_distribution():
    accuracies = np.random.default_rng(0).uniform(0.4, 1, 400)
    (row,) = summarise([cell(accuracies)])
    half = 1.96 * accuracies.std() / 20
    assert row["unseen"] == pytest.approx(accuracies.mean())
    assert row["unseen_interval"] == pytest.approx(
        [accuracies.mean() - half, accuracies.mean() + half], abs=0.1 * half
    )
    assert "unseen_std_seeds" not in row and "unseen_gain" not in row


def test_differences_are_paired_by_user_whatever_the_order():
    rng = np.random.default_rng(1)
    base = rng.uniform(0.2, 0.9, 100)  # users differ by far more than the two fits do
    gain = rng.normal(0.02, 0.01, 100)
    order = rng.permutation(100)
    better = cell((base + gain)[order], users=[f"u{i}" for i in order])
    one, two = summarise([cell(base, K=1), better])
    assert two["unseen_gain"][0] == pytest.approx(gain.mean())
    half = 1.96 * gain.std() / 10
    assert two["unseen_gain"][1:] == pytest.approx(
        [gain.mean() - half, gain.mean() + half], abs=0.15 * half
    )
    assert "unseen_gain" not in one


def test_repeats_of_a_user_are_drawn_together():
    """Ten repeats of the same twenty users tell no more about people than one does."""
    accuracies = np.random.default_rng(2).uniform(0.4, 1, 20)
    (once,), (often,) = (
        summarise([cell(accuracies)]),
        summarise([cell(accuracies, seed=seed) for seed in range(10)]),
    )
    assert (
        often["unseen_interval"] == pytest.approx(once["unseen_interval"])
        and often["unseen_std_seeds"] == 0
    )


def test_splits_of_different_users_average_over_splits():
    few, many = cell([0.0, 1.0], users=["a", "b"]), cell([1.0] * 8, seed=1, users=list("bcdefghi"))
    (row,) = summarise([few, many], over="splits")
    assert row["unseen"] == pytest.approx(0.75) and row["unseen_std_splits"] == pytest.approx(0.25)
    low, high = row["unseen_interval"]
    assert low == pytest.approx(0.5, abs=0.01) and high == pytest.approx(1, abs=0.01)
