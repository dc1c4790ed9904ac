"""Bases on disk and their health."""

from pathlib import Path

import pytest
import torch
from populations import GROUPS, HEAD, N_UNSEEN, D, N, sweep

from lore.common import InputError
from lore.fit.basis import Basis, basis_health, basis_path, best_path, load_basis, save_basis
from lore.report import text_tables
from utils import LoRe, PersonalizeBatch, run


def a_basis():
    V = torch.randn(2, 6).T  # column-major, as the fits keep it
    W, W_unseen = torch.rand(3, 2).softmax(1), torch.rand(1, 2).softmax(1)
    return Basis(V, W, ("x", "y", "z"), W_unseen, ("new",), "a model", deviation_spread=0.5)


def test_a_basis_comes_back_and_what_is_none_is_refused(tmp_path):
    path = tmp_path / "basis.safetensors"
    basis = a_basis()
    save_basis(path, basis, alpha=0.0)
    for saved, loaded in zip(basis, load_basis(path, 6)):
        assert torch.equal(saved, loaded) if isinstance(saved, torch.Tensor) else saved == loaded

    def refused(words, path=path, num_features=6):
        with pytest.raises(InputError, match=words):
            load_basis(path, num_features)

    refused("basis of width 6, but the embeddings have 5", num_features=5)
    refused("is missing", tmp_path / "none")
    for name in ("V", "W", "W_unseen"):
        broken = a_basis()
        getattr(broken, name)[0, 0] = float("nan")
        save_basis(path, broken)
        refused(f"{name} holds NaN")
    path.write_text("not a basis")
    refused("is not a basis")


def test_health_of_bases_that_one_can_judge_by_eye(capsys):
    eye = torch.eye(4)
    column = eye[:, :1]
    types = basis_health(eye[:, :2], eye[:2, :2], column)  # two people, two rewards
    assert types["columns"] == 2 and types["alike"] == 0 and types["to_head"] == [0, 1]
    assert types["used"] == pytest.approx(2) and types["used_by_one"] == pytest.approx(1)
    mixed = basis_health(eye[:, :2], torch.full((5, 2), 0.5), None)
    assert mixed["used"] == pytest.approx(2) and mixed["used_by_one"] == pytest.approx(2)
    assert mixed["to_head"] is None
    same = torch.cat([column, -3 * column, column], 1)
    collapsed = basis_health(same, eye[:1, :3].expand(5, 3), column)
    assert collapsed["alike"] == pytest.approx(1) and collapsed["to_head"] == [-1, 1]
    assert collapsed["used"] == pytest.approx(1)
    one = basis_health(column, torch.ones(5, 1), column)
    rows = [{"K": 0, "alpha": 0.0, "seed": 0}]
    for K, health in ((2, types), (1, one), (3, mixed)):
        rows.append({"K": K, "alpha": 0.0, "seed": 0, **health})
    text_tables.print_table(text_tables.health_table(rows))
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "K",
        "columns",
        "alike",
        "cosine",
        "to",
        "head",
        "used",
        "used",
        "by",
        "one",
    ]
    assert [line.split() for line in lines[:3]] == [
        ["2", "2", "0.00", "0.00", "..", "1.00", "2.0", "1.0"],
        ["1", "Bradley-Terry", "1", "-", "1.00", "..", "1.00", "1.0", "1.0"],
        ["3", "2", "0.00", "-", "2.0", "2.0"],
    ]
    assert len(lines) == 5


def test_bases_are_saved_with_their_users(tmp_path):
    result = sweep(run, [0, 2], [0.0], seeds=[3], mark_best=True, save=tmp_path / "fit")
    names = ["K0_alpha0_seed3", "K2_alpha0_seed3", "best_alpha0_seed3"]
    assert sorted(p.stem for p in tmp_path.iterdir()) == [f"fit_{name}" for name in names]
    (best,) = [cell.K for cell in result.cells if cell.best]
    starred = load_basis(best_path(tmp_path / "fit", 0.0, 3), D)
    assert torch.equal(starred.V, load_basis(basis_path(tmp_path / "fit", best, 0.0, 3), D).V)
    sweep(run, [2], [0.0], seeds=[3], save=tmp_path / "fit")
    assert not Path(best_path(tmp_path / "fit", 0.0, 3)).exists()  # that of an earlier run
    basis = load_basis(basis_path(tmp_path / "fit", 2, 0.0, 3), D)
    generator = torch.Generator().manual_seed(3)
    W, V = LoRe(HEAD, 0.0, N, D, 2, 60, 0.5, generator=generator).fit(GROUPS[0])
    W_unseen = PersonalizeBatch(N_UNSEEN, D, 2, 40, 0.1, generator=generator).fit(GROUPS[2], V)
    for saved, fitted in ((basis.V, V), (basis.W, W), (basis.W_unseen, W_unseen)):
        assert torch.allclose(saved, fitted, atol=1e-5)
    assert basis.user_ids == tuple("01234") and basis.unseen_ids == tuple("0123"[:N_UNSEEN])


def test_rewards_of_some_people_copy_nobody_elses():
    """The tables of ten million people are one row each in memory; a copy of them would take 80 GB."""
    people, width = 10**7, 2048
    E = torch.ones(1, width).expand(people, width)
    W = torch.tensor([[0.25, 0.75]]).expand(people, 2)
    basis = Basis(torch.randn(width, 2), W, ("x", "y"), W[:0], (), E=E, E_unseen=E[:0])
    table = torch.randn(3, width)
    users = ["y", "x", "y"]
    expected = basis.log_odds(table, users).diagonal()
    assert torch.allclose(basis.log_odds_by_row(table, users), expected, atol=1e-4)
    assert torch.allclose(table @ basis.rewards(["x"]) / 100, basis.log_odds(table, ["x"]), atol=1e-3)


def test_people_of_both_tables_have_their_own_rows():
    torch.manual_seed(0)
    W, E = torch.rand(5, 2).softmax(1), torch.randn(5, 6)
    basis = Basis(torch.randn(6, 2), W[:3], ("a", "b", "c"), W[3:], ("d", "e"), E=E[:3], E_unseen=E[3:])
    users = ["e", "a", "d", "a"]
    expected = (basis.V @ W[[4, 0, 3, 0]].T + E[[4, 0, 3, 0]].T) / 100  # (d, K) @ (K, P)
    table = torch.randn(4, 6)
    assert torch.allclose(basis.log_odds(table, users), table @ expected, atol=1e-5)
    assert torch.allclose(basis.log_odds_by_row(table, users), (table @ expected).diagonal(), atol=1e-5)
