"""People whom no fit has seen: their mixtures from a saved basis, and what these are worth."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from lore.fit.doubt import covariance, left_of, root_and_factor, tempered
from lore.fit.groups import shuffled_positions
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import BATCH, Batch, Mixtures, batches_of, solve_batches, solve_mixtures
from lore.fit.product import project
from lore.fit.simplex import in_threads

LEFT_OUT = 50  # prompts of a person, at most, that are left out one by one
PROBLEMS = 100_000  # of them in all, but for the first FEW of a person: a few seconds
FEW = 5  # prompts below which nothing is said of a person
CLEAR = 1.645  # standard deviations above the mean, where one in twenty of a normal distribution is


class Newcomers(NamedTuple):
    """What is found of C people, and how well it does on pairs of prompts that it was not fitted to."""

    mixtures: Mixtures  # W, gap, spread, deviations
    prompts: np.ndarray  # (C,) that were left out, one by one
    accuracy: np.ndarray  # (C,) share of the pairs left out that the fit to other prompts gets right
    population: np.ndarray  # (C,) the same of the population's mixture
    gain: np.ndarray  # (C,) mean log P of a pair left out, over that of the population's mixture
    error: np.ndarray  # (C,) its standard error; infinite for a single prompt

    def word(self, person):
        """What the pairs of a person say, plainly."""
        if self.prompts[person] < FEW:
            return "too few prompts to say"
        gain = self.gain[person]
        clear = students_quantile(self.prompts[person] - 1) * self.error[person]
        if gain > clear:
            return "clearly better than the population"
        if gain < -clear:
            return "worse than the population: use that"
        return "not told from the population"


def students_quantile(freedom):
    """Where one in twenty of Student's t is above, to 0.02 from four degrees of freedom on (Cornish and Fisher)."""
    z = CLEAR
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


class Problems(NamedTuple):
    """All pairs of a person each, of which those on one prompt are left out.

    Of a person with pairs 4, 5, 6, of which 4 and 5 are on one prompt, the problems 7 and 8:

        problem   7 7 7   8 8 8
        row       4 5 6   4 5 6
        is_out    x x .   . . x
    """

    owner: torch.Tensor  # (problems,) whose each is
    begin: torch.Tensor  # (problems,) its first line
    problem: torch.Tensor  # (lines,) ascending
    row: torch.Tensor  # (lines,) of the pairs
    is_out: torch.Tensor  # (lines,) whether the pair is foretold, and not fitted to


def adapt(basis, pairs):
    """(R2) of each person of Comparisons, V frozen -> Newcomers."""
    (Z,) = project(pairs, [basis.V])  # (n, d) @ (d, K) -> (n, K)
    C = len(pairs.user_ids)
    prior = basis.prior
    people = batches_of(pairs.user, C, Z.shape[1], pairs if prior.deviation_spread else None)
    mixtures = solve_mixtures(Z, pairs.user, C, prior, pairs, spread=True, people=people())
    prompt, prompt_user = prompts_of_people(pairs)
    problems = leave_one_out(pairs, prompt, prompt_user)
    is_out = problems.is_out
    row = problems.row[is_out]  # (l,) pairs left out
    personal = foretold(people, Z, pairs, prior, problems, mixtures.W)[is_out]  # (l,)
    common = Z[row].double() @ prior.mean.double() / LOGIT_SCALE  # (l, K) @ (K,)
    user = pairs.user[row].numpy()
    count = np.bincount(user, minlength=C)
    gained = (F.logsigmoid(personal) - F.logsigmoid(common)).numpy()
    gain = np.bincount(user, gained, C) / count
    prompts = np.bincount(problems.owner, minlength=C)
    error = clustered_error(gained - gain[user], problems, count, prompts)
    accuracy = np.bincount(user, personal.numpy() > 0, C) / count
    by_all = np.bincount(user, common.numpy() > 0, C) / count
    return Newcomers(mixtures, prompts, accuracy, by_all, gain, error)


def clustered_error(off, problems, count, prompts):
    """Standard error of each person's mean gain, off (l,) being what a pair's gain is off it. (C,)

    Pairs on one prompt err together, so their sum counts. So do fits that share all prompts but two:
    the variance is (1 / G + 1 / (G - 1)) of a prompt's, G being the prompts (Nadeau and Bengio 2003).
    """
    of_problem = np.bincount(problems.problem[problems.is_out], off, len(problems.owner))
    squares = np.bincount(problems.owner, of_problem**2, len(count))
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = squares * prompts / (prompts - 1) * (1 + prompts / (prompts - 1))
        return np.where(prompts > 1, np.sqrt(variance) / count, np.inf)


def prompts_of_people(pairs):
    """Number of each pair's prompt, a person's prompts being nobody else's (n,), and whose each is, ascending."""
    owned = torch.stack([pairs.user, pairs.prompts()])
    (user, _), prompt = owned.unique(dim=1, return_inverse=True)  # (2, n) -> (2, prompts), (n,)
    return prompt, user.contiguous()


def leave_one_out(pairs, prompt, prompt_user):
    """Problems, one for each of a person's prompts, or for LEFT_OUT or fewer drawn from them."""
    counts = pairs.counts
    order = shuffled_positions(prompt_user, 1, torch.Generator().manual_seed(0))[0]
    most = max(FEW, min(LEFT_OUT, PROBLEMS // len(counts)))
    out = (order < most).nonzero().flatten()  # prompt of each problem
    owner = prompt_user[out]
    sizes = counts[owner]  # lines of each problem
    problem = torch.arange(len(out)).repeat_interleave(sizes)
    first = counts.cumsum(0) - counts  # row of each person's first pair
    begin = sizes.cumsum(0) - sizes
    row = first[owner][problem] + torch.arange(len(problem)) - begin[problem]
    return Problems(owner, begin, problem, row, prompt[row] == out[problem])


def foretold(people, Z, pairs, prior, problems, W):
    """Log-odds of each line of Problems by the fit to those that are not left out, with its doubt. (lines,)

    people: () -> Batches of the owners; W (C, K): their mixtures by all their pairs
    """
    Z = Z[problems.row]
    votes = pairs.votes[problems.row] * ~problems.is_out
    owner = problems.owner
    logits = solve_batches(repeated(people(), problems), Z, votes, len(owner), prior, near=W[owner]).logits
    if not prior.doubt:
        return logits
    variance = variance_of_lines(repeated(people(), problems), Z, prior, logits, votes)
    return tempered(logits, variance, prior.doubt)


def variance_of_lines(batches, Z, prior, logits, votes):
    """Variance of the log-odds of each line, by what those that count tell of the same problem. (lines,)

    Z (lines, K), logits (lines,), votes (lines,): 0 = left out
    """
    variances = torch.zeros_like(logits)

    def add(batch):
        rows = batch.rows
        z = Z[rows].double() / LOGIT_SCALE  # (problems, m, K)
        gram = 0.0 if batch.G is None else LOGIT_SCALE**2 * batch.G
        k = covariance(prior, z, z, gram)  # (problems, m, m)
        sharpness = votes[rows] * batch.real * torch.sigmoid(logits[rows]) * torch.sigmoid(-logits[rows])
        of_lines = left_of(k.diagonal(dim1=1, dim2=2), k, *root_and_factor(k, sharpness))
        variances[rows[batch.real]] = of_lines[batch.real]

    in_threads(add, batches, Z.device)
    return variances


def repeated(people, problems):
    """Batches of problems, of all pairs of their owner each, from Batches of the owners.

    So what costs most, G, is found once for a person.
    """
    owner, begin, _, row, _ = problems
    for batch in people:
        m = batch.rows.shape[1]
        numbers = torch.isin(owner, batch.who).nonzero().flatten()
        line = torch.zeros(int(owner.max()) + 1, dtype=torch.long)  # of each owner in the batch
        line[batch.who] = torch.arange(len(batch.who))
        for some in numbers.split(max(1, BATCH // m**2)):
            lines = line[owner[some]]
            rows = (begin[some, None] + torch.arange(m)).clamp_max(len(row) - 1)
            yield Batch(some, rows, batch.real[lines], None if batch.G is None else batch.G[lines])
