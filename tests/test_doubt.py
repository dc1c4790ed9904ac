"""What is unsure of a person, against the posterior written out and against draws from it."""

import math

import pandas as pd
import pytest
import torch
from conftest import ROOT, random_users
from populations import planted

from lore.fit import doubt
from lore.fit.basis import Basis
from lore.fit.comparisons import Comparisons
from lore.fit.evaluation import ALL_SHOTS, Setting, fitted_cell, score_cells
from lore.fit.few_shot import draw_shots, score_draws
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import EVERYBODY, Prior, batches_of, solve_mixtures
from lore.fit.product import project
from lore.fit.ridge import fit_ridge
from lore.fit.ridge_shared import DOUBTS


@pytest.mark.parametrize(("strength", "spread"), [(2.0, 0.0), (2.0, 30.0), (EVERYBODY, 30.0)])
def test_variance_is_that_of_the_gaussian_posterior_written_out(strength, spread):
    """Of w and e as one vector of K + d numbers, precision = prior's + sum_j c_j x_j x_j'."""
    d, K = 5, 3
    torch.manual_seed(0)
    known = Comparisons.from_list(random_users([4, 2, 3], d))
    test = Comparisons.from_list(random_users([3, 1, 2], d, seed=1))
    V = 40 * torch.randn(d, K)
    prior = Prior(torch.full((K,), 1 / K), strength, spread)
    margins = 80 * torch.randn(9, 2)  # of two draws
    votes = torch.ones(9, 2).double()
    votes[[1, 8], 0] = 0  # not fitted in the first
    sides = [doubt.Projected.whole(side, side.table @ V) for side in (known, test)]
    variance = doubt.posterior_variance(prior, sides[0], margins, votes, sides[1])
    for j, person in enumerate(test.user.tolist()):
        for draw in range(2):
            rows = ((known.user == person) & (votes[:, draw] > 0)).nonzero().flatten()
            precision = torch.zeros(K + d, K + d).double()
            along = torch.eye(K).double() - 1 / K
            tight = 1e12  # stands for what may not move
            precision[:K, :K] = tight * torch.full((K, K), 1 / K).double()
            precision[:K, :K] += along * (tight if strength == EVERYBODY else strength)
            precision[K:, K:] = torch.eye(d).double() * (1 / spread**2 if spread else tight)
            for row in rows:
                phi = torch.cat([known.table[row] @ V, known.table[row]]).double() / LOGIT_SCALE
                p = torch.sigmoid(margins[row, draw].double() / LOGIT_SCALE)
                precision += p * (1 - p) * torch.outer(phi, phi)
            phi = torch.cat([test.table[j] @ V, test.table[j]]).double() / LOGIT_SCALE
            expected = phi @ torch.linalg.solve(precision, phi)
            assert variance[j, draw].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-6)


def test_a_tempered_margin_is_the_mean_probability():
    generator = torch.Generator().manual_seed(0)
    for mean, variance in ((0.5, 0.3), (-2.0, 1.0), (1.0, 4.0)):
        drawn = mean + math.sqrt(variance) * torch.randn(200_000, generator=generator)
        margin = doubt.tempered(torch.tensor([LOGIT_SCALE * mean]), torch.tensor([variance]), 1.0)
        assert torch.sigmoid(margin / LOGIT_SCALE).item() == pytest.approx(
            torch.sigmoid(drawn).mean().item(), abs=0.02
        )
    assert doubt.tempered(torch.tensor([3.0]), torch.tensor([9.0]), 0.0).item() == 3.0


def test_doubt_is_of_new_people_and_turns_no_sign():
    groups, head = planted()
    few = groups.few_shot_train
    known = few.subset(torch.arange(len(few)) % 10 < 2)  # two pairs of each
    groups = groups._replace(few_shot_train=known)
    fit = fit_ridge(groups.train, [3], head)[3]
    assert fit.prior.doubt == fit.choice["doubt"] in (0.0, *DOUBTS)
    cells = []
    for share in (0.0, 0.3):
        doubting = fit._replace(prior=fit.prior._replace(doubt=share))
        cells.append(fitted_cell(Setting(0, 0.0, 3), doubting, doubting.new_people(known)))
    at_its_word, doubting = score_cells(cells, groups)
    for name in ("seen", "unseen"):
        assert (at_its_word.accuracy[name] == doubting.accuracy[name]).all()
    wrong = at_its_word.outcomes["unseen"].right == 0  # less confidence costs less where it was misplaced
    losses = [cell.outcomes["unseen"].log_loss for cell in (at_its_word, doubting)]
    assert (losses[1] < losses[0])[wrong].all() and (losses[1] > losses[0])[~wrong].all()
    assert (at_its_word.outcomes["seen"].log_loss == doubting.outcomes["seen"].log_loss).all()


def test_a_prompt_left_out_is_foretold_with_the_doubt_of_the_others(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "apply"))
    import leave_one_out

    torch.manual_seed(0)
    pairs = Comparisons.from_list(random_users([4, 3], 5))
    V = 40 * torch.randn(5, 2)
    prior = Prior(torch.full((2,), 0.5), 1.0, 20.0)
    (Z,) = project(pairs, [V])
    prompt, prompt_user = leave_one_out.prompts_of_people(pairs)
    problems = leave_one_out.leave_one_out(pairs, prompt, prompt_user)
    people = batches_of(pairs.user, 2, 2, pairs)
    W = torch.full((2, 2), 0.5)
    logits = leave_one_out.foretold(people, Z, pairs, prior, problems, W)
    tempered = leave_one_out.foretold(people, Z, pairs, prior._replace(doubt=0.5), problems, W)
    whole = doubt.Projected.whole(pairs, Z)
    for problem, row in enumerate(problems.row[problems.is_out].tolist()):
        lines = problems.problem == problem
        margins, votes = torch.zeros(2, 7, 1).double()
        margins[problems.row[lines], 0] = LOGIT_SCALE * logits[lines]
        votes[problems.row[lines], 0] = (~problems.is_out[lines]).double()
        expected = doubt.posterior_variance(prior, whole, margins, votes, whole)[row, 0]
        line = lines & problems.is_out
        assert tempered[line].item() == pytest.approx(doubt.tempered(logits[line], expected, 0.5).item())


def test_of_whom_a_basis_holds_answers_the_log_odds_of_any_pair_allow_for_doubt(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "apply"))
    from doubts import Doubts

    from stored_answers import StoredAnswers

    torch.manual_seed(0)
    W = torch.rand(2, 3).softmax(1)
    E = 10 * torch.randn(2, 5)
    told = {"strength": 2.0, "deviation_spread": 20.0, "doubt": 0.5}
    basis = Basis(40 * torch.randn(5, 3), W[:1], ("bob",), W[1:], ("ann",), E=E[:1], E_unseen=E[1:], **told)
    frame = pd.DataFrame(
        {"user_id": ["ann"] * 2, "chosen": [0, 2], "rejected": [1, 3], "prompt": 0, "text": [0, 1]}
    )
    basis = StoredAnswers(torch.randn(4, 5), frame).stored_in(basis)
    doubts = Doubts(basis, ["bob", "ann"])
    assert [*doubts.known] == ["ann"]
    pair = torch.randn(2, 1, 5)
    log_odds = torch.tensor([1.5])
    assert doubts.tempered("bob", *pair, log_odds) is log_odds
    known = StoredAnswers.in_basis(basis).pairs()
    test = Comparisons.from_list([pair[0] - pair[1]])
    margins = LOGIT_SCALE * basis.log_odds(known.differences(E), ["ann"])
    sides = [doubt.Projected.whole(side, side.differences(E) @ basis.V) for side in (known, test)]
    variance = doubt.posterior_variance(basis.prior, sides[0], margins, torch.ones(2, 1).double(), sides[1])
    expected = doubt.tempered(log_odds, variance[:, 0], 0.5)
    assert torch.allclose(doubts.tempered("ann", *pair, log_odds), expected) and 0 < expected < 1.5


def test_a_curve_allows_for_doubt_as_a_table_does():
    groups, head = planted()
    few = groups.few_shot_train
    fit = fit_ridge(groups.train, [3], head)[3]
    fit = fit._replace(prior=fit.prior._replace(doubt=0.3))
    (cell,) = score_cells([fitted_cell(Setting(0, 0.0, 3), fit, fit.new_people(few))], groups)
    draws = draw_shots(few, [3, ALL_SHOTS], 1, 0)
    ((Z,), (Z_test,)) = (project(pairs, [fit.V]) for pairs in (few, groups.unseen))
    Z = Z[draws.row]
    mixtures = solve_mixtures(Z, draws.problem, draws.problems, fit.prior, few, draws.row)
    by_few, by_all = score_draws(Setting(0, 0.0, 3), fit, mixtures, draws, Z, Z_test, groups)
    expected = torch.tensor(cell.outcomes["unseen"].log_loss)
    assert torch.allclose(torch.tensor(by_all.outcomes["unseen"].log_loss), expected, atol=1e-4)
    assert not torch.allclose(torch.tensor(by_few.outcomes["unseen"].log_loss), expected, atol=1e-4)
