"""People taken into a saved basis: each prompt left out in turn, against fits made one by one."""

from dataclasses import replace

import pytest
import torch
from conftest import random_users

from leave_one_out import adapt, foretold, leave_one_out, prompts_of_people, students_quantile
from lore.fit import mixtures
from lore.fit.basis import Basis
from lore.fit.comparisons import Comparisons
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import EVERYBODY, Prior, batches_of, solve_batches, solve_mixtures


@pytest.mark.parametrize("prompt", [range(14), [5, 3, 3, 3, 5, 8, 8, 8, 8, 3, 5, 0, 3, 3]])
@pytest.mark.parametrize("deviation_spread", [0.0, 3.0])
@pytest.mark.parametrize("held", [0, 2**27])
def test_each_pair_is_judged_by_the_fit_to_all_other_prompts(deviation_spread, prompt, held, monkeypatch):
    monkeypatch.setattr(mixtures, "HELD", held)
    users = [50 * x for x in random_users([1, 4, 7, 2], 6)]
    pairs = replace(Comparisons.from_list(users), prompt=torch.tensor([*prompt]))
    V = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    prior = Prior(torch.tensor([0.5, 0.3, 0.2]), 2.0, deviation_spread)
    problems = leave_one_out(pairs, *prompts_of_people(pairs))
    people = batches_of(pairs.user, 4, 3, pairs if deviation_spread else None)
    Z = pairs.table @ V
    W = solve_batches(people(), Z, pairs.votes, 4, prior).W
    logits = foretold(people, Z, pairs, prior, problems, W)[problems.is_out]
    rows = problems.row[problems.is_out]
    assert sorted(rows.tolist()) == list(range(14))
    for row, logit in zip(rows.tolist(), logits.tolist()):
        fitted = (pairs.user == pairs.user[row]) & (pairs.prompt != pairs.prompt[row])
        X = pairs.table[fitted]
        x = pairs.table[row]
        if len(X) == 0:
            expected = x @ V @ prior.mean
        else:
            alone = Comparisons.from_list([X])
            by_others = solve_mixtures(X @ V, alone.user, 1, prior, alone)
            expected = x.double() @ V.double() @ by_others.W[0]
            if by_others.deviations is not None:
                expected = expected + x @ by_others.deviations.vector(0)
        assert logit == pytest.approx(float(expected) / LOGIT_SCALE, abs=2e-3)


@pytest.mark.parametrize("prompts, pairs", [(20, 1), (5, 4), (1, 7)])
def test_who_chooses_as_the_population_is_seldom_called_better(prompts, pairs):
    """Each chose one of several replies, by the population's mixture alone: 400 people, one in twenty."""
    people, d = 400, 16
    torch.manual_seed(0)
    W = torch.distributions.Dirichlet(torch.full((4,), 0.3)).sample((30,))
    basis = Basis(100 * torch.randn(d, 4) / d**0.5, W, tuple("x" * 30), W[:0], (), mean=W.mean(0))
    replies = torch.randn(people * prompts, pairs + 1, d)
    noise = -torch.empty(replies.shape[:2]).exponential_().log()
    order = (replies @ basis.V @ W.mean(0) / LOGIT_SCALE + noise).argsort(1, descending=True)
    best, *others = replies.take_along_dim(order.unsqueeze(2), 1).unbind(1)  # (people * prompts, d) each
    differences = torch.stack([best - other for other in others], 1).view(people, -1, d)
    prompt = torch.arange(people * prompts).repeat_interleave(pairs)
    newcomers = adapt(basis, replace(Comparisons.from_list([*differences]), prompt=prompt))
    words = [newcomers.word(person) for person in range(people)]
    assert words.count("clearly better than the population") <= 0.07 * people  # 1.8 standard deviations
    assert (words.count("too few prompts to say") == people) == (prompts < 5)


def test_students_quantile():
    for freedom, quantile in ((4, 2.132), (9, 1.833), (19, 1.729)):  # of printed tables
        assert students_quantile(freedom) == pytest.approx(quantile, abs=0.02)


def test_a_word_is_said_only_where_there_is_something_to_say():
    torch.manual_seed(0)
    V = 100 * torch.eye(8)[:, :2]
    W = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    basis = Basis(V, W, ("x", "y"), W[:0], (), mean=torch.tensor([0.5, 0.5]))
    X = torch.randn(40, 8)
    opposed = X[X[:, 0] * X[:, 1] < 0]  # where the two rewards disagree, and ann follows the first
    ann = opposed * opposed[:, :1].sign()
    newcomers = adapt(basis, Comparisons.from_list([ann, ann[:2]]))
    assert newcomers.accuracy[0] == 1 and newcomers.word(0) == "clearly better than the population"
    assert newcomers.word(1) == "too few prompts to say"
    nobody = basis._replace(mean=W[0], strength=EVERYBODY)
    newcomers = adapt(nobody, Comparisons.from_list([ann]))
    assert newcomers.gain[0] == 0 and newcomers.word(0) == "not told from the population"
