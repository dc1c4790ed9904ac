"""Planted people: how they choose, as noisy as asked for, and reproducible."""

from argparse import Namespace

import numpy as np
import pytest
import torch

from lore.fit.comparisons import Comparisons
from lore.fit.evaluation import share_right
from lore.fit.likelihood import margins
from lore.fit.planted import (
    choice_probability,
    draw_choices,
    drawn_from,
    planted_population,
    planted_turns,
    temperature,
)
from lore.fit.product import project


def test_replies_are_chosen_by_the_softmax_of_their_rewards():
    rng = np.random.default_rng(0)
    rewards = np.tile([1.0, -np.inf, 0.0, 2.0], (20000, 1))
    choice = draw_choices(rewards, 0.5, rng)
    odds = np.exp([2.0, -np.inf, 0.0, 4.0])
    share = np.bincount(choice, minlength=4) / len(choice)
    assert share == pytest.approx(odds / odds.sum(), abs=0.01) and share[1] == 0
    likely = choice_probability(np.array([[0.3, -0.5]]), 0.2)  # of two: Bradley-Terry
    assert likely[0, 0] == pytest.approx(1 / (1 + np.exp(-0.8 / 0.2)))


def test_pairs_agree_with_the_rewards_as_often_as_asked_for():
    rng = np.random.default_rng(1)
    V, W = np.linalg.qr(rng.standard_normal((8, 2)))[0], rng.dirichlet([1, 1], 5)
    owners, sizes = np.repeat(np.arange(5), 400), np.tile([2, 4, 3, 2], 500)
    table, pairs = planted_turns(owners, sizes, V, W, 0.8, rng)
    turn, chosen, rejected = pairs.T
    reward = (table @ V * W[np.repeat(owners, sizes)]).sum(axis=1)
    assert len(table) == sizes.sum() and len(pairs) == (sizes - 1).sum()
    assert np.mean(reward[chosen] > reward[rejected]) == pytest.approx(0.8, abs=0.02)
    own_turn = np.repeat(np.arange(len(sizes)), sizes)
    assert (own_turn[chosen] == turn).all() and (own_turn[rejected] == turn).all()


def test_temperature_does_not_mind_replies_that_are_not_there():
    rewards = np.random.default_rng(2).standard_normal((50, 3))
    wider = np.column_stack([rewards, np.full(50, -np.inf)])
    assert temperature(wider, 0.7) == pytest.approx(temperature(rewards, 0.7))


def test_structure_is_drawn_as_often_as_it_occurs():
    drawn = drawn_from({3: 1, 7: 9}, 5000, np.random.default_rng(0))
    assert {*drawn.tolist()} == {3, 7} and np.mean(drawn == 7) == pytest.approx(0.9, abs=0.02)


def test_planted_populations_are_as_noisy_as_asked_for_and_reproducible():
    def drawn(seed):
        args = Namespace(planted_features=8, planted_directions=3, seed=seed)
        args.planted_concentration, args.planted_accuracy = 0.3, 0.85
        return planted_population(60, {"train": 300, "validation": 50}, args)

    splits = drawn(1)
    table, frame, *_, population = splits["train"]
    W = torch.stack([population.W[user] for user in sorted(population.W)])
    data = Comparisons.from_frame(table, frame)
    margin = margins(project(data, [population.V])[0], W, data.user)
    accuracy = share_right(margin, data.user, len(W)).mean().item()
    assert accuracy == pytest.approx(0.85, abs=0.01)
    assert ((frame["chosen"] ^ 1) == frame["rejected"]).all()  # the two replies of a prompt
    assert not {*frame["prompt"]} & {*splits["validation"].frame["prompt"]}
    assert frame["prompt"].nunique() < len(frame)  # prompts are shared between users
    again = drawn(1)["train"]
    assert again.frame.equals(frame) and torch.equal(again.table, table)  # the very same draws
    assert not torch.equal(drawn(2)["train"].table, table)
