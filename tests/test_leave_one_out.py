"""People taken into a saved basis: each left out in turn, against fits made one by one."""

import pytest
import torch
from conftest import random_users

from leave_one_out import adapt, leave_one_out
from lore.fit.basis import Basis
from lore.fit.comparisons import Comparisons
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import EVERYBODY, Prior, solve_mixtures


@pytest.mark.parametrize("own", [0.0, 3.0])
def test_each_pair_is_judged_by_the_fit_to_all_others(own):
    users = [50 * x for x in random_users([1, 4, 7, 2], 6)]
    pairs = Comparisons.from_list(users)
    V = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    prior = Prior(torch.tensor([0.5, 0.3, 0.2]), 2.0, own)
    left, logits = leave_one_out(pairs.table @ V, prior, pairs)
    assert left.tolist() == list(range(14))
    for number, found in zip(left.tolist(), logits.tolist()):
        mine = (pairs.user == pairs.user[number]) & (torch.arange(14) != number)
        X = pairs.table[mine]
        x = pairs.table[number]
        if len(X) == 0:
            expected = x @ V @ prior.mean
        else:
            alone = Comparisons.from_list([X])
            one = solve_mixtures(X @ V, alone.user, 1, prior, alone)
            expected = x.double() @ V.double() @ one.W[0]
            if one.deviations is not None:
                expected = expected + x @ one.deviations.vector(0)
        assert found == pytest.approx(float(expected) / LOGIT_SCALE, abs=2e-3)


def test_a_word_is_said_only_where_there_is_something_to_say():
    torch.manual_seed(0)
    V = 100 * torch.eye(8)[:, :2]
    W = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    basis = Basis(V, W, ("x", "y"), W[:0], (), mean=torch.tensor([0.5, 0.5]))
    X = torch.randn(40, 8)
    opposed = X[X[:, 0] * X[:, 1] < 0]  # where the two rewards disagree, and ann follows the first
    ann = opposed * opposed[:, :1].sign()
    found = adapt(basis, Comparisons.from_list([ann, ann[:2]]))
    assert found.accuracy[0] == 1 and found.word(0, len(ann)) == "clearly better than the population"
    assert found.word(1, 2) == "too few pairs to say"
    nobody = basis._replace(mean=W[0], strength=EVERYBODY)
    found = adapt(nobody, Comparisons.from_list([ann]))
    assert found.gain[0] == 0 and found.word(0, len(ann)) == "not told from the population"
