"""A person's mixture and deviation once V is known: (R2) of lore/objective.py, solved to a certificate."""

import math
from typing import NamedTuple

import torch

from lore.common import InputError
from lore.comparisons import Comparisons, pack
from lore.likelihood import LOGIT_SCALE
from lore.objective import PersonProblems, Prior
from lore.own import Own, grams
from lore.product import project

EVERYBODY = math.inf  # as the strength of a prior: all have the population's mixture
CERTIFIED = 1e-6  # largest gap of a few-shot fit, in the unit of Eq. 11
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


class Mixtures(NamedTuple):
    """What is found of C people with n pairs in all."""

    W: torch.Tensor  # (C, K)
    # what the ridge solver's people have beside it:
    gap: torch.Tensor | None = None  # (C,) certificate: the loss is within it of the smallest
    logits: torch.Tensor | None = None  # (n,) log-odds of each pair, those not counted as well
    a: torch.Tensor | None = None  # (n,) e_i = sum_j a_j x_j over the pairs of a person
    spread: torch.Tensor | None = None  # (C, K) Laplace posterior std of w, edges not minded
    own: Own | None = None  # e_i, where the prior has it


class Fit(NamedTuple):
    """What a joint fit has found."""

    V: torch.Tensor  # (d, K); (d, 1) where the ridge solver found no second reward
    W: torch.Tensor  # (C, K) probabilities of the seen users
    generator: torch.Generator | None = None  # adam: goes on to draw the starts of the unseen users
    prior: Prior | None = None  # of the unseen users: of the ridge solver, and of K = 0
    choice: dict | None = None  # ridge: what was chosen, and the held-out curves it was chosen by
    own: Own | None = None  # e_i of the seen users; None = nothing of one's own

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
            return solve_mixtures(
                Z, user, len(features.user_ids), self.prior, features, spread=spread
            )
        counts = torch.tensor([len(x) for x in features], dtype=torch.long)
        user = torch.arange(len(features)).repeat_interleave(counts)
        known = [x for x in features if len(x)]
        if not known:
            Z = self.V.new_zeros(0, self.V.shape[1])
            return solve_mixtures(Z, user.to(Z.device), len(features), self.prior, spread=spread)
        pairs = pack(known)
        (Z,) = project(pairs, [self.V])
        return solve_mixtures(Z, user.to(Z.device), len(features), self.prior, pairs, spread=spread)


# ------------------------------------------------------------------------------------------------
# People in batches
# ------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """People with about as many pairs side by side, filled up to m rows."""

    who: torch.Tensor  # (people,)
    rows: torch.Tensor  # (people, m)
    real: torch.Tensor  # (people, m) whether a row is not there to fill up
    G: torch.Tensor | None  # (people, m, m) x . x' / LOGIT_SCALE^2; None where nothing is one's own

    def only(self, counted):
        """rows, real and G of the pairs of a mask (n,) alone."""
        counts = self.real & counted[self.rows]  # (people, m)
        most = int(counts.sum(1).max())
        place = counts.int().argsort(dim=1, descending=True, stable=True)[:, : max(1, most)]
        rows = self.rows.gather(1, place)
        G = self.G
        if G is not None:
            G = G.gather(1, place.unsqueeze(2).expand(-1, -1, G.shape[2]))
            G = G.gather(2, place.unsqueeze(1).expand(-1, place.shape[1], -1))
        return rows, counts.gather(1, place), G

    def logits(self, Z, W, a):
        """Log-odds of all pairs, of mixtures W (people, K) and coefficients a (n,). (people, m)"""
        logits = (Z[self.rows].double() @ W.unsqueeze(2)).squeeze(2) / LOGIT_SCALE
        if self.G is None:
            return logits
        a = a[self.rows] * self.real
        return logits + LOGIT_SCALE * (self.G @ a.unsqueeze(2)).squeeze(2)  # x . e / LOGIT_SCALE


def batches(user, num_users, K, pairs=None, row=None):
    """Yield Batches of all people who have a pair, those with most pairs first.

    user (n,) ascending. pairs: Comparisons whose rows `row` (n,; None = all in order) these are, for
    G.
    """
    counts = torch.bincount(user, minlength=num_users)
    first = counts.cumsum(0) - counts  # row of each person's first pair
    todo = counts.argsort(descending=True)
    todo = todo[counts[todo] > 0]
    while len(todo):
        m = int(counts[todo[0]])
        size = m * max(m, K) if pairs is not None else max(m, K) * K
        some, todo = todo.tensor_split([max(1, BATCH // size)])
        place = torch.arange(m, device=user.device)
        real = place < counts[some, None]
        rows = (first[some, None] + place).clamp_max(len(user) - 1)
        G = None
        if pairs is not None:
            like = torch.zeros((), device=user.device)
            there = rows if row is None else row[rows]
            G = grams(pairs, there, real, like) / LOGIT_SCALE**2
        yield Batch(some, rows, real, G)


def solve_mixtures(Z, user, num_users, prior, pairs=None, row=None, spread=False):
    """(R2) for each person -> Mixtures; without pairs w is the prior's mean and e is 0.

    Z (n, K), user (n,) ascending. pairs: the Comparisons whose rows `row` (n,; None = all in order)
    Z is of; needed where the prior has something of one's own, or several pairs are one vote.
    InputError: log-odds so large that the certificate would not hold.
    """
    votes = None if pairs is None or pairs.choice is None else pairs.votes.to(Z.device)
    if votes is not None and row is not None:
        votes = votes[row]
    pairs = pairs if prior.own else None
    found = solve_batches(
        batches(user, num_users, Z.shape[1], pairs, row), Z, num_users, prior, spread, votes=votes
    )
    if pairs is None:
        return found
    return found._replace(own=Own(pairs, user, found.a))


def solve_batches(people, Z, num_users, prior, spread=False, counted=None, votes=None):
    """solve_mixtures of Batches; counted (n,): the pairs that count, votes (n,): how much each does.

    None = all, and one each.
    """
    K = Z.shape[1]
    mean = prior.mean.to(Z.device, torch.float64)
    fixed = prior.strength == EVERYBODY
    W = mean.repeat(num_users, 1)
    gap = mean.new_zeros(num_users)
    std = ((1 - 1 / K) / mean.new_full((num_users, K), prior.strength)).sqrt()  # without pairs
    logits = Z.double() @ mean / LOGIT_SCALE  # (n, K) @ (K,)
    a = logits.new_zeros(len(Z))
    if fixed and not prior.own:
        return Mixtures(W, gap, logits, a, std if spread else None)
    if len(Z) and not Z.abs().max() <= LARGEST_LOG_ODDS * LOGIT_SCALE:
        raise InputError(
            f"a pair's rewards differ by log-odds above {LARGEST_LOG_ODDS:g}:"
            " an outlier in the embeddings?"
        )
    for batch in people:
        who = batch.who
        rows, real, G = batch.rows, batch.real, batch.G
        if counted is not None:
            rows, real, G = batch.only(counted)
        vote = real.double() if votes is None else votes[rows] * real  # (people, m)
        m = vote.sum(1, keepdim=True).clamp_min(1)  # (people, 1)
        z = Z[rows].double() / LOGIT_SCALE * real.unsqueeze(2)  # (people, m, K)
        own = None if not prior.own else m.unsqueeze(2) * prior.own**2 * G
        if fixed:
            one = mean.new_ones(1)
            problems = PersonProblems((z @ mean).unsqueeze(2), vote / m, one, 0 * m, own)
        else:
            problems = PersonProblems(z, vote / m, mean, prior.strength / m, own)
        w, coefficients, gap[who], H = newton_on_simplex(problems)
        a[rows[real]] = (coefficients * m * prior.own**2 / LOGIT_SCALE)[real]
        if not fixed:
            W[who] = w
        logits[batch.rows[batch.real]] = batch.logits(Z, W[who], a)[batch.real]
        if spread and not fixed:
            std[who] = laplace_std(H * m.unsqueeze(2))
    return Mixtures(W, gap, logits, a, std if spread else None)


# ------------------------------------------------------------------------------------------------
# Newton's method on the simplex
# ------------------------------------------------------------------------------------------------


def newton_on_simplex(problems):
    """The best w (people, K) and a (people, m) found, their gap (people,) and H (people, K, K).

    Primal-dual interior point (Boyd and Vandenberghe, Convex Optimization, section 11.7). With
    multipliers s of w >= 0 and y of sum w = 1, the optimum has

        f'(w) - s + y 1 = 0,    w_k s_k = 0,    sum w = 1,    w, s >= 0

    Newton's step for w_k s_k = mu in place of 0, mu on its way to 0, is, eliminating ds,

        (H + diag(s / w)) dw + y 1 = mu / w - f'(w),    sum dw = 0,    ds = mu / w - s - s / w * dw

    where H and f' are those of w once e has followed; then a takes the step that follows from dw.

    InputError: not certified after NEWTON_STEPS.
    """
    people, m, K = problems.z.shape
    w = problems.z.new_full((people, K), 1 / K)
    a = problems.z.new_zeros(people, m)
    at = problems.slopes(w, a)
    s = at.g.abs().amax(1, keepdim=True).clamp_min(SMALLEST_START).expand(-1, K)
    best = w, a, at.gap, at.H
    for _ in range(NEWTON_STEPS - 1):
        if best[2].max() <= CERTIFIED:
            return best
        mu = CENTRING * (w * s).mean(1, keepdim=True).clamp_min(SMALLEST_MU)
        dw = newton_step(w, s, at.reduced, at.H, mu)
        ds = mu / w - s - s / w * dw
        da = at.follow - (at.Bz @ dw.unsqueeze(2)).squeeze(2)  # (people, m, K) @ (people, K, 1)
        size = step_size(problems, (w, a), (dw, da), at, mu)
        w = w + size * dw
        a = a + size * da
        s = s + inside(s, ds) * ds
        w = w / w.sum(1, keepdim=True)
        at = problems.slopes(w, a)
        better = at.gap < best[2]
        best = [better_of(better, *both) for both in zip((w, a, at.gap, at.H), best)]
    if best[2].max() <= CERTIFIED:
        return best
    raise InputError(
        f"a few-shot fit is not certified: its gap {best[2].max():.1e} is above {CERTIFIED:g}"
    )


def better_of(better, new, old):
    """The new one where `better` (people,) says so; both (people, ..)"""
    return torch.where(better.view(-1, *[1] * (new.ndim - 1)), new, old)


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


def step_size(problems, point, step, at, mu):
    """Largest of the halved steps that stays inside and lowers the barrier. (people, 1)"""
    w, a = point
    dw, da = step

    def barrier(w, a):
        """f - mu * sum_k log w_k. (people,)"""
        return problems.loss(w, a) - (mu * w.log()).sum(1)

    size = inside(w, dw)
    value = barrier(w, a)
    slope = ((at.g - mu / w) * dw).sum(1) - (at.pull * da).sum(1)
    for _ in range(HALVINGS):
        allowed = value + SUFFICIENT * size[:, 0] * slope + ROUNDING * (1 + value.abs())
        high = barrier(w + size * dw, a + size * da) > allowed
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
