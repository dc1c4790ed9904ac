"""The big product and the projection against plain matrix products."""

import pytest
import torch
from conftest import random_users
from populations import a_split

from lore.fit import comparisons, product
from lore.fit.comparisons import Comparisons
from lore.fit.product import Rows, TallProduct, project


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
    monkeypatch.setattr(product, "TABLE_ROWS", block)
    monkeypatch.setattr(comparisons, "TABLE_ROWS", block)
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


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 100])
def test_tall_product_for_any_number_of_rows(n):
    X = torch.randn(n, 5, dtype=torch.float64)
    Vs = [torch.randn(5, K, dtype=torch.float64, requires_grad=True) for K in (3, 1, 7)]
    for V, Z in zip(Vs, TallProduct.apply(X, *Vs)):
        G = torch.randn(n, V.shape[1], dtype=torch.float64)
        assert Z.shape == G.shape and torch.allclose(Z, X @ V)
        V.grad = None
        Z.backward(G, retain_graph=True)
        assert torch.allclose(V.grad, X.T @ G)


def embedded_pairs():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(90, 12, generator=generator, dtype=torch.float64)
    chosen, rejected = torch.randint(0, 90, (2, 75), generator=generator)
    user = torch.arange(3).repeat_interleave(25)
    return Comparisons(table, user, ("a", "b", "c"), chosen, rejected)


@pytest.mark.parametrize("piece", [4, 5, 1000])
def test_rows_that_are_not_held_give_the_same_products(piece, monkeypatch, capsys):
    data = embedded_pairs()
    Vs = [torch.randn(12, K, dtype=torch.float64, requires_grad=True) for K in (1, 3)]
    held = Rows.of(data, Vs[0])
    monkeypatch.setattr(product, "TABLE_ROWS", piece)
    monkeypatch.setattr(comparisons, "TABLE_ROWS", piece)
    monkeypatch.setattr(product, "memory", lambda device: 100)
    read = Rows.of(data, Vs[0])
    assert held.held is not None and read.held is None
    assert "75 pairs take 0.0 GB" in capsys.readouterr().out
    X = data.differences(Vs[0])
    results = []
    for rows in (held, read):
        Zs = TallProduct.apply(rows, *Vs)
        results.append([*Zs, *torch.autograd.grad(sum((Z**3).sum() for Z in Zs), Vs)])
    for V, Z, grad, Z_read, grad_read in zip(
        Vs, *(part for result in results for part in (result[:2], result[2:]))
    ):
        assert torch.allclose(Z, X @ V) and torch.allclose(Z_read, X @ V)
        assert torch.allclose(grad, X.T @ (3 * (X @ V) ** 2)) and torch.allclose(grad_read, grad)
    squares = read.accumulate(
        torch.zeros((), dtype=torch.float64), lambda total, rows, x: total.add_(x.square().sum())
    )
    assert squares.item() == pytest.approx(X.square().sum().item())
