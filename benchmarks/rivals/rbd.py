"""RBD: r_u(e) = e V (w_bar + delta_u), weights of either sign around a population's, ridge in reward space.

    min over V, w_bar, delta of  mean over all pairs of -log P + POPULATION |V w_bar|^2
                                 + PERSON mean_u |V delta_u|^2

One Adam over all, stopped where the loss on a tenth of the pairs no longer falls. A new person's delta, V and
w_bar frozen, is a convex problem; here it is solved by Newton's method in place of some hundred Adam steps.
"""

import copy

import torch
import torch.nn.functional as F
from measure import Clock

from rivals import bradley_terry, differences, rival_of

K = 8
POPULATION = 0.01
PERSON = 0.01  # by default; its authors' tuning ends at TUNED
TUNED = 10.0
RATE = 1e-2
STEPS = 2000
PATIENCE = 100
TOLERANCE = 1e-5
HELD_OUT = 10  # one pair in so many
NEWTON_STEPS = 100
HALVINGS = 40


def start(d, C, X, generator):
    V = torch.randn(d, K, generator=generator)
    V = V / V.norm(dim=0)
    w = torch.randn(K, generator=generator) / K**0.5
    delta = 1e-3 * torch.randn(C, K, generator=generator)
    V = V / (X @ (V @ w)).std().clamp_min(1e-12)  # log-odds of std 1
    return [V.requires_grad_(), w.requires_grad_(), delta.requires_grad_()]


def log_odds(X, user, V, w, delta):
    return ((X @ V) * (w + delta[user])).sum(1)  # (n, d) @ (d, K), (n, K)


def loss(X, user, V, w, delta, person):
    ridge = POPULATION * (V @ w).square().sum() + person * (delta @ V.T).square().sum(1).mean()
    return bradley_terry(log_odds(X, user, V, w, delta)) + ridge


def joint_fit(X, user, C, generator, person):
    held_out = torch.randperm(len(X), generator=generator) % HELD_OUT == 0
    fitted = ~held_out
    parameters = start(X.shape[1], C, X, generator)
    adam = torch.optim.Adam(parameters, lr=RATE)
    least = float("inf")
    since = 0  # steps
    best = None
    for _ in range(STEPS):
        adam.zero_grad()
        loss(X[fitted], user[fitted], *parameters, person).backward()
        adam.step()
        with torch.no_grad():
            value = bradley_terry(log_odds(X[held_out], user[held_out], *parameters)).item()
        since += 1
        if value < least - TOLERANCE:
            least = value
            since = 0
            best = copy.deepcopy(parameters)
        if since >= PATIENCE:
            break
    return [parameter.detach() for parameter in best or parameters]


def new_people(X, user, C, V, w, person=PERSON):
    """delta (C, K): min of mean -log P + person |V delta|^2 for each, to rounding."""
    Z = (X @ V).double()  # (n, K)
    m = torch.bincount(user, minlength=C).double()
    metric = 2 * person * (V.T @ V).double() + 1e-9 * torch.eye(K).double()
    delta = Z.new_zeros(C, K)

    def values(delta):
        """What each person minimises. (C,)"""
        nll = -F.logsigmoid((Z * (w.double() + delta[user])).sum(1)) / m[user]
        ridge = (delta @ metric * delta).sum(1) / 2
        return ridge.index_add(0, user, nll)

    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(-(Z * (w.double() + delta[user])).sum(1)) / m[user]
        g = delta @ metric - torch.zeros_like(delta).index_add_(0, user, Z * p[:, None])
        curve = p * (1 - p * m[user])
        outer = (Z * curve[:, None]).unsqueeze(2) * Z.unsqueeze(1)  # (n, K, K)
        H = metric + Z.new_zeros(C, K, K).index_add_(0, user, outer)
        step = torch.linalg.solve(H, g.unsqueeze(2)).squeeze(2)
        size = torch.ones(C, 1, dtype=torch.float64)
        before = values(delta)
        for _ in range(HALVINGS):  # a step that does not help is halved
            worse = values(delta - size * step) > before
            if not worse.any():
                break
            size = torch.where(worse[:, None], size / 2, size)
        delta = delta - size * step
    return delta.float()


def fit(groups, head, seed, person=PERSON):
    clock = Clock()
    generator = torch.Generator().manual_seed(seed)
    V, w, delta = joint_fit(*differences(groups.train), len(groups.train.user_ids), generator, person)
    of_group = lambda group, delta: log_odds(*differences(group), V, w, delta)
    of_few = lambda few: new_people(*differences(few), len(few.user_ids), V, w, person)
    return rival_of("RBD", groups, of_group, delta, of_few, clock(), K)
