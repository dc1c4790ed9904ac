"""Which pairs to ask a person about: those whose answers would tell most about their reward.

Given the answers A of somebody, the log-odds f_j = z_j . w + x_j . e / LOGIT_SCALE of all pairs j are about
normal around the optimum of (R2), with the covariance

    S = k - k_A (diag(1 / c_A) + k_AA)^-1 k_A'        c_j = p_j (1 - p_j) at that optimum (Laplace)
    k_jl = z_j' (I - 1 1' / K) z_l / strength  +  deviation_spread^2 x_j . x_l / LOGIT_SCALE^2

of which the first part is w's, along the simplex, and the second e's. An answer to pair q lowers the
variance of f_l by S_lq^2 / (1 / c_q + S_qq), and so the log-loss expected of pair l by c_l / 2 times it.
"""

from typing import NamedTuple

import torch

from lore.fit.comparisons import Comparisons
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import EVERYBODY, Mixtures, solve_mixtures

TARGETS = 512  # pairs of a pool, at most, whose log-loss a question is to lower
ALIKE = 0.1  # of the length of x: two pairs that are no farther apart are one question
NOTHING = 1e-12  # nats: rounding


class Questions(NamedTuple):
    """Pairs of a Pool in the order in which to ask them; fewer than wanted where no other tells anything."""

    numbers: list  # of the pairs
    told: list  # log-loss of a pair of the pool, in nats, that each answer is expected to save


class Pool:
    """Pairs that somebody may be asked about, and all that does not depend on a person, worked out once.

    table (rows, d): embeddings of replies, those of answers to other pairs among them; pairs (n, 2): the two
    rows of each pair; V (d, K). Products of the pool with whatever is asked about are kept, n numbers a pair.
    """

    def __init__(self, table, pairs, V):
        self.table = table.float()
        self.pairs = rows_of_pairs(pairs)
        self.Z = (self.table @ V.float()).double() / LOGIT_SCALE  # (rows, d) @ (d, K) -> (rows, K)
        self.z = self.log_odds(self.pairs)
        self.squares = self.differences(self.pairs).double().square().sum(1)  # (n,)
        generator = torch.Generator().manual_seed(0)
        self.targets = torch.randperm(len(self.pairs), generator=generator)[:TARGETS]
        self.target_gram = self.times(self.differences(self.pairs[self.targets]))  # (n, targets)
        self.products = {}  # (first row, second row): (n,)
        self.covariances = {}  # (strength, spread) of a prior: (n, targets)

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

    def covariance(self, prior):
        """k_jl of each pair and each target, worked out once for a prior. (n, targets)"""
        key = (prior.strength, prior.deviation_spread)
        if key not in self.covariances:
            self.covariances = {key: kernel(prior, self.z, self.z[self.targets], self.target_gram)}
        return self.covariances[key]

    def gram(self, pairs):
        """x_j . x for pairs (m, 2); only those that are new cost a product. (n, m)"""
        keys = [tuple(pair) for pair in pairs.tolist()]
        new = [number for number, key in enumerate(keys) if key not in self.products]
        if new:
            columns = self.times(self.differences(pairs[new])).T.contiguous()
            self.products |= zip([keys[number] for number in new], columns)
        columns = [self.products[key] for key in keys]
        return torch.stack(columns, 1) if keys else self.squares.new_zeros(len(self.pairs), 0)


def rows_of_pairs(pairs):
    """Row numbers, (m, 2), of whatever lists two rows a pair."""
    return torch.as_tensor(pairs, dtype=torch.long).view(-1, 2)


class Posterior(NamedTuple):
    """What is believed of a person's log-odds of the n pairs of a Pool, after their answers."""

    mixtures: Mixtures  # (R2) of this one person: W (1, K), spread (1, K), logits and a of the answers
    logits: torch.Tensor  # (n,) mean
    variance: torch.Tensor  # (n,) S_jj
    covariance: torch.Tensor  # (n, targets) S_jl
    learned: torch.Tensor  # (m, n) whose squares the answers have taken from the variance, row by row
    is_new: torch.Tensor  # (n,) whether nothing like it has been asked

    @classmethod
    def of(cls, pool, prior, known):
        """known (m, 2): rows of the pool's table, the preferred reply first; prior: lore.fit.mixtures.Prior."""
        known = rows_of_pairs(known)
        mixtures = mixtures_of(pool, prior, known)
        gram = pool.gram(known)
        logits = pool.z @ mixtures.W[0] + gram @ mixtures.a / LOGIT_SCALE  # (n, K) @ (K,), (n, m) @ (m,)
        z = pool.log_odds(known)
        x = pool.differences(known)
        squares = x.double().square().sum(1)
        root = curvature(mixtures.logits).sqrt()  # (m,)
        M = kernel(prior, z, z, (x @ x.T).double())  # (m, d) @ (d, m)
        M = torch.eye(len(known)).double() + root[:, None] * M * root
        k = kernel(prior, z, pool.z, gram.T) * root[:, None]  # (m, n)
        learned = torch.linalg.solve_triangular(torch.linalg.cholesky(M), k, upper=False)
        targets = pool.targets
        covariance = pool.covariance(prior) - learned.T @ learned[:, targets]  # (n, m) @ (m, targets)
        variance = variances(prior, pool) - learned.square().sum(0)
        is_new = ~alike(pool.squares[:, None], squares, gram).any(1)
        return cls(mixtures, logits, variance, covariance, learned, is_new)


def mixtures_of(pool, prior, known):
    """(R2) of one person who is known by pairs (m, 2)."""
    user = torch.zeros(len(known), dtype=torch.long)
    pairs = Comparisons(pool.table, user, ("they",), *known.T) if len(known) else None
    Z = pool.log_odds(known) * LOGIT_SCALE
    return solve_mixtures(Z, user, 1, prior, pairs, spread=True)


def kernel(prior, z, other_z, gram):
    """k of pairs with z (n, K) and pairs with other_z (m, K), whose x . x' are gram (n, m)."""
    k = (prior.deviation_spread / LOGIT_SCALE) ** 2 * gram
    if prior.strength == EVERYBODY:
        return k
    return k + (z - z.mean(1, keepdim=True)) @ other_z.T / prior.strength  # (n, K) @ (K, m)


def variances(prior, pool):
    """k_jj of the pool. (n,)"""
    k = (prior.deviation_spread / LOGIT_SCALE) ** 2 * pool.squares
    if prior.strength == EVERYBODY:
        return k
    return k + pool.z.var(1, correction=0) * pool.z.shape[1] / prior.strength


def curvature(logits):
    """p (1 - p)"""
    p = torch.sigmoid(logits)
    return p * (1 - p)


def alike(squares, other_squares, products):
    """Whether two pairs are one question, turned round or not: |x|^2 of each, and x . x'."""
    apart = squares + other_squares - 2 * products.abs()
    return apart <= ALIKE**2 * (squares + other_squares) / 2


def most_telling(pool, prior, known, count=1, free=True):
    """The `count` pairs of a Pool that would tell most about somebody -> Questions.

    prior: what is known of anybody (basis.prior, fit.prior); known (m, 2): their answers so far, as rows of
    the pool's table, the preferred reply first; nothing is asked again, nor what is ALIKE; free (n,): what
    may be asked, True = all. The first is the best to ask now. Those behind it are chosen as if those before
    were answered without surprise: ask again with the answer among the known, and the next depends on it.

    One product (rows, d) @ (d,) for each answer that is new to the pool, and n x targets numbers.
    """
    return most_telling_after(Posterior.of(pool, prior, known), pool, prior, count, free)


def most_telling_after(posterior, pool, prior, count=1, free=True):
    """The same where the Posterior of the answers is there already."""
    _, logits, variance, covariance, learned, is_new = posterior
    c = curvature(logits)
    share = c[pool.targets] / 2 / len(pool.targets)
    is_new = is_new & free
    numbers = []
    told = []
    for _ in range(min(count, len(c))):
        gain = covariance.square() @ share / (1 / c + variance)  # (n, targets) @ (targets,)
        number = int(torch.where(is_new, gain, -1).argmax())
        if not is_new[number] or gain[number] <= NOTHING:
            break
        numbers.append(number)
        told.append(gain[number].item())
        if len(numbers) == count:
            break
        gram = pool.gram(pool.pairs[[number]])  # (n, 1)
        column = kernel(prior, pool.z, pool.z[[number]], gram)[:, 0] - learned.T @ learned[:, number]
        step = column / (1 / c[number] + variance[number]).sqrt()
        learned = torch.cat([learned, step[None]])
        variance = variance - step.square()
        covariance = covariance - torch.outer(step, step[pool.targets])
        is_new = is_new & ~alike(pool.squares, pool.squares[number], gram[:, 0])
    return Questions(numbers, told)
