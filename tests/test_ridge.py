"""The ridge solver: loss against a double loop, SciPy and scikit-learn, choices on planted people."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_users
from populations import GROUPS, HEAD, N_UNSEEN, N, sweep
from sklearn.linear_model import LogisticRegression

from lore import mixtures, ridge
from lore.common import InputError
from lore.comparisons import Comparisons, Groups
from lore.likelihood import LOGIT_SCALE
from lore.mixtures import CERTIFIED, EVERYBODY
from lore.planted import planted_population
from lore.product import project
from lore.ridge import Holdout, RidgeProblem, fit_ridge
from utils import run, run_few_shot_vary_shots, run_regularized


def test_loss_and_gradient_equal_the_double_loop(monkeypatch):
    """The loss at the head of lore/ridge.py, user by user and pair by pair, a third left out."""
    losses = []
    monkeypatch.setattr(
        ridge, "minimise", lambda loss, theta, owner, passes: (losses.append(loss), theta)[1]
    )
    users, K, s, p, d = random_users([5, 9, 4], 6), 3, 0.7, 1.3, 6
    problem = RidgeProblem(Comparisons.from_list(users), HEAD, device="cpu")
    counted = torch.arange(18) % 3 > 0
    torch.manual_seed(5)
    thetas = [torch.randn(sum(problem.sizes(k))).double() for k in (K, 1)]
    problem.descend(thetas, [K, 1], s, [p, None], counted, 1)

    def by_hand(theta, K):
        c, u = theta[0], theta[1 : 1 + d]
        D = theta[1 + d : 1 + d + K * d].view(K, d) if K > 1 else torch.zeros(1, d).double()
        W = theta[1 + d + K * d :].view(3, K).softmax(1) if K > 1 else torch.ones(3, 1).double()
        rms = torch.cat(users).square().sum(1).mean().sqrt().double()
        head = (HEAD / HEAD.norm()).double().flatten() * d**0.5
        V = [LOGIT_SCALE / rms * (c * head + s * u + p * D_k) for D_k in D]
        total, row, m = 0, 0, counted.sum() / 3
        for i, x in enumerate(users):
            pairs = [pair.double() for pair in x if (row := row + 1) and counted[row - 1]]
            logits = [
                sum(W[i, k] * (pair @ V[k]) for k in range(K)) / LOGIT_SCALE for pair in pairs
            ]
            total = total + sum(-F.logsigmoid(logit) for logit in logits) / len(pairs)
            total = total + (W[i] - W.mean(0)).square().sum() / 2 / len(pairs)
        return total + (c**2 / 25 + u.square().sum() + D.square().sum()) / 2 / m

    theta = torch.cat(thetas).requires_grad_()
    found, expected = (
        losses[0](theta),
        torch.stack([by_hand(t, K) for t, K in zip(theta.split([len(t) for t in thetas]), (K, 1))]),
    )
    assert torch.allclose(found, expected, rtol=1e-6)
    gradients = [torch.autograd.grad(value.sum(), theta)[0] for value in (found, expected)]
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_rank_one_is_logistic_regression_with_the_same_ridge():
    users, s = random_users([30, 50, 20], 6, seed=6), 0.5
    problem = RidgeProblem(Comparisons.from_list(users), None, "cpu")
    everything = problem.everything
    start = torch.zeros(sum(problem.sizes(1))).double()
    (theta,) = problem.descend([start], [1], s, [None], everything, 300)
    V, _ = problem.solution(theta, 1, s, None)
    X, m = torch.cat(users).double().numpy(), 100 / 3
    weight = np.repeat([1 / 30, 1 / 50, 1 / 20], [30, 50, 20]) * m
    scale = problem.unit * s / LOGIT_SCALE
    signs = np.where(np.arange(100) % 2, 1, -1)  # a pair and its mirror image are the same
    model = LogisticRegression(fit_intercept=False, tol=1e-9).fit(
        scale * X * signs[:, None], signs, sample_weight=weight
    )
    expected = problem.unit * s * model.coef_[0]
    assert np.allclose(V.flatten(), expected, atol=2e-2 * np.abs(expected).max())


def planted(seed=0, scale=1.0, **changes):
    settings = {
        "num_features": 16,
        "num_directions": 3,
        "concentration": 0.1,
        "best_accuracy": 0.92,
    } | changes
    splits = planted_population(60, {"train": 40, "test": 40}, **settings, seed=seed).splits
    users, groups = sorted(splits["train"].frame["user_id"].unique()), []
    for side, people in (
        ("train", users[:40]),
        ("test", users[:40]),
        ("train", users[40:]),
        ("test", users[40:]),
    ):
        frame = splits[side].frame
        frame = (
            frame[frame["user_id"].isin(people)]
            .groupby("user_id")
            .head(10 if people[0] == users[40] and side == "train" else 40)
        )
        groups.append(
            Comparisons.from_frame(scale * splits[side].table, frame, people, prompt="prompt")
        )
    return Groups(*groups), splits["train"].head


def unseen(groups, head, K_list, **options):
    return run(K_list, [0.0], head, *groups, 40, 20, "cpu", **{"solver": "ridge", **options})


def test_different_people_are_told_apart_and_alike_people_are_not():
    groups, head = planted()
    result = unseen(groups, head, [0, 1, 3])
    assert result.unseen[2] > result.unseen[1] + 0.05 > result.unseen[0]
    fit = result.cells[2].fit
    assert (
        fit.V.shape == (16, 3)
        and fit.choice["personal_spread"] in ridge.PERSONAL_SPREADS
        and fit.prior.strength < EVERYBODY
    )
    alike, head = planted(num_directions=1)
    result = unseen(alike, head, [1, 3])
    assert result.unseen[0] == result.unseen[1] > 0.85
    assert (
        result.cells[1].fit.V.shape == (16, 1)
        and result.cells[1].fit.choice["personal_spread"] is None
    )


def test_a_hundred_times_larger_embeddings_change_nothing():
    # three kinds of people: at K = 2 no optimum stands out, and the last bit of the embeddings moves a few pairs
    first, scaled = (np.stack(unseen(*planted(scale=scale), [1, 3])) for scale in (1.0, 100.0))
    assert np.abs(first - scaled).max() <= 1e-3


def test_a_sweep_gives_every_rank_what_it_would_have_been_given_alone_and_a_seed_repeats():
    groups, head = planted()
    together = fit_ridge(groups.train, [2, 3, 5], head, seed=1)
    alone = fit_ridge(groups.train, [3], head, seed=1)
    again = fit_ridge(groups.train, [3], head, seed=1)
    assert (
        {*alone} == {1, 3}
        and torch.equal(alone[3].V, again[3].V)
        and alone[3].choice == again[3].choice
    )
    for K in (1, 3):
        assert torch.allclose(together[K].V, alone[K].V, atol=1e-3 * alone[K].V.abs().max().item())
        assert together[K].prior.strength == alone[K].prior.strength
    assert not torch.equal(fit_ridge(groups.train, [3], head, seed=2)[3].V, alone[3].V)


def test_neither_test_pairs_nor_the_global_random_state_are_looked_at():
    groups, head = planted()
    torch.manual_seed(5)
    first = unseen(groups, head, [1, 3]).cells[1].fit
    after = torch.rand(1)
    torch.manual_seed(6)
    blind = groups._replace(
        seen=groups.seen.shuffled(0),
        few_shot_train=groups.few_shot_train.shuffled(1),
        unseen=groups.unseen.shuffled(2),
    )
    second = unseen(blind, head, [1, 3]).cells[1].fit
    assert (
        torch.equal(first.V, second.V)
        and torch.equal(first.W, second.W)
        and first.choice == second.choice
    )
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_a_prompt_is_held_out_whole():
    table, generator = torch.randn(40, 6), torch.Generator().manual_seed(0)
    chosen = torch.randint(0, 40, (60,), generator=generator)
    prompt = torch.randint(0, 9, (60,), generator=generator)
    user = torch.arange(6).repeat_interleave(10)
    named = Comparisons(
        table, user, tuple("abcdef"), chosen, (chosen + 1) % 40, prompt=100 * prompt
    )
    for data, key in (
        (named, prompt),
        (Comparisons(table, user, tuple("abcdef"), chosen, (chosen + 1) % 40), chosen),
    ):
        fitted = Holdout(data, 3, "cpu").fitted
        assert 0 < fitted.sum() < 60
        for value in key.unique():
            assert fitted[key == value].unique().numel() == 1
    flipped = Comparisons(table, user, tuple("abcdef"), (chosen + 1) % 40, chosen)
    assert torch.equal(
        flipped.prompts(),
        Comparisons(table, user, tuple("abcdef"), chosen, (chosen + 1) % 40).prompts(),
    )


def test_gain_counts_held_out_pairs_only_and_its_error_is_that_of_a_clustered_mean():
    users = [torch.randn(8, 6) for _ in range(5)]
    problem = RidgeProblem(Comparisons.from_list(users), None, "cpu")
    holdout = Holdout(Comparisons.from_list(users), 0, "cpu")
    held = holdout.held
    assert torch.equal(held, ~holdout.fitted) and 0 < held.sum() < 40
    log_p = torch.where(held, torch.randn(40), torch.tensor(1e6)).double()
    gain, error = ridge.gain(problem, holdout, log_p, torch.zeros(40).double())
    assert gain == pytest.approx(log_p[held].mean().item())  # all users have eight pairs
    by_pair = (log_p[held] - gain).square().sum().sqrt() / held.sum()
    by_user = (
        torch.stack([(log_p - gain)[held & (problem.user == i)].sum() for i in range(5)]).norm()
        / held.sum()
    )
    assert error == pytest.approx(max(by_pair, by_user).item())


def test_a_seen_person_posing_as_new_with_all_pairs_has_the_mixture_of_the_fit():
    groups, head = planted()
    fit = fit_ridge(groups.train, [3], head)[3]
    as_new = fit._replace(prior=fit.prior._replace(strength=ridge.SEEN_STRENGTH)).new_people(
        groups.train
    )
    assert as_new.gap.max() <= CERTIFIED and torch.allclose(as_new.W.float(), fit.W, atol=5e-3)


def test_ridge_is_the_same_behind_every_way_to_run_it():
    results = [
        sweep(function, [0, 1, 2], [0.0], solver="ridge") for function in (run, run_regularized)
    ]
    assert np.array_equal(*map(np.stack, results))
    curve = run_few_shot_vary_shots(
        2,
        [0.0],
        [1, 2],
        [2, 8],
        GROUPS[0],
        GROUPS[2],
        GROUPS[3],
        HEAD,
        N,
        N_UNSEEN,
        "cpu",
        solver="ridge",
    )
    assert curve.unseen.shape == (1, 2, 2) and curve.unseen[0, 0, 0] == pytest.approx(
        results[0].unseen[1]
    )


def test_what_the_ridge_solver_cannot_do_is_said():
    with pytest.raises(InputError, match="solver = 'magic': adam, as published, or ridge"):
        sweep(run, [2], [0.0], solver="magic")
    with pytest.raises(InputError, match="3 different prompts to train on; to choose a ridge"):
        fit_ridge([torch.randn(2, 4), torch.randn(1, 4)], [2])
    with pytest.raises(InputError, match="K = 5"):
        fit_ridge([torch.randn(9, 4)], [5])


@pytest.mark.parametrize("function", [run, run_regularized])
def test_an_alpha_is_not_used_and_that_is_said(function, capsys):
    result = sweep(function, [0, 1, 2], [1e4], solver="ridge")
    said = "alpha_list = [10000.0] is not used: the ridge solver chooses its own pull\n"
    assert capsys.readouterr().out == said
    without = sweep(function, [0, 1, 2], [0.0], solver="ridge")
    assert capsys.readouterr().out == ""
    assert np.array_equal(np.stack(result), np.stack(without))
    assert {cell.alpha for cell in result.cells} == {0.0}


def test_pairs_that_the_head_separates_leave_the_rewards_finite():
    users = [x * torch.sign(x @ HEAD) for x in random_users([50] * 20, 6)]
    for fit in fit_ridge(users, [1, 2], HEAD).values():
        (Z,) = project(Comparisons.from_list(users), [fit.V])
        assert (
            Z.abs().max() < mixtures.LARGEST_LOG_ODDS * LOGIT_SCALE
            and fit.new_people(users).gap.max() <= CERTIFIED
        )


@pytest.mark.parametrize("K", [2, 30])
def test_odd_data_is_survived(K):
    """Nothing to tell apart, one user, more rewards than users, width or pairs suggest."""
    for users in (
        [torch.zeros(6, 32)] * 3,
        [torch.randn(6, 32)],
        [torch.ones(5, 32)] * 4,
        random_users([1, 1, 1, 5], 32),
    ):
        fits = fit_ridge(users, [1, K])
        for fit in fits.values():
            assert fit.V.isfinite().all() and torch.allclose(
                fit.W.sum(1), torch.ones(len(users)), atol=1e-5
            )
            assert fit.new_people(users[:1]).gap.max() <= CERTIFIED
    assert math.isinf(fits[1].prior.strength)
