"""Which pairs of replies to show a new person: those whose answers would tell most about their mixture.

    python apply/ask.py --basis BASIS --input PAIRS --output ASKED --questions 10

Reads:  --basis, a .safetensors file of a train_basis.py or of adapt.py
        --input, the pool: JSON lines (plain or gzip), CSV or parquet: prompt, or messages; candidates,
        two of them
Writes: --output, the chosen rows as JSON lines in the order in which to ask them, with `told`, by how much
        an answer raises the log-determinant of what is known (D-optimal design); beside it a .json and
        a .png with a trial: planted people, who mix the basis as the people of its file do, answer these
        questions, or as many random ones of the pool, and are predicted on other pairs
Cost:   one pass of the encoder over the pool; seconds for the rest.

Look at the trial before you believe in choosing questions: published studies of it report little difference
to random ones, and the last line printed says whether there is one here.
"""

import sys
from os.path import splitext
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from outputs import require_results, require_rows, written_rows

import saved_basis
from lore.common import InputError, require, start
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import EVERYBODY, solve_mixtures
from lore.report.pictures import plot_questions
from lore.report.results import save_results
from lore.settings import settings
from lore.text.input_rows import candidates_of, rows_of
from lore.text.spellings import as_asked, as_read
from saved_basis import encoder_of_basis, extended, open_basis, scored_rows

# ------------------------------------------------------------------------------- settings ---
basis = ""  # a basis of train_basis.py or adapt.py
input = ""  # the pool: rows with a prompt and two candidates
output = ""  # where the chosen rows go
questions = 10  # how many to choose
trials = 200  # planted people of the trial, each with a half of the pool to be asked about
seed = 0  # of the trial
# -------------------------------------------------------------------------------------------

WAYS = ("chosen", "random")  # how the questions of the trial come about
SURE = 1.96  # standard errors of a difference that is called one


# ------------------------------------------------------------------------------------------------
# D-optimal design, and a trial of it
# ------------------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """Accuracy on other pairs of planted people after 0, 1, .. N questions."""

    agreed: dict  # way -> (trials, N + 1)
    best: torch.Tensor  # (trials,) of who knows the planted mixture

    def rows(self):
        """One dict per number of questions: mean of each way and its standard error."""
        rows = []
        for asked in range(self.agreed["random"].shape[1]):
            row = {"questions": asked, "best": self.best.mean().item()}
            for way in WAYS:
                row[way] = self.agreed[way][:, asked].mean().item()
                row[f"{way}_error"] = standard_error(self.agreed[way][:, asked])
            rows.append(row)
        return rows

    def difference(self):
        """[mean, low, high] of chosen minus random questions after all of them."""
        gained = (self.agreed["chosen"] - self.agreed["random"])[:, -1]
        half = SURE * standard_error(gained)
        return [gained.mean().item(), gained.mean().item() - half, gained.mean().item() + half]


def standard_error(values):
    return (values.std() / len(values) ** 0.5).item()


def most_telling(z, prior, count):
    """The `count` pairs whose answers raise log det of the posterior's Hessian most, one after the other.

    z (pairs, K): log-odds of each pair under each basis reward. The Hessian of (R2) along the simplex,
    at the population's mixture, is strength * I + sum of p (1 - p) z z' over the pairs asked: a person's
    answers do not enter, so that all questions can be chosen beforehand. -> numbers, what each adds.
    """
    K = z.shape[1]
    B = torch.linalg.qr(torch.eye(K, K - 1, dtype=torch.float64) - 1 / K)[0]  # (K, K - 1)
    p = torch.sigmoid(z.double() @ prior.mean.double())  # (pairs, K) @ (K,)
    x = (p * (1 - p)).sqrt().unsqueeze(1) * (z.double() @ B)  # (pairs, K - 1)
    covariance = torch.eye(K - 1, dtype=torch.float64) / prior.strength
    free = torch.ones(len(z), dtype=torch.bool)
    numbers = []
    added = []
    for _ in range(min(count, len(z))):
        told = torch.log1p(((x @ covariance) * x).sum(1))  # determinant lemma
        number = int(torch.where(free, told, -1).argmax())
        seen = covariance @ x[number]
        covariance = covariance - torch.outer(seen, seen) / (1 + x[number] @ seen)
        free[number] = False
        numbers.append(number)
        added.append(told[number].item())
    return numbers, added


class Interview(NamedTuple):
    """A planted person of a trial, and what they answer."""

    w: torch.Tensor  # (K,)
    answers: dict  # way -> (N, K) log-odds of chosen minus rejected, in the order asked
    test: torch.Tensor  # (pairs, K) log-odds of the pairs they are not asked about


def try_out(z, prior, W, count, trials, seed):
    """Planted people mix the basis as W (people, K) do and answer questions of half a pool -> Trial.

    Each trial draws a person, a half of the pool to ask about, the random questions and the answers; on
    the other half, right is the probability that the planted person agrees with the prediction.
    """
    generator = torch.Generator().manual_seed(seed)
    people = torch.randint(len(W), (trials,), generator=generator)
    interviews = [interview(z.double(), prior, w, count, generator) for w in W[people].double()]
    agreed = {}
    for way in WAYS:
        fitted = mixtures_after_each(torch.stack([each.answers[way] for each in interviews]), prior)
        agreed[way] = torch.stack([*map(agreement, fitted, interviews)])
    best = [agreement(each.w[None], each)[0] for each in interviews]
    return Trial(agreed, torch.stack(best))


def interview(z, prior, w, count, generator):
    """A person w (K,) is asked `count` questions of half the pool z (pairs, K), in each way."""
    ask, test = torch.randperm(len(z), generator=generator).tensor_split(2)
    says_first = torch.rand(len(z), generator=generator) < torch.sigmoid(z @ w).float()
    signed = torch.where(says_first, 1.0, -1.0).unsqueeze(1) * z  # as chosen minus rejected
    chosen, _ = most_telling(z[ask], prior, count)
    answers = {"chosen": signed[ask[chosen]], "random": signed[ask[: len(chosen)]]}
    return Interview(w, answers, z[test])


def mixtures_after_each(answers, prior):
    """Mixtures of people who are known by the first 0, 1, .. N of answers (trials, N, K). (trials, N + 1, K)"""
    trials, N, K = answers.shape
    is_known = torch.ones(N, N, dtype=torch.bool).tril()  # (fits, answers)
    Z = answers.unsqueeze(1).expand(-1, N, -1, -1)[:, is_known].flatten(0, 1) * LOGIT_SCALE
    fits = trials * N
    user = torch.arange(fits).repeat_interleave(is_known.sum(1).repeat(trials))
    W = solve_mixtures(Z, user, fits, prior).W.view(trials, N, K)
    start = prior.mean.double().expand(trials, 1, -1)  # before any question
    return torch.cat([start, W], dim=1)


def agreement(fitted, interview):
    """Mean probability that a person agrees with predictions by mixtures (fits, K). (fits,)"""
    z = interview.test
    first = torch.sigmoid(z @ interview.w)  # (pairs, K) @ (K,)
    says_first = z @ fitted.T > 0  # (pairs, fits)
    return torch.where(says_first, first.unsqueeze(1), 1 - first.unsqueeze(1)).mean(0)


# ------------------------------------------------------------------------------------------------
# The script
# ------------------------------------------------------------------------------------------------


def two_of(where, fields):
    """InputError: other than two candidates, or two that are one."""
    pair = candidates_of(where, fields)
    if len({*map(as_read, pair)}) != 2 or len(pair) != 2:
        raise InputError(f"{where}: two different candidates are needed")
    return pair


def different(pool):
    """Numbers of the pairs that are not there before, turned round or not; says how many are.

    Prompts in two spellings are one, as everywhere.
    """
    first = {}
    for number, pair in enumerate(pool):
        first.setdefault(frozenset(map(as_asked, pair)), number)
    if len(first) < len(pool):
        print(f"left out: {len(pool) - len(first)} x the same question again")
    return [*first.values()]


def describe(trial, count):
    """What the trial shows, in a sentence."""
    mean, low, high = [100 * value for value in trial.difference()]
    said = f"chosen minus random questions, after {count}: {mean:+.1f} [{low:+.1f}, {high:+.1f}] points"
    if low > 0:
        return f"{said}: choosing helps here"
    if high < 0:
        return f"{said}: choosing harms here; ask at random"
    return f"{said}: no difference that this trial could show"


def main():
    args = settings(globals(), saved_basis)
    basis = open_basis(args.basis)
    prior = basis.prior._replace(deviation_spread=0.0)  # questions are about the mixture
    if prior.strength == EVERYBODY or len(prior.mean) == 1:
        raise InputError(f"{args.basis} has one reward for everybody: no question tells people apart")
    require(args.questions > 0 and args.trials > 1, "--questions: at least 1; --trials: at least 2")
    prefix, _ = splitext(args.output)
    results = [f"{prefix}.json", f"{prefix}.png"]
    require_rows(args.output, [args.basis, args.input], "told", results)
    require_results(prefix, args.output, picture=True)
    pool = different([two_of(where, fields) for where, fields in rows_of(args.input)])
    if len(pool) < 2 * args.questions:
        raise InputError(
            f"{args.input} has {len(pool)} different pairs; the trial asks {args.questions} of one"
            " half of them"
        )
    encoder = encoder_of_basis(args.basis, basis, args)
    columns = basis.of_columns()
    rows = [*scored_rows(args.input, two_of, encoder, columns, columns.user_ids, ["told"])]
    rows = [rows[number] for number in pool]
    z = torch.stack([row.rewards[0] - row.rewards[1] for row in rows])  # (pool, K)
    numbers, told = most_telling(z, prior, args.questions)
    W = torch.cat([basis.W, basis.W_unseen])
    trial = try_out(z, prior, W, args.questions, args.trials, args.seed)
    with written_rows(args.output) as write:
        for number, more in zip(numbers, told):
            write(extended(rows[number], {"told": more}))
    save_results(prefix, trial.rows(), args, difference=trial.difference())
    plot_questions(prefix)
    before, after = trial.rows()[0], trial.rows()[-1]
    print(
        f"planted people, on other pairs: {100 * before['random']:.1f} % before any question,"
        f" {100 * after['random']:.1f} after {args.questions} random ones,"
        f" {100 * after['chosen']:.1f} after the chosen ones, {100 * after['best']:.1f} at best"
    )
    print(describe(trial, args.questions))
    print(f"the questions are in {args.output}, the trial in {prefix}.json and .png")


if __name__ == "__main__":
    start(main)
