"""The few-shot sweep: problems one by one, dialogues, what is refused."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from populations import GROUPS, HEAD, N_UNSEEN, D, N, accuracy, shots

from lore.common import InputError
from lore.fit.comparisons import pack
from lore.fit.evaluation import ALL_SHOTS
from lore.fit.few_shot import draw_shots
from lore.fit.groups import shuffled_positions
from lore.report import results
from utils import LoRe, LoRe_regularized, PersonalizeBatch

DIALOGUES = [0, 0, 0, 1, 2, 2, 3, 3]  # of each user's 8 pairs


@pytest.mark.parametrize("model_class, dialogues", [(LoRe, [*range(8)]), (LoRe_regularized, DIALOGUES)])
def test_problems_of_a_batch_are_those_solved_one_by_one(model_class, dialogues):
    """A shot is a pair, or a dialogue, whose pairs are drawn together."""
    size = max(dialogues) + 1
    dialogues = torch.tensor(dialogues)
    newcomers = [x[:8] for x in GROUPS[2]]
    data = pack(newcomers)
    if size < 8:
        data = replace(data, shot=torch.cat([dialogues + size * i for i in range(N_UNSEEN)]))
    groups = [*GROUPS[:2], data, GROUPS[3]]
    trials, num_shots = 3, [1, 3, ALL_SHOTS]
    result = shots(trials, num_shots=num_shots, groups=groups, model_class=model_class)
    generator = torch.Generator().manual_seed(0)
    _, V = model_class(HEAD, 0.0, N, D, 2, 60, 0.5, generator=generator).fit(GROUPS[0])
    starts = torch.randn(trials * N_UNSEEN, 2, generator=generator).view(trials, N_UNSEEN, 2)
    owner = torch.arange(N_UNSEEN).repeat_interleave(size)
    positions = shuffled_positions(owner, trials, torch.Generator().manual_seed(0))
    positions = positions.view(trials, N_UNSEEN, size)
    few, unseen = np.zeros((trials, 3)), np.zeros((trials, 3))
    for t, s in itertools.product(range(trials), range(3)):
        chosen = positions[t] < (num_shots[s] or size)  # (users, shots)
        drawn = [x[picked[dialogues]] for x, picked in zip(newcomers, chosen)]
        model = PersonalizeBatch(N_UNSEEN, D, 2, 40, 0.1)
        model.w.data = starts[t].clone()
        W = model.fit(drawn, V)
        few[t, s], unseen[t, s] = np.mean(accuracy(V, W, drawn)), np.mean(accuracy(V, W, GROUPS[3]))
    for array, expected in zip(result, (few.mean(0), few.std(0), unseen.mean(0), unseen.std(0))):
        assert np.allclose(array[0, 0], expected, atol=1e-6)
    assert [row["shots"] for row in results.few_shot_rows(result)] == [1, 3, "all"]
    with pytest.raises(InputError, match=f"shots = 9: user 0 has {size} to draw from"):
        shots(num_shots=[9], groups=groups)


def test_draws_count_their_problems_and_can_be_changed():
    draws = draw_shots(pack(GROUPS[2]), [1, ALL_SHOTS], 3, 0)
    assert draws.problems == 6 * N_UNSEEN and draws._replace(trials=1).problems == 2 * N_UNSEEN


def test_every_alpha_rank_and_number_of_shots_is_returned_and_independent_of_the_others():
    result = shots(alpha_list=(0.0, 0.5), K_list=(0, 1, 3), num_shots=(1, 4, 8))
    assert all(array.shape == (2, 3, 3) for array in result)
    assert np.allclose(
        shots(alpha_list=(0.5,), K_list=(3,), num_shots=(4,)).unseen[0, 0, 0], result.unseen[1, 2, 1]
    )
    assert np.ptp(result.unseen[:, :2], axis=2).max() == 0  # K <= 1: nothing to learn about a user


def test_more_shots_than_pairs_is_refused():
    with pytest.raises(InputError, match=r"shots = 9: user 0 has 8 to draw from; use 1\.\.8"):
        shots(num_shots=(2, 9))
    with pytest.raises(InputError, match="shots = -1: user 0"):
        shots(num_shots=(-1, 2))
    with pytest.raises(InputError, match="trials and num_shots"):
        shots(trials=0)
