"""What a personal fit has to beat."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_users
from populations import GROUPS, HEAD, N_UNSEEN, N, sweep
from scipy.optimize import minimize

from lore.fit import comparisons, likelihood, refits
from lore.fit.evaluation import ALONE, ANOTHER, LORE, POPULATION, SHARED_OWN, SHUFFLED
from lore.fit.ridge_model import JointProblem
from utils import run


@pytest.mark.parametrize("solver", ["adam", "ridge"])
def test_baselines_are_what_they_are_called(solver):
    result = sweep(run, [0, 1, 3], [0.0], solver=solver, baselines=True)
    cells = {(c.K, c.variant): c for c in result.cells}
    assert np.array_equal(
        np.stack(result), np.stack(sweep(run, [0, 1, 3], [0.0], solver=solver))
    )  # they change nothing
    fitted = cells[3, LORE]
    if fitted.fit.V.shape[1] > 1:
        W, W_unseen = fitted.fit.W, fitted.W_unseen
        for variant, mixture in (
            (POPULATION, lambda i: W.mean(0)),
            (ANOTHER, lambda i: W_unseen[i - 1]),
        ):
            expected = [
                ((x @ fitted.fit.V @ mixture(i)) > 0).double().mean()
                for i, x in enumerate(GROUPS[3])
            ]
            assert np.allclose(cells[3, variant].accuracy["unseen"], expected)
    assert {key for key in cells if key[1] == SHUFFLED} == {(1, SHUFFLED), (3, SHUFFLED)}
    assert cells[1, SHARED_OWN].accuracy["unseen"].shape == (N_UNSEEN,)
    assert cells["alone", ALONE].accuracy["train"].shape == (N,)
    assert cells["alone", ALONE].accuracy["unseen"].shape == (N_UNSEEN,)


def test_shuffled_labels_teach_nothing_and_only_they_are_shuffled():
    users = random_users([100] * 8, 6, seed=7)
    data = comparisons.pack(users)
    flipped = data.shuffled(0)
    same = (flipped.table == data.table).all(1)
    assert ((flipped.table == -data.table).all(1) ^ same).all() and 0.4 < same.double().mean() < 0.6
    pairs = comparisons.Comparisons(
        torch.randn(9, 6),
        torch.zeros(50, dtype=torch.long),
        ("a",),
        torch.arange(50) % 9,
        torch.arange(50) % 7,
    )
    swapped = pairs.shuffled(0)
    kept = (swapped.chosen == pairs.chosen) & (swapped.rejected == pairs.rejected)
    assert (
        kept | ((swapped.chosen == pairs.rejected) & (swapped.rejected == pairs.chosen))
    ).all() and not kept.all()
    groups = (users, random_users([100] * 8, 6, seed=7), users, users)
    result = run([1], [0.0], None, *groups, 8, 8, "cpu", num_iterations=100, baselines=True)
    shuffled = next(c for c in result.cells if c.variant == SHUFFLED)
    assert result.seen[0] > 0.6 and shuffled.accuracy["seen"].mean() < result.seen[0] - 0.1


def test_each_alone_is_a_ridge_of_their_own_pairs(monkeypatch):
    users = random_users([6, 11, 9], 6, seed=8)
    tests = random_users([200] * 3, 6, seed=9)
    problem = JointProblem(comparisons.pack(users), HEAD, "cpu", "people")
    monkeypatch.setattr(refits, "FIRST_PASSES", 300)
    s, (on_pairs, on_test) = (
        0.8,
        refits.fit_alone(
            comparisons.pack(users), comparisons.pack(tests), torch.arange(3), problem, 0.8
        ),
    )
    head = (HEAD / HEAD.norm()).double().flatten() * 6**0.5
    for i, (x, test) in enumerate(zip(users, tests)):

        def loss(v, x=x):
            c, u = torch.tensor(v[0]), torch.from_numpy(v[1:])
            nll = -F.logsigmoid(
                problem.unit / likelihood.LOGIT_SCALE * (x.double() @ (c * head + s * u))
            ).mean()
            return (nll + (c**2 / 25 + u.square().sum()) / 2 / len(x)).item()

        best = minimize(loss, np.zeros(7), method="BFGS").x
        reward = best[0] * head + s * torch.from_numpy(best[1:])
        expected = problem.unit * reward
        margins = on_test[200 * i : 200 * i + 200].double()
        off = (margins - test.double() @ expected).norm() / margins.norm()
        assert off < 0.05
        assert len(on_pairs) == 26
