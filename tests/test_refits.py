"""The rank that held-out training prompts speak for, and what a personal fit has to beat."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_users
from populations import GROUPS, HEAD, N_UNSEEN, N, planted, sweep
from scipy.optimize import minimize

from lore.fit.comparisons import Comparisons, pack
from lore.fit.evaluation import ALONE, ANOTHER, LORE, POPULATION, SHARED_OWN, SHUFFLED
from lore.fit.groups import Groups
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.refits import mark_best_rank
from lore.fit.ridge_shared import SharedSearch
from utils import run

# ------------------------------------------------------------------------------------------------
# The best rank
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adam", "ridge"])
def test_the_best_rank_is_found_where_people_differ_and_no_test_pair_has_a_say(solver):
    groups, head = planted()
    blind = groups._replace(seen=groups.seen.shuffled(0), unseen=groups.unseen.shuffled(1))
    options = {"solver": solver, "num_iterations": 100, "few_shot_iterations": 5}
    result = run([1, 3], [0.0], head, *blind, 40, 20, "cpu", mark_best=True, **options)
    assert [cell.K for cell in result.cells if cell.best] == [3]


@pytest.mark.parametrize("solver", ["adam", "ridge"])
def test_marking_the_best_rank_changes_nothing_and_no_baseline_is_marked(solver):
    arguments = (run, [1, 3], [0.0])
    marked = sweep(*arguments, solver=solver, mark_best=True, baselines=True)
    assert all((cell.best is None) == (cell.variant != LORE) for cell in marked.cells)
    plain = sweep(*arguments, solver=solver)
    assert np.array_equal(np.stack(marked), np.stack(plain))
    assert all(cell.best is None for cell in plain.cells)


def test_one_rank_is_marked_for_each_seed():
    result = sweep(run, [1, 3], [0.0], solver="ridge", mark_best=True, seeds=[0, 1])
    best = [cell for cell in result.cells if cell.best]
    gains = [cell.fit.choice["held_out_gain"] for cell in result.cells if cell.K == 3]
    assert [cell.seed for cell in best] == [0, 1]
    assert [cell.K for cell in best] == [3 if gain > 0 else 1 for gain in gains]


def test_ranks_of_all_alphas_are_fitted_once_more_together_and_one_alone_never():
    refitted = []

    def count(settings, train, few):
        refitted.append(len(settings))
        return cells[: len(settings)]

    groups = Groups(*map(pack, GROUPS))
    options = {"num_iterations": 3, "few_shot_iterations": 3}
    for K_list, alphas, expected in (([3], [0, 1], []), ([1, 3], [0, 1], [4, 4])):
        refitted.clear()
        cells = sweep(run, K_list, alphas, seeds=[0, 1], **options).cells
        marked = mark_best_rank(cells, groups, count)
        assert refitted == expected
        assert sum(cell.best for cell in marked) == 4  # one of each seed and alpha


def test_a_person_with_one_prompt_keeps_it():
    torch.manual_seed(0)
    users = [torch.randn(1, 6) for _ in range(40)]  # of a quarter of whom it would be held out
    arguments = ([1, 3], [0.0], HEAD, users, users, users, users, 40, 40, "cpu")
    result = run(*arguments, num_iterations=3, few_shot_iterations=3, mark_best=True)
    assert sum(cell.best for cell in result.cells) == 1


# ------------------------------------------------------------------------------------------------
# Baselines
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adam", "ridge"])
def test_baselines_are_what_they_are_called(solver):
    result = sweep(run, [1, 3], [0.0], solver=solver, baselines=True)
    cells = {(cell.K, cell.variant): cell for cell in result.cells}
    fitted = cells[3, LORE]
    V, W, W_unseen = fitted.fit.V, fitted.fit.W, fitted.W_unseen
    for variant, mixture in ((POPULATION, lambda i: W.mean(0)), (ANOTHER, lambda i: W_unseen[i - 1])):
        expected = [(x @ V @ mixture(i) > 0).double().mean() for i, x in enumerate(GROUPS[3])]
        assert np.allclose(cells[3, variant].accuracy["unseen"], expected)
    assert {key for key in cells if key[1] == SHUFFLED} == {(1, SHUFFLED), (3, SHUFFLED)}
    assert cells[1, SHARED_OWN].accuracy["unseen"].shape == (N_UNSEEN,)
    assert cells["alone", ALONE].accuracy["train"].shape == (N,)
    assert cells["alone", ALONE].accuracy["unseen"].shape == (N_UNSEEN,)


def test_shuffled_labels_teach_nothing_and_only_they_are_shuffled():
    users = random_users([100] * 8, 6, seed=7)
    data = pack(users)
    flipped = data.shuffled(0)
    same = (flipped.table == data.table).all(1)
    assert ((flipped.table == -data.table).all(1) ^ same).all() and 0.4 < same.double().mean() < 0.6
    user = torch.zeros(50, dtype=torch.long)
    chosen, rejected = torch.arange(50) % 9, torch.arange(50) % 7
    swapped = Comparisons(torch.randn(9, 6), user, ("a",), chosen, rejected).shuffled(0)
    same = (swapped.chosen == chosen) & (swapped.rejected == rejected)
    assert (same | ((swapped.chosen == rejected) & (swapped.rejected == chosen))).all()
    assert not same.all()
    options = {"num_iterations": 50, "few_shot_iterations": 5, "baselines": True}
    result = run([1], [0.0], None, users, users, users, users, 8, 8, "cpu", **options)
    shuffled = next(cell for cell in result.cells if cell.variant == SHUFFLED)
    assert result.seen[0] > 0.6 and shuffled.accuracy["seen"].mean() < result.seen[0] - 0.1


def test_each_alone_is_a_ridge_of_their_own_pairs():
    users = random_users([6, 11, 9], 6, seed=8)
    search = SharedSearch(pack(users), HEAD, 0, "cpu", "pairs")
    fit = search.each_alone()
    assert F.cosine_similarity(fit.V, HEAD, dim=0).abs().item() == pytest.approx(1)
    common = fit.V.flatten().double()
    spread = search.problem.unit * search.shared.spreads.s
    people = fit.new_people(users)
    for number, x in enumerate(users):

        def loss(v, x=x):
            v = torch.from_numpy(v)
            nll = -F.logsigmoid(x.double() @ (common + spread * v) / LOGIT_SCALE).mean()
            return (nll + v.square().sum() / 2 / len(x)).item()

        best = spread * torch.from_numpy(minimize(loss, np.zeros(6), method="BFGS").x)
        for deviations in (fit.deviations, people.deviations):
            assert (deviations.vector(number) - best).norm() < 0.05 * best.norm()


def test_each_alone_has_no_head_that_was_not_chosen():
    search = SharedSearch(pack(random_users([6, 11, 9], 6, seed=8)), None, 0, "cpu", "pairs")
    assert not search.each_alone().V.any()
