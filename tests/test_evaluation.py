"""Eq. 15."""

import numpy as np
import pytest
import torch
from populations import GROUPS, HEAD, D, N, accuracy, sweep

from utils import run


def test_rank_zero_is_the_head_for_everybody_and_a_tie_is_wrong():
    result = sweep(run, [0], [0.0])
    ones = torch.ones(N, 1)
    assert result.seen[0] == pytest.approx(np.mean(accuracy(HEAD, ones, GROUPS[1])))
    assert sweep(run, [0], [0.0], V=torch.zeros(D, 1)).unseen[0] == 0  # strictly positive, Eq. 15
