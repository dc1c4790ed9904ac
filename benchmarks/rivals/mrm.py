"""MRM: r(e) = sum_k softmax(s)_k 0.01 e V_k, a start of s learned so that one step suits each person.

    inner   s_u = s_0 - one Adam step on the mean of -log P of a tenth of u's pairs, V fixed
    outer   L_u = mean -log P of u's other pairs under s_u; a buffer of two people; loss = sum weight_u L_u,
            weight_u = sigmoid((L_u - median) / GAMMA); one Adam over V and s_0, clipped, cosine with warm-up
    new     one Adam step on s with all known pairs

An Adam step from nothing is rate * g / (|g| + eps), so that a weight moves by next to nothing: to show which of
the two acts, one of the fits gives new people (and seen ones) 20 steps of 0.1. The published number is that of the
epoch best on the test pairs, looked at every LOOK epochs here, every epoch there.
"""

import math

import torch
import torch.nn.functional as F
from measure import timed

from rivals import bradley_terry, differences, rival_of, rows_by_user

K = 2
RATE = 1e-3
EPOCHS = 200
SUPPORT = 0.1
BUFFER = 2
GAMMA = 0.5
WARM_UP = 0.05
SCALE = 0.01
LOOK = 10  # epochs
EPSILON = 1e-8


def log_odds(Z, s, user=None):
    """Z (n, K) = X V; s (K,), or (C, K) with user (n,)."""
    w = s.softmax(-1)
    return SCALE * (Z * (w if user is None else w[user])).sum(1)


def step(g, rate):
    """The first step of Adam."""
    return rate * g / (g.abs() + EPSILON)


def adapted(Z, user, C, s, rate=RATE, steps=1):
    """s (C, K) of everybody after some Adam steps on their pairs from the common start."""
    person_s = s.expand(C, K).clone().requires_grad_()
    m = torch.bincount(user, minlength=C)[user]
    adam = torch.optim.Adam([person_s], lr=rate, eps=EPSILON)
    for _ in range(steps):
        adam.zero_grad()
        (-F.logsigmoid(log_odds(Z, person_s, user)) / m).sum().backward()
        adam.step()
    return person_s.detach()


def share(number, total):
    """Of the learning rate: linear warm-up, then a cosine."""
    warm = WARM_UP * total
    if number < warm:
        return (number + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (number - warm) / (total - warm)))


def outer_loss(X, V, s, generator):
    """L_u of one person's pairs in a random order: the first of them for the inner step."""
    X = X[torch.randperm(len(X), generator=generator)]
    support = max(1, round(SUPPORT * len(X)))
    Z = X @ V  # (m, d) @ (d, K)
    (g,) = torch.autograd.grad(bradley_terry(log_odds(Z[:support], s)), s, create_graph=True)
    query = Z[support:] if len(X) > 1 else Z
    return bradley_terry(log_odds(query, s - step(g, RATE)))


def meta_fit(X, user, seed):
    """Yield V (d, K), s (K,), every LOOK epochs."""
    generator = torch.Generator().manual_seed(seed)
    d = X.shape[1]
    V = ((2 * torch.rand(d, K, generator=generator) - 1) / d**0.5).requires_grad_()
    s = torch.randn(K, generator=generator).requires_grad_()
    rows = rows_by_user(user)
    adam = torch.optim.Adam([V, s], lr=RATE)
    total = EPOCHS * math.ceil(len(rows) / BUFFER)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda number: share(number, total))
    for epoch in range(EPOCHS):
        for people in torch.randperm(len(rows), generator=generator).split(BUFFER):
            losses = [outer_loss(X[rows[person]], V, s, generator) for person in people.tolist()]
            losses = torch.stack(losses)
            weight = torch.sigmoid((losses - losses.quantile(0.5)) / GAMMA)
            adam.zero_grad()
            (weight * losses).sum().backward()
            torch.nn.utils.clip_grad_norm_([V, s], 1.0)
            adam.step()
            schedule.step()
        if epoch % LOOK == LOOK - 1:
            yield V.detach().clone(), s.detach().clone()


def fits(groups, head, seed):
    """{name: Rival} of one meta-fit."""
    epochs, seconds = timed(lambda: [*meta_fit(*differences(groups.train), seed)])

    def rival(V, s, **how):
        """how: of `adapted`, for seen and unseen people."""

        def of_people(group):
            X, user = differences(group)
            return adapted(X @ V, user, len(group.user_ids), s, **how)

        def of_pairs(group, person_s):
            X, user = differences(group)
            return log_odds(X @ V, person_s, user)

        return rival_of("MRM", groups, of_pairs, of_people(groups.train), of_people, seconds, K)

    rivals = [rival(*epoch) for epoch in epochs]
    return {
        "MRM, last epoch": rivals[-1],
        "MRM, best test epoch": max(rivals, key=right),
        "MRM, 20 steps of 0.1": rival(*epochs[-1], rate=0.1, steps=20),
    }


def right(rival):
    """How often on the test pairs of the seen, and of the unseen."""
    return sum((rival.log_odds[name] > 0).float().mean() for name in ("seen", "unseen"))
