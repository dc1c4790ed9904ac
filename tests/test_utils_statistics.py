"""Intervals over users, paired differences and the baselines of a table."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_users
from scipy.optimize import minimize
from test_utils_sweeps import GROUPS, HEAD, N_UNSEEN, N, sweep

from lore import comparisons, evaluation, likelihood, report, ridge
from lore.evaluation import ALONE, ANOTHER, LORE, POPULATION, SHUFFLED, Cell
from lore.ridge import RidgeProblem
from lore.statistics import summarise
from utils import run


def cell(accuracies, K=2, model=LORE, seed=0, users=None):
    users = users or [f"u{i}" for i in range(len(accuracies))]
    return Cell(seed, 0.0, K, {"unseen": np.array(accuracies)}, {"unseen": tuple(users)}, model)


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


def test_what_shuffled_labels_reach_as_well_is_called_out(capsys):
    rng = np.random.default_rng(3)
    real, shuffled = rng.uniform(0.5, 0.7, 50), rng.uniform(0.5, 0.7, 50)
    report.print_run_table(summarise_for_print(cell(real), cell(shuffled, model=SHUFFLED)))
    assert "no better than shuffled labels: K = 2, unseen" in capsys.readouterr().out
    report.print_run_table(summarise_for_print(cell(real), cell(1 - shuffled, model=SHUFFLED)))
    assert (
        "no better" in capsys.readouterr().out
    )  # the opposite of shuffled labels is as shuffled as they are
    report.print_run_table(summarise_for_print(cell(real + 0.2), cell(shuffled, model=SHUFFLED)))
    assert "no better" not in capsys.readouterr().out


def summarise_for_print(*cells):
    full = [c._replace(accuracy=dict.fromkeys(report.GROUP_NAMES, c.accuracy["unseen"]),
                       users=dict.fromkeys(report.GROUP_NAMES, c.users["unseen"])) for c in cells]  # fmt: skip
    return summarise(full)


@pytest.mark.parametrize("solver", ["adam", "ridge"])
def test_baselines_are_what_they_are_called(solver):
    result = sweep(run, [0, 1, 3], [0.0], solver=solver, baselines=True)
    cells = {(c.K, c.model): c for c in result.cells}
    assert np.array_equal(
        np.stack(result), np.stack(sweep(run, [0, 1, 3], [0.0], solver=solver))
    )  # they change nothing
    fitted = cells[3, LORE]
    if fitted.fit.V.shape[1] > 1:
        W, W_unseen = fitted.fit.W, fitted.W_unseen
        for model, mixture in (
            (POPULATION, lambda i: W.mean(0)),
            (ANOTHER, lambda i: W_unseen[i - 1]),
        ):
            expected = [
                ((x @ fitted.fit.V @ mixture(i)) > 0).double().mean()
                for i, x in enumerate(GROUPS[3])
            ]
            assert np.allclose(cells[3, model].accuracy["unseen"], expected)
    assert {key for key in cells if key[1] == SHUFFLED} == {(1, SHUFFLED), (3, SHUFFLED)}
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
    shuffled = next(c for c in result.cells if c.model == SHUFFLED)
    assert result.seen[0] > 0.6 and shuffled.accuracy["seen"].mean() < result.seen[0] - 0.1


def test_each_alone_is_a_ridge_of_their_own_pairs(monkeypatch):
    users = random_users([6, 11, 9], 6, seed=8)
    tests = random_users([200] * 3, 6, seed=9)
    problem = RidgeProblem(comparisons.pack(users), HEAD, 0, "cpu")
    monkeypatch.setattr(ridge, "FIRST_PASSES", 300)
    s, (on_pairs, on_test) = (
        0.8,
        evaluation.alone(
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
        assert abs(((test.double() @ reward) > 0).double().mean().item() - on_test[i]) <= 0.03
        assert abs(((x.double() @ reward) > 0).double().mean().item() - on_pairs[i]) <= 0.17
