"""Mixtures of new people, each solved to a certificate."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lore.common import InputError
from lore.comparisons import Comparisons, pack
from lore.likelihood import LOGIT_SCALE, project

EVERYBODY = math.inf  # as the strength of a prior: all have the population's mixture
CERTIFIED = 1e-6  # largest Frank-Wolfe gap of a few-shot fit, in the unit of Eq. 11
LARGEST_LOG_ODDS = 100.0  # of a pair under one basis reward, up to which the certificate is kept
BATCH = 2**22  # numbers that a batch of few-shot problems holds


class Prior(NamedTuple):
    """What is known of a person before the first pair."""

    mean: torch.Tensor  # (K,) the population's mixture
    strength: (
        float | torch.Tensor
    )  # pairs that it counts as, or (C,); EVERYBODY = more than anybody can have


class Mixtures(NamedTuple):
    W: torch.Tensor  # (C, K) float64
    gap: torch.Tensor  # (C,) Frank-Wolfe gap: the loss is within it of the smallest there is
    spread: torch.Tensor | None  # (C, K) Laplace posterior std of w, the simplex's edges not minded


class Fit(NamedTuple):
    """What a joint fit has found; with a prior where the ridge solver made it."""

    V: torch.Tensor  # (d, K); (d, 1) where the ridge solver found nothing personal
    W: torch.Tensor  # (C, K) probabilities of the seen users
    generator: torch.Generator | None = None  # adam: goes on to draw the starts of the unseen users
    prior: Prior | None = None  # ridge: of the unseen users
    choice: dict | None = None  # ridge: what was chosen, and the held-out curves it was chosen by

    def new_people(self, features, spread=False):
        """Few-shot fit of a ridge solution: per-user list, (0, d) for who is unknown, or Comparisons -> Mixtures."""
        if isinstance(features, Comparisons):
            known, user, count = features, features.user, len(features.user_ids)
        else:
            known, count = [x for x in features if len(x)], len(features)
            user = torch.arange(count).repeat_interleave(
                torch.tensor([len(x) for x in features], dtype=torch.long)
            )
        Z = (
            project(pack(known), [self.V])[0]
            if len(known)
            else self.V.new_zeros(0, self.V.shape[1])
        )
        return solve_mixtures(Z, user.to(Z.device), count, self.prior, spread)


def solve_mixtures(Z, user, num_users, prior, spread=False):
    """min over w_i on the simplex of (sum_j -log sigmoid(z_j . w_i / LOGIT_SCALE) + strength / 2 |w_i - mean|^2) / m_i.

    Eq. 11 with a prior, user by user. Z (n, K), user (n,) ascending -> Mixtures; without pairs w_i is the mean.
    InputError: log-odds so large that the certificate could not be kept.
    """
    counts, mean = torch.bincount(user, minlength=num_users), prior.mean.to(Z.device, torch.float64)
    W, gap = mean.repeat(num_users, 1), mean.new_zeros(num_users)
    strength = torch.as_tensor(prior.strength).to(mean).expand(num_users)
    std = (
        ((1 - 1 / len(mean)) / strength).sqrt().unsqueeze(1).repeat(1, len(mean))
    )  # laplace_std without pairs
    todo, first = counts.argsort(descending=True), counts.cumsum(0) - counts
    todo = todo[(counts[todo] > 0) & (strength[todo] < EVERYBODY)]
    if len(todo) and not Z.abs().max() <= LARGEST_LOG_ODDS * LOGIT_SCALE:
        raise InputError(
            f"a pair's rewards differ by log-odds above {LARGEST_LOG_ODDS:g}: an outlier in the embeddings?"
        )
    while len(todo):  # users with about as many pairs side by side, padded with zeros
        m = int(counts[todo[0]])
        rows, todo = todo.tensor_split([max(1, BATCH // (max(m, len(mean)) * len(mean)))])
        place = torch.arange(m, device=Z.device)
        real = place < counts[rows, None]  # (users, m)
        z = Z[(first[rows, None] + place).clamp_max(len(Z) - 1)].double() / LOGIT_SCALE
        z = torch.where(real[:, :, None], z, 0)  # (users, m, K)
        weight = real / counts[rows, None].double()
        shrink = strength[rows, None] / counts[rows, None]  # (users, 1)
        W[rows], gap[rows], H = newton_on_simplex(z, weight, mean, shrink)
        if spread:
            std[rows] = laplace_std(H * counts[rows, None, None])
    return Mixtures(W, gap, std if spread else None)


def newton_on_simplex(z, weight, mean, shrink, steps=100):
    """Primal-dual interior point, all users at once: w > 0 and multipliers s > 0 with w * s driven to zero.

    z (users, m, K), weight (users, m), mean (K,), shrink (users, 1) -> w (users, K), gap (users,), Hessian.
    """
    K = len(mean)
    w = z.new_full((len(z), K), 1 / K)
    logits = lambda w: (z @ w.unsqueeze(2)).squeeze(
        2
    )  # (users, m, K) @ (users, K, 1) -> (users, m)
    loss = lambda w: (
        -(weight * F.logsigmoid(logits(w))).sum(1) + (shrink / 2 * (w - mean).square()).sum(1)
    )
    best, best_gap, best_H, s = w, z.new_full((len(z),), math.inf), z.new_zeros(len(z), K, K), None
    for _ in range(steps):
        p = torch.sigmoid(-logits(w))
        g = shrink * (w - mean) - ((weight * p).unsqueeze(1) @ z).squeeze(1)  # gradient, (users, K)
        gap = (g * w).sum(1) - g.amin(1)  # of Frank and Wolfe
        H = z.mT @ ((weight * p * (1 - p)).unsqueeze(2) * z) + torch.diag_embed(
            shrink.expand(-1, K)
        )
        better = gap < best_gap
        best, best_gap = torch.where(better[:, None], w, best), torch.where(better, gap, best_gap)
        best_H = torch.where(better[:, None, None], H, best_H)
        if best_gap.max() <= CERTIFIED:
            break
        s = g.abs().amax(1, keepdim=True).clamp_min(1e-6).expand(-1, K) if s is None else s
        mu = 0.1 * (w * s).mean(1, keepdim=True).clamp_min(1e-13)
        r = (w / s).sqrt()  # scaled by r the smallest eigenvalue of H + diag(s / w) is at least 1
        scaled = r[:, :, None] * H * r[:, None, :]
        jitter = 1 + 1e-14 * K * scaled.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
        L = torch.linalg.cholesky(scaled + jitter * torch.eye(K).to(H))
        right = torch.stack([mu / w - g, torch.ones_like(w)], 2)
        a, b = (r[:, :, None] * torch.cholesky_solve(r[:, :, None] * right, L)).unbind(2)
        step = a - b * (a.sum(1) / b.sum(1))[:, None]  # sums to zero: w stays on the simplex
        step_s = mu / w - s - s / w * step
        barrier = lambda w: loss(w) - (mu * w.log()).sum(1)  # noqa: B023
        size, value, slope = inside(w, step), barrier(w), ((g - mu / w) * step).sum(1)
        for _ in range(30):
            rounding = 1e-10 * (1 + value.abs())
            high = barrier(w + size * step) > value + 1e-4 * size[:, 0] * slope + rounding
            if not high.any():
                break
            size = torch.where(high[:, None], size / 2, size)
        w, s = w + size * step, s + inside(s, step_s) * step_s
        w = w / w.sum(1, keepdim=True)
    else:
        raise InputError(
            f"a few-shot fit is not certified: its gap {best_gap.max():.1e} is above {CERTIFIED:g}"
        )
    return best, best_gap, best_H


def inside(x, step):
    """Largest part of a step, up to all of it, that keeps x > 0. (users, K) -> (users, 1)"""
    return torch.where(step < 0, -0.995 * x / step, 1.0).amin(1, keepdim=True).clamp_max(1.0)


def laplace_std(H):
    """Std of w from the Hessian of its log posterior, along the simplex: (users, K, K) -> (users, K)."""
    K = H.shape[1]
    B = torch.linalg.qr(torch.eye(K, K - 1).to(H) - 1 / K)[
        0
    ]  # (K, K-1), orthonormal, columns sum to zero
    covariance = B @ torch.linalg.pinv(B.T @ H @ B, hermitian=True) @ B.T
    return covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
