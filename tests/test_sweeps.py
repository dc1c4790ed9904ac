"""What a sweep fits, leaves out and refuses."""

import numpy as np
import pytest
from conftest import random_users
from populations import GROUPS, HEAD, N_UNSEEN, D, shots, sweep

from lore.common import InputError
from lore.fit import comparisons
from lore.fit.comparisons import Comparisons
from lore.report import results
from utils import (
    run,
)


def test_without_a_head_rank_zero_is_left_out_and_said(capsys):
    result = sweep(run, [0, 2], [0.0], V=None)
    assert np.isnan(result.unseen[0]) and not np.isnan(result.unseen[1])
    assert (
        capsys.readouterr().out
        == "K = 0 is left out: these embeddings come without a reference head\n"
    )
    assert [row["K"] for row in results.run_rows(result.cells)] == [2]
    few = shots(K_list=[0, 2], V=None)
    assert [row["K"] for row in results.few_shot_rows(few)] == [2, 2]


def test_what_a_sweep_refuses():
    with pytest.raises(InputError, match="the fit of K = 2, alpha = 0 diverged"):
        sweep(run, [2], [0.0], learning_rate=3e37)
    for K in (-1, D + 1):
        with pytest.raises(InputError, match=f"K = {K}: a rank lies between 0 and"):
            sweep(run, [K], [0.0])
    with pytest.raises(InputError, match="head has width 5, the embeddings have 6"):
        sweep(run, [1], [0.0], V=HEAD[:5])
    with pytest.raises(InputError, match="alpha = 1: never negative"):
        sweep(run, [1], [1.0], V=None)
    with pytest.raises(InputError, match="nothing to fit"):
        sweep(run, [0], [0.0], V=None)
    with pytest.raises(InputError, match="a value twice"):
        sweep(run, [2, 2], [0.0])
    data = comparisons.pack(GROUPS[1])
    renamed = Comparisons(data.table, data.user, tuple("43210"))
    with pytest.raises(InputError, match="the same 5 in training and test"):
        sweep(run, [1], [0.0], groups=(GROUPS[0], renamed, *GROUPS[2:]))
    with pytest.raises(InputError, match="solver = 'newton'"):
        sweep(run, [1], [0.0], solver="newton")
    with pytest.raises(InputError, match="seen: 4 users; expected the same 5"):
        sweep(run, [1], [0.0], groups=(GROUPS[0], GROUPS[1][:4], *GROUPS[2:]))
    with pytest.raises(InputError, match="unseen: embeddings of width 3, train: 6"):
        sweep(run, [1], [0.0], groups=(*GROUPS[:3], random_users([2] * N_UNSEEN, 3)))
