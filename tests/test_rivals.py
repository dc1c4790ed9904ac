"""benchmarks/rivals/: each rival against a loop, a closed form or an invariance; the harness on a tiny population."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, random_users

from lore.common import InputError
from lore.fit.comparisons import Comparisons
from lore.fit.groups import Groups

sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy
import compare_rivals
from rivals import bradley_terry, mrm, pal, pref, rbd, vpl


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def population():
    return accuracy.planted(10, 12, 6, 0, d=8, tests=10)


def pairs(counts=(3, 5, 4), d=6):
    data = Comparisons.from_list(random_users(counts, d))
    return data.differences(torch.zeros(())), data.user


@pytest.mark.parametrize("seed", range(5))
def test_rbd_is_a_loop_and_new_people_are_at_the_minimum(seed):
    torch.manual_seed(seed)
    X, user = pairs()
    V, w, delta = torch.randn(6, rbd.K), torch.randn(rbd.K), torch.randn(3, rbd.K)
    expected = [(X[j] @ V @ (w + delta[user[j]])).item() for j in range(len(X))]
    assert rbd.log_odds(X, user, V, w, delta).tolist() == pytest.approx(expected, abs=1e-4)
    found = rbd.new_people(X, user, 3, V, w).double().requires_grad_()
    odds = ((X @ V).double() * (w.double() + found[user])).sum(1)
    weight = 1 / torch.bincount(user).double()[user]
    ridge = rbd.PERSON * (found @ V.double().T).square().sum()
    (-(F.logsigmoid(odds) * weight).sum() + ridge).backward()
    assert found.grad.abs().max() < 1e-4
    _, _, shift = rbd.start(6, 3, X, torch.Generator().manual_seed(0))
    assert shift.abs().max() < 0.01


def test_rbd_starts_with_log_odds_of_std_one():
    X, _ = pairs((40, 40))
    V, w, _ = rbd.start(6, 2, X, torch.Generator().manual_seed(0))
    assert (X @ (V @ w)).std().item() == pytest.approx(1, abs=1e-5)


def test_pref_keeps_what_is_known_and_finds_a_low_rank():
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(np.sign(rng.normal(size=(12, 2)) @ rng.normal(size=(2, 9)))).float()
    pair, user = torch.meshgrid(torch.arange(12), torch.arange(9), indexing="ij")
    pair, user = pair.flatten(), user.flatten()
    M = pref.completed(pair, truth.flatten(), user, 12, 9)
    assert torch.equal(M, truth / 2)
    known = torch.rand(len(pair), generator=torch.Generator().manual_seed(0)) < 0.8
    M = pref.completed(pair[known], truth.flatten()[known], user[known], 12, 9)
    assert torch.equal(M[pair[known], user[known]], truth.flatten()[known] / 2)
    assert M.abs().max() <= 0.5


def test_pref_needs_pairs_that_several_people_judged(population):
    groups, head = population
    with pytest.raises(InputError, match="no overlap"):
        pref.fit(groups, head, 0)
    same = Comparisons(
        torch.randn(6, 4), torch.tensor([0, 0, 1, 1]), ("a", "b"),
        torch.tensor([0, 2, 1, 2]), torch.tensor([1, 3, 0, 3]),
    )  # fmt: skip
    number, sign = pref.pairs_of(same)
    assert number.tolist() == [0, 1, 0, 1] and sign.tolist() == [1, 1, -1, 1]
    swapped = Comparisons(same.table, same.user, same.user_ids, same.rejected, same.chosen)
    assert torch.equal(pref.pairs_of(swapped)[1], -sign)


def test_mrm_takes_the_first_step_of_adam():
    g = torch.tensor([0.3, -2.0])
    s = torch.zeros(2, requires_grad=True)
    adam = torch.optim.Adam([s], lr=0.01, eps=mrm.EPSILON)
    s.grad = g.clone()
    adam.step()
    assert torch.allclose(s.detach(), -mrm.step(g, 0.01))
    X, user = pairs()
    own = mrm.adapted(X @ torch.randn(6, 2), user, 3, torch.zeros(2))
    assert own.abs().max() <= mrm.RATE * 1.001  # so little can one step move anybody


def test_mrm_learns_through_its_inner_step():
    X, _ = pairs((8,))
    Z = (100 * X @ torch.randn(6, 2)).double()

    def outer(s):
        inner = bradley_terry(mrm.log_odds(Z[:4], s))
        (g,) = torch.autograd.grad(inner, s, create_graph=True)
        moved = s - 0.1 * g / (g.abs() + 1.0)  # a smooth one, so that differences can be taken
        return bradley_terry(mrm.log_odds(Z[4:], moved))

    assert torch.autograd.gradcheck(outer, torch.randn(2, dtype=torch.float64, requires_grad=True))


def test_vpl_knows_no_order_of_pairs_and_its_divergence_is_kls():
    model = vpl.Vpl(5)
    known = torch.randn(2, 7, 10)
    mu, logvar = model.encode(known)
    again, _ = model.encode(known[:, torch.randperm(7)])
    assert torch.allclose(mu, again, atol=1e-5) and mu.abs().max() <= 1
    q = torch.distributions.Normal(mu, (logvar / 2).exp())
    prior = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    expected = torch.distributions.kl_divergence(q, prior).sum(1).mean()
    assert torch.allclose(vpl.divergence(mu, logvar), expected, rtol=1e-4)
    e = torch.randn(2, 2, 5)
    assert torch.allclose(model.log_odds(*e, mu), -model.log_odds(e[1], e[0], mu))


def test_pal_is_nearness_to_a_point_between_prototypes():
    model = pal.Pal(5, 3).double()
    e = torch.randn(2, 3, 5).double()
    found = model.log_odds(*e, model.w)
    for person in range(3):
        ideal = model.f(model.w[person].softmax(0) @ model.Q)
        worth = [-(model.f(reply) - ideal).square().sum() for reply in e[:, person]]
        assert found[person].item() == pytest.approx((worth[0] - worth[1]).item(), abs=1e-9)
    assert torch.allclose(model.Q.norm(dim=1), torch.ones(pal.B).double())


def test_the_harness_tells_of_all_and_of_who_cannot(population, tmp_path, monkeypatch):
    for module, name, value in (
        (mrm, "EPOCHS", mrm.LOOK), (rbd, "STEPS", 5), (pal, "EPOCHS", 1), (pal, "NEW_STEPS", 2),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    entries = compare_rivals.study([population])
    rows = compare_rivals.rows_of(entries)
    names = [row["name"] for row in rows]
    assert {*compare_rivals.RIVALS, *compare_rivals.MRM, compare_rivals.OURS, compare_rivals.COMMON, "each alone"} <= {*names}
    assert "no overlap" in next(row for row in rows if row["name"] == "PReF")["reason"]
    assert names[-1] == "PReF" and rows[0]["unseen"] == max(row["unseen"] for row in rows)
    by_name = {row["name"]: row for row in rows}
    assert by_name[compare_rivals.COMMON]["over_common"] == [0, 0, 0]
    best, last = by_name["MRM, best test epoch"], by_name["MRM, last epoch"]
    assert best["seen"] + best["unseen"] >= last["seen"] + last["unseen"] - 0.05
    ranks = compare_rivals.mean_ranks({"one": rows})
    assert ranks["PReF"][0] == len(ranks) and min(ranks.values())[0] >= 1
    compare_rivals.plot(tmp_path / "p.png", {"one": rows})
    assert (tmp_path / "p.png").stat().st_size > 10_000
    compare_rivals.print_rows("one", rows)


def test_differences_alone_are_too_little_for_who_needs_both_replies():
    groups = Groups(*[Comparisons.from_list(random_users([4, 4], 6, seed)) for seed in range(4)])
    for fit in (vpl.fit, pal.fit, pref.fit):
        with pytest.raises(InputError, match=r"are known|not known"):
            fit(groups, None, 0)
