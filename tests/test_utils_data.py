"""Comparisons in memory and on disk, and planted populations."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_users

from lore import common, evaluation, likelihood, planted, tables
from lore.common import InputError
from lore.comparisons import Comparisons
from lore.likelihood import project
from lore.planted import planted_population
from lore.tables import Split, load_split, save_split


def a_split(rows=6, d=4, dtype=torch.bfloat16):
    table = torch.randn(rows, d, generator=torch.Generator().manual_seed(0)).to(dtype)
    frame = pd.DataFrame(
        {
            "user_id": ["b", "a", "b"],
            "prompt": list("pqr"),
            "chosen": [0, 2, 4],
            "rejected": [1, 3, 5],
        }
    )
    return Split(table, frame, torch.randn(d, 1), "tiny")


def test_from_frame_sorts_by_user_and_keeps_the_pairs_together():
    table, frame, *_ = a_split()
    data = Comparisons.from_frame(table, frame)
    assert data.user_ids == ("a", "b") and data.user.tolist() == [0, 1, 1]
    assert data.chosen.tolist() == [2, 0, 4] and data.rejected.tolist() == [3, 1, 5]
    assert Comparisons.from_frame(table, frame, ["b"]).chosen.tolist() == [0, 4]


def test_both_replies_are_cast_before_they_are_subtracted():
    """1 + 2^-7 is a bfloat16, its difference to 256 is not: subtracting in bfloat16 would round it to -255."""
    table = torch.tensor([[1 + 2**-7], [256.0]], dtype=torch.bfloat16)
    data = Comparisons(table, torch.tensor([0]), ("a",), torch.tensor([0]), torch.tensor([1]))
    like = torch.zeros(1)
    assert data.differences(like).item() == 1 + 2**-7 - 256
    assert (table[0] - table[1]).item() != data.differences(like).item()
    assert project(data, [torch.ones(1, 1)])[0].item() == 1 + 2**-7 - 256


@pytest.mark.parametrize("block", [1, 2, 8192])
def test_projection_is_the_projected_difference(block, monkeypatch):
    monkeypatch.setattr(tables, "TABLE_ROWS", block)
    table, frame, *_ = a_split(dtype=torch.float64)
    V = torch.randn(4, 2, dtype=torch.float64)
    for data in (
        Comparisons.from_frame(table, frame),
        Comparisons.from_list(random_users([2, 3], 4, dtype=torch.float64)),
    ):
        X = data.differences(V)
        assert X.shape == (len(data), 4) and torch.allclose(project(data, [V])[0], X @ V)


def test_only_the_table_rows_in_use_are_projected():
    table, frame, *_ = a_split(dtype=torch.float32)
    table[2] = float("nan")  # used by user a alone
    (Z,) = project(Comparisons.from_frame(table, frame, ["b"]), [torch.ones(4, 1)])
    assert Z.isfinite().all()


def test_a_user_without_pairs_is_named():
    table, frame, *_ = a_split()
    with pytest.raises(InputError, match="user c has no pairs"):
        Comparisons.from_frame(table, frame, ["a", "c"])
    with pytest.raises(InputError, match="user 1 has no pairs"):
        Comparisons.from_list([torch.randn(2, 3), torch.randn(0, 3)])


def test_nan_and_unequal_widths_in_a_list_are_named():
    users = random_users([2, 2], 3)
    users[1][0, 2] = float("nan")
    with pytest.raises(InputError, match="user 1: features hold NaN"):
        Comparisons.from_list(users)
    with pytest.raises(InputError, match="user 1: features of shape"):
        Comparisons.from_list([torch.randn(2, 3), torch.randn(2, 4)])
    with pytest.raises(InputError, match="sorted by user"):
        Comparisons(torch.randn(2, 3), torch.tensor([1, 0]), ("a", "b"))
    with pytest.raises(InputError, match="no users"):
        Comparisons.from_list([])


def test_a_saved_split_comes_back_whole(tmp_path):
    split = a_split()
    save_split(tmp_path / "train", split, fingerprint="x")
    again = load_split(tmp_path / "train", "prepare")
    assert torch.equal(again.table, split.table) and again.table.dtype == torch.bfloat16
    assert (
        again.frame.equals(split.frame)
        and torch.equal(again.head, split.head)
        and again.model == "tiny"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.parquet", "train.safetensors"]


def test_what_is_wrong_with_a_split_is_said(tmp_path):
    with pytest.raises(
        InputError, match=r"train.safetensors is missing; make it with: python x.py"
    ):
        load_split(tmp_path / "train", "python x.py")
    split = a_split()
    split.table[3, 1] = float("nan")
    save_split(tmp_path / "nan", split)
    with pytest.raises(InputError, match="row 3 of the embeddings holds NaN"):
        load_split(tmp_path / "nan", "prepare")
    save_split(tmp_path / "short", a_split()._replace(table=a_split().table[:5]))
    with pytest.raises(InputError, match="outside the 5 rows"):
        load_split(tmp_path / "short", "prepare")
    save_split(tmp_path / "head", a_split()._replace(head=torch.randn(9, 1)))
    with pytest.raises(InputError, match="head has width 9, the embeddings have 4"):
        load_split(tmp_path / "head", "prepare")
    save_split(tmp_path / "torn", a_split())
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"torn\.parquet is damaged"):
        load_split(tmp_path / "torn", "prepare")
    save_split(tmp_path / "nan head", a_split()._replace(head=torch.full((4, 1), float("nan"))))
    with pytest.raises(InputError, match="head holds NaN"):
        load_split(tmp_path / "nan head", "prepare")
    whole = (tmp_path / "head.safetensors").read_bytes()
    (tmp_path / "head.safetensors").write_bytes(whole[:-10])
    with pytest.raises(InputError, match="is damaged"):
        load_split(tmp_path / "head", "prepare")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "file"
    with common.written_whole(target) as file:
        file.write_text("first")
    with pytest.raises(RuntimeError), common.written_whole(target) as file:
        file.write_text("half")
        raise RuntimeError
    assert target.read_text() == "first" and list(target.parent.iterdir()) == [target]


def test_planted_populations_are_as_noisy_as_asked_for_and_reproducible():
    arguments = {
        "num_features": 8,
        "num_directions": 3,
        "concentration": 0.3,
        "best_accuracy": 0.85,
    }
    population = planted_population(60, {"train": 300, "validation": 50}, **arguments, seed=1)
    frame, table = population.splits["train"].frame, population.splits["train"].table
    W = torch.stack([population.W[user] for user in sorted(population.W)])
    data = Comparisons.from_frame(table, frame)
    margins = likelihood.margins(project(data, [population.V])[0], W, data.user)
    accuracy = evaluation.share_right(margins, data.user, len(W)).mean().item()
    assert accuracy == pytest.approx(0.85, abs=0.01)
    assert (frame["chosen"] // 2 == frame["rejected"] // 2).all() and (
        frame["chosen"] != frame["rejected"]
    ).all()
    assert not set(frame["prompt"]) & set(population.splits["validation"].frame["prompt"])
    assert frame["prompt"].nunique() < len(frame)  # prompts are shared between users
    again = planted_population(60, {"train": 300, "validation": 50}, **arguments, seed=1)
    assert again.splits["train"].frame.equals(frame) and torch.equal(
        again.splits["train"].table, table
    )
    other = planted_population(60, {"train": 300, "validation": 50}, **arguments, seed=2)
    assert not torch.equal(other.splits["train"].table, table)


def test_shots_are_numbered_user_by_user():
    data = Comparisons.from_list([torch.randn(3, 4), torch.randn(2, 4)])
    assert replace(data, shot=torch.tensor([1, 0, 1, 2, 2])).shot is not None
    for wrong in ([0, 0, 0, 0, 1], [0, 0, 2, 3, 3], [1, 1, 1, 0, 0], [0, 1, 2, 0, 1]):
        with pytest.raises(InputError, match="shots are numbered"):
            replace(data, shot=torch.tensor(wrong))


@pytest.mark.parametrize("accuracy", [0.6, 0.9, 0.99])
def test_temperature_gives_the_asked_for_accuracy(accuracy):
    margin = np.abs(np.random.default_rng(0).normal(size=1000))
    accuracy_at = lambda T: np.mean(1 / (1 + np.exp(-margin / T)))
    T = planted.solve_temperature(accuracy_at, accuracy, margin.mean())
    assert accuracy_at(T) == pytest.approx(accuracy, abs=1e-6)
