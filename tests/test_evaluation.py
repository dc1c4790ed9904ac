"""Eq. 15."""

import numpy as np
import pytest
import torch
from populations import GROUPS, HEAD, D, N, accuracy, sweep

from lore.fit import evaluation
from lore.fit.comparisons import Comparisons
from lore.fit.groups import Groups
from lore.fit.likelihood import LOGIT_SCALE
from utils import run


def test_rank_zero_is_the_head_for_everybody_and_a_tie_is_wrong():
    result = sweep(run, [0], [0.0])
    ones = torch.ones(N, 1)
    assert result.seen[0] == pytest.approx(np.mean(accuracy(HEAD, ones, GROUPS[1])))
    assert sweep(run, [0], [0.0], V=torch.zeros(D, 1)).unseen[0] == 0  # strictly positive, Eq. 15


def test_the_share_is_each_users_own_and_zero_is_wrong():
    margin = torch.tensor([1.0, 0.0, -1.0, 2.0, 1e-30])
    share = evaluation.share_right(margin, torch.tensor([0, 0, 0, 2, 2]), 3)
    assert share[0] == pytest.approx(1 / 3) and share[2] == 1 and share[1].isnan()


def test_log_loss_and_calibration_are_those_by_hand():
    probability = torch.tensor([0.95, 0.92, 0.62, 0.31, 0.5], dtype=torch.float64)
    margin = LOGIT_SCALE * torch.logit(probability)
    data = Comparisons.from_list([torch.randn(3, 4), torch.randn(2, 4)])
    found = evaluation.outcomes_of(margin, data)
    assert np.allclose(found.log_loss, -probability.log().numpy())
    assert found.right.tolist() == [1, 1, 1, 0, 0]
    # bins of 0.05: [.95, 1] has one, [.9, .95) one, [.6, .65) one, [.65, .7) the wrong one, [.5, .55) one
    off = abs(1 - 0.95) + abs(1 - 0.92) + abs(1 - 0.62) + abs(0 - 0.69) + abs(0 - 0.5)
    assert found.calibration_error == pytest.approx(off / 5)
    in_one_bin = LOGIT_SCALE * torch.logit(torch.tensor([0.81, 0.83, 0.17, 0.19]).double())
    assert evaluation.calibration_error(in_one_bin) == pytest.approx(0.82 - 0.5)
    trials = torch.stack([margin, -margin], dim=1)
    assert evaluation.outcomes_of(trials, data).right.tolist() == [0.5, 0.5, 0.5, 0.5, 0]


def test_items_on_both_sides_are_those_that_others_were_asked_about():
    table = torch.arange(20.0).view(10, 2)

    def pairs(user, chosen, rejected):
        user, chosen, rejected = map(torch.tensor, (user, chosen, rejected))
        return Comparisons(table, user, ("a", "b"), chosen, rejected)

    train = pairs([0, 0, 1], [0, 2, 4], [1, 3, 5])
    seen = pairs([0, 0, 1, 1], [1, 6, 2, 4], [0, 7, 3, 5])  # own, nobody's, a's of b, b's own
    unseen = pairs([0, 1, 1], [5, 6, 8], [4, 7, 9])
    groups = Groups(train, seen, unseen, unseen)
    assert evaluation.items_on_both_sides(groups) == {"seen": [1, 4], "unseen": [1, 3]}
