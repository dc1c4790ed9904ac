"""Planted people: as noisy as asked for, and reproducible."""

import numpy as np
import pytest
import torch

from lore import evaluation, likelihood, planted
from lore.comparisons import Comparisons
from lore.likelihood import project
from lore.planted import planted_population


def test_planted_populations_are_as_noisy_as_asked_for_and_reproducible():
    arguments = {
        "num_features": 8,
        "num_directions": 3,
        "concentration": 0.3,
        "best_accuracy": 0.85,
    }
    population = planted_population(60, {"train": 300, "validation": 50}, **arguments, seed=1)
    frame, table = population.splits["train"].frame, population.splits["train"].table
    W = torch.stack([population.W[user] for user in sorted(population.W)])
    data = Comparisons.from_frame(table, frame)
    margins = likelihood.margins(project(data, [population.V])[0], W, data.user)
    accuracy = evaluation.share_right(margins, data.user, len(W)).mean().item()
    assert accuracy == pytest.approx(0.85, abs=0.01)
    assert (frame["chosen"] // 2 == frame["rejected"] // 2).all() and (
        frame["chosen"] != frame["rejected"]
    ).all()
    assert not set(frame["prompt"]) & set(population.splits["validation"].frame["prompt"])
    assert frame["prompt"].nunique() < len(frame)  # prompts are shared between users
    again = planted_population(60, {"train": 300, "validation": 50}, **arguments, seed=1)
    assert again.splits["train"].frame.equals(frame) and torch.equal(
        again.splits["train"].table, table
    )
    other = planted_population(60, {"train": 300, "validation": 50}, **arguments, seed=2)
    assert not torch.equal(other.splits["train"].table, table)


@pytest.mark.parametrize("accuracy", [0.6, 0.9, 0.99])
def test_temperature_gives_the_asked_for_accuracy(accuracy):
    margin = np.abs(np.random.default_rng(0).normal(size=1000))
    accuracy_at = lambda T: np.mean(1 / (1 + np.exp(-margin / T)))
    T = planted.solve_temperature(accuracy_at, accuracy, margin.mean())
    assert accuracy_at(T) == pytest.approx(accuracy, abs=1e-6)
