"""What a sweep fits, leaves out and refuses."""

import numpy as np
import pytest
from conftest import random_users
from populations import GROUPS, HEAD, N_UNSEEN, D, shots, sweep

from lore.common import InputError
from lore.fit import comparisons
from lore.fit.comparisons import Comparisons
from lore.report import results
from utils import run


def test_without_a_head_rank_zero_is_left_out_and_said(capsys):
    result = sweep(run, [0, 2], [0.0], V=None)
    assert np.isnan(result.unseen[0]) and not np.isnan(result.unseen[1])
    said = "K = 0 is left out: these embeddings come without a reference head\n"
    assert capsys.readouterr().out == said
    assert [row["K"] for row in results.run_rows(result.cells)] == [2]
    few = shots(K_list=[0, 2], V=None)
    assert [row["K"] for row in results.few_shot_rows(few)] == [2, 2]


def test_what_a_sweep_refuses():
    def refused(words, K_list=(1,), alpha=0.0, **options):
        with pytest.raises(InputError, match=words):
            sweep(run, K_list, [alpha], **options)

    train, seen, few, unseen = GROUPS
    refused("the fit of K = 2, alpha = 0 diverged", [2], learning_rate=3e37)
    for K in (-1, D + 1):
        refused(f"K = {K}: a rank lies between 0 and", [K])
    refused("head has width 5, the embeddings have 6", V=HEAD[:5])
    refused("alpha = 1: never negative", alpha=1.0, V=None)
    refused("nothing to fit", [0], V=None)
    refused("a value twice", [2, 2])
    with pytest.raises(InputError, match="a value twice"):  # one file would hold both bases
        sweep(run, [2], [1e6, 1e6 + 1])
    refused("solver = 'newton': adam, as published, or ridge", solver="newton")
    data = comparisons.pack(seen)
    renamed = Comparisons(data.table, data.user, tuple("43210"))
    refused("the same 5 in training and test", groups=(train, renamed, few, unseen))
    refused("seen: 4 users; expected the same 5", groups=(train, seen[:4], few, unseen))
    narrow = random_users([2] * N_UNSEEN, 3)
    refused("unseen: embeddings of width 3, train: 6", groups=(train, seen, few, narrow))
