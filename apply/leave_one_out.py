"""People whom no fit has seen: their mixtures from a saved basis, and what these are worth."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from lore.fit.groups import shuffled_positions
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import BATCH, Batch, Mixtures, person_batches, solve_batches, solve_mixtures
from lore.fit.product import project

LEFT_OUT = 50  # pairs of a person, at most, that are left out one by one
PROBLEMS = 100_000  # of them in all, but for the first FEW of a person: a few seconds
FEW = 5  # pairs below which nothing is said of a person
CLEAR = 1.645  # standard errors of the gain from which it is called clear: one in twenty by chance


class Newcomers(NamedTuple):
    """What is found of C people, and how well it does on pairs that it was not fitted to."""

    mixtures: Mixtures  # W, gap, spread, deviations
    accuracy: np.ndarray  # (C,) share of the pairs left out that the fit to all others gets right
    population: np.ndarray  # (C,) the same of the population's mixture
    gain: np.ndarray  # (C,) mean log P of a pair left out, over that of the population's mixture
    error: np.ndarray  # (C,) its standard error; infinite for a single pair

    def word(self, person, pairs):
        """What so many pairs say of a person, plainly."""
        if pairs < FEW:
            return "too few pairs to say"
        gain = self.gain[person]
        error = self.error[person]
        if gain > CLEAR * error:
            return "clearly better than the population"
        if gain < -CLEAR * error:
            return "worse than the population: use that"
        return "not told from the population"


def adapt(basis, pairs):
    """(R2) of each person of Comparisons, V frozen -> Newcomers."""
    (Z,) = project(pairs, [basis.V])  # (n, d) @ (d, K) -> (n, K)
    C = len(pairs.user_ids)
    mixtures = solve_mixtures(Z, pairs.user, C, basis.prior, pairs, spread=True)
    row, personal = leave_one_out(Z, basis.prior, pairs)  # (l,), (l,)
    common = Z[row].double() @ basis.prior.mean.double() / LOGIT_SCALE  # (l, K) @ (K,)
    user = pairs.user[row].numpy()
    count = np.bincount(user, minlength=C)
    gained = (F.logsigmoid(personal) - F.logsigmoid(common)).numpy()
    gain = np.bincount(user, gained, C) / count
    squares = np.bincount(user, (gained - gain[user]) ** 2, C)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(count > 1, np.sqrt(squares / (count - 1) / count), np.inf)
    accuracy = np.bincount(user, personal.numpy() > 0, C) / count
    by_all = np.bincount(user, common.numpy() > 0, C) / count
    return Newcomers(mixtures, accuracy, by_all, gain, error)


def leave_one_out(Z, prior, pairs):
    """Rows of pairs (l,), some of each person, and their log-odds by a fit to all others.

    One problem for each: all pairs of its person, of which that one does not count. Of a person with
    three pairs, rows 4, 5, 6, whose problems are 7, 8, 9:

        problem   7 7 7   8 8 8   9 9 9
        row       4 5 6   4 5 6   4 5 6
        is_out    x . .   . x .   . . x
    """
    user = pairs.user
    counts = pairs.counts
    order = shuffled_positions(user, 1, torch.Generator().manual_seed(0))[0]
    most = max(FEW, min(LEFT_OUT, PROBLEMS // len(counts)))
    out = (order < most).nonzero().flatten()  # (l,)
    owner = user[out]
    sizes = counts[owner]  # pairs in each problem
    problem = torch.arange(len(out)).repeat_interleave(sizes)  # (sum of sizes,)
    first = counts.cumsum(0) - counts  # row of each person's first pair
    begin = sizes.cumsum(0) - sizes  # of each problem
    row = first[owner][problem] + torch.arange(len(problem)) - begin[problem]
    is_out = row == out[problem]
    problems = person_batches(problem, len(out), Z.shape[1])
    if prior.deviation_spread:
        people = person_batches(user, len(counts), Z.shape[1], pairs)
        problems = repeated(people, owner, begin, len(row))
    fitted = solve_batches(problems, Z[row], (~is_out).double(), len(out), prior)
    return out, fitted.logits[is_out]


def repeated(people, owner, begin, total):
    """Batches of problems that have all pairs of their owner each, from Batches of the owners.

    So what costs most, G, is found once for a person. owner, begin (l,): whose each problem is, and
    its first row among all `total` of the problems.
    """
    for batch in people:
        m = batch.rows.shape[1]
        numbers = torch.isin(owner, batch.who).nonzero().flatten()
        line = torch.zeros(int(owner.max()) + 1, dtype=torch.long)  # of each owner in the batch
        line[batch.who] = torch.arange(len(batch.who))
        for some in numbers.split(max(1, BATCH // m**2)):
            lines = line[owner[some]]
            rows = (begin[some, None] + torch.arange(m)).clamp_max(total - 1)
            yield Batch(some, rows, batch.real[lines], batch.G[lines])
