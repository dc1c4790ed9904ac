"""Eq. 15."""

import numpy as np
import pytest
import torch
from populations import GROUPS, HEAD, D, N, accuracy, sweep

from lore import evaluation
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
