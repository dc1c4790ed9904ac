"""The big product, the projection, and the likelihood of one read of X against plain matrix products."""

import pytest
import torch
from conftest import random_users
from populations import a_split

from lore.fit.comparisons import Comparisons
from lore.fit.likelihood import negative_log_likelihood
from lore.fit.product import TallProduct, accumulate, joint_likelihoods, project
from lore.fit.rows import Rows


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
    monkeypatch.setattr("lore.fit.product.TABLE_ROWS", block)
    monkeypatch.setattr("lore.fit.comparisons.TABLE_ROWS", block)
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
    monkeypatch.setattr("lore.fit.rows.TABLE_ROWS", piece)
    monkeypatch.setattr("lore.fit.comparisons.TABLE_ROWS", piece)
    monkeypatch.setattr("lore.fit.rows.memory", lambda device: 100)
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
    squares = accumulate(
        read, torch.zeros((), dtype=torch.float64), lambda total, _, x: total.add_(x.square().sum())
    )
    assert squares.item() == pytest.approx(X.square().sum().item())


# ------------------------------------------------------------------------------------------------
# Loss and gradient from one read
# ------------------------------------------------------------------------------------------------

RANKS = (1, 3, 7)
C = 4


def fits(d, dtype=torch.float64):
    """V and logits of W of each rank, to be differentiated."""
    generator = torch.Generator().manual_seed(1)
    drawn = []
    for rows in (d, C):
        for K in RANKS:
            values = torch.randn(rows, K, generator=generator, dtype=dtype)
            drawn.append(values.requires_grad_())
    return drawn[: len(RANKS)], drawn[len(RANKS) :]


def value_and_gradients(likelihoods, Vs, Ls):
    """Of a sum in which each fit counts differently."""
    nlls = likelihoods(Vs, [L.softmax(1) for L in Ls])
    total = sum(2**i * nll for i, nll in enumerate(nlls))
    return [*nlls, *torch.autograd.grad(total, [*Vs, *Ls])]


@pytest.mark.parametrize("n", [0, 5, 16, 47, 100])
@pytest.mark.parametrize("kind", ["one weight for all fits", "weights of their own", "choices of a softmax"])
def test_value_and_gradients_are_those_of_autograd(n, kind, monkeypatch):
    monkeypatch.setattr("lore.fit.rows.PIECE_ROWS", 2)
    torch.manual_seed(0)
    X = 10 * torch.randn(n, 5, dtype=torch.float64)
    user = torch.arange(n) * C // max(n, 1)
    weight = torch.rand(len(RANKS), n, dtype=torch.float64)
    if kind != "weights of their own":
        weight = weight[0]
    choice = torch.arange(n) % 7 if n and kind == "choices of a softmax" else None  # in several pieces

    def plain(Vs, Ws):
        weights = weight.expand(len(RANKS), -1)
        return [negative_log_likelihood(X @ V, W, user, q, choice) for V, W, q in zip(Vs, Ws, weights)]

    def ours(Vs, Ws):
        return joint_likelihoods(Rows(X), Vs, Ws, user, weight, choice)

    for found, expected in zip(*(value_and_gradients(way, *fits(5)) for way in (ours, plain))):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("piece", [1, 3, 128])
@pytest.mark.parametrize("cores", [1, 3])
def test_rows_formed_anew_give_the_same_bits_as_rows_held(piece, cores, monkeypatch, assert_rounded_alike):
    """However many cores take a block each."""
    monkeypatch.setattr("lore.fit.rows.PIECE_ROWS", piece)
    data = embedded_pairs()
    weight = torch.rand(len(data), generator=torch.Generator().manual_seed(2))
    Vs, Ls = fits(12, torch.float32)
    held = Rows.of(data, Vs[0])
    monkeypatch.setattr("lore.fit.rows.memory", lambda device: 100)
    read = Rows.of(data, Vs[0])
    assert held.held is not None and read.held is None

    def likelihoods(rows):
        return lambda Vs, Ws: joint_likelihoods(rows, Vs, Ws, data.user, weight)

    expected = value_and_gradients(likelihoods(held), Vs, Ls)
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    for rows in (held, read):
        pairs = zip(value_and_gradients(likelihoods(rows), Vs, Ls), expected)
        assert_rounded_alike(f"rows anew, {cores} cores", pairs, rtol=1e-3, atol=1e-3)


def test_a_fit_that_overflows_is_infinite_and_leaves_the_others_alone():
    X = torch.ones(64, 3)
    user = torch.arange(64) % C
    Vs, Ls = fits(3, torch.float32)
    expected = value_and_gradients(
        lambda Vs, Ws: joint_likelihoods(Rows(X), Vs, Ws, user, torch.ones(64)), Vs[:1], Ls[:1]
    )
    with torch.no_grad():
        Vs[2][0] = -torch.inf
    nlls = joint_likelihoods(Rows(X), Vs, [L.softmax(1) for L in Ls], user, torch.ones(64))
    assert nlls[2].item() == torch.inf and torch.allclose(nlls[0], expected[0])
