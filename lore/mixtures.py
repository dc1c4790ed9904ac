"""A person's mixture once V is known: Eq. 11 with a prior, convex, solved to a certificate.

min over w on the simplex of  f(w) = (sum_j -log sigmoid(z_j . w / LOGIT_SCALE)
                                      + strength / 2 |w - mean|^2) / m
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lore.common import InputError
from lore.comparisons import Comparisons, pack
from lore.likelihood import LOGIT_SCALE
from lore.product import project

EVERYBODY = math.inf  # as the strength of a prior: all have the population's mixture
CERTIFIED = 1e-6  # largest Frank-Wolfe gap of a few-shot fit, in the unit of Eq. 11
LARGEST_LOG_ODDS = 100.0  # of a pair under one basis reward, up to which the certificate is kept
BATCH = 2**22  # numbers that a batch of few-shot problems holds

# of the interior-point method
NEWTON_STEPS = 100  # tried before a problem is given up; about 15 are usual
CENTRING = 0.1  # share of the present w * s that a step aims at
SMALLEST_MU = 1e-13  # and never at less, for the sake of rounding
SMALLEST_START = 1e-6  # of the multipliers
TO_THE_BOUNDARY = 0.995  # of the way to w = 0 or s = 0 that a step may go
HALVINGS = 30  # of a step that does not lower the barrier function enough
SUFFICIENT = 1e-4  # share of the decrease that the slope promises (Armijo)
ROUNDING = 1e-10  # of 1 + |value|: what is no increase but rounding
JITTER = 1e-14  # of the largest curvature, added so that Cholesky's method survives rounding


class Prior(NamedTuple):
    """What is known of a person before the first pair."""

    mean: torch.Tensor  # (K,) the population's mixture
    strength: float | torch.Tensor  # pairs that it counts as, or (C,) of them


class Mixtures(NamedTuple):
    W: torch.Tensor  # (C, K) float64
    gap: torch.Tensor  # (C,) Frank-Wolfe gap: the loss is within it of the smallest there is
    spread: torch.Tensor | None  # (C, K) Laplace posterior std of w, the simplex's edges not minded


class Fit(NamedTuple):
    """What a joint fit has found."""

    V: torch.Tensor  # (d, K); (d, 1) where the ridge solver found nothing personal
    W: torch.Tensor  # (C, K) probabilities of the seen users
    generator: torch.Generator | None = None  # adam: goes on to draw the starts of the unseen users
    prior: Prior | None = None  # of the unseen users: of the ridge solver, and of K = 0
    choice: dict | None = None  # ridge: what was chosen, and the held-out curves it was chosen by

    def new_people(self, features, spread=False):
        """Few-shot fit of a ridge solution -> Mixtures.

        features: Comparisons, or a list of per-user (m_i, d), (0, d) for who is unknown.
        InputError: a fit without a prior.
        """
        if self.prior is None:
            raise InputError("new_people is of the ridge solver; after adam use PersonalizeBatch")
        if isinstance(features, Comparisons):
            (Z,) = project(features, [self.V])
            user = features.user.to(Z.device)
            return solve_mixtures(Z, user, len(features.user_ids), self.prior, spread)
        counts = torch.tensor([len(x) for x in features], dtype=torch.long)
        user = torch.arange(len(features)).repeat_interleave(counts)
        Z = self.V.new_zeros(0, self.V.shape[1])
        if len(user):
            (Z,) = project(pack([x for x in features if len(x)]), [self.V])
        return solve_mixtures(Z, user.to(Z.device), len(features), self.prior, spread)


def solve_mixtures(Z, user, num_users, prior, spread=False):
    """Eq. 11 with a prior, user by user -> Mixtures; without pairs w is the prior's mean.

    Z (n, K), user (n,) ascending. InputError: log-odds so large that the certificate would not hold.
    """
    K = len(prior.mean)
    mean = prior.mean.to(Z.device, torch.float64)
    strength = torch.as_tensor(prior.strength).to(mean).expand(num_users)
    counts = torch.bincount(user, minlength=num_users)
    first = counts.cumsum(0) - counts  # row of each user's first pair
    W = mean.repeat(num_users, 1)
    gap = mean.new_zeros(num_users)
    std = ((1 - 1 / K) / strength).sqrt().unsqueeze(1).repeat(1, K)  # laplace_std without pairs
    todo = counts.argsort(descending=True)
    todo = todo[(counts[todo] > 0) & (strength[todo] < EVERYBODY)]
    if len(todo) and not Z.abs().max() <= LARGEST_LOG_ODDS * LOGIT_SCALE:
        raise InputError(
            f"a pair's rewards differ by log-odds above {LARGEST_LOG_ODDS:g}:"
            " an outlier in the embeddings?"
        )
    while len(todo):  # users with about as many pairs side by side, padded with zeros
        m = int(counts[todo[0]])
        rows, todo = todo.tensor_split([max(1, BATCH // (max(m, K) * K))])
        place = torch.arange(m, device=Z.device)
        real = place < counts[rows, None]  # (users, m)
        z = Z[(first[rows, None] + place).clamp_max(len(Z) - 1)].double() / LOGIT_SCALE
        z = torch.where(real[:, :, None], z, 0)  # (users, m, K)
        weight = real / counts[rows, None].double()
        shrink = strength[rows, None] / counts[rows, None]  # (users, 1)
        W[rows], gap[rows], H = newton_on_simplex(Problems(z, weight, mean, shrink))
        if spread:
            std[rows] = laplace_std(H * counts[rows, None, None])
    return Mixtures(W, gap, std if spread else None)


class Problems(NamedTuple):
    """f of several users at once, each with m pairs, some of weight 0."""

    z: torch.Tensor  # (users, m, K) in log-odds
    weight: torch.Tensor  # (users, m) 1 / m of each real pair
    mean: torch.Tensor  # (K,)
    shrink: torch.Tensor  # (users, 1) strength / m

    def logits(self, w):
        return (self.z @ w.unsqueeze(2)).squeeze(2)  # (users, m, K) @ (users, K, 1) -> (users, m)

    def loss(self, w):
        """(users,)"""
        nll = -(self.weight * F.logsigmoid(self.logits(w))).sum(1)
        return nll + (self.shrink / 2 * (w - self.mean).square()).sum(1)

    def derivatives(self, w):
        """Gradient (users, K) and Hessian (users, K, K)."""
        p = torch.sigmoid(-self.logits(w))
        pull = ((self.weight * p).unsqueeze(1) @ self.z).squeeze(1)  # (users, 1, m) @ (users, m, K)
        curvature = (self.weight * p * (1 - p)).unsqueeze(2)
        H = self.z.mT @ (curvature * self.z)  # (users, K, m) @ (users, m, K) -> (users, K, K)
        ridge = torch.diag_embed(self.shrink.expand(-1, H.shape[1]))
        return self.shrink * (w - self.mean) - pull, H + ridge

    def barrier(self, w, mu):
        """f - mu * sum_k log w_k. (users,)"""
        return self.loss(w) - (mu * w.log()).sum(1)


def newton_on_simplex(problems):
    """The best w (users, K) found, its Frank-Wolfe gap (users,) and Hessian (users, K, K).

    Primal-dual interior point (Boyd and Vandenberghe, Convex Optimization, section 11.7). With
    multipliers s of w >= 0 and y of sum w = 1, the optimum has

        f'(w) - s + y 1 = 0,    w_k s_k = 0,    sum w = 1,    w, s >= 0

    Newton's step for w_k s_k = mu in place of 0, mu on its way to 0, is, eliminating ds,

        (H + diag(s / w)) dw + y 1 = mu / w - f'(w),    sum dw = 0,    ds = mu / w - s - s / w * dw

    InputError: not certified after NEWTON_STEPS.
    """
    users, _, K = problems.z.shape
    w = problems.z.new_full((users, K), 1 / K)
    g, H = problems.derivatives(w)
    s = g.abs().amax(1, keepdim=True).clamp_min(SMALLEST_START).expand(-1, K)
    best = w
    best_gap = frank_wolfe_gap(w, g)
    best_H = H
    for _ in range(NEWTON_STEPS - 1):
        if best_gap.max() <= CERTIFIED:
            return best, best_gap, best_H
        mu = CENTRING * (w * s).mean(1, keepdim=True).clamp_min(SMALLEST_MU)
        dw = newton_step(w, s, g, H, mu)
        ds = mu / w - s - s / w * dw
        size = step_size(problems, w, dw, g, mu)
        w = w + size * dw
        s = s + inside(s, ds) * ds
        w = w / w.sum(1, keepdim=True)
        g, H = problems.derivatives(w)
        gap = frank_wolfe_gap(w, g)
        better = gap < best_gap
        best = torch.where(better[:, None], w, best)
        best_gap = torch.where(better, gap, best_gap)
        best_H = torch.where(better[:, None, None], H, best_H)
    if best_gap.max() <= CERTIFIED:
        return best, best_gap, best_H
    raise InputError(
        f"a few-shot fit is not certified: its gap {best_gap.max():.1e} is above {CERTIFIED:g}"
    )


def frank_wolfe_gap(w, g):
    """Bound on f(w) - min f: f is convex, and the simplex's corners are where its slope is least."""
    return (g * w).sum(1) - g.amin(1)


def newton_step(w, s, g, H, mu):
    """dw of the system above, its y eliminated: M dw = mu / w - g - y 1 with sum dw = 0."""
    r = (w / s).sqrt()  # scaled by it, the smallest eigenvalue of M = H + diag(s / w) is at least 1
    scaled = r[:, :, None] * H * r[:, None, :]
    K = w.shape[1]
    largest = scaled.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
    identity = torch.eye(K).to(H)
    L = torch.linalg.cholesky(scaled + (1 + JITTER * K * largest) * identity)
    right = torch.stack([mu / w - g, torch.ones_like(w)], 2)  # (users, K, 2)
    solved = r[:, :, None] * torch.cholesky_solve(r[:, :, None] * right, L)
    a, b = solved.unbind(2)
    return a - b * (a.sum(1) / b.sum(1))[:, None]


def step_size(problems, w, dw, g, mu):
    """Largest of the halved steps that stays inside and lowers the barrier. (users, 1)"""
    size = inside(w, dw)
    value = problems.barrier(w, mu)
    slope = ((g - mu / w) * dw).sum(1)
    for _ in range(HALVINGS):
        allowed = value + SUFFICIENT * size[:, 0] * slope + ROUNDING * (1 + value.abs())
        high = problems.barrier(w + size * dw, mu) > allowed
        if not high.any():
            break
        size = torch.where(high[:, None], size / 2, size)
    return size


def inside(x, step):
    """Largest part of a step, up to all of it, that keeps x > 0. (users, K) -> (users, 1)"""
    part = torch.where(step < 0, -TO_THE_BOUNDARY * x / step, 1.0)
    return part.amin(1, keepdim=True).clamp_max(1.0)


def laplace_std(H):
    """Std of w from the Hessian of its log posterior, along the simplex.

    (users, K, K) -> (users, K)
    """
    K = H.shape[1]
    B = torch.linalg.qr(torch.eye(K, K - 1).to(H) - 1 / K)[0]  # (K, K-1), columns sum to zero
    inner = torch.linalg.pinv(B.T @ H @ B, hermitian=True)  # (users, K-1, K-1)
    covariance = B @ inner @ B.T  # (K, K-1) @ (users, K-1, K-1) @ (K-1, K) -> (users, K, K)
    return covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
