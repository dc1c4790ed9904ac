"""Few-shot mixtures: certified optima, compared with SciPy's."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from populations import GROUPS, HEAD
from scipy.optimize import LinearConstraint
from scipy.optimize import minimize as scipy_minimize

from lore.common import InputError
from lore.fit import mixtures
from lore.fit.comparisons import Comparisons
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import EVERYBODY, Deviations, Prior, person_batches, solve_batches, solve_mixtures
from lore.fit.ridge import fit_ridge
from lore.fit.simplex import CERTIFIED


def few_shot_loss(Z, w, mean, strength):
    """Eq. 11 with its prior, pair by pair."""
    nll = sum(-F.logsigmoid(z.double() @ w / LOGIT_SCALE) for z in Z)
    return (nll + strength / 2 * (w - mean).square().sum()) / len(Z)


@pytest.mark.parametrize("strength", [0.0, 0.3, 10.0])
def test_mixtures_are_the_optima_that_scipy_finds(strength):
    torch.manual_seed(0)
    counts, K, mean = [1, 7, 30], 4, torch.tensor([0.4, 0.3, 0.2, 0.1]).double()
    Zs = [150 * torch.randn(count, K) for count in counts]
    user = torch.arange(3).repeat_interleave(torch.tensor(counts))
    found = solve_mixtures(torch.cat(Zs), user, 3, Prior(mean, strength))
    simplex = LinearConstraint(np.ones((1, K)), 1, 1)
    for Z, w, gap in zip(Zs, found.W, found.gap):
        loss = partial(few_shot_loss, Z, mean=mean, strength=strength)
        of_array = lambda v, loss=loss: loss(torch.from_numpy(v)).item()
        start, bounds = np.full(K, 1 / K), [(0, 1)] * K
        best = scipy_minimize(of_array, start, bounds=bounds, constraints=[simplex], method="SLSQP")
        value = loss(w).item()
        assert value <= best.fun + 1e-6 and value >= best.fun - gap - 1e-6
        g = torch.autograd.functional.jacobian(loss, w)
        assert gap.item() == pytest.approx((g @ w - g.min()).item(), abs=1e-9) and gap <= CERTIFIED


@pytest.mark.parametrize("strength", [0.0, 1.0, 1e4])
@pytest.mark.parametrize(
    "case",
    {
        "all pairs agree": (20, 5, lambda n, K: torch.rand(n, K) * 1000),
        "one pair": (1, 5, lambda n, K: 100 * torch.randn(n, K)),
        "one pair again and again": (20, 5, lambda n, K: (100 * torch.randn(1, K)).expand(n, K)),
        "fifty rewards": (30, 50, lambda n, K: 200 * torch.randn(n, K)),
        "equal rewards": (20, 50, lambda n, K: 100 * torch.randn(n, 1).expand(n, K)),
        "nothing told apart": (20, 50, lambda n, K: torch.zeros(n, K)),
        "tiny": (20, 10, lambda n, K: 1e-6 * torch.randn(n, K)),
        "as large as allowed": (20, 10, lambda n, K: (1e4 * torch.randn(n, K)).clamp(-1e4, 1e4)),
        "one reward": (20, 1, lambda n, K: 100 * torch.randn(n, K)),
    }.items(),
    ids=lambda case: case[0],
)
def test_every_input_is_solved_to_its_certificate(case, strength):
    torch.manual_seed(1)
    m, K, draw = case[1]
    user = torch.arange(50).repeat_interleave(m)
    prior = Prior(torch.full((K,), 1 / K), strength)
    Z = draw(50 * m, K)
    found = solve_mixtures(Z, user, 50, prior, spread=True)
    elsewhere = torch.eye(K)[torch.arange(50) % K]  # begun at a corner
    again = solve_batches(person_batches(user, 50, K), Z, torch.ones(50 * m), 50, prior, near=elsewhere)
    for mixtures_found in (found, again):
        assert mixtures_found.gap.max() <= CERTIFIED and (mixtures_found.W >= 0).all()
    assert torch.allclose(found.W.sum(1), torch.ones(50).double())
    assert found.spread.shape == (50, K) and not found.spread.isnan().any()


def test_batches_and_neighbours_change_no_mixture(monkeypatch):
    torch.manual_seed(2)
    Z, prior = 100 * torch.randn(60, 3), Prior(torch.full((3,), 1 / 3), 1.0)
    user = torch.arange(6).repeat_interleave(torch.tensor([1, 20, 4, 15, 9, 11]))
    together = solve_mixtures(Z, user, 6, prior).W
    monkeypatch.setattr(mixtures, "BATCH", 30)
    assert torch.allclose(solve_mixtures(Z, user, 6, prior).W, together, atol=1e-4)
    mine = user == 2
    alone = solve_mixtures(Z[mine], user[mine] - 2, 1, prior).W[0]
    assert torch.allclose(alone, together[2], atol=1e-4)


def test_batches_side_by_side_have_the_bits_of_one_after_the_other(monkeypatch):
    """And an error in one of them comes out, with the number of threads as it was."""
    monkeypatch.setattr(mixtures, "BATCH", 30)
    Z, prior = 100 * torch.randn(60, 3), Prior(torch.full((3,), 1 / 3), 1.0)
    user = torch.arange(12).repeat_interleave(5)
    threads = torch.get_num_threads()
    by_threads = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            by_threads.append(solve_mixtures(Z, user, 12, prior))
            assert torch.get_num_threads() == count
        monkeypatch.setattr("lore.fit.simplex.NEWTON_STEPS", 2)
        with pytest.raises(InputError, match="not certified"):
            solve_mixtures(Z, user, 12, prior)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    alone, beside = by_threads
    assert torch.equal(alone.W, beside.W) and torch.equal(alone.logits, beside.logits)


def one_person(Z, prior, people=1):
    """All pairs are of person 0."""
    return solve_mixtures(Z, torch.zeros(len(Z), dtype=torch.long), people, prior, spread=True)


def test_who_is_unknown_has_the_mixture_of_the_population():
    prior = Prior(torch.tensor([0.7, 0.2, 0.1]), 2.0)
    mean = prior.mean.double()
    found = one_person(100 * torch.randn(5, 3), prior, people=3)
    assert torch.allclose(found.W[1:], mean.expand(2, 3))
    assert not torch.allclose(found.W[0], mean)
    same = prior._replace(strength=EVERYBODY)
    everybody = solve_mixtures(100 * torch.randn(5, 3), torch.arange(5), 5, same)
    assert torch.allclose(everybody.W, mean.expand(5, 3)) and (everybody.gap == 0).all()
    fit = fit_ridge(GROUPS[0], [2], HEAD)[2]._replace(V=torch.randn(6, 3), prior=prior)
    nobody = torch.zeros(0, 6)
    assert torch.allclose(fit.new_people([torch.randn(4, 6), nobody]).W[1], mean)
    assert torch.allclose(fit.new_people([nobody]).W[0], mean)


def test_spread_of_two_rewards_is_what_the_second_derivative_says():
    torch.manual_seed(3)
    Z, strength, mean = 100 * torch.randn(12, 2), 1.5, torch.tensor([0.5, 0.5]).double()
    found = one_person(Z, Prior(mean, strength))
    loss = lambda t: 12 * few_shot_loss(Z, torch.stack([t, 1 - t]), mean, strength)
    curvature = torch.autograd.functional.hessian(loss, found.W[0, 0])
    assert torch.allclose(found.spread[0], curvature.rsqrt().expand(2), rtol=1e-4)
    assert one_person(Z[:0], Prior(mean, 4.0)).spread[0, 0] == pytest.approx(8**-0.5)
    told = one_person(torch.zeros(1, 3), Prior(torch.ones(3) / 3, 3.0), people=2)
    assert torch.allclose(*told.spread)  # a pair that tells nothing is as no pair


def test_rewards_too_large_for_the_certificate_are_refused():
    with pytest.raises(InputError, match="log-odds above 100"):
        one_person(torch.full((1, 2), 1.1e4), Prior(torch.ones(2) / 2, 1.0))


def loss_with_deviation(x, V, w, e, prior):
    """(R2) of lore/fit/ridge_model.py, pair by pair."""
    nll = sum(-F.logsigmoid((pair @ V @ w + pair @ e) / LOGIT_SCALE) for pair in x)
    pull = prior.strength / 2 * (w - prior.mean).square().sum()
    return (nll + pull + e.square().sum() / 2 / prior.deviation_spread**2) / len(x)


def test_a_deviation_is_found_together_with_the_mixture():
    torch.manual_seed(4)
    users = [torch.randn(count, 6) for count in (1, 5, 40)]
    data = Comparisons.from_list(users)
    V = 60 * torch.randn(6, 3)
    prior = Prior(torch.tensor([0.5, 0.3, 0.2]).double(), 2.0, deviation_spread=40.0)
    found = solve_mixtures(data.table @ V, data.user, 3, prior, data)
    assert found.gap.max() <= CERTIFIED
    for i, x in enumerate(users):
        x = x.double()
        w = found.W[i].clone().requires_grad_()
        e = found.deviations.vector(i).double().requires_grad_()
        value = loss_with_deviation(x, V.double(), w, e, prior)
        g_w, g_e = torch.autograd.grad(value, (w, e))
        # both parts of the certificate, in the unit of Eq. 11
        by_hand = g_w @ w - g_w.min() + len(x) * prior.deviation_spread**2 * g_e.square().sum() / 2
        assert found.gap[i].item() == pytest.approx(by_hand.item(), abs=2e-7)  # e is float32
        for _ in range(20):  # convex: no other point is lower by more than the gap
            other_w = torch.distributions.Dirichlet(torch.ones(3)).sample().double()
            t = torch.rand(()).double() ** 4
            e_there = e.detach() + t * 20 * torch.randn(6)
            w_there = (1 - t) * w.detach() + t * other_w
            assert loss_with_deviation(x, V.double(), w_there, e_there, prior) >= value - found.gap[i] - 1e-9
        logits = (x.float() @ (V @ found.W[i].float() + found.deviations.vector(i))) / 100
        assert torch.allclose(found.logits[data.user == i].float(), logits, atol=1e-5)


@pytest.mark.parametrize("spread", [1e-3, 30.0, 3e4])
def test_every_deviation_is_certified(spread):
    """Pairs that all agree, one pair again and again, a pair and its mirror image, no difference."""
    torch.manual_seed(5)
    one = torch.randn(1, 8)
    users = [torch.rand(30, 8), one.expand(20, 8), torch.cat([one, -one]), torch.zeros(3, 8), one]
    data = Comparisons.from_list(users)
    for strength in (0.5, EVERYBODY):
        prior = Prior(torch.full((4,), 0.25), strength, deviation_spread=spread)
        found = solve_mixtures(100 * data.table @ torch.randn(8, 4), data.user, 5, prior, data)
        assert found.gap.max() <= CERTIFIED and found.W.isfinite().all()
        assert (strength < EVERYBODY) or torch.equal(found.W, torch.full((5, 4), 0.25).double())
        assert found.deviations.vector(3).abs().max() == 0  # nothing was told apart


def test_with_no_spread_the_deviation_vanishes_and_pairs_that_do_not_count_are_foretold():
    torch.manual_seed(6)
    data = Comparisons.from_list([torch.randn(12, 6), torch.randn(7, 6)])
    Z = 80 * data.table @ torch.randn(6, 2)
    prior = Prior(torch.tensor([0.6, 0.4]), 1.0, deviation_spread=50.0)
    tiny = solve_mixtures(Z, data.user, 2, prior._replace(deviation_spread=1e-4), data)
    none = solve_mixtures(Z, data.user, 2, prior._replace(deviation_spread=0.0), data)
    assert none.deviations is None and torch.allclose(tiny.W, none.W, atol=1e-4)
    counted = torch.arange(19) % 3 > 0
    people = person_batches(data.user, 2, 2, data)
    partly = mixtures.solve_batches(people, Z, counted.double(), 2, prior)
    kept = data.subset(counted)
    alone = solve_mixtures(Z[counted], kept.user, 2, prior, kept)
    assert torch.allclose(partly.W, alone.W, atol=1e-6)
    left_out = [data.table[(data.user == i) & ~counted] for i in range(2)]
    margins = alone.deviations.margins(Comparisons.from_list(left_out))
    mixed = (Z.double() * partly.W[data.user]).sum(1)[~counted] + margins
    assert torch.allclose(partly.logits[~counted], mixed / LOGIT_SCALE, atol=1e-4)


def test_one_mixture_for_everybody_is_one_reward():
    torch.manual_seed(8)
    data = Comparisons.from_list([torch.randn(12, 6), torch.randn(7, 6)])
    Z, mean = 80 * data.table @ torch.randn(6, 3), torch.tensor([0.5, 0.3, 0.2]).double()
    prior = Prior(mean, EVERYBODY, deviation_spread=50.0)
    found = solve_mixtures(Z, data.user, 2, prior, data)
    one = prior._replace(mean=torch.ones(1))
    expected = solve_mixtures((Z.double() @ mean).unsqueeze(1), data.user, 2, one, data)
    assert torch.allclose(found.a, expected.a) and torch.allclose(found.logits, expected.logits)


def test_margins_of_several_draws_are_those_of_each():
    torch.manual_seed(7)
    few = Comparisons.from_list([torch.randn(4, 5), torch.randn(3, 5)])
    test = Comparisons.from_list([torch.randn(2, 5), torch.randn(6, 5)])
    a = torch.randn(7, 3).double()
    together = Deviations(few, few.user, a).margins(test)
    for draw in range(3):
        alone = Deviations(few, few.user, a[:, draw]).margins(test)
        assert torch.allclose(together[:, draw], alone, atol=1e-5)
    e = few.table[few.user == 1].T @ a[4:, 0].float()
    assert torch.allclose(together[2:, 0], test.table[2:] @ e, atol=1e-5)
