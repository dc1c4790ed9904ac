"""How sure a score of RewardBench 2 is. The score itself: tests/test_prism.py, with its script."""

import numpy as np
import pytest
from conftest import ROOT, load_script

REWARDBENCH2 = load_script(ROOT / "PRISM/rewardbench2.py")


def test_the_interval_over_rows_is_that_of_a_mean_of_subsets():
    rng = np.random.default_rng(0)
    rows, scores, right = [], [], []
    for name in REWARDBENCH2.SUBSETS[:5]:
        wins = rng.random((200, 2)) < (0.5, 0.8)  # of the reference, of another reward
        right.append(wins)
        for number, won in enumerate(wins):
            rows.append({"id": str(number), "subset": name, "num_correct": 1})
            scores.append(np.stack([won * 2.0, np.ones(2)]))  # the correct reply has 2 or 0
    for number in range(40):  # pairs of which both rewards get everything right
        for kind, correct in (("ref", 1), ("tied", 2)):
            rows.append({"id": f"{kind}:{number}", "subset": "Ties", "num_correct": correct})
            scores.append(np.repeat([[9.0]] * correct + [[1.0]], 2, axis=1))
    ((mean, low, high),) = REWARDBENCH2.over_first(rows, scores)
    by_subset = REWARDBENCH2.subset_scores(rows, scores)
    assert mean == pytest.approx(np.mean([values[1] - values[0] for values in by_subset.values()]))
    errors = [np.diff(wins * 1.0).std() / 200**0.5 for wins in right]
    half = 1.96 * np.square(errors).sum() ** 0.5 / 6
    assert (high - low) / 2 == pytest.approx(half, rel=0.15) and low < mean < high


def test_the_two_rows_of_a_pair_are_drawn_together():
    rows = [("ref:7", 1, np.array([[2.0], [1.0]])), ("tied:7", 2, np.array([[2.0], [2.0], [1.0]]))]
    drawn = REWARDBENCH2.ties_drawn(rows, np.random.default_rng(0))
    assert np.allclose(drawn, REWARDBENCH2.ties(rows)[0])
