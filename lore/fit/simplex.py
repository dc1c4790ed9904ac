"""Convex problems of many people on the simplex, solved to a certificate: (R2) of lore/fit/ridge_model.py."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lore.common import require

CERTIFIED = 1e-6  # largest gap of a few-shot fit, in the unit of Eq. 11

# of the interior-point method
NEWTON_STEPS = 100  # tried before a problem is given up; about ten are usual
CENTRING = 0.03  # share of the present w * s that a step aims at
SMALLEST_MU = 1e-13  # and never at less, for the sake of rounding
SMALLEST_START = 1e-6  # of the multipliers
NEAR = 0.03  # of a start near the solution: how far it is moved to the middle; share of the usual multipliers
TO_THE_BOUNDARY = 0.995  # of the way to w = 0 or s = 0 that a step may go
HALVINGS = 30  # of a step that does not lower the barrier function enough
SUFFICIENT = 1e-4  # share of the decrease that the slope promises (Armijo)
ROUNDING = 1e-10  # of 1 + |value|: what is no increase but rounding
JITTER = 1e-14  # of the largest curvature, added so that Cholesky's method survives rounding


@contextmanager
def one_thread():
    """For many small matrices: to wake more threads for each of them takes longer than what these do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_threads(function, batches, device):
    """function(batch) of each: on a CPU as many side by side as there are threads, each of which takes one."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    batches = iter(batches)
    while group := [*islice(batches, threads)]:
        with one_thread(), ThreadPoolExecutor(threads) as pool:
            list(pool.map(function, group))


# ------------------------------------------------------------------------------------------------
# The person's problem
# ------------------------------------------------------------------------------------------------


class Iterate(NamedTuple):
    """Where Newton's method is with several people, or the step that it takes."""

    w: torch.Tensor  # (users, K)
    a: torch.Tensor  # (users, m)
    Ga: torch.Tensor  # (users, m) G a; 0 where e = 0

    def moved(self, step, size):
        """The Iterate after so much of a step; size: (users, 1)"""
        return Iterate(*(x + size * dx for x, dx in zip(self, step)))


class Slopes(NamedTuple):
    """What a Newton step of PersonProblems needs, e eliminated."""

    g: torch.Tensor  # (users, K) gradient in w
    gap: torch.Tensor  # (users,) the loss is within it of the smallest there is
    reduced: torch.Tensor  # (users, K) gradient in w once e has followed
    H: torch.Tensor  # (users, K, K) and its Hessian
    pull: torch.Tensor  # (users, m) minus the gradient in e, seen through X: G (q - a)
    follow: torch.Tensor  # (users, m) the step of a if w stays
    Bz: torch.Tensor  # (users, m, K) minus how a follows w


class PersonProblems(NamedTuple):
    """(R2) of several people at once, each padded to m pairs, those that do not count of weight 0.

    With c_j = weight_j * sigmoid'(logit_j), q_j = weight_j * sigmoid(-logit_j), G times m and a over
    m, so that they fit a mean, Newton's equations for steps dw and da are

        da = q - a - c (z dw + G da),    strength / m * dw - z' da = z' a - strength / m * (w - mean)

    The first gives da = r - B z dw with B = sqrt(c) (1 + sqrt(c) G sqrt(c))^-1 sqrt(c) and
    r = q - a - B G (q - a); in the second B then stands where c stands without e.

    Certificate: f is convex, so no w of the simplex is better by more than the Frank-Wolfe gap; in e
    it bends by at least 1 (in the unit of its prior), so no e by more than half its squared
    gradient, (q - a)' G (q - a) / 2.
    """

    z: torch.Tensor  # (users, m, K) in log-odds
    weight: torch.Tensor  # (users, m) 1 / m_i of each pair that counts
    mean: torch.Tensor  # (K,)
    shrink: torch.Tensor  # (users, 1) strength / m_i
    G: torch.Tensor | None  # (users, m, m) times m_i; None: e = 0

    def some(self, people):
        """Of those of a mask (users,)."""
        G = None if self.G is None else self.G[people]
        return PersonProblems(self.z[people], self.weight[people], self.mean, self.shrink[people], G)

    def iterate(self, w, a):
        return Iterate(w, a, self.times_G(a))

    def times_G(self, a):
        if self.G is None:
            return torch.zeros_like(a)
        return (self.G @ a.unsqueeze(2)).squeeze(2)  # (users, m, m) @ (users, m, 1)

    def logits(self, point):
        """(users, m)"""
        return (self.z @ point.w.unsqueeze(2)).squeeze(2) + point.Ga  # (users, m, K) @ (users, K, 1)

    def loss(self, point):
        """(users,)"""
        nll = -(self.weight * F.logsigmoid(self.logits(point))).sum(1)
        ridge = self.shrink * (point.w - self.mean).square()  # (users, K)
        return nll + (ridge.sum(1) + (point.a * point.Ga).sum(1)) / 2

    def slopes(self, point):
        w, a, Ga = point
        p = torch.sigmoid(-self.logits(point))
        q = self.weight * p
        c = q * (1 - p)
        ridge = self.shrink * (w - self.mean)
        g = ridge - self.transposed_z(q)
        pull = self.times_G(q) - Ga
        gap = frank_wolfe_gap(w, g) + ((q - a) * pull).sum(1) / 2
        if self.G is None:
            follow = q - a
            Bz = c.unsqueeze(2) * self.z
        else:
            solved = self.times_B(c, torch.cat([self.z, pull.unsqueeze(2)], 2))
            follow = q - a - solved[:, :, -1]
            Bz = solved[:, :, :-1]
        reduced = ridge - self.transposed_z(a + follow)
        H = self.z.mT @ Bz  # (users, K, m) @ (users, m, K)
        H = H + torch.diag_embed(self.shrink.expand(-1, H.shape[1]))
        return Slopes(g, gap, reduced, H, pull, follow, Bz)

    def transposed_z(self, a):
        return (a.unsqueeze(1) @ self.z).squeeze(1)  # (users, 1, m) @ (users, m, K)

    def times_B(self, c, columns):
        """B times each column. (users, m, columns)"""
        root = c.sqrt().unsqueeze(2)  # (users, m, 1)
        M = root * self.G * root.mT
        M.diagonal(dim1=1, dim2=2).add_(1)
        return root * torch.cholesky_solve(root * columns, torch.linalg.cholesky(M))


def frank_wolfe_gap(w, g):
    """Bound on f(w) - min f: f is convex, and the simplex's corners are where its slope is least."""
    return (g * w).sum(1) - g.amin(1)


# ------------------------------------------------------------------------------------------------
# Newton's method on the simplex
# ------------------------------------------------------------------------------------------------


class Solved(NamedTuple):
    """The best that is found of several people."""

    w: torch.Tensor  # (people, K)
    a: torch.Tensor  # (people, m)
    gap: torch.Tensor  # (people,)
    H: torch.Tensor  # (people, K, K)


@one_thread()
def newton_on_simplex(problems, certified=CERTIFIED, near=None):
    """PersonProblems -> Solved. near: w (people, K) of problems that are nearly the same, where there are such.

    Primal-dual interior point (Boyd and Vandenberghe, Convex Optimization, section 11.7). With
    multipliers s of w >= 0 and y of sum w = 1, the optimum has

        f'(w) - s + y 1 = 0,    w_k s_k = 0,    sum w = 1,    w, s >= 0

    Newton's step for w_k s_k = mu in place of 0, mu on its way to 0, is, eliminating ds,

        (H + diag(s / w)) dw + y 1 = mu / w - f'(w),    sum dw = 0,    ds = mu / w - s - s / w * dw

    where H and f' are those of w once e has followed; then a takes the step that follows from dw.
    Where half of the people are certified, the others go on by themselves.

    InputError: not certified after NEWTON_STEPS.
    """
    people, m, K = problems.z.shape
    w = problems.z.new_full((people, K), 1 / K)
    if near is not None:
        w = near + NEAR * (w - near)
    point = problems.iterate(w, problems.z.new_zeros(people, m))
    at = problems.slopes(point)
    s = at.g.abs().amax(1, keepdim=True).clamp_min(SMALLEST_START).expand(-1, K)
    if near is not None:
        s = NEAR * s
    solved = Solved(point.w.clone(), point.a.clone(), at.gap.clone(), at.H.clone())
    who = torch.arange(people, device=s.device)
    for _ in range(NEWTON_STEPS - 1):
        todo = ~(solved.gap[who] <= certified)  # NaN is not certified
        if not todo.any():
            return solved
        if 2 * todo.sum() <= len(who):
            who, s, problems = who[todo], s[todo], problems.some(todo)
            point = Iterate(*(x[todo] for x in point))
            at = Slopes(*(x[todo] for x in at))
        w = point.w
        mu = CENTRING * (w * s).mean(1, keepdim=True).clamp_min(SMALLEST_MU)
        dw = newton_step(w, s, at.reduced, at.H, mu)
        ds = mu / w - s - s / w * dw
        da = at.follow - (at.Bz @ dw.unsqueeze(2)).squeeze(2)  # (people, m, K) @ (people, K, 1)
        step = problems.iterate(dw, da)
        point = point.moved(step, step_size(problems, point, step, at, mu))
        point = point._replace(w=point.w / point.w.sum(1, keepdim=True))
        s = s + inside(s, ds) * ds
        at = problems.slopes(point)
        better = at.gap < solved.gap[who]
        for best, new in zip(solved, (point.w, point.a, at.gap, at.H)):
            best[who[better]] = new[better]
    gap = solved.gap.max()
    words = f"a few-shot fit is not certified: its gap {gap:.1e} is above {certified:g}"
    require(gap <= certified, words)
    return solved


def newton_step(w, s, g, H, mu):
    """dw of the system above, its y eliminated: M dw = mu / w - g - y 1 with sum dw = 0."""
    r = (w / s).sqrt()  # scaled by it, the smallest eigenvalue of M = H + diag(s / w) is at least 1
    scaled = r[:, :, None] * H * r[:, None, :]
    K = w.shape[1]
    largest = scaled.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
    identity = torch.eye(K).to(H)
    L = torch.linalg.cholesky(scaled + (1 + JITTER * K * largest) * identity)
    sides = torch.stack([mu / w - g, torch.ones_like(w)], 2)  # (users, K, 2)
    solved = r[:, :, None] * torch.cholesky_solve(r[:, :, None] * sides, L)
    a, b = solved.unbind(2)
    return a - b * (a.sum(1) / b.sum(1))[:, None]


def step_size(problems, point, step, at, mu):
    """Largest of the halved steps that stays inside and lowers the barrier. (people, 1)"""

    def barrier(point):
        """f - mu * sum_k log w_k. (people,)"""
        return problems.loss(point) - (mu * point.w.log()).sum(1)

    size = inside(point.w, step.w)
    value = barrier(point)
    slope = ((at.g - mu / point.w) * step.w).sum(1) - (at.pull * step.a).sum(1)
    for _ in range(HALVINGS):
        allowed = value + SUFFICIENT * size[:, 0] * slope + ROUNDING * (1 + value.abs())
        high = barrier(point.moved(step, size)) > allowed
        if not high.any():
            break
        size = torch.where(high[:, None], size / 2, size)
    return size


def inside(x, step):
    """Largest part of a step, up to all of it, that keeps x > 0. (users, K) -> (users, 1)"""
    part = torch.where(step < 0, -TO_THE_BOUNDARY * x / step, 1.0)
    return part.amin(1, keepdim=True).clamp_max(1.0)


@one_thread()
def laplace_std(H):
    """Std of w from the Hessian of its log posterior, along the simplex.

    (users, K, K) -> (users, K)
    """
    K = H.shape[1]
    B = torch.linalg.qr(torch.eye(K, K - 1).to(H) - 1 / K)[0]  # (K, K-1), columns sum to zero
    inner = torch.linalg.pinv(B.T @ H @ B, hermitian=True)  # (users, K-1, K-1)
    covariance = B @ inner @ B.T  # (K, K-1) @ (users, K-1, K-1) @ (K-1, K) -> (users, K, K)
    return covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
