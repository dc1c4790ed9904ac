"""MRM: r(e) = sum_k softmax(s)_k 0.01 e V_k, a start of s learned so that one step suits each person.

    inner   s_u = s_0 - one Adam step on the mean of -log P of a tenth of u's pairs, V fixed
    outer   L_u = mean -log P of u's other pairs under s_u; a buffer of two people; loss = sum weight_u L_u,
            weight_u = sigmoid((L_u - median) / GAMMA); one Adam over V and s_0, clipped, cosine with warm-up
    new     one Adam step on s with all known pairs

An Adam step from nothing is rate * g / (|g| + eps), so that a weight moves by next to nothing: to show which of
the two acts, `fit_long` gives new people (and seen ones) 20 steps of 0.1. The published number is that of the
epoch best on the test pairs: `fit_best_epoch`, looked at every LOOK epochs here, every epoch there.
"""

import math

import torch

from rivals import Clock, Rival, bradley_terry, differences, require_finite, rows_by_user

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
    """s (C, K) of everybody after some Adam steps on their own pairs from the common start."""
    own = s.expand(C, K).clone().requires_grad_()
    m = torch.bincount(user, minlength=C)[user]
    adam = torch.optim.Adam([own], lr=rate, eps=EPSILON)
    for _ in range(steps):
        adam.zero_grad()
        (-torch.nn.functional.logsigmoid(log_odds(Z, own, user)) / m).sum().backward()
        adam.step()
    return own.detach()


def meta_fit(X, user, seed, look):
    """V (d, K), s (K,); look(V, s) is called every LOOK epochs."""
    generator = torch.Generator().manual_seed(seed)
    d = X.shape[1]
    V = ((2 * torch.rand(d, K, generator=generator) - 1) / d**0.5).requires_grad_()
    s = torch.randn(K, generator=generator).requires_grad_()
    people = rows_by_user(user)
    adam = torch.optim.Adam([V, s], lr=RATE)
    total = EPOCHS * math.ceil(len(people) / BUFFER)

    def share(number):
        warm = WARM_UP * total
        if number < warm:
            return (number + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (number - warm) / (total - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(adam, share)
    for epoch in range(EPOCHS):
        for some in torch.randperm(len(people), generator=generator).split(BUFFER):
            losses = []
            for person in some.tolist():
                rows = people[person][torch.randperm(len(people[person]), generator=generator)]
                support = max(1, round(SUPPORT * len(rows)))
                Z = X[rows] @ V  # (m, d) @ (d, K)
                inner = bradley_terry(log_odds(Z[:support], s))
                (g,) = torch.autograd.grad(inner, s, create_graph=True)
                query = Z[support:] if len(rows) > 1 else Z
                losses.append(bradley_terry(log_odds(query, s - step(g, RATE))))
            losses = torch.stack(losses)
            weight = torch.sigmoid((losses - losses.quantile(0.5)) / GAMMA)
            adam.zero_grad()
            (weight * losses).sum().backward()
            torch.nn.utils.clip_grad_norm_([V, s], 1.0)
            adam.step()
            schedule.step()
        if epoch % LOOK == LOOK - 1:
            look(V.detach().clone(), s.detach().clone())


class Fits:
    """All of one meta-fit: its epochs, and what is made of them."""

    def __init__(self, groups, seed):
        self.data = {name: differences(group) for name, group in groups._asdict().items()}
        self.sizes = {name: len(group.user_ids) for name, group in groups._asdict().items()}
        self.epochs = []
        clock = Clock()
        meta_fit(*self.data["train"], seed, lambda *found: self.epochs.append(found))
        self.seconds = clock()

    def log_odds(self, V, s, **how):
        found = {}
        for known, tested in (("train", "seen"), ("few_shot_train", "unseen")):
            X, user = self.data[known]
            own = adapted(X @ V, user, self.sizes[known], s, **how)
            for name in (known, tested):
                X, user = self.data[name]
                found[name] = log_odds(X @ V, own, user)
        require_finite("MRM", found)
        return found

    def rival(self, V, s, **how):
        clock = Clock()
        found = self.log_odds(V, s, **how)
        return Rival(found, self.seconds, clock(), K)

    def best_epoch(self):
        def right(epoch):
            found = self.log_odds(*epoch)
            return sum((found[name] > 0).float().mean() for name in ("seen", "unseen"))

        return max(self.epochs, key=right)


def fits(groups, head, seed):
    """{name: Rival} of one meta-fit."""
    found = Fits(groups, seed)
    last = found.epochs[-1]
    return {
        "MRM, last epoch": found.rival(*last),
        "MRM, best test epoch": found.rival(*found.best_epoch()),
        "MRM, 20 steps of 0.1": found.rival(*last, rate=0.1, steps=20),
    }
