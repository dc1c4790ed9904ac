"""The method against the mathematics written out plainly, and its sweeps against single fits."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_users
from populations import GROUPS, HEAD, N_UNSEEN, QUICK, D, N, accuracy, shots, sweep
from sklearn.linear_model import LogisticRegression

from lore.common import InputError
from lore.fit.comparisons import Comparisons
from lore.fit.likelihood import LOGIT_SCALE
from utils import LoRe, LoRe_regularized, PersonalizeBatch, run, run_regularized

COUNTS, K = [3, 7, 1, 12, 30], 3


def lore_model(users, K=K, steps=1, alpha=0.0, V_ref=None, model_class=LoRe, d=D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return model_class(V_ref, alpha, len(users), d, K, steps, 0.5, generator=generator)


def eq10(users, V, W_logits):
    """Joint objective, one user and one pair at a time."""
    total = 0
    for x, logits in zip(users, W_logits):
        w = logits.softmax(0)
        total += sum(-torch.log(torch.sigmoid(row @ V @ w / 100)) for row in x) / len(x)
    return total


def published_lore(users, V, W, steps, alpha, V_ref):
    """The published algorithm: one Adam, lr 0.5, loss plus alpha times squared distances of the columns."""
    V, W = V.clone().requires_grad_(), W.clone().requires_grad_()
    optimizer = torch.optim.Adam([W, V], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        pull = sum(alpha * ((V[:, k] - V_ref[:, 0]) ** 2).sum() for k in range(V.shape[1]))
        (eq10(users, V, W) + pull).backward()
        optimizer.step()
    return V.detach(), W.detach()


def published_regularized(users, V, W, steps, alpha, V_ref):
    """Alternating: W with V frozen, then V with the new W, every pair against every user's mixture; two Adams."""
    V, W = V.clone().requires_grad_(), W.clone().requires_grad_()
    adam_W, adam_V = torch.optim.Adam([W], lr=0.5), torch.optim.Adam([V], lr=0.5)
    X = torch.cat(users)
    y = torch.cat([torch.full((len(x),), i) for i, x in enumerate(users)])

    def loss():
        every_user = X @ (V @ W.softmax(1).T) / 100  # (n, C)
        return -F.logsigmoid(every_user[torch.arange(len(X)), y]).mean()

    for step in range(steps):
        adam_W.zero_grad()
        loss().backward()
        adam_W.step()
        start, end = int(0.2 * steps), int(0.8 * steps)
        share = 0 if step < start else 1 if step >= end else (step - start) / (end - start)
        adam_V.zero_grad()
        cosines = [torch.cosine_similarity(V[:, k], V_ref[:, 0], dim=0) for k in range(V.shape[1])]
        (loss() + share * alpha * sum(1 - c for c in cosines) / len(cosines)).backward()
        adam_V.step()
    return V.detach(), W.detach()


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_loss_and_gradient_equal_the_double_sum(alpha):
    users = random_users(COUNTS, D, dtype=torch.float64)
    V_ref = torch.randn(D, 1, dtype=torch.float64)
    model = lore_model(users, alpha=alpha, V_ref=V_ref).double()
    nll, penalty = model(users)
    (nll + penalty).backward()
    V, W = model.V.detach().clone().requires_grad_(), model.W.detach().clone().requires_grad_()
    plain = eq10(users, V, W) + alpha * ((V - V_ref) ** 2).sum()
    plain.backward()
    assert torch.allclose(nll + penalty, plain, rtol=1e-12, atol=0)
    assert torch.allclose(model.V.grad, V.grad, rtol=1e-12, atol=1e-14)
    assert torch.allclose(model.W.grad, W.grad, rtol=1e-12, atol=1e-14)
    model.V.data.zero_()
    assert model(users)[0].item() == pytest.approx(len(users) * math.log(2), rel=1e-12)


@pytest.mark.parametrize(
    "model_class, published, alpha",
    [
        (LoRe, published_lore, 0.0),
        (LoRe, published_lore, 1e-3),
        (LoRe_regularized, published_regularized, 0.0),
        (LoRe_regularized, published_regularized, 5.0),
    ],
)
def test_forty_steps_follow_the_published_path(model_class, published, alpha):
    users, V_ref = random_users(COUNTS, D), torch.randn(D, 1)
    model = lore_model(users, steps=40, alpha=alpha, V_ref=V_ref, model_class=model_class)
    V, W = published(users, model.V.detach(), model.W.detach(), 40, alpha, V_ref)
    probabilities, basis = model.fit(users)
    assert torch.allclose(model.V, V, atol=1e-3) and torch.allclose(model.W, W, atol=1e-3)
    if model_class is LoRe:
        assert torch.equal(basis, model.V)  # a copy
        assert torch.allclose(probabilities, W.softmax(1), atol=1e-3)


def test_few_shot_follows_the_published_path():
    users, V = random_users(COUNTS, D), 20 * torch.randn(D, K)
    model = PersonalizeBatch(len(users), D, K, 40, 0.1)
    logits = [w.clone().requires_grad_() for w in model.w.detach()]
    optimizer = torch.optim.Adam(logits, lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        eq10(users, V, logits).backward()
        optimizer.step()
    W = model.fit(users, V)
    assert torch.allclose(W, torch.stack(logits).softmax(1), atol=1e-4)
    assert torch.allclose(model.w, torch.stack(logits), atol=1e-3)


@pytest.mark.parametrize("model_class, draw_W", [(LoRe, torch.randn), (LoRe_regularized, torch.rand)])
def test_starts_are_drawn_as_published(model_class, draw_W):
    torch.manual_seed(3)
    W, V = draw_W(4, 2), torch.randn(5, 2)
    torch.manual_seed(3)
    model = model_class(None, 0.0, 4, 5, 2, 1, 0.5)
    assert torch.equal(model.W, W) and torch.equal(model.V, V)  # the very same draws


def test_rank_one_is_logistic_regression():
    users = random_users([500, 500], 4)
    W, V = LoRe(None, 0.0, 2, 4, 1, 700, 2.0).fit(users)
    X = torch.cat(users).numpy()
    # -x with label 0 says the same as x with label 1; scikit-learn wants to see both labels
    X, labels = np.concatenate([X, -X]), np.repeat([1, 0], len(X))
    regression = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    expected = LOGIT_SCALE * regression.fit(X, labels).coef_[0]
    assert torch.all(W == 1) and np.allclose(V[:, 0].numpy(), expected, rtol=2e-3, atol=0.2)


def test_planted_mixtures_are_recovered():
    """Users who each follow one of two opposite hidden directions end up with opposite rewards."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(8, generator=generator)
    users = []
    for sign in [1] * 5 + [-1] * 5:
        x = torch.randn(60, 8, generator=generator)
        users.append(x * torch.sign(sign * x @ direction).unsqueeze(1))
    W, V = lore_model(users, K=2, steps=150, d=8).fit(users)
    cosine = torch.cosine_similarity(V @ W.T, direction.unsqueeze(1), dim=0)  # (C,)
    assert (cosine[:5] > 0.9).all() and (cosine[5:] < -0.9).all()


def test_few_shot_on_a_seen_users_own_pairs_reproduces_its_trained_loss():
    users = random_users([40] * 6, D)
    W, V = lore_model(users, K=2, steps=600).fit(users)
    again = PersonalizeBatch(6, D, 2, 100, 0.5).fit(users, V)
    for x, w_joint, w_new in zip(users, W, again):
        joint, new = (-F.logsigmoid(x @ V @ w / 100).mean().item() for w in (w_joint, w_new))
        assert new == pytest.approx(joint, abs=1e-3)


def test_pruning_drops_columns_nobody_uses_and_renormalises():
    users = random_users([3, 3], D)
    model = lore_model(users, steps=0, model_class=LoRe_regularized)
    model.W.data = torch.tensor([[0.0, 1.0, -3.5], [2.0, 0.0, -9.0]])  # 0.8 % and less
    W, V = model.fit(users)
    assert torch.equal(V, model.V[:, :2])  # a copy
    assert torch.allclose(W, model.W[:, :2].softmax(1))
    users = random_users([1] * 300, D)
    rare = lore_model(users, K=2, steps=0, model_class=LoRe_regularized)
    rare.W.data = torch.tensor([[9.0, 0.0]] * 299 + [[4.3, 0.0]])  # 1.3 %
    assert rare.fit(users)[0].shape == (300, 2)  # one user of 300 keeps a column alive


def test_lists_and_comparisons_give_the_same_fit():
    users = random_users(COUNTS, D)
    table = torch.cat([torch.zeros(1, D), torch.cat(users)])
    user = torch.arange(len(users)).repeat_interleave(torch.tensor(COUNTS))
    chosen = torch.arange(1, len(table))
    data = Comparisons(table, user, tuple("abcde"), chosen, torch.zeros_like(chosen))
    (W, V), (W2, V2) = (lore_model(users, steps=30).fit(features) for features in (users, data))
    assert torch.equal(W, W2) and torch.equal(V, V2)  # x - 0 is x: the very same numbers


def test_what_a_model_refuses():
    def refused(words, make):
        with pytest.raises(InputError, match=words):
            make()

    for rank in (0, -1, D + 1):
        refused(f"K = {rank}", lambda K=rank: LoRe(None, 0.0, 2, D, K, 1, 0.5))
        refused(f"K = {rank}", lambda K=rank: PersonalizeBatch(2, D, K, 1, 0.5))
    users = random_users([2, 2], D)
    for V_ref, alpha in ((None, 0.1), (HEAD, -1.0), (HEAD, math.nan)):
        refused("alpha = ", lambda a=alpha, V=V_ref: lore_model(users, alpha=a, V_ref=V))
    refused("head has width 7, the", lambda: lore_model(users, V_ref=torch.randn(7, 1)))
    refused("head holds NaN", lambda: lore_model(users, V_ref=torch.full((D, 1), math.nan)))
    refused("data of 2 users", lambda: lore_model([*users, users[0]]).fit(users))
    refused("basis of shape", lambda: PersonalizeBatch(2, D, K, 1, 0.5).fit(users, torch.randn(D, K + 1)))


@pytest.mark.parametrize("K", [1, 3])
def test_a_run_is_fit_personalise_and_score(K):
    result = sweep(run, [K], [0.0])
    generator = torch.Generator().manual_seed(0)
    W, V = LoRe(HEAD, 0.0, N, D, K, 60, 0.5, generator=generator).fit(GROUPS[0])
    W_unseen = PersonalizeBatch(N_UNSEEN, D, K, 40, 0.1, generator=generator).fit(GROUPS[2], V)
    assert K > 1 or (W_unseen == 1).all()
    expected = [accuracy(V, w, users) for w, users in zip((W, W, W_unseen, W_unseen), GROUPS)]
    by_hand = [*map(np.mean, expected), *map(np.std, expected)]  # no factor of 0.25
    assert np.allclose(np.concatenate(result), by_hand, atol=1e-6)


@pytest.mark.parametrize("function", [run, run_regularized])
def test_a_sweep_gives_every_row_that_it_would_have_given_alone(function):
    K_list, alpha_list, seeds = [0, 1, 4], [0.0, 0.5], [0, 7]
    together = np.stack(sweep(function, K_list, alpha_list, seeds=seeds))
    assert together.shape == (8, 2, 6)  # seeds, alphas * ranks
    assert not np.array_equal(together[:, 0, 1:3], together[:, 1, 1:3])  # seeds differ
    for s, a, k in ((0, 0, 1), (1, 0, 0), (0, 1, 2), (1, 1, 2)):
        alone = sweep(function, [K_list[k]], [alpha_list[a]], seed=seeds[s])
        assert np.allclose(together[:, s, 3 * a + k], np.concatenate(alone), atol=0.01), (s, a, k)


def test_published_settings_are_the_defaults(monkeypatch):
    made = []

    def spy(models, *_):
        made.append((type(models[0]).__name__, models[0].num_iterations, models[0].learning_rate))
        return [model.w.detach().softmax(1) for model in models if isinstance(model, PersonalizeBatch)]

    for model_class in (LoRe, LoRe_regularized, PersonalizeBatch):
        monkeypatch.setattr(model_class, "fit_together", spy)
    for name in [*QUICK]:
        monkeypatch.delitem(QUICK, name)
    sweep(run, [2], [0.0])
    sweep(run_regularized, [2], [0.0])
    shots()
    assert made[::2] == [("LoRe", 1000, 0.5), ("LoRe_regularized", 20000, 0.5), ("LoRe", 500, 0.5)]
    few_shot = [("PersonalizeBatch", 500, learning_rate) for learning_rate in (0.1, 0.5, 0.1)]
    assert made[1::2] == few_shot


def test_the_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(5)
    first = np.stack(sweep(run, [2], [0.0]))
    after = torch.rand(1)
    torch.manual_seed(6)
    assert np.array_equal(first, np.stack(sweep(run, [2], [0.0])))  # the very same calls
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
