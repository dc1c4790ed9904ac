"""A person's mixture and deviation once V is known: (R2) of lore/fit/ridge_model.py, solved to a certificate."""

import math
from functools import partial
from typing import NamedTuple

import torch

from lore.common import require
from lore.fit.comparisons import Comparisons, pack
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.product import project
from lore.fit.simplex import CERTIFIED, PersonProblems, in_threads, laplace_std, newton_on_simplex

EVERYBODY = math.inf  # as the strength of a prior: all have the population's mixture
LARGEST_LOG_ODDS = 100.0  # of a pair under one basis reward, up to which the certificate is kept
ROWS_AT_ONCE = 2**22  # numbers of X that are formed at a time
BATCH = 2**20  # numbers that a batch of few-shot problems holds
HELD = 2**27  # numbers of G, 1 GB, up to which it is kept for a second use


class Prior(NamedTuple):
    """What is known of a person before the first pair."""

    mean: torch.Tensor  # (K,) the population's mixture
    strength: float  # pairs that it counts as
    deviation_spread: float = 0.0  # unit * o: std of e_i in each direction; 0: e_i = 0
    doubt: float = 0.0  # share of what is unsure that probabilities allow for: lore/fit/doubt.py


class Deviations(NamedTuple):
    """e_i = sum_j a_j x_j over the pairs j of person i, for people 0, 1, ..

    The pairs are kept as row numbers into their table, so that all e_i together, (people, d), are
    never formed.
    """

    pairs: Comparisons
    user: torch.Tensor  # (n,) ascending: whose each pair is; some people may have none
    a: torch.Tensor  # (n,), or (n, draws) of several fits to some of the pairs each

    def vector(self, person):
        """e_i of one person, float32. (d,), or (d, draws)"""
        first, last = stretch(self.user, person, person)
        X = self.pairs.differences(self.a.new_zeros((), dtype=torch.float32), slice(first, last))
        return X.T @ self.a[first:last].float()  # (d, m) @ (m,)

    def margins(self, test):
        """x . e_i of each pair of `test`, Comparisons of the same people. (n,), or (n, draws)"""
        parts = []
        for person in range(len(test.user_ids)):
            e = self.vector(person)
            first, last = stretch(test.user, person, person)
            parts.append(test.differences(e, slice(first, last)) @ e)
        return torch.cat(parts)


def stretch(user, first, last):
    """First row of person `first`, and the one after person `last`; user (n,) is ascending."""
    ends = torch.tensor([first, last + 1], device=user.device)
    return torch.searchsorted(user, ends).tolist()


def grams(pairs, rows, real):
    """x . x' of all pairs of each of several people: rows (people, m) of `pairs` -> (people, m, m).

    real (people, m): which rows are not there to fill up; G is 0 where one of two is not.
    """
    m = rows.shape[1]
    size = max(1, ROWS_AT_ONCE // (m * pairs.num_features))
    float32 = torch.zeros((), device=rows.device)
    parts = []
    for part, real_part in zip(rows.split(size), real.split(size)):
        X = pairs.differences(float32, part.flatten().to(pairs.user.device))
        X = X.view(len(part), m, -1) * real_part.unsqueeze(2)  # (people, m, d)
        parts.append((X @ X.mT).double())
    return torch.cat(parts)


class Mixtures(NamedTuple):
    """What is found of C people with n pairs in all."""

    W: torch.Tensor  # (C, K)
    # what the ridge solver's people have beside it:
    gap: torch.Tensor | None = None  # (C,) certificate: the loss is within it of the smallest
    logits: torch.Tensor | None = None  # (n,) log-odds of each pair, those not counted as well
    a: torch.Tensor | None = None  # (n,) e_i = sum_j a_j x_j over the pairs of a person
    spread: torch.Tensor | None = None  # (C, K) Laplace posterior std of w, edges not minded
    deviations: Deviations | None = None  # e_i, where the prior has it


class Fit(NamedTuple):
    """What a joint fit has found."""

    V: torch.Tensor  # (d, K); (d, 1) where the ridge solver found no second reward
    W: torch.Tensor  # (C, K) probabilities of the seen users
    generator: torch.Generator | None = None  # adam: goes on to draw the starts of the unseen users
    prior: Prior | None = None  # of the unseen users: of the ridge solver, and of K = 0
    choice: dict | None = None  # ridge: what was chosen, and the held-out curves it was chosen by
    deviations: Deviations | None = None  # e_i of the seen users; None = nothing of one's own

    def new_people(self, features, spread=False):
        """Few-shot fit of a ridge solution -> Mixtures.

        features: Comparisons, or a list of per-user (m_i, d), (0, d) for who is unknown.
        InputError: a fit without a prior.
        """
        words = "new_people is of the ridge solver; after adam use PersonalizeBatch"
        require(self.prior is not None, words)
        if isinstance(features, Comparisons):
            pairs = features
            user = pairs.user
            people = len(pairs.user_ids)
        else:
            counts = torch.tensor([len(x) for x in features], dtype=torch.long)
            user = torch.arange(len(features)).repeat_interleave(counts)
            people = len(features)
            with_pairs = [x for x in features if len(x)]
            pairs = pack(with_pairs) if with_pairs else None
        (Z,) = [self.V[:0]] if pairs is None else project(pairs, [self.V])
        return solve_mixtures(Z, user.to(Z.device), people, self.prior, pairs, spread=spread)


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
        most = max(1, int(counts.sum(1).max()))
        column = counts.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        G = self.G
        if G is not None:
            G = G.gather(1, column.unsqueeze(2).expand(-1, -1, G.shape[2]))
            G = G.gather(2, column.unsqueeze(1).expand(-1, most, -1))
        return self.rows.gather(1, column), counts.gather(1, column), G

    def logits(self, Z, W, a):
        """Log-odds of all pairs, of mixtures W (people, K) and coefficients a (n,). (people, m)"""
        logits = (Z[self.rows].double() @ W.unsqueeze(2)).squeeze(2) / LOGIT_SCALE
        if self.G is None:
            return logits
        a = a[self.rows] * self.real
        return logits + LOGIT_SCALE * (self.G @ a.unsqueeze(2)).squeeze(2)  # x . e / LOGIT_SCALE


def person_batches(user, num_users, K, pairs=None, row=None):
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
        who, todo = todo.tensor_split([max(1, BATCH // size)])
        column = torch.arange(m, device=user.device)
        real = column < counts[who, None]
        rows = (first[who, None] + column).clamp_max(len(user) - 1)
        G = None
        if pairs is not None:
            G = grams(pairs, rows if row is None else row[rows], real) / LOGIT_SCALE**2
        yield Batch(who, rows, real, G)


def batches_of(user, num_users, K, pairs=None):
    """() -> Batches of all people, of all their pairs, formed once where what they hold is small."""
    form = partial(person_batches, user, num_users, K, pairs)
    if torch.bincount(user, minlength=num_users).square().sum() > HELD:
        return form
    batches = [*form()]
    return lambda: batches


def solve_mixtures(Z, user, num_users, prior, pairs=None, row=None, spread=False, people=None, near=None):
    """(R2) for each person -> Mixtures; without pairs w is the prior's mean and e is 0.

    Z (n, K), user (n,) ascending. pairs: the Comparisons whose rows `row` (n,; None = all in order)
    Z is of; needed where people may deviate, or several pairs are one vote. people: their Batches, where they
    are formed already; near: see solve_batches.
    InputError: log-odds so large that the certificate would not hold.
    """
    votes = Z.new_ones(len(Z), dtype=torch.float64)
    if pairs is not None:
        votes = (pairs.votes if row is None else pairs.votes[row]).to(Z.device)
    deviating = pairs if prior.deviation_spread else None
    if people is None:
        people = person_batches(user, num_users, Z.shape[1], deviating, row)
    mixtures = solve_batches(people, Z, votes, num_users, prior, spread, near=near)
    if deviating is None:
        return mixtures
    return mixtures._replace(deviations=Deviations(pairs, user, mixtures.a))


def solve_batches(people, Z, votes, num_users, prior, spread=False, certified=CERTIFIED, near=None):
    """solve_mixtures of Batches; votes (n,): how much a pair counts, 0 = not at all, it is foretold.

    near (num_users, K): mixtures near to those that are sought, to begin with; None: begin in the middle
    """
    K = Z.shape[1]
    mean = prior.mean.to(Z.device, torch.float64)
    W = mean.repeat(num_users, 1)
    gap = mean.new_zeros(num_users)
    std = ((1 - 1 / K) / torch.full_like(W, prior.strength)).sqrt()  # without pairs
    logits = Z.double() @ mean / LOGIT_SCALE  # (n, K) @ (K,)
    a = torch.zeros_like(logits)
    everybody = prior.strength == EVERYBODY
    if everybody and not prior.deviation_spread:
        return Mixtures(W, gap, logits, a, std if spread else None)
    words = f"a pair's rewards differ by log-odds above {LARGEST_LOG_ODDS:g}"
    within = (Z.abs() <= LARGEST_LOG_ODDS * LOGIT_SCALE).all()
    require(within, f"{words}: an outlier in the embeddings?")

    def solve(batch):
        who = batch.who
        rows, real, G = batch.only(votes > 0)
        vote = votes[rows] * real  # (people, m)
        m = vote.sum(1, keepdim=True).clamp_min(1)  # (people, 1)
        z = Z[rows].double() / LOGIT_SCALE * real.unsqueeze(2)  # (people, m, K)
        G = m.unsqueeze(2) * prior.deviation_spread**2 * G if prior.deviation_spread else None
        problems = PersonProblems(z, vote / m, mean, prior.strength / m, G)
        start = None if near is None or everybody else near[who]
        if everybody:
            problems = of_one_mixture(problems)
        w, coefficients, gap[who], H = newton_on_simplex(problems, certified, start)
        W[who] = mean if everybody else w
        a[rows[real]] = (coefficients * m * prior.deviation_spread**2 / LOGIT_SCALE)[real]
        logits[batch.rows[batch.real]] = batch.logits(Z, W[who], a)[batch.real]
        if spread:
            std[who] = laplace_std(H * m.unsqueeze(2))

    in_threads(solve, people, Z.device)
    return Mixtures(W, gap, logits, a, std if spread else None)


def of_one_mixture(problems):
    """The same with one reward, that of the mean mixture: only e is left to be chosen."""
    z = (problems.z @ problems.mean).unsqueeze(2)  # (people, m, K) @ (K,)
    return problems._replace(z=z, mean=z.new_ones(1), shrink=torch.zeros_like(problems.shrink))
