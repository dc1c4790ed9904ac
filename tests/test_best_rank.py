"""The rank that held-out training prompts speak for."""

import numpy as np
import torch
from populations import GROUPS, HEAD, N_UNSEEN, QUICK, N
from test_ridge import planted

from lore.fit.comparisons import pack
from lore.fit.groups import Groups
from utils import run


def best(groups, head, N, N_unseen, **options):
    result = run(
        [0, 1, 3], [0.0], head, *groups, N, N_unseen, "cpu", mark_best=True, **{**QUICK, **options}
    )
    return result, [cell.K for cell in result.cells if cell.best]


def test_it_is_found_where_people_differ_and_no_test_pair_has_a_say():
    groups, head = planted()
    for solver in ("adam", "ridge"):
        settings = {"solver": solver, "num_iterations": 300}
        result, chosen = best(groups, head, 40, 20, **settings)
        assert chosen == [3]
        blind = groups._replace(seen=groups.seen.shuffled(0), unseen=groups.unseen.shuffled(1))
        assert best(blind, head, 40, 20, **settings)[1] == [3]
        plain = run([0, 1, 3], [0.0], head, *groups, 40, 20, "cpu", **{**QUICK, **settings})
        assert np.array_equal(np.stack(result), np.stack(plain))  # marking changes nothing
        assert all(cell.best is None for cell in plain.cells)


def test_of_equal_ranks_the_smallest_is_marked_once_for_each_seed():
    groups = Groups(*map(pack, GROUPS))
    result, chosen = best(groups, HEAD, N, N_UNSEEN, solver="ridge", seeds=[0, 1])
    fits = {cell.K: cell.fit for cell in result.cells if cell.seed == 0}
    if fits[3].choice["held_out_gain"] == 0:
        assert chosen == [1, 1]
    assert len(chosen) == 2


def test_a_person_with_one_prompt_keeps_it():
    users = [torch.randn(1, 6) for _ in range(4)] + [torch.randn(30, 6)]
    groups = Groups(*map(pack, (users, users, users, users)))
    assert len(best(groups, HEAD, 5, 5)[1]) == 1
