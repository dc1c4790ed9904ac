"""The method against the mathematics written out plainly, and its sweeps against single fits."""

import math

import numpy as np
import pytest
import torch
from conftest import random_users
from populations import GROUPS, HEAD, N_UNSEEN, D, N, accuracy, sweep
from sklearn.linear_model import LogisticRegression

from lore.common import InputError
from lore.fit import likelihood
from lore.fit.comparisons import Comparisons
from utils import (
    LoRe,
    LoRe_regularized,
    PersonalizeBatch,
    run,
    run_few_shot_vary_shots,
    run_regularized,
)

COUNTS, K = [3, 7, 1, 12, 30], 3


def eq10(users, V, W_logits):
    """Joint objective, one user and one pair at a time."""
    total = 0
    for x, logits in zip(users, W_logits):
        w = logits.softmax(0)
        total += sum(-torch.log(torch.sigmoid(row @ V @ w / 100)) for row in x) / len(x)
    return total


def published_lore(users, V, W, steps, alpha, V_ref):
    """facts of the published algorithm: one Adam, lr 0.5, loss plus alpha times squared distances of the columns."""
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
        return -torch.nn.functional.logsigmoid(every_user[torch.arange(len(X)), y]).mean()

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
    model = LoRe(V_ref, alpha, len(users), D, K, 1, 0.5).double()
    nll, penalty = model(users)
    (nll + penalty).backward()
    V, W = model.V.detach().clone().requires_grad_(), model.W.detach().clone().requires_grad_()
    plain = eq10(users, V, W) + alpha * ((V - V_ref) ** 2).sum()
    plain.backward()
    assert torch.allclose(nll + penalty, plain, rtol=1e-12, atol=0)
    assert torch.allclose(model.V.grad, V.grad, rtol=1e-12, atol=1e-14)
    assert torch.allclose(model.W.grad, W.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("model_class", [LoRe, LoRe_regularized])
def test_gradcheck_with_the_pull_to_the_head(model_class):
    users = random_users([2, 5, 20], 4, dtype=torch.float64)
    model = model_class(torch.randn(4, 1), 0.7, 3, 4, 2, 1, 0.5).double()

    def loss(V, W):
        return sum(torch.func.functional_call(model, {"V": V, "W": W}, (users,)))

    assert torch.autograd.gradcheck(
        loss, [p.detach().clone().requires_grad_() for p in (model.V, model.W)]
    )


def test_penalties_pull_every_column():
    V_ref = torch.randn(D, 1)
    squared = LoRe(V_ref, 0.7, 2, D, K, 1, 0.5)
    rows = [sum((squared.V[i, k] - V_ref[i, 0]).item() ** 2 for i in range(D)) for k in range(K)]
    assert squared.penalty().item() == pytest.approx(0.7 * sum(rows), rel=1e-5)
    cosine = LoRe_regularized(V_ref, 0.7, 2, D, K, 1, 0.5)
    V = cosine.V.detach()
    cosines = [(V[:, k] @ V_ref[:, 0] / V[:, k].norm() / V_ref.norm()).item() for k in range(K)]
    assert cosine.penalty().item() == pytest.approx(0.7 * sum(1 - c for c in cosines) / K, abs=1e-5)
    close = LoRe(V_ref, 100.0, len(COUNTS), D, K, 300, 0.1)
    _, V = close.fit(random_users(COUNTS, D))
    assert (V - V_ref).abs().max() < 0.1


@pytest.mark.parametrize("alpha", [0.0, 1e-3])
def test_forty_steps_follow_the_published_path(alpha):
    users, V_ref = random_users(COUNTS, D), torch.randn(D, 1)
    model = LoRe(V_ref, alpha, len(users), D, K, 40, 0.5)
    V, W = published_lore(users, model.V.detach(), model.W.detach(), 40, alpha, V_ref)
    probabilities, basis = model.fit(users)
    assert torch.allclose(model.V, V, atol=1e-3) and torch.allclose(model.W, W, atol=1e-3)
    assert torch.equal(basis, model.V) and torch.allclose(probabilities, W.softmax(1), atol=1e-3)


@pytest.mark.parametrize("alpha", [0.0, 5.0])
def test_forty_alternating_steps_follow_the_published_path(alpha):
    users, V_ref = random_users(COUNTS, D), torch.randn(D, 1)
    model = LoRe_regularized(V_ref, alpha, len(users), D, K, 40, 0.5)
    V, W = published_regularized(users, model.V.detach(), model.W.detach(), 40, alpha, V_ref)
    model.fit(users)
    assert torch.allclose(model.V, V, atol=1e-3) and torch.allclose(model.W, W, atol=1e-3)


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


def test_starts_are_drawn_as_published():
    torch.manual_seed(3)
    W, V = torch.randn(4, 2), torch.randn(5, 2)
    torch.manual_seed(3)
    model = LoRe(None, 0.0, 4, 5, 2, 1, 0.5)
    assert torch.equal(model.W, W) and torch.equal(model.V, V)
    torch.manual_seed(3)
    W, V = torch.rand(4, 2), torch.randn(5, 2)  # U(0, 1) logits
    torch.manual_seed(3)
    model = LoRe_regularized(None, 0.0, 4, 5, 2, 1, 0.5)
    assert torch.equal(model.W, W) and torch.equal(model.V, V)


def test_zero_logits_cost_log_two_per_user():
    users = random_users(COUNTS, D)
    model = LoRe(None, 0.0, len(users), D, K, 1, 0.5)
    model.V.data.zero_()
    assert model(users)[0].item() == pytest.approx(len(users) * math.log(2), rel=1e-6)
    regularized = LoRe_regularized(None, 0.0, len(users), D, K, 1, 0.5)
    regularized.V.data.zero_()
    assert regularized(users)[0].item() == pytest.approx(math.log(2), rel=1e-6)


def test_loss_does_not_depend_on_the_order_of_columns_or_the_axes():
    users = random_users(COUNTS, D, dtype=torch.float64)
    model = LoRe(None, 0.0, len(users), D, K, 1, 0.5).double()
    loss = model(users)[0].item()
    order = torch.tensor([2, 0, 1])
    model.V.data, model.W.data = model.V.data[:, order], model.W.data[:, order]
    assert model(users)[0].item() == pytest.approx(loss, rel=1e-12)
    rotation = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))[0]
    model.V.data = rotation.T @ model.V.data
    assert model([x @ rotation for x in users])[0].item() == pytest.approx(loss, rel=1e-12)


def test_every_user_counts_the_same_in_eq10_and_every_pair_in_the_regularized_loss():
    users = random_users([4, 8], D)
    longer = [users[0], torch.cat([users[1], users[1]])]
    for model_class, changes in ((LoRe, False), (LoRe_regularized, True)):
        model = model_class(None, 0.0, 2, D, K, 1, 0.5)
        before, after = model(users)[0].item(), model(longer)[0].item()
        assert (abs(before - after) > 1e-5) == changes


def test_rank_one_is_logistic_regression():
    users = random_users([500, 500], 4)
    model = LoRe(None, 0.0, 2, 4, 1, 2000, 0.5)
    W, V = model.fit(users)
    X = torch.cat(users).numpy()
    # without intercept, -x with label 0 says the same as x with label 1; scikit-learn wants to see both labels
    both, labels = np.concatenate([X, -X]), np.repeat([1, 0], len(X))
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000).fit(
        both, labels
    )
    assert torch.all(W == 1)
    assert np.allclose(
        V[:, 0].numpy() / likelihood.LOGIT_SCALE, fitted.coef_[0], rtol=1e-3, atol=1e-3
    )


def test_planted_mixtures_are_recovered():
    """Users who each follow one of two opposite hidden directions end up with opposite rewards."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(8, generator=generator)
    users = []
    for i in range(10):
        x = torch.randn(60, 8, generator=generator)
        users.append(x * torch.sign(x @ direction * (1 if i < 5 else -1)).unsqueeze(1))
    W, V = LoRe(None, 0.0, 10, 8, 2, 300, 0.5, generator=generator).fit(users)
    rewards = V @ W.T  # (d, C)
    cosine = torch.cosine_similarity(rewards, direction.unsqueeze(1), dim=0)
    assert (cosine[:5] > 0.9).all() and (cosine[5:] < -0.9).all()


def test_few_shot_on_a_seen_users_own_pairs_reproduces_its_trained_loss():
    users = random_users([40] * 6, D)
    W, V = LoRe(None, 0.0, 6, D, 2, 8000, 0.1, generator=torch.Generator().manual_seed(0)).fit(
        users
    )
    again = PersonalizeBatch(6, D, 2, 3000, 0.1).fit(users, V)
    for x, w_joint, w_new in zip(users, W, again):
        joint, new = (
            -torch.nn.functional.logsigmoid(x @ V @ w / 100).mean().item() for w in (w_joint, w_new)
        )
        assert new == pytest.approx(joint, abs=1e-3)


def test_pruning_drops_columns_nobody_uses_and_renormalises():
    model = LoRe_regularized(None, 0.0, 2, D, 3, 0, 0.5)
    model.W.data = torch.tensor([[0.0, 1.0, -9.0], [2.0, 0.0, -9.0]])
    W, V = model.fit(random_users([3, 3], D))
    assert W.shape == (2, 2) and torch.equal(V, model.V[:, :2])
    assert torch.allclose(W.sum(1), torch.ones(2))
    assert torch.allclose(W, model.W[:, :2].softmax(1))
    rare = LoRe_regularized(None, 0.0, 300, D, 2, 0, 0.5)
    rare.W.data = torch.tensor(
        [[9.0, 0.0]] * 299 + [[0.0, 0.0]]
    )  # one user of 300 keeps a column alive
    assert rare.fit(random_users([1] * 300, D))[0].shape == (300, 2)


@pytest.mark.parametrize("model_class", [LoRe, LoRe_regularized])
def test_lists_and_comparisons_give_the_same_fit(model_class):
    users = random_users(COUNTS, D)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    fits = [model_class(None, 0.0, len(users), D, K, 30, 0.5, generator=g) for g in generators]
    table = torch.cat([torch.zeros(1, D), torch.cat(users)])
    user = torch.arange(len(users)).repeat_interleave(torch.tensor(COUNTS))
    chosen = torch.arange(1, len(table))
    data = Comparisons(table, user, tuple("abcde"), chosen, torch.zeros_like(chosen))
    (W, V), (W2, V2) = fits[0].fit(users), fits[1].fit(data)
    assert torch.equal(W, W2) and torch.equal(V, V2)


@pytest.mark.parametrize("K", [0, -1, D + 1])
def test_a_rank_outside_the_embeddings_width_is_refused(K):
    for make in (
        lambda: LoRe(None, 0.0, 2, D, K, 1, 0.5),
        lambda: PersonalizeBatch(2, D, K, 1, 0.5),
    ):
        with pytest.raises(InputError, match=f"K = {K}"):
            make()


def test_mismatched_heads_users_and_bases_are_refused():
    with pytest.raises(InputError, match=r"head has width 7, the embeddings have 6"):
        LoRe(torch.randn(7, 1), 0.0, 2, D, K, 1, 0.5)
    for V_ref, alpha in ((None, 0.1), (torch.randn(D, 1), -1.0), (torch.randn(D, 1), math.nan)):
        with pytest.raises(InputError, match="alpha = "):
            LoRe(V_ref, alpha, 2, D, K, 1, 0.5)
    with pytest.raises(InputError, match="head holds NaN"):
        LoRe(torch.full((D, 1), math.nan), 0.0, 2, D, K, 1, 0.5)
    with pytest.raises(InputError, match="data of 3 users"):
        LoRe(None, 0.0, 2, D, K, 1, 0.5).fit(random_users([2, 2, 2], D))
    with pytest.raises(InputError, match="basis of shape"):
        PersonalizeBatch(2, D, K, 1, 0.5).fit(random_users([2, 2], D), torch.randn(D, K + 1))


def test_a_run_is_fit_personalise_and_score():
    result = sweep(run, [3], [0.0])
    generator = torch.Generator().manual_seed(0)
    W, V = LoRe(HEAD, 0.0, N, D, 3, 60, 0.5, generator=generator).fit(GROUPS[0])
    W_unseen = PersonalizeBatch(N_UNSEEN, D, 3, 40, 0.1, generator=generator).fit(GROUPS[2], V)
    expected = [accuracy(V, w, users) for w, users in zip((W, W, W_unseen, W_unseen), GROUPS)]
    assert np.allclose(np.concatenate(result[:4]), [np.mean(a) for a in expected], atol=1e-6)
    assert np.allclose(
        np.concatenate(result[4:]), [np.std(a) for a in expected], atol=1e-6
    )  # no factor of 0.25


def test_rank_one_is_the_same_reward_for_everybody():
    result = sweep(run, [1], [0.0])
    _, V = LoRe(HEAD, 0.0, N, D, 1, 60, 0.5, generator=torch.Generator().manual_seed(0)).fit(
        GROUPS[0]
    )
    assert result.unseen[0] == pytest.approx(
        np.mean(accuracy(V, torch.ones(N_UNSEEN, 1), GROUPS[3]))
    )


@pytest.mark.parametrize("function", [run, run_regularized])
def test_a_sweep_gives_every_row_that_it_would_have_given_alone(function):
    K_list, alpha_list, seeds = [0, 1, 2, 4], [0.0, 0.5], [0, 7]
    together = np.stack(
        sweep(function, K_list, alpha_list, seeds=seeds)
    )  # (8, seeds, alphas * ranks)
    assert together.shape == (8, 2, 8)
    for s, seed in enumerate(seeds):
        for a, alpha in enumerate(alpha_list):
            for k, K in enumerate(K_list):
                alone = np.concatenate(sweep(function, [K], [alpha], seed=seed))
                assert np.allclose(together[:, s, a * len(K_list) + k], alone, atol=1e-6), (
                    seed,
                    alpha,
                    K,
                )


def test_published_settings_are_the_defaults(monkeypatch):
    seen = []
    monkeypatch.setattr(LoRe, "fit_together", lambda models, data: seen.append(models[0]))
    monkeypatch.setattr(
        LoRe_regularized, "fit_together", lambda models, data: seen.append(models[0])
    )
    personalize = PersonalizeBatch.fit_together
    monkeypatch.setattr(
        PersonalizeBatch, "fit_together", lambda m, *a: (seen.append(m[0]), personalize(m, *a))[1]
    )
    arguments = ([2], [0.0], HEAD, *GROUPS, N, N_UNSEEN, "cpu")
    run(*arguments)
    run_regularized(*arguments)
    run_few_shot_vary_shots(
        2, [0.0], [2], [2], GROUPS[0], GROUPS[2], GROUPS[3], HEAD, N, N_UNSEEN, "cpu"
    )
    found = [(type(m).__name__, m.num_iterations, m.learning_rate) for m in seen]
    joint, few = found[::2], found[1::2]
    assert joint == [("LoRe", 1000, 0.5), ("LoRe_regularized", 20000, 0.5), ("LoRe", 500, 0.5)]
    assert few == [
        ("PersonalizeBatch", 500, 0.1),
        ("PersonalizeBatch", 500, 0.5),
        ("PersonalizeBatch", 500, 0.1),
    ]


def test_the_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(5)
    first = sweep(run, [2], [0.0])
    after = torch.rand(1)
    torch.manual_seed(6)
    assert all(np.array_equal(a, b) for a, b in zip(first, sweep(run, [2], [0.0])))
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_the_published_calling_convention_still_works():
    train, seen, few, unseen, *stds = run(
        [0, 2],
        [0, 1],
        HEAD,
        *GROUPS,
        N,
        N_UNSEEN,
        torch.device("cpu"),
        num_iterations=5,
        few_shot_iterations=5,
    )
    assert all(a.shape == (4,) for a in (train, seen, few, unseen, *stds)) and len(stds) == 4


def test_the_model_of_a_sweep_can_be_chosen():
    options = {"num_iterations": 30, "few_shot_learning_rate": 0.5}
    chosen = sweep(run, [2, 3], [0.5], model_class=LoRe_regularized, **options)
    expected = sweep(run_regularized, [2, 3], [0.5], **options)
    assert np.array_equal(np.stack(chosen), np.stack(expected))
    assert not np.array_equal(chosen.train, sweep(run, [2, 3], [0.5], **options).train)
