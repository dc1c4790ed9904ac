"""Which pairs to ask a person about: those whose answers would tell most about what they prefer.

Given somebody's answers A, the log-odds f of the pairs of a pool are about normal (Laplace), with the mean m of
(R2)'s optimum and the covariance

    S = k - k_A (diag(1 / c_A) + k_AA)^-1 k_A'        c_j = p_j (1 - p_j) at that optimum
    k_jl = z_j' (I - 1 1' / K) z_l / strength  +  deviation_spread^2 x_j . x_l / LOGIT_SCALE^2

whose first part is w's, along the simplex, and whose second is e's. Who takes the better reply of pair l by the
sign of m_l loses, with s_l^2 = S_ll, in expectation

    s_l phi(m_l / s_l) - |m_l| Phi(-|m_l| / s_l)        of slope    phi(m_l / s_l) / (2 s_l)    in s_l^2

and an answer to pair q lowers s_l^2 by S_lq^2 / (1 / c_q + S_qq). What it tells is the product of the two, in the
mean over the pool. Beside D-optimality, log(1 + c_q S_qq), this looks at what is to be predicted, and where it
is still open.
"""

import math
from typing import NamedTuple

import torch

from lore.fit.comparisons import Comparisons
from lore.fit.doubt import covariance, variance
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import EVERYBODY, Mixtures, solve_mixtures

CHOSEN = "chosen"
RANDOM = "random"
WAYS = (CHOSEN, RANDOM)  # how a question comes about
TARGETS = 256  # pairs of a pool, at most, that are predicted where the worth of a question is found
NUMBERS = 2**21  # of covariances, at most: fewer targets for a large pool
ALIKE = 0.3  # of the length of x: two pairs that are no farther apart are one question
NOTHING = 1e-12  # log-odds: rounding


class Pool:
    """Pairs that somebody may be asked about, and all that does not depend on their answers, worked out once.

    table (rows, d): embeddings of replies, those of answers to other pairs among them; pairs (n, 2): the two
    rows of each pair; V (d, K) and prior: of a basis or a Fit. Products with what is asked are kept, n numbers
    a pair.
    """

    def __init__(self, table, pairs, V, prior):
        self.V = V.float()
        self.prior = prior
        self.table = table.float()
        self.pairs = rows_of_pairs(pairs)
        self.Z = (self.table @ self.V).double() / LOGIT_SCALE  # (rows, d) @ (d, K) -> (rows, K)
        self.z = self.log_odds(self.pairs)
        self.products = {}  # (first row, second row): (n,)
        generator = torch.Generator().manual_seed(0)
        count = min(TARGETS, NUMBERS // max(1, len(self.pairs)))
        self.targets = torch.randperm(len(self.pairs), generator=generator)[: max(1, count)]
        gram = self.times(self.differences(self.pairs[self.targets]))
        self.covariance = covariance(prior, self.z, self.z[self.targets], gram).float()  # (n, targets) k_jl
        parts = [self.differences(part).square().sum(1) for part in self.pairs.split(TARGETS)]
        self.squares = torch.cat(parts).double()  # (n,) x . x
        self.variance = variance(prior, self.z, self.squares)  # (n,) k_jj

    def differences(self, pairs):
        """x of pairs (m, 2), first minus second. (m, d)"""
        return self.table[pairs[:, 0]] - self.table[pairs[:, 1]]

    def log_odds(self, pairs):
        """z of pairs (m, 2). (m, K)"""
        return self.Z[pairs[:, 0]] - self.Z[pairs[:, 1]]

    def times(self, x):
        """x_j . x for each pair j of the pool: (m, d) -> (n, m)"""
        products = (self.table @ x.T).double()  # (rows, d) @ (d, m)
        return products[self.pairs[:, 0]] - products[self.pairs[:, 1]]

    def gram(self, pairs):
        """x_j . x for pairs (m, 2), of which new ones alone cost a product. (n, m)"""
        keys = [tuple(pair) for pair in pairs.tolist()]
        new = [number for number, key in enumerate(keys) if key not in self.products]
        if new:
            columns = self.times(self.differences(pairs[new])).T.contiguous()
            self.products |= zip([keys[number] for number in new], columns)
        columns = [self.products[key] for key in keys]
        return torch.stack(columns, 1) if keys else self.z.new_zeros(len(self.pairs), 0)


def rows_of_pairs(pairs):
    """Row numbers, (m, 2), of whatever lists two rows a pair."""
    return torch.as_tensor(pairs, dtype=torch.long).view(-1, 2)


class Posterior(NamedTuple):
    """What is believed of somebody's log-odds of the n pairs of a Pool after m answers."""

    mixtures: Mixtures  # (R2) of this person: W (1, K), spread (1, K); of the answers logits (m,), a (m,)
    mean: torch.Tensor  # (n,)
    variance: torch.Tensor  # (n,) S_jj
    covariance: torch.Tensor  # (n, targets) S_jl, float32
    learned: torch.Tensor  # (m, n), whose squares the answers have taken from the variance, in turn
    is_new: torch.Tensor  # (n,) whether no answer is to a pair that is ALIKE

    @classmethod
    def of(cls, pool, known, mixtures=None):
        """known (m, 2): answers as rows of the pool's table, the preferred reply first.

        mixtures: (R2) of this person, where it is solved already. InputError: see solve_mixtures.
        """
        known = rows_of_pairs(known)
        prior = pool.prior
        if mixtures is None:
            (mixtures,) = mixtures_of(pool, [known])
        gram = pool.gram(known)
        mean = pool.z @ mixtures.W[0] + gram @ mixtures.a / LOGIT_SCALE  # (n, K) @ (K,), (n, m) @ (m,)
        z = pool.log_odds(known)
        x = pool.differences(known)
        root = curvature(mixtures.logits).sqrt()  # (m,)
        M = root[:, None] * covariance(prior, z, z, (x @ x.T).double()) * root  # (m, d) @ (d, m)
        L = torch.linalg.cholesky(M + torch.eye(len(M)).to(M))
        k = root[:, None] * covariance(prior, z, pool.z, gram.T)  # (m, n)
        learned = torch.linalg.solve_triangular(L, k, upper=False)
        seen = learned.float()
        remaining = pool.covariance - seen.T @ seen[:, pool.targets]  # (n, m) @ (m, targets)
        spread = pool.variance - learned.square().sum(0)
        is_new = ~alike(pool.squares[:, None], x.double().square().sum(1), gram).any(1)
        return cls(mixtures, mean, spread, remaining, learned, is_new)

    def worth(self, pool):
        """What an answer to each pair tells, in log-odds. (n,)"""
        deviation = self.variance[pool.targets].clamp_min(NOTHING).sqrt()
        density = torch.exp(-(self.mean[pool.targets] / deviation).square() / 2) / math.sqrt(2 * math.pi)
        slope = density / (2 * deviation) / len(pool.targets)
        noise = 1 / curvature(self.mean)
        lowered = self.covariance.square() @ slope.float()  # (n, targets) @ (targets,)
        return lowered / (noise + self.variance)

    def asked(self, pool, number):
        """The same once a pair of the pool is answered as expected, so that the mean stays."""
        gram = pool.gram(pool.pairs[[number]])  # (n, 1)
        column = covariance(pool.prior, pool.z, pool.z[[number]], gram)[:, 0]
        column = column - self.learned.T @ self.learned[:, number]  # S_jq
        noise = 1 / curvature(self.mean[number])
        step = column / (noise + self.variance[number]).sqrt()
        return self._replace(
            variance=self.variance - step.square(),
            covariance=self.covariance - torch.outer(step, step[pool.targets]).float(),
            learned=torch.cat([self.learned, step[None]]),
            is_new=self.is_new & ~alike(pool.squares, pool.squares[number], gram[:, 0]),
        )


def mixtures_of(pool, known):
    """(R2) of people who are known by pairs (m, 2) each: a list of the Mixtures of each."""
    counts = [len(pairs) for pairs in known]
    user = torch.arange(len(known)).repeat_interleave(torch.tensor(counts))
    rows = torch.cat([*known])
    pairs = None
    if len(rows):
        answering, number = user.unique(return_inverse=True)
        pairs = Comparisons(pool.table, number, tuple(map(str, answering.tolist())), *rows.T)
    Z = pool.log_odds(rows) * LOGIT_SCALE
    fit = solve_mixtures(Z, user, len(known), pool.prior, pairs, spread=True)
    parts = zip(fit.W.split(1), fit.spread.split(1), fit.logits.split(counts), fit.a.split(counts))
    return [Mixtures(W, spread=spread, logits=logits, a=a) for W, spread, logits, a in parts]


def rewards_by(pool, known, mixtures):
    """What each reply of the table is worth to one person, in log-odds: known (m, 2) and their (R2). (rows,)"""
    rewards = pool.Z @ mixtures.W[0]  # (rows, K) @ (K,)
    if not pool.prior.deviation_spread:
        return rewards
    e = pool.differences(rows_of_pairs(known)).T @ mixtures.a.float()  # (d, m) @ (m,)
    return rewards + (pool.table @ e).double() / LOGIT_SCALE  # (rows, d) @ (d,)


def is_one_for_all(prior):
    """Whether people share one reward, so that no question tells them apart."""
    return (prior.strength == EVERYBODY or len(prior.mean) == 1) and not prior.deviation_spread


def curvature(logits):
    """p (1 - p), of rewards however far apart above 0."""
    p = torch.sigmoid(-logits.abs())
    return (p * (1 - p)).clamp_min(torch.finfo(p.dtype).tiny)


def alike(squares, other_squares, products):
    """Whether two pairs are one question, turned round or not, by |x|^2 of each and x . x'."""
    apart = squares + other_squares - 2 * products.abs()
    return apart <= ALIKE**2 * (squares + other_squares) / 2


def most_telling(pool, posterior, count=1, allowed=None):
    """The `count` pairs of a Pool whose answers would tell most about somebody: their numbers, what each tells.

    posterior: Posterior.of(pool, known), of no answer for somebody new; allowed (n,): a mask of the
    pairs that may be asked about; None = all. Nothing is asked again, turned round or in other words, nor what
    tells nothing: there may be fewer. The first is the one to ask now. Those behind it are chosen as if those
    before it were answered as expected: ask again with a new Posterior once the answer is known, and the next
    depends on it.

    What it costs, beside (R2): a product (rows, d) @ (d,) for each answer that is new to the pool, and some
    passes over (n, targets).
    """
    allowed = torch.ones(len(pool.pairs), dtype=torch.bool) if allowed is None else allowed
    numbers = []
    told = []
    for _ in range(min(count, len(pool.pairs))):
        worth = torch.where(allowed & posterior.is_new, posterior.worth(pool), -1)
        number = int(worth.argmax())
        if worth[number] <= NOTHING:
            break
        numbers.append(number)
        told.append(worth[number].item())
        if len(numbers) == count:
            break
        posterior = posterior.asked(pool, number)
    return numbers, told
