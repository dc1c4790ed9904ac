"""Value and gradient from one read of X against autograd over plain products."""

import pytest
import torch
from test_product import embedded_pairs

from lore.fit import product
from lore.fit.likelihood import negative_log_likelihood
from lore.fit.one_read import joint_likelihoods
from lore.fit.product import Rows

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
@pytest.mark.parametrize("own_weights", [False, True])
def test_value_and_gradients_are_those_of_autograd(n, own_weights, monkeypatch):
    monkeypatch.setattr(product, "PIECE_ROWS", 2)
    torch.manual_seed(0)
    X = 10 * torch.randn(n, 5, dtype=torch.float64)
    user = torch.randint(0, C, (n,))
    weight = torch.rand(len(RANKS), n, dtype=torch.float64)
    if not own_weights:
        weight = weight[0]

    def plain(Vs, Ws):
        weights = weight.expand(len(RANKS), -1)
        return [negative_log_likelihood(X @ V, W, user, q) for V, W, q in zip(Vs, Ws, weights)]

    def ours(Vs, Ws):
        return joint_likelihoods(Rows(X), Vs, Ws, user, weight)

    for found, expected in zip(*(value_and_gradients(way, *fits(5)) for way in (ours, plain))):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_choices_of_a_softmax_may_lie_in_several_pieces():
    torch.manual_seed(0)
    X = torch.randn(60, 5, dtype=torch.float64)
    user = torch.arange(60) // 15
    choice = torch.arange(60) % 20
    weight = torch.rand(60, dtype=torch.float64)

    def plain(Vs, Ws):
        return [negative_log_likelihood(X @ V, W, user, weight, choice) for V, W in zip(Vs, Ws)]

    def ours(Vs, Ws):
        return joint_likelihoods(Rows(X), Vs, Ws, user, weight, choice)

    for found, expected in zip(*(value_and_gradients(way, *fits(5)) for way in (ours, plain))):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("piece", [1, 3, 128])
@pytest.mark.parametrize("cores", [1, 3])
def test_rows_formed_anew_give_the_same_bits_as_rows_held(piece, cores, monkeypatch):
    """However many cores take a block each."""
    monkeypatch.setattr(product, "PIECE_ROWS", piece)
    data = embedded_pairs()
    weight = torch.rand(len(data), generator=torch.Generator().manual_seed(2))
    Vs, Ls = fits(12, torch.float32)
    held = Rows.of(data, Vs[0])
    monkeypatch.setattr(product, "memory", lambda device: 100)
    read = Rows.of(data, Vs[0])
    assert held.held is not None and read.held is None

    def likelihoods(rows):
        return lambda Vs, Ws: joint_likelihoods(rows, Vs, Ws, data.user, weight)

    expected = value_and_gradients(likelihoods(held), Vs, Ls)
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    for rows in (held, read):
        for found, other in zip(value_and_gradients(likelihoods(rows), Vs, Ls), expected):
            assert torch.equal(found, other)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", [400, 2064, 2096, 4000, 4115])
@pytest.mark.parametrize("d", [64, 257])
def test_a_fit_is_rounded_as_if_it_were_alone_on_any_number_of_threads(n, d, threads):
    torch.manual_seed(0)
    X = torch.randn(n, d)
    user = torch.randint(0, C, (n,))
    Vs, Ls = fits(d, torch.float32)

    def ours(Vs, Ws):
        return joint_likelihoods(Rows(X), Vs, Ws, user, torch.ones(n))

    together = value_and_gradients(ours, Vs, Ls)
    for count in (1, 2, 3):
        threads(count)
        for i, (V, L) in enumerate(zip(Vs, Ls)):
            nll, V_grad, L_grad = value_and_gradients(ours, [V], [L])
            assert torch.equal(nll, together[i])
            assert torch.equal(2**i * V_grad, together[len(RANKS) + i])
            assert torch.equal(2**i * L_grad, together[2 * len(RANKS) + i])


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
    assert nlls[2].item() == torch.inf and torch.equal(nlls[0], expected[0])
