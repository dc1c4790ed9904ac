"""The joint problem (R1) against a double loop and scikit-learn's optimum."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_users
from populations import HEAD
from sklearn.linear_model import LogisticRegression

from lore.common import InputError
from lore.fit import ridge_model
from lore.fit.comparisons import Comparisons
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.ridge_model import Form, JointProblem, Spreads


@pytest.fixture
def losses(monkeypatch):
    """What is minimised by each descent, which goes nowhere."""
    asked = []

    def spy(loss, theta, sizes, passes, tolerance):
        asked.append(loss)
        return theta

    monkeypatch.setattr(ridge_model, "minimise", spy)
    return asked


@pytest.mark.parametrize("weigh", ["people", "pairs"])
def test_loss_and_gradient_equal_the_double_loop(losses, weigh):
    """(R1), user by user and pair by pair, fits side by side of which two leave out different pairs."""
    users, K, s, p, d = random_users([5, 9, 4], 6), 3, 0.7, 1.3, 6
    problem = JointProblem(Comparisons.from_list(users), HEAD, "cpu", weigh, torch.arange(18) % 3)
    masks = [torch.arange(18) % 3 > 0, torch.arange(18) % 4 > 1]
    torch.manual_seed(5)
    forms = [Form(K, True), Form(1, True), Form(K, False)]
    thetas = {form: [torch.randn(sum(problem.sizes(form.K))).double() for _ in masks] for form in forms}
    spreads = {form: Spreads(s, p if form.K > 1 else None) for form in forms}
    problem.descend(thetas, spreads, masks, 1)

    def by_hand(theta, form, counted):
        K = form.K
        c, u = theta[0], theta[1 : 1 + d]
        D = theta[1 + d : 1 + d + K * d].view(K, d) if K > 1 else torch.zeros(1, d).double()
        W = theta[1 + d + K * d :].view(3, K).softmax(1) if K > 1 else torch.ones(3, 1).double()
        rms = torch.cat(users).square().sum(1).mean().sqrt().double()
        head = (HEAD / HEAD.norm()).double().flatten() * d**0.5
        V = [LOGIT_SCALE / rms * (form.head * c * head + s * u + p * D_k) for D_k in D]
        total, row, n = 0, 0, counted.sum()
        for i, x in enumerate(users):
            pairs = [pair.double() for pair in x if (row := row + 1) and counted[row - 1]]
            q = n / 3 / len(pairs) if weigh == "people" else 1
            logits = [sum(W[i, k] * (pair @ V[k]) for k in range(K)) / LOGIT_SCALE for pair in pairs]
            total = total + q * sum(-F.logsigmoid(logit) for logit in logits)
            total = total + q * (W[i] - W.mean(0)).square().sum() / 2
        return (total + (c**2 / 25 + u.square().sum() + D.square().sum()) / 2) / n

    flat = [theta for of_form in thetas.values() for theta in of_form]
    theta = torch.cat(flat).requires_grad_()
    of_fits = [form for form in forms for _ in masks]
    by_fit = zip(theta.split([len(t) for t in flat]), of_fits, masks * 3)
    expected = torch.stack([by_hand(*fit) for fit in by_fit])
    found = losses[0](theta, range(6))
    some = losses[0](theta, [1, 4])
    assert torch.allclose(found, expected, rtol=1e-6) and torch.allclose(some, expected[[1, 4]], rtol=1e-6)
    gradients = [torch.autograd.grad(value.sum(), theta)[0] for value in (found, expected)]
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weigh", ["people", "pairs"])
def test_rank_one_is_logistic_regression_with_the_same_ridge(weigh):
    users, s = random_users([30, 50, 20], 6, seed=6), 0.5
    problem = JointProblem(Comparisons.from_list(users), None, "cpu", weigh, torch.arange(100) % 2)
    start = torch.zeros(sum(problem.sizes(1))).double()
    form = Form(1, False)
    fits = problem.descend({form: [start]}, {form: Spreads(s)}, [problem.everything], 300)
    V, _ = problem.solution(*fits[form], form, Spreads(s))
    X = torch.cat(users).double().numpy()
    weight = np.ones(100)
    if weigh == "people":
        weight = np.repeat([1 / 30, 1 / 50, 1 / 20], [30, 50, 20]) * 100 / 3
    scale = problem.unit * s / LOGIT_SCALE
    signs = np.where(np.arange(100) % 2, 1, -1)  # a pair and its mirror image are the same
    model = LogisticRegression(fit_intercept=False, tol=1e-9).fit(
        scale * X * signs[:, None], signs, sample_weight=weight
    )
    expected = problem.unit * s * model.coef_[0]
    assert np.allclose(V.flatten(), expected, atol=2e-2 * np.abs(expected).max())


def test_pairs_of_the_same_two_replies_are_as_good_as_differences_of_their_own(losses, monkeypatch):
    """In one order or the other, of a person again and again; also where X is formed anew for each pass."""
    torch.manual_seed(7)
    pair = torch.randint(36, (160,))
    flip = torch.randint(2, (160,))
    chosen = 2 * pair + flip
    table = torch.randn(72, 5)
    user = torch.arange(4).repeat_interleave(40)
    shared = Comparisons(table, user, tuple("abcd"), chosen, chosen ^ 1)
    apart = Comparisons(table[chosen] - table[chosen ^ 1], user, tuple("abcd"))
    problems = [JointProblem(data, HEAD[:5], "cpu", "pairs", pair % 2) for data in (shared, apart)]
    monkeypatch.setattr("lore.fit.rows.memory", lambda device: 0)
    problems.append(JointProblem(shared, HEAD[:5], "cpu", "pairs", pair % 2))
    rows = [
        [len(some.X.left_over) + some.X.b * some.X.r for some in problem.left_out] for problem in problems
    ]
    assert rows[0] == rows[2] == [len(pair[pair % 2 == fold].unique()) for fold in range(2)]
    assert [problem.left_out[0].X.held is None for problem in problems] == [False, False, True]
    assert rows[1] == (pair % 2).bincount(minlength=2).tolist()
    form = Form(3, True)
    theta = torch.randn(sum(problems[0].sizes(3))).double().requires_grad_()
    V = torch.randn(5, 2)
    Z = torch.randn(160, 1).double()
    answers = []
    for problem in problems:
        problem.descend({form: [theta]}, {form: Spreads(0.7, 1.3)}, [pair > 3], 1)
        value = losses[-1](theta, [0])
        starts = problem.corners([3], pair > 3, Z, 1.3)
        parts = [
            value,
            torch.tensor(problem.unit),
            *torch.autograd.grad(value, theta),
            *problem.products([V]),
        ]
        answers.append([*parts, *[part for start in starts for part in start]])
    for ours, expected, anew in zip(*answers):
        assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-5)
        assert torch.allclose(anew, expected, rtol=1e-4, atol=1e-5)


def test_an_unknown_weigh_is_refused():
    with pytest.raises(InputError, match="weigh = 'votes': pairs or people"):
        JointProblem(Comparisons.from_list([torch.randn(3, 2)]), None, "cpu", "votes", torch.zeros(3).long())
